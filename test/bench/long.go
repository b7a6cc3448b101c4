package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/storagetest"
)

// oneOfTeam is the limit that all runs of these measurements meet. Behind a limit of all runs,
// Dagster's queue does not even look at what waits.
const oneOfTeam = "tag_concurrency_limits: [{key: team, limit: 1}]"

var team = map[string]string{"team": "data"}

// long measures what a queue costs in which nothing can go: the processor time that Slipway's
// daemon and Dagster's queue daemon take, and the memory of their processes.
func long(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench long", flag.ContinueOnError)
	n := flags.Int("runs", 20_000, "how many runs wait in the queue")
	window := flags.Duration("for", time.Minute, "how long is measured")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	programs, slipway, err := built(ctx, "slipway")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(programs) }()
	b, missed := &bencher{dir: dir}, false
	fmt.Printf("%d queued runs, none of which can go; measured for %v\n", *n, *window)
	for _, kind := range storages() {
		ours, err := b.waits(ctx, kind, *n, *window, parkedYAML,
			"allow_secrets_in_argv: true\nlaunchers: {local: {kind: process}}\nqueue: {max_concurrent_runs: -1, "+
				oneOfTeam+"}\n",
			func(w *world) (int, func(), error) { return w.start(slipway, "daemon", "--home", w.home) })
		if err != nil {
			return err
		}
		stock, err := b.waits(ctx, kind, *n, *window,
			"run_queue: {max_concurrent_runs: -1, "+oneOfTeam+"}\nrun_monitoring: {enabled: false}\n", "",
			func(w *world) (int, func(), error) {
				program, err := filepath.Abs(filepath.Join(bin, "dagster-daemon"))
				if err != nil {
					return 0, nil, err
				}
				return w.start(program, "run", "-w", filepath.Join(w.home, "workspace.yaml"))
			})
		if err != nil {
			return err
		}
		for _, u := range []struct {
			name string
			used
		}{{"slipway", ours}, {"dagster-daemon, every 5 s", stock}} {
			fmt.Printf("%-9s %-28s %7.2f s of CPU a minute, %4d MB\n", kind, u.name, u.cpu.Seconds(), u.memory>>20)
		}
		fmt.Printf("%-9s slipway takes 1/%.0f of the CPU\n", kind, stock.cpu.Seconds()/ours.cpu.Seconds())
		missed = missed || ours.cpu > stock.cpu/2
	}
	if missed {
		return errors.New("a bound is missed: half of the CPU of stock Dagster's queue")
	}
	return nil
}

// used is what a daemon used, by the minute.
type used struct {
	cpu    time.Duration
	memory int64 // bytes that are resident
}

// waits measures a daemon beside n queued runs, after it has had time to read them all.
func (b *bencher) waits(ctx context.Context, kind string, n int, window time.Duration, dagsterYAML, slipwayYAML string,
	start func(*world) (int, func(), error)) (u used, err error) {
	w, err := newWorld(ctx, b.dir, kind, dagsterYAML, slipwayYAML)
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.fill(n); err != nil {
		return u, err
	}
	pid, stop, err := start(w)
	if err != nil {
		return u, err
	}
	defer stop()
	time.Sleep(20 * time.Second) // it starts, and reads what there is
	before, err := processorTime(pid)
	if err != nil {
		return u, err
	}
	time.Sleep(window)
	after, err := processorTime(pid)
	if err != nil {
		return u, fmt.Errorf("the daemon has ended: %w", err)
	}
	u.cpu = time.Duration(float64(after-before) * float64(time.Minute) / float64(window))
	u.memory, err = resident(pid)
	return u, err
}

// start starts a program that is to go on. Its output is in a file of the instance's home.
func (w *world) start(program string, args ...string) (pid int, stop func(), err error) {
	out, err := os.Create(filepath.Join(w.home, "output"))
	if err != nil {
		return 0, nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "DAGSTER_HOME="+w.home, "DAGSTER_DISABLE_TELEMETRY=1")
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = w.home, out, out, &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), out.Close()); err != nil {
		return 0, nil, err
	}
	return cmd.Process.Pid, func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		_ = cmd.Wait()
	}, nil
}

// fill writes queued runs in few statements, and one run in flight that takes the only place.
func (w *world) fill(n int) error {
	const rows = 200
	for from := 0; from < n; from += rows {
		var marks []string
		var args []any
		for range min(rows, n-from) {
			id := uuid.NewString()
			r, err := dagster.ParseRun(storagetest.Body(id, team))
			if err != nil {
				return err
			}
			r.Status = dagster.Queued
			marks = append(marks, "(?, ?, 'QUEUED', ?)")
			args = append(args, id, r.Job, r.Body())
		}
		if err := w.writer.Exec("INSERT INTO runs (run_id, pipeline_name, status, run_body) VALUES "+
			strings.Join(marks, ", "), args...); err != nil {
			return err
		}
	}
	err := w.writer.Exec("INSERT INTO run_tags (run_id, key, value) SELECT run_id, 'team', 'data' FROM runs")
	if err != nil {
		return err
	}
	id := uuid.NewString()
	if err := w.writer.Enqueue(id, team); err != nil {
		return err
	}
	return w.writer.Event(dagster.NewEvent(dagster.Run{ID: id, Job: "light"}, dagster.RunStart, time.Now(), ""))
}

// processorTime is what a process has taken, by /proc.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ, which Linux shows, is 100
}

// resident is the memory of a process, by /proc.
func resident(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}
