package daemon

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/launcher"
)

// pausesInterval is how often pauses are read, which others write.
const pausesInterval = time.Second

// holding are the pauses among entries of kvs, and the windows of slipway.yaml, that hold at a
// time. What cannot be understood is an error each and holds nothing.
func holding(in *instance.Instance, entries map[string]string, now time.Time) ([]queue.Pause, []error) {
	pauses, bad := queue.ParsePauses(entries)
	open := windows(in, pauses, now)
	pauses = slices.DeleteFunc(pauses, func(p queue.Pause) bool { return p.Over(now) || p.Scope == queue.Ended })
	return append(open, pauses...), bad
}

// Windows returns the maintenance windows that are in force at a time. Entries are the entries of
// kvs whose keys begin with [queue.PausePrefix].
func Windows(in *instance.Instance, entries map[string]string, now time.Time) []queue.Pause {
	pauses, _ := queue.ParsePauses(entries) // what cannot be read ends no window
	return windows(in, pauses, now)
}

// windows are the maintenance windows that are open and that no pause of scope Ended has ended.
func windows(in *instance.Instance, pauses []queue.Pause, now time.Time) []queue.Pause {
	ended := map[string]time.Time{} // by scope and value
	for _, p := range pauses {
		if p.Scope == queue.Ended {
			ended[p.Value] = p.Since
		}
	}
	var out []queue.Pause
	for i, w := range in.Settings.Maintenance {
		begins, err := w.Begins()
		if err != nil {
			continue // Load has refused it
		}
		p := queue.Pause{Scope: queue.OfInstance, By: fmt.Sprintf("slipway.yaml, maintenance[%d]", i), Why: w.Why}
		for scope, value := range map[queue.Scope]string{queue.OfLauncher: w.Launcher, queue.OfLocation: w.Location,
			queue.OfJob: w.Job, queue.OfTag: w.Tag} {
			if value != "" {
				p.Scope, p.Value = scope, value
			}
		}
		after := now.Add(-w.For)
		if end := ended[string(p.Scope)+"/"+p.Value]; end.After(after) {
			after = end
		}
		if p.Since = begins.Next(after); p.Since.After(now) {
			continue
		}
		p.Until = p.Since.Add(w.For)
		out = append(out, p)
	}
	return out
}

// watchPauses keeps what is paused until ctx ends. While it cannot be read, what was read last
// holds.
func (d *Daemon) watchPauses(ctx context.Context) error {
	for ctx.Err() == nil {
		sleep(ctx, pausesInterval)
		if err := d.readPauses(ctx); err != nil && ctx.Err() == nil {
			d.Log.WarnContext(ctx, "cannot read the pauses; the pauses that were read last stay in force", "err", err)
		}
	}
	return nil
}

// readPauses reads what is paused. One that stands there and cannot be understood is left out, and
// said.
func (d *Daemon) readPauses(ctx context.Context) error {
	entries, err := d.Store.Entries(ctx, queue.PausePrefix)
	if err != nil {
		return err
	}
	pauses, bad := holding(d.Instance, entries, time.Now())
	was := fmt.Sprint(d.paused())
	d.pauses.Store(&pauses)
	d.Metrics.Pauses(len(pauses))
	if fmt.Sprint(pauses) == was {
		return nil
	}
	for _, err := range bad {
		d.Log.WarnContext(ctx, "cannot parse a pause; it has no effect", "err", err)
	}
	for _, p := range pauses {
		d.Log.InfoContext(ctx, "launches are paused", "of", p.String(), "by", p.By, "why", p.Why, "until", p.Until)
	}
	if len(pauses) == 0 {
		d.Log.InfoContext(ctx, "launches are no longer paused")
	}
	return nil
}

// paused are the pauses that hold.
func (d *Daemon) paused() []queue.Pause {
	if p := d.pauses.Load(); p != nil {
		return *p
	}
	return nil
}

// brake makes the brake of this lead, whose pauses are written to the storage.
func (d *Daemon) brake(ctx context.Context) *brake {
	return &brake{set: d.Instance.Settings.Brake, pause: func(p queue.Pause) {
		d.Log.WarnContext(ctx, "a job's launches are paused", "job", p.Value, "why", p.Why, "until", p.Until,
			"end_it", "slipway unpause --job "+p.Value)
		if err := d.Store.SetEntry(ctx, p.Key(), p.Text()); err != nil {
			d.Log.WarnContext(ctx, "cannot write the pause", "err", err)
		}
	}}
}

// brake pauses the launches of a job whose workers die again and again.
type brake struct {
	set   instance.Brake
	pause func(queue.Pause)

	mu     sync.Mutex
	deaths map[[2]string][]time.Time // by job and cause
}

// died records a death.
func (b *brake) died(job string, cause launcher.Cause, now time.Time) {
	if b.set.Deaths <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deaths == nil {
		b.deaths = map[[2]string][]time.Time{}
	}
	for k, times := range b.deaths {
		if now.Sub(times[len(times)-1]) > b.set.Within {
			delete(b.deaths, k)
		}
	}
	key := [2]string{job, string(cause)}
	times := append(slices.DeleteFunc(b.deaths[key], func(t time.Time) bool { return now.Sub(t) > b.set.Within }), now)
	if b.deaths[key] = times; len(times) < b.set.Deaths {
		return
	}
	delete(b.deaths, key)
	b.pause(queue.Pause{
		Scope: queue.OfJob, Value: job, By: "slipway: crash_loop", Since: now, Until: now.Add(b.set.Pause),
		Why: fmt.Sprintf("%d of its workers died of %s within %s", len(times), cause,
			now.Sub(times[0]).Round(time.Second)),
	})
}
