package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// Tests of the owner of a run with a launch row and no handle row: there always is one that acts on
// it.

// strictStore refuses a change that names another status or another launch row, as storages do.
type strictStore struct{ *fakeStore }

func (s strictStore) Move(ctx context.Context, f storage.Fence, t storage.Transition) (storage.Outcome, error) {
	s.mu.Lock()
	r := s.runs[t.Run]
	fits := len(t.From) == 0
	for _, from := range t.From {
		fits = fits || from == r.Status
	}
	s.mu.Unlock()
	if !fits {
		return storage.Outcome{Status: r.Status}, nil
	}
	return s.fakeStore.Move(ctx, f, t)
}

func (s *fakeStore) set(status dagster.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs["r1"]
	r.Status = status
	s.runs["r1"] = r
}

// strictly has the dispatcher work on a storage that refuses what does not fit, and passes on what
// it leaves to the monitor.
func strictly(left chan<- storage.Run) func(*dispatch.Dispatcher) {
	return func(d *dispatch.Dispatcher) {
		d.Store = strictStore{d.Store.(*fakeStore)}
		d.Launched = func(r storage.Run) { left <- r }
	}
}

// A run is canceled while its launch is on its way, and the target refuses it: nothing was made, so
// the run is canceled.
func TestCanceledWhileTheLaunchIsRefused(t *testing.T) {
	t.Parallel()
	for name, refusal := range map[string]error{"no room": launcher.ErrCapacity, "invalid": launcher.ErrInvalid} {
		t.Run(name, func(t *testing.T) {
			asked, canceled := make(chan struct{}), make(chan struct{})
			l := &target{launch: func(int) (launcher.Launched, error) {
				close(asked)
				<-canceled
				return launcher.Launched{}, refusal
			}}
			_, s := dispatching(t, l, 0, dagster.Starting, false, strictly(make(chan storage.Run, 1)))
			<-asked
			s.set(dagster.Canceling)
			close(canceled)
			m := s.wrote(t, "the end of the canceled run", func(m storage.Transition) bool { return m.Void })
			if last := m.Events[len(m.Events)-1]; last.Type != dagster.RunCanceled {
				t.Errorf("it ends with %s, want %s", last.Type, dagster.RunCanceled)
			}
		})
	}
}

// A run is canceled while the target does not say whether it made a worker, and the target cannot
// prove that it did not: the monitor looks on. One that was never asked for has no worker.
func TestCanceledOnATargetThatProvesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		said error
		left bool
	}{
		"its answer was lost":    {errors.New("the answer was lost"), true},
		"it had denied the call": {launcher.ErrDenied, false},
	} {
		t.Run(name, func(t *testing.T) {
			var s *fakeStore
			ready := make(chan struct{})
			l := &target{launch: func(int) (launcher.Launched, error) {
				<-ready
				s.set(dagster.Canceling)
				return launcher.Launched{}, c.said
			}}
			left := make(chan storage.Run, 1)
			_, s = dispatching(t, l, 0, dagster.Starting, false, strictly(left))
			close(ready)
			if !c.left {
				s.wrote(t, "the end of the canceled run", func(m storage.Transition) bool { return m.Void })
				return
			}
			if r := <-left; r.Handle != "" || r.Status != dagster.Canceling {
				t.Errorf("the monitor was given %s with handle %q, want %s without one", r.Status, r.Handle,
					dagster.Canceling)
			}
		})
	}
}

// A run has started, and its target, asked for the worker whose handle was never written, has none:
// the monitor looks on.
func TestVanishedBeforeItsHandle(t *testing.T) {
	t.Parallel()
	l := &target{find: func(int) bool { return false }}
	left := make(chan storage.Run, 1)
	d, s := dispatching(t, l, 0, dagster.Started, true, strictly(left))
	r := <-left
	if r.Handle != "" || r.Status != dagster.Started || len(s.moves) != 0 {
		t.Fatalf("the monitor was given %s with handle %q, and %d changes were written", r.Status, r.Handle,
			len(s.moves))
	}
	if h, err := d.Find(t.Context(), r); err != nil || h.Status != launcher.NotFound {
		t.Errorf("Find = %+v, %v; want %s", h, err, launcher.NotFound)
	}
	l.mu.Lock()
	l.find = func(int) bool { return true }
	l.mu.Unlock()
	if h, err := d.Find(t.Context(), r); err != nil || h.Status != "" {
		t.Errorf("Find = %+v, %v; want it found", h, err)
	}
	if r := <-left; r.Handle != "found" {
		t.Errorf("the worker that was found has the handle %q", r.Handle)
	}
}

// TakeUp continues a launch that is not under way, once, and no launch whose handle is written.
func TestTakeUp(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	l := &target{launch: func(int) (launcher.Launched, error) {
		asked <- struct{}{}
		<-answer
		return launcher.Launched{Handle: "h"}, nil
	}}
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	<-asked
	r := s.runs["r1"]
	d.TakeUp(t.Context(), r) // it is in hand
	close(answer)
	s.wrote(t, "the handle", launched)
	s.mu.Lock()
	r.Handle = "h"
	s.runs["r1"] = r
	s.mu.Unlock()
	r.Handle = "" // as it was read before
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		d.TakeUp(t.Context(), r)
		return l.said() == "launch", "launched again: " + l.said()
	})
	s.mu.Lock()
	row := *r.Launch // the dispatcher may still read the other
	row.Token = "forgotten"
	r.Launch = &row
	s.runs["r1"] = r
	s.mu.Unlock()
	d.TakeUp(t.Context(), r)
	s.wrote(t, "the handle of a launch that was forgotten", func(m storage.Transition) bool {
		return launched(m) && m.Launch == "forgotten"
	})
}

// A target that sees its own host alone starts no worker in place of one that was begun on another
// host.
func TestWorkerOfAnotherHost(t *testing.T) {
	t.Parallel()
	l := &target{launch: func(int) (launcher.Launched, error) { return launcher.Launched{Handle: "second"}, nil }}
	left := make(chan storage.Run, 1)
	_, s := dispatching(t, l, 0, dagster.Starting, true, func(d *dispatch.Dispatcher) {
		strictly(left)(d)
		claimedAt("elsewhere")(d)
		d.Targets["x"].Host = "here"
	})
	if r := <-left; r.Handle != "" || strings.Contains(l.said(), "launch") || len(s.moves) != 0 {
		t.Errorf("calls %q, %d changes; want the run left as it is", l.said(), len(s.moves))
	}
}

// local is a target that sees one host alone, and has to be asked for its name.
type local struct {
	target
	host atomic.Value // string; "" is away
}

func (l *local) Host(context.Context) (string, error) {
	if name, _ := l.host.Load().(string); name != "" {
		return name, nil
	}
	return "", errors.New("the engine is away")
}

func newLocal(host string) *local {
	l := &local{target: target{launch: func(int) (launcher.Launched, error) {
		return launcher.Launched{Handle: "second"}, nil
	}}}
	l.host.Store(host)
	return l
}

// claimedAt makes the claim name a host.
func claimedAt(host string) func(*dispatch.Dispatcher) {
	return func(d *dispatch.Dispatcher) {
		s := d.Store.(strictStore) //nolint:errcheck,forcetypeassert // function strictly set it
		s.runs["r1"].Launch.Token = storage.NewToken("t", host)
	}
}

// A target whose host must be asked for is away when a launch is taken up. Nothing is launched or
// left until it has said on which host it sees workers: here on another one.
func TestLaunchOfAnotherEngine(t *testing.T) {
	l := newLocal("")
	left := make(chan storage.Run, 1)
	d, s := dispatching(t, l, 0, dagster.Starting, true, func(d *dispatch.Dispatcher) {
		strictly(left)(d)
		claimedAt("there")(d)
	})
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return d.Targets["x"].Trouble().Err != "" && strings.HasPrefix(l.said(), "find"), "asked: " + l.said()
	})
	if row := *s.runs["r1"].Launch; d.Targets["x"].KnownElsewhere(row) != "" {
		t.Error("the worker is called elsewhere before the target has said where it is")
	}
	l.host.Store("here")
	if r := <-left; r.Handle != "" || strings.Contains(l.said(), "launch") || len(s.moves) != 0 {
		t.Errorf("calls %q, %d changes; want the run left as it is", l.said(), len(s.moves))
	}
	if why := d.Targets["x"].KnownElsewhere(*s.runs["r1"].Launch); !strings.Contains(why, "there") ||
		!strings.Contains(why, "here") {
		t.Errorf("KnownElsewhere = %q, want both hosts named", why)
	}
	l.host.Store("there") // its address leads to the other engine again
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		why, err := d.Targets["x"].Elsewhere(t.Context(), *s.runs["r1"].Launch)
		return why == "" && err == nil, fmt.Sprintf("Elsewhere = %q, %v", why, err)
	})
}

// The address of a target leads to another engine between the claim and the launch. No worker was
// asked for yet, so the run goes back to the queue, whose next claim names the right engine.
func TestEngineChangesAfterTheClaim(t *testing.T) {
	l := newLocal("here")
	d, s := dispatching(t, l, 0, dagster.Starting, false, func(d *dispatch.Dispatcher) {
		strictly(make(chan storage.Run, 1))(d)
		claimedAt("there")(d)
	})
	s.wrote(t, "the way back to the queue", func(m storage.Transition) bool { return m.Void })
	if l.said() != "" {
		t.Errorf("calls %q, want none", l.said())
	}
	if row := (storage.LaunchRow{Token: d.Token("x")}); row.Host() != "here" {
		t.Errorf("the next claim names %q, want the engine that there is", row.Host())
	}
}

// No run is claimed for a target that has not said yet which host it sees: its launch row could not
// name the host.
func TestNoClaimWithoutAHost(t *testing.T) {
	l := newLocal("")
	d, _ := dispatching(t, l, 0, dagster.Success, true, nil) // a run that needs nothing
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, _ := d.Room("x")
		return room == 0 && d.Targets["x"].Trouble().Err != "",
			fmt.Sprintf("Room = %d, %+v", room, d.Targets["x"].Trouble())
	})
	l.host.Store("here")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, _ := d.Room("x")
		return room > 0, fmt.Sprintf("Room = %d of a target that has said which host it sees", room)
	})
	if row := (storage.LaunchRow{Token: d.Token("x")}); row.Host() != "here" {
		t.Errorf("the claim names %q", row.Host())
	}
}

// listed is a target that can also list its workers.
type listed struct{ target }

func (l *listed) List(context.Context, launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		yield(launcher.Worker{ID: launcher.ID{Run: "r1", Attempt: 1}, Instance: "i", Handle: "listed"}, nil)
	}
}

// The settings of today refuse a run whose launch was begun. Its worker is found by its name, and
// the run does not fail.
func TestWorkerOfARunThatIsRefusedToday(t *testing.T) {
	l := &listed{}
	_, s := dispatching(t, l, 0, dagster.Starting, true, func(d *dispatch.Dispatcher) {
		d.Targets["x"].Traits = launcher.Traits{LocalFiles: true} // and the run's Python is not here
	})
	if m := s.wrote(t, "the handle", launched); m.Handle != "listed" || l.said() != "" {
		t.Errorf("handle %q, calls %q; want the listed worker", m.Handle, l.said())
	}
}
