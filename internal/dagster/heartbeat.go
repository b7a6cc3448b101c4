package dagster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Heartbeat is what a daemon writes every 30 s (dagster._daemon.types.DaemonHeartbeat).
type Heartbeat struct {
	Type, ID string
	Time     time.Time // microseconds
	Errors   []ErrorInfo

	object Object
}

// ParseHeartbeat decodes daemon_heartbeats.body.
func ParseHeartbeat(text string) (Heartbeat, error) {
	o, err := ParseObject(text)
	if err != nil {
		return Heartbeat{}, fmt.Errorf("heartbeat: %w", err)
	}
	stamp, _ := o.Value("timestamp").(json.Number)
	seconds, err := strconv.ParseFloat(string(stamp), 64)
	if err != nil {
		return Heartbeat{}, fmt.Errorf("heartbeat: timestamp %q is not a number", string(stamp))
	}
	h := Heartbeat{Type: o.text("daemon_type"), ID: o.text("daemon_id"), Time: FromUnix(seconds), object: o}
	for _, e := range o.objects("errors") {
		h.Errors = append(h.Errors, errorInfoOf(e))
	}
	return h, nil
}

// JSON returns the text to store. For a parsed heartbeat this is the text that was read.
func (h Heartbeat) JSON() string {
	if h.object != nil {
		return h.object.JSON()
	}
	errors := []any{}
	for _, e := range h.Errors {
		errors = append(errors, e.value())
	}
	return string(Encode(map[string]any{
		"__class__": "DaemonHeartbeat", "daemon_id": h.ID, "daemon_type": h.Type, "errors": errors,
		"timestamp": ToUnix(h.Time),
	}))
}
