package monitor

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// What was read before a run was claimed does not end the watch over its worker; what shows that
// the run went back to the queue does.
func TestStaleNewsEndsNoWatch(t *testing.T) {
	claimed := time.Now()
	run := func(status dagster.Status, updated time.Time, launch *storage.LaunchRow, handle string) storage.Run {
		return storage.Run{Run: dagster.Run{ID: "r", Status: status}, Updated: updated,
			Facts: storage.Facts{Launch: launch, Handle: handle}}
	}
	launch := &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local", Token: "t", At: claimed,
		State: storage.Open}
	voided := *launch
	voided.State = storage.Void
	requeued := run(dagster.Queued, claimed.Add(-time.Hour), nil, "")
	requeued.Last = &voided
	l := &Loop{
		Instance: "i", Log: slog.New(slog.DiscardHandler), Times: func(dagster.Run, string) Times { return Times{} },
		flights: map[string]*flight{}, loose: map[string]loose{},
		asks: map[string]chan question{"local": make(chan question, 10)},
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
		{"back in the queue", requeued, false},
		{"launched once more", run(dagster.Starting, claimed, launch, "h"), true},
		{"launched by another instance",
			run(dagster.Started, claimed, &storage.LaunchRow{Run: "r", Instance: "other", Launcher: "local"}, "h"),
			false},
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

// written is a storage of one run that keeps what is written.
type written struct {
	run    storage.Run
	events []dagster.Event
	texts  []string
}

func (w *written) Runs(context.Context, storage.Filter) ([]storage.Run, error) {
	return []storage.Run{w.run}, nil
}

func (w *written) Events(_ context.Context, _ string, types ...dagster.EventType) (out []dagster.Event, err error) {
	for _, e := range w.events {
		if len(types) == 0 || slices.Contains(types, e.Type) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (w *written) EventsAfter(_ context.Context, _ string, after int64) ([]dagster.Event, int64, error) {
	if after < 0 {
		after = int64(len(w.events))
	}
	return w.events[after:], int64(len(w.events)), nil
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
	}{{0, []string{"waits for a place", "has a place", "is being pulled", "has been pulled", "has been started"}},
		{time.Hour, nil}} {
		w := &written{}
		r := storage.Run{Run: dagster.Run{ID: "r", Status: dagster.Starting},
			Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local",
				Token: "t"}, Handle: "h"}}
		l := &Loop{
			Store: w, Log: slog.New(slog.DiscardHandler), PhasesAfter: c.after,
			flights: map[string]*flight{"r": {run: r, since: time.Now()}},
		}
		for _, h := range []launcher.Health{
			{Phase: launcher.Accepted}, {Phase: launcher.Accepted, Message: "0/1 nodes are available"},
			{Phase: launcher.Scheduled}, {Phase: launcher.Pulling}, {Phase: launcher.Pulling},
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

// How long a worker takes to start, and a run in all, is told by our own clock from when we saw it:
// the clock of a target may be hours off, and ours be stepped.
func TestTimesByOurOwnClock(t *testing.T) {
	now := time.Now()
	off := now.Add(-time.Hour)
	r := storage.Run{
		Run: dagster.Run{ID: "r", Status: dagster.Starting}, Updated: now,
		Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local",
			Token: "t", At: off, State: storage.Open}, Handle: "h"},
	}
	times := Times{Start: time.Minute, MaxRuntime: time.Minute}
	l := &Loop{
		Store: &written{}, Instance: "i", Log: slog.New(slog.DiscardHandler), PhasesAfter: time.Hour,
		Times:   func(dagster.Run, string) Times { return times },
		flights: map[string]*flight{}, loose: map[string]loose{}, Clock: time.Now,
		asks: map[string]chan question{"local": make(chan question, 10)},
	}
	see := func(status dagster.Status) *flight {
		t.Helper()
		r.Status = status
		if status == dagster.Started {
			r.Start = off
		}
		if err := l.changed(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		h := launcher.Health{Status: launcher.Running, Started: off}
		if err := l.reported(t.Context(), report{id: launcher.ID{Run: "r", Attempt: 1}, health: h}); err != nil {
			t.Fatal(err)
		}
		f := l.flights["r"]
		f.again = time.Time{} // not looked at yet
		return f
	}
	if f := see(dagster.Starting); f.due(now.Add(30*time.Second)) || !f.due(now.Add(2*time.Minute)) {
		t.Error("a worker that began an hour ago by its target's clock has had its time to start, or never has")
	}
	if f := see(dagster.Started); f.due(now.Add(30*time.Second)) || !f.due(now.Add(2*time.Minute)) {
		t.Error("a run that started an hour ago by its worker's clock has had its longest time, or never has")
	}
	l.flights = map[string]*flight{} // of a daemon that was started since
	if f := see(dagster.Started); f.due(now.Add(30 * time.Second)) {
		t.Error("a run that started an hour ago by its worker's clock alone has had its longest time")
	}
	l.flights, r.Began = map[string]*flight{}, l.Clock().Add(-time.Hour) // which an earlier leader wrote
	if f := see(dagster.Started); !f.due(now) {
		t.Error("a run that started an hour ago by the database's clock has not had its minute")
	}
}

// A run whose handle is written may have begun, or been canceled, while its worker was being
// launched. What was read of it then had no handle, and is not told again.
func TestLaunchedMeanwhile(t *testing.T) {
	launch := &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local", Token: "t", At: time.Now(),
		State: storage.Open}
	run := func(status dagster.Status, handle string) storage.Run {
		return storage.Run{Run: dagster.Run{ID: "r", Status: status},
			Facts: storage.Facts{Launch: launch, Handle: handle}}
	}
	later := time.Now().Add(2 * time.Minute)
	for name, c := range map[string]struct {
		read, launched storage.Run
		due, lingers   bool
	}{
		"begun":                              {run(dagster.Started, ""), run(dagster.Started, "h"), true, false},
		"begun, and read so with its handle": {run(dagster.Started, "h"), run(dagster.Starting, "h"), true, false},
		"not begun":                          {run(dagster.Starting, ""), run(dagster.Starting, "h"), false, false},
		"canceled by force":                  {run(dagster.Canceled, ""), run(dagster.Canceled, "h"), false, true},
	} {
		l := &Loop{
			Store: &written{}, Instance: "i", Log: slog.New(slog.DiscardHandler),
			Times:   func(dagster.Run, string) Times { return Times{MaxRuntime: time.Minute} },
			flights: map[string]*flight{}, loose: map[string]loose{}, Clock: time.Now,
			asks:  map[string]chan question{"local": make(chan question, 10)},
			Inbox: storage.NewInbox(), Launched: storage.NewInbox(),
		}
		l.Inbox.Put(c.read)
		l.Launched.Put(c.launched)
		if err := errors.Join(take(t.Context(), l.Inbox, l.changed), take(t.Context(), l.Launched, l.launched)); err !=
			nil {
			t.Fatal(err)
		}
		if f := l.flights["r"]; f == nil || f.due(later) != c.due || f.lingers(later) != c.lingers {
			t.Errorf("%s: %+v; want its longest time to end: %v, its worker to be stopped: %v", name, f, c.due,
				c.lingers)
		}
	}
}

// A worker that its target does not know is dead if the run's log has nothing new since, whatever
// the clocks say of what stands there: a daemon whose clock was set back, or a worker whose clock
// is off, wrote it. What we write ourselves does not count.
func TestHeardByOurOwnClock(t *testing.T) {
	now := time.Now()
	r := storage.Run{
		Run: dagster.Run{ID: "r", Status: dagster.Starting},
		Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "local",
			Token: "t", At: now, State: storage.Open}, Handle: "h"},
	}
	event := func(typ dagster.EventType, at time.Duration, text string) dagster.Event {
		return dagster.NewEvent(r.Run, typ, now.Add(at), text)
	}
	for name, c := range map[string]struct {
		before, since []dagster.Event
		dead          bool
	}{
		"nothing since": {before: []dagster.Event{event(dagster.RunStarting, 0, "")},
			dead: true},
		"nothing since, an hour ahead before": {before: []dagster.Event{event(dagster.RunStarting, time.Hour, "")},
			dead: true},
		"an event since": {since: []dagster.Event{event("STEP_START", time.Minute, "")}},
		"an event since, of a clock that is slow": {since: []dagster.Event{event("STEP_START", -time.Hour, "")}},
		"nothing since but our own": {
			since: []dagster.Event{event(dagster.EngineEvent, time.Minute, "[Slipway] Its worker is asked to stop.")},
			dead:  true},
	} {
		w := &written{run: r, events: c.before}
		l := &Loop{
			Store: w, Instance: "i", Log: slog.New(slog.DiscardHandler), PhasesAfter: time.Hour, Policy: &Policy{},
			Times:   func(dagster.Run, string) Times { return Times{Settle: time.Minute} },
			flights: map[string]*flight{}, loose: map[string]loose{}, Clock: time.Now,
			asks: map[string]chan question{"local": make(chan question, 10)},
		}
		if err := l.changed(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		lost := report{id: launcher.ID{Run: "r", Attempt: 1}, health: launcher.Health{Status: launcher.NotFound}}
		if err := l.reported(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		w.events = append(w.events, c.since...)
		f := l.flights["r"]
		f.since, f.heard = f.since.Add(-2*time.Minute), f.heard.Add(-2*time.Minute) // it was so for two minutes
		if err := errors.Join(l.reported(t.Context(), lost), l.check(t.Context(), "r")); err != nil {
			t.Fatal(err)
		}
		if dead := len(w.texts) > 0; dead != c.dead {
			t.Errorf("%s: taken for dead: %v, want %v (%q)", name, dead, c.dead, w.texts)
		}
	}
}
