package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

func (p *program) runsTerminateCommand() *cobra.Command {
	f := &runFilter{}
	cmd := &cobra.Command{
		Use: "terminate [RUN...]", Short: "Cancel runs",
		Long: `Cancels runs as Terminate in Dagster's UI does, and also runs that are STARTING. A queued run is
canceled at once. A run in flight becomes CANCELING; the leading daemon sees that and stops its
worker. A run that Slipway did not launch is left alone: terminate it where it was launched.

With flags, every unfinished run that matches all flags is canceled, thousands in seconds.`,
		Example: "  slipway runs terminate 1a9ccfd4\n  slipway runs terminate --status QUEUED --job daily\n  slipway " +
			"runs terminate --tag dagster/backfill=abcdef --dry-run",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && !f.empty():
				return errors.New("either name runs or select them with flags, not both")
			case len(args) == 0 && f.empty():
				return errors.New("no run to cancel is given: either name runs or select them with flags, for " +
					"example --status QUEUED (--all: every unfinished run)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := parseStatuses(f.statuses); err != nil {
				return err
			}
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				name, err := daemon.Name(cmd.Context(), in, s)
				if err != nil {
					return err
				}
				return p.change(cmd.Context(), s, args, f, bulk{
					plan: func(r storage.Run) (storage.Transition, error) { return cancellation(r, name, time.Now()) },
					done: "canceled or asked to stop", would: "would be canceled", not: "not canceled",
				})
			})
		},
	}
	f.flags(cmd.Flags(), "canceled")
	cmd.Flags().StringSliceVar(&f.statuses, "status", nil,
		"only runs with this status, for example QUEUED; may be repeated")
	cmd.Flags().BoolVar(&f.all, "all", false, "every unfinished run")
	return cmd
}

// cancellation returns the transition that cancels a run or, for a run in flight, makes it
// CANCELING.
func cancellation(r storage.Run, instance string, now time.Time) (storage.Transition, error) {
	t := storage.Transition{Run: r.ID, From: []dagster.Status{r.Status}}
	switch {
	case r.Status == dagster.Queued || r.Status == dagster.NotStarted:
		canceling := dagster.NewEvent(r.Run, dagster.RunCanceling, now, "Canceling run from the queue.")
		t.Events = []dagster.Event{canceling,
			dagster.NewEvent(r.Run, dagster.RunCanceled, now.Add(time.Microsecond),
				"This run has been marked as canceled from outside the execution context.")}
	case r.Status.Finished() || r.Status == dagster.Canceling:
		return t, fmt.Errorf("run %s is already %s", r.ID, r.Status)
	case r.Launch == nil || r.Launch.Instance != instance || r.Launch.State == storage.Void:
		return t, fmt.Errorf("run %s was not launched by this Slipway: terminate it where it was launched", r.ID)
	default:
		t.Events = []dagster.Event{dagster.NewEvent(r.Run, dagster.RunCanceling, now,
			"Sending run termination request.")}
	}
	return t, nil
}

func (p *program) runsLogsCommand() *cobra.Command {
	var o launcher.LogOptions
	cmd := &cobra.Command{
		Use: "logs RUN", Short: "Show the output of a run's worker", Args: oneArg,
		Long: `Shows what a run's worker wrote to its standard output and error. The text comes from the target or,
if the worker was removed there, from slipway/logs in DAGSTER_HOME. The output of steps is in
Dagster's own compute logs; slipway runs show prints the events of the run.`,
		Example: "  slipway runs logs 1a9ccfd4 --tail 50\n  slipway runs logs 1a9ccfd4 --follow",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				return p.logs(cmd.Context(), in, s, args[0], o)
			})
		},
	}
	cmd.Flags().IntVar(&o.Tail, "tail", 0, "show only the last lines, this many (0: all)")
	least(cmd.Flags(), "tail", "0")
	cmd.Flags().BoolVar(&o.Follow, "follow", false, "continue until the worker ends")
	return cmd
}

func (p *program) logs(ctx context.Context, in *instance.Instance, s storage.Store, id string,
	o launcher.LogOptions) (err error) {
	r, err := find(ctx, s, id)
	if err != nil {
		return err
	}
	if r.Launch == nil || r.Handle == "" {
		return fmt.Errorf("run %s is %s and has no worker that Slipway started", r.ID, r.Status)
	}
	kept := monitor.KeptLog(daemon.Logs(in), launcher.ID{Run: r.ID, Attempt: r.Launch.Attempt})
	if text, err := os.ReadFile(kept); err == nil { // the worker was removed from its target
		return p.showLog(r, io.NopCloser(bytes.NewReader(lastLines(text, o.Tail))))
	}
	l, ok := in.Launchers[r.Launch.Launcher]
	if !ok {
		return fmt.Errorf("run %s was launched by %s, which slipway.yaml no longer has", r.ID, r.Launch.Launcher)
	}
	targets, err := openTargets(ctx, in, l.Name)
	if err != nil {
		return err
	}
	defer closing(&err, targets)
	reader, ok := launcher.As[launcher.LogReader](targets[l.Name].Launcher)
	if !ok {
		return fmt.Errorf("launchers of kind %s do not keep the output of workers", l.Kind.Name)
	}
	rc, err := reader.Logs(ctx, launcher.Handle(r.Handle), o)
	if err != nil {
		return err
	}
	return p.showLog(r, rc)
}

// lastLines returns the last n lines of a text, or all of it if n is 0.
func lastLines(text []byte, n int) []byte {
	for i := len(text) - 1; n > 0 && i > 0; i-- {
		if text[i-1] != '\n' {
			continue
		}
		if n--; n == 0 {
			return text[i:]
		}
	}
	return text
}

func (p *program) showLog(r storage.Run, rc io.ReadCloser) error {
	if p.json {
		text, err := io.ReadAll(rc)
		return errors.Join(err, rc.Close(),
			p.printJSON(map[string]string{"run_id": r.ID, "worker": r.Handle, "log": string(text)}))
	}
	_, err := io.Copy(p.out, rc)
	if errors.Is(err, context.Canceled) {
		err = nil // Ctrl-C ends --follow
	}
	return errors.Join(err, rc.Close())
}
