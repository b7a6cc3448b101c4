package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/storage"
)

// sweptView is a worker that sweep stops or removes.
type sweptView struct {
	Launcher string `json:"launcher"`
	RunID    string `json:"run_id"`
	Worker   string `json:"worker"`
	Do       string `json:"do"` // stop or remove
	Why      string `json:"why"`
	Problem  string `json:"problem,omitempty"`
}

func (p *program) sweepCommand() *cobra.Command {
	var dry bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "sweep [LAUNCHER...]", Short: "Stop workers that no run needs, and remove ended workers",
		Long: `Compares the workers on the targets with the storage, as the daemon does each minute. Workers whose
run has ended or is gone are stopped. Ended workers are removed as launchers.NAME.remove says, after
their output is saved. Only workers that carry the ID of this instance are touched.`,
		Example: "  slipway sweep --dry-run\n  slipway sweep docker --grace 0s",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				return p.sweep(cmd.Context(), in, s, args, dry, grace)
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be done, do nothing")
	cmd.Flags().DurationVar(&grace, "grace", monitor.OrphanGrace,
		"how long a worker may continue after the end of its run")
	least(cmd.Flags(), "grace", "0s")
	return cmd
}

func (p *program) sweep(ctx context.Context, in *instance.Instance, s storage.Store, names []string, dry bool,
	grace time.Duration) (err error) {
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(in.Launchers))
	}
	targets, err := openTargets(ctx, in, names...)
	if err != nil {
		return err
	}
	defer closing(&err, targets)
	name, err := daemon.Name(ctx, in, s)
	if err != nil {
		return err
	}
	sweeper := daemon.Sweeper(in, name, s, targets, slog.New(slog.DiscardHandler))
	sweeper.Grace = grace
	views := []sweptView{}
	var errs []error
	for _, name := range names {
		found, err := sweeper.Look(ctx, targets[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		for _, f := range found {
			v := sweptView{Launcher: name, RunID: f.Worker.ID.Run, Worker: string(f.Worker.Handle), Do: "remove",
				Why: f.Why}
			if f.Stop {
				v.Do = "stop"
			}
			if !dry {
				if err := sweeper.Act(ctx, f); err != nil {
					v.Problem = err.Error()
					errs = append(errs, fmt.Errorf("%s: %s: %w", name, v.Worker, err))
				}
			}
			views = append(views, v)
		}
	}
	if p.json {
		return errors.Join(append(errs, p.printJSON(views))...)
	}
	var t table
	t.row("LAUNCHER", "WORKER", "DO", "WHY")
	for _, v := range views {
		t.row(v.Launcher, v.Worker, v.Do, v.Why)
	}
	return errors.Join(append(errs, t.print(p.out))...)
}
