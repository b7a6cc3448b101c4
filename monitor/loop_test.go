package monitor

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/launcher"
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

// written is a storage that keeps what is written.
type written struct {
	store
	texts []string
}

func (w *written) Move(_ context.Context, _ storage.Fence, t storage.Transition) (storage.Outcome, error) {
	for _, e := range t.Events {
		w.texts = append(w.texts, e.Message)
	}
	return storage.Outcome{Done: true}, nil
}

// A run's log tells of each phase once; of phases that pass quickly only where a setting says so.
func TestPhasesInTheRunsLog(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		want  []string
	}{{0, []string{"waits for a place", "has a place", "is being pulled", "has been pulled", "has been started"}}, {time.Hour, nil}} {
		w := &written{}
		r := storage.Run{Run: dagster.Run{ID: "r", Status: dagster.Starting}, Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local", Token: "t"}, Handle: "h"}}
		l := &Loop{
			Store: w, Log: slog.New(slog.DiscardHandler), PhasesAfter: c.after,
			flights: map[string]*flight{"r": {run: r, since: time.Now()}},
		}
		for _, h := range []launcher.Health{
			{Phase: launcher.Accepted}, {Phase: launcher.Accepted, Message: "0/1 nodes are available"}, {Phase: launcher.Scheduled}, {Phase: launcher.Pulling}, {Phase: launcher.Pulling},
			{Phase: launcher.Pulled}, {Phase: launcher.PhaseStarted},
		} {
			h.Status = launcher.Starting
			if err := l.reported(t.Context(), report{id: launcher.ID{Run: "r", Attempt: 1}, health: h}); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.EqualFunc(w.texts, c.want, strings.Contains) {
			t.Errorf("after %v: %q, want %q", c.after, w.texts, c.want)
		}
	}
}
