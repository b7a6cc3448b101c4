package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/agent"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/launcher/process"
)

// deathBound is the time in which the run of a killed worker must be FAILURE with its cause, in 99
// of 100 cases.
const deathBound = time.Second

// sleepPython is a launcher whose workers are sleeping processes. Stock Dagster can check their
// health.
const sleepPython = launcherPython + `

class SleepLauncher(Launcher):
    supports_check_run_worker_health = True

    def launch_run(self, context):
        run = context.dagster_run
        worker = subprocess.Popen(["sleep", "1000"])
        self._workers[run.run_id] = worker
        event = DagsterEvent(DagsterEventType.PIPELINE_START.value, run.job_name, message="started")
        self._instance.report_dagster_event(event, run.run_id)
        with open(os.environ["NULL_LOG"], "a") as f:
            f.write("%s %d\n" % (run.run_id, worker.pid))

    def check_run_worker_health(self, run):
        code = self._workers[run.run_id].poll()
        if code is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "exit code %d" % code)
`

// deaths measures the time from kill -9 of a worker until its run is FAILURE, for Slipway and stock
// Dagster.
func deaths(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench deaths", flag.ContinueOnError)
	n := flags.Int("n", 30, "how many workers of Slipway's are killed, on each target and storage")
	alone := flags.Bool("alone", false, "measure Slipway only")
	out := flags.String("out", "bench-deaths.json", "file for the results as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	programs := map[string]string{}
	for _, name := range []string{"slipway-agent", "slipway-worker"} {
		programs[name] = filepath.Join(dir, name)
		if out, err := exec.Command("go", "build", "-o", programs[name],
			"github.com/slipway-run/slipway/cmd/"+name).CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w: %s", err, out)
		}
	}
	var results []result
	add := func(r result, err error) error {
		if err == nil {
			results = append(results, r)
			fmt.Printf("%-60s n=%-4d p50 %10.1f ms  p99 %10.1f ms  max %10.1f ms\n", r.Name, r.N, r.P50, r.P99, r.Max)
		}
		return err
	}
	for _, kind := range storages() {
		name := "slipway, process, " + kind
		if err := add(slipwayDeaths(ctx, dir, kind, name, "", process.Kind(programs["slipway-agent"]),
			[]string{programs["slipway-worker"]}, *n, killProcess)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if image := os.Getenv("SLIPWAY_TEST_IMAGE"); image != "" && len(storages()) > 1 {
		conf := fmt.Sprintf(
			"launchers: {local: {kind: docker, config: {image: %q, network: host, env_vars: "+
				"[\"PATH=/opt/app:/usr/bin:/bin\"]}}}\nallow_secrets_in_argv: true\n", image)
		if err := add(slipwayDeaths(ctx, dir, "postgres", "slipway, docker, postgres", conf, docker.Kind(), nil,
			min(*n, 10), killContainer)); err != nil {
			return fmt.Errorf("docker: %w", err)
		}
	} else {
		fmt.Println("no Docker engine with a test image: hack/with-postgres hack/with-docker go run ./test/bench " +
			"deaths measures containers as well")
	}
	if !*alone {
		if err := os.WriteFile(filepath.Join(dir, "bench_sleep.py"), []byte(sleepPython), 0o600); err != nil {
			return err
		}
		for _, v := range []struct {
			name, poll string
			n          int
		}{{"dagster-daemon, poll_interval_seconds: 1", ", poll_interval_seconds: 1", 10},
			{"dagster-daemon, run_monitoring as it comes (120 s)", "", 10}} {
			if err := add(stockDeaths(ctx, dir, v.name, v.poll, v.n)); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	text, err := json.MarshalIndent(results, "", " ")
	if err == nil {
		err = os.WriteFile(*out, text, 0o600)
	}
	for _, r := range results {
		if !r.OK {
			err = errors.Join(err, fmt.Errorf("%s: the bound of %.0f ms on p99 was missed", r.Name, r.BoundMS))
		}
	}
	return err
}

func killProcess(w *world, r storage.Run) error {
	var p agent.Worker
	root := filepath.Join(w.home, "slipway", "process", "local")
	if err := agent.ReadJSON(agent.PathsOf(root, r.Handle).Worker, &p); err != nil {
		return err
	}
	return syscall.Kill(p.PID, syscall.SIGKILL)
}

func killContainer(_ *world, r storage.Run) error {
	out, err := exec.Command("docker", "kill", "--signal", "KILL", "dagster-run-"+r.ID+"-1").CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker kill: %w: %s", err, out)
	}
	return nil
}

// slipwayDeaths kills workers of command jobs one after the other, each at a random moment.
func slipwayDeaths(ctx context.Context, dir, kind, name, more string, k *launcher.Kind, worker []string, n int,
	kill func(*world, storage.Run) error) (result, error) {
	w, err := newWorld(ctx, dir, kind, parkedYAML, "queue: {max_concurrent_runs: -1}\ncrash_loop: {deaths: 0}\n"+more)
	if err != nil {
		return result{}, err
	}
	w.worker = worker
	var times []time.Duration
	err = w.slipway(ctx, k, func(ctx context.Context) error {
		for range n {
			config := dagster.Encode(map[string]any{
				"steps": map[string]any{"only": map[string]any{"command": []string{"sleep", "1000"}}}})
			run := dagster.NewCommandRun(uuid.NewString(), "command", config, nil)
			if err := w.writer.EnqueueRun(run); err != nil {
				return err
			}
			r, err := w.await(ctx, run.ID, func(r storage.Run) bool {
				return r.Status == dagster.Started && r.Handle != ""
			})
			if err != nil {
				return err
			}
			time.Sleep(rand.N(200 * time.Millisecond)) // a random moment
			at := time.Now()
			if err := kill(w, r); err != nil {
				return err
			}
			r, err = w.await(ctx, run.ID, func(r storage.Run) bool { return r.Status.Finished() })
			times = append(times, time.Since(at))
			if cause := r.Cause; err != nil || r.Status != dagster.Failure || cause != string(launcher.CauseExit) {
				return fmt.Errorf("run %s is %s of %q, %w", r.ID, r.Status, cause, errors.Join(err))
			}
		}
		return nil
	})
	if err = errors.Join(err, w.close()); err != nil {
		return result{}, err
	}
	return summarize(name, times, deathBound), nil
}

// await reads a run until wanted accepts it.
func (w *world) await(ctx context.Context, run string, wanted func(storage.Run) bool) (storage.Run, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		runs, err := w.store.Runs(ctx, storage.Filter{IDs: []string{run}})
		if err != nil {
			return storage.Run{}, err
		}
		if len(runs) == 1 && wanted(runs[0]) {
			return runs[0], nil
		}
		select {
		case <-ctx.Done():
			return storage.Run{}, fmt.Errorf("run %s: %w", run, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stockDeaths kills the workers of a stock daemon's runs, each at a random moment within one
// interval of its monitor.
func stockDeaths(ctx context.Context, dir, name, poll string, n int) (result, error) {
	if _, err := os.Stat(filepath.Join(bin, "dagster-daemon")); err != nil {
		return result{}, fmt.Errorf("no Dagster in .venv: make venv installs it: %w", err)
	}
	w, err := newWorld(ctx, dir, "sqlite",
		"run_queue: {max_concurrent_runs: -1, dequeue_interval_seconds: 1}\nrun_monitoring: {enabled: true"+poll+
			"}\nrun_launcher: {module: bench_sleep, class: SleepLauncher}\n", "")
	if err != nil {
		return result{}, err
	}
	b := &bencher{dir: dir}
	s, stop, err := b.startStock(w, filepath.Join(w.home, "workspace.yaml"))
	if err != nil {
		return result{}, err
	}
	times, err := w.killStock(ctx, s, n)
	stop()
	if err = errors.Join(err, w.close()); err != nil {
		text, _ := os.ReadFile(s.text) // for the message only
		return result{}, fmt.Errorf("%w\n%s", err, text)
	}
	r := summarize(name, times, 0)
	r.OK = true // there is no bound for stock Dagster
	return r, nil
}

func (w *world) killStock(ctx context.Context, s *stockDaemon, n int) ([]time.Duration, error) {
	queued, err := w.enqueue(n, 0)
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, n); err != nil {
		return nil, err
	}
	log, err := os.ReadFile(s.log)
	if err != nil {
		return nil, err
	}
	killed := map[string]time.Time{}
	for _, line := range strings.Split(strings.TrimSpace(string(log)), "\n") {
		run, pid, _ := strings.Cut(line, " ")
		p, err := strconv.Atoi(pid)
		if err != nil {
			return nil, err
		}
		if _, err := w.await(ctx, run, func(r storage.Run) bool { return r.Status == dagster.Started }); err != nil {
			return nil, err
		}
		time.Sleep(rand.N(time.Second)) // a random moment
		killed[run] = time.Now()
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
			return nil, err
		}
	}
	var times []time.Duration
	for run := range queued {
		r, err := w.await(ctx, run, func(r storage.Run) bool { return r.Status.Finished() })
		if err != nil || r.Status != dagster.Failure {
			return nil, fmt.Errorf("run %s is %s, %w", run, r.Status, errors.Join(err))
		}
		times = append(times, r.End.Sub(killed[run]))
	}
	return times, nil
}
