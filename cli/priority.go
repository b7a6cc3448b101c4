package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
)

func (p *program) runsPriorityCommand() *cobra.Command {
	f := &runFilter{}
	cmd := &cobra.Command{
		Use: "priority [RUN...] NUMBER", Short: "Change the priority of queued runs",
		Long: `Sets the tag dagster/priority of queued runs. Runs with a higher number leave the queue first; without
the tag a run has 0. The leading daemon takes the new order within seconds, and the log of each run
says who changed its priority. A number below zero needs -- before it.

With flags, the priority of every queued run that matches all flags is changed.`,
		Example: "  slipway runs priority 1a9ccfd4 10\n  slipway runs priority --tag dagster/backfill=abcdef -- -1",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return errors.New("the priority is missing: slipway runs priority [RUN...] NUMBER")
			case len(args) > 1 == f.empty():
				return nil
			}
			return errors.New(
				"either name runs before the priority, or select them with flags (--all: every queued run)")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			last := len(args) - 1
			n, ok := dagster.Int(args[last])
			if !ok {
				return fmt.Errorf("the priority %q is not an integer", args[last])
			}
			return p.withStore(cmd.Context(), func(_ *instance.Instance, s storage.Store) error {
				return p.change(cmd.Context(), s, args[:last], f, bulk{
					plan: func(r storage.Run) (storage.Transition, error) {
						return prioritized(r, n.String(), me(), time.Now())
					},
					done: "have priority " + n.String(), would: "would have priority " + n.String(), not: "not changed",
				})
			})
		},
	}
	f.flags(cmd.Flags(), "changed")
	cmd.Flags().BoolVar(&f.all, "all", false, "every queued run")
	return cmd
}

// prioritized returns the transition that changes a queued run's priority. The event tells people
// who did it, and everyone who reads runs that the run has changed.
func prioritized(r storage.Run, priority, by string, now time.Time) (storage.Transition, error) {
	if r.Status != dagster.Queued {
		return storage.Transition{}, fmt.Errorf("run %s is %s: only queued runs are ordered by priority", r.ID,
			r.Status)
	}
	text := fmt.Sprintf("[Slipway] The priority was changed from %s to %s by %s.", r.Priority(), priority, by)
	return storage.Transition{Run: r.ID, From: []dagster.Status{dagster.Queued},
		Tags:   map[string]string{dagster.PriorityTag: priority},
		Events: []dagster.Event{dagster.NewEngineEvent(r.Run, now, text, nil, nil)}}, nil
}
