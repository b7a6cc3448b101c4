// Package dispatch is the one place where a claimed run becomes a worker.
//
// A claimed run has a launch row: there may be a worker of that run and attempt. Dispatch asks the
// launcher for that worker, by its name, until the outcome is known. Then it writes the handle row:
// the fact "launched". If the process dies in between, the launch row has no handle row, and the
// next leader continues the launch with the same name on the same target.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
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
	// Requeued is called twice for each run that returns to the queue: before the write (only the
	// run's ID is set) and after it. The time is when this launcher may be tried again for the run.
	// It must not block for long.
	Requeued func(r storage.Run, launcher string, until time.Time)
	// Launched is called for each run whose handle was written. It is also called for a run in
	// flight without a handle if its worker was not found, but the target cannot prove that there
	// is none: the caller must continue to look for it ([Dispatcher.Find]).
	Launched func(r storage.Run)
	// Grace is how long Run may take to finish its jobs after its context has ended.
	Grace time.Duration
	// Memory returns the memory of a worker whose request has base, after the deaths of earlier
	// workers. If nil, it is base.
	Memory func(base int64, deaths []storage.Death) int64
	// Done is called with the outcome of each claim: launched, failed or requeued. It may be nil.
	Done func(launcher, outcome string, took time.Duration)
	// Full is called for each launch for which a target had no room, and again while it has none.
	// It may be nil, and must not block.
	Full func(launcher string)
	// RateLimited is called for each launch that a target refused because of the rate of calls. It
	// may be nil.
	RateLimited func(launcher string)
	Log         *slog.Logger

	begun []job
	jobs  chan job
	pings chan *lane    // sick places to try
	waits chan waitNote // texts for the logs of queued runs
	over  chan struct{} // closed when no more jobs are taken
	freed chan struct{}
	lost  context.CancelCauseFunc

	mu    sync.Mutex
	lanes map[string]*lane // by name of the target
	hand  map[string]bool  // launch tokens of the jobs that are under way
}

// job is one run that needs a worker.
type job struct {
	run    storage.Run
	lane   *lane
	at     time.Time
	asked  time.Time // of the last Launch whose outcome is not known; zero: there is none
	failed int       // launches after which a look found no worker
	err    error     // of the last launch
	wait   *backoff.ExponentialBackOff
	told   map[string]bool // texts of what the launcher said while it prepared
}

// newJob makes the job of a run. begun: an earlier leader left a launch row without a handle row,
// so the run may have a worker.
func (d *Dispatcher) newJob(r storage.Run, begun bool) job {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, maxWait
	j := job{run: r, lane: d.laneOf(d.Targets[r.Launch.Launcher].For(r.Run)), at: time.Now(), wait: wait,
		told: map[string]bool{}}
	if begun {
		j.asked = j.at // at the latest
	}
	j.lane.open.Add(1)
	return j
}

// maxWait is the longest pause between two tries of a launch.
const maxWait = 15 * time.Second

// Freed is ready when a launcher may have room again.
func (d *Dispatcher) Freed() <-chan struct{} { return d.freed }

// Init makes the dispatcher ready for Launch and Run. Of the runs in flight it takes up those whose
// launch row an earlier leader left without a handle row.
func (d *Dispatcher) Init(ctx context.Context, inFlight []storage.Run) {
	d.freed, d.lanes, d.hand = make(chan struct{}, 1), map[string]*lane{}, map[string]bool{}
	d.jobs, d.pings, d.waits, d.over = make(chan job), make(chan *lane, 1), make(chan waitNote, 64), make(chan struct{})
	for _, r := range inFlight {
		if d.ours(r) && r.Handle == "" {
			d.Log.InfoContext(ctx, "continuing a launch that an earlier daemon began", "run_id", r.ID,
				"launcher", r.Launch.Launcher, "attempt", r.Launch.Attempt, "status", r.Status)
			d.take(r)
			d.begun = append(d.begun, d.newJob(r, true))
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

// TakeUp goes on with the launch of a run that has a launch row and no handle row, if it is not
// under way. It returns at once, and ends with ctx.
func (d *Dispatcher) TakeUp(ctx context.Context, r storage.Run) {
	if r.Handle != "" || !d.ours(r) || !d.take(r) {
		return
	}
	go func() { // ends with ctx
		now, err := d.current(ctx, r)
		if err != nil || now == nil || now.Handle != "" { // what was read before may be old; who asks asks again
			d.drop(r)
			return
		}
		d.Log.WarnContext(ctx, "continuing a launch that had stopped", "run_id", r.ID,
			"launcher", r.Launch.Launcher, "attempt", r.Launch.Attempt, "status", now.Status)
		d.add(d.newJob(*now, true))
	}()
}

// Find looks for the worker of a run in flight without a handle. If the target has it, its handle
// is written and Launched is told; the health is zero then. Else it is NotFound, or Unknown where
// the target cannot say.
func (d *Dispatcher) Find(ctx context.Context, r storage.Run) (launcher.Health, error) {
	t := d.Targets[r.Launch.Launcher].For(r.Run)
	got, found, err := d.look(ctx, t, r, true)
	switch {
	case err != nil:
		return launcher.Health{}, err
	case found:
		d.launched(ctx, t, r, got)
		return launcher.Health{}, nil
	case !t.looks():
		return launcher.Health{Status: launcher.Unknown,
			Message: "whether the worker was started is not known, and the target cannot look up workers by name"}, nil
	}
	return launcher.Health{Status: launcher.NotFound, Message: "the target has no worker of this run's name"}, nil
}

// Launch takes over a claimed run. It returns at once.
func (d *Dispatcher) Launch(r storage.Run) {
	if !d.take(r) {
		return
	}
	j := d.newJob(r, false)
	j.lane.target.room.take()
	d.add(j)
}

// Relaunch launches the worker of a further attempt at a run in flight. It returns at once.
func (d *Dispatcher) Relaunch(r storage.Run) {
	if d.take(r) {
		d.add(d.newJob(r, false))
	}
}

func (d *Dispatcher) add(j job) {
	select {
	case d.jobs <- j:
	case <-d.over: // the next leader takes it up
	}
}

// free says that a launcher may have room again.
func (d *Dispatcher) free() {
	select {
	case d.freed <- struct{}{}:
	default:
	}
}

// Run launches until ctx ends, and then for at most Grace what it was given. It returns
// [storage.ErrFenced] if the lead is lost.
func (d *Dispatcher) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	d.lost = cancel
	var wg sync.WaitGroup
	carry := func(j job) { wg.Go(func() { d.carry(ctx, work, j) }) }
	for _, j := range d.begun {
		carry(j)
	}
	wg.Go(func() { d.note(ctx) })
	for ctx.Err() == nil && work.Err() == nil {
		select {
		case j := <-d.jobs:
			carry(j)
		case l := <-d.pings:
			wg.Go(func() { d.ping(ctx, l) })
		case <-ctx.Done():
		case <-work.Done():
		}
	}
	close(d.over)
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }() // ends below
	select {
	case <-done:
	case <-work.Done():
	case <-time.After(d.Grace):
	}
	err := context.Cause(work)
	cancel(nil)
	<-done
	if errors.Is(err, storage.ErrFenced) {
		return err
	}
	return nil
}

// carry tries a job until it is decided. Jobs that pause when ctx ends are left to the next leader.
func (d *Dispatcher) carry(ctx, work context.Context, j job) {
	defer d.drop(j.run)
	l := j.lane
	for {
		select {
		case l.slots <- struct{}{}:
		case <-work.Done():
			return
		}
		again, pause := d.launch(work, l, &j)
		<-l.slots
		l.target.room.took(false)
		unmade := j.asked.IsZero() // the run certainly has no worker, and takes no room while the job pauses
		if !again || unmade {
			l.open.Add(-1)
		}
		d.free()
		if !again {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		case <-work.Done():
			return
		}
		if unmade {
			l.open.Add(1)
		}
		now, err := d.current(work, j.run)
		if err == nil && now == nil {
			l.open.Add(-1)
			return
		}
		if err == nil { // else the storage is away as well: go on with what is known
			j.run = *now
		}
	}
}

// ours reports whether a run was claimed by this instance, has a launch row that may have a worker,
// and was launched by one of our launchers.
func (d *Dispatcher) ours(r storage.Run) bool {
	if r.Broken != nil || r.Launch == nil || r.Launch.State == storage.Void ||
		r.Launch.Instance != d.Builder.Instance || !r.Status.Active() {
		return false
	}
	if d.Targets[r.Launch.Launcher] == nil {
		d.Log.Warn("a run is left alone because slipway.yaml no longer has its launcher", "run_id", r.ID,
			"launcher", r.Launch.Launcher)
		return false
	}
	return true
}

// launch tries a job once. It returns false when the job is decided: the handle row is written, the
// run has ended, or the run is back in the queue. Otherwise the job is tried again after pause.
func (d *Dispatcher) launch(ctx context.Context, l *lane, j *job) (again bool, pause time.Duration) {
	r, t := j.run, l.target
	log := d.Log.With("run_id", r.ID, "launcher", t.Name, "attempt", r.Launch.Attempt)
	// A run that may have a worker is looked for first. One that has begun, or was canceled, is
	// only looked for.
	resumes := r.Status == dagster.Started && r.Resumes()
	past := r.Status != dagster.Starting && !resumes
	if past && j.asked.IsZero() {
		d.unasked(ctx, r)
		return false, 0
	}
	got, found, err := d.look(ctx, t, r, !j.asked.IsZero())
	var where string
	if err == nil && !found {
		where, err = t.Elsewhere(ctx, *r.Launch)
	}
	switch {
	case where != "" && j.asked.IsZero() && !resumes: // the target has come to another host since the claim
		d.back(ctx, l, *j,
			"[Slipway] The run goes back to the queue, because no run worker has been requested yet: "+where,
			errors.New(where))
		return false, 0
	case where != "":
		log.WarnContext(ctx, "a launch that was begun is left alone", "why", where)
		d.Launched(r)
		return false, 0
	}
	if err == nil && !found {
		if left := t.Traits.LateStart - time.Since(j.asked); left > 0 && !j.asked.IsZero() {
			return true, min(left, j.wait.NextBackOff())
		}
		if past {
			d.abandon(ctx, t, r)
			return false, 0
		}
		if !j.asked.IsZero() && t.looks() { // the last Launch made no worker
			j.asked = time.Time{}
			if j.failed++; j.failed >= maxFailed && !resumes && j.err != nil {
				d.back(ctx, l, *j,
					fmt.Sprintf("[Slipway] The run goes back to the queue: %s started no worker in %d tries: %s", l,
						j.failed, words(j.err)), j.err)
				return false, 0
			}
		}
		if got, err = d.ask(ctx, t, r); unclear(err) {
			j.asked, j.err = time.Now(), err
		}
	}
	if err == nil {
		t.room.took(true)
		log.InfoContext(ctx, "worker launched", "handle", got.Handle, "dur", time.Since(j.at))
		d.done(t.Name, "launched", time.Since(j.at))
		l.forget(r.ID)
		d.launched(ctx, t, r, got)
		return false, 0
	}
	if ctx.Err() != nil {
		return false, 0 // the next leader goes on
	}
	// While the outcome of an earlier Launch is not known, a refusal does not prove that there is
	// no worker.
	switch sure := j.asked.IsZero(); {
	case errors.Is(err, launcher.ErrInvalid) && (sure || time.Since(j.asked) > landed):
		d.done(t.Name, "failed", time.Since(j.at))
		l.forget(r.ID)
		d.fail(ctx, r, err)
		return false, 0
	case !sure, resumes: // the run keeps its status and is asked for again
	case errors.Is(err, launcher.ErrCapacity):
		d.watchRoom(ctx, t, err)
		if d.Full != nil {
			d.Full(t.Name)
		}
		d.back(ctx, l, *j, l.noRoom(time.Now(), words(err)), err)
		return false, 0
	case errors.Is(err, launcher.ErrDenied):
		ill := t.Trouble()
		if !ill.Sick { // another call has been answered meanwhile
			ill = Trouble{Since: time.Now(), Err: words(err)}
		}
		d.back(ctx, l, *j, l.ill(ill), err)
		return false, 0
	}
	if errors.Is(err, launcher.ErrPending) {
		d.prepare(ctx, *j, launcher.Notes(err))
	} else {
		pause = j.wait.NextBackOff()
		log.WarnContext(ctx, "launch failed; asking again for the same worker", "err", words(err), "wait", pause)
		if time.Since(j.at) >= tellAfter && !j.told[""] {
			j.told[""] = true
			text := fmt.Sprintf(
				"[Slipway] The launch has not succeeded since %s, and %s is asked again for the same worker at least "+
					"every %s: %s", clock(j.at), l, maxWait, words(err))
			d.prepare(ctx, *j, []launcher.Note{{Text: text}})
		}
	}
	if after, ok := launcher.RetryAfter(err); ok {
		pause = max(pause, after)
	}
	return true, pause
}

func (d *Dispatcher) done(launcher, outcome string, took time.Duration) {
	if d.Done != nil {
		d.Done(launcher, outcome, took)
	}
}

const (
	// maxFailed is after how many launches that made no worker a run goes back to the queue.
	maxFailed = 5
	// landed is the longest time that a request is on its way. After it, ErrInvalid counts also
	// where the launcher cannot look for the worker of an earlier request.
	landed = time.Minute
)

// unclear reports whether there may be a worker after an error of Launch.
func unclear(err error) bool {
	for _, known := range []error{nil, launcher.ErrInvalid, launcher.ErrCapacity, launcher.ErrDenied,
		launcher.ErrPending} {
		if errors.Is(err, known) {
			return false
		}
	}
	return true
}

// known reports whether an error of Launch is one of the contract's kinds, or an error of the
// network.
func known(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || !unclear(err) || errors.Is(err, launcher.ErrTransient) || errors.Is(err, launcher.ErrNotFound) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// prepare writes what a launcher says while a run waits for it, each text once.
func (d *Dispatcher) prepare(ctx context.Context, j job, notes []launcher.Note) {
	var fresh []launcher.Note
	for _, n := range notes {
		if !j.told[n.Text] {
			fresh = append(fresh, n)
		}
		j.told[n.Text] = true
	}
	if len(fresh) > 0 {
		d.Log.InfoContext(ctx, "launch is waiting for the target", "run_id", j.run.ID,
			"launcher", j.run.Launch.Launcher, "state", fresh[len(fresh)-1].Text)
		d.move(ctx, storage.Transition{Run: j.run.ID, Launch: j.run.Launch.Token,
			Events: noted(j.run.Run, time.Now(), fresh)})
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

// abandon ends a run that was canceled before it had a worker. Only a target whose answer is the
// truth about a moment ago proves that. Every other run in flight is left to those who watch
// workers.
func (d *Dispatcher) abandon(ctx context.Context, t *Target, r storage.Run) {
	switch {
	case !r.Status.Active():
	case r.Status == dagster.Canceling && (t.Traits.StrongRead || t.Traits.LateStart > 0):
		d.unasked(ctx, r)
	default:
		d.Launched(r)
	}
}

// unasked ends a canceled run that certainly has no worker.
func (d *Dispatcher) unasked(ctx context.Context, r storage.Run) {
	d.move(ctx, storage.Transition{
		Run: r.ID, From: []dagster.Status{dagster.Canceling}, Launch: r.Launch.Token, Void: true,
		Events: []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceled, time.Now(),
			"The run was canceled before its worker was started.")},
	})
}

// current reads the run as it is now; nil if its launch row is no longer the one we work on.
func (d *Dispatcher) current(ctx context.Context, r storage.Run) (*storage.Run, error) {
	runs, err := d.Store.Runs(ctx, storage.Filter{IDs: []string{r.ID}})
	if err != nil || len(runs) == 0 || runs[0].Launch == nil || runs[0].Launch.Token != r.Launch.Token ||
		runs[0].Launch.State == storage.Void {
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
		return got, err // with ctx
	}
	failpoint.Here(failpoint.LaunchBefore)
	failpoint.Trace(failpoint.StepLaunch, r.ID, r.Launch.Attempt)
	got, err = Call(ctx, t, func(ctx context.Context) (launcher.Launched, error) {
		got, err := t.Launcher.Launch(ctx, req)
		if !known(err) {
			err = strange{err}
		}
		return got, err
	})
	failpoint.Here(failpoint.LaunchAfter)
	if _, skipped := errors.AsType[skipped](err); skipped || ctx.Err() != nil {
		return got, err
	}
	t.health.launched(err)
	if err == nil {
		failpoint.Trace(failpoint.StepLaunched, r.ID, r.Launch.Attempt)
	}
	t.budget.learn(err, time.Now())
	if _, slow := throttled(err); slow && d.RateLimited != nil {
		d.RateLimited(t.Name)
	}
	return got, err
}

// looks reports whether the launcher can look for a worker by its name.
func (t *Target) looks() bool {
	_, finds := launcher.As[launcher.Finder](t.Launcher)
	_, lists := launcher.As[launcher.Lister](t.Launcher)
	return finds || lists
}

// look finds the worker of a run on the target, if it is to be looked for and the launcher can.
func (d *Dispatcher) look(ctx context.Context, t *Target, r storage.Run,
	wanted bool) (got launcher.Launched, found bool, err error) {
	if !wanted {
		return got, false, nil
	}
	finder, finds := launcher.As[launcher.Finder](t.Launcher)
	lister, lists := launcher.As[launcher.Lister](t.Launcher)
	if finds {
		req, err := d.request(t, r)
		if err == nil {
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
		if !lists { // else the name is enough, also of a run that the settings of today refuse
			return got, false, err
		}
	}
	if !lists {
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
		d.Log.WarnContext(ctx, "cannot write a change of a run", "run_id", tr.Run, "err", err)
	}
	return out, err == nil && out.Done
}

// launched writes the fact that the worker exists.
func (d *Dispatcher) launched(ctx context.Context, t *Target, r storage.Run, l launcher.Launched) {
	now := time.Now()
	events := []dagster.Event{dagster.NewEngineEvent(r.Run, now,
		fmt.Sprintf("[Slipway] Launched the run worker with launcher %q.", t.Name),
		[]dagster.Metadata{{Label: "Worker", Text: string(l.Handle)}, {Label: "Kind", Text: t.Kind.Name},
			{Label: "Attempt", Text: fmt.Sprint(r.Launch.Attempt)}, {Label: "Route", Text: d.route(r)}}, nil)}
	notes := slices.Clone(l.Notes)
	for _, text := range r.IgnoredTags() {
		notes = append(notes, launcher.Note{Text: "[Slipway] " + text})
	}
	events = append(events, noted(r.Run, now, notes)...)
	out, ok := d.move(ctx, storage.Transition{Run: r.ID, Launch: r.Launch.Token, Handle: string(l.Handle),
		Events: events, Tags: storage.Put(r.Tags, l.Tags)})
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
const unrecoverable = "Caught an unrecoverable error while dequeuing the run. Marking the run as failed and dropping " +
	"it from the queue"

// fail ends a run that can never be launched, as Dagster's queue does.
func (d *Dispatcher) fail(ctx context.Context, r storage.Run, cause error) {
	d.Log.WarnContext(ctx, "run fails, because it cannot be launched", "run_id", r.ID, "launcher", r.Launch.Launcher,
		"err", cause)
	now := time.Now()
	var meta []dagster.Metadata
	var tags map[string]string
	if c := launcher.CauseOf(cause); c != "" {
		meta, tags = []dagster.Metadata{{Label: "Cause", Text: string(c)}},
			map[string]string{storage.CauseTag: string(c)}
	}
	from := []dagster.Status{dagster.Starting}
	if r.Resumes() {
		from = append(from, dagster.Started)
	}
	out, ok := d.move(ctx, storage.Transition{
		Run: r.ID, From: from, Launch: r.Launch.Token, Void: true, Tags: tags,
		Events: []dagster.Event{
			dagster.NewEngineEvent(r.Run, now, unrecoverable, meta, cause),
			dagster.NewEvent(r.Run, dagster.RunFailure, now.Add(time.Microsecond), dagster.MarkedFailed),
		},
	})
	if !ok && out.Status == dagster.Canceling { // meanwhile
		d.unasked(ctx, r)
	}
}

// back puts a run that certainly has no worker back into the queue. The run's log says why, once.
func (d *Dispatcher) back(ctx context.Context, l *lane, j job, text string, cause error) {
	r, now := j.run, time.Now()
	// Twice as long as the target itself, which is tried with another run first.
	pause := min(maxPause, firstPause<<min(r.Launch.Attempt, 10))
	if after, ok := launcher.RetryAfter(cause); ok {
		pause = max(pause, after)
	}
	var events []dagster.Event
	if l.tell(r.ID, errors.Is(cause, launcher.ErrDenied)) {
		events = append(events, dagster.NewEngineEvent(r.Run, now, text, nil, nil))
	}
	events = append(events, dagster.NewRunEnqueued(r.Run, now.Add(time.Microsecond)))
	name := r.Launch.Launcher
	d.done(name, "requeued", time.Since(j.at))
	d.Log.InfoContext(ctx, "a run goes back to the queue", "run_id", r.ID, "launcher", name, "target", l.target.Place,
		"attempt", r.Launch.Attempt, "err", words(cause), "wait", pause)
	d.Requeued(storage.Run{Run: dagster.Run{ID: r.ID}}, name, now.Add(pause)) // before the news of it can come
	out, ok := d.move(ctx, storage.Transition{Run: r.ID, From: []dagster.Status{dagster.Starting},
		Launch: r.Launch.Token, Void: true, Events: events})
	if !ok {
		if out.Status == dagster.Canceling { // meanwhile
			d.unasked(ctx, r)
		}
		return
	}
	r.Status, r.Launch, r.Handle = out.Status, nil, ""
	d.Requeued(r, name, now.Add(pause))
}
