// Package daemon runs the parts of Slipway together. While this process leads the instance, it
// feeds the queue, launches runs and monitors them; otherwise it stands by.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/web"
	"github.com/slipway-run/slipway/launcher"
)

const (
	leaseTTL   = 2 * time.Second
	leaseRenew = 500 * time.Millisecond
	leaseRetry = 50 * time.Millisecond
	// leaseSafety is how much earlier a lease ends here than in the database.
	leaseSafety = 300 * time.Millisecond
	// standbyPatience is how long a daemon that does not lead waits for an answer about the lease
	// before it asks again.
	standbyPatience = 5 * time.Second
	heartbeat       = 30 * time.Second
	// beatAge is the age at which another daemon's last heartbeat shows that the daemon is gone.
	beatAge = 90 * time.Second
)

// idPrefix begins the id of every daemon of ours, in leases and heartbeats.
const idPrefix = "slipway-"

// Daemon launches the runs of one instance.
type Daemon struct {
	Instance *instance.Instance
	Store    storage.Store
	Log      *slog.Logger
	// Worker is the command of slipway-worker on this machine.
	Worker []string
	// Metrics are kept, and served together with the daemon's health and status. If nil, nothing is
	// served.
	Metrics *web.Metrics
	// Open opens the storage if Store is nil. While it fails, the daemon waits and tries again,
	// except that it gives up on a [storage.SettingError].
	Open func(context.Context) (storage.Store, error)
	// After each value of Reloads the daemon calls Load to read the settings again. If they can be
	// used, it calls Reloaded with them.
	Reloads  <-chan os.Signal
	Load     func() (*instance.Instance, error)
	Reloaded func(*instance.Instance)
	// Systemd gets notices of the daemon's state. If nil, none are sent.
	Systemd *Systemd

	pauses  atomic.Pointer[[]queue.Pause]
	waiting atomic.Pointer[queue.Waiting]
	queuing atomic.Pointer[queue.Loop] // of the lead; nil while there is none
	shared  *shared
	rival   atomic.Pointer[rival] // of the newest lead; nil before the first one, and with coexist

	id      string // of this process
	name    string // of the instance
	limits  queue.Limits
	queue   instance.Queue
	address address
	targets map[string]*dispatch.Target
}

// Run runs until ctx ends. Before it returns, it finishes the launches of the runs that it has
// claimed, for at most the setting shutdown_grace; the next leader continues the others. Workers
// continue without the daemon.
func (d *Daemon) Run(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	d.Log = slog.New(newSeldom(d.Log.Handler()))
	d.id = fmt.Sprintf(idPrefix+"%s-%d-%s", host, os.Getpid(), uuid.NewString()[:8])
	d.shared = &shared{}
	d.Systemd.Ready()
	defer d.Systemd.Stopping()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.serveWeb(ctx) })
	g.Go(func() error { return d.Systemd.watch(ctx, d.alive) })
	g.Go(func() error { return d.start(ctx) })
	return g.Wait()
}

// start waits until the storage can be used, and then does the daemon's work until ctx ends.
func (d *Daemon) start(ctx context.Context) (err error) {
	if d.Store == nil {
		if err = d.wait(ctx, d.open); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Store.Close()) }()
	}
	for _, try := range []func(context.Context) error{d.checkWritable, d.findName, d.checkName} {
		if err := d.wait(ctx, try); err != nil {
			return err
		}
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	now := time.Now()
	d.shared.answered.Store(&now)
	d.shared.use(d)
	defer func() {
		last, was := d.shared.run()
		last.close()
		was.close()
	}()
	if err := d.checkStock(ctx); err != nil {
		return err
	}
	return d.begin(ctx)
}

func (d *Daemon) open(ctx context.Context) (err error) {
	d.Store, err = d.Open(ctx)
	return err
}

// close frees what the launchers hold in this process. A nil Daemon holds nothing.
func (d *Daemon) close() {
	if d == nil {
		return
	}
	if err := CloseTargets(d.targets); err != nil {
		d.Log.Warn("cannot close a launcher", "err", err)
	}
}

// begin does the daemon's work until ctx ends.
func (d *Daemon) begin(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if d.address.network != "unix" { // a standby can answer too, from storage; a socket has only one server
		g.Go(func() error { return d.serveAPI(ctx) })
	}
	g.Go(func() error { d.checkTargets(ctx); return nil })
	g.Go(func() error { return d.watchReloads(ctx) })
	g.Go(func() error { return d.elect(ctx) })
	return g.Wait()
}

// elect leads whenever this daemon can, and stands by otherwise, always with the settings in force.
func (d *Daemon) elect(ctx context.Context) error {
	standing := false
	away := trouble{log: d.Log, what: "cannot acquire leadership"}
	for ctx.Err() == nil {
		d, was := d.shared.run()
		if was != nil {
			was.close()
			d.Log.InfoContext(ctx, "the reloaded settings are in force")
		}
		try, cancel := context.WithTimeout(ctx, standbyPatience)
		fence, leads, err := d.askLead(try)
		cancel()
		if err == nil {
			away.over(ctx)
		}
		switch {
		case err != nil && ctx.Err() == nil:
			away.met(ctx, err)
			d.Systemd.Status("%s: %v", away.what, err)
		case leads:
			standing = false
			d.Log.InfoContext(ctx, "leading", "instance", d.name, "epoch", fence.Epoch)
			d.Systemd.Status("leading instance %s, epoch %d", d.name, fence.Epoch)
			d.Metrics.Leads(true, fence.Epoch)
			err := d.shared.lead(ctx, d, func(ctx context.Context) error { return d.lead(ctx, fence) })
			if err != nil {
				d.Log.WarnContext(ctx, "leadership lost; standing by", "err", err)
			}
			d.Metrics.Leads(false, 0)
			if err == nil && d.shared.inForce() != d {
				continue // with the same lease
			}
		case !standing:
			standing = true
			d.Log.InfoContext(ctx, "another daemon leads this instance; standing by", "leader", fence.Leader)
			d.Systemd.Status("standing by; %s leads", fence.Leader)
		}
		sleep(ctx, leaseRenew)
	}
	return nil
}

// alive reports whether the daemon has asked for the lease lately, or does not ask yet.
func (d *Daemon) alive(within time.Duration) bool {
	asked := d.shared.asked.Load()
	return asked == nil || time.Since(*asked) < within
}

// askLead takes or renews the lease, and measures it.
func (d *Daemon) askLead(ctx context.Context) (storage.Fence, bool, error) {
	asked := time.Now()
	d.shared.asked.Store(&asked)
	fence, leads, err := d.Store.Lead(ctx, d.id, leaseTTL)
	now := time.Now()
	if err == nil {
		d.shared.answered.Store(&now)
	}
	if ctx.Err() == nil || err == nil {
		d.Metrics.Lease(now.Sub(asked), err)
	}
	return fence, leads, err
}

func sleep(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}

// findName finds the instance's name.
func (d *Daemon) findName(ctx context.Context) (err error) {
	d.name, err = Name(ctx, d.Instance, d.Store)
	return err
}

// prepare opens the launchers and works out the limits.
func (d *Daemon) prepare(ctx context.Context) error {
	var err error
	for _, p := range d.Instance.Unknown {
		d.Log.WarnContext(ctx,
			"dagster.yaml has a setting that Slipway does not know and ignores; a newer Dagster may know it",
			"setting", p.Error())
	}
	if d.address, err = addressOf(d.Instance); err != nil {
		return err
	}
	q, err := d.Instance.QueueLimits()
	if err != nil {
		return err
	}
	d.limits, d.queue = limitsOf(q), q
	if d.targets, err = Targets(ctx, d.Instance, d.Log); err != nil {
		return err
	}
	if r := d.Store.Revision(); !storage.KnowsRevision(r) {
		d.Log.WarnContext(ctx,
			"the storage has a schema revision that Slipway does not know; Slipway uses it, because every column that "+
				"it needs is there", "revision", r)
	}
	d.Log.InfoContext(ctx, "instance loaded", "home", d.Instance.Home, "instance", d.name,
		"max_concurrent_runs", d.limits.MaxConcurrentRuns, "tag_limits", len(d.limits.Tags),
		"launchers", slices.Sorted(maps.Keys(d.targets)))
	return nil
}

// lead does all the work of a leader until ctx ends or the lead is lost. If ctx ends first, it
// returns nil.
func (d *Daemon) lead(ctx context.Context, fence storage.Fence) error {
	g, lead := errgroup.WithContext(ctx)
	// Renewal outlives ctx: the lease is needed to finish claims and launches that are under way.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g.Go(func() error { defer stop(); return d.work(lead, fence) })
	g.Go(func() error { return d.renew(renewing, fence) })
	err := g.Wait()
	if errors.Is(context.Cause(ctx), errReloaded) && !errors.Is(err, storage.ErrFenced) {
		return nil // the lease is kept
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTTL)
	defer cancel()
	if yerr := d.Store.Yield(last, fence); yerr != nil {
		d.Log.WarnContext(ctx, "cannot give back the lease; it expires by itself", "err", yerr)
	}
	if ctx.Err() != nil && !errors.Is(err, storage.ErrFenced) {
		return nil
	}
	return err
}

// errLeaseEnded means that the lease was not renewed in time.
var errLeaseEnded = errors.New("the lease was not renewed in time")

// renew keeps the lease until ctx ends. An error ends the lead. The first try of a renewal may take
// two thirds of the time that is left, so that there is time for another try if its answer is lost.
func (d *Daemon) renew(ctx context.Context, fence storage.Fence) error {
	ends, wait := time.Now().Add(leaseTTL-leaseSafety), leaseRenew
	for {
		sleep(ctx, wait)
		if ctx.Err() != nil {
			return nil
		}
		asked, until := time.Now(), ends
		if wait == leaseRenew {
			until = asked.Add(ends.Sub(asked) * 2 / 3)
		}
		try, cancel := context.WithDeadline(ctx, until)
		got, leads, err := d.askLead(try)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil && (!leads || got != fence):
			return storage.ErrFenced
		case err == nil:
			ends, wait = asked.Add(leaseTTL-leaseSafety), leaseRenew
		case time.Now().After(ends):
			return errors.Join(errLeaseEnded, err)
		default:
			wait = leaseRetry
		}
	}
}

// work finishes what an earlier leader left and then runs the parts of a leader. It returns at the
// first error, or when ctx has ended and the launches that are under way are done.
func (d *Daemon) work(ctx context.Context, fence storage.Fence) error {
	if err := d.Store.Flush(ctx, fence); errors.Is(err, storage.ErrFenced) {
		return err
	} else if err != nil && ctx.Err() == nil { // only some runs are concerned
		d.Log.WarnContext(ctx, "cannot finish all writes that an earlier daemon began", "err", err)
	}
	if err := d.readPauses(ctx); err != nil { // before the first claim
		return err
	}
	inFlightRuns, err := d.Store.Runs(ctx, storage.Filter{Statuses: dagster.ActiveStatuses()})
	if err != nil {
		return err
	}
	if inFlightRuns, err = d.adopt(ctx, fence, inFlightRuns); err != nil {
		return err
	}
	var rival *rival
	if !d.Instance.Settings.Coexist {
		if rival, err = d.newRival(ctx); err != nil {
			return err
		}
	}
	d.rival.Store(rival)
	at, err := d.Store.Clock(ctx)
	if err != nil {
		return err
	}
	read := time.Now()
	seen := d.list(ctx, inFlightRuns)
	if there := d.elsewhere(inFlightRuns); len(there) > 0 {
		one := slices.Min(slices.Collect(maps.Keys(there)))
		d.Log.WarnContext(ctx,
			"the workers of some runs in flight are on another host; these runs are left alone until a daemon leads "+
				"there",
			"runs", len(there), "run_id", one, "why", there[one])
	}
	queued, inFlight, launched := storage.NewInbox(), storage.NewInbox(), storage.NewInbox()
	requeued := make(chan queue.Requeued, 64)
	dispatcher := &dispatch.Dispatcher{
		Store: d.Store, Fence: fence, Targets: d.targets, Log: d.Log,
		Grace:   d.Instance.Settings.ShutdownGracePeriod,
		Builder: Builder(d.Instance, d.name, d.Worker),
		Requeued: func(r storage.Run, launcher string, until time.Time) {
			select {
			case requeued <- queue.Requeued{Run: r, Launcher: launcher, Until: until}:
			case <-ctx.Done():
			}
		},
		Launched: func(r storage.Run) { launched.Put(r) },
		Done:     d.Metrics.Launched, RateLimited: d.Metrics.RateLimited,
	}
	dispatcher.Init(ctx, inFlightRuns)
	loop := &queue.Loop{
		Store: d.Store, Fence: fence, Instance: d.name, Limits: d.limits, Route: Route(d.Instance),
		DefaultPool: d.queue.DefaultPool, Only: d.queue.Only.Fits,
		Claims:   map[string]string{dagster.GRPCInfoTag: d.address.info},
		Launcher: dispatcher, Inbox: queued, Freed: dispatcher.Freed(), Log: d.Log, Pauses: d.paused,
		Questions: make(chan func()),
		Waiting: func(w queue.Waiting) {
			d.waiting.Store(&w)
			d.Metrics.Waiting(w)
			if rival != nil {
				rival.passed(w)
			}
		},
		Claimed: func(r storage.Run) { d.Metrics.Claimed(r.Launch.At.Sub(r.Created)) },
	}
	if rival != nil {
		loop.Held, loop.Taken = func() bool { return rival.Why() != "" }, rival.took
	}
	d.queuing.Store(loop)
	defer d.queuing.Store(nil)
	stop := d.brake(ctx)
	policy := Policy(d.Instance, d.targets)
	dispatcher.Memory = func(base int64, deaths []storage.Death) int64 {
		return monitor.Memory(policy.Ladder, base, deaths)
	}
	watch := &monitor.Loop{
		Store: d.Store, Fence: fence, Instance: d.name, Targets: d.targets, Times: Times(d.Instance), Policy: policy,
		Relaunch: dispatcher.Relaunch,
		TakeUp:   func(r storage.Run) { dispatcher.TakeUp(ctx, r) }, Find: dispatcher.Find,
		Clock: func() time.Time { return at.Add(time.Since(read)) },
		Inbox: inFlight, Launched: launched, Log: d.Log, Seen: seen, Phase: d.Metrics.Phase,
		PhasesAfter: d.Instance.Settings.Monitoring.Phases, Held: d.Metrics.Held,
		Died: func(r storage.Run, cause launcher.Cause) {
			d.Metrics.Died(r.Launch.Launcher, string(cause))
			stop.died(r.Job, cause, time.Now())
		},
	}
	slots := &monitor.Slots{Store: d.Store, Fence: fence, After: d.Instance.Deaths().FreeSlots, Log: d.Log}
	sweep := Sweeper(d.Instance, d.name, d.Store, d.targets, d.Log)
	sweep.Found, sweep.Bill, dispatcher.Full = d.Metrics.Orphans, d.bill(fence), sweep.Full
	feed := &storage.Feed{Store: d.Store, Log: d.Log, Put: func(runs ...storage.Run) {
		d.countEnded(runs)
		queued.Put(runs...)
		inFlight.Put(runs...)
	}}
	g, ctx := errgroup.WithContext(ctx)
	// The dispatcher ends after the queue, so that what was claimed last is still launched.
	claiming, claimed := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return dispatcher.Run(claiming) })
	g.Go(func() error {
		defer claimed()
		return loop.Run(ctx, requeued)
	})
	g.Go(func() error { return feed.Run(ctx) })
	g.Go(func() error { return watch.Run(ctx) })
	g.Go(func() error { return sweep.Run(ctx) })
	g.Go(func() error { return slots.Run(ctx) })
	g.Go(func() error { return d.watchPauses(ctx) })
	if rival != nil {
		g.Go(func() error { return rival.Run(ctx) })
	}
	g.Go(func() error { d.warnUnwatched(ctx, inFlightRuns); return nil })
	d.announceWeb(ctx)
	g.Go(func() error { return d.beat(ctx, fence) })
	if d.address.network == "unix" {
		g.Go(func() error { return d.serveAPI(ctx) })
	}
	return g.Wait()
}

// beat writes the heartbeat of Dagster's dequeuer, because Slipway does its work, unless a parked
// dagster-daemon writes it. After each heartbeat it finishes writes that another process has
// committed and could not finish, for example a worker on a full disk.
func (d *Daemon) beat(ctx context.Context, fence storage.Fence) error {
	for ctx.Err() == nil {
		now := time.Now()
		_, err := d.Store.Beat(ctx, storage.Heartbeat{Type: queueDaemon, ID: d.id, At: now}, now.Add(-beatAge))
		if err != nil && ctx.Err() == nil {
			d.Log.WarnContext(ctx, "cannot write the heartbeat", "err", err)
		}
		if err := d.Store.Flush(ctx, fence); err != nil && ctx.Err() == nil {
			d.Log.WarnContext(ctx, "cannot write all events of committed changes yet; retrying", "err", err)
		}
		sleep(ctx, heartbeat)
	}
	return nil
}
