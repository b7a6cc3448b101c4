package aci

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

// patience is how long a stop may take before a kill deletes the group.
const patience = 30 * time.Second

// Terminate implements [launcher.Launcher]. A running worker is stopped with Azure's grace, which
// cannot be chosen. Its group remains, so that no other group can take its name. The group of a
// worker that has not started is deleted. A kill deletes the group if a stop has had no effect for
// half a minute.
func (l *Launcher) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	name, err := l.name(h)
	if err != nil {
		return false, nil //nolint:nilerr // not a worker of this launcher
	}
	health, err := l.look(ctx, name, true)
	if err != nil {
		return false, err
	}
	w := l.workers.of(name)
	l.workers.mu.Lock()
	stopped, group, hidden := w.stopped, w.group, w.group == nil
	l.workers.mu.Unlock()
	switch {
	case health.Status == launcher.NotFound, health.Status.Ended():
		return false, nil
	case health.Status == launcher.Starting && hidden:
		return false, fmt.Errorf("%w: container group %s is not visible yet", launcher.ErrTransient, name)
	}
	if _, ours := l.workerOf(group); !ours {
		return false, fmt.Errorf("%w: container group %s is not of this launcher; it is left alone",
			launcher.ErrInvalid, name)
	}
	kill := grace <= 0 && !stopped.IsZero() && time.Since(stopped) > patience
	if health.Status == launcher.Starting || kill {
		err = l.api.delete(ctx, name)
		if err == nil || errors.Is(err, launcher.ErrNotFound) {
			l.workers.mu.Lock()
			w.deleted, w.seen = time.Now(), time.Time{}
			if w.death == nil {
				w.death = &launcher.Health{Status: launcher.Failed, Cause: launcher.CauseCanceled,
					Message: "the container group was deleted when it was to stop", Started: health.Started,
					Ended: time.Now(), Tail: w.tail}
			}
			l.workers.mu.Unlock()
			return true, nil
		}
		return false, transient(err)
	}
	if stopped.IsZero() { // the stop deletes the worker's output
		if lines := l.lines(ctx, name, tailLines); len(lines) > 0 {
			l.workers.mu.Lock()
			w.tail = lines
			l.workers.mu.Unlock()
		}
	}
	err = l.api.stop(ctx, name)
	if err != nil && !errors.Is(err, errBusy) { // errBusy is normal: it is already stopping
		return false, transient(err)
	}
	l.workers.mu.Lock()
	defer l.workers.mu.Unlock()
	w.seen, w.asked = time.Time{}, time.Now()
	if w.stopped.IsZero() {
		w.stopped = w.asked
	}
	return true, nil
}

// Remove implements [launcher.Remover]. Groups of ended workers count against the quota until they
// are deleted.
func (l *Launcher) Remove(ctx context.Context, h launcher.Handle) error {
	name, err := l.name(h)
	if err != nil {
		return nil //nolint:nilerr // there is nothing to remove
	}
	health, err := l.look(ctx, name, true)
	if err != nil {
		return err
	}
	w := l.workers.of(name)
	l.workers.mu.Lock()
	group := w.group
	l.workers.mu.Unlock()
	switch {
	case health.Status == launcher.NotFound:
		return nil
	case !health.Status.Ended():
		return fmt.Errorf("aci: container group %s has not ended", name)
	}
	if group != nil {
		if _, ours := l.workerOf(group); !ours {
			return fmt.Errorf("%w: container group %s is not of this launcher; it is left alone", launcher.ErrInvalid,
				name)
		}
	}
	if err := l.api.delete(ctx, name); err != nil && !errors.Is(err, launcher.ErrNotFound) && !errors.Is(err, errBusy) {
		return transient(err)
	}
	l.workers.mu.Lock()
	defer l.workers.mu.Unlock()
	w.deleted, w.removed = time.Now(), true
	return nil
}
