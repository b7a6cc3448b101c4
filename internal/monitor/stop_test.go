package monitor

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// awayTarget is a target with one worker. It can be away, hang, and lose what it knows.
type awayTarget struct {
	mu     sync.Mutex
	away   bool
	hangs  bool
	health launcher.Health
	graces []time.Duration // of the stops that it took
	tried  int             // stops that it was asked for
	looked int             // times that it was asked for the worker's health
}

func (l *awayTarget) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *awayTarget) stops() (tried int, graces []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tried, append([]time.Duration{}, l.graces...)
}

var errAway = errors.New("connection refused")

func (l *awayTarget) Launch(context.Context, *launcher.Request) (launcher.Launched, error) {
	return launcher.Launched{}, errAway
}

func (l *awayTarget) Terminate(ctx context.Context, _ launcher.Handle, grace time.Duration) (bool, error) {
	l.mu.Lock()
	l.tried++
	hangs, away := l.hangs, l.away
	if !hangs && !away {
		l.graces = append(l.graces, grace)
	}
	l.mu.Unlock()
	switch {
	case hangs:
		<-ctx.Done()
		return false, ctx.Err()
	case away:
		return false, errAway
	}
	return true, nil
}

func (l *awayTarget) Health(context.Context, launcher.Handle) (launcher.Health, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looked++
	if l.away {
		return launcher.Health{}, errAway
	}
	return l.health, nil
}

// oneRun is a storage of one run, with a fence that can be lost.
type oneRun struct {
	mu     sync.Mutex
	run    storage.Run
	events []dagster.Event
	fenced bool
	moves  []storage.Transition
	parsed int // events that were read
}

func (s *oneRun) Runs(context.Context, storage.Filter) ([]storage.Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []storage.Run{s.run}, nil
}

func (s *oneRun) Events(_ context.Context, _ string, types ...dagster.EventType) (out []dagster.Event, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		ok := len(types) == 0
		for _, typ := range types {
			ok = ok || typ == e.Type
		}
		if ok {
			s.parsed++
			out = append(out, e)
		}
	}
	return out, nil
}

func (s *oneRun) EventsAfter(_ context.Context, _ string, after int64) ([]dagster.Event, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int64(len(s.events))
	if after < 0 {
		return nil, n, nil
	}
	s.parsed += int(n - after)
	return append([]dagster.Event{}, s.events[after:]...), n, nil
}

func (s *oneRun) Move(_ context.Context, _ storage.Fence, t storage.Transition) (storage.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fenced {
		return storage.Outcome{}, storage.ErrFenced
	}
	s.moves = append(s.moves, t)
	for _, e := range t.Events {
		s.events = append(s.events, e)
		if status := e.Type.Status(); status != "" {
			s.run.Status = status
		}
	}
	return storage.Outcome{Done: true, Status: s.run.Status}, nil
}

// becomes writes an event as another program would, and returns the run as it is then.
func (s *oneRun) becomes(typ dagster.EventType, text string) storage.Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, dagster.NewEvent(s.run.Run, typ, time.Now(), text))
	if status := typ.Status(); status != "" {
		s.run.Status = status
	}
	return s.run
}

func (s *oneRun) status() dagster.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run.Status
}

// watched is a monitor that runs, with its storage of one run.
type watched struct {
	*Loop
	s    *oneRun
	end  context.CancelFunc
	done chan struct{} // closed when it has ended
	err  error         // then
}

// watching runs a monitor of one run that has started.
func watching(t *testing.T, l *awayTarget, times Times, change func(*Loop, *oneRun)) *watched {
	t.Helper()
	s := &oneRun{run: storage.Run{
		Run: dagster.Run{ID: "r", Job: "j", Status: dagster.Started, Tags: map[string]string{}},
		Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: 1, Instance: "i", Launcher: "x", Token: "t",
			At: time.Now(), State: storage.Open}, Handle: "h"},
	}}
	s.becomes(dagster.RunStart, "")
	w := &watched{s: s, done: make(chan struct{}), Loop: &Loop{
		Store: s, Instance: "i", Log: slog.New(slog.DiscardHandler), PhasesAfter: time.Hour,
		Times: func(dagster.Run, string) Times { return times }, Clock: time.Now,
		Targets: map[string]*dispatch.Target{"x": dispatch.NewTarget(worker.Target{Name: "x"},
			&launcher.Kind{Name: "fake"}, l)},
		Inbox: storage.NewInbox(), Launched: storage.NewInbox(),
	}}
	if change != nil {
		change(w.Loop, s)
	}
	var ctx context.Context
	ctx, w.end = context.WithCancel(t.Context())
	w.Inbox.Put(s.run)
	go func() {
		w.err = w.Run(ctx)
		close(w.done)
	}()
	t.Cleanup(func() { w.end(); <-w.done })
	return w
}

// cancels cancels the run, as a user would.
func (w *watched) cancels() { w.Inbox.Put(w.s.becomes(dagster.RunCanceling, "")) }

// A run is canceled while its target is away. The worker is asked to stop when the target is back,
// with its grace, however long that took; nothing is written over its head.
func TestCanceledWhileTheTargetIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &awayTarget{away: true, health: launcher.Health{Status: launcher.Running}}
		w := watching(t, l, Times{Cancel: time.Second, Grace: time.Hour}, nil)
		w.cancels()
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			tried, _ := l.stops()
			return tried >= 3, "the target is not asked again"
		})
		if got := w.s.status(); got != dagster.Canceling {
			t.Errorf("the run is %s while its worker goes on", got)
		}
		l.set(func() { l.away = false })
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			_, graces := l.stops()
			return len(graces) > 0, "the target is back and is not asked to stop the worker"
		})
		if _, graces := l.stops(); graces[0] != time.Hour {
			t.Errorf("stopped with a grace of %v, want an hour", graces[0])
		}
	})
}

// A target that hangs in Terminate does not keep a daemon that lost its lead from standing by.
func TestHangingTerminateHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &awayTarget{hangs: true, health: launcher.Health{Status: launcher.Running}}
		w := watching(t, l, Times{Cancel: time.Hour, Grace: time.Hour}, nil)
		w.cancels()
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			tried, _ := l.stops()
			return tried > 0, "the worker was not asked to stop"
		})
		began := time.Now()
		w.end()
		<-w.done
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the monitor ended after %v", took)
		}
	})
}

// A leader that lost its lead stops no worker: it writes before it asks the target.
func TestFencedLeaderStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &awayTarget{health: launcher.Health{Status: launcher.Running}}
		w := watching(t, l, Times{Cancel: time.Hour, Grace: time.Hour}, func(_ *Loop, s *oneRun) { s.fenced = true })
		w.cancels()
		if <-w.done; !errors.Is(w.err, storage.ErrFenced) {
			t.Errorf("Run = %v", w.err)
		}
		if tried, _ := l.stops(); tried != 0 {
			t.Errorf("the worker was asked to stop %d times by a daemon that does not lead", tried)
		}
	})
}

// An event that comes after the target ceased to know a worker begins the time to settle anew, and
// holds the run no longer than that. The log that came before is not read again.
func TestOneLateEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &awayTarget{health: launcher.Health{Status: launcher.NotFound}}
		const long = 1000
		w := watching(t, l, Times{Settle: 2 * time.Second}, func(_ *Loop, s *oneRun) {
			for range long {
				s.becomes(dagster.EngineEvent, "a line")
			}
		})
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.looked > 0, "the target was not asked"
		})
		s := w.s
		s.becomes(dagster.EngineEvent, "Execution was interrupted; resources cleaned up")
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			return s.status() == dagster.Failure, "the run is held, though it wrote nothing more"
		})
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.parsed > long/2 {
			t.Errorf("%d events were read of a log of %d", s.parsed, long)
		}
	})
}

// A run whose worker vanished before its handle was written is looked after like any other: it
// fails when its absence has settled, and a cancel ends it.
func TestWithoutAHandle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := func(l *Loop, s *oneRun) {
			s.run.Handle = ""
			l.Find = func(context.Context, storage.Run) (launcher.Health, error) {
				return launcher.Health{Status: launcher.NotFound}, nil
			}
			l.TakeUp = func(r storage.Run) { l.Launched.Put(r) } // the dispatcher has not found it either
		}
		w := watching(t, &awayTarget{}, Times{Settle: time.Second}, lost)
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			return w.s.status() == dagster.Failure, "a run without a worker goes on"
		})
		w = watching(t, &awayTarget{}, Times{Cancel: time.Second}, func(l *Loop, s *oneRun) {
			lost(l, s)
			l.Find = func(context.Context, storage.Run) (launcher.Health, error) {
				return launcher.Health{Status: launcher.Unknown}, nil // a target that proves nothing
			}
		})
		w.cancels()
		testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
			return w.s.status() == dagster.Canceled, "a canceled run without a worker does not end"
		})
	})
}
