package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/launcher"
)

// demoRun is one run of the demo and its expected end.
type demoRun struct {
	job, partition string
	want           dagster.Status
	steps          map[string]any // of a command job
}

func demoRuns() []demoRun {
	runs := []demoRun{{job: "yearly", want: dagster.Success}, {job: "forecast", want: dagster.Success},
		{job: "snow_in_july", want: dagster.Failure}}
	for month := 1; month <= 8; month++ {
		runs = append(runs, demoRun{job: "monthly", partition: fmt.Sprintf("2014-%02d-01", month),
			want: dagster.Success})
	}
	return append(runs, demoRun{job: "yearly", want: dagster.Success})
}

// commandRuns returns the runs of the demo without Dagster: command jobs, which need only this
// program.
func commandRuns() []demoRun {
	sh := func(script string) map[string]any { return map[string]any{"command": []string{"sh", "-c", script}} }
	after := func(step map[string]any, needs ...string) map[string]any { step["needs"] = needs; return step }
	etl := func(month int) map[string]any {
		return map[string]any{
			"extract":   sh(fmt.Sprintf("echo fetching month %d; sleep 0.3; echo 31 rows", month)),
			"transform": after(sh("sleep 0.2; echo cleaned"), "extract"),
			"load":      after(sh("echo loaded; echo a line on standard error >&2"), "transform"),
		}
	}
	flaky := sh(`test "$DAGSTER_STEP_ATTEMPT" = 2 || { echo not yet; exit 75; }; echo now`)
	flaky["retries"] = 2
	runs := []demoRun{
		{job: "report", want: dagster.Success,
			steps: map[string]any{"left": sh("sleep 0.4; echo l"), "right": sh("sleep 0.4; echo r"),
				"join": after(sh("echo both"), "left", "right")}},
		{job: "flaky", want: dagster.Success, steps: map[string]any{"ask": flaky}},
		{job: "snow_in_july", want: dagster.Failure,
			steps: map[string]any{"measure": sh("echo 'no snow in July' >&2; exit 3"),
				"publish": after(sh("true"), "measure")}},
	}
	for month := 1; month <= 9; month++ {
		runs = append(runs, demoRun{job: "monthly", partition: fmt.Sprintf("2014-%02d-01", month),
			want: dagster.Success, steps: etl(month)})
	}
	return runs
}

const (
	demoMarker = ".slipway-demo" // marks the demo's folder: only a folder with it is ever removed
	demoLimit  = 4
	demoTime   = 10 * time.Minute
)

// demo holds the state of one slipway demo.
type demo struct {
	*program
	bin, project string
	once         bool
	live         bool // redraw the table in place
	dagster      bool // with a real dagster-webserver
	server       *webserver.Server
}

func (p *program) demoCommand() *cobra.Command {
	d := &demo{program: p}
	cmd := &cobra.Command{
		Use: "demo", Short: "Launch a dozen runs on a fresh instance", Args: noArgs,
		Long: `Makes a fresh instance on SQLite in --home (default: .demo), puts a dozen runs into its queue,
launches them as slipway daemon does, and shows their progress. The exit code is 0 only if every run
ended as expected.

Without --dagster the demo needs only this program: its runs are command jobs. With --dagster it
starts a real dagster-webserver on an example project and submits real runs, as the "Launch run"
button does. On a terminal it then continues until Ctrl-C, so that you can look at the pages and
launch runs yourself. Without a terminal, or with ONCE=1 in the environment, it stops everything
when the runs have ended.

In Slipway's sources, make demo installs what --dagster needs and starts the demo with it.`,
		Example: "  slipway demo\n  slipway demo --dagster --bin ~/venv/bin",
		RunE: func(cmd *cobra.Command, _ []string) error {
			terminal := isTerminal(os.Stdout)
			once, _ := p.env("ONCE")
			d.once, d.live = once != "" || !terminal, terminal
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&d.dagster, "dagster", false, "start a real dagster-webserver with an example project")
	cmd.Flags().StringVar(&d.bin, "bin", ".venv/bin", "folder with dagster-webserver and its Python")
	cmd.Flags().StringVar(&d.project, "project", "examples/etl/definitions.py", "Python file of the example project")
	return cmd
}

// isTerminal reports whether f is a character device other than /dev/null.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (err error) {
	if d.home == "" {
		d.home = ".demo"
	}
	for _, path := range []*string{&d.home, &d.bin, &d.project} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if d.dagster {
		if _, err := os.Stat(filepath.Join(d.bin, "dagster-webserver")); err != nil {
			return fmt.Errorf(
				"there is no dagster-webserver in %s: run make demo in Slipway's source, which installs it there (it "+
					"needs Python 3.10 or newer), or name its folder with --bin", d.bin)
		}
	}
	if err := d.prepare(); err != nil {
		return err
	}
	if d.dagster {
		d.say("starting dagster-webserver on %s (log: %s)", d.project, filepath.Join(d.home, "webserver.log"))
		if d.server, err = webserver.Start(ctx,
			webserver.Options{Bin: d.bin, Home: d.home, Locations: []string{d.project}}); err != nil {
			return err
		}
		defer d.server.Stop()
	} else if err := sqlite.Create(ctx, d.home); err != nil {
		return err
	}
	d.say("starting slipway (log: %s)", filepath.Join(d.home, "slipway.log"))
	log, err := os.Create(filepath.Join(d.home, "slipway.log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	return d.withStore(ctx, func(in *instance.Instance, s storage.Store) error {
		g, ctx := errgroup.WithContext(ctx)
		ctx, stop := context.WithCancel(ctx)
		g.Go(func() error {
			defer stop()
			return (&daemon.Daemon{Instance: in, Store: s, Log: slog.New(slog.NewTextHandler(log, nil)),
				Worker: goWorker()}).Run(ctx)
		})
		g.Go(func() error {
			defer stop()
			return d.show(ctx, in, s)
		})
		return g.Wait()
	})
}

// prepare creates a fresh DAGSTER_HOME for the demo.
func (d *demo) prepare() error {
	marker := filepath.Join(d.home, demoMarker)
	if _, err := os.Stat(marker); err == nil {
		if err := os.RemoveAll(d.home); err != nil {
			return err
		}
	} else if entries, err := os.ReadDir(d.home); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty and not from an earlier demo; name another folder with --home", d.home)
	}
	if err := os.MkdirAll(d.home, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		demoMarker: "made by slipway demo; removed by the next one\n",
		"dagster.yaml": "# So that a dagster-daemon, if you start one, leaves launching to Slipway:\nrun_queue: " +
			"{max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\n" +
			"telemetry: {enabled: false}\nnux: {enabled: false}\n",
		"slipway.yaml": fmt.Sprintf("queue: {max_concurrent_runs: %d}\n", demoLimit),
	} {
		if err := os.WriteFile(filepath.Join(d.home, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// row is one line of the table.
type row struct {
	demoRun
	id     string
	status dagster.Status
	// Time since the run was queued; 0 until it happens.
	claimed, exec, start, end time.Duration
}

// show submits the runs, draws the table until all have ended, and sums up.
func (d *demo) show(ctx context.Context, in *instance.Instance, s storage.Store) error {
	var rows []*row
	how, runs := "put into the queue", commandRuns()
	if d.dagster {
		how, runs = "submitted through Dagster's GraphQL", demoRuns()
	}
	for _, r := range runs {
		id, err := d.submit(ctx, s, r)
		if err != nil {
			return err
		}
		rows = append(rows, &row{demoRun: r, id: id})
	}
	d.say("%d runs %s; at most %d run at a time\n", len(rows), how, demoLimit)
	local := in.Launchers[in.Settings.Default]
	workers, err := local.Kind.Open(ctx, local.Config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	deadline := time.Now().Add(demoTime)
	drawn := 0
	for {
		done := 0
		for _, r := range rows {
			if err := r.update(ctx, s, workers); err != nil {
				return err
			}
			if r.status.Finished() {
				done++
			}
		}
		if d.live {
			drawn = d.redraw(rows, drawn)
		}
		if done == len(rows) {
			break
		}
		if time.Now().After(deadline) {
			d.table(d.out, rows)
			return fmt.Errorf("%d of %d runs have not ended after %v; see %s", len(rows)-done, len(rows), demoTime,
				filepath.Join(d.home, "slipway.log"))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	if !d.live {
		d.table(d.out, rows)
	}
	return d.summary(ctx, rows)
}

// submit puts one run into the queue.
func (d *demo) submit(ctx context.Context, s storage.Store, r demoRun) (string, error) {
	if d.dagster {
		return d.server.Launch(ctx, webserver.Job{Location: "etl", Name: r.job, Partition: r.partition})
	}
	tags := map[string]string{}
	if r.partition != "" {
		tags["dagster/partition"] = r.partition
	}
	run := dagster.NewCommandRun(uuid.NewString(), r.job, dagster.Encode(map[string]any{"steps": r.steps}), tags)
	return run.ID, s.AddRun(ctx, storage.NewRun{Run: run, At: time.Now().UTC().Truncate(time.Microsecond)})
}

// update reads the progress of a run.
func (r *row) update(ctx context.Context, s storage.Store, workers launcher.Launcher) error {
	if r.status.Finished() {
		return nil
	}
	runs, err := s.Runs(ctx, storage.Filter{IDs: []string{r.id}})
	if err != nil || len(runs) == 0 {
		return err
	}
	events, err := s.Events(ctx, r.id, dagster.StatusEventTypes()...)
	if err != nil || len(events) == 0 {
		return err
	}
	queued := events[0].Time
	for _, e := range events {
		switch since := e.Time.Sub(queued); {
		case e.Type == dagster.RunStarting:
			r.claimed = since
		case e.Type == dagster.RunStart:
			r.start = since
		case e.Type.Status().Finished():
			r.end = since
		}
	}
	if runs[0].Handle != "" {
		h, err := workers.Health(ctx, launcher.Handle(runs[0].Handle))
		if err == nil && !h.Started.IsZero() {
			r.exec = h.Started.Sub(queued)
		}
	}
	r.status = runs[0].Status
	return nil
}

func (d *demo) table(w io.Writer, rows []*row) {
	var t table
	t.row("RUN", "JOB", "STATE", "QUEUED", "TO EXEC", "TO START", "TOTAL")
	for _, r := range rows {
		job := r.job
		if r.partition != "" {
			job += " " + r.partition
		}
		t.row(r.id[:8], job, r.status, short(r.claimed), short(r.exec), short(r.start), short(r.end))
	}
	_ = t.print(w)
}

func short(t time.Duration) string {
	switch {
	case t <= 0:
		return "-"
	case t < time.Second:
		return fmt.Sprintf("%d ms", t.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", t.Seconds())
}

// redraw draws the table over the previous one and returns its height in lines.
func (d *demo) redraw(rows []*row, drawn int) int {
	var b strings.Builder
	d.table(&b, rows)
	text := b.String()
	if drawn > 0 {
		text = fmt.Sprintf("\x1b[%dA", drawn) + strings.ReplaceAll(text, "\n", "\x1b[K\n")
	}
	_, _ = io.WriteString(d.out, text)
	return strings.Count(b.String(), "\n")
}

func (d *demo) summary(ctx context.Context, rows []*row) error {
	var wrong []string
	ends := map[dagster.Status]int{} // number of runs that ended as expected, by status
	var fastest, slowest time.Duration
	for _, r := range rows {
		if r.status == r.want {
			ends[r.status]++
		} else {
			wrong = append(wrong, fmt.Sprintf("%s (%s) ended as %s, not %s", r.id, r.job, r.status, r.want))
		}
		launch := r.exec - r.claimed
		if fastest == 0 || launch < fastest {
			fastest = launch
		}
		slowest = max(slowest, launch)
	}
	otherwise := ""
	if len(wrong) > 0 {
		otherwise = fmt.Sprintf(", %d did not end as expected", len(wrong))
	}
	d.say("\n%d runs: %d succeeded, %d failed as expected%s; from claim to the worker's exec %s to %s", len(rows),
		ends[dagster.Success], ends[dagster.Failure], otherwise, short(fastest), short(slowest))
	if d.dagster {
		d.say("  runs:       %s/runs", d.server.URL)
		d.say("  the failed: %s/runs/%s", d.server.URL, rows[2].id)
		d.say("  assets:     %s/assets", d.server.URL)
	} else {
		d.say("  the failed: slipway runs show %s --home %s", rows[2].id[:8], d.home)
	}
	d.say("  home:       %s (slipway runs list --home %s)", d.home, d.home)
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "\n"))
	}
	if d.once || !d.dagster {
		d.say("every run ended as it should")
		return nil
	}
	d.say("\nlaunch more from the pages; Ctrl-C stops everything")
	<-ctx.Done()
	return nil
}
