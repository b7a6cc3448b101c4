package storagetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/testenv"
)

// state returns everything about a run that a change may write.
func (f *fixture) state(t *testing.T, fence storage.Fence, id string) string {
	t.Helper()
	if err := f.s.Flush(f.ctx, fence); err != nil {
		t.Fatal(err)
	}
	r := f.run(t, id)
	rows, err := f.d.Text("SELECT CAST(count(*) AS TEXT) FROM run_tags WHERE run_id = ?", id)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s updated %s start %s end %s\ntags %v\nlaunch %v handle %q last %v deaths %v, %s rows\n%s",
		r.Status, r.Updated, r.Start, r.End, r.Tags, r.Launch, r.Handle, r.Last, r.Deaths, rows, f.types(t, id))
}

// atOnce makes the same call from several goroutines. A caller does that if it lost the answer
// while the first call still commits. All calls must be done, and the run must be as a single call
// left it.
func (f *fixture) atOnce(t *testing.T, fence storage.Fence, id, after string, call func() (storage.Outcome, error)) {
	t.Helper()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if out, err := call(); err != nil || !out.Done {
				t.Errorf("made again: %+v, %v, want it done", out, err)
			}
		})
	}
	wg.Wait()
	if d := testenv.Diff(f.state(t, fence, id), after); d != "" {
		t.Errorf("made again, it changed the run (-got +want):\n%s", d)
	}
}

func claimAgain(t *testing.T, f *fixture) {
	fence, run := f.lead(t), f.enqueue(t, nil)
	c := claimOf(run)
	claim := func() (storage.Outcome, error) {
		out, err := f.s.Claim(f.ctx, fence, []storage.Claim{c})
		if err != nil {
			return storage.Outcome{}, err
		}
		return out[0], nil
	}
	var wg sync.WaitGroup
	for range 4 { // including the first
		wg.Go(func() {
			if out, err := claim(); err != nil || !out.Done || out.Launch.Token != c.Token || out.Launch.Attempt != 1 {
				t.Errorf("Claim = %+v, %v", out, err)
			}
		})
	}
	wg.Wait()
	after := f.state(t, fence, run)
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING")
	f.atOnce(t, fence, run, after, claim)
	if err := f.d.Event(f.event(f.run(t, run), dagster.RunCanceling)); err != nil {
		t.Fatal(err)
	}
	out, err := claim()
	if err != nil {
		t.Fatal(err)
	}
	is := f.run(t, run)
	if l := is.Launch; l == nil || out.Run == nil || out.Run.Body() != is.Body() ||
		out != (storage.Outcome{Done: true, Status: dagster.Canceling, Launch: *l, Run: out.Run}) {
		t.Errorf("made again after a cancel: %+v of %+v, the run is %+v", out, out.Run, is)
	}
}

func moveAgain(t *testing.T, f *fixture) {
	fence := f.lead(t)
	for name, c := range map[string]struct {
		status dagster.EventType // written by the worker before the move; "": none
		move   func(r storage.Run) storage.Transition
		later  dagster.EventType // written between the two calls; "": nothing
	}{
		"a note": {move: func(r storage.Run) storage.Transition {
			return storage.Transition{Events: []dagster.Event{dagster.NewEngineEvent(r.Run, time.Now(), "a note", nil,
				nil)}}
		}},
		"a handle, and the worker begins": {move: func(r storage.Run) storage.Transition {
			return storage.Transition{
				From: []dagster.Status{dagster.Starting}, Handle: "h",
				Tags:   map[string]string{"docker/container_id": "c"},
				Events: []dagster.Event{dagster.NewEngineEvent(r.Run, time.Now(), "launched", nil, nil)},
			}
		}, later: dagster.RunStart},
		"a cancel by its longest time": {status: dagster.RunStart, move: func(r storage.Run) storage.Transition {
			return storage.Transition{Events: []dagster.Event{f.event(r, dagster.RunCanceling)}}
		}},
		"a failure": {status: dagster.RunStart, move: func(r storage.Run) storage.Transition {
			return storage.Transition{Events: []dagster.Event{
				dagster.NewEngineEvent(r.Run, time.Now(), "died", nil, nil), f.event(r, dagster.RunFailure),
			}, Tags: map[string]string{storage.CauseTag: "oom"}}
		}},
		"an event that stands": {status: dagster.RunStart, move: func(r storage.Run) storage.Transition {
			e := dagster.NewEvent(r.Run, dagster.RunSuccess, time.Now().Add(-time.Hour), "")
			return storage.Transition{Logged: &e}
		}},
		"back to the queue": {move: func(r storage.Run) storage.Transition {
			return storage.Transition{Void: true, Events: []dagster.Event{dagster.NewRunEnqueued(r.Run, time.Now())}}
		}},
		"back to the queue after a death": {status: dagster.RunStart, move: func(r storage.Run) storage.Transition {
			return storage.Transition{
				Void: true, Death: &storage.Death{Attempt: 1, Launcher: "local", Cause: "oom", Then: "again"},
				Events: []dagster.Event{dagster.NewRunEnqueued(r.Run, time.Now())},
			}
		}},
		"a resume, and the run is canceled": {status: dagster.RunStart, move: func(r storage.Run) storage.Transition {
			return storage.Transition{
				Death: &storage.Death{Attempt: 1, Launcher: "local", Cause: "oom", Then: storage.ThenResume},
				Next: &storage.Next{Launcher: "local", Token: uuid.NewString(), Epoch: fence.Epoch,
					At: time.Now().UTC().Truncate(time.Microsecond)},
			}
		}, later: dagster.RunCanceling},
	} {
		t.Run(name, func(t *testing.T) {
			run := f.enqueue(t, nil)
			launch := f.claim(t, fence, run)
			if c.status != "" {
				if err := f.d.Event(f.event(f.run(t, run), c.status)); err != nil {
					t.Fatal(err)
				}
			}
			r := f.run(t, run)
			m := c.move(r)
			m.Run, m.Launch = run, launch.Token
			if m.From == nil {
				m.From = []dagster.Status{r.Status}
			}
			move := func() (storage.Outcome, error) { return f.s.Move(f.ctx, fence, m) }
			if out, err := move(); err != nil || !out.Done {
				t.Fatalf("Move = %+v, %v", out, err)
			}
			if c.later != "" {
				if err := f.d.Event(f.event(f.run(t, run), c.later)); err != nil {
					t.Fatal(err)
				}
			}
			f.atOnce(t, fence, run, f.state(t, fence, run), move)
		})
	}
	t.Run("an adoption", func(t *testing.T) {
		run := f.enqueue(t, nil)
		if err := f.d.Event(f.event(f.run(t, run), dagster.RunStart)); err != nil {
			t.Fatal(err)
		}
		m := storage.Transition{
			Run: run, From: []dagster.Status{dagster.Started}, Handle: "h",
			Next: &storage.Next{Instance: "test", Launcher: "local", Token: uuid.NewString(), Epoch: fence.Epoch,
				At: time.Now().UTC().Truncate(time.Microsecond)},
		}
		move := func() (storage.Outcome, error) { return f.s.Move(f.ctx, fence, m) }
		if out, err := move(); err != nil || !out.Done {
			t.Fatalf("Move = %+v, %v", out, err)
		}
		f.atOnce(t, fence, run, f.state(t, fence, run), move)
	})
}

// A status that another writer wrote is not taken for an earlier call of the same move.
func moveOfAnother(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	launch := f.claim(t, fence, run)
	for _, typ := range []dagster.EventType{dagster.RunStart, dagster.RunFailure} {
		if err := f.d.Event(f.event(f.run(t, run), typ)); err != nil {
			t.Fatal(err)
		}
	}
	failure := dagster.NewEvent(f.run(t, run).Run, dagster.RunFailure, time.Now().Add(time.Second), "")
	out, err := f.s.Move(f.ctx, fence, storage.Transition{Run: run, From: []dagster.Status{dagster.Started},
		Launch: launch.Token, Events: []dagster.Event{failure}})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "Move", out, storage.Outcome{Status: dagster.Failure})
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING PIPELINE_START PIPELINE_FAILURE")
}
