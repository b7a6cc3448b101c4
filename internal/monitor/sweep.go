package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

const (
	// sweepInterval is how often targets are compared with the storage.
	sweepInterval = time.Minute
	// OrphanGrace is how long a worker may go on after its run has ended: it closes connections,
	// writes its last lines.
	OrphanGrace = 2 * time.Minute
	// sweepBatch is of how many runs the storage is asked at once.
	sweepBatch = 500
	// maxKeptLog is how much of a worker's output is kept, of its end.
	maxKeptLog = 16 << 20
)

// Removal is the rule for when the remains of an ended worker are removed from its target.
type Removal struct {
	Never      bool
	KeepFailed bool // remove only workers of runs that succeeded
	// After is the time from the worker's end; at least as long as its name on the target prevents
	// a second worker (Traits.Keep).
	After time.Duration
}

// Finding is a worker about which something is to be done.
type Finding struct {
	Launcher string
	Worker   launcher.Worker
	Stop     bool // stop it, as a worker whose run does not need it; else remove what is kept of it
	Why      string
}

// Terms are the settings by which workers are judged.
type Terms struct {
	Instance string
	Removal  Removal
	Keep     time.Duration // Traits.Keep
	Grace    time.Duration // for workers whose run has ended
}

// Judge returns what to do about a worker, given its run. If there is no run, r is nil and since is
// when this was first seen.
func Judge(w launcher.Worker, r *storage.Run, t Terms, since, now time.Time) (Finding, bool) {
	ended, rule := w.Health.Ended, t.Removal
	stop := func(since time.Time, why string) (Finding, bool) {
		return Finding{Worker: w, Stop: true, Why: why}, now.Sub(since) >= t.Grace
	}
	switch {
	case r == nil:
		if w.Health.Status.Alive() {
			return stop(since, "its run is no longer in the storage")
		}
	case r.Broken != nil || r.Launch == nil || r.Launch.Instance != t.Instance:
		return Finding{}, false // not ours
	case w.Health.Status.Alive() && r.Launch.Attempt > w.ID.Attempt:
		return stop(r.Launch.At, fmt.Sprintf("attempt %d has taken its place", r.Launch.Attempt))
	case w.Health.Status.Alive() && r.Status.Finished():
		return stop(latest(r.End, r.Updated), fmt.Sprintf("its run is %s", r.Status))
	case !r.Status.Finished() && r.Launch.Attempt == w.ID.Attempt:
		return Finding{}, false // the monitor's
	default:
		ended = latest(ended, r.End)
	}
	// Dagster's worker leaves with 0 also when its run failed
	good := w.Health.Status == launcher.Succeeded && (r == nil || r.Status == dagster.Success)
	if !w.Health.Status.Ended() || rule.Never || rule.KeepFailed && !good {
		return Finding{}, false
	}
	ended = latest(ended, w.Health.Started)
	if ended.IsZero() {
		ended = since
	}
	after := max(rule.After, t.Keep)
	return Finding{Worker: w, Why: fmt.Sprintf("it ended %s ago", now.Sub(ended).Round(time.Second))},
		now.Sub(ended) >= after
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Sweeper compares what targets have with the storage: workers that no run needs are stopped, what
// is kept of ended ones is removed. It touches only workers that carry the instance's id. Its
// fields are set before Run.
type Sweeper struct {
	Store    store
	Instance string
	Targets  map[string]*dispatch.Target
	Removal  map[string]Removal // by target
	Grace    time.Duration      // for workers whose run has ended
	Logs     string             // folder for the output of workers that are removed
	KeepLogs time.Duration
	Found    func(launcher string, orphans int) // called after each sweep; may be nil
	// Bill is called with the cost of an ended worker of a finished run, in each sweep. It may be
	// nil.
	Bill func(ctx context.Context, r storage.Run, w launcher.Worker, c launcher.Cost) error
	Log  *slog.Logger

	full map[string]chan struct{}  // by target
	seen map[launcher.ID]time.Time // workers without a run, and since when
	mu   sync.Mutex
}

// Full schedules an early sweep of a full target, which removes all ended workers that may be
// removed, without waiting for their retention time: their remains may take up the room.
func (s *Sweeper) Full(launcher string) {
	select {
	case s.fullOf(launcher) <- struct{}{}:
	default:
	}
}

func (s *Sweeper) fullOf(launcher string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full == nil {
		s.full = map[string]chan struct{}{}
	}
	if s.full[launcher] == nil {
		s.full[launcher] = make(chan struct{}, 1)
	}
	return s.full[launcher]
}

// fullInterval is how far apart the sweeps of a target without room are.
const fullInterval = 5 * time.Second

// Run sweeps now and then until ctx ends.
func (s *Sweeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, t := range s.Targets {
		wg.Go(func() {
			for {
				rule := s.Removal[t.Name]
				select {
				case <-ctx.Done():
					return
				case <-s.fullOf(t.Name):
					select {
					case <-ctx.Done():
						return
					case <-time.After(fullInterval):
						rule.After = 0
					}
				case <-time.After(sweepInterval):
				}
				found, err := s.look(ctx, t, rule)
				orphans := 0
				for _, f := range found {
					if f.Stop {
						orphans++
					}
				}
				if err == nil && s.Found != nil {
					s.Found(t.Name, orphans)
				}
				for _, f := range found {
					if err == nil {
						err = s.Act(ctx, f)
					}
				}
				if err != nil && ctx.Err() == nil {
					s.Log.WarnContext(ctx, "cannot sweep a target; retrying in the next sweep", "launcher", t.Name,
						"err", err)
				}
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := s.forgetLogs(time.Now()); err != nil {
				s.Log.WarnContext(ctx, "cannot remove old logs of workers", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Hour):
			}
		}
	})
	return nil
}

// Look finds the workers of a target about which something is to be done. A target without a list
// has none.
func (s *Sweeper) Look(ctx context.Context, t *dispatch.Target) ([]Finding, error) {
	return s.look(ctx, t, s.Removal[t.Name])
}

func (s *Sweeper) look(ctx context.Context, t *dispatch.Target, rule Removal) ([]Finding, error) {
	lister, ok := launcher.As[launcher.Lister](t.Launcher)
	if !ok {
		return nil, nil
	}
	all, err := dispatch.List(ctx, t, lister, launcher.Filter{Instance: s.Instance})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var found []Finding
	for batch := range slices.Chunk(all, sweepBatch) {
		runs, err := s.runs(ctx, batch)
		if err != nil {
			return nil, err
		}
		for _, w := range batch {
			r := runs[w.ID.Run]
			if err := s.bill(ctx, t, r, w); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "cannot write the cost of a worker; retrying in the next sweep",
					"launcher", t.Name, "run_id", w.ID.Run, "err", err)
				continue // it is not removed before
			}
			f, ok := Judge(w, r, Terms{s.Instance, rule, t.Traits.Keep, s.Grace}, s.since(w.ID, r == nil, now), now)
			if ok && w.Instance == s.Instance {
				f.Launcher = t.Name
				found = append(found, f)
			}
		}
	}
	return found, nil
}

// bill passes on what an ended worker has cost, once its run is finished.
func (s *Sweeper) bill(ctx context.Context, t *dispatch.Target, r *storage.Run, w launcher.Worker) error {
	m, ok := launcher.As[launcher.Meter](t.Launcher)
	if !ok || s.Bill == nil || r == nil || r.Broken != nil || !w.Health.Status.Ended() || !r.Status.Finished() {
		return nil
	}
	cost, err := dispatch.Call(ctx, t, func(ctx context.Context) (launcher.Cost, error) {
		return m.Cost(ctx, w.Handle)
	})
	if errors.Is(err, launcher.ErrNotFound) || err == nil && cost.CPUSeconds == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return s.Bill(ctx, *r, w, cost)
}

func (s *Sweeper) runs(ctx context.Context, workers []launcher.Worker) (map[string]*storage.Run, error) {
	ids := map[string]bool{}
	for _, w := range workers {
		ids[w.ID.Run] = true
	}
	runs, err := s.Store.Runs(ctx, storage.Filter{IDs: slices.Collect(maps.Keys(ids))})
	out := map[string]*storage.Run{}
	for i, r := range runs {
		out[r.ID] = &runs[i]
	}
	return out, err
}

// since is when a worker was first seen without its run.
func (s *Sweeper) since(id launcher.ID, missing bool, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[launcher.ID]time.Time{}
	}
	if !missing {
		delete(s.seen, id)
		return now
	}
	if _, ok := s.seen[id]; !ok {
		s.seen[id] = now
	}
	return s.seen[id]
}

// Act does what is to be done about a worker.
func (s *Sweeper) Act(ctx context.Context, f Finding) error {
	t := s.Targets[f.Launcher]
	log := s.Log.With("launcher", f.Launcher, "run_id", f.Worker.ID.Run, "handle", string(f.Worker.Handle),
		"why", f.Why)
	if f.Stop {
		_, err := dispatch.Call(ctx, t, func(ctx context.Context) (bool, error) {
			return t.Launcher.Terminate(ctx, f.Worker.Handle, t.Grace)
		})
		if err == nil {
			log.WarnContext(ctx, "asked a worker to stop, because no run needs it")
		}
		return err
	}
	remover, ok := launcher.As[launcher.Remover](t.Launcher)
	if !ok {
		return nil
	}
	if err := s.keepLog(ctx, t, f.Worker); err != nil {
		return err
	}
	_, err := dispatch.Call(ctx, t, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, remover.Remove(ctx, f.Worker.Handle)
	})
	if err == nil {
		log.InfoContext(ctx, "removed an ended worker from its target")
	}
	return err
}

// KeptLog returns the file with the output of a worker that was removed.
func KeptLog(folder string, id launcher.ID) string { return filepath.Join(folder, id.String()+".log") }

// keepLog saves the end of a worker's output.
func (s *Sweeper) keepLog(ctx context.Context, t *dispatch.Target, w launcher.Worker) error {
	reader, ok := launcher.As[launcher.LogReader](t.Launcher)
	if !ok {
		return nil
	}
	if err := os.MkdirAll(s.Logs, 0o700); err != nil {
		return err
	}
	text, err := dispatch.Call(ctx, t, func(ctx context.Context) ([]byte, error) {
		rc, err := reader.Logs(ctx, w.Handle, launcher.LogOptions{})
		if err != nil {
			return nil, err
		}
		text, err := tail(rc, maxKeptLog)
		return text, errors.Join(err, rc.Close())
	})
	if errors.Is(err, launcher.ErrNotFound) || err == nil && len(text) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(KeptLog(s.Logs, w.ID), text, 0o600)
}

// tail reads everything and gives its last n bytes.
func tail(r io.Reader, n int) ([]byte, error) {
	var all []byte
	buf := make([]byte, 64<<10)
	for {
		k, err := r.Read(buf)
		all = append(all, buf[:k]...)
		if len(all) > 2*n {
			all = slices.Clone(all[len(all)-n:])
		}
		if errors.Is(err, io.EOF) {
			return all[max(0, len(all)-n):], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// forgetLogs removes logs that were kept long enough.
func (s *Sweeper) forgetLogs(now time.Time) error {
	entries, err := os.ReadDir(s.Logs)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > s.KeepLogs {
			errs = append(errs, os.Remove(filepath.Join(s.Logs, e.Name())))
		}
	}
	return errors.Join(errs...)
}
