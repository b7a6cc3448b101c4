package daemon

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// listTime is how long a target may take to list its workers before the first claim. One that takes
// longer is asked for each worker by itself.
const listTime = time.Second

// list asks each target that has runs in flight for its workers, all at once: what an earlier
// leader left is known before anything is claimed.
func (d *Daemon) list(ctx context.Context, inFlight []storage.Run) map[launcher.ID]launcher.Health {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	busy := map[string]bool{}
	for _, r := range inFlight {
		if r.Launch != nil && r.Launch.Instance == d.name {
			busy[r.Launch.Launcher] = true
		}
	}
	type answer struct {
		name    string
		workers []launcher.Worker
		err     error
	}
	answers := make(chan answer, len(busy))
	asked := 0
	for name := range busy {
		t := d.targets[name]
		if t == nil {
			continue
		}
		lister, ok := launcher.As[launcher.Lister](t.Launcher)
		if !ok {
			continue
		}
		asked++
		go func() { // ends with its call, which has a deadline
			if err := t.Locate(ctx); err != nil {
				answers <- answer{name, nil, err}
				return
			}
			all, err := dispatch.List(ctx, t, lister, launcher.Filter{Instance: d.name})
			answers <- answer{name, all, err}
		}()
	}
	seen := map[launcher.ID]launcher.Health{}
	for range asked {
		select {
		case a := <-answers:
			if a.err != nil {
				d.Log.WarnContext(ctx, "cannot list a target's workers; asking for each one separately",
					"launcher", a.name, "err", a.err)
			}
			for _, w := range a.workers {
				if w.Instance == d.name {
					seen[w.ID] = w.Health
				}
			}
			d.Log.InfoContext(ctx, "workers found on a target", "launcher", a.name, "workers", len(a.workers))
		case <-ctx.Done():
		}
	}
	return seen
}

// elsewhere explains, by run ID, which runs in flight have their worker on another host, as far as
// their targets have said.
func (d *Daemon) elsewhere(inFlight []storage.Run) map[string]string {
	out := map[string]string{}
	for _, r := range inFlight {
		if !r.Status.Active() || r.Broken != nil || r.Launch == nil || r.Launch.Instance != d.name {
			continue
		}
		if t := d.targets[r.Launch.Launcher]; t != nil {
			if where := t.KnownElsewhere(*r.Launch); where != "" {
				out[r.ID] = where
			}
		}
	}
	return out
}

// adopt takes over runs in flight that Dagster's own launchers started, where a launcher of ours
// knows them by their tags and its target shows the worker, with this run's ID on it. The others
// are left alone. It gives the runs as they are then.
func (d *Daemon) adopt(ctx context.Context, fence storage.Fence, inFlight []storage.Run) ([]storage.Run, error) {
	runs := slices.Clone(inFlight)
	for i, r := range runs {
		if r.Broken != nil || r.Launch != nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(d.targets)) {
			t := d.targets[name]
			adopter, ok := launcher.As[launcher.Adopter](t.Launcher)
			if !ok {
				continue
			}
			handle, ok := adopter.Adopt(launcher.Foreign{Run: r.ID, Tags: r.Tags})
			if !ok {
				continue
			}
			asking, cancel := context.WithTimeout(ctx, listTime)
			h, err := dispatch.Call(asking, t, func(ctx context.Context) (launcher.Health, error) {
				return t.Launcher.Health(ctx, handle)
			})
			if err == nil {
				err = t.Locate(asking)
			}
			cancel()
			if err != nil || !h.Status.Alive() && !h.Status.Ended() {
				d.Log.WarnContext(ctx,
					"a run that another launcher started is left alone: its worker cannot be seen", "run_id", r.ID,
					"launcher", name, "handle", string(handle), "status", h.Status, "err", err)
				continue
			}
			now := time.Now()
			out, err := d.Store.Move(ctx, fence, storage.Transition{
				Run: r.ID, From: []dagster.Status{r.Status}, Handle: string(handle),
				Next: &storage.Next{Instance: d.name, Launcher: name, Token: t.NewToken(), Epoch: fence.Epoch,
					At: r.Created.UTC().Truncate(time.Microsecond)},
				Events: []dagster.Event{dagster.NewEngineEvent(r.Run, now,
					"[Slipway] Adopted the run worker, which another launcher had started.",
					[]dagster.Metadata{{Label: "Worker", Text: string(handle)}, {Label: "Launcher", Text: name}}, nil)},
			})
			if err != nil {
				return runs, err
			}
			if out.Done {
				row := out.Launch
				runs[i].Launch, runs[i].Handle = &row, string(handle)
				d.Log.InfoContext(ctx, "adopted a run that another launcher had started", "run_id", r.ID,
					"job", r.Job, "launcher", name, "handle", string(handle))
			}
			break
		}
	}
	return runs, nil
}
