package storagetest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/testenv"
)

// Target is a storage under test.
type Target struct {
	New  func(t testing.TB) *Dagster                       // makes a fresh storage with a writer for it
	Open func(t testing.TB, location string) storage.Store // opens it as Slipway does; the suite closes it
}

// Run runs the suite.
func Run(t *testing.T, target Target) {
	for name, f := range map[string]func(*testing.T, *fixture){
		"a claim writes status, launch row and event":          claimWrites,
		"a run is claimed once":                                claimOnce,
		"claims of many at once are exact":                     claimRace,
		"a claim removes forged and copied rows":               claimForged,
		"a claim of a run that is gone or ended is refused":    claimGone,
		"a body that cannot be read delays no other run":       claimBroken,
		"a move names the status it expects":                   moveExpects,
		"a move names the launch row it is about":              moveLaunch,
		"a move writes handle, tags and events":                moveWrites,
		"a voided launch row ends and the next attempt is new": moveVoid,
		"an end sets status and end time":                      moveEnd,
		"an event that stands rolls the row forward":           moveStands,
		"a fenced leader writes nothing":                       fenced,
		"one leader at a time":                                 leaders,
		"a lease that is yielded is free at once":              yielded,
		"hints tell of new and changed runs":                   hints,
		"hints tell of a run that changed without an event":    hintsStands,
		"runs are filtered":                                    filters,
		"a heartbeat of another daemon is left alone":          heartbeats,
		"unknown fields of a body survive":                     unknownFields,
		"the instance id stays":                                instanceID,
		"a claim sets tags":                                    claimTags,
		"one worker of an attempt passes the gate":             takeOnce,
		"a launch row that was taken ends by a death alone":    voidTaken,
		"a worker records under the statuses it expects":       recordExpects,
		"a run that is added is queued":                        addRun,
		"a death leads to a new attempt, with its facts kept":  deaths,
		"a claim takes away the cause of an earlier death":     causeGone,
		"places of a run are freed and given on":               slotsFreed,
		"entries are kept":                                     entries,
		"many are recorded at once":                            recordAll,
		"pools are counted":                                    poolsCounted,
		"pools follow their default limit":                     poolsDefault,
		"a claim made again is done":                           claimAgain,
		"a move made again is done":                            moveAgain,
		"a status that another wrote is not ours":              moveOfAnother,
	} {
		t.Run(name, func(t *testing.T) {
			d := target.New(t)
			s := target.Open(t, d.Location)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			fx := &fixture{d: d, s: s, ctx: timeout(t), reopen: func() storage.Store {
				return target.Open(t, d.Location)
			}}
			f(t, fx)
		})
	}
}

type fixture struct {
	d      *Dagster
	s      storage.Store
	ctx    context.Context
	reopen func() storage.Store
}

func (f *fixture) lead(t *testing.T) storage.Fence {
	t.Helper()
	fence, ok, err := f.s.Lead(f.ctx, "slipway-a", time.Minute)
	if err != nil || !ok {
		t.Fatalf("Lead = %v, %v, want the lead", ok, err)
	}
	return fence
}

func (f *fixture) enqueue(t *testing.T, tags map[string]string) string {
	t.Helper()
	run := uuid.NewString()
	if err := f.d.Enqueue(run, tags); err != nil {
		t.Fatal(err)
	}
	return run
}

func claimOf(run string) storage.Claim {
	return storage.Claim{Run: run, Launcher: "local", Instance: "test", Token: uuid.NewString(),
		At: time.Now().UTC().Truncate(time.Microsecond)}
}

func (f *fixture) claim(t *testing.T, fence storage.Fence, run string) storage.LaunchRow {
	t.Helper()
	out, err := f.s.Claim(f.ctx, fence, []storage.Claim{claimOf(run)})
	if err != nil || !out[0].Done {
		t.Fatalf("Claim = %+v, %v, want it done", out, err)
	}
	if err := f.s.Flush(f.ctx, fence); err != nil {
		t.Fatal(err)
	}
	return out[0].Launch
}

func (f *fixture) run(t *testing.T, id string) storage.Run {
	t.Helper()
	runs, err := f.s.Runs(f.ctx, storage.Filter{IDs: []string{id}})
	if err != nil || len(runs) != 1 {
		t.Fatalf("Runs(%s) = %d runs, %v, want one", id, len(runs), err)
	}
	return runs[0]
}

// types returns the types of the events of a run.
func (f *fixture) types(t *testing.T, run string) string {
	t.Helper()
	events, err := f.s.Events(f.ctx, run)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range events {
		names = append(names, string(e.Type))
	}
	return strings.Join(names, " ")
}

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func claimWrites(t *testing.T, f *fixture) {
	run := f.enqueue(t, map[string]string{"team": "data"})
	c := claimOf(run)
	fence := f.lead(t)
	out, err := f.s.Claim(f.ctx, fence, []storage.Claim{c})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.s.Flush(f.ctx, fence); err != nil {
		t.Fatal(err)
	}
	want(t, "Claim", out[0].Done, true)
	r := f.run(t, run)
	want(t, "status", r.Status, dagster.Starting)
	want(t, "updated", r.Updated, c.At)
	if age := time.Since(r.Created); age.Abs() > 10*time.Minute {
		t.Errorf("a run that was just created is %v old", age)
	}
	want(t, "tags", r.Tags["team"], "data")
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING")
	if r.Launch == nil || *r.Launch != out[0].Launch {
		t.Fatalf("launch row is %v, Claim said %v", r.Launch, out[0].Launch)
	}
	want(t, "launch row", *r.Launch, storage.LaunchRow{Run: run, Attempt: 1, Instance: "test", Launcher: "local",
		Token: c.Token, Epoch: 1, At: c.At, State: storage.Open})
	body, err := f.d.Text("SELECT run_body FROM runs WHERE run_id = ?", run)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "body", body, strings.Replace(Body(run, map[string]string{"team": "data"}), "NOT_STARTED", "STARTING", 1))
	want(t, "body of the outcome", out[0].Run.Body(), body)
}

func claimOnce(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	f.claim(t, fence, run)
	out, err := f.s.Claim(f.ctx, fence, []storage.Claim{claimOf(run)})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "second Claim", out[0], storage.Outcome{Status: dagster.Starting})
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING")
}

func claimRace(t *testing.T, f *fixture) {
	fence := f.lead(t)
	var runs []string
	for range 20 {
		runs = append(runs, f.enqueue(t, nil))
	}
	var mu sync.Mutex
	done := map[string]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var claims []storage.Claim
			for _, r := range runs {
				claims = append(claims, claimOf(r))
			}
			out, err := f.s.Claim(f.ctx, fence, claims)
			if err != nil {
				t.Errorf("Claim: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for i, o := range out {
				if o.Done {
					done[runs[i]]++
				}
			}
		})
	}
	wg.Wait()
	if err := f.s.Flush(f.ctx, fence); err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		want(t, "claims of "+r, done[r], 1)
		want(t, "events", f.types(t, r), "PIPELINE_ENQUEUED PIPELINE_STARTING")
	}
}

func claimForged(t *testing.T, f *fixture) {
	other := uuid.NewString()
	run := uuid.NewString()
	forged := storage.LaunchRow{Run: run, Attempt: 7, Instance: "test", Launcher: "local", Token: "forged", Epoch: 1,
		At: time.Now(), State: storage.Open}
	copied := storage.LaunchRow{Run: other, Attempt: 1, Instance: "test", Launcher: "local", Token: "copied", Epoch: 1,
		At: time.Now(), State: storage.Open}
	tags := map[string]string{storage.LaunchKey: forged.String(), storage.HandleKey: other + " 1 /elsewhere",
		"slipway/cpu": "2"}
	if err := f.d.Enqueue(run, tags); err != nil {
		t.Fatal(err)
	}
	if err := f.d.Exec("INSERT INTO run_tags (run_id, key, value) VALUES (?, ?, ?)", run, storage.LaunchKey,
		copied.String()); err != nil {
		t.Fatal(err)
	}
	want(t, "attempt", f.claim(t, f.lead(t), run).Attempt, 1)
	r := f.run(t, run)
	want(t, "handle", r.Handle, "")
	want(t, "the user's own tag", r.Tags["slipway/cpu"], "2")
	n, err := f.d.Text("SELECT CAST(count(*) AS TEXT) FROM run_tags WHERE run_id = ? AND key LIKE '.dagster/slipway/%'",
		run)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "rows of ours", n, "1")
}

func claimGone(t *testing.T, f *fixture) {
	fence := f.lead(t)
	ended := f.enqueue(t, nil)
	if err := f.d.Event(dagster.NewEvent(dagster.Run{ID: ended, Job: "light"}, dagster.RunCanceled, time.Now(),
		"")); err != nil {
		t.Fatal(err)
	}
	waiting := f.enqueue(t, nil)
	out, err := f.s.Claim(f.ctx, fence, []storage.Claim{claimOf(uuid.NewString()), claimOf(ended), claimOf(waiting)})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "of a run that is gone", out[0], storage.Outcome{})
	want(t, "of an ended run", out[1], storage.Outcome{Status: dagster.Canceled})
	want(t, "of the third", out[2].Done, true)
}

func claimBroken(t *testing.T, f *fixture) {
	broken, good := f.enqueue(t, nil), f.enqueue(t, nil)
	if err := f.d.Exec("UPDATE runs SET run_body = '{' WHERE run_id = ?", broken); err != nil {
		t.Fatal(err)
	}
	out, err := f.s.Claim(f.ctx, f.lead(t), []storage.Claim{claimOf(broken), claimOf(good)})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "of the broken run", out[0], storage.Outcome{Status: dagster.Queued})
	want(t, "of the good one", out[1].Done, true)
	if r := f.run(t, broken); r.Broken == nil {
		t.Error("the broken run does not say so")
	}
}

func (f *fixture) event(r storage.Run, typ dagster.EventType) dagster.Event {
	return dagster.NewEvent(r.Run, typ, time.Now().UTC(), "")
}

func moveExpects(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	r := f.run(t, run)
	out, err := f.s.Move(f.ctx, fence, storage.Transition{Run: run, From: []dagster.Status{dagster.Started},
		Events: []dagster.Event{f.event(r, dagster.RunFailure)}})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "Move from another status", out, storage.Outcome{Status: dagster.Queued})
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED")
	out, err = f.s.Move(f.ctx, fence, storage.Transition{Run: uuid.NewString()})
	if err != nil || out != (storage.Outcome{}) {
		t.Errorf("Move of a run that is gone = %+v, %v", out, err)
	}
}

func moveLaunch(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	f.claim(t, fence, run)
	out, err := f.s.Move(f.ctx, fence,
		storage.Transition{Run: run, Launch: "another",
			Events: []dagster.Event{f.event(f.run(t, run), dagster.RunFailure)}})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "Move under another launch row", out, storage.Outcome{Status: dagster.Starting})
}

func moveWrites(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, map[string]string{"k": "old"}), f.lead(t)
	l := f.claim(t, fence, run)
	r := f.run(t, run)
	note := dagster.NewEngineEvent(r.Run, time.Now(), "launched é", []dagster.Metadata{{Label: "where", Text: "here"}},
		nil)
	out, err := f.s.Move(f.ctx, fence, storage.Transition{
		Run: run, From: []dagster.Status{dagster.Starting}, Launch: l.Token, Handle: "a handle with spaces",
		Events: []dagster.Event{note}, Tags: map[string]string{"k": "new", "docker/container_id": "c1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "Move", out, storage.Outcome{Done: true, Status: dagster.Starting, Launch: l})
	r = f.run(t, run)
	want(t, "handle", r.Handle, "a handle with spaces")
	if d := testenv.Diff(r.Tags, map[string]string{"k": "new", "docker/container_id": "c1"}); d != "" {
		t.Errorf("tags (-got +want):\n%s", d)
	}
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING ENGINE_EVENT")
	rows, err := f.d.Text("SELECT value FROM run_tags WHERE run_id = ? AND key = 'k'", run)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "row of tag k", rows, "new")
}

func moveVoid(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	l := f.claim(t, fence, run)
	r := f.run(t, run)
	out, err := f.s.Move(f.ctx, fence, storage.Transition{
		Run: run, From: []dagster.Status{dagster.Starting}, Launch: l.Token, Void: true,
		Events: []dagster.Event{dagster.NewRunEnqueued(r.Run, time.Now())},
	})
	if err != nil {
		t.Fatal(err)
	}
	l.State = storage.Void
	want(t, "Move", out, storage.Outcome{Done: true, Status: dagster.Queued, Launch: l})
	queued := f.run(t, run)
	if queued.Launch != nil || queued.Last == nil || *queued.Last != l {
		t.Errorf("back in the queue it has the launch row %v and had %v, want none and %v", queued.Launch, queued.Last,
			l)
	}
	queued.Updated = l.At.Add(-time.Hour) // as if by a clock that was set back
	want(t, "it was read before the claim", queued.QueuedBefore(l), false)
	next := f.claim(t, fence, run)
	want(t, "attempt", next.Attempt, 2)
	want(t, "it was read before the next claim", queued.QueuedBefore(next), true)
	want(t, "current launch row", f.run(t, run).Launch.Token, next.Token)
	rows, err := f.d.Text("SELECT CAST(count(*) AS TEXT) FROM run_tags WHERE run_id = ? AND key = ?", run,
		storage.LaunchKey)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "launch rows, without that of an attempt that never had a worker", rows, "1")
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING PIPELINE_ENQUEUED PIPELINE_STARTING")
}

func moveEnd(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	f.claim(t, fence, run)
	at := time.Now().UTC().Truncate(time.Microsecond)
	r := f.run(t, run)
	failure := dagster.NewRunFailure(r.Run, at, "died", dagster.UnexpectedTermination, errors.New("exit 9"))
	if _, err := f.s.Move(f.ctx, fence,
		storage.Transition{Run: run, Events: []dagster.Event{failure},
			Tags: map[string]string{dagster.FailureReasonTag: string(dagster.UnexpectedTermination)}}); err != nil {
		t.Fatal(err)
	}
	r = f.run(t, run)
	want(t, "status", r.Status, dagster.Failure)
	want(t, "end", r.End, at)
	want(t, "reason", r.Tags[dagster.FailureReasonTag], "UNEXPECTED_TERMINATION")
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING PIPELINE_FAILURE")
}

func moveStands(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	f.claim(t, fence, run)
	r := f.run(t, run)
	claimed := r.Updated
	success := dagster.NewEvent(r.Run, dagster.RunSuccess, time.Now().UTC().Add(-time.Hour), "")
	if _, err := f.s.Move(f.ctx, fence,
		storage.Transition{Run: run, From: []dagster.Status{dagster.Starting}, Logged: &success}); err != nil {
		t.Fatal(err)
	}
	r = f.run(t, run)
	want(t, "status", r.Status, dagster.Success)
	want(t, "end", r.End, success.Time.Truncate(time.Microsecond))
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING")
	if r.Updated.Before(claimed) {
		t.Errorf("updated %v, before the claim: what asks for changes since then misses it", r.Updated)
	}
}

func fenced(t *testing.T, f *fixture) {
	run, old := f.enqueue(t, nil), f.lead(t)
	if err := f.s.Yield(f.ctx, old); err != nil {
		t.Fatal(err)
	}
	next, ok, err := f.s.Lead(f.ctx, "slipway-b", time.Minute)
	if err != nil || !ok {
		t.Fatalf("Lead = %v, %v", ok, err)
	}
	want(t, "epoch", next.Epoch, old.Epoch+1)
	if _, err := f.s.Claim(f.ctx, old, []storage.Claim{claimOf(run)}); !errors.Is(err, storage.ErrFenced) {
		t.Errorf("Claim under the old fence = %v, want ErrFenced", err)
	}
	if _, err := f.s.Move(f.ctx, old,
		storage.Transition{Run: run, Events: []dagster.Event{f.event(f.run(t, run), dagster.RunFailure)}}); !errors.Is(
		err, storage.ErrFenced) {
		t.Errorf("Move under the old fence = %v, want ErrFenced", err)
	}
	want(t, "status", f.run(t, run).Status, dagster.Queued)
	f.claim(t, next, run)
}

func leaders(t *testing.T, f *fixture) {
	f.lead(t)
	other := f.reopen()
	defer func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, ok, err := other.Lead(f.ctx, "slipway-b", time.Minute); err != nil || ok {
		t.Fatalf("a second leader: %v, %v", ok, err)
	}
	again, ok, err := f.s.Lead(f.ctx, "slipway-a", 50*time.Millisecond)
	if err != nil || !ok || again.Epoch != 1 {
		t.Fatalf("renewal: %+v, %v, %v", again, ok, err)
	}
	testenv.Eventually(t, 10*time.Second, func() (bool, string) {
		fence, ok, err := other.Lead(f.ctx, "slipway-b", time.Minute)
		return ok && fence.Epoch == 2, fmt.Sprint("the lease that ended was not taken over: ", fence, ok, err)
	})
	if _, ok, err := f.s.Lead(f.ctx, "slipway-a", time.Minute); err != nil || ok {
		t.Errorf("the old leader came back: %v, %v", ok, err)
	}
}

func yielded(t *testing.T, f *fixture) {
	if err := f.s.Yield(f.ctx, f.lead(t)); err != nil {
		t.Fatal(err)
	}
	other := f.reopen()
	defer func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, ok, err := other.Lead(f.ctx, "slipway-b", time.Minute); err != nil || !ok {
		t.Errorf("Lead after Yield = %v, %v", ok, err)
	}
}

func hints(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	got := make(chan storage.Hint, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for h, err := range f.s.Hints(ctx) {
			if err != nil {
				t.Errorf("Hints: %v", err)
				return
			}
			got <- h
		}
	})
	defer wg.Wait()
	defer cancel()
	select {
	case h := <-got:
		want(t, "first hint", h, storage.Hint{})
	case <-ctx.Done():
		t.Fatal("no first hint")
	}
	run := f.enqueue(t, nil)
	for {
		select {
		case h := <-got:
			if h.Run == run || h.Run == "" {
				return
			}
		case <-ctx.Done():
			t.Fatal("no hint for a new run")
		}
	}
}

func hintsStands(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	f.claim(t, fence, run)
	success := f.event(f.run(t, run), dagster.RunSuccess)
	next, stop := iter.Pull2(f.s.Hints(f.ctx))
	defer stop()
	if h, err, _ := next(); err != nil || h.Run != "" {
		t.Fatal(h, err)
	}
	if _, err := f.s.Move(f.ctx, fence,
		storage.Transition{Run: run, From: []dagster.Status{dagster.Starting}, Logged: &success}); err != nil {
		t.Fatal(err)
	}
	for {
		h, err, ok := next()
		if err != nil || !ok {
			t.Fatal("no hint for a run that changed without an event:", err)
		}
		if h.Run == run || h.Run == "" {
			return
		}
	}
}

func filters(t *testing.T, f *fixture) {
	a, b, c := f.enqueue(t, nil), f.enqueue(t, nil), f.enqueue(t, nil)
	f.claim(t, f.lead(t), b)
	ids := func(flt storage.Filter) string {
		runs, err := f.s.Runs(f.ctx, flt)
		if err != nil {
			t.Fatal(err)
		}
		heads, err := f.s.Heads(f.ctx, flt)
		if err != nil || !slices.EqualFunc(heads, runs, func(h storage.Head, r storage.Run) bool {
			return h.ID == r.ID && h.Status == r.Status && h.Updated.Equal(r.Updated)
		}) {
			t.Errorf("Heads = %v, %v, want those of %v", heads, err, runs)
		}
		var out []string
		for _, r := range runs {
			switch r.ID {
			case a:
				out = append(out, "a")
			case b:
				out = append(out, "b")
			case c:
				out = append(out, "c")
			}
		}
		return strings.Join(out, "")
	}
	want(t, "queued", ids(storage.Filter{Statuses: []dagster.Status{dagster.Queued}}), "ac")
	want(t, "by id", ids(storage.Filter{IDs: []string{c, a}}), "ac")
	want(t, "newest", ids(storage.Filter{Newest: 2}), "cb")
	want(t, "since the future", ids(storage.Filter{Since: time.Now().Add(time.Hour)}), "")
	want(t, "since a minute", ids(storage.Filter{Since: time.Now().Add(-time.Minute)}), "abc")
	var many []string
	for range 1200 {
		many = append(many, uuid.NewString())
	}
	want(t, "by many ids", ids(storage.Filter{IDs: append(many, a)}), "a")
}

func heartbeats(t *testing.T, f *fixture) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	theirs := storage.Heartbeat{Type: "SLIPWAY_TEST", ID: "theirs", At: now.Add(-time.Minute)}
	ours := storage.Heartbeat{Type: "SLIPWAY_TEST", ID: "slipway-1", At: now}
	beat := func(h storage.Heartbeat, since time.Time, wantDone bool) {
		t.Helper()
		ok, err := f.s.Beat(f.ctx, h, since)
		if err != nil || ok != wantDone {
			t.Errorf("Beat(%s) = %v, %v, want %v", h.ID, ok, err, wantDone)
		}
	}
	beat(theirs, now.Add(-90*time.Second), true)
	beat(ours, now.Add(-90*time.Second), false)
	beat(ours, now.Add(-30*time.Second), true)
	all, err := f.s.Heartbeats(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var found bool
	for _, h := range all {
		found = found || h == ours
	}
	want(t, "our heartbeat is read back", found, true)
}

func unknownFields(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	body, err := dagster.Normalize(strings.Replace(Body(run, nil), "NOT_STARTED", "QUEUED", 1))
	if err != nil {
		t.Fatal(err)
	}
	body = strings.Replace(body, `"mode": null`, `"mode": null, "newer_than_this": {"__class__": "Future", "x": 1.50}`,
		1)
	if err := f.d.Exec("UPDATE runs SET run_body = ? WHERE run_id = ?", body, run); err != nil {
		t.Fatal(err)
	}
	f.claim(t, fence, run)
	got, err := f.d.Text("SELECT run_body FROM runs WHERE run_id = ?", run)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got, `"newer_than_this": {"__class__": "Future", "x": 1.50}`) {
		t.Errorf("the claim lost a field it does not know: %s", got)
	}
}

func instanceID(t *testing.T, f *fixture) {
	a, err := f.s.InstanceID(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.s.InstanceID(f.ctx)
	if err != nil || a != b || len(a) != 36 {
		t.Errorf("InstanceID = %q, then %q, %v", a, b, err)
	}
	// Several daemons that start at once on a fresh storage all get the same ID.
	if err := f.d.Exec("DELETE FROM instance_info"); err != nil {
		t.Fatal(err)
	}
	ids := make(chan string, 8)
	for range cap(ids) {
		go func() {
			id, err := f.s.InstanceID(f.ctx)
			ids <- fmt.Sprint(id, err)
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Errorf("one has the id %s, another %s", first, id)
		}
	}
}

func claimTags(t *testing.T, f *fixture) {
	run := f.enqueue(t, map[string]string{"a": "1", dagster.GRPCInfoTag: "forged"})
	c := claimOf(run)
	c.Tags = map[string]string{dagster.GRPCInfoTag: "ours"}
	if out, err := f.s.Claim(f.ctx, f.lead(t), []storage.Claim{c}); err != nil || !out[0].Done {
		t.Fatalf("Claim = %+v, %v", out, err)
	}
	if d := testenv.Diff(f.run(t, run).Tags, map[string]string{"a": "1", dagster.GRPCInfoTag: "ours"}); d != "" {
		t.Errorf("tags (-got +want):\n%s", d)
	}
	n, err := f.d.Text("SELECT CAST(count(*) AS TEXT) FROM run_tags WHERE run_id = ? AND key = ? AND value = 'ours'",
		run, dagster.GRPCInfoTag)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "rows", n, "1")
}

// pools writes two pools: c with its own limit, d with an old default limit. The tests also name a
// and b, which have no row.
func (f *fixture) pools(t *testing.T) {
	t.Helper()
	yes, no := "true", "false"
	if !f.d.Postgres() {
		yes, no = "1", "0"
	}
	for _, q := range []string{
		"INSERT INTO concurrency_limits (concurrency_key, \"limit\", using_default_limit) VALUES ('c', 3, " + no +
			"), ('d', 3, " + yes + ")",
		"INSERT INTO concurrency_slots (concurrency_key, run_id, step_key, deleted) VALUES ('c', NULL, NULL, " + no +
			"), ('c', 'r1', 's1', " + no + "), ('c', NULL, NULL, " + no + ")",
		"INSERT INTO concurrency_slots (concurrency_key, run_id, step_key, deleted) VALUES ('d', 'r1', 's2', " + no +
			"), ('d', 'r2', 's2', " + no + "), ('d', NULL, NULL, " + no + ")",
		"INSERT INTO pending_steps (concurrency_key, run_id, step_key) VALUES ('c', 'r1', 's1'), ('c', 'r2', 's1')",
	} {
		if err := f.d.ExecIndex(q); err != nil {
			t.Fatal(err)
		}
	}
}

func poolsCounted(t *testing.T, f *fixture) {
	f.pools(t)
	pools, err := f.s.Pools(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "c", pools["c"], storage.Pool{Limit: 3, Slots: 3, Taken: 1, Pending: 2})
	want(t, "d", pools["d"], storage.Pool{Limit: 3, Default: true, Slots: 3, Taken: 2})
}

func poolsDefault(t *testing.T, f *fixture) {
	f.pools(t)
	fence, one, two := f.lead(t), 1, 2
	step := func(what string, limit *int, expected map[string]storage.Pool) {
		t.Helper()
		got, err := f.s.DefaultPools(f.ctx, fence, []string{"a", "c", "d"}, limit)
		if err != nil {
			t.Fatal(err)
		}
		if d := testenv.Diff(got, expected); d != "" {
			t.Errorf("%s (-got +want):\n%s", what, d)
		}
	}
	c := storage.Pool{Limit: 3, Slots: 3, Taken: 1, Pending: 2}
	step("a default of one", &one, map[string]storage.Pool{"a": {Limit: 1, Default: true, Slots: 1}, "c": c,
		"d": {Limit: 1, Default: true, Slots: 1, Taken: 2}})
	step("a default of two", &two, map[string]storage.Pool{"a": {Limit: 2, Default: true, Slots: 2}, "c": c,
		"d": {Limit: 2, Default: true, Slots: 2, Taken: 2}})
	step("no default", nil, map[string]storage.Pool{"c": c})
	if err := f.s.Yield(f.ctx, fence); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := f.s.Lead(f.ctx, "slipway-b", time.Minute); err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, err := f.s.DefaultPools(f.ctx, fence, []string{"b"}, &one); !errors.Is(err, storage.ErrFenced) {
		t.Errorf("DefaultPools under the old fence = %v, want ErrFenced", err)
	}
}

func takeOnce(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	l := f.claim(t, fence, run)
	take := func(attempt int, token, by string) bool {
		t.Helper()
		ok, err := f.s.Take(f.ctx, run, attempt, token, by)
		if err != nil {
			t.Error(err)
		}
		return ok
	}
	want(t, "another attempt", take(2, l.Token, "w"), false)
	want(t, "another token", take(1, "other", "w"), false)
	if _, err := f.s.Move(f.ctx, fence, storage.Transition{Run: run, Launch: l.Token, Handle: "h"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	passed := map[string]bool{}
	for i := range 20 { // each worker asks twice at once, like one whose first request still waits
		wg.Go(func() {
			if by := fmt.Sprint("worker", i/2); take(1, l.Token, by) {
				mu.Lock()
				passed[by] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	want(t, "workers past the gate", len(passed), 1)
	r := f.run(t, run)
	want(t, "state", r.Launch.State, storage.Taken)
	want(t, "who is past the gate", passed[r.Launch.By], true)
	want(t, "it asks again", take(1, l.Token, r.Launch.By), true)
	want(t, "one without a nonce", take(1, l.Token, ""), false)
	want(t, "handle", r.Handle, "h")
	if ok, err := f.s.Take(f.ctx, uuid.NewString(), 1, "x", "w"); ok || err != nil {
		t.Errorf("Take of a run that is gone = %v, %v", ok, err)
	}
}

func voidTaken(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	l := f.claim(t, fence, run)
	if took, err := f.s.Take(f.ctx, run, 1, l.Token, "w"); err != nil || !took {
		t.Fatal(took, err)
	}
	void := storage.Transition{Run: run, Launch: l.Token, Void: true,
		Events: []dagster.Event{dagster.NewRunEnqueued(f.run(t, run).Run, time.Now())}}
	out, err := f.s.Move(f.ctx, fence, void)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "Move while its worker executes", out, storage.Outcome{Status: dagster.Starting})
	void.Death = &storage.Death{Attempt: 1, Launcher: "local", Cause: "oom", Then: "again"}
	if out, err = f.s.Move(f.ctx, fence, void); err != nil || !out.Done || out.Status != dagster.Queued {
		t.Errorf("Move when its worker is dead = %+v, %v", out, err)
	}
}

func recordExpects(t *testing.T, f *fixture) {
	run := f.enqueue(t, nil)
	f.claim(t, f.lead(t), run)
	in := dagster.NewInside(f.run(t, run).Run)
	starting := []dagster.Status{dagster.Starting}
	for i, done := range []bool{true, false} {
		out, err := f.s.Record(f.ctx, storage.Transition{Run: run, From: starting, Events: []dagster.Event{in.Start()}})
		if err != nil || out.Done != done || out.Status != dagster.Started {
			t.Errorf("Record %d = %+v, %v", i+1, out, err)
		}
	}
	if _, err := f.s.Record(f.ctx, storage.Transition{Run: run,
		Events: []dagster.Event{in.StepStart("s", 1), in.Log("s", 20, "a line")}}); err != nil {
		t.Fatal(err)
	}
	want(t, "events", f.types(t, run), "PIPELINE_ENQUEUED PIPELINE_STARTING PIPELINE_START STEP_START ")
	r := f.run(t, run)
	if r.Start.IsZero() {
		t.Error("start_time is not set")
	}
	key, err := f.d.EventColumn(run, "STEP_START", "step_key")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "step_key", key, "s")
}

func addRun(t *testing.T, f *fixture) {
	r := dagster.NewCommandRun(uuid.NewString(), "job", dagster.Encode(map[string]any{"steps": map[string]any{}}),
		map[string]string{"dagster/partition": "p1", "k": "v"})
	at := time.Now().UTC().Truncate(time.Microsecond)
	if err := f.s.AddRun(f.ctx, storage.NewRun{Run: r, At: at}); err != nil {
		t.Fatal(err)
	}
	got := f.run(t, r.ID)
	want(t, "status", got.Status, dagster.Queued)
	want(t, "created", got.Created, at)
	want(t, "tag", got.Tags["k"], "v")
	want(t, "location", got.Remote.Location, dagster.CommandLocation)
	want(t, "events", f.types(t, r.ID), "PIPELINE_ENQUEUED")
	row, err := f.d.Text(
		"SELECT partition || ' ' || (SELECT value FROM run_tags WHERE run_id = runs.run_id AND key = "+
			"'.dagster/repository') FROM runs WHERE run_id = ?", r.ID)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "partition and repository", row, "p1 __repository__@slipway")
	if err := f.s.AddRun(f.ctx, storage.NewRun{Run: r, At: at}); err == nil {
		t.Error("a run was added twice")
	}
	copied, err := got.Copy(uuid.NewString())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.s.AddRun(f.ctx, storage.NewRun{Run: copied, At: at}); err != nil {
		t.Fatal(err)
	}
	f.claim(t, f.lead(t), copied.ID)
}

func deaths(t *testing.T, f *fixture) {
	run, fence := f.enqueue(t, nil), f.lead(t)
	first := f.claim(t, fence, run)
	start := dagster.NewEvent(dagster.Run{ID: run, Job: "light"}, dagster.RunStart, time.Now(), "")
	if _, err := f.s.Move(f.ctx, fence,
		storage.Transition{Run: run, Launch: first.Token, Handle: "one", Events: []dagster.Event{start}}); err != nil {
		t.Fatal(err)
	}
	out, err := f.s.Move(f.ctx, fence, storage.Transition{
		Run: run, From: []dagster.Status{dagster.Started}, Launch: first.Token,
		Death: &storage.Death{Attempt: 1, Launcher: "local", Cause: "oom", Then: storage.ThenResume},
		Next: &storage.Next{Launcher: "other", Token: "second", Epoch: fence.Epoch,
			At: time.Now().UTC().Truncate(time.Microsecond)},
	})
	if err != nil || !out.Done {
		t.Fatalf("Move = %+v, %v", out, err)
	}
	r := f.run(t, run)
	want(t, "status", r.Status, dagster.Started)
	want(t, "handle", r.Handle, "")
	want(t, "launch row", *r.Launch, out.Launch)
	want(t, "attempt", r.Launch.Attempt, 2)
	want(t, "launcher", r.Launch.Launcher, "other")
	want(t, "resumes", r.Resumes(), true)
	want(t, "deaths", fmt.Sprint(r.Deaths), "[{1 local oom resume}]")
	if took, err := f.s.Take(f.ctx, run, 1, first.Token, "w"); err != nil || took {
		t.Errorf("the dead attempt's gate: %v, %v", took, err)
	}
	if took, err := f.s.Take(f.ctx, run, 2, "second", "w"); err != nil || !took {
		t.Errorf("the new attempt's gate: %v, %v", took, err)
	}
	out, err = f.s.Move(f.ctx, fence, storage.Transition{
		Run: run, Launch: "second", Void: true,
		Death:  &storage.Death{Attempt: 2, Launcher: "other", Cause: "exit", Then: "again"},
		Events: []dagster.Event{dagster.NewRunEnqueued(r.Run, time.Now())},
		Tags:   map[string]string{storage.CauseTag: "exit"},
	})
	if err != nil || !out.Done {
		t.Fatalf("Move = %+v, %v", out, err)
	}
	r = f.run(t, run)
	want(t, "cause", r.Cause, "exit")
	if _, copied := r.Tags[storage.CauseTag]; copied || r.Shown()[storage.CauseTag] != "exit" {
		t.Errorf("the cause is in the body, of which Dagster copies the tags to re-executions: %v", r.Tags)
	}
	third := f.claim(t, fence, run)
	want(t, "attempt", third.Attempt, 3)
	r = f.run(t, run)
	want(t, "resumes", r.Resumes(), false)
	want(t, "deaths", fmt.Sprint(r.Deaths), "[{1 local oom resume} {2 other exit again}]")
	want(t, "cause", r.Cause, "")
	bill := map[string]string{storage.CostTag: "1 USD", storage.BillTag: "{}"}
	if out, err = f.s.Move(f.ctx, fence, storage.Transition{Run: run, Tags: bill}); err != nil || !out.Done {
		t.Fatalf("Move = %+v, %v", out, err)
	}
	if out, err = f.s.Move(f.ctx, fence,
		storage.Transition{Run: run, Launch: third.Token, Void: true,
			Events: []dagster.Event{dagster.NewRunEnqueued(r.Run, time.Now())}}); err != nil || !out.Done {
		t.Fatalf("Move = %+v, %v", out, err)
	}
	f.claim(t, fence, run)
	r = f.run(t, run)
	want(t, "cost", r.Cost+r.Bill, "1 USD{}")
	if _, copied := r.Tags[storage.CostTag]; copied {
		t.Errorf("the cost is in the body: %v", r.Tags)
	}
}

func causeGone(t *testing.T, f *fixture) {
	run := f.enqueue(t, map[string]string{storage.CauseTag: "oom", storage.CostTag: "1 USD", storage.BillTag: "{}",
		"team": "data"})
	f.claim(t, f.lead(t), run)
	r := f.run(t, run)
	want(t, "tags", fmt.Sprint(r.Tags), "map[team:data]")
	rows, err := f.d.Text(
		"SELECT count(*) FROM run_tags WHERE run_id = ? AND key <> 'team' AND key NOT LIKE '.dagster/slipway/%'", run)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "rows", rows, "0")
}

func slotsFreed(t *testing.T, f *fixture) {
	fence := f.lead(t)
	for _, q := range []string{
		"INSERT INTO concurrency_slots (concurrency_key, run_id, step_key, deleted) VALUES ('db', 'dead', 'a', " +
			"false), ('db', 'dead', 'b', true), ('db', 'alive', 'a', false)",
		"INSERT INTO pending_steps (concurrency_key, run_id, step_key, priority, assigned_timestamp) VALUES ('db', " +
			"'dead', 'a', 0, CURRENT_TIMESTAMP), ('db', 'alive', 'a', 0, CURRENT_TIMESTAMP)",
		"INSERT INTO pending_steps (concurrency_key, run_id, step_key, priority) VALUES ('db', 'dead', 'c', 0), " +
			"('db', 'low', 'a', 0), ('db', 'high', 'a', 5)",
	} {
		if err := f.d.ExecIndex(q); err != nil {
			t.Fatal(err)
		}
	}
	holders, err := f.s.Holders(f.ctx)
	slices.Sort(holders)
	if err != nil || fmt.Sprint(holders) != "[alive dead high low]" {
		t.Fatalf("Holders = %v, %v", holders, err)
	}
	if err := f.s.FreeSlots(f.ctx, storage.Fence{Leader: "other", Epoch: 1}, "dead"); !errors.Is(err,
		storage.ErrFenced) {
		t.Errorf("FreeSlots of another leader = %v", err)
	}
	if err := f.s.FreeSlots(f.ctx, fence, "dead"); err != nil {
		t.Fatal(err)
	}
	holders, err = f.s.Holders(f.ctx)
	slices.Sort(holders)
	if err != nil || fmt.Sprint(holders) != "[alive high low]" {
		t.Errorf("Holders = %v, %v", holders, err)
	}
	got, err := f.d.TextIndex(
		"SELECT run_id FROM pending_steps WHERE assigned_timestamp IS NOT NULL AND run_id <> 'alive'")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "who has the place now", got, "high")
	got, err = f.d.TextIndex(
		"SELECT count(*) FROM concurrency_slots WHERE concurrency_key = 'db' AND run_id IS NULL AND NOT deleted")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "free places", got, "1")
}

func entries(t *testing.T, f *fixture) {
	for _, e := range [][2]string{{"slipway/x/a", "1"}, {"slipway/x/b", "2"}, {"slipway/x/b", "3"}, {"slipway/y", "4"},
		{"slipway/x/a", ""}} {
		if err := f.s.SetEntry(f.ctx, e[0], e[1]); err != nil {
			t.Fatal(err)
		}
	}
	got, err := f.s.Entries(f.ctx, "slipway/x/")
	if err != nil {
		t.Fatal(err)
	}
	want(t, "entries", fmt.Sprint(got), "map[slipway/x/b:3]")
}

func recordAll(t *testing.T, f *fixture) {
	waiting, ended := f.enqueue(t, nil), f.enqueue(t, nil)
	end := dagster.NewEvent(dagster.Run{ID: ended, Job: "light"}, dagster.RunCanceled, time.Now(), "")
	if err := f.d.Event(end); err != nil {
		t.Fatal(err)
	}
	var ts []storage.Transition
	for _, run := range []string{waiting, ended, uuid.NewString()} {
		ts = append(ts, storage.Transition{Run: run, From: []dagster.Status{dagster.Queued},
			Events: []dagster.Event{dagster.NewEvent(dagster.Run{ID: run, Job: "light"}, dagster.RunCanceled,
				time.Now(), "")}})
	}
	out, err := f.s.RecordAll(f.ctx, ts)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "outcomes", fmt.Sprintf("%v %s, %v %s, %v %s", out[0].Done, out[0].Status, out[1].Done, out[1].Status,
		out[2].Done, out[2].Status), "true CANCELED, false CANCELED, false ")
	want(t, "events", f.types(t, waiting), "PIPELINE_ENQUEUED PIPELINE_CANCELED")
	want(t, "events", f.types(t, ended), "PIPELINE_ENQUEUED PIPELINE_CANCELED")
	want(t, "status", f.run(t, waiting).Status, dagster.Canceled)
}
