package storage

import (
	"github.com/slipway-run/slipway/dagster"
)

// Body is the heartbeat as Dagster stores it.
func (h Heartbeat) Body() string {
	return string(dagster.Encode(map[string]any{
		"__class__": "DaemonHeartbeat", "daemon_id": h.ID, "daemon_type": h.Type, "errors": []any{}, "timestamp": dagster.ToUnix(h.At),
	}))
}
