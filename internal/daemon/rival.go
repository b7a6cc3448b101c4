package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

// rival is what a leader knows of a dagster-daemon that may dequeue as well. Heartbeats show that
// one is running, but no file shows what it does: it may have been started before dagster.yaml was
// changed, or may read another file. Its actions are proof:
//
//   - A run left the queue although Slipway did not claim it: dagster-daemon dequeues. Nothing is
//     claimed until that process is gone.
//   - Runs waited, unclaimed, for much longer than dagster-daemon needs to dequeue them: it is
//     parked. This is only tried if the dagster.yaml that Slipway reads does not park it, and is
//     remembered for as long as that process lives.
type rival struct {
	store interface {
		storage.Heart
		storage.Entries
	}
	log    *slog.Logger
	advice string // how to park it
	wake   chan struct{}

	mu       sync.Mutex
	why      string            // nothing is claimed; "" if runs may be claimed
	taken    bool              // it was seen to dequeue
	proving  bool              // runs must wait until it has left them alone
	waiting  time.Time         // since when runs have waited for that; zero: none does
	process  storage.Heartbeat // of the process that why is about
	lastSeen time.Time         // when process last beat, or why began; monotonic
	monitor  time.Time         // newest heartbeat of its run monitor
}

const (
	// parkedAfter is how long dagster-daemon must leave a waiting run alone to be taken for parked.
	// It looks at the queue each 5 s by default (dequeue_interval_seconds).
	parkedAfter = 15 * time.Second
	// rivalLook is how often dagster-daemon's heartbeats are read.
	rivalLook = 5 * time.Second
	// parkedKey has the id of the dagster-daemon process that was seen to leave runs alone.
	parkedKey = "slipway/parked"
)

// newRival reads dagster-daemon's heartbeats when a lead begins.
func (d *Daemon) newRival(ctx context.Context) (*rival, error) {
	r := &rival{store: d.Store, log: d.Log, advice: d.parkAdvice(), wake: make(chan struct{}, 1)}
	beats, err := d.Store.Heartbeats(ctx)
	if err != nil {
		return nil, err
	}
	r.monitor = foreignBeat(beats, monitorDaemon).At
	beat := foreignBeat(beats, queueDaemon)
	if time.Since(beat.At) >= beatAge || d.Instance.Parks() {
		return r, nil
	}
	known, err := d.Store.Entries(ctx, parkedKey)
	if err != nil {
		return nil, err
	}
	if known[parkedKey] != beat.ID {
		r.proving, r.process, r.lastSeen = true, beat, time.Now()
		r.why = fmt.Sprintf(
			"a dagster-daemon is running, and dagster.yaml does not park it: nothing is claimed until it has left a "+
				"waiting run alone for %s. %s", parkedAfter, r.advice)
		d.Log.WarnContext(ctx, "waiting to see whether dagster-daemon dequeues runs", "at_most", parkedAfter,
			"next", r.advice)
	}
	return r, nil
}

// Why explains why nothing may be claimed now; "" if runs may be.
func (r *rival) Why() string {
	if r == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
}

// took records that a run left the queue although Slipway did not claim it.
func (r *rival) took(run storage.Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.taken {
		r.log.Error("another program launches runs that are waiting for Slipway; nothing is claimed until it stops",
			"run_id", run.ID, "next", r.advice)
	}
	r.taken, r.proving, r.process, r.lastSeen = true, false, storage.Heartbeat{}, time.Now()
	r.why = fmt.Sprintf(
		"run %s was launched by another program while it waited for Slipway: dagster-daemon still dequeues. Nothing "+
			"is claimed until it stops. %s", run.ID, r.advice)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// passed records whether a pass of the queue left runs in it.
func (r *rival) passed(w queue.Waiting) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case w.Queued == 0:
		r.waiting = time.Time{}
	case r.waiting.IsZero():
		r.waiting = time.Now()
	}
}

// Run follows dagster-daemon's heartbeats until ctx ends.
func (r *rival) Run(ctx context.Context) error {
	look := time.NewTicker(rivalLook)
	defer look.Stop()
	for {
		if beats, err := r.store.Heartbeats(ctx); err == nil {
			if id := r.judge(foreignBeat(beats, queueDaemon), foreignBeat(beats, monitorDaemon), time.Now()); id != "" {
				if err := r.store.SetEntry(ctx, parkedKey, id); err != nil && ctx.Err() == nil {
					r.log.WarnContext(ctx, "cannot record that dagster-daemon is parked; the next leader checks again",
						"err", err)
				}
			}
		} else if ctx.Err() == nil {
			r.log.WarnContext(ctx, "cannot read dagster-daemon's heartbeats", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-look.C:
		}
	}
}

// judge evaluates the newest heartbeats of dagster-daemon's dequeuer and run monitor. It returns
// the id of a process that has just been proved to be parked.
func (r *rival) judge(dequeuer, monitor storage.Heartbeat, now time.Time) (parked string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if monitor.At.After(r.monitor) {
		if time.Since(monitor.At) < beatAge {
			r.log.Error("dagster-daemon monitors this instance and may fail runs whose workers it does not know",
				"next", "set enabled: false under run_monitoring in dagster.yaml and restart dagster-daemon")
		}
		r.monitor = monitor.At
	}
	if r.why == "" {
		return ""
	}
	if r.process.ID == "" {
		r.process = dequeuer
	}
	if dequeuer.At.After(r.process.At) && dequeuer.ID == r.process.ID {
		r.process, r.lastSeen = dequeuer, now
	}
	gone := dequeuer.ID != r.process.ID || now.Sub(r.lastSeen) >= beatAge
	switch {
	case r.taken && gone:
		r.log.Warn("the dagster-daemon that dequeued is gone; runs are claimed again")
	case r.proving && gone:
		r.log.Info("the dagster-daemon that was running is gone; runs are claimed")
	case r.proving && !r.waiting.IsZero() && now.Sub(r.waiting) >= parkedAfter:
		r.log.Info("dagster-daemon has left a waiting run alone, so it is parked; runs are claimed",
			"for", now.Sub(r.waiting).Round(time.Second))
		parked = r.process.ID
	default:
		return ""
	}
	r.why, r.taken, r.proving = "", false, false
	return parked
}
