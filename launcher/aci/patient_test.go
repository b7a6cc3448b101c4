package aci_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/aci"
)

// patient repeats a call if the target's answer leaves the outcome open, as package dispatch does
// for the daemon.
type patient struct{ *aci.Launcher }

// again calls f until it has an answer, or the context ends.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for {
		got, err := f()
		if err == nil || ctx.Err() != nil {
			return got, err
		}
		for _, answer := range []error{launcher.ErrInvalid, launcher.ErrDenied, launcher.ErrNotFound,
			launcher.ErrPending} {
			if errors.Is(err, answer) {
				return got, err
			}
		}
		select {
		case <-ctx.Done():
			return got, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p patient) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	return again(ctx, func() (launcher.Launched, error) { return p.Launcher.Launch(ctx, req) })
}

func (p patient) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	before, err := p.Health(ctx, h)
	if err != nil {
		return false, err
	}
	failed := false
	return again(ctx, func() (bool, error) {
		was, err := p.Launcher.Terminate(ctx, h, grace)
		if err != nil {
			failed = true
		}
		// A call without an answer may have been the one that stopped a live worker.
		return was || failed && err == nil && before.Status.Alive(), err
	})
}

func (p patient) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	return again(ctx, func() (launcher.Health, error) { return p.Launcher.Health(ctx, h) })
}

func (p patient) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	return again(ctx, func() ([]launcher.Health, error) { return p.Launcher.HealthOf(ctx, hs) })
}

func (p patient) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		all, err := again(ctx, func() (all []launcher.Worker, err error) {
			for w, err := range p.Launcher.List(ctx, f) {
				if err != nil {
					return nil, err
				}
				all = append(all, w)
			}
			return all, nil
		})
		for _, w := range all {
			if !yield(w, nil) {
				return
			}
		}
		if err != nil {
			yield(launcher.Worker{}, err)
		}
	}
}

func (p patient) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		synced := false
		for ctx.Err() == nil {
			for w, err := range p.Launcher.Watch(ctx) {
				if err != nil {
					break // it is watched again
				}
				if w.Synced && synced {
					continue
				}
				synced = synced || w.Synced
				if !yield(w, nil) {
					return
				}
			}
		}
	}
}

func (p patient) Remove(ctx context.Context, h launcher.Handle) error {
	_, err := again(ctx, func() (bool, error) {
		err := p.Launcher.Remove(ctx, h)
		if got, herr := p.Launcher.Health(ctx, h); err != nil && herr == nil && got.Status.Alive() {
			return false, errors.Join(launcher.ErrInvalid, err) // the error says that the worker is alive
		}
		return err == nil, err
	})
	return err
}

func (p patient) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	return again(ctx, func() (io.ReadCloser, error) { return p.Launcher.Logs(ctx, h, o) })
}

func (p patient) Describe(ctx context.Context, h launcher.Handle, logs bool) (json.RawMessage, error) {
	return again(ctx, func() (json.RawMessage, error) { return p.Launcher.Describe(ctx, h, logs) })
}
