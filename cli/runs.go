package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

func (p *program) runsCommand() *cobra.Command {
	runs := &cobra.Command{Use: "runs", Short: "List, show, enqueue and terminate runs",
		Long: `Lists, shows, enqueues and terminates the runs of an instance. Where a command needs RUN, give a run ID,
or the beginning of one that is unique among the newest 1000 runs.`}
	runs.AddCommand(p.runsEnqueueCommand(), p.runsExplainCommand(), p.runsListCommand(), p.runsLogsCommand(),
		p.runsShowCommand(), p.runsTerminateCommand(), p.runsPriorityCommand())
	return runs
}

// runView is a run as the commands show it. Times are RFC 3339; "" means not yet.
type runView struct {
	RunID    string            `json:"run_id"`
	Job      string            `json:"job"`
	Location string            `json:"location"`
	Status   dagster.Status    `json:"status"`
	Launcher string            `json:"launcher,omitempty"`
	Attempt  int               `json:"attempt,omitempty"`
	Handle   string            `json:"handle,omitempty"`
	Created  string            `json:"created"`
	Started  string            `json:"started,omitempty"`
	Ended    string            `json:"ended,omitempty"`
	Tags     map[string]string `json:"tags,omitempty"`
	Wait     *daemon.Wait      `json:"wait,omitempty"` // of a queued run that is shown by itself
	Events   []eventView       `json:"events,omitempty"`
}

type eventView struct {
	Time    string            `json:"time"`
	Type    dagster.EventType `json:"type,omitempty"`
	Step    string            `json:"step,omitempty"`
	Message string            `json:"message,omitempty"`
	Texts   []textView        `json:"metadata,omitempty"` // such as Cause, Last lines of the worker, Debug info
	Error   *errorView        `json:"error,omitempty"`
}

type textView struct {
	Label string `json:"label"`
	Text  string `json:"text"`
}

// errorView is an error with the exception that caused it.
type errorView struct {
	Class   string     `json:"class,omitempty"`
	Message string     `json:"message"`
	Stack   []string   `json:"stack,omitempty"`
	Cause   *errorView `json:"cause,omitempty"`
}

func viewError(e *dagster.ErrorInfo) *errorView {
	if e == nil {
		return nil
	}
	return &errorView{Class: e.Class, Message: strings.TrimSpace(e.Message), Stack: e.Stack, Cause: viewError(e.Cause)}
}

func viewEvent(e dagster.Event) eventView {
	v := eventView{Time: when(e.Time), Type: e.Type, Step: e.StepKey, Message: e.Message, Error: viewError(e.Error())}
	for _, m := range e.Texts() {
		v.Texts = append(v.Texts, textView(m))
	}
	return v
}

// lines returns the event's message, its texts and its error with causes, one line each.
func (v eventView) lines() []string {
	lines := strings.Split(v.Message, "\n")
	add := func(label, text string) {
		text = label + ": " + strings.TrimRight(text, "\n")
		for line := range strings.SplitSeq(text, "\n") {
			lines = append(lines, "  "+line)
		}
	}
	for _, m := range v.Texts {
		add(m.Label, m.Text)
	}
	label := "Error"
	for e := v.Error; e != nil; e = e.Cause {
		add(label, e.Message)
		label = "caused by"
	}
	return lines
}

func view(r storage.Run) runView {
	v := runView{
		RunID: r.ID, Job: r.Job, Location: r.Remote.Location, Status: r.Status, Handle: r.Handle,
		Created: when(r.Created), Started: when(r.Start), Ended: when(r.End),
	}
	if r.Launch != nil && r.Launch.State != storage.Void {
		v.Launcher, v.Attempt = r.Launch.Launcher, r.Launch.Attempt
	}
	return v
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

func (p *program) runsListCommand() *cobra.Command {
	var statuses []string
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List runs, newest first", Args: noArgs,
		Example: "  slipway runs list --status QUEUED,STARTED\n  slipway runs list --limit 5 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := storage.Filter{Newest: limit}
			var err error
			if f.Statuses, err = parseStatuses(statuses); err != nil {
				return err
			}
			return p.withStore(cmd.Context(), func(_ *instance.Instance, s storage.Store) error {
				return p.listRuns(cmd.Context(), s, f)
			})
		},
	}
	cmd.Flags().StringSliceVar(&statuses, "status", nil,
		"only runs with this status, for example QUEUED; may be repeated")
	cmd.Flags().IntVar(&limit, "limit", 20, "list at most this many runs; 0: all, oldest first")
	least(cmd.Flags(), "limit", "0")
	return cmd
}

// parseStatuses reads the values of --status.
func parseStatuses(texts []string) ([]dagster.Status, error) {
	var known []string
	for _, s := range dagster.Statuses() {
		known = append(known, string(s))
	}
	var out []dagster.Status
	for _, text := range texts {
		s := dagster.Status(strings.ToUpper(text))
		if !slices.Contains(dagster.Statuses(), s) {
			return nil, usageError{fmt.Errorf("--status %s: runs have no such status%s", text,
				config.Suggest(string(s), known))}
		}
		out = append(out, s)
	}
	return out, nil
}

func (p *program) listRuns(ctx context.Context, s storage.Store, f storage.Filter) error {
	runs, err := s.Runs(ctx, f)
	if err != nil {
		return err
	}
	views := []runView{}
	for _, r := range runs {
		views = append(views, view(r))
	}
	if p.json {
		return p.printJSON(views)
	}
	var t table
	t.row("RUN", "JOB", "LOCATION", "STATUS", "LAUNCHER", "CREATED")
	for _, v := range views {
		t.row(v.RunID, v.Job, v.Location, v.Status, dash(v.Launcher), dash(v.Created))
	}
	return t.print(p.out)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (p *program) runsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show RUN", Short: "Show one run with its events", Args: oneArg,
		Long: `Shows one run with its events and their details: causes, the last lines of a worker, debug info,
errors. For a queued run, also shows its place in the queue and everything that holds it back.

RUN is a run ID, or the beginning of one that is unique among the newest 1000 runs.`,
		Example: "  slipway runs show 1a9ccfd4",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				return p.showRun(cmd.Context(), in, s, args[0])
			})
		},
	}
}

// searchDepth is the number of newest runs that are searched for the beginning of an ID.
const searchDepth = 1000

// find finds a run by its ID or the beginning of it.
func find(ctx context.Context, s storage.Store, id string) (storage.Run, error) {
	runs, err := s.Runs(ctx, storage.Filter{IDs: []string{id}})
	if err != nil || len(runs) == 1 {
		return append(runs, storage.Run{})[0], err
	}
	all, err := s.Runs(ctx, storage.Filter{Newest: searchDepth})
	if err != nil {
		return storage.Run{}, err
	}
	for _, r := range all {
		if strings.HasPrefix(r.ID, id) {
			runs = append(runs, r)
		}
	}
	switch len(runs) {
	case 0:
		return storage.Run{}, fmt.Errorf("there is no run %s; slipway runs list shows the newest runs", id)
	case 1:
		return runs[0], nil
	}
	return storage.Run{}, fmt.Errorf(
		"the IDs of %d runs begin with %q; give more of the ID, which slipway runs list shows", len(runs), id)
}

func (p *program) showRun(ctx context.Context, in *instance.Instance, s storage.Store, id string) error {
	r, err := find(ctx, s, id)
	if err != nil {
		return err
	}
	events, err := s.Events(ctx, r.ID)
	if err != nil {
		return err
	}
	v := view(r)
	v.Tags = r.Shown()
	for _, e := range events {
		v.Events = append(v.Events, viewEvent(e))
	}
	if v.Wait, err = waitOf(ctx, in, s, r); err != nil {
		return err
	}
	if p.json {
		return p.printJSON(v)
	}
	var t table
	for _, f := range [][2]string{
		{"run", v.RunID}, {"job", v.Job}, {"location", v.Location}, {"status", string(v.Status)},
		{"launcher", v.Launcher}, {"worker", v.Handle},
		{"created", v.Created}, {"started", v.Started}, {"ended", v.Ended},
	} {
		t.row(f[0], dash(f[1]))
	}
	t.wait(v.Wait)
	t.row()
	for _, e := range v.Events {
		lines := e.lines()
		t.row(e.Time, dash(string(e.Type)), dash(e.Step), cell(lines[0]))
		for _, line := range lines[1:] {
			t.row("", "", "", cell(line))
		}
	}
	return t.print(p.out)
}

// waitOf returns why a run waits, or nil if the run is not queued.
func waitOf(ctx context.Context, in *instance.Instance, s storage.Store, r storage.Run) (*daemon.Wait, error) {
	if r.Status != dagster.Queued || r.Broken != nil {
		return nil, nil
	}
	w, err := daemon.Explain(ctx, in, s, r)
	return &w, err
}

// shownHolders is how many of the runs that hold a place are printed.
const shownHolders = 3

// holders adds the rows about the runs that hold the places of a limit.
func (t *table) holders(all []queue.Holder) {
	for _, h := range all[:min(len(all), shownHolders)] {
		since := "not started yet"
		if !h.Since.IsZero() {
			since = "since " + h.Since.Local().Format(time.DateTime)
		}
		t.row("  held by", fmt.Sprintf("%s %s, %s", h.RunID, cell(h.Job), since))
	}
	if more := len(all) - shownHolders; more > 0 {
		t.row("", fmt.Sprintf("and %s (--json has all)", count(more, "more run")))
	}
}

// wait adds the rows about a run that waits.
func (t *table) wait(w *daemon.Wait) {
	if w == nil {
		return
	}
	t.row("place", fmt.Sprintf("%d of %d queued", w.Place, w.Queued))
	for _, r := range w.Rules {
		t.row("waits for", fmt.Sprintf("%s: %s", r.Rule, cell(r.What)))
		t.holders(r.Holders)
	}
	if len(w.Rules) == 0 {
		t.row("waits for", "nothing that this command can see: it is launched when its turn comes")
	}
	if w.Last != "" {
		t.row("last launch", cell(w.Last))
	}
}
