package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/launcher/process"
)

// launcherPython is what our launchers for stock Dagster have in common: they have no settings and
// terminate nothing.
const launcherPython = `import os, subprocess, time
from dagster import DagsterEvent, DagsterEventType
from dagster._core.launcher import RunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._serdes import ConfigurableClass


class Launcher(RunLauncher, ConfigurableClass):
    def __init__(self, inst_data=None):
        self._inst_data = inst_data
        self._workers = {}
        super().__init__()

    inst_data = property(lambda self: self._inst_data)

    @classmethod
    def config_type(cls):
        return {}

    @classmethod
    def from_config_value(cls, inst_data, config_value):
        return cls(inst_data=inst_data)

    def terminate(self, run_id):
        return False
`

// nullPython is a launcher that only records when it was called.
const nullPython = launcherPython + `

class NullLauncher(Launcher):
    def launch_run(self, context):
        line = "%s %.6f\n" % (context.dagster_run.run_id, time.time())
        fd = os.open(os.environ["NULL_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, line.encode())
        os.close(fd)
`

// comparison is one line of the comparison. Times are in milliseconds, from when a run could be
// read as QUEUED.
type comparison struct {
	System    string  `json:"system"`
	Storage   string  `json:"storage"`
	What      string  `json:"what"`
	Runs      int     `json:"runs"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	PerSecond float64 `json:"launches_per_second,omitempty"`
}

// stockVariant is a setting of the stock queue daemon.
type stockVariant struct {
	interval int // seconds between two looks at the queue
	threads  bool
}

func (v stockVariant) String() string {
	text := fmt.Sprintf("dagster-daemon, every %d s", v.interval)
	if v.threads {
		text += ", threads"
	}
	return text
}

// yaml returns the dagster.yaml of the variant.
func (v stockVariant) yaml(launcher string) string {
	return fmt.Sprintf(
		"run_queue: {max_concurrent_runs: -1, dequeue_interval_seconds: %d, dequeue_use_threads: "+
			"%v}\nrun_monitoring: {enabled: false}\n%s", v.interval, v.threads, launcher)
}

const nullSection = "run_launcher: {module: bench_null, class: NullLauncher}\n"

// bin is the folder of Dagster's programs.
const bin = ".venv/bin"

// arrivals is how many runs are enqueued, ten a second, to measure how long one run waits.
const arrivals = 60

// compare measures Slipway beside stock Dagster, prints a table, and writes JSON to a file.
func compare(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench stock", flag.ContinueOnError)
	sizes := flags.String("runs", "200,1000", "how many runs wait in the queue, one size after the other")
	real := flags.Int("real", 8, "how many runs with real workers")
	alone := flags.Bool("alone", false, "measure Slipway only")
	out := flags.String("out", "bench-stock.json", "file for the results as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(bin, "dagster-daemon")); err != nil {
		return fmt.Errorf("no Dagster in .venv: make venv installs it: %w", err)
	}
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.WriteFile(filepath.Join(dir, "bench_null.py"), []byte(nullPython), 0o600); err != nil {
		return err
	}
	b := &bencher{dir: dir}
	if !*alone {
		b.variants = []stockVariant{{1, false}, {1, true}, {5, false}, {5, true}}
	}
	for _, kind := range storages() {
		for size := range strings.SplitSeq(*sizes, ",") {
			n, err := strconv.Atoi(size)
			if err != nil {
				return err
			}
			if err := b.backlog(ctx, kind, n); err != nil {
				return err
			}
		}
		if err := b.arriving(ctx, kind); err != nil {
			return err
		}
		if err := b.workers(ctx, kind, *real); err != nil {
			return err
		}
	}
	return b.print(*out)
}

type bencher struct {
	dir      string
	variants []stockVariant
	lines    []comparison
}

func (b *bencher) add(c comparison) {
	b.lines = append(b.lines, c)
	fmt.Printf("%-36s %-9s %-34s n=%-5d p50 %9.1f ms  p99 %9.1f ms", c.System, c.Storage, c.What, c.Runs, c.P50, c.P99)
	if c.PerSecond > 0 {
		fmt.Printf("  %8.1f launches/s", c.PerSecond)
	}
	fmt.Println()
}

// backlog measures how fast runs are launched that are queued when the daemon starts.
func (b *bencher) backlog(ctx context.Context, kind string, n int) error {
	what := fmt.Sprintf("%d queued, do-nothing launcher", n)
	w, err := newWorld(ctx, b.dir, kind, parkedYAML, nullYAML)
	if err != nil {
		return err
	}
	queued, err := w.enqueue(n, 0)
	if err != nil {
		return err
	}
	null := newNull()
	err = w.slipway(ctx, null.kind(), func(ctx context.Context) error { return null.wait(ctx, n) })
	if err := errors.Join(err, w.close()); err != nil {
		return err
	}
	launched := map[string]time.Time{}
	for run := range queued {
		launched[run], _ = null.at(run)
	}
	b.add(rate("slipway", kind, what, launched))
	for _, v := range b.variants {
		w, err := newWorld(ctx, b.dir, kind, v.yaml(nullSection), "")
		if err != nil {
			return err
		}
		if _, err = w.enqueue(n, 0); err != nil {
			return err
		}
		launched, err := b.stock(ctx, w, func(s *stockDaemon) error { return s.wait(ctx, n) })
		if err := errors.Join(err, w.close()); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
		b.add(rate(v.String(), kind, what, launched))
	}
	return nil
}

// rate returns the launches per second between the first and the last, and the time since the
// first.
func rate(system, kind, what string, launched map[string]time.Time) comparison {
	var at []time.Time
	for _, t := range launched {
		at = append(at, t)
	}
	slices.SortFunc(at, time.Time.Compare)
	var since []time.Duration
	for _, t := range at {
		since = append(since, t.Sub(at[0]))
	}
	r := summarize("", since, 0)
	return comparison{System: system, Storage: kind, What: what, Runs: len(at), P50: r.P50, P99: r.P99,
		PerSecond: float64(len(at)-1) / since[len(since)-1].Seconds()}
}

// arriving measures how long a run waits that is enqueued while the daemon runs.
func (b *bencher) arriving(ctx context.Context, kind string) error {
	const what = "QUEUED to launcher, 10 runs/s"
	wait := func(queued, launched map[string]time.Time) comparison {
		var times []time.Duration
		for run, at := range queued {
			times = append(times, max(0, launched[run].Sub(at)))
		}
		r := summarize("", times, 0)
		return comparison{Storage: kind, What: what, Runs: len(times), P50: r.P50, P99: r.P99}
	}
	w, err := newWorld(ctx, b.dir, kind, parkedYAML, nullYAML)
	if err != nil {
		return err
	}
	null := newNull()
	var queued map[string]time.Time
	err = w.slipway(ctx, null.kind(), func(ctx context.Context) (err error) {
		if _, err = w.enqueue(1, 0); err != nil {
			return err
		}
		if err = null.wait(ctx, 1); err != nil {
			return err
		}
		if queued, err = w.enqueue(arrivals, time.Second/10); err != nil {
			return err
		}
		return null.wait(ctx, arrivals)
	})
	if err := errors.Join(err, w.close()); err != nil {
		return err
	}
	c := wait(queued, null.asked)
	c.System = "slipway"
	b.add(c)
	for _, v := range b.variants {
		w, err := newWorld(ctx, b.dir, kind, v.yaml(nullSection), "")
		if err != nil {
			return err
		}
		launched, err := b.stock(ctx, w, func(s *stockDaemon) error {
			if _, err := w.enqueue(1, 0); err != nil {
				return err
			}
			if err := s.wait(ctx, 1); err != nil {
				return err
			}
			if queued, err = w.enqueue(arrivals, time.Second/10); err != nil {
				return err
			}
			return s.wait(ctx, arrivals+1)
		})
		if err := errors.Join(err, w.close()); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
		c := wait(queued, launched)
		c.System = v.String()
		b.add(c)
	}
	return nil
}

// stockDaemon is a running dagster-daemon with the launcher that does nothing.
type stockDaemon struct {
	log  string
	text string // file of its own output
	done chan struct{}
}

// stock runs a dagster-daemon while f runs. It returns when each run was launched.
func (b *bencher) stock(ctx context.Context, w *world, f func(*stockDaemon) error) (map[string]time.Time, error) {
	s, stop, err := b.startStock(w, filepath.Join(w.home, "workspace.yaml"))
	if err != nil {
		return nil, err
	}
	err = f(s)
	stop()
	launched, rerr := s.launched()
	return launched, errors.Join(err, rerr, ctx.Err())
}

func (b *bencher) startStock(w *world, workspace string) (*stockDaemon, func(), error) {
	s := &stockDaemon{log: filepath.Join(w.home, "null.log"), text: filepath.Join(w.home, "daemon.log"),
		done: make(chan struct{})}
	out, err := os.Create(s.text)
	if err != nil {
		return nil, nil, err
	}
	program, err := filepath.Abs(filepath.Join(bin, "dagster-daemon"))
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(program, "run", "-w", workspace)
	cmd.Env = append(os.Environ(), "DAGSTER_HOME="+w.home, "PYTHONPATH="+b.dir, "NULL_LOG="+s.log,
		"DAGSTER_DISABLE_TELEMETRY=1")
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = w.home, out, out, &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), out.Close()); err != nil {
		return nil, nil, err
	}
	go func() { _ = cmd.Wait(); close(s.done) }() // ended by stop
	return s, func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-s.done
	}, nil
}

// launched reads what the launcher recorded.
func (s *stockDaemon) launched() (map[string]time.Time, error) {
	f, err := os.Open(s.log)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	at := map[string]time.Time{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		run, text, _ := strings.Cut(lines.Text(), " ")
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		at[run] = dagster.FromUnix(seconds)
	}
	return at, f.Close()
}

func (s *stockDaemon) wait(ctx context.Context, n int) error {
	for {
		at, err := s.launched()
		if err != nil || len(at) >= n {
			return err
		}
		select {
		case <-s.done:
			text, _ := os.ReadFile(s.text) // for the message only
			return fmt.Errorf("dagster-daemon ended: %s", text)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d runs were launched: %w", len(at), n, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// workers measures runs with Dagster's own workers: until the process of the worker exists, and
// until it has started the run.
func (b *bencher) workers(ctx context.Context, kind string, n int) error {
	agent := filepath.Join(b.dir, "slipway-agent")
	if out, err := exec.Command("go", "build", "-o", agent,
		"github.com/slipway-run/slipway/cmd/slipway-agent").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	w, err := newWorld(ctx, b.dir, kind, parkedYAML, "")
	if err != nil {
		return err
	}
	server, err := start(ctx, w)
	if err != nil {
		return err
	}
	err = w.slipway(ctx, process.Kind(agent), func(ctx context.Context) error {
		return b.real(ctx, w, server, "slipway", kind, n)
	})
	server.Stop()
	if err := errors.Join(err, w.close()); err != nil {
		return err
	}
	for _, v := range b.variants {
		if v.threads {
			continue // one run at a time: threads make no difference
		}
		w, err := newWorld(ctx, b.dir, kind, v.yaml(""), "")
		if err != nil {
			return err
		}
		if server, err = start(ctx, w); err != nil {
			return err
		}
		_, stop, err := b.startStock(w, filepath.Join(w.home, "workspace.yaml"))
		if err == nil {
			err = b.real(ctx, w, server, v.String(), kind, n)
			stop()
		}
		server.Stop()
		if err := errors.Join(err, w.close()); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
	}
	return nil
}

func start(ctx context.Context, w *world) (*webserver.Server, error) {
	folder, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	project, err := filepath.Abs("test/fates/fates.py")
	if err != nil {
		return nil, err
	}
	return webserver.Start(ctx, webserver.Options{Bin: folder, Home: w.home, Locations: []string{project}})
}

// real launches runs one after the other. Each run waits until it was observed.
func (b *bencher) real(ctx context.Context, w *world, server *webserver.Server, system, kind string, n int) error {
	var execs, starts []time.Duration
	for i := range n + 1 {
		file := filepath.Join(w.home, fmt.Sprintf("go%d", i))
		config := map[string]any{"ops": map[string]any{
			"wait_for_file": map[string]any{"config": map[string]any{"file": file}}}}
		id, err := server.Launch(ctx, webserver.Job{Location: "fates", Name: "waits", Config: config})
		if err != nil {
			return err
		}
		queued, exec, start, err := observe(ctx, w.store, id)
		if err != nil {
			return err
		}
		if i > 0 { // the first one warms files and caches
			execs, starts = append(execs, exec.Sub(queued)), append(starts, start.Sub(queued))
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err
		}
		if err := until(ctx, w.store, id, dagster.Status.Finished); err != nil {
			return err
		}
	}
	for what, times := range map[string][]time.Duration{"QUEUED to worker's exec": execs,
		"QUEUED to PIPELINE_START": starts} {
		r := summarize("", times, 0)
		b.add(comparison{System: system, Storage: kind, What: what, Runs: len(times), P50: r.P50, P99: r.P99})
	}
	return nil
}

func until(ctx context.Context, s storage.Store, id string, ok func(dagster.Status) bool) error {
	for {
		runs, err := s.Runs(ctx, storage.Filter{IDs: []string{id}})
		if err != nil {
			return err
		}
		if len(runs) == 1 && ok(runs[0].Status) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// observe waits until a run has started. It returns when the run was queued, when the process of
// its worker was created, and when that wrote PIPELINE_START.
func observe(ctx context.Context, s storage.Store, id string) (queued, exec, start time.Time, err error) {
	if err = until(ctx, s, id, func(st dagster.Status) bool { return st == dagster.Started || st.Finished() }); err !=
		nil {
		return queued, exec, start, err
	}
	events, err := s.Events(ctx, id)
	for _, e := range events {
		switch e.Type {
		case dagster.RunEnqueued:
			queued = e.Time
		case dagster.RunStart:
			start = e.Time
		case dagster.EngineEvent:
			if _, text, ok := strings.Cut(e.Message, "Started process for run (pid: "); ok {
				exec, err = processStart(strings.TrimSuffix(text, ")."))
			}
		}
	}
	if err == nil && (queued.IsZero() || exec.IsZero() || start.IsZero()) {
		err = fmt.Errorf("run %s: queued %v, exec %v, start %v", id, queued, exec, start)
	}
	return queued, exec, start, err
}

// processStart returns when a process was created, to a hundredth of a second.
func processStart(pid string) (time.Time, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return time.Time{}, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	up, err := strconv.ParseFloat(strings.Fields(string(uptime))[0], 64)
	if err != nil {
		return time.Time{}, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks, err := strconv.ParseFloat(fields[19], 64)
	if err != nil {
		return time.Time{}, err
	}
	return now.Add(-time.Duration((up - ticks/100) * float64(time.Second))), nil
}

// print prints a summary beside the best stock variant, and writes the JSON.
func (b *bencher) print(file string) error {
	fmt.Printf("\n%s/%s, %d cores, %s\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(),
		time.Now().Format(time.DateOnly))
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "STORAGE\tWHAT\tSYSTEM\tP50 MS\tP99 MS\tLAUNCHES/S\tSLIPWAY IS")
	ours := map[string]comparison{}
	for _, c := range b.lines {
		key := c.Storage + c.What
		ratio := ""
		switch s := ours[key]; {
		case c.System == "slipway":
			ours[key] = c
		case c.PerSecond > 0:
			ratio = fmt.Sprintf("%.1f times as fast", s.PerSecond/c.PerSecond)
		case s.P50 > 0:
			ratio = fmt.Sprintf("%.1f times as fast (p50)", c.P50/s.P50)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t%.1f\t%.1f\t%s\n", c.Storage, c.What, c.System, c.P50, c.P99,
			c.PerSecond, ratio)
	}
	text, err := json.MarshalIndent(b.lines, "", "  ")
	return errors.Join(t.Flush(), err, os.WriteFile(file, append(text, '\n'), 0o644))
}
