package process

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/slipway-run/slipway/launcher"
)

// sweepInterval is how often the locks of workers that were alive are looked at, for those that
// ended together with their supervisor and left no record.
const sweepInterval = 2 * time.Second

// Watch implements [launcher.Watcher]: the supervisors' records appear in one folder, which the kernel tells of.
func (l *Launcher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		fail := func(err error) { yield(launcher.Worker{}, fmt.Errorf("process: watch: %w", err)) }
		w, err := fsnotify.NewWatcher()
		if err != nil {
			fail(err)
			return
		}
		defer func() { _ = w.Close() }()
		if err := w.Add(filepath.Join(l.root, "state")); err != nil {
			fail(err)
			return
		}
		alive := map[string]launcher.Status{}
		look := func(name string) bool { // yields a worker whose status has changed
			worker, ok, err := l.worker(ctx, name)
			if err != nil {
				fail(err)
				return false
			}
			if !ok || alive[name] == worker.Health.Status {
				return true
			}
			alive[name] = worker.Health.Status
			if worker.Health.Status.Ended() {
				delete(alive, name)
			}
			return yield(worker, nil)
		}
		names, err := l.names(launcher.Filter{})
		if err != nil {
			fail(err)
			return
		}
		for _, name := range names {
			if !look(name) {
				return
			}
		}
		if !yield(launcher.Worker{Synced: true}, nil) {
			return
		}
		sweep := time.NewTicker(sweepInterval)
		defer sweep.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case err := <-w.Errors:
				fail(err)
				return
			case e := <-w.Events:
				name := filepath.Base(e.Name)
				name, isBegun := strings.CutSuffix(name, ".begun")
				name, isEnded := strings.CutSuffix(name, ".ended")
				if (isBegun || isEnded) && e.Has(fsnotify.Create) && !look(name) {
					return
				}
			case <-sweep.C:
				for name := range alive {
					if !look(name) {
						return
					}
				}
			}
		}
	}
}
