package queue

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
)

// claimBatch is the most runs that one transaction claims.
const claimBatch = 50

// claimPause is how long runs that may go are collected for one claim while a launcher works off what it has.
const claimPause = 2 * time.Millisecond

// retryDelay is how long the loop waits after the storage failed.
const retryDelay = time.Second

// poolRetry is how often the loop looks whether a full pool has places again, of which no run's status tells.
const poolRetry = 500 * time.Millisecond

// roomRetry is how often the loop looks whether a sick launcher has recovered. One that is only full says so itself.
const roomRetry = time.Second

// store is what the loop asks of the storage.
type store interface {
	storage.Pooler
	Claim(ctx context.Context, f storage.Fence, claims []storage.Claim) ([]storage.Outcome, error)
	Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error)
	Settle(ctx context.Context, f storage.Fence) error
}

// runLauncher launches the workers of claimed runs. Package dispatch provides it.
type runLauncher interface {
	// Room is how many more runs the launcher takes now, and whether it is sick, so that a run's next launcher may take it.
	Room(launcher string) (room int, sick bool)
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
	// Only says which queued runs are ours; nil for all. Runs in flight count whoever's they are.
	Only     func(dagster.Run) bool
	Claims   map[string]string          // tags that a claim sets
	Route    func(storage.Run) []string // launchers of a run, the first choice first
	Launcher runLauncher
	Pauses   func() []Pause    // that hold now; nil: none ever
	Claimed  func(storage.Run) // is told of each claim; nil: nobody
	Waiting  func(Waiting)     // is told what each pass leaves in the queue; nil: nobody
	Inbox    *storage.Inbox    // changed runs of all statuses
	Freed    <-chan struct{}   // ready when a launcher has room again
	Log      *slog.Logger

	queued map[string]storage.Run
	active map[string]storage.Run
	hold   map[string]map[string]time.Time // by run and launcher: the launcher had no room for the run; not before then
	choice map[string]string               // of the runs that were picked: the launcher
	routes map[string][]string             // of the queued runs, once they were asked for
}

// Waiting is the queue after a pass.
type Waiting struct {
	Reasons  map[Reason]int
	Queued   int
	InFlight int
	Oldest   time.Time // creation of the oldest queued run
}

// Requeued is a run that a launcher had no room for.
type Requeued struct {
	Run      storage.Run
	Launcher string
	Until    time.Time
}

// Run decides and claims until ctx ends or the lead is lost ([storage.ErrFenced]). What it claimed before it
// returns has been handed to the launcher.
func (l *Loop) Run(ctx context.Context, requeued <-chan Requeued) error {
	l.queued, l.active, l.hold = map[string]storage.Run{}, map[string]storage.Run{}, map[string]map[string]time.Time{}
	l.routes = map[string][]string{}
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
		case <-timer:
		}
		for len(requeued) > 0 { // what was said before the news below
			l.requeued(<-requeued)
		}
		for _, r := range l.Inbox.Take() {
			l.changed(ctx, r)
		}
		var err error
		if wait, err = l.pass(ctx); err != nil {
			return err
		}
	}
}

// requeued holds back a run that a launcher had no room for. It is told of before it is written as well, with its ID alone.
func (l *Loop) requeued(r Requeued) {
	if l.hold[r.Run.ID] == nil {
		l.hold[r.Run.ID] = map[string]time.Time{}
	}
	l.hold[r.Run.ID][r.Launcher] = r.Until
	if r.Run.Status != "" {
		l.apply(r.Run)
	}
}

// changed takes in a run that the feed has read.
func (l *Loop) changed(ctx context.Context, r storage.Run) {
	claimed, ok := l.active[r.ID]
	if ok && claimed.Launch != nil && r.QueuedBefore(*claimed.Launch) {
		return // read before we claimed it; taken at its word, it would free its place for another
	}
	if _, waited := l.queued[r.ID]; waited && r.Status == dagster.Starting && r.Launch == nil && r.Broken == nil {
		l.Log.WarnContext(ctx, "another program launches runs that wait for Slipway: is dagster-daemon parked (run_queue: {max_concurrent_runs: 0})?", "run_id", r.ID)
	}
	l.apply(r)
}

// apply takes a run's new state into the loop's view.
func (l *Loop) apply(r storage.Run) {
	delete(l.queued, r.ID)
	delete(l.active, r.ID)
	delete(l.routes, r.ID)
	switch {
	case r.Broken != nil:
		l.Log.Warn("a run cannot be read and is left alone", "run_id", r.ID, "err", r.Broken)
		if r.Status.Active() {
			l.active[r.ID] = r // it counts
		}
	case r.Status == dagster.Queued:
		if l.Only == nil || l.Only(r.Run) {
			l.queued[r.ID] = r
		}
	case r.Status.Active():
		l.active[r.ID] = r
	default:
		delete(l.hold, r.ID)
	}
}

// pass claims what may go now, and says when to look again without a cause; 0 is never.
func (l *Loop) pass(ctx context.Context) (time.Duration, error) {
	for {
		pools, err := l.pools(ctx)
		if errors.Is(err, storage.ErrFenced) {
			return 0, err
		}
		if err != nil { // as Dagster does: what cannot be told blocks nobody
			l.Log.WarnContext(ctx, "the pools cannot be read; they hold back no run for now", "err", err)
		}
		d, wait := l.pick(time.Now(), pools)
		picked := d.Picked
		if l.Waiting != nil {
			l.Waiting(l.waiting(d))
		}
		if len(picked) == 0 {
			return wait, nil
		}
		batch := picked[:min(len(picked), claimBatch)]
		err = l.claim(context.WithoutCancel(ctx), batch)
		if errors.Is(err, storage.ErrFenced) {
			return 0, err
		}
		if err != nil {
			l.Log.WarnContext(ctx, "claim failed; looking what became of it", "err", err, "runs", len(batch))
			return retryDelay, nil
		}
		if ctx.Err() != nil {
			return 0, nil
		}
	}
}

// pools reads the pools that queued runs use, and gives those without a limit of their own the default one.
func (l *Loop) pools(ctx context.Context) (map[string]Pool, error) {
	var names []string
	for _, r := range l.queued {
		for _, pool := range l.Limits.Pools.names(r.Run) {
			if !slices.Contains(names, pool) {
				names = append(names, pool)
			}
		}
	}
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

// pick is one decision.
func (l *Loop) pick(now time.Time, pools map[string]Pool) (Decision, time.Duration) {
	var wait time.Duration
	sooner := func(d time.Duration) {
		if wait == 0 || d < wait {
			wait = d
		}
	}
	room, sick := map[string]int{}, map[string]bool{}
	l.choice = map[string]string{}
	var pauses []Pause
	if l.Pauses != nil {
		pauses = l.Pauses()
	}
	held := func(r dagster.Run) Reason {
		if l.choice[r.ID] != "" {
			return ""
		}
		if slices.ContainsFunc(pauses, func(p Pause) bool { return p.HoldsRun(r) }) {
			sooner(pauseRetry)
			return Paused
		}
		if l.routes[r.ID] == nil {
			l.routes[r.ID] = l.Route(l.queued[r.ID])
		}
		why := Sick
		for _, name := range l.routes[r.ID] {
			if slices.ContainsFunc(pauses, func(p Pause) bool { return p.HoldsLauncher(name) }) {
				sooner(pauseRetry)
				why = Paused
				continue
			}
			if until := l.hold[r.ID][name]; until.After(now) {
				sooner(until.Sub(now))
				why = Backoff
				continue
			}
			if _, ok := room[name]; !ok {
				room[name], sick[name] = l.Launcher.Room(name)
			}
			switch {
			case sick[name]:
				sooner(roomRetry)
				continue
			case room[name] <= 0: // only busy: it says when it is not
				sooner(roomRetry)
				return Busy
			}
			room[name]--
			l.choice[r.ID] = name
			return ""
		}
		return why
	}
	d := Pick(entriesOf(l.queued), entriesOf(l.active), l.Limits, pools, now, held)
	if d.Waits[PoolFull] > 0 {
		sooner(poolRetry)
	}
	return d, wait
}

// waiting is what a pass leaves in the queue.
func (l *Loop) waiting(d Decision) Waiting {
	w := Waiting{Reasons: d.Waits, Queued: len(l.queued), InFlight: len(l.active)}
	for _, r := range l.queued {
		if w.Oldest.IsZero() || r.Created.Before(w.Oldest) {
			w.Oldest = r.Created
		}
	}
	return w
}

func entriesOf(runs map[string]storage.Run) []Entry {
	entries := make([]Entry, 0, len(runs))
	for _, r := range runs {
		entries = append(entries, Entry{r.Run, r.Row, r.Start})
	}
	return entries
}

// claimTimeout bounds one claim.
const claimTimeout = 30 * time.Second

// claim claims runs and hands those that it got to the launcher. An error leaves the loop's view as the
// storage shows it then.
func (l *Loop) claim(ctx context.Context, runs []dagster.Run) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	now := time.Now().UTC().Truncate(time.Microsecond)
	claims := make([]storage.Claim, len(runs))
	for i, r := range runs {
		claims[i] = storage.Claim{Run: r.ID, Launcher: l.choice[r.ID], Instance: l.Instance, Token: uuid.NewString(), At: now, Tags: l.Claims}
	}
	outcomes, err := l.Store.Claim(ctx, l.Fence, claims)
	if err != nil {
		if errors.Is(err, storage.ErrFenced) {
			return err
		}
		return errors.Join(err, l.lookAgain(ctx, claims))
	}
	failpoint.Here(failpoint.ClaimDone)
	for i, o := range outcomes {
		r := l.queued[runs[i].ID]
		r.Status, r.Launch = o.Status, nil
		if o.Done {
			launch := o.Launch
			r.Launch, r.Handle, r.Updated = &launch, "", launch.At
		}
		if o.Status == dagster.Queued { // a body that cannot be read
			r.Broken = errors.New("the run's body cannot be read")
		}
		l.apply(r)
		if !o.Done {
			l.Log.DebugContext(ctx, "run had left the queue before it was claimed", "run_id", r.ID, "status", o.Status)
			continue
		}
		l.Log.InfoContext(ctx, "run claimed", "run_id", r.ID, "job", r.Job, "launcher", r.Launch.Launcher, "attempt", r.Launch.Attempt)
		l.Launcher.Launch(r)
		if l.Claimed != nil {
			l.Claimed(r)
		}
	}
	if err := l.Store.Settle(ctx, l.Fence); err != nil {
		l.Log.WarnContext(ctx, "the events of claims cannot be written yet; the next write tries again", "err", err)
	}
	return nil
}

// lookAgain finds out what became of claims whose outcome was lost: the token in the launch row tells.
func (l *Loop) lookAgain(ctx context.Context, claims []storage.Claim) error {
	ids := make([]string, len(claims))
	for i, c := range claims {
		ids[i] = c.Run
	}
	runs, err := l.Store.Runs(ctx, storage.Filter{IDs: ids})
	if err != nil {
		return err
	}
	for _, r := range runs {
		l.apply(r)
		if r.Launch != nil && slices.ContainsFunc(claims, func(c storage.Claim) bool { return c.Token == r.Launch.Token }) {
			l.Launcher.Launch(r)
		}
	}
	return nil
}
