package daemon

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

// Observe decides as a leader would and logs each decision. It writes nothing, not even a lease, a
// heartbeat or a claim, and it calls no target. A run that it would have launched counts as in
// flight until the run's row changes.
func (d *Daemon) Observe(ctx context.Context) (err error) {
	if d.Store == nil {
		if d.Store, err = d.Open(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Store.Close()) }()
	}
	q, err := d.Instance.QueueLimits()
	if err != nil {
		return err
	}
	limits := limitsOf(q)
	d.Systemd.Ready()
	d.Log.InfoContext(ctx, "observing: nothing is written, nothing is launched", "home", d.Instance.Home,
		"max_concurrent_runs", limits.MaxConcurrentRuns)
	queued := storage.NewInbox()
	o := &observer{Store: d.Store, log: d.Log}
	loop := &queue.Loop{
		Store: o, Instance: "observer", Limits: limits, Route: Route(d.Instance), DefaultPool: q.DefaultPool,
		Only:     q.Only.Fits,
		Launcher: o, Inbox: queued, Freed: make(chan struct{}), Log: slog.New(slog.DiscardHandler),
	}
	feed := &storage.Feed{Store: d.Store, Log: d.Log, Put: func(runs ...storage.Run) {
		for _, r := range runs {
			d.Log.DebugContext(ctx, "run seen", "run_id", r.ID, "job", r.Job, "status", r.Status)
		}
		queued.Put(runs...)
	}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop.Run(ctx, make(chan queue.Requeued)) })
	g.Go(func() error { return feed.Run(ctx) })
	g.Go(func() error { return d.watchReloads(ctx) })
	return g.Wait()
}

// observer is a storage that claims nothing, and a launcher that launches nothing.
type observer struct {
	storage.Store
	log *slog.Logger
}

// Claim reports success for each claim, and claims nothing.
func (o *observer) Claim(ctx context.Context, _ storage.Fence, claims []storage.Claim) ([]storage.Outcome, error) {
	out := make([]storage.Outcome, len(claims))
	for i, c := range claims {
		runs, err := o.Runs(ctx, storage.Filter{IDs: []string{c.Run}})
		if err != nil {
			return nil, err
		}
		if len(runs) == 0 {
			continue // deleted
		}
		out[i] = storage.Outcome{Done: true, Status: dagster.Starting, Run: &runs[0].Run,
			Launch: storage.LaunchRow{Run: c.Run, Launcher: c.Launcher, At: c.At, Attempt: 1, State: storage.Open}}
	}
	return out, nil
}

// Flush does nothing.
func (o *observer) Flush(context.Context, storage.Fence) error { return nil }

// DefaultPools returns the pools as they are and changes no limit.
func (o *observer) DefaultPools(ctx context.Context, _ storage.Fence, names []string,
	_ *int) (map[string]storage.Pool, error) {
	pools, err := o.Pools(ctx)
	return storage.Among(pools, names), err
}

// observerRoom is how many runs at once the targets of an observer take.
const observerRoom = 1000

// Target returns the launcher's name.
func (o *observer) Target(launcher string, _ storage.Run) string { return launcher }

// Waits does nothing and returns true.
func (o *observer) Waits(storage.Run, string) bool { return true }

// Room reports that there is always room.
func (o *observer) Room(string) (room int, sick bool) { return observerRoom, false }

// Token returns "", because nothing is written.
func (o *observer) Token(string) string { return "" }

// Launch logs the decision.
func (o *observer) Launch(r storage.Run) {
	o.log.Info("would launch", "run_id", r.ID, "job", r.Job, "location", r.Remote.Location,
		"launcher", r.Launch.Launcher)
}
