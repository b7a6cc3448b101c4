package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// runFilter selects runs by status, job, location and tags.
type runFilter struct {
	statuses, jobs, locations, tags []string
	all, dry                        bool
}

func (f *runFilter) empty() bool {
	return len(f.statuses)+len(f.jobs)+len(f.locations)+len(f.tags) == 0 && !f.all
}

// wants reports whether a run matches every part of the filter that is set.
func (f *runFilter) wants(r dagster.Run) bool {
	part := func(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }
	for _, t := range f.tags {
		key, value, exact := strings.Cut(t, "=")
		if got, ok := r.Tags[key]; !ok || exact && got != value {
			return false
		}
	}
	status := len(f.statuses) == 0 || slices.ContainsFunc(f.statuses, func(s string) bool {
		return strings.EqualFold(s, string(r.Status))
	})
	return status && part(f.jobs, r.Job) && part(f.locations, r.Remote.Location)
}

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
				if len(args) > 0 {
					return p.terminate(cmd.Context(), s, name, args)
				}
				return p.terminateMany(cmd.Context(), s, name, f)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.statuses, "status", nil, "only runs with this status, for example QUEUED; may be repeated")
	flags.StringSliceVar(&f.jobs, "job", nil, "only runs of this job; may be repeated")
	flags.StringSliceVar(&f.locations, "location", nil, "only runs of this code location; may be repeated")
	flags.StringArrayVar(&f.tags, "tag", nil,
		"only runs with this `TAG`, KEY or KEY=VALUE; if repeated, runs with all of them")
	flags.BoolVar(&f.all, "all", false, "every unfinished run")
	flags.BoolVar(&f.dry, "dry-run", false, "only show which runs would be canceled")
	return cmd
}

// terminateBatch is how many runs are canceled in one transaction.
const terminateBatch = 200

// terminateMany cancels the runs that match a filter.
func (p *program) terminateMany(ctx context.Context, s storage.Store, instance string, f *runFilter) error {
	runs, err := s.Runs(ctx, storage.Filter{Statuses: dagster.UnfinishedStatuses()})
	if err != nil {
		return err
	}
	counts := map[string]int{}
	views := []outcomeView{}
	var batch []storage.Transition
	flush := func() error {
		out, err := s.RecordAll(ctx, batch)
		for i, o := range out {
			v := outcomeView{RunID: batch[i].Run, Status: o.Status}
			if !o.Done {
				v.Error = fmt.Sprintf("run %s has just become %s; try again", v.RunID, o.Status)
				counts["not canceled"]++
			} else {
				counts[string(o.Status)]++
			}
			views = append(views, v)
		}
		if !p.json && err == nil && len(runs) > terminateBatch {
			_, err = fmt.Fprintf(p.out, "%s done\n", count(len(views), "run"))
		}
		batch = batch[:0]
		return err
	}
	now := time.Now()
	for _, r := range runs {
		if r.Broken != nil || !f.wants(r.Run) {
			continue
		}
		t, err := cancellation(r, instance, now)
		switch {
		case err != nil:
			counts["left alone"]++
			views = append(views, outcomeView{RunID: r.ID, Status: r.Status, Error: err.Error()})
		case f.dry:
			counts[string(r.Status)]++
			views = append(views, outcomeView{RunID: r.ID, Status: r.Status})
		default:
			batch = append(batch, t)
		}
		if len(batch) == terminateBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(batch) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	if p.json {
		return p.printJSON(views)
	}
	what := "canceled or asked to stop"
	if f.dry {
		what = "would be canceled"
	}
	text := count(len(views)-counts["left alone"]-counts["not canceled"], "run") + " " + what
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		text += fmt.Sprintf("; %s: %d", k, counts[k])
	}
	_, err = fmt.Fprintln(p.out, text)
	return err
}

// outcomeView is the outcome for one run.
type outcomeView struct {
	RunID  string         `json:"run_id"`
	Status dagster.Status `json:"status"`
	Error  string         `json:"error,omitempty"`
}

func (p *program) terminate(ctx context.Context, s storage.Store, instance string, ids []string) error {
	var views []outcomeView
	var failed int
	for _, id := range ids {
		v, err := terminateOne(ctx, s, instance, id)
		if err != nil {
			failed++
			v.Error = err.Error()
		}
		views = append(views, v)
		if !p.json {
			text := "run " + v.RunID + ": " + string(v.Status)
			if err != nil {
				text = err.Error()
			}
			if _, err := fmt.Fprintln(p.out, text); err != nil {
				return err
			}
		}
	}
	var err error
	if p.json {
		err = p.printJSON(views)
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %s not canceled", failed, count(len(ids), "run")))
	}
	return err
}

// terminateOne cancels one run.
func terminateOne(ctx context.Context, s storage.Store, instance, id string) (outcomeView, error) {
	r, err := find(ctx, s, id)
	if err = errors.Join(err, r.Broken); err != nil {
		return outcomeView{RunID: id}, err
	}
	v := outcomeView{RunID: r.ID, Status: r.Status}
	t, err := cancellation(r, instance, time.Now())
	if err != nil {
		return v, err
	}
	out, err := s.Record(ctx, t)
	if err == nil && !out.Done {
		err = fmt.Errorf("run %s has just become %s; try again", r.ID, out.Status)
	}
	if out.Status != "" {
		v.Status = out.Status
	}
	return v, err
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
