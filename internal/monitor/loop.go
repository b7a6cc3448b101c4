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

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

const (
	// netInterval is how often every worker in flight is asked about, whatever the target told by
	// itself.
	netInterval = 30 * time.Second
	// watchRetry is the wait after a target's watch ended.
	watchRetry = time.Second
	// tick is how often times are looked at that runs may take.
	tick = time.Second
	// writeTimeout bounds a question to the storage. One whose answer is lost holds up all runs,
	// and a daemon that lost its lead.
	writeTimeout = 10 * time.Second
	// looseAfter is how long a run may have a launch row but neither a handle row nor a flight. A
	// launch that is under way takes less; after that the dispatcher is asked whether it has the
	// run in hand.
	looseAfter = 5 * time.Second
	// lastCalls is how long calls that stop workers may still take when the monitor ends.
	lastCalls = 2 * time.Second
)

// looksAgain is when a run that we finished is looked at again: a worker's last write may have come
// after ours.
var looksAgain = []time.Duration{2 * time.Second, 30 * time.Second}

// store is what the monitor asks of the storage.
type store interface {
	Move(ctx context.Context, f storage.Fence, t storage.Transition) (storage.Outcome, error)
	Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error)
	Events(ctx context.Context, run string, types ...dagster.EventType) ([]dagster.Event, error)
	EventsAfter(ctx context.Context, run string, after int64) ([]dagster.Event, int64, error)
}

// Loop watches the workers of runs in flight. Its fields are set before Run.
type Loop struct {
	Store    store
	Fence    storage.Fence
	Instance string
	Targets  map[string]*dispatch.Target
	Inbox    *storage.Inbox // changed runs
	// Launched has runs whose handle was written, and runs without a handle that the dispatcher
	// leaves to the monitor. It is not the Inbox, so that older news of a run cannot take their
	// place.
	Launched *storage.Inbox
	// Seen is the health of workers that targets reported just before Run. Targets are not asked
	// again at once about these workers. Nil: nothing is known.
	Seen map[launcher.ID]launcher.Health
	// Times returns the time limits of a run on its launcher.
	Times  func(r dagster.Run, launcher string) Times
	Policy *Policy
	// Relaunch launches the worker of a further attempt that was just written.
	Relaunch func(r storage.Run)
	// TakeUp gets runs that have a launch row of ours but no handle, again and again until they
	// have one or end. The dispatcher continues the launches that are not under way.
	TakeUp func(r storage.Run)
	// Find looks for the worker of a run without a handle. If the target has it, its handle is
	// written and the run comes by Launched. The health is NotFound if the target has none, and
	// Unknown if the target cannot say.
	Find func(ctx context.Context, r storage.Run) (launcher.Health, error)
	// Clock is the database's clock. It measures how long a run has lasted across a change of
	// leaders.
	Clock func() time.Time
	// Died is called for each worker whose death was proved and written. It must not block.
	Died func(r storage.Run, cause launcher.Cause)
	// Held is called for each answer that proves nothing, so that the run is left alone: unknown,
	// not_found or error. It may be nil.
	Held func(launcher, answer string)
	// Phase is called with the time that a worker was in a phase. It may be nil.
	Phase func(launcher, phase string, took time.Duration)
	// PhasesAfter is how long a worker must be in a phase before its run's log shows the phase; 0:
	// each phase is shown at once.
	PhasesAfter time.Duration
	Log         *slog.Logger

	flights map[string]*flight
	loose   map[string]loose // by run
	reports chan report
	stopped chan stopped
	asks    map[string]chan question
	again   []look
	calls   sync.WaitGroup
	calling context.Context // of the calls that stop workers; it ends a moment after Run's
}

// loose is a run with a launch row that has neither a handle nor a flight.
type loose struct {
	run   storage.Run
	since time.Time // when it was first seen so, or given to TakeUp; monotonic
}

// flight is a run of ours whose worker is watched: one with a handle, or one whose worker is still
// looked for. All times are our own and monotonic.
type flight struct {
	run      storage.Run
	times    Times
	health   launcher.Health
	since    time.Time      // when its phase began
	began    time.Time      // when the run started; zero: not yet
	canceled time.Time      // when the run was seen to be canceling; zero: it is not
	again    time.Time      // its timeouts are not looked at before
	answered time.Time      // when its target last answered
	newest   int64          // storage id of the run's newest event that was seen
	heard    time.Time      // when a new event of the run was last seen; only looked up where it matters
	debug    string         // what the target says of a dead worker for people
	told     launcher.Phase // the last one that the run's log has
	over     time.Time      // when the run was seen to be canceled while its worker had not been seen to end
	stop     stop
}

// stop is how far the stopping of a worker has come. A stop that the target did not answer is asked
// for again.
type stop struct {
	asked, killed time.Time // when the target took the stop, and the kill; zero: not yet
	calling       bool      // a call is on its way
	retry         time.Time // no call before this
	wait          *backoff.ExponentialBackOff
	noted, failed bool // the run's log has why the worker is stopped, and that the target did not answer
	leave         bool // no run needs the worker: the flight ends once the stop is taken
}

// start notes when a run was seen to have started or to be canceling, which is when the times that
// these may take begin.
func (f *flight) start() {
	if f.began.IsZero() && f.run.Status == dagster.Started {
		f.began = time.Now()
	}
	if !f.began.IsZero() {
		f.run.Start = f.began
	}
	switch {
	case f.run.Status != dagster.Canceling:
		f.canceled = time.Time{}
	case f.canceled.IsZero():
		f.canceled = time.Now()
	}
}

// linger is how long a worker may continue after its run is canceled, possibly by force. Dagster's
// worker takes some seconds to end.
const linger = 15 * time.Second

// lingers reports whether the worker of a canceled run has had its time to end.
func (f *flight) lingers(now time.Time) bool { return !f.over.IsZero() && now.Sub(f.over) >= linger }

// seen is what was seen of a flight so far.
func (f *flight) seen(now time.Time) Watch {
	return Watch{Now: now, Since: f.since, Canceling: f.canceled, Answered: f.answered, Heard: f.heard,
		Asked: f.stop.asked, Killed: f.stop.killed, Times: f.times}
}

// dueAgain is how long a run whose time is over is left alone between two looks at it.
const dueAgain = 5 * time.Second

// due reports whether a time limit of a run may have passed. A look at its events decides.
func (f *flight) due(now time.Time) bool {
	if now.Before(f.again) {
		return false
	}
	w := f.seen(now)
	due := f.run.Status == dagster.Canceling && w.over(f.canceled, w.Times.Cancel) ||
		w.inconclusiveTooLong(f.health)
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

// question asks a target about a worker.
type question struct {
	key flightKey // without a handle the worker is looked for
	run storage.Run
}

// stopped is the outcome of a call that stops a worker.
type stopped struct {
	id   launcher.ID
	kill bool
	err  error
}

// report is what a target says of a worker.
type report struct {
	id     launcher.ID
	health launcher.Health
	debug  string

	elsewhere bool // the worker is on another host, as health.Message says
}

// look is a later look at a run.
type look struct {
	run string
	at  time.Time
}

// Run monitors until ctx ends or the lead is lost ([storage.ErrFenced]).
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	l.flights, l.loose, l.asks = map[string]*flight{}, map[string]loose{}, map[string]chan question{}
	l.reports, l.stopped = make(chan report, 256), make(chan stopped, 256)
	var endCalls context.CancelFunc
	l.calling, endCalls = context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	for name, t := range l.Targets {
		ask := make(chan question, 1024)
		l.asks[name] = ask
		wg.Go(func() { l.watch(ctx, t) })
		wg.Go(func() { l.answer(ctx, t, ask) })
	}
	defer wg.Wait()
	defer func() { // a daemon that stops still stops workers, but a target that hangs does not keep it from standing by
		cancel()
		late := time.AfterFunc(lastCalls, endCalls)
		l.calls.Wait()
		late.Stop()
		endCalls()
	}()
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
		case s := <-l.stopped:
			err = l.answeredStop(ctx, s)
		case <-again:
			run := l.again[0].run
			l.again = l.again[1:]
			err = l.check(ctx, run)
		case now := <-times.C:
			var errs []error
			l.takeUp(now)
			for id, f := range l.flights {
				if quiet := latest(f.since, f.heard); f.health.Status == launcher.NotFound &&
					f.answered.Sub(quiet) < f.times.Settle && now.Sub(quiet) >= f.times.Settle {
					l.ask(f) // its absence counts only if it has held
				}
				if f.stop.leave {
					l.terminate(f, false)
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
			l.Log.WarnContext(ctx, "cannot watch a run in flight; retrying", "err", err)
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

// launched is called with a run whose handle was written, in the status that it had then. A state
// of the run that was read earlier had no handle, and does not come again.
func (l *Loop) launched(ctx context.Context, r storage.Run) error {
	f := l.flights[r.ID]
	if f == nil || f.run.Launch.Token != r.Launch.Token {
		return l.begin(ctx, r)
	}
	if f.run.Handle == "" && r.Handle != "" { // its worker was found
		f.run.Handle, f.since = r.Handle, time.Now()
		l.ask(f)
	}
	return nil
}

// begin watches the worker of a run from now on.
func (l *Loop) begin(ctx context.Context, r storage.Run) error {
	delete(l.loose, r.ID)
	f := &flight{run: r, times: l.Times(r.Run, r.Launch.Launcher), since: time.Now(), newest: -1}
	if f.start(); !f.began.IsZero() && !r.Began.IsZero() { // before this daemon saw it
		f.began = f.began.Add(-max(0, l.Clock().Sub(r.Began)))
		f.run.Start = f.began
	}
	if r.Status == dagster.Canceled { // by force, while its worker was being launched
		f.over = f.since
	}
	l.flights[r.ID] = f
	if err := l.noteStart(ctx, f); err != nil {
		return err
	}
	if h, ok := l.Seen[f.key().id]; ok && r.Handle != "" {
		delete(l.Seen, f.key().id)
		return l.reported(ctx, report{id: f.key().id, health: h})
	}
	l.ask(f) // it may have ended before we knew of it
	return nil
}

// noteStart writes when a run with a longest time was seen to have started, by the database's
// clock: for the leaders to come.
func (l *Loop) noteStart(ctx context.Context, f *flight) error {
	if f.run.Status != dagster.Started || f.times.MaxRuntime == 0 || !f.run.Began.IsZero() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	at := l.Clock().UTC().Truncate(time.Microsecond)
	_, err := l.Store.Move(ctx, l.Fence, storage.Transition{Run: f.run.ID, Launch: f.run.Launch.Token, Began: at})
	if err == nil {
		f.run.Began = at
	}
	return err
}

// takeUp passes on the runs that have waited for their handle for so long that their launch may not
// be under way.
func (l *Loop) takeUp(now time.Time) {
	for id, w := range l.loose {
		if now.Sub(w.since) >= looseAfter {
			l.loose[id] = loose{w.run, now}
			l.TakeUp(w.run)
		}
	}
}

// changed is called with a run's new state.
func (l *Loop) changed(ctx context.Context, r storage.Run) error {
	f := l.flights[r.ID]
	if f != nil && r.QueuedBefore(*f.run.Launch) {
		return nil // read before it was claimed
	}
	if f != nil && r.Status == "" { // deleted: its worker is not needed
		l.Log.InfoContext(ctx, "a run in flight was deleted", "run_id", r.ID, "launcher", f.run.Launch.Launcher)
		f.stop.leave = true
		l.terminate(f, false)
		return nil
	}
	waits, isLoose := l.loose[r.ID]
	delete(l.loose, r.ID)
	if r.Broken != nil || r.Launch == nil || r.Launch.Instance != l.Instance || l.asks[r.Launch.Launcher] == nil {
		delete(l.flights, r.ID)
		return nil
	}
	if r.Launch.State == storage.Void {
		delete(l.flights, r.ID)
		return l.unlaunched(ctx, r)
	}
	if f == nil || f.run.Launch.Token != r.Launch.Token {
		delete(l.flights, r.ID) // of an earlier attempt
		switch {
		case r.Handle == "" && r.Status.Active():
			if !isLoose || waits.run.Launch.Token != r.Launch.Token {
				waits.since = time.Now()
			}
			l.loose[r.ID] = loose{r, waits.since}
		case r.Handle != "" && (r.Status.Active() || r.Status == dagster.Canceled):
			return l.begin(ctx, r)
		}
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
	if err := l.noteStart(ctx, f); err != nil {
		return err
	}
	switch {
	// it may have had its longest time
	case r.Status == dagster.Canceling, was == dagster.Canceling && r.Status == dagster.Canceled:
		return l.check(ctx, r.ID)
	case r.Status.Finished():
		l.forget(r.ID)
	}
	return nil
}

// unlaunched ends a run that was canceled just when its worker had died and was to be replaced. The
// user canceled it because it still seemed to run; there is nothing to stop.
func (l *Loop) unlaunched(ctx context.Context, r storage.Run) error {
	if r.Status != dagster.Canceling {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	out, err := l.Store.Move(ctx, l.Fence, storage.Transition{
		Run: r.ID, From: []dagster.Status{dagster.Canceling}, Launch: r.Launch.Token,
		Events: []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceled, time.Now(),
			"The run was canceled: its worker had ended, and no other one was launched.")},
	})
	if err == nil && out.Done {
		l.Log.InfoContext(ctx, "run status written", "run_id", r.ID, "job", r.Job, "was", r.Status,
			"status", out.Status, "why", "it was canceled while it had no worker")
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

// reported is called with a target's report on a worker.
func (l *Loop) reported(ctx context.Context, rep report) error {
	f := l.flights[rep.id.Run]
	if f == nil || f.run.Launch.Attempt != rep.id.Attempt {
		return nil
	}
	was := f.health.Status
	// what is written from now on counts
	if was != rep.health.Status && (rep.health.Status == launcher.NotFound || inconclusive(rep.health) &&
		f.times.Silence > 0) {
		if err := l.hear(ctx, f); err != nil {
			return err // the net asks again
		}
		f.heard = time.Now()
	}
	f.answered = time.Now()
	switch rep.health.Status {
	case launcher.Unknown:
		l.held(f.run.Launch.Launcher, "unknown")
	case launcher.NotFound:
		l.held(f.run.Launch.Launcher, "not_found")
	}
	if rep.elsewhere && was != rep.health.Status {
		l.Log.WarnContext(ctx, "a worker cannot be seen from this host; its run is left alone", "run_id", rep.id.Run,
			"launcher", f.run.Launch.Launcher, "why", rep.health.Message)
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
		if f.stop.leave = true; rep.health.Status.Alive() {
			l.terminate(f, false)
			return nil
		}
		delete(l.flights, rep.id.Run)
		return nil
	}
	if rep.health.Status.Ended() || f.run.Status == dagster.Canceling {
		if was != rep.health.Status && rep.health.Status.Ended() {
			l.Log.InfoContext(ctx, "worker ended", "run_id", rep.id.Run, "launcher", f.run.Launch.Launcher,
				"status", rep.health.Status, "message", rep.health.Message)
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
	launcher.Accepted:     "The run worker waits for a place on its target", // if the target says why
	launcher.Scheduled:    "The run worker has a place on its target",
	launcher.Pulling:      "The image of the run worker is being pulled",
	launcher.Pulled:       "The image of the run worker has been pulled",
	launcher.PhaseStarted: "The run worker has been started",
}

// tell writes how far a worker has come into its run's log, once for each phase.
func (l *Loop) tell(ctx context.Context, f *flight) error {
	text := phases[f.health.Phase]
	if text == "" || f.told == f.health.Phase || f.health.Status != launcher.Starting ||
		f.health.Phase == launcher.Accepted && f.health.Message == "" {
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
	case l.asks[f.run.Launch.Launcher] <- question{f.key(), f.run}:
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
	if w.inconclusiveTooLong(f.health) {
		if err := l.hear(ctx, f); err != nil {
			return err
		}
		w.Heard = f.heard
	}
	a := Decide(r, f.health, events, w)
	if a.Do == Nothing && r.Status.Finished() {
		l.forget(id)
	}
	return l.act(ctx, f, a)
}

// hear looks for events that another program than Slipway has written since the last look. It reads
// only the new events.
func (l *Loop) hear(ctx context.Context, f *flight) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	events, newest, err := l.Store.EventsAfter(ctx, f.run.ID, f.newest)
	if err != nil {
		return err
	}
	f.newest = newest
	for _, e := range events {
		if e.Type != dagster.EngineEvent || !strings.HasPrefix(e.Message, "[Slipway] ") {
			f.heard = time.Now()
		}
	}
	return nil
}

// act carries out a decision.
func (l *Loop) act(ctx context.Context, f *flight, a Action) error {
	r, now := f.run, time.Now()
	t := storage.Transition{Run: r.ID, From: []dagster.Status{r.Status}, Launch: r.Launch.Token}
	switch a.Do {
	case Nothing:
		return nil
	case Terminate, Kill: // written first: a leader that lost its lead stops no worker
		if f.stop.calling || now.Before(f.stop.retry) {
			return nil
		}
		if a.Note != "" && !f.stop.noted {
			t.Events = []dagster.Event{dagster.NewEngineEvent(r.Run, now, a.Note, nil, nil)}
		}
	case Expire:
		t.Events = []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceling, now, a.Message)}
	case Assert:
		t.Logged = a.Event
		if r.Status == dagster.Failure {
			t.Events = []dagster.Event{dagster.NewEngineEvent(r.Run, now,
				"[Slipway] The run worker finished after all: its own last event counts.", nil, nil)}
		}
	case Cancel:
		t.Events = append(l.epitaph(f, a, now),
			dagster.NewEvent(r.Run, dagster.RunCanceled, now.Add(time.Microsecond), a.Message))
	case Again, Resume:
		return l.replace(ctx, f, a, t, now)
	case Fail:
		last := dagster.NewEvent(r.Run, dagster.RunFailure, now.Add(time.Microsecond), a.Message)
		if a.Reason != "" {
			last = dagster.NewRunFailure(r.Run, now.Add(time.Microsecond), a.Message, a.Reason, nil)
			t.Tags = map[string]string{dagster.FailureReasonTag: string(a.Reason),
				storage.CauseTag: string(causeOf(f.health, a.Reason))}
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
	switch {
	case a.Do == Terminate && out.Done:
		f.stop.noted = true
		l.terminate(f, false)
		return nil
	case a.Do == Kill && out.Done:
		l.terminate(f, true)
		return nil
	}
	failpoint.Here(failpoint.FinishCommitted)
	if !out.Done { // the run has changed meanwhile
		l.later(r.ID, looksAgain[:1])
		return nil
	}
	if out.Status != "" && out.Status != f.run.Status {
		f.run.Status, f.since = out.Status, time.Now()
	}
	l.Log.InfoContext(ctx, "run status written", "run_id", r.ID, "job", r.Job, "was", r.Status, "status", out.Status,
		"why", string(a.Do), "message", a.Message)
	failpoint.Here(failpoint.FinishDone)
	if a.Do == Fail && f.health.Status == launcher.Failed && l.Died != nil {
		l.Died(r, causeOf(f.health, a.Reason))
	}
	if a.Do == Expire {
		return l.check(ctx, r.ID) // and asks the worker to stop
	}
	l.later(r.ID, looksAgain)
	return nil
}

// Texts of dagster._daemon.monitoring.run_monitoring and dagster._core.instance, 1.13: the second
// one is counted by Dagster.
const (
	detected = "Detected run worker status %s: '%s'. Resuming run %s with a new worker."
	resuming = "Launching a new run worker to resume run"
)

// replace gives the run of a dead worker another one: from the queue, where it begins anew, or at
// once, to go on where the dead one ended.
func (l *Loop) replace(ctx context.Context, f *flight, a Action, t storage.Transition, now time.Time) error {
	r, cause := f.run, a.Cause
	t.Death = &storage.Death{Attempt: r.Launch.Attempt, Launcher: r.Launch.Launcher, Cause: string(cause),
		Then: string(a.Then)}
	t.Tags = map[string]string{storage.CauseTag: string(cause)}
	t.Events = l.epitaph(f, a, now)
	say := func(format string, args ...any) {
		at := now.Add(time.Duration(len(t.Events)) * time.Microsecond)
		t.Events = append(t.Events, dagster.NewEngineEvent(r.Run, at, fmt.Sprintf(format, args...), nil, nil))
	}
	if a.Do == Resume {
		say(detected, "FAILED", why(f.health), r.ID)
		say(resuming)
		t.Next = &storage.Next{Launcher: r.Launch.Launcher, Token: l.Targets[r.Launch.Launcher].NextToken(*r.Launch),
			Epoch: l.Fence.Epoch, At: now.UTC().Truncate(time.Microsecond)}
	} else {
		t.Void = true
		where := "the same launcher"
		if a.Then == ThenNext {
			where = "the next launcher of its route"
		}
		say("[Slipway] The run goes back to the queue for a new run worker on %s (monitoring.deaths: %s: %s).", where,
			cause, a.Then)
		t.Events = append(t.Events, dagster.NewRunEnqueued(r.Run,
			now.Add(time.Duration(len(t.Events))*time.Microsecond)))
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
	l.Log.InfoContext(ctx, "a dead worker is replaced", "run_id", r.ID, "job", r.Job, "launcher", r.Launch.Launcher,
		"attempt", r.Launch.Attempt, "cause", cause, "then", a.Then, "message", a.Message)
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

// epitaph returns the engine event that says how a worker died, with its last lines, or that its
// end was not observed.
func (l *Loop) epitaph(f *flight, a Action, now time.Time) []dagster.Event {
	if a.Note != "" {
		return []dagster.Event{dagster.NewEngineEvent(f.run.Run, now, a.Note,
			[]dagster.Metadata{{Label: "Worker", Text: f.run.Handle},
				{Label: "The target says", Text: string(f.health.Status) + " " + f.health.Message}}, nil)}
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
	return []dagster.Event{dagster.NewEngineEvent(f.run.Run, now, "[Slipway] The run worker ended: "+why(f.health)+".",
		meta, nil)}
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

// terminate asks a worker to stop, without waiting for the target. The outcome comes by
// answeredStop.
func (l *Loop) terminate(f *flight, kill bool) {
	if f.stop.calling || time.Now().Before(f.stop.retry) {
		return
	}
	f.stop.calling = true
	t, key := l.Targets[f.run.Launch.Launcher], f.key()
	row, grace := *f.run.Launch, f.times.Grace
	if kill {
		grace = 0
	}
	l.calls.Go(func() {
		out, was, where := stopped{id: key.id, kill: kill}, false, ""
		if key.handle != "" { // else there is no worker to ask
			was, out.err = dispatch.Call(l.calling, t.Of(key.handle), func(ctx context.Context) (bool, error) {
				return t.Launcher.Terminate(ctx, key.handle, grace)
			})
			if errors.Is(out.err, launcher.ErrNotFound) {
				out.err = nil
			}
		}
		if out.err == nil && !was {
			where, out.err = t.Elsewhere(l.calling, row)
		}
		switch {
		case where != "":
			out.err = errors.New(where)
		case out.err != nil:
			l.Log.WarnContext(l.calling, "cannot ask a worker to stop; retrying", "run_id", key.id.Run,
				"launcher", t.Name, "err", out.err)
		case key.handle != "":
			l.Log.InfoContext(l.calling, "asked a worker to stop, because its run is to end", "run_id", key.id.Run,
				"launcher", t.Name, "grace", grace, "running", was)
		}
		select {
		case l.stopped <- out:
		case <-l.calling.Done():
		}
	})
}

// answeredStop is called with the outcome of a call that stops a worker.
func (l *Loop) answeredStop(ctx context.Context, s stopped) error {
	f := l.flights[s.id.Run]
	if f == nil || f.run.Launch.Attempt != s.id.Attempt {
		return nil
	}
	f.stop.calling = false
	if s.err != nil {
		if f.stop.wait == nil {
			f.stop.wait = backoff.NewExponentialBackOff()
			f.stop.wait.InitialInterval, f.stop.wait.MaxInterval = 500*time.Millisecond, 15*time.Second
		}
		f.stop.retry, f.again = time.Now().Add(f.stop.wait.NextBackOff()), time.Time{}
		return l.stopFailed(ctx, f, s.err)
	}
	f.stop.retry, f.stop.wait = time.Time{}, nil
	switch {
	case f.stop.leave:
		delete(l.flights, s.id.Run)
	case s.kill:
		f.stop.killed = time.Now()
	default:
		f.stop.asked = time.Now()
	}
	return nil
}

// stopFailed writes once into a run's log that its worker goes on because the target did not
// answer.
func (l *Loop) stopFailed(ctx context.Context, f *flight, why error) error {
	if f.stop.failed || f.stop.leave {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	_, err := l.Store.Move(ctx, l.Fence,
		storage.Transition{Run: f.run.ID, From: []dagster.Status{f.run.Status}, Launch: f.run.Launch.Token,
			Events: []dagster.Event{
				dagster.NewEngineEvent(f.run.Run, time.Now(),
					fmt.Sprintf("[Slipway] Launcher %q could not be asked to stop the run worker. It is asked again "+
						"until it answers.", f.run.Launch.Launcher), nil, why),
			}})
	f.stop.failed = err == nil
	return err
}

// watch passes on what a target tells by itself.
func (l *Loop) watch(ctx context.Context, t *dispatch.Target) {
	w, ok := launcher.As[launcher.Watcher](t.Launcher)
	for ok && ctx.Err() == nil {
		for worker, err := range w.Watch(ctx) {
			if err != nil {
				l.Log.WarnContext(ctx, "the watch of a target's workers ended; restarting it", "launcher", t.Name,
					"err", err)
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
func (l *Loop) answer(ctx context.Context, t *dispatch.Target, ask <-chan question) {
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-ask:
			key, where := q.key, ""
			var h launcher.Health
			var err error
			if key.handle == "" {
				h, err = l.Find(ctx, q.run)
			} else {
				h, err = dispatch.Call(ctx, t.Of(key.handle), func(ctx context.Context) (launcher.Health, error) {
					return t.Launcher.Health(ctx, key.handle)
				})
			}
			if err == nil && h.Status == launcher.NotFound {
				if where, err = t.Elsewhere(ctx, *q.run.Launch); where != "" {
					h = launcher.Health{Status: launcher.Unknown, Message: where}
				}
			}
			if err == nil && h.Status == "" { // found: its handle comes by Launched
				continue
			}
			if err != nil {
				l.held(t.Name, "error")
				l.Log.WarnContext(ctx, "a worker's health is not known; its run is left alone", "run_id", key.id.Run,
					"launcher", t.Name, "err", err)
				continue
			}
			l.report(ctx, t, key.handle, report{id: key.id, health: h, elsewhere: where != ""})
		}
	}
}

// maxDebug is how much of a target's debug info stands in a run's log.
const maxDebug = 16 << 10

// report passes on what a target says of a worker; of a dead one, with the target's debug info.
func (l *Loop) report(ctx context.Context, t *dispatch.Target, handle launcher.Handle, r report) {
	if d, ok := launcher.As[launcher.Describer](t.Launcher); ok && r.health.Status == launcher.Failed {
		text, err := dispatch.Call(ctx, t.Of(handle), func(ctx context.Context) (json.RawMessage, error) {
			return d.Describe(ctx, handle, false)
		})
		if err == nil && len(text) <= maxDebug {
			r.debug = string(text)
		}
	}
	select {
	case l.reports <- r:
	case <-ctx.Done():
	}
}
