package dispatch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// fakeStore keeps what is written, of runs that stay as they are.
type fakeStore struct {
	mu    sync.Mutex
	runs  map[string]storage.Run
	moves []storage.Transition
}

func (s *fakeStore) Move(_ context.Context, _ storage.Fence, t storage.Transition) (storage.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moves = append(s.moves, t)
	return storage.Outcome{Done: true, Status: s.runs[t.Run].Status}, nil
}

func (s *fakeStore) Runs(_ context.Context, f storage.Filter) ([]storage.Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []storage.Run{s.runs[f.IDs[0]]}, nil
}

// wrote waits for a change that fits.
func (s *fakeStore) wrote(t *testing.T, what string, fits func(storage.Transition) bool) storage.Transition {
	t.Helper()
	var got storage.Transition
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range s.moves {
			if fits(m) {
				got = m
				return true, ""
			}
		}
		return false, what + " was not written"
	})
	return got
}

// target is a launcher of functions.
type target struct {
	mu     sync.Mutex
	calls  []string
	launch func(n int) (launcher.Launched, error) // the nth
	find   func(n int) bool                       // nil: it has no Find
}

func (l *target) called(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 1
	for _, c := range l.calls {
		if c == what {
			n++
		}
	}
	l.calls = append(l.calls, what)
	return n
}

func (l *target) Launch(context.Context, *launcher.Request) (launcher.Launched, error) {
	return l.launch(l.called("launch"))
}

func (l *target) Terminate(context.Context, launcher.Handle, time.Duration) (bool, error) {
	return false, nil
}

func (l *target) Health(context.Context, launcher.Handle) (launcher.Health, error) {
	return launcher.Health{Status: launcher.NotFound}, nil
}

func (l *target) Find(context.Context, *launcher.Request) (launcher.Launched, bool, error) {
	n := l.called("find")
	return launcher.Launched{Handle: "found"}, l.find != nil && l.find(n), nil
}

func (l *target) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.calls, " ")
}

const body = `{"__class__": "PipelineRun", "run_id": "r1", "pipeline_name": "j", "status": {"__enum__": ` +
	`"PipelineRunStatus.STARTING"}, "tags": {}, "pipeline_code_origin": {"__class__": "PipelinePythonOrigin", ` +
	`"pipeline_name": "j"}}`

// dispatcher runs one with a target and a run that was claimed.
func dispatcher(t *testing.T, l launcher.Launcher, lateStart time.Duration, status dagster.Status,
	begun bool) *fakeStore {
	t.Helper()
	_, s := dispatching(t, l, lateStart, status, begun, nil)
	return s
}

// dispatching is the same, with a change before it begins.
func dispatching(t *testing.T, l launcher.Launcher, lateStart time.Duration, status dagster.Status, begun bool,
	change func(*dispatch.Dispatcher)) (*dispatch.Dispatcher, *fakeStore) {
	t.Helper()
	parsed, err := dagster.ParseRun(body)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Status = status
	r := storage.Run{Run: parsed,
		Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r1", Attempt: 1, Instance: "i", Launcher: "x", Token: "t",
			At: time.Now(), State: storage.Open}}}
	s := &fakeStore{runs: map[string]storage.Run{"r1": r}}
	traits := launcher.Traits{OwnCommand: true, LateStart: lateStart}
	d := &dispatch.Dispatcher{
		Store: s, Builder: &worker.Builder{Instance: "i"}, Grace: time.Second, Log: slog.New(slog.DiscardHandler),
		Targets: map[string]*dispatch.Target{"x": dispatch.NewTarget(worker.Target{Name: "x", Traits: traits},
			&launcher.Kind{Name: "fake", Traits: traits}, l)},
		Requeued: func(storage.Run, string, time.Time) {}, Launched: func(storage.Run) {},
	}
	if change != nil {
		change(d)
	}
	var inFlight []storage.Run
	if begun {
		inFlight = append(inFlight, r)
	}
	d.Init(t.Context(), inFlight)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if !begun {
		d.Launch(r)
	}
	return d, s
}

func launched(m storage.Transition) bool { return m.Handle != "" }

// Where the target would start a second worker, one whose start got no answer is looked for, and
// launched again only when it was absent for long enough.
func TestUnknownOutcomeIsHeld(t *testing.T) {
	t.Parallel()
	lost := errors.New("the answer was lost")
	l := &target{launch: func(int) (launcher.Launched, error) { return launcher.Launched{}, lost },
		find: func(n int) bool { return n == 3 }}
	s := dispatcher(t, l, time.Hour, dagster.Starting, false)
	if m := s.wrote(t, "the worker that was found", launched); m.Handle != "found" ||
		l.said() != "launch find find find" {
		t.Errorf("handle %q after %q, want the found one after one launch", m.Handle, l.said())
	}
	l = &target{launch: func(n int) (launcher.Launched, error) {
		if n == 1 {
			return launcher.Launched{}, lost
		}
		return launcher.Launched{Handle: "second"}, nil
	}}
	began := time.Now()
	s = dispatcher(t, l, 300*time.Millisecond, dagster.Starting, false)
	s.wrote(t, "the second launch", launched)
	if took := time.Since(began); took < 300*time.Millisecond || !strings.Contains(l.said(), "launch find find") {
		t.Errorf("launched again after %v, having done %q; want it after the time of LateStart, with looks", took,
			l.said())
	}
}

// Launched gets the status that a run has when its handle is written: the worker may have begun the
// run before, or a user may have canceled it.
func TestLaunchedInItsStatus(t *testing.T) {
	told, begun := make(chan storage.Run, 1), make(chan struct{})
	l := &target{launch: func(int) (launcher.Launched, error) {
		<-begun
		return launcher.Launched{Handle: "h"}, nil
	}}
	_, s := dispatching(t, l, 0, dagster.Starting, false, func(d *dispatch.Dispatcher) {
		d.Launched = func(r storage.Run) { told <- r }
	})
	r := s.runs["r1"]
	r.Status = dagster.Started
	s.mu.Lock()
	s.runs["r1"] = r
	s.mu.Unlock()
	close(begun)
	if r := <-told; r.Status != dagster.Started || r.Handle != "h" {
		t.Errorf("launched: %s with handle %q, want %s with h", r.Status, r.Handle, dagster.Started)
	}
}

// The log of a run tells which of its tags are ignored, because they are not what Dagster reads.
func TestIgnoredTagsAreTold(t *testing.T) {
	l := &target{launch: func(int) (launcher.Launched, error) { return launcher.Launched{Handle: "h"}, nil }}
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	s.wrote(t, "the launch", launched)
	r, row := s.runs["r1"], *s.runs["r1"].Launch
	row.Token = "second"
	r.Launch, r.Tags = &row, map[string]string{dagster.MaxRuntimeTag: "five"}
	d.Launch(r)
	m := s.wrote(t, "the second launch", func(m storage.Transition) bool {
		return launched(m) && m.Launch == row.Token
	})
	if len(m.Events) != 2 || !strings.HasPrefix(m.Events[1].Message,
		"[Slipway] The tag dagster/max_runtime is ignored: ") {
		t.Errorf("events = %+v, want the tag that is ignored", m.Events)
	}
}

// What an earlier leader began may have been asked for in its last moment.
func TestBegunLaunchIsHeld(t *testing.T) {
	t.Parallel()
	l := &target{launch: func(int) (launcher.Launched, error) { return launcher.Launched{Handle: "again"}, nil }}
	began := time.Now()
	s := dispatcher(t, l, 300*time.Millisecond, dagster.Starting, true)
	s.wrote(t, "the launch", launched)
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("launched after %v, want it after the time of LateStart", took)
	}
	// A run that was canceled meanwhile gets no worker, and is canceled once its absence counts.
	l = &target{launch: func(int) (launcher.Launched, error) {
		return launcher.Launched{}, errors.New("not to be called")
	}}
	s = dispatcher(t, l, 300*time.Millisecond, dagster.Canceling, true)
	s.wrote(t, "the end of the canceled run", func(m storage.Transition) bool { return m.Void })
	if strings.Contains(l.said(), "launch") {
		t.Errorf("a canceled run was launched: %q", l.said())
	}
}

// What a target says while it prepares is written once, and does not make it sick.
func TestPendingIsTold(t *testing.T) {
	t.Parallel()
	note := launcher.Note{Text: "pulling"}
	l := &target{launch: func(n int) (launcher.Launched, error) {
		if n < 20 {
			return launcher.Launched{}, launcher.Pending(time.Millisecond, note)
		}
		return launcher.Launched{Handle: "there"}, nil
	}}
	s := dispatcher(t, l, 0, dagster.Starting, false)
	s.wrote(t, "the launch", launched)
	told := 0
	for _, m := range s.moves {
		for _, e := range m.Events {
			if e.Message == note.Text {
				told++
			}
		}
	}
	if told != 1 || strings.Contains(l.said(), "find") {
		t.Errorf("the note was written %d times, calls %q; want once, and no look", told, l.said())
	}
}

// The cause that an error carries stands in the run's log.
func TestRefusedLaunchFailsWithItsCause(t *testing.T) {
	l := &target{launch: func(int) (launcher.Launched, error) {
		return launcher.Launched{}, launcher.WithCause(launcher.ErrInvalid, launcher.CauseImagePull)
	}}
	m := dispatcher(t, l, 0, dagster.Starting, false).wrote(t, "the failure", func(m storage.Transition) bool {
		return m.Void
	})
	if len(m.Events) != 2 || m.Events[1].Type != dagster.RunFailure ||
		m.Events[0].Texts()[0].Text != string(launcher.CauseImagePull) {
		t.Errorf("events = %+v, want an engine event with the cause and the failure", m.Events)
	}
}

// A call of a launcher that ignores its context is abandoned after its deadline. A later answer is
// dropped.
func TestCallsThatGoOn(t *testing.T) {
	t.Parallel()
	target := dispatch.NewTarget(worker.Target{Name: "slow"}, &launcher.Kind{}, nil)
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	got, err := dispatch.Call(ctx, target, func(context.Context) (string, error) {
		<-release
		return "late", nil
	})
	if got != "" || !errors.Is(err, launcher.ErrTransient) ||
		!strings.Contains(err.Error(), "continues a call whose deadline has passed") {
		t.Errorf("Call = %q, %v", got, err)
	}
	close(release)
	if got, err := dispatch.Call(t.Context(), target, func(context.Context) (string, error) {
		return "in time", nil
	}); got != "in time" || err != nil {
		t.Errorf("the next Call = %q, %v", got, err)
	}
}

// roomy is a target that says how much room it has.
type roomy struct {
	target
	free atomic.Int64
}

func (l *roomy) Free(context.Context, launcher.Resources) (int, bool, error) {
	return int(l.free.Load()), true, nil
}

// If a target has no room for a launch, it is asked how much room it has before more runs are
// claimed for it. While it has none, Full is called again and again.
func TestRoom(t *testing.T) {
	t.Parallel()
	l := &roomy{}
	l.launch = func(int) (launcher.Launched, error) { return launcher.Launched{}, launcher.ErrCapacity }
	var told atomic.Int64
	d, s := dispatching(t, l, 0, dagster.Starting, false, func(d *dispatch.Dispatcher) {
		d.Full = func(string) { told.Add(1) }
	})
	s.wrote(t, "the run back in the queue", func(m storage.Transition) bool { return m.Void })
	testenv.Eventually(t, time.Minute, func() (bool, string) { return told.Load() >= 3, "Full is not called again" })
	if room, _ := d.Room("x"); room != 0 {
		t.Errorf("Room = %d while there is none", room)
	}
	l.free.Store(2)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, _ := d.Room("x")
		return room == 2, fmt.Sprintf("Room = %d, want 2", room)
	})
	l.free.Store(1000)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, _ := d.Room("x")
		return room > 2, fmt.Sprintf("Room = %d, want more", room)
	})
}

// A refusal that follows a launch without an answer proves nothing of that: the worker is looked
// for first.
func TestRefusalAfterALostAnswer(t *testing.T) {
	t.Parallel()
	lost := errors.New("the answer was lost")
	for name, refusal := range map[string]error{"no room": launcher.ErrCapacity, "denied": launcher.ErrDenied,
		"invalid": launcher.ErrInvalid} {
		launch := func(n int) (launcher.Launched, error) {
			if n == 1 {
				return launcher.Launched{}, lost
			}
			return launcher.Launched{}, refusal
		}
		t.Run(name+", and it was made", func(t *testing.T) {
			t.Parallel()
			l := &target{launch: launch, find: func(int) bool { return true }}
			if m := dispatcher(t, l, 0, dagster.Starting, false).wrote(t, "anything", any); m.Handle != "found" {
				t.Errorf("written %+v after %q, want the worker that was found", m, l.said())
			}
		})
		t.Run(name+", and it was not made", func(t *testing.T) {
			t.Parallel()
			l := &target{launch: launch}
			if m := dispatcher(t, l, 0, dagster.Starting, false).wrote(t, "anything", any); !m.Void ||
				l.said() != "launch find launch" {
				t.Errorf("written %+v after %q, want the launch to end after a look", m, l.said())
			}
		})
		t.Run(name+", and it cannot be looked for", func(t *testing.T) {
			t.Parallel()
			l := &target{launch: func(n int) (launcher.Launched, error) {
				if n == 4 {
					return launcher.Launched{Handle: "there"}, nil
				}
				return launch(n)
			}}
			if m := dispatcher(t, blind{l}, 0, dagster.Starting, false).wrote(t, "anything", any); m.Handle != "there" {
				t.Errorf("written %+v after %q, want the worker to be asked for until it is there", m, l.said())
			}
		})
	}
}

func any(storage.Transition) bool { return true }

// blind has the three methods of a launcher alone.
type blind struct{ launcher.Launcher }

// A launch that again and again made no worker, which looks have shown, goes back to the queue with
// the launcher's words: it keeps no place.
func TestLaunchThatMakesNothing(t *testing.T) {
	t.Parallel()
	l := &target{launch: func(int) (launcher.Launched, error) {
		return launcher.Launched{}, errors.New("no such\nqueue")
	}}
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	m := s.wrote(t, "the run back in the queue", func(m storage.Transition) bool { return m.Void })
	if len(m.Events) != 2 || m.Events[1].Type != dagster.RunEnqueued ||
		!strings.HasSuffix(m.Events[0].Message, "started no worker in 5 tries: no such queue") {
		t.Errorf("events = %+v, want the launcher's words in one line, and the queue", m.Events)
	}
	// It may have been about this run alone: others are still tried, and the target is not sick.
	if room, sick := d.Room("x"); room < 1 || sick {
		t.Errorf("Room = %d, sick %v, want some", room, sick)
	}
}

// A target that refuses us is sick until a call is answered, and its run is back in the queue at
// once, with the reason, once.
func TestDenied(t *testing.T) {
	l := &target{launch: func(int) (launcher.Launched, error) {
		return launcher.Launched{}, launcher.Unreached(errors.New("connection\nrefused"))
	}}
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	m := s.wrote(t, "the run back in the queue", func(m storage.Transition) bool { return m.Void })
	if len(m.Events) != 2 || !strings.HasSuffix(m.Events[0].Message, ": connection refused") ||
		!strings.Contains(m.Events[0].Message, "has failed since ") {
		t.Errorf("events = %+v, want why it waits and since when", m.Events)
	}
	ill := d.Targets["x"].Trouble()
	if room, sick := d.Room("x"); room != 0 || !sick || !ill.Sick || ill.Err != "connection refused" {
		t.Errorf("Room = %d, sick %v; the target is %+v, want it to be sick", room, sick, ill)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, sick := d.Room("x")
		ill := d.Targets["x"].Trouble()
		return room == 1 && !sick && ill.Sick,
			fmt.Sprintf("Room = %d, sick %v; want one run as a trial of a target that is still sick: %+v", room, sick,
				ill)
	})
	d.Launch(s.runs["r1"])
	m = s.wrote(t, "the run back in the queue once more", func(n storage.Transition) bool {
		return n.Void && len(n.Events) == 1
	})
	if m.Events[0].Type != dagster.RunEnqueued {
		t.Errorf("events = %+v, want no second reason", m.Events)
	}
}

// A run that was canceled before its target was asked for a worker ends at once, whatever the
// target promises.
func TestCanceledBeforeTheLaunch(t *testing.T) {
	l := &target{launch: func(int) (launcher.Launched, error) {
		return launcher.Launched{}, errors.New("not to be called")
	}}
	m := dispatcher(t, l, 0, dagster.Canceling, false).wrote(t, "the end", func(m storage.Transition) bool {
		return m.Void
	})
	if len(m.Events) != 1 || m.Events[0].Type != dagster.RunCanceled || l.said() != "" {
		t.Errorf("events = %+v after %q, want the end and no call", m.Events, l.said())
	}
}

// A target that hangs is given one run: the next ones are not claimed for it.
func TestHungTargetHasOneRun(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	l := &target{launch: func(int) (launcher.Launched, error) {
		<-release
		return launcher.Launched{Handle: "h"}, nil
	}}
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	if room, sick := d.Room("x"); room != 0 || sick {
		t.Errorf("Room = %d, sick %v of a target that has not answered yet, want none, but not sick", room, sick)
	}
	close(release)
	s.wrote(t, "the launch", launched)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, _ := d.Room("x")
		return room > 10, fmt.Sprintf("Room = %d of a target that answers", room)
	})
}

// divided has two places behind it, of which one does not answer.
type divided struct {
	target
	away  atomic.Bool
	pings atomic.Int64
}

func (l *divided) PlaceOfRun(run json.RawMessage) string {
	if strings.Contains(string(run), "away") {
		return "away"
	}
	return "here"
}

func (l *divided) PlaceOf(h launcher.Handle) string { return string(h) }

func (l *divided) Ping(_ context.Context, place string) error {
	l.pings.Add(1)
	if place == "away" && l.away.Load() {
		return launcher.Unreached(errors.New("no route to host"))
	}
	return nil
}

// Each place behind a launcher is sick by itself; it is asked whether it is back without a run, as
// long as runs wait for it.
func TestPlacesFailOneByOne(t *testing.T) {
	t.Parallel()
	l := &divided{}
	l.away.Store(true)
	l.launch = func(int) (launcher.Launched, error) { return launcher.Launched{Handle: "here"}, nil }
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	s.wrote(t, "the launch", launched)
	r := s.runs["r1"]
	r.Tags = map[string]string{"to": "away"}
	here, away := d.Target("x", s.runs["r1"]), d.Target("x", r)
	if here != "x (here)" || away != "x (away)" {
		t.Fatalf("targets %q and %q", here, away)
	}
	x := d.Targets["x"]
	if _, err := dispatch.Call(t.Context(), x.Of("away"), func(context.Context) (int, error) {
		return 0, launcher.ErrDenied
	}); err == nil {
		t.Fatal("no error")
	}
	if room, sick := d.Room(here); room != 2 || sick {
		t.Errorf("Room(%s) = %d, sick %v, want one at once and one that waits", here, room, sick)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) { // the queue asks again and again
		room, sick := d.Room(away)
		return room == 0 && sick && l.pings.Load() >= 1 && x.Places()[0].Trouble().Err == "no route to host",
			fmt.Sprintf("Room = %d, sick %v, %d pings, %+v", room, sick, l.pings.Load(), x.Places()[0].Trouble())
	})
	if p := x.Places(); len(p) != 2 || p[0].Place != "away" || !p[0].Trouble().Sick || p[1].Trouble().Sick ||
		x.Trouble().Sick {
		t.Errorf("places %+v, want one that is sick, one that is well, and a launcher that is", p)
	}
	l.away.Store(false)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		room, sick := d.Room(away)
		return room > 0 && !sick, fmt.Sprintf("Room = %d, sick %v of a place that is back", room, sick)
	})
}

// The log of a run that waits for a sick target says so, once.
func TestWaitsIsTold(t *testing.T) {
	t.Parallel()
	l := &target{launch: func(int) (launcher.Launched, error) { return launcher.Launched{Handle: "h"}, nil }}
	d, s := dispatching(t, l, 0, dagster.Starting, false, nil)
	s.wrote(t, "the launch", launched)
	if _, err := dispatch.Call(t.Context(), d.Targets["x"], func(context.Context) (int, error) {
		return 0, launcher.WithRetryAfter(errors.Join(launcher.ErrDenied, errors.New("key expired")), time.Hour)
	}); err == nil {
		t.Fatal("no error")
	}
	waiting := storage.Run{Run: dagster.Run{ID: "r2", Job: "j"}}
	told := func(m storage.Transition) bool { return m.Run == "r2" }
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		d.Waits(waiting, "x")
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.moves, told), "the waiting run's log says nothing"
	})
	d.Waits(waiting, "x")
	m := s.wrote(t, "the note", told)
	if len(m.From) != 1 || m.From[0] != dagster.Queued ||
		!strings.Contains(m.Events[0].Message, `launcher "x" has failed since `) ||
		!strings.HasSuffix(m.Events[0].Message, ": key expired") {
		t.Errorf("written %+v, want the reason", m)
	}
	d.Waits(storage.Run{Run: dagster.Run{ID: "r3", Job: "j"}}, "x")
	s.wrote(t, "the next note", func(m storage.Transition) bool { return m.Run == "r3" })
	if n := len(slices.DeleteFunc(slices.Clone(s.moves), func(m storage.Transition) bool { return !told(m) })); n != 1 {
		t.Errorf("told %d times", n)
	}
}
