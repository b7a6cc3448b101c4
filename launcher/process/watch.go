package process

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/slipway-run/slipway/launcher"
)

// sweepInterval is how often Watch checks the locks of workers that were alive. It finds workers
// that ended together with their supervisor and left no record.
const sweepInterval = 2 * time.Second

// Watch implements [launcher.Watcher]. The supervisors' records appear in one folder, and the
// kernel reports changes of that folder.
func (l *Launcher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		w := watch{l: l, yield: yield, seen: map[string]launcher.Status{}}
		if err := w.run(ctx); err != nil {
			yield(launcher.Worker{}, fmt.Errorf("process: watch: %w", err))
		}
	}
}

// watch is one Watch.
type watch struct {
	l     *Launcher
	yield func(launcher.Worker, error) bool
	seen  map[string]launcher.Status // of workers that have not ended
}

// errStopped means that the consumer of Watch wants no more workers.
var errStopped = errors.New("stopped")

// run watches until ctx ends or it is stopped. Neither is an error.
func (w *watch) run(ctx context.Context) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer func() { _ = events.Close() }()
	if err := events.Add(filepath.Join(w.l.root, "state")); err != nil {
		return err
	}
	if err = w.all(ctx); err == nil {
		err = w.changes(ctx, events)
	}
	if errors.Is(err, errStopped) {
		return nil
	}
	return err
}

// all yields all existing workers, and then the mark that these were all.
func (w *watch) all(ctx context.Context) error {
	names, err := w.l.names(launcher.Filter{})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.look(ctx, name); err != nil {
			return err
		}
	}
	if !w.yield(launcher.Worker{Synced: true}, nil) {
		return errStopped
	}
	return nil
}

// changes yields the workers whose records appear, until ctx ends.
func (w *watch) changes(ctx context.Context, events *fsnotify.Watcher) error {
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err = <-events.Errors:
		case e := <-events.Events:
			name := filepath.Base(e.Name)
			name, isBegun := strings.CutSuffix(name, ".begun")
			name, isEnded := strings.CutSuffix(name, ".ended")
			if (isBegun || isEnded) && e.Has(fsnotify.Create) {
				err = w.look(ctx, name)
			}
		case <-sweep.C:
			err = w.sweep(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// sweep checks the workers that had not ended.
func (w *watch) sweep(ctx context.Context) error {
	for name := range w.seen {
		if err := w.look(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// look yields a worker if its status has changed.
func (w *watch) look(ctx context.Context, name string) error {
	worker, ok, err := w.l.worker(ctx, name)
	if err != nil {
		return err
	}
	if !ok || w.seen[name] == worker.Health.Status {
		return nil
	}
	w.seen[name] = worker.Health.Status
	if worker.Health.Status.Ended() {
		delete(w.seen, name)
	}
	if !w.yield(worker, nil) {
		return errStopped
	}
	return nil
}
