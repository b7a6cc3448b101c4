package monitor

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/dispatch"
	"github.com/slipway-run/slipway/failpoint"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/storage"
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
	// Times are those of one run on its launcher.
	Times func(r dagster.Run, launcher string) Times
	Log   *slog.Logger

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
	since         time.Time // it is in its phase
	asked, killed time.Time // to stop; zero: not yet
	again         time.Time // before this it is not looked at again for the time that it takes
}

// seen is what was seen of a flight so far.
func (f *flight) seen(now time.Time) Watch {
	return Watch{Now: now, Since: f.since, Asked: f.asked, Killed: f.killed, Times: f.times}
}

// dueAgain is how long a run whose time is over is left alone between two looks at it.
const dueAgain = 5 * time.Second

// due says whether a run may have taken as long as it may. A look at its events decides.
func (f *flight) due(now time.Time) bool {
	if now.Before(f.again) {
		return false
	}
	w := f.seen(now)
	due := f.run.Status == dagster.Canceling && w.over(f.since, w.Times.Cancel)
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
			err = l.take(ctx, l.Launched)
		case <-l.Inbox.Wake():
			err = l.take(ctx, l.Inbox)
		case rep := <-l.reports:
			err = l.reported(ctx, rep)
		case <-again:
			run := l.again[0].run
			l.again = l.again[1:]
			err = l.check(ctx, run)
		case now := <-times.C:
			var errs []error
			for id, f := range l.flights {
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

func (l *Loop) take(ctx context.Context, inbox *storage.Inbox) error {
	var errs []error
	for _, r := range inbox.Take() {
		errs = append(errs, l.changed(ctx, r))
	}
	return errors.Join(errs...)
}

// changed takes in a run's new state.
func (l *Loop) changed(ctx context.Context, r storage.Run) error {
	f := l.flights[r.ID]
	if f != nil && r.Status == dagster.Queued && r.Updated.Before(f.run.Launch.At) {
		return nil // read before it was claimed
	}
	if r.Broken != nil || r.Launch == nil || r.Launch.Instance != l.Instance || l.asks[r.Launch.Launcher] == nil {
		delete(l.flights, r.ID)
		return nil
	}
	if f == nil || f.run.Launch.Token != r.Launch.Token {
		if r.Handle == "" || !r.Status.Active() {
			return nil
		}
		f = &flight{run: r, times: l.Times(r.Run, r.Launch.Launcher), since: time.Now()}
		l.flights[r.ID] = f
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
	switch {
	case r.Status == dagster.Canceling, was == dagster.Canceling && r.Status == dagster.Canceled: // it may have had its longest time
		return l.check(ctx, r.ID)
	case r.Status.Finished():
		l.forget(r.ID)
	}
	return nil
}

// forget drops a run unless it is to be looked at again.
func (l *Loop) forget(run string) {
	for _, a := range l.again {
		if a.run == run {
			return
		}
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
	if was != rep.health.Status || f.health.Phase != rep.health.Phase {
		f.since = time.Now()
	}
	if s := rep.health.Started; rep.health.Status == launcher.Running && !s.IsZero() && f.run.Status == dagster.Starting {
		f.since = s // also for a daemon that was started since
	}
	f.health = rep.health
	if rep.health.Status.Ended() || f.run.Status == dagster.Canceling {
		if was != rep.health.Status && rep.health.Status.Ended() {
			l.Log.InfoContext(ctx, "worker ended", "run_id", rep.id.Run, "launcher", f.run.Launch.Launcher, "status", rep.health.Status, "message", rep.health.Message)
		}
		return l.check(ctx, rep.id.Run)
	}
	return nil
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
		delete(l.flights, id)
		return nil
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
	f.run = r
	a := Decide(r, f.health, events, f.seen(time.Now()))
	if a.Do == Nothing && r.Status.Finished() {
		l.forget(id)
	}
	return l.act(ctx, f, a)
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
	case Fail:
		last := dagster.NewEvent(r.Run, dagster.RunFailure, now.Add(time.Microsecond), a.Message)
		if a.Reason != "" {
			last = dagster.NewRunFailure(r.Run, now.Add(time.Microsecond), a.Message, a.Reason, nil)
			t.Tags = map[string]string{dagster.FailureReasonTag: string(a.Reason)}
		}
		t.Events = append(l.epitaph(f, a, now), last)
	}
	failpoint.Here("finish.before")
	out, err := l.Store.Move(ctx, l.Fence, t)
	if err != nil {
		if !errors.Is(err, storage.ErrFenced) {
			l.later(r.ID, looksAgain[:1])
		}
		return err
	}
	failpoint.Here("finish.committed")
	if !out.Done { // somebody was faster
		l.later(r.ID, looksAgain[:1])
		return nil
	}
	if out.Status != "" && out.Status != f.run.Status {
		f.run.Status, f.since = out.Status, time.Now()
	}
	l.Log.InfoContext(ctx, "run status written", "run_id", r.ID, "job", r.Job, "was", r.Status, "status", out.Status, "why", string(a.Do), "message", a.Message)
	failpoint.Here("finish.done")
	switch a.Do {
	case Expire:
		return l.check(ctx, r.ID) // and asks the worker to stop
	case Terminate:
		return nil
	}
	l.later(r.ID, looksAgain)
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
				l.report(ctx, report{worker.ID, worker.Health})
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
				l.Log.WarnContext(ctx, "a worker's health is not known; its run is left as it is", "run_id", key.id.Run, "launcher", t.Name, "err", err)
				continue
			}
			l.report(ctx, report{key.id, h})
		}
	}
}

func (l *Loop) report(ctx context.Context, r report) {
	select {
	case l.reports <- r:
	case <-ctx.Done():
	}
}
