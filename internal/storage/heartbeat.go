package storage

import (
	"github.com/slipway-run/slipway/internal/dagster"
)

// Body returns the heartbeat in the form in which Dagster stores it.
func (h Heartbeat) Body() string {
	return dagster.Heartbeat{Type: h.Type, ID: h.ID, Time: h.At}.JSON()
}
