package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

// terminateBound is the time in which thousands of queued runs must be canceled.
const terminateBound = 30 * time.Second

// terminations measures how long slipway runs terminate takes for thousands of queued runs.
func terminations(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench terminate", flag.ContinueOnError)
	n := flags.Int("n", 5000, "how many runs wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, bin, err := built(ctx, "slipway")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var missed []error
	for _, kind := range storages() {
		took, err := terminationOf(ctx, dir, kind, bin, *n)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		fmt.Printf("%s: slipway runs terminate --status QUEUED of %d runs took %.1f s; bound %.0f s\n", kind, *n,
			took.Seconds(), terminateBound.Seconds())
		if took > terminateBound {
			missed = append(missed, fmt.Errorf("%s: the bound was missed", kind))
		}
	}
	return errors.Join(missed...)
}

func terminationOf(ctx context.Context, dir, kind, bin string, n int) (time.Duration, error) {
	w, err := newWorld(ctx, dir, kind, parkedYAML, "")
	if err != nil {
		return 0, err
	}
	if _, err := w.enqueue(n, 0); err != nil {
		return 0, errors.Join(err, w.close())
	}
	began := time.Now()
	out, err := exec.CommandContext(ctx, bin, "--home", w.home, "runs", "terminate", "--status",
		"QUEUED").CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return took, errors.Join(fmt.Errorf("%w: %s", err, out), w.close())
	}
	canceled, err := w.store.Runs(ctx, storage.Filter{Statuses: []dagster.Status{dagster.Canceled}})
	if err == nil && len(canceled) != n {
		err = fmt.Errorf("%d of %d runs are CANCELED", len(canceled), n)
	}
	return took, errors.Join(err, w.close())
}
