// Package dispatch is the one place where a claimed run becomes a worker.
//
// A claimed run has a launch row, which says that there may be a worker of that run and attempt. Dispatch asks the
// launcher for it by name until the outcome is known, and then writes the handle row: the fact
// "launched". A process that dies in between leaves a launch row without a handle row, and the next leader
// goes on with the same name on the same target.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

// store is what dispatch asks of the storage.
type store interface {
	Move(ctx context.Context, f storage.Fence, t storage.Transition) (storage.Outcome, error)
	Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error)
}

// Dispatcher launches the workers of claimed runs. Its fields are set before Run.
type Dispatcher struct {
	Store   store
	Fence   storage.Fence
	Builder *worker.Builder
	Targets map[string]*Target
	// Requeued is told of runs that go back to the queue, and when to try this launcher for them again: before it is written, with the
	// run's ID alone, and when it is. It must not block for long.
	Requeued func(r storage.Run, launcher string, until time.Time)
	// Launched is told of every run whose handle is written, and of runs in flight, without a handle, whose worker was not found
	// although the target cannot prove that there is none: somebody must go on looking ([Dispatcher.Find]).
	Launched func(r storage.Run)
	// Grace is how long Run finishes what it has after its context ended.
	Grace time.Duration
	// Memory is how much a worker gets whose request has base, after those that died; nil: base.
	Memory func(base int64, deaths []storage.Death) int64
	// Done is told of the outcome of each claim: launched, failed or requeued; nil: nobody.
	Done func(launcher, outcome string, took time.Duration)
	// Full is told of each launch for which a target had no room, and again while it has none; nil: nobody. It must not block.
	Full func(launcher string)
	// RateLimited is told of each launch that a target refused for its rate; nil: nobody.
	RateLimited func(launcher string)
	// DeniedTimeout is how long a run waits for a target that refuses us; then it fails.
	DeniedTimeout time.Duration
	Log           *slog.Logger

	jobs  map[string]chan job // by target
	again map[string]chan job // by target: those whose pause is over
	freed chan struct{}
	lost  context.CancelCauseFunc

	mu   sync.Mutex
	hand map[string]bool // launch tokens of the jobs that are under way
}

// DefaultDeniedTimeout is a sensible [Dispatcher.DeniedTimeout].
const DefaultDeniedTimeout = 10 * time.Minute

// job is one run that needs a worker.
type job struct {
	run   storage.Run
	begun bool // an earlier leader left its launch row without a handle row: it may have a worker
	at    time.Time
	asked time.Time // of the last Launch whose outcome is not known; zero: there is none
	wait  *backoff.ExponentialBackOff
	told  map[string]bool // texts of what the launcher said while it prepared
}

func newJob(r storage.Run, begun bool) job {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 15*time.Second
	j := job{run: r, begun: begun, at: time.Now(), wait: wait, told: map[string]bool{}}
	if begun {
		j.asked = j.at // at the latest
	}
	return j
}

// Freed is ready when a launcher may have room again.
func (d *Dispatcher) Freed() <-chan struct{} { return d.freed }

// Init makes the dispatcher ready for Launch and Run. Of the runs in flight it takes up those whose launch row an earlier
// leader left without a handle row.
func (d *Dispatcher) Init(ctx context.Context, inFlight []storage.Run) {
	d.freed, d.jobs, d.again, d.hand = make(chan struct{}, 1), map[string]chan job{}, map[string]chan job{}, map[string]bool{}
	begun := map[string][]storage.Run{}
	for _, r := range inFlight {
		if d.ours(r) && r.Handle == "" {
			begun[r.Launch.Launcher] = append(begun[r.Launch.Launcher], r)
		}
	}
	for name := range d.Targets {
		d.jobs[name], d.again[name] = make(chan job, 2*launches+len(begun[name])), make(chan job)
		for _, r := range begun[name] {
			d.Log.InfoContext(ctx, "taking up a launch that was begun", "run_id", r.ID, "launcher", name, "attempt", r.Launch.Attempt, "status", r.Status)
			d.take(r)
			d.jobs[name] <- newJob(r, true)
		}
	}
}

// take reports whether the launch of a run is not under way yet, and notes that it is from now on.
func (d *Dispatcher) take(r storage.Run) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hand[r.Launch.Token] {
		return false
	}
	d.hand[r.Launch.Token] = true
	return true
}

// drop notes that the launch of a run is no longer under way.
func (d *Dispatcher) drop(r storage.Run) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.hand, r.Launch.Token)
}

// TakeUp goes on with the launch of a run that has a launch row and no handle row, if it is not under way. It returns at once,
// and ends with ctx.
func (d *Dispatcher) TakeUp(ctx context.Context, r storage.Run) {
	if r.Handle != "" || !d.ours(r) || !d.take(r) {
		return
	}
	t := d.Targets[r.Launch.Launcher]
	go func() { // ends with ctx
		now, err := d.current(ctx, r)
		if err != nil || now == nil || now.Handle != "" { // what was read before may be old; who asks asks again
			d.drop(r)
			return
		}
		d.Log.WarnContext(ctx, "taking up a launch that nobody goes on with", "run_id", r.ID, "launcher", t.Name, "attempt", r.Launch.Attempt, "status", now.Status)
		d.pause(ctx, t, newJob(*now, true), 0)
	}()
}

// Find looks for the worker of a run in flight without a handle. If the target has it, its handle is written and Launched is
// told; the health is zero then. Else it is NotFound, or Unknown where the target cannot say.
func (d *Dispatcher) Find(ctx context.Context, r storage.Run) (launcher.Health, error) {
	t := d.Targets[r.Launch.Launcher]
	got, found, err := d.look(ctx, t, r, true)
	switch {
	case err != nil:
		return launcher.Health{}, err
	case found:
		d.launched(ctx, t, r, got)
		return launcher.Health{}, nil
	case !t.finds():
		return launcher.Health{Status: launcher.Unknown, Message: "it is not known whether the worker was started, and the target cannot be asked for workers by name"}, nil
	}
	return launcher.Health{Status: launcher.NotFound, Message: "the target has no worker of this run's name"}, nil
}

// Room is how many more launches a target takes now, and whether it is sick, so that others may take its runs.
func (d *Dispatcher) Room(name string) (room int, sick bool) {
	t := d.Targets[name]
	if t == nil || t.Sick() {
		return 0, true
	}
	if !t.budget.open(time.Now()) {
		return 0, false
	}
	return t.room.free(max(0, 2*launches-len(d.jobs[name]))), false
}

// Launch takes over a claimed run. It returns at once while there is [Dispatcher.Room].
func (d *Dispatcher) Launch(r storage.Run) {
	d.Targets[r.Launch.Launcher].room.take()
	if !d.take(r) {
		return
	}
	d.jobs[r.Launch.Launcher] <- newJob(r, false)
}

// Relaunch launches the worker of a further attempt at a run in flight. It returns at once, and ends with ctx.
func (d *Dispatcher) Relaunch(ctx context.Context, r storage.Run) {
	if d.take(r) {
		go d.pause(ctx, d.Targets[r.Launch.Launcher], newJob(r, false), 0)
	}
}

// Run launches until ctx ends, and then for at most Grace what it was given. It returns [storage.ErrFenced] if the lead is lost.
func (d *Dispatcher) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	d.lost = cancel
	var wg sync.WaitGroup
	for _, t := range d.Targets {
		for range launches {
			wg.Go(func() { d.work(ctx, work, t) })
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }() // ends below
	select {
	case <-work.Done():
	case <-ctx.Done():
		select {
		case <-done:
		case <-work.Done():
		case <-time.After(d.Grace):
		}
	}
	err := context.Cause(work)
	cancel(nil)
	<-done
	if errors.Is(err, storage.ErrFenced) {
		return err
	}
	return nil
}

// work takes jobs until ctx has ended and none is left.
func (d *Dispatcher) work(ctx, work context.Context, t *Target) {
	for {
		select {
		case j := <-d.jobs[t.Name]:
			d.launch(work, t, j)
			select {
			case d.freed <- struct{}{}:
			default:
			}
		case j := <-d.again[t.Name]:
			d.launch(work, t, j)
		case <-work.Done():
			return
		case <-ctx.Done():
			select {
			case j := <-d.jobs[t.Name]:
				d.launch(work, t, j)
			default:
				return
			}
		}
	}
}

// ours says whether a run was claimed by this instance, has a launch row that may have a worker, and a launcher we have.
func (d *Dispatcher) ours(r storage.Run) bool {
	if r.Broken != nil || r.Launch == nil || r.Launch.State == storage.Void || r.Launch.Instance != d.Builder.Instance || !r.Status.Active() {
		return false
	}
	if d.Targets[r.Launch.Launcher] == nil {
		d.Log.Warn("a run was launched by a launcher that slipway.yaml no longer has; it is left alone", "run_id", r.ID, "launcher", r.Launch.Launcher)
		return false
	}
	return true
}

// launch asks for the worker of one job. That ends with a handle row, a failed run, a run back in the queue, or a pause after which
// the job comes again; it holds nobody up meanwhile. What is pausing when ctx ends, the next leader goes on with.
func (d *Dispatcher) launch(ctx context.Context, t *Target, j job) {
	r, again := j.run, false
	defer func() {
		if !again {
			d.drop(r)
		}
	}()
	pauseFor := func(wait time.Duration) {
		again = true
		go d.pause(ctx, t, j, wait)
	}
	log := d.Log.With("run_id", r.ID, "launcher", t.Name, "attempt", r.Launch.Attempt)
	if where := t.Elsewhere(*r.Launch); where != "" {
		log.WarnContext(ctx, "a launch that was begun is left as it is", "why", where)
		d.Launched(r)
		return
	}
	// What may have a worker already is looked for first; what is past its start, or was canceled, is only looked for.
	resumes := r.Status == dagster.Started && r.Resumes()
	past := r.Status != dagster.Starting && !resumes
	none := !j.begun && j.asked.IsZero() // no call was made whose outcome is not known: there is no worker
	settles := t.Traits.Settle > 0
	got, found, err := d.look(ctx, t, r, j.begun || past || settles && !j.asked.IsZero())
	if err == nil && !found {
		if left := t.Traits.Settle - time.Since(j.asked); settles && !j.asked.IsZero() && left > 0 {
			pauseFor(min(left, j.wait.NextBackOff()))
			return
		}
		if past {
			d.abandon(ctx, t, r, none)
			return
		}
		got, err = d.ask(ctx, t, r)
		if unclear(err) {
			j.asked = time.Now()
		}
	}
	switch {
	case err == nil:
		log.InfoContext(ctx, "worker launched", "handle", got.Handle, "dur", time.Since(j.at))
		d.done(t.Name, "launched", time.Since(j.at))
		d.launched(ctx, t, r, got)
		return
	case errors.Is(err, launcher.ErrInvalid):
		d.done(t.Name, "failed", time.Since(j.at))
		if !d.fail(ctx, r, err) {
			pauseFor(0) // it was canceled meanwhile
		}
		return
	case errors.Is(err, launcher.ErrCapacity) && !resumes: // which waits where it is
		d.done(t.Name, "requeued", time.Since(j.at))
		d.watchRoom(ctx, t)
		if d.Full != nil {
			d.Full(t.Name)
		}
		if !d.requeue(ctx, r, err) {
			pauseFor(0) // likewise
		}
		return
	case errors.Is(err, launcher.ErrDenied) && time.Since(j.at) > d.DeniedTimeout:
		d.done(t.Name, "failed", time.Since(j.at))
		if !d.fail(ctx, r, err) {
			pauseFor(0)
		}
		return
	}
	var pause time.Duration
	if errors.Is(err, launcher.ErrPending) {
		d.prepare(ctx, j, err)
	} else {
		pause = j.wait.NextBackOff()
		log.WarnContext(ctx, "launch failed; asking again for the same worker", "err", err, "wait", pause)
	}
	if after, ok := launcher.RetryAfter(err); ok {
		pause = max(pause, after)
	}
	pauseFor(pause)
}

func (d *Dispatcher) done(launcher, outcome string, took time.Duration) {
	if d.Done != nil {
		d.Done(launcher, outcome, took)
	}
}

// unclear says whether after an error of Launch there may be a worker.
func unclear(err error) bool {
	for _, known := range []error{nil, launcher.ErrInvalid, launcher.ErrCapacity, launcher.ErrDenied, launcher.ErrPending} {
		if errors.Is(err, known) {
			return false
		}
	}
	return true
}

// pause gives a job back to the workers after a time, if its run still waits for the same launch. It ends with ctx.
func (d *Dispatcher) pause(ctx context.Context, t *Target, j job, pause time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(pause):
	}
	now, err := d.current(ctx, j.run)
	if err == nil && now == nil {
		d.drop(j.run)
		return
	}
	if err == nil { // else the storage is away as well: go on with what is known
		j.run = *now
	}
	select {
	case <-ctx.Done():
	case d.again[t.Name] <- j:
	}
}

// prepare writes what a launcher says while it prepares, each text once.
func (d *Dispatcher) prepare(ctx context.Context, j job, err error) {
	var fresh []launcher.Note
	for _, n := range launcher.Notes(err) {
		if !j.told[n.Text] {
			fresh = append(fresh, n)
		}
		j.told[n.Text] = true
	}
	if len(fresh) > 0 {
		d.Log.InfoContext(ctx, "launch waits for the target", "run_id", j.run.ID, "launcher", j.run.Launch.Launcher, "state", fresh[len(fresh)-1].Text)
		d.move(ctx, storage.Transition{Run: j.run.ID, Launch: j.run.Launch.Token, Events: noted(j.run.Run, time.Now(), fresh)})
	}
}

// noted are the engine events of notes.
func noted(r dagster.Run, now time.Time, notes []launcher.Note) []dagster.Event {
	var events []dagster.Event
	for _, n := range notes {
		var meta []dagster.Metadata
		for _, m := range n.Metadata {
			meta = append(meta, dagster.Metadata{Label: m[0], Text: m[1]})
		}
		events = append(events, dagster.NewEngineEvent(r, now, n.Text, meta, nil))
	}
	return events
}

// abandon ends a run that was canceled before it had a worker. That is proved if no call was made that may have made one, or by a
// target whose answer is the truth about a moment ago. Every other run in flight is left to those who watch workers.
func (d *Dispatcher) abandon(ctx context.Context, t *Target, r storage.Run, none bool) {
	if !r.Status.Active() {
		return
	}
	if r.Status != dagster.Canceling || !none && !t.Traits.StrongRead && t.Traits.Settle == 0 {
		d.Launched(r)
		return
	}
	d.move(ctx, storage.Transition{
		Run: r.ID, From: []dagster.Status{dagster.Canceling}, Launch: r.Launch.Token, Void: true,
		Events: []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceled, time.Now(), "The run was canceled before its worker was started.")},
	})
}

// current reads the run as it is now; nil if its launch row is no longer the one we work on.
func (d *Dispatcher) current(ctx context.Context, r storage.Run) (*storage.Run, error) {
	runs, err := d.Store.Runs(ctx, storage.Filter{IDs: []string{r.ID}})
	if err != nil || len(runs) == 0 || runs[0].Launch == nil || runs[0].Launch.Token != r.Launch.Token || runs[0].Launch.State == storage.Void {
		return nil, err
	}
	return &runs[0], nil
}

func (d *Dispatcher) request(t *Target, r storage.Run) (*launcher.Request, error) {
	a := worker.Attempt{Number: r.Launch.Attempt, Token: r.Launch.Token, At: r.Launch.At, Resume: r.Resumes()}
	if d.Memory != nil {
		a.Memory = func(base int64) int64 { return d.Memory(base, r.Deaths) }
	}
	return d.Builder.Request(r.Run, a, t.Target)
}

// ask asks the launcher for the worker.
func (d *Dispatcher) ask(ctx context.Context, t *Target, r storage.Run) (got launcher.Launched, err error) {
	req, err := d.request(t, r)
	if err != nil {
		return got, err
	}
	if err := t.budget.limit.Wait(ctx); err != nil {
		return got, errors.Join(launcher.ErrTransient, err)
	}
	failpoint.Here(failpoint.LaunchBefore)
	failpoint.Trace(failpoint.StepLaunch, r.ID, r.Launch.Attempt)
	got, err = Call(ctx, t, func(ctx context.Context) (launcher.Launched, error) { return t.Launcher.Launch(ctx, req) })
	failpoint.Here(failpoint.LaunchAfter)
	if err == nil {
		failpoint.Trace(failpoint.StepLaunched, r.ID, r.Launch.Attempt)
	}
	t.budget.learn(err, time.Now())
	if _, slow := throttled(err); slow && d.RateLimited != nil {
		d.RateLimited(t.Name)
	}
	return got, err
}

// finds reports whether a worker can be looked for by its name on the target.
func (t *Target) finds() bool {
	_, finder := launcher.As[launcher.Finder](t.Launcher)
	_, lister := launcher.As[launcher.Lister](t.Launcher)
	return finder || lister
}

// look finds the worker of a run on the target, if it is to be looked for and the launcher can.
func (d *Dispatcher) look(ctx context.Context, t *Target, r storage.Run, wanted bool) (got launcher.Launched, found bool, err error) {
	if !wanted {
		return got, false, nil
	}
	if finder, ok := launcher.As[launcher.Finder](t.Launcher); ok {
		req, err := d.request(t, r)
		if err != nil {
			return got, false, err
		}
		type answer struct {
			launched launcher.Launched
			found    bool
		}
		a, err := Call(ctx, t, func(ctx context.Context) (a answer, err error) {
			a.launched, a.found, err = finder.Find(ctx, req)
			return a, err
		})
		return a.launched, a.found, err
	}
	lister, ok := launcher.As[launcher.Lister](t.Launcher)
	if !ok {
		return got, false, nil
	}
	id := launcher.ID{Run: r.ID, Attempt: r.Launch.Attempt}
	workers, err := List(ctx, t, lister, launcher.Filter{Instance: d.Builder.Instance, Runs: []string{r.ID}})
	for _, w := range workers {
		if w.ID == id {
			got, found = launcher.Launched{Handle: w.Handle}, true
		}
	}
	return got, found, err
}

// moveTimeout bounds one write, which must be done although the daemon stops.
const moveTimeout = 30 * time.Second

// move writes a transition, again and again until the storage answers.
func (d *Dispatcher) move(ctx context.Context, tr storage.Transition) (storage.Outcome, bool) {
	out, err := backoff.Retry(ctx, func() (storage.Outcome, error) {
		ctx, cancel := context.WithTimeout(ctx, moveTimeout)
		defer cancel()
		out, err := d.Store.Move(ctx, d.Fence, tr)
		if errors.Is(err, storage.ErrFenced) {
			return out, backoff.Permanent(err)
		}
		return out, err
	}, backoff.WithMaxElapsedTime(0))
	if errors.Is(err, storage.ErrFenced) {
		d.lost(err)
	}
	if err != nil {
		d.Log.WarnContext(ctx, "a change of a run was not written", "run_id", tr.Run, "err", err)
	}
	return out, err == nil && out.Done
}

// launched writes the fact that the worker exists.
func (d *Dispatcher) launched(ctx context.Context, t *Target, r storage.Run, l launcher.Launched) {
	now := time.Now()
	events := []dagster.Event{dagster.NewEngineEvent(r.Run, now, fmt.Sprintf("[Slipway] Launched the run worker with launcher %q.", t.Name),
		[]dagster.Metadata{{Label: "Worker", Text: string(l.Handle)}, {Label: "Kind", Text: t.Kind.Name}, {Label: "Attempt", Text: fmt.Sprint(r.Launch.Attempt)}, {Label: "Route", Text: d.route(r)}}, nil)}
	events = append(events, noted(r.Run, now, l.Notes)...)
	out, ok := d.move(ctx, storage.Transition{Run: r.ID, Launch: r.Launch.Token, Handle: string(l.Handle), Events: events, Tags: l.Tags})
	if !ok {
		return
	}
	r.Handle, r.Status = string(l.Handle), out.Status // it may have begun, or be canceled, meanwhile
	d.Launched(r)
}

// route is why a run is on its launcher, in words.
func (d *Dispatcher) route(r storage.Run) string {
	if d.Builder.Router == nil {
		return "default"
	}
	decision := d.Builder.Router.Route(r.Run)
	return decision.Rule + ": " + decision.Reason
}

// Texts of dagster._daemon.run_coordinator.queued_run_coordinator_daemon, 1.13.
const unrecoverable = "Caught an unrecoverable error while dequeuing the run. Marking the run as failed and dropping it from the queue"

// fail ends a run that can never be launched, as Dagster's queue does. It reports whether that was written.
func (d *Dispatcher) fail(ctx context.Context, r storage.Run, cause error) bool {
	d.Log.WarnContext(ctx, "run cannot be launched and fails", "run_id", r.ID, "launcher", r.Launch.Launcher, "err", cause)
	now := time.Now()
	var meta []dagster.Metadata
	var tags map[string]string
	if c := launcher.CauseOf(cause); c != "" {
		meta, tags = []dagster.Metadata{{Label: "Cause", Text: string(c)}}, map[string]string{storage.CauseTag: string(c)}
	}
	from := []dagster.Status{dagster.Starting}
	if r.Resumes() {
		from = append(from, dagster.Started)
	}
	_, ok := d.move(ctx, storage.Transition{
		Run: r.ID, From: from, Launch: r.Launch.Token, Void: true, Tags: tags,
		Events: []dagster.Event{
			dagster.NewEngineEvent(r.Run, now, unrecoverable, meta, cause),
			dagster.NewEvent(r.Run, dagster.RunFailure, now.Add(time.Microsecond), dagster.MarkedFailed),
		},
	})
	return ok
}

const (
	firstPause = time.Second // before a run for which there was no room is tried again; doubled with each attempt
	maxPause   = time.Minute
)

// requeue puts a run for which there is no room back into the queue. It reports whether that was written.
func (d *Dispatcher) requeue(ctx context.Context, r storage.Run, cause error) bool {
	now := time.Now()
	pause := min(maxPause, firstPause<<min(r.Launch.Attempt-1, 10))
	if after, ok := launcher.RetryAfter(cause); ok {
		pause = max(pause, after)
	}
	name := r.Launch.Launcher
	d.Requeued(storage.Run{Run: dagster.Run{ID: r.ID}}, name, now.Add(pause)) // before the news of it can come
	out, ok := d.move(ctx, storage.Transition{
		Run: r.ID, From: []dagster.Status{dagster.Starting}, Launch: r.Launch.Token, Void: true,
		Events: []dagster.Event{
			dagster.NewEngineEvent(r.Run, now, fmt.Sprintf("[Slipway] Launcher %q has no room; the run waits in the queue: %v", r.Launch.Launcher, cause), nil, nil),
			dagster.NewRunEnqueued(r.Run, now.Add(time.Microsecond)),
		},
	})
	if !ok {
		return false
	}
	r.Status, r.Launch, r.Handle = out.Status, nil, ""
	d.Requeued(r, name, now.Add(pause))
	return true
}
