package storage

import (
	"github.com/slipway-run/slipway/internal/dagster"
)

// Body is the heartbeat as Dagster stores it.
func (h Heartbeat) Body() string {
	return dagster.Heartbeat{Type: h.Type, ID: h.ID, Time: h.At}.JSON()
}
