package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

const (
	// netInterval is how often every worker in flight is asked about, whatever the target told by itself.
	netInterval = 30 * time.Second
	// watchRetry is the wait after a target's watch ended.
	watchRetry = time.Second
	// tick is how often times are looked at that runs may take.
	tick           = time.Second
	terminateTries = 5
	writeTimeout   = 30 * time.Second
)

// looksAgain is when a run that we finished is looked at again: a worker's last write may have come after ours.
var looksAgain = []time.Duration{2 * time.Second, 30 * time.Second}

// store is what the monitor asks of the storage.
type store interface {
	Move(ctx context.Context, f storage.Fence, t storage.Transition) (storage.Outcome, error)
	Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error)
	Events(ctx context.Context, run string, types ...dagster.EventType) ([]dagster.Event, error)
}

// Loop watches the workers of runs in flight. Its fields are set before Run.
type Loop struct {
	Store    store
	Fence    storage.Fence
	Instance string
	Targets  map[string]*dispatch.Target
	Inbox    *storage.Inbox // changed runs
	Launched *storage.Inbox // runs whose handle was written; apart, so that older news of a run cannot take their place
	// Seen is what targets said of their workers just before Run; of those they are not asked again at once. Nil: nothing is known.
	Seen map[launcher.ID]launcher.Health
	// Times are those of one run on its launcher.
	Times  func(r dagster.Run, launcher string) Times
	Policy *Policy
	// Relaunch launches the worker of a further attempt that was just written.
	Relaunch func(r storage.Run)
	// Died is told of each worker whose death was proved and written. It must not block.
	Died func(r storage.Run, cause launcher.Cause)
	// Held is told of each answer that proves nothing, by which a run is left as it is: unknown, not_found or error; nil: nobody.
	Held func(launcher, answer string)
	// Phase is told how long a worker was in a phase; nil: nobody.
	Phase func(launcher, phase string, took time.Duration)
	// PhasesAfter is how long a worker must be in a phase for its run's log to tell of it; 0: each phase is told of at once.
	PhasesAfter time.Duration
	Log         *slog.Logger

	flights map[string]*flight
	reports chan report
	asks    map[string]chan flightKey
	again   []look
	calls   sync.WaitGroup
}

// flight is a run of ours with a handle.
type flight struct {
	run           storage.Run
	times         Times
	health        launcher.Health
	since         time.Time      // it is in its phase; by our own clock, for others may be off, and ours be stepped
	began         time.Time      // the run has started, likewise; zero: not yet
	asked, killed time.Time      // to stop; zero: not yet
	again         time.Time      // before this it is not looked at again for the time that it takes
	answered      time.Time      // by its target, the last time
	events        int            // that others had written when its target ceased to tell that the worker runs
	heard         time.Time      // more were seen in the run's log; by our own clock, for their writer's may be off
	debug         string         // what the target says of a dead worker for people
	told          launcher.Phase // the last one that stands in the run's log
	over          time.Time      // the run was seen to be canceled, its worker not seen to end
}

// start notes when a run was seen to have started, which is when its longest time begins.
func (f *flight) start() {
	if f.began.IsZero() && f.run.Status == dagster.Started {
		f.began = time.Now()
	}
	if !f.began.IsZero() {
		f.run.Start = f.began
	}
}

// linger is how long a worker may go on after its run is canceled, which somebody may have written by force. Dagster's takes some seconds.
const linger = 15 * time.Second

// lingers says whether the worker of a canceled run has had its time to end.
func (f *flight) lingers(now time.Time) bool { return !f.over.IsZero() && now.Sub(f.over) >= linger }

// seen is what was seen of a flight so far.
func (f *flight) seen(now time.Time) Watch {
	return Watch{Now: now, Since: f.since, Answered: f.answered, Heard: f.heard, Asked: f.asked, Killed: f.killed, Times: f.times}
}

// dueAgain is how long a run whose time is over is left alone between two looks at it.
const dueAgain = 5 * time.Second

// due says whether a run may have taken as long as it may. A look at its events decides.
func (f *flight) due(now time.Time) bool {
	if now.Before(f.again) {
		return false
	}
	w := f.seen(now)
	due := f.run.Status == dagster.Canceling && w.over(f.since, w.Times.Cancel) || w.mute(f.health)
	switch Decide(f.run, f.health, nil, w).Do {
	case Terminate, Kill, Expire, Fail:
		due = true
	}
	if due {
		f.again = now.Add(dueAgain)
	}
	return due
}

type flightKey struct {
	id     launcher.ID
	handle launcher.Handle
}

func (f *flight) key() flightKey {
	return flightKey{launcher.ID{Run: f.run.ID, Attempt: f.run.Launch.Attempt}, launcher.Handle(f.run.Handle)}
}

// report is what a target says of a worker.
type report struct {
	id     launcher.ID
	health launcher.Health
	debug  string
}

// look is a later look at a run.
type look struct {
	run string
	at  time.Time
}

// Run monitors until ctx ends or the lead is lost ([storage.ErrFenced]).
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	l.flights, l.asks, l.reports = map[string]*flight{}, map[string]chan flightKey{}, make(chan report, 256)
	var wg sync.WaitGroup
	for name, t := range l.Targets {
		ask := make(chan flightKey, 1024)
		l.asks[name] = ask
		wg.Go(func() { l.watch(ctx, t) })
		wg.Go(func() { l.answer(ctx, t, ask) })
	}
	defer wg.Wait()
	defer l.calls.Wait()
	defer cancel()
	net, times := time.NewTicker(netInterval), time.NewTicker(tick)
	defer net.Stop()
	defer times.Stop()
	for {
		var again <-chan time.Time
		if len(l.again) > 0 {
			again = time.After(time.Until(l.again[0].at))
		}
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-l.Launched.Wake():
			err = take(ctx, l.Launched, l.launched)
		case <-l.Inbox.Wake():
			err = take(ctx, l.Inbox, l.changed)
		case rep := <-l.reports:
			err = l.reported(ctx, rep)
		case <-again:
			run := l.again[0].run
			l.again = l.again[1:]
			err = l.check(ctx, run)
		case now := <-times.C:
			var errs []error
			for id, f := range l.flights {
				if f.health.Status == launcher.NotFound && f.answered.Sub(f.since) < f.times.Settle && now.Sub(f.since) >= f.times.Settle {
					l.ask(f) // its absence counts only if it has held
				}
				if now.Sub(f.since) >= l.PhasesAfter {
					errs = append(errs, l.tell(ctx, f))
				}
				if f.lingers(now) {
					l.ask(f)
				}
				if f.due(now) {
					errs = append(errs, l.check(ctx, id))
				}
			}
			err = errors.Join(errs...)
		case <-net.C:
			for _, f := range l.flights {
				l.ask(f)
			}
		}
		if errors.Is(err, storage.ErrFenced) {
			return storage.ErrFenced
		}
		if err != nil && ctx.Err() == nil {
			l.Log.WarnContext(ctx, "a run in flight could not be looked after; it will be again", "err", err)
		}
	}
}

func take(ctx context.Context, inbox *storage.Inbox, with func(context.Context, storage.Run) error) error {
	var errs []error
	for _, r := range inbox.Take() {
		errs = append(errs, with(ctx, r))
	}
	return errors.Join(errs...)
}

// launched takes in a run whose handle was written, in the status that it had then: what was read of it before had no handle, and is not told again.
func (l *Loop) launched(ctx context.Context, r storage.Run) error {
	if f := l.flights[r.ID]; f != nil && f.run.Launch.Token == r.Launch.Token {
		return nil // read since, with the handle
	}
	return l.changed(ctx, r)
}

// changed takes in a run's new state.
func (l *Loop) changed(ctx context.Context, r storage.Run) error {
	f := l.flights[r.ID]
	if f != nil && r.QueuedBefore(*f.run.Launch) {
		return nil // read before it was claimed
	}
	if f != nil && r.Status == "" { // deleted: nobody needs its worker
		l.Log.InfoContext(ctx, "a run in flight was deleted", "run_id", r.ID, "launcher", f.run.Launch.Launcher)
		l.terminate(f, f.times.Grace)
	}
	if r.Broken != nil || r.Launch == nil || r.Launch.Instance != l.Instance || l.asks[r.Launch.Launcher] == nil {
		delete(l.flights, r.ID)
		return nil
	}
	if r.Launch.State == storage.Void {
		delete(l.flights, r.ID)
		return l.unlaunched(ctx, r)
	}
	if f == nil || f.run.Launch.Token != r.Launch.Token {
		if r.Handle == "" || !r.Status.Active() && r.Status != dagster.Canceled {
			return nil
		}
		f = &flight{run: r, times: l.Times(r.Run, r.Launch.Launcher), since: time.Now()}
		if f.start(); !f.began.IsZero() && !r.Start.IsZero() { // before we saw it: there is but the run's own time
			f.began = f.began.Add(-max(0, time.Now().Round(0).Sub(r.Start)))
			f.run.Start = f.began
		}
		if r.Status == dagster.Canceled { // by force, while its worker was being launched
			f.over = f.since
		}
		l.flights[r.ID] = f
		if h, ok := l.Seen[f.key().id]; ok {
			delete(l.Seen, f.key().id)
			return l.reported(ctx, report{id: f.key().id, health: h})
		}
		l.ask(f) // it may have ended before we knew of it
		return nil
	}
	if r.Handle == "" {
		r.Handle = f.run.Handle // read before the handle was written
	}
	if f.run.Status != r.Status {
		f.since = time.Now()
	}
	was := f.run.Status
	f.run = r
	f.start()
	switch {
	case r.Status == dagster.Canceling, was == dagster.Canceling && r.Status == dagster.Canceled: // it may have had its longest time
		return l.check(ctx, r.ID)
	case r.Status.Finished():
		l.forget(r.ID)
	}
	return nil
}

// unlaunched ends a run that was canceled just when its worker had died and was to be replaced: whoever canceled it took it for one that runs, and there is nothing
// to stop.
func (l *Loop) unlaunched(ctx context.Context, r storage.Run) error {
	if r.Status != dagster.Canceling {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	out, err := l.Store.Move(ctx, l.Fence, storage.Transition{
		Run: r.ID, From: []dagster.Status{dagster.Canceling}, Launch: r.Launch.Token,
		Events: []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceled, time.Now(), "The run was canceled: its worker had ended, and no other one was launched.")},
	})
	if err == nil && out.Done {
		l.Log.InfoContext(ctx, "run status written", "run_id", r.ID, "job", r.Job, "was", r.Status, "status", out.Status, "why", "it was canceled while it had no worker")
	}
	return err
}

// forget drops a run unless it is to be looked at again.
func (l *Loop) forget(run string) {
	for _, a := range l.again {
		if a.run == run {
			return
		}
	}
	if f := l.flights[run]; f != nil && f.run.Status == dagster.Canceled && !f.health.Status.Ended() {
		if f.over.IsZero() {
			f.over = time.Now()
		}
		return
	}
	delete(l.flights, run)
}

// reported takes in what a target says.
func (l *Loop) reported(ctx context.Context, rep report) error {
	f := l.flights[rep.id.Run]
	if f == nil || f.run.Launch.Attempt != rep.id.Attempt {
		return nil
	}
	was := f.health.Status
	if was != rep.health.Status && (rep.health.Status == launcher.NotFound || vague(rep.health) && f.times.Silence > 0) { // what is written from now on counts
		n, err := l.wrote(ctx, rep.id.Run)
		if err != nil {
			return err // the net asks again
		}
		f.events, f.heard = n, time.Now()
	}
	f.answered = time.Now()
	switch rep.health.Status {
	case launcher.Unknown:
		l.held(f.run.Launch.Launcher, "unknown")
	case launcher.NotFound:
		l.held(f.run.Launch.Launcher, "not_found")
	}
	if was != rep.health.Status || f.health.Phase != rep.health.Phase {
		if l.Phase != nil && was != "" {
			l.Phase(f.run.Launch.Launcher, phaseOf(f.health), f.answered.Sub(f.since))
		}
		f.since = f.answered
	}
	f.health, f.debug = rep.health, rep.debug
	if l.PhasesAfter == 0 {
		if err := l.tell(ctx, f); err != nil {
			return err
		}
	}
	if f.lingers(f.answered) && rep.health.Status != launcher.Unknown {
		if rep.health.Status.Alive() {
			l.terminate(f, f.times.Grace)
		}
		delete(l.flights, rep.id.Run)
		return nil
	}
	if rep.health.Status.Ended() || f.run.Status == dagster.Canceling {
		if was != rep.health.Status && rep.health.Status.Ended() {
			l.Log.InfoContext(ctx, "worker ended", "run_id", rep.id.Run, "launcher", f.run.Launch.Launcher, "status", rep.health.Status, "message", rep.health.Message)
		}
		return l.check(ctx, rep.id.Run)
	}
	return nil
}

func (l *Loop) held(launcher, answer string) {
	if l.Held != nil {
		l.Held(launcher, answer)
	}
}

// phaseOf names what a worker is in.
func phaseOf(h launcher.Health) string {
	if h.Phase != "" && h.Status == launcher.Starting {
		return string(h.Phase)
	}
	return string(h.Status)
}

// phases are those of a worker that is not running yet of which a run's log tells.
var phases = map[launcher.Phase]string{
	launcher.Accepted:  "The run worker waits for a place on its target", // if the target says why
	launcher.Scheduled: "The run worker has a place on its target", launcher.Pulling: "The image of the run worker is being pulled",
	launcher.Pulled: "The image of the run worker has been pulled", launcher.PhaseStarted: "The run worker has been started",
}

// tell writes how far a worker has come into its run's log, once for each phase.
func (l *Loop) tell(ctx context.Context, f *flight) error {
	text := phases[f.health.Phase]
	if text == "" || f.told == f.health.Phase || f.health.Status != launcher.Starting || f.health.Phase == launcher.Accepted && f.health.Message == "" {
		return nil
	}
	f.told = f.health.Phase
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	meta := []dagster.Metadata{{Label: "Phase", Text: string(f.health.Phase)}}
	if f.health.Message != "" {
		meta = append(meta, dagster.Metadata{Label: "The target says", Text: f.health.Message})
	}
	_, err := l.Store.Move(ctx, l.Fence, storage.Transition{
		Run: f.run.ID, From: []dagster.Status{dagster.Starting}, Launch: f.run.Launch.Token,
		Events: []dagster.Event{dagster.NewEngineEvent(f.run.Run, time.Now(), "[Slipway] "+text+".", meta, nil)},
	})
	return err
}

// ask has the target's health of a worker reported.
func (l *Loop) ask(f *flight) {
	select {
	case l.asks[f.run.Launch.Launcher] <- f.key():
	default: // the target is slow; the net comes again
	}
}

// check reads a run and its events, decides and acts.
func (l *Loop) check(ctx context.Context, id string) error {
	f := l.flights[id]
	if f == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	runs, err := l.Store.Runs(ctx, storage.Filter{IDs: []string{id}})
	if err != nil {
		return err
	}
	if len(runs) == 0 { // deleted
		return l.changed(ctx, storage.Run{Run: dagster.Run{ID: id}})
	}
	r := runs[0]
	if r.Launch == nil || r.Launch.Token != f.run.Launch.Token {
		return l.changed(ctx, r)
	}
	events, err := l.Store.Events(ctx, id, dagster.StatusEventTypes()...)
	if err != nil {
		return err
	}
	r.Handle = f.run.Handle
	if f.run.Status != r.Status && r.Status == dagster.Canceling {
		f.since = time.Now()
	}
	f.run = r
	f.start()
	r = f.run
	w := f.seen(time.Now())
	w.Policy = l.Policy
	if w.mute(f.health) {
		n, err := l.wrote(ctx, id)
		if err != nil {
			return err
		}
		if n != f.events {
			f.events, f.heard = n, w.Now
		}
		w.Heard = f.heard
	}
	a := Decide(r, f.health, events, w)
	if a.Do == Nothing && r.Status.Finished() {
		l.forget(id)
	}
	return l.act(ctx, f, a)
}

// wrote is how many events a run has that are not ours.
func (l *Loop) wrote(ctx context.Context, run string) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	events, err := l.Store.Events(ctx, run)
	for _, e := range events {
		if e.Type != dagster.EngineEvent || !strings.HasPrefix(e.Message, "[Slipway] ") {
			n++
		}
	}
	return n, err
}

// act carries out a decision.
func (l *Loop) act(ctx context.Context, f *flight, a Action) error {
	r, now := f.run, time.Now()
	t := storage.Transition{Run: r.ID, From: []dagster.Status{r.Status}, Launch: r.Launch.Token}
	switch a.Do {
	case Nothing:
		return nil
	case Terminate:
		f.asked = now
		l.terminate(f, f.times.Grace)
		if a.Note == "" {
			return nil
		}
		t.Events = []dagster.Event{dagster.NewEngineEvent(r.Run, now, a.Note, nil, nil)}
	case Kill:
		f.killed = now
		l.terminate(f, 0)
		return nil
	case Expire:
		t.Events = []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceling, now, a.Message)}
	case Assert:
		t.Stands = a.Event
		if r.Status == dagster.Failure {
			t.Events = []dagster.Event{dagster.NewEngineEvent(r.Run, now, "[Slipway] The run worker finished after all: its own last event stands.", nil, nil)}
		}
	case Cancel:
		t.Events = append(l.epitaph(f, a, now), dagster.NewEvent(r.Run, dagster.RunCanceled, now.Add(time.Microsecond), a.Message))
	case Again, Resume:
		return l.replace(ctx, f, a, t, now)
	case Fail:
		last := dagster.NewEvent(r.Run, dagster.RunFailure, now.Add(time.Microsecond), a.Message)
		if a.Reason != "" {
			last = dagster.NewRunFailure(r.Run, now.Add(time.Microsecond), a.Message, a.Reason, nil)
			t.Tags = map[string]string{dagster.FailureReasonTag: string(a.Reason), storage.CauseTag: string(causeOf(f.health, a.Reason))}
		}
		t.Events = append(l.epitaph(f, a, now), last)
	}
	failpoint.Here(failpoint.FinishBefore)
	out, err := l.Store.Move(ctx, l.Fence, t)
	if err != nil {
		if !errors.Is(err, storage.ErrFenced) {
			l.later(r.ID, looksAgain[:1])
		}
		return err
	}
	failpoint.Here(failpoint.FinishCommitted)
	if !out.Done { // somebody was faster
		l.later(r.ID, looksAgain[:1])
		return nil
	}
	if out.Status != "" && out.Status != f.run.Status {
		f.run.Status, f.since = out.Status, time.Now()
	}
	l.Log.InfoContext(ctx, "run status written", "run_id", r.ID, "job", r.Job, "was", r.Status, "status", out.Status, "why", string(a.Do), "message", a.Message)
	failpoint.Here(failpoint.FinishDone)
	if a.Do == Fail && f.health.Status == launcher.Failed && l.Died != nil {
		l.Died(r, causeOf(f.health, a.Reason))
	}
	switch a.Do {
	case Expire:
		return l.check(ctx, r.ID) // and asks the worker to stop
	case Terminate:
		return nil
	}
	l.later(r.ID, looksAgain)
	return nil
}

// Texts of dagster._daemon.monitoring.run_monitoring and dagster._core.instance, 1.13: the second one is counted by Dagster.
const (
	detected = "Detected run worker status %s: '%s'. Resuming run %s with a new worker."
	resuming = "Launching a new run worker to resume run"
)

// replace gives the run of a dead worker another one: from the queue, where it begins anew, or at once, to go on where the dead one ended.
func (l *Loop) replace(ctx context.Context, f *flight, a Action, t storage.Transition, now time.Time) error {
	r, cause := f.run, a.Cause
	t.Death = &storage.Death{Attempt: r.Launch.Attempt, Launcher: r.Launch.Launcher, Cause: string(cause), Then: string(a.Then)}
	t.Tags = map[string]string{storage.CauseTag: string(cause)}
	t.Events = l.epitaph(f, a, now)
	say := func(format string, args ...any) {
		at := now.Add(time.Duration(len(t.Events)) * time.Microsecond)
		t.Events = append(t.Events, dagster.NewEngineEvent(r.Run, at, fmt.Sprintf(format, args...), nil, nil))
	}
	if a.Do == Resume {
		say(detected, "FAILED", why(f.health), r.ID)
		say(resuming)
		t.Next = &storage.Next{Launcher: r.Launch.Launcher, Token: uuid.NewString(), Epoch: l.Fence.Epoch, At: now.UTC().Truncate(time.Microsecond)}
	} else {
		t.Void = true
		where := "the same launcher"
		if a.Then == ThenNext {
			where = "the next launcher of its route"
		}
		say("[Slipway] The run goes back to the queue for a new run worker on %s (monitoring.deaths: %s: %s).", where, cause, a.Then)
		t.Events = append(t.Events, dagster.NewRunEnqueued(r.Run, now.Add(time.Duration(len(t.Events))*time.Microsecond)))
	}
	failpoint.Here(failpoint.ReplaceBefore)
	out, err := l.Store.Move(ctx, l.Fence, t)
	if err != nil || !out.Done {
		if !errors.Is(err, storage.ErrFenced) {
			l.later(r.ID, looksAgain[:1])
		}
		return err
	}
	failpoint.Here(failpoint.ReplaceCommitted)
	l.Log.InfoContext(ctx, "a dead worker is replaced", "run_id", r.ID, "job", r.Job, "launcher", r.Launch.Launcher, "attempt", r.Launch.Attempt, "cause", cause, "then", a.Then, "message", a.Message)
	if l.Died != nil {
		l.Died(r, cause)
	}
	delete(l.flights, r.ID)
	if a.Do == Resume {
		r.Status, r.Handle, r.Launch = out.Status, "", &out.Launch
		r.Deaths = append(slices.Clone(r.Deaths), *t.Death)
		l.Relaunch(r)
	}
	return nil
}

// epitaph is the engine event that says how a worker died, with the last lines it wrote, or that nobody knows.
func (l *Loop) epitaph(f *flight, a Action, now time.Time) []dagster.Event {
	if a.Note != "" {
		return []dagster.Event{dagster.NewEngineEvent(f.run.Run, now, a.Note, []dagster.Metadata{{Label: "Worker", Text: f.run.Handle}, {Label: "The target says", Text: string(f.health.Status) + " " + f.health.Message}}, nil)}
	}
	if a.Do == Cancel || !f.health.Status.Ended() {
		return nil
	}
	meta := []dagster.Metadata{{Label: "Worker", Text: f.run.Handle}}
	if f.health.Cause != "" {
		meta = append(meta, dagster.Metadata{Label: "Cause", Text: string(f.health.Cause)})
	}
	if len(f.health.Tail) > 0 {
		text := ""
		for _, line := range f.health.Tail {
			text += line + "\n"
		}
		meta = append(meta, dagster.Metadata{Label: "Last lines of the worker", Text: text})
	}
	if f.debug != "" {
		meta = append(meta, dagster.Metadata{Label: "Debug info", Text: f.debug})
	}
	return []dagster.Event{dagster.NewEngineEvent(f.run.Run, now, "[Slipway] The run worker ended: "+why(f.health)+".", meta, nil)}
}

// later has a run looked at again after each of some times.
func (l *Loop) later(run string, after []time.Duration) {
	now := time.Now()
	for _, d := range after {
		at := now.Add(d)
		i := 0
		for i < len(l.again) && l.again[i].at.Before(at) {
			i++
		}
		l.again = append(l.again[:i], append([]look{{run, at}}, l.again[i:]...)...)
	}
}

// terminate asks a worker to stop, without waiting for the target.
func (l *Loop) terminate(f *flight, grace time.Duration) {
	t, handle, run := l.Targets[f.run.Launch.Launcher], launcher.Handle(f.run.Handle), f.run.ID
	l.calls.Go(func() {
		// A stopping daemon still stops the worker: the calls have deadlines of their own.
		ctx := context.Background()
		was, err := backoff.Retry(ctx, func() (bool, error) {
			return dispatch.Call(ctx, t, func(ctx context.Context) (bool, error) { return t.Launcher.Terminate(ctx, handle, grace) })
		}, backoff.WithMaxTries(terminateTries))
		if err != nil {
			l.Log.ErrorContext(ctx, "a worker could not be asked to stop, though its run is to end", "run_id", run, "launcher", t.Name, "err", err)
			return
		}
		l.Log.InfoContext(ctx, "worker asked to stop, for its run is to end", "run_id", run, "launcher", t.Name, "grace", grace, "running", was)
	})
}

// watch passes on what a target tells by itself.
func (l *Loop) watch(ctx context.Context, t *dispatch.Target) {
	w, ok := launcher.As[launcher.Watcher](t.Launcher)
	for ok && ctx.Err() == nil {
		for worker, err := range w.Watch(ctx) {
			if err != nil {
				l.Log.WarnContext(ctx, "watching the workers stopped; starting again", "launcher", t.Name, "err", err)
				break
			}
			if !worker.Synced && worker.Instance == l.Instance {
				l.report(ctx, t, worker.Handle, report{id: worker.ID, health: worker.Health})
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchRetry):
		}
	}
}

// answer asks a target for the health of single workers.
func (l *Loop) answer(ctx context.Context, t *dispatch.Target, ask <-chan flightKey) {
	for {
		select {
		case <-ctx.Done():
			return
		case key := <-ask:
			h, err := dispatch.Call(ctx, t, func(ctx context.Context) (launcher.Health, error) { return t.Launcher.Health(ctx, key.handle) })
			if err != nil {
				l.held(t.Name, "error")
				l.Log.WarnContext(ctx, "a worker's health is not known; its run is left as it is", "run_id", key.id.Run, "launcher", t.Name, "err", err)
				continue
			}
			l.report(ctx, t, key.handle, report{id: key.id, health: h})
		}
	}
}

// maxDebug is how much of a target's debug info stands in a run's log.
const maxDebug = 16 << 10

// report passes on what a target says of a worker; of a dead one, with the target's debug info.
func (l *Loop) report(ctx context.Context, t *dispatch.Target, handle launcher.Handle, r report) {
	if d, ok := launcher.As[launcher.Describer](t.Launcher); ok && r.health.Status == launcher.Failed {
		text, err := dispatch.Call(ctx, t, func(ctx context.Context) (json.RawMessage, error) { return d.Describe(ctx, handle, false) })
		if err == nil && len(text) <= maxDebug {
			r.debug = string(text)
		}
	}
	select {
	case l.reports <- r:
	case <-ctx.Done():
	}
}
