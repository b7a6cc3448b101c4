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
	watchRetry     = time.Second
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
	Log      *slog.Logger

	flights map[string]*flight
	reports chan report
	asks    map[string]chan flightKey
	again   []look
	calls   sync.WaitGroup
}

// flight is a run of ours with a handle.
type flight struct {
	run     storage.Run
	health  launcher.Health
	stopped bool // Terminate was asked for
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
	net := time.NewTicker(netInterval)
	defer net.Stop()
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
		f = &flight{run: r}
		l.flights[r.ID] = f
		l.ask(f) // it may have ended before we knew of it
		return nil
	}
	if r.Handle == "" {
		r.Handle = f.run.Handle // read before the handle was written
	}
	f.run = r
	switch {
	case r.Status == dagster.Canceling:
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
	a := Decide(r, f.health, events)
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
		l.terminate(f)
		return nil
	case Assert:
		t.Stands = a.Event
		if r.Status == dagster.Failure {
			t.Events = []dagster.Event{dagster.NewEngineEvent(r.Run, now, "[Slipway] The run worker finished after all: its own last event stands.", nil, nil)}
		}
	case Cancel:
		t.Events = []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceled, now, a.Message)}
	case Fail:
		t.Events = append(l.epitaph(f, now), dagster.NewRunFailure(r.Run, now.Add(time.Microsecond), a.Message, dagster.UnexpectedTermination, nil))
		t.Tags = map[string]string{dagster.FailureReasonTag: string(dagster.UnexpectedTermination)}
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
	f.run.Status = out.Status
	l.Log.InfoContext(ctx, "run status written", "run_id", r.ID, "job", r.Job, "was", r.Status, "status", out.Status, "why", string(a.Do), "message", a.Message)
	l.later(r.ID, looksAgain)
	failpoint.Here("finish.done")
	return nil
}

// epitaph is the engine event that says how a worker died, with the last lines it wrote.
func (l *Loop) epitaph(f *flight, now time.Time) []dagster.Event {
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

// terminate asks a worker to stop, once per flight, without waiting for the target.
func (l *Loop) terminate(f *flight) {
	if f.stopped {
		return
	}
	f.stopped = true
	t, handle, run := l.Targets[f.run.Launch.Launcher], launcher.Handle(f.run.Handle), f.run.ID
	l.calls.Go(func() {
		// A stopping daemon still stops the worker: the calls have deadlines of their own.
		ctx := context.Background()
		was, err := backoff.Retry(ctx, func() (was bool, err error) {
			err = t.Call(ctx, func(ctx context.Context) (err error) {
				was, err = t.Launcher.Terminate(ctx, handle, t.Grace)
				return err
			})
			return was, err
		}, backoff.WithMaxTries(terminateTries))
		if err != nil {
			l.Log.ErrorContext(ctx, "a worker could not be asked to stop, though its run is canceled", "run_id", run, "launcher", t.Name, "err", err)
			return
		}
		l.Log.InfoContext(ctx, "worker asked to stop, for its run is canceled", "run_id", run, "launcher", t.Name, "running", was)
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
			var h launcher.Health
			err := t.Call(ctx, func(ctx context.Context) (err error) {
				h, err = t.Launcher.Health(ctx, key.handle)
				return err
			})
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
