package queue

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
)

// claimBatch is the most runs that one transaction claims.
const claimBatch = 50

// claimPause is how long runs that may go are collected for one claim while a launcher works off
// what it has.
const claimPause = 2 * time.Millisecond

// retryDelay is how long the loop waits after the storage failed.
const retryDelay = time.Second

// lockedRetry is how long a run is left alone if another program has locked its row. Each try may
// delay the other runs for as long as the storage waits for a lock.
const lockedRetry = 15 * time.Second

// poolRetry is how often the loop looks whether a full pool has places again, of which no run's
// status tells.
const poolRetry = 500 * time.Millisecond

// roomRetry is how often the loop looks whether a sick launcher has recovered. One that is only
// full says so itself.
const roomRetry = time.Second

// store is what the loop asks of the storage.
type store interface {
	storage.Pooler
	Claim(ctx context.Context, f storage.Fence, claims []storage.Claim) ([]storage.Outcome, error)
	Flush(ctx context.Context, f storage.Fence) error
}

// runLauncher launches the workers of claimed runs. Package dispatch provides it.
type runLauncher interface {
	// Target names the target of a run that goes to a launcher: the launcher, or one of the places
	// behind it, which can be sick or full by itself.
	Target(launcher string, r storage.Run) string
	// Room returns how many more runs the target may be given now, and whether it is sick, so that
	// a run's next launcher may get the run.
	Room(target string) (room int, sick bool)
	// Waits is called for runs that wait because a target has no room, until it returns true. It
	// does not block.
	Waits(r storage.Run, target string) bool
	// Token makes the token of a new launch.
	Token(launcher string) string
	// Launch takes over a claimed run and returns at once.
	Launch(r storage.Run)
}

// Loop launches queued runs as the limits allow. Its fields are set before Run.
type Loop struct {
	Store    store
	Fence    storage.Fence
	Instance string
	Limits   Limits
	// DefaultPool is the limit of pools that have none of their own; nil for none.
	DefaultPool *int
	// Only reports whether a queued run is ours; nil: all are. Every run in flight counts.
	Only     func(dagster.Run) bool
	Claims   map[string]string          // tags that a claim sets
	Route    func(storage.Run) []string // launchers of a run, the first choice first
	Launcher runLauncher
	Pauses   func() []Pause // that hold now; nil: none ever
	// reports whether nothing may be claimed, because another dequeuer may be at work; nil: never
	Held    func() bool
	Taken   func(storage.Run) // called for each waiting run that another program launched; may be nil
	Claimed func(storage.Run) // called for each claim; may be nil
	Waiting func(Waiting)     // called with what each pass leaves in the queue; may be nil
	Inbox   *storage.Inbox    // changed runs of all statuses
	Freed   <-chan struct{}   // ready when a launcher has room again
	// Questions are answered between decisions; see [Loop.Holds].
	Questions chan func()
	Log       *slog.Logger

	// claims whose outcome is not known: they are made again, as they were, before any other
	unclear     []pending
	locked      map[string]pending // claims that met a row that another client had locked, by run
	lockedUntil time.Time          // when those are made again
	index       *index
}

// Holds returns what holds back the queued runs, the most runs first, and at most 100 rules. It
// waits for the loop, which must run and have Questions, or for ctx.
func (l *Loop) Holds(ctx context.Context) ([]Hold, error) {
	var holds []Hold
	done := make(chan struct{})
	select {
	case l.Questions <- func() { holds = l.index.Holds(); close(done) }:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-done:
		return holds, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pending is a claim that was asked for, with the run as it was in the queue.
type pending struct {
	run   storage.Run
	claim storage.Claim
}

// Waiting is the queue after a pass.
type Waiting struct {
	Reasons  map[Reason]int
	Queued   int
	InFlight int
	Oldest   time.Time // creation of the oldest queued run
	Busy     []string  // the launchers that had no room for another run
}

// Requeued is a run that a launcher had no room for.
type Requeued struct {
	Run      storage.Run
	Launcher string
	Until    time.Time
}

// Run decides and claims until ctx ends or the lead is lost ([storage.ErrFenced]). What it claimed
// before it returns has been handed to the launcher.
func (l *Loop) Run(ctx context.Context, requeued <-chan Requeued) error {
	l.index = newIndex(l.Limits, l.stops)
	var wait time.Duration // until the next pass, if nothing happens
	for {
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.Inbox.Wake():
		case <-l.Freed: // others follow at once: one claim for all of them
			select {
			case <-ctx.Done():
			case <-time.After(claimPause):
			}
		case r := <-requeued:
			l.requeued(r)
		case ask := <-l.Questions:
			ask()
		case <-timer:
		}
		for len(requeued) > 0 { // what was said before the news below
			l.requeued(<-requeued)
		}
		for _, r := range l.Inbox.Take() {
			l.changed(r)
		}
		var err error
		if wait, err = l.pass(ctx); err != nil {
			return err
		}
	}
}

// requeued holds back a run that a launcher had no room for. It is called twice for each: before
// the write (only the run's ID is set) and after it.
func (l *Loop) requeued(r Requeued) {
	l.index.Hold(r.Run.ID, r.Launcher, r.Until, time.Now())
	if r.Run.Status != "" {
		l.apply(r.Run)
	}
}

// changed is called with a run that the feed has read.
func (l *Loop) changed(r storage.Run) {
	was, queued, known := l.index.Run(r.ID)
	unclear := slices.ContainsFunc(l.unclear, func(p pending) bool { return p.run.ID == r.ID })
	if r.Status == dagster.Queued && unclear || known && !queued && was.Launch != nil && r.QueuedBefore(*was.Launch) {
		return // read before our claim: taken at its word, it would free its place for another run
	}
	if queued && l.Taken != nil && launchedByOther(r) {
		l.Taken(r)
	}
	l.apply(r)
}

// launchedByOther reports whether a run that waited in the queue was launched without a claim of
// ours. A launch row that has ended proves nothing: on Postgres tags are read after the row, and
// ours may have gone back to the queue in between.
func launchedByOther(r storage.Run) bool {
	begun := r.Status == dagster.Starting || r.Status == dagster.Started || r.Status == dagster.Success
	return begun && r.Broken == nil && r.Launch == nil
}

// apply takes a run's new state into the loop's view.
func (l *Loop) apply(r storage.Run) {
	if r.Broken != nil {
		l.Log.Warn("a run cannot be read and is left alone", "run_id", r.ID, "err", r.Broken)
	}
	if r.Status == dagster.Queued && l.Only != nil && !l.Only(r.Run) {
		l.index.remove(r.ID)
		return
	}
	l.index.Put(r, time.Now())
}

// pass claims what may go now, and says when to look again without a cause; 0 is never.
func (l *Loop) pass(ctx context.Context) (time.Duration, error) {
	for {
		if len(l.unclear) == 0 && len(l.locked) > 0 && !time.Now().Before(l.lockedUntil) {
			l.unclear = slices.Collect(maps.Values(l.locked))
		}
		if len(l.unclear) > 0 {
			if err := l.claim(context.WithoutCancel(ctx), l.unclear); errors.Is(err, storage.ErrFenced) {
				return 0, err
			} else if err != nil {
				l.Log.WarnContext(ctx, "the outcome of a claim is not known; making the same claim again", "err", err,
					"runs", len(l.unclear))
				return retryDelay, nil
			}
		}
		pools, err := l.pools(ctx)
		if errors.Is(err, storage.ErrFenced) {
			return 0, err
		}
		if err != nil { // as Dagster does: pools that cannot be read hold back no run
			l.Log.WarnContext(ctx, "cannot read the pools; they hold back no run for now", "err", err)
		}
		picked, wait := l.pick(time.Now(), pools)
		if len(picked) == 0 {
			return wait, nil
		}
		err = l.claim(context.WithoutCancel(ctx), l.claims(picked))
		if errors.Is(err, storage.ErrFenced) {
			return 0, err
		}
		if err != nil {
			l.Log.WarnContext(ctx, "the answer to a claim was lost; making the same claim again", "err", err,
				"runs", len(l.unclear))
			continue
		}
		if ctx.Err() != nil {
			return 0, nil
		}
	}
}

// pools reads the pools that queued runs use, and gives those without a limit of their own the
// default one.
func (l *Loop) pools(ctx context.Context) (map[string]Pool, error) {
	names := l.index.PoolNames()
	if len(names) == 0 {
		return nil, nil
	}
	stored, err := l.Store.DefaultPools(ctx, l.Fence, names, l.DefaultPool)
	if err != nil {
		return nil, err
	}
	pools := map[string]Pool{}
	for name, p := range stored {
		pools[name] = Pool{Slots: p.Slots, Pending: p.Pending}
	}
	return pools, nil
}

// pick is one decision. It says when to look again without a cause; 0 is never.
func (l *Loop) pick(now time.Time, pools map[string]Pool) ([]choice, time.Duration) {
	if l.Pauses != nil {
		l.index.SetPauses(l.Pauses(), now)
	}
	l.index.SetPools(pools)
	w := Waiting{}
	var picked []choice
	if l.Held != nil && l.Held() {
		w.Reasons = map[Reason]int{}
		if n := l.index.Queued(); n > 0 {
			w.Reasons[Rival] = n
		}
	} else {
		picked = l.index.Decide(now, claimBatch, l.Launcher.Room)
		l.index.Tell(l.Launcher.Waits)
		w.Reasons, w.Busy = l.index.Reasons(), l.index.Full()
	}
	w.Queued, w.InFlight, w.Oldest = l.index.Queued(), l.index.InFlight(), l.index.Oldest()
	if l.Waiting != nil {
		l.Waiting(w)
	}
	return picked, l.next(w, now)
}

// next is when to look again although nothing happens: at what tells nothing when it changes. 0 is
// never.
func (l *Loop) next(w Waiting, now time.Time) time.Duration {
	var wait time.Duration
	sooner := func(d time.Duration) {
		if d = max(time.Millisecond, d); wait == 0 || d < wait {
			wait = d
		}
	}
	for why, every := range map[Reason]time.Duration{Rival: roomRetry, Sick: roomRetry, Busy: roomRetry,
		Paused: pauseRetry, PoolFull: poolRetry} {
		if w.Reasons[why] > 0 {
			sooner(every)
		}
	}
	if at := l.index.Next(); !at.IsZero() && w.Reasons[Rival] == 0 { // else nothing is decided
		sooner(at.Sub(now))
	}
	if len(l.locked) > 0 {
		sooner(l.lockedUntil.Sub(now))
	}
	return wait
}

// stops are the launchers of a run, with the targets there.
func (l *Loop) stops(r storage.Run) []stop {
	var stops []stop
	for _, name := range l.Route(r) {
		stops = append(stops, stop{launcher: name, target: l.Launcher.Target(name, r)})
	}
	return stops
}

// claimTimeout bounds one claim. One whose answer is lost waits in the database for the first one,
// if that still commits.
const claimTimeout = 10 * time.Second

// claims makes the claims of runs that were picked.
func (l *Loop) claims(picked []choice) []pending {
	now := time.Now().UTC().Truncate(time.Microsecond)
	claims := make([]pending, len(picked))
	for i, c := range picked {
		claims[i] = pending{c.Run, storage.Claim{Run: c.Run.ID, Launcher: c.Launcher, Instance: l.Instance,
			Token: l.Launcher.Token(c.Launcher), At: now, Tags: l.Claims}}
	}
	return claims
}

// claim claims runs and hands the claimed ones to the launcher. After an error the outcome is not
// known, and the same claims must be made again: the storage recognizes their tokens, so that no
// run is claimed twice and none is forgotten.
func (l *Loop) claim(ctx context.Context, batch []pending) error {
	l.unclear = batch
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	claims := make([]storage.Claim, len(batch))
	for i, p := range batch {
		claims[i] = p.claim
	}
	outcomes, err := l.Store.Claim(ctx, l.Fence, claims)
	if err != nil {
		return err
	}
	l.unclear = nil
	failpoint.Here(failpoint.ClaimDone)
	for i, o := range outcomes {
		r := batch[i].run
		if _, was := l.locked[r.ID]; was {
			delete(l.locked, r.ID)
			l.index.Hold(r.ID, "", time.Time{}, time.Now())
		}
		if o.Busy {
			l.Log.WarnContext(ctx,
				"cannot claim a run, because another program has locked its row in the database; retrying",
				"run_id", r.ID)
			l.lock(batch[i])
			continue
		}
		r.Status, r.Launch = o.Status, nil
		if o.Done {
			launch := o.Launch
			r.Run, r.Launch, r.Handle, r.Updated = *o.Run, &launch, "", launch.At
			r.Status = o.Status
		}
		if o.Status == dagster.Queued { // a body that cannot be read
			r.Broken = errors.New("the run's body cannot be read")
		}
		l.apply(r)
		if !o.Done {
			l.Log.DebugContext(ctx, "run had left the queue before it was claimed", "run_id", r.ID, "status", o.Status)
			continue
		}
		l.Log.InfoContext(ctx, "run claimed", "run_id", r.ID, "job", r.Job, "launcher", r.Launch.Launcher,
			"attempt", r.Launch.Attempt)
		l.Launcher.Launch(r)
		if l.Claimed != nil {
			l.Claimed(r)
		}
	}
	if err := l.Store.Flush(ctx, l.Fence); err != nil {
		l.Log.WarnContext(ctx, "cannot write the events of claims yet; the next write tries again", "err", err)
	}
	return nil
}

// lock leaves a run alone because another program has locked its row. The same claim is made again
// later.
func (l *Loop) lock(p pending) {
	if l.locked == nil {
		l.locked = map[string]pending{}
	}
	now := time.Now()
	l.locked[p.run.ID], l.lockedUntil = p, now.Add(lockedRetry)
	l.index.Hold(p.run.ID, "", l.lockedUntil, now)
	l.index.Back(p.run.ID, now)
}
