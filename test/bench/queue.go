package main

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
)

// Bounds on the time from when a run can be read as QUEUED until it is claimed, with ten new runs a
// second.
const (
	claimP50 = 15 * time.Millisecond
	claimP99 = 60 * time.Millisecond
)

const nullYAML = "allow_secrets_in_argv: true\nlaunchers: {local: {kind: 'null'}}\nqueue: {max_concurrent_runs: -1}\n"

const parkedYAML = "run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\n"

// claimTime measures how fast a run is claimed, with notices and without. The time ends when the
// launcher is called, right after the commit of STARTING.
func claimTime(ctx context.Context, dir string) ([]result, error) {
	var results []result
	for _, kind := range storages() {
		for _, notices := range []bool{true, false} {
			name := kind + ": QUEUED to claimed, 10 runs a second"
			if !notices {
				name += ", without notices"
			}
			r, err := claimTimeOf(ctx, dir, kind, name, notices)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			results = append(results, r)
		}
	}
	return results, nil
}

// withoutNotices is a storage whose notices do not arrive.
type withoutNotices struct{ storage.Store }

func (withoutNotices) Hints(context.Context) iter.Seq2[storage.Hint, error] {
	return func(yield func(storage.Hint, error) bool) { yield(storage.Hint{}, storage.ErrNoNotices) }
}

func claimTimeOf(ctx context.Context, dir, kind, name string, notices bool) (result, error) {
	w, err := newWorld(ctx, dir, kind, parkedYAML, nullYAML)
	if err != nil {
		return result{}, err
	}
	if !notices {
		w.store = withoutNotices{w.store}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n := newNull()
	var times []time.Duration
	err = w.slipway(ctx, n.kind(), func(ctx context.Context) error {
		if _, err := w.enqueue(5, 0); err != nil { // to warm up
			return err
		}
		if err := n.wait(ctx, 5); err != nil {
			return err
		}
		queued, err := w.enqueue(samples, time.Second/10)
		if err != nil {
			return err
		}
		if err := n.wait(ctx, samples); err != nil {
			return err
		}
		for run, at := range queued {
			asked, _ := n.at(run)
			times = append(times, max(0, asked.Sub(at)))
		}
		return nil
	})
	if cerr := w.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return result{}, err
	}
	r := summarize(name, times, claimP99)
	r.BoundP50 = float64(claimP50.Microseconds()) / 1000
	r.OK = r.OK && r.P50 <= r.BoundP50
	return r, nil
}
