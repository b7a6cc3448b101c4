package monitor

import (
	"log/slog"
	"testing"
	"time"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/storage"
)

// What was read before a run was claimed does not end the watch over its worker; what shows that the run went back to
// the queue does.
func TestStaleNewsEndsNoWatch(t *testing.T) {
	claimed := time.Now()
	run := func(status dagster.Status, updated time.Time, launch *storage.LaunchRow, handle string) storage.Run {
		return storage.Run{Run: dagster.Run{ID: "r", Status: status}, Updated: updated, Facts: storage.Facts{Launch: launch, Handle: handle}}
	}
	launch := &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local", Token: "t", At: claimed, State: storage.Open}
	l := &Loop{
		Instance: "i", Log: slog.New(slog.DiscardHandler), Times: func(dagster.Run, string) Times { return Times{} }, flights: map[string]*flight{},
		asks: map[string]chan flightKey{"local": make(chan flightKey, 10)},
	}
	for _, step := range []struct {
		what    string
		run     storage.Run
		watched bool
	}{
		{"claimed, not launched yet", run(dagster.Starting, claimed, launch, ""), false},
		{"launched", run(dagster.Starting, claimed, launch, "h"), true},
		{"read before the claim", run(dagster.Queued, claimed.Add(-time.Second), nil, ""), true},
		{"read before the handle was written", run(dagster.Started, claimed.Add(time.Second), launch, ""), true},
		{"back in the queue", run(dagster.Queued, claimed.Add(time.Second), nil, ""), false},
		{"launched by another instance", run(dagster.Started, claimed, &storage.LaunchRow{Run: "r", Instance: "other", Launcher: "local"}, "h"), false},
	} {
		if err := l.changed(t.Context(), step.run); err != nil {
			t.Fatal(err)
		}
		f := l.flights["r"]
		if (f != nil) != step.watched {
			t.Errorf("%s: watched %v, want %v", step.what, f != nil, step.watched)
		}
		if f != nil && f.run.Handle != "h" {
			t.Errorf("%s: handle %q, want h", step.what, f.run.Handle)
		}
	}
}
