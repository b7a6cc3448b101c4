package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/execute"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
)

// enqueue holds the flags of runs enqueue.
type enqueue struct {
	job, steps, like string
	tags             map[string]string
	priority         int
	count            int
}

func (p *program) runsEnqueueCommand() *cobra.Command {
	var e enqueue
	cmd := &cobra.Command{
		Use: "enqueue [flags] [-- COMMAND ARG...]", Short: "Put a run into the queue",
		Long: `Puts a run into the queue and prints its ID. The run is either a command job, which Slipway's own
worker executes without Python, or a copy of an existing run.

A command job is one command after --, or steps from a YAML file:

  steps:
    extract: {command: [sh, -c, "echo rows"], timeout: 5m, retries: 2, retry_delay: 10s}
    load:    {command: [./load], needs: [extract], env: {MODE: full}}

The steps are stored in the run's config. Dagster's pages show the events and output of the run like
those of any other run.`,
		Example: "  slipway runs enqueue -- sh -c 'echo hello'\n  slipway runs enqueue --job nightly --steps " +
			"nightly.yaml --tag team=data\n  slipway runs enqueue --like 1a9ccfd4",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withStore(cmd.Context(), func(_ *instance.Instance, s storage.Store) error {
				return p.enqueue(cmd.Context(), s, e, args)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&e.job, "job", "", "name of the command job (default: command)")
	f.StringVar(&e.steps, "steps", "", "YAML `FILE` with the steps of the command job")
	f.StringVar(&e.like, "like", "", "copy this `RUN`, with its job, config, selection and tags")
	f.StringToStringVar(&e.tags, "tag", nil, "tag of the run, `KEY=VALUE`; may be repeated")
	f.IntVar(&e.priority, "priority", 0, "priority of the run; a higher one is launched sooner")
	f.IntVar(&e.count, "count", 1, "how many of these runs to enqueue")
	least(f, "count", "1")
	return cmd
}

// run returns one new run.
func (e enqueue) run(ctx context.Context, s storage.Store, args []string) (dagster.Run, error) {
	id := uuid.NewString()
	if e.like != "" {
		if len(args) > 0 || e.steps != "" || e.job != "" {
			return dagster.Run{}, errors.New("--like copies a run as it is: leave out the command, --steps and --job")
		}
		old, err := find(ctx, s, e.like)
		if err = errors.Join(err, old.Broken); err != nil {
			return dagster.Run{}, err
		}
		r, err := old.Copy(id)
		if err != nil {
			return dagster.Run{}, err
		}
		for _, k := range storage.OfWorkers(old.Tags) {
			delete(r.Tags, k)
		}
		maps.Copy(r.Tags, e.tags)
		return r, nil
	}
	raw, err := e.config(args)
	if err != nil {
		return dagster.Run{}, err
	}
	if _, err := execute.ParseJob(raw); err != nil {
		return dagster.Run{}, err
	}
	job := e.job
	if job == "" {
		job = "command"
	}
	return dagster.NewCommandRun(id, job, raw, e.tags), nil
}

// config returns the run config of the command job.
func (e enqueue) config(args []string) (json.RawMessage, error) {
	switch {
	case e.steps != "" && len(args) > 0:
		return nil, errors.New("give either a command or --steps, not both")
	case e.steps != "":
		text, err := os.ReadFile(e.steps)
		if err != nil {
			return nil, fmt.Errorf("--steps: %w", err)
		}
		if _, err := execute.ParseJobFile(e.steps, text); err != nil { // names the lines of the file
			return nil, err
		}
		n, err := config.Parse(e.steps, text)
		if err != nil {
			return nil, err
		}
		return dagster.Encode(config.Tree(n)), nil
	case len(args) == 0:
		return nil,
			errors.New("nothing to run: give a command after --, a file with --steps, or a run to copy with --like; " +
				"see slipway runs enqueue --help")
	}
	return dagster.Encode(map[string]any{"steps": map[string]any{"run": map[string]any{"command": args}}}), nil
}

func (p *program) enqueue(ctx context.Context, s storage.Store, e enqueue, args []string) error {
	var ids []string
	for range e.count {
		r, err := e.run(ctx, s, args)
		if err != nil {
			return err
		}
		if e.priority != 0 {
			r.Tags[dagster.PriorityTag] = fmt.Sprint(e.priority)
		}
		for k := range r.Tags {
			if strings.HasPrefix(k, storage.RowPrefix) {
				return fmt.Errorf("--tag %s: tags that begin with %s are Slipway's own", k, storage.RowPrefix)
			}
		}
		if err := s.AddRun(ctx, storage.NewRun{Run: r, At: time.Now().UTC().Truncate(time.Microsecond)}); err != nil {
			return err
		}
		ids = append(ids, r.ID)
	}
	if p.json {
		return p.printJSON(map[string]any{"run_ids": ids})
	}
	_, err := fmt.Fprintln(p.out, strings.Join(ids, "\n"))
	return err
}
