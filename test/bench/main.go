// Bench measures what Slipway promises in figures. It prints the results as a table and as JSON,
// and exits with 1 if a bound is missed:
//
//	go run ./test/bench             or make bench: Slipway alone
//	go run ./test/bench stock       or make bench-stock: Slipway and stock Dagster
//	go run ./test/bench deaths      or make bench-deaths: from a kill to the run's FAILURE
//	go run ./test/bench terminate   thousands of queued runs canceled
//	go run ./test/bench azure       many runs within a small quota of the Azure emulator
//	go run ./test/bench takeover    how long an instance is without a leader
//	go run ./test/bench kubernetes  queued runs become pods, Slipway and K8sRunLauncher
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/process"
)

// exitBound is the time in which the exit of a worker must be known, in 99 of 100 cases.
const exitBound = 100 * time.Millisecond

// samples is how many workers are measured.
const samples = 200

// result is one line of the output. Times are in milliseconds.
type result struct {
	Name     string  `json:"name"`
	N        int     `json:"n"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Max      float64 `json:"max_ms"`
	BoundMS  float64 `json:"bound_ms,omitempty"` // for p99
	BoundP50 float64 `json:"bound_p50_ms,omitempty"`
	OK       bool    `json:"ok"`
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "launch" { // a daemon that launches workers and dies
		if err := launchAll(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "stock" {
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
		defer cancel()
		if err := compare(ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1) //nolint:gocritic // nothing is left to cancel
		}
		return
	}
	more := map[string]func(context.Context, []string) error{"deaths": deaths, "terminate": terminations,
		"azure": azure, "takeover": takeovers, "long": long, "kubernetes": jobs}
	if len(os.Args) > 1 && more[os.Args[1]] != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
		defer cancel()
		if err := more[os.Args[1]](ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1) //nolint:gocritic // nothing is left to cancel
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	agent := filepath.Join(dir, "slipway-agent")
	if out, err := exec.Command("go", "build", "-o", agent,
		"github.com/slipway-run/slipway/cmd/slipway-agent").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	var results []result
	for _, m := range []func(context.Context, string, string) (result, error){launchTime, exitKnown,
		exitKnownAfterRestart} {
		sub, err := os.MkdirTemp(dir, "m")
		if err != nil {
			return err
		}
		r, err := m(ctx, agent, sub)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	claims, err := claimTime(ctx, dir)
	if err != nil {
		return err
	}
	results = append(results, claims...)
	fmt.Printf("%s/%s, %d cores, %s\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(),
		time.Now().Format(time.DateOnly))
	ok := true
	for _, r := range results {
		bound := ""
		if r.BoundMS > 0 {
			bound = fmt.Sprintf("  bound on p99: %.0f ms", r.BoundMS)
		}
		if r.BoundP50 > 0 {
			bound += fmt.Sprintf(", on p50: %.0f ms", r.BoundP50)
		}
		fmt.Printf("%-52s n=%d  p50 %.1f ms  p99 %.1f ms  max %.1f ms%s\n", r.Name, r.N, r.P50, r.P99, r.Max, bound)
		ok = ok && r.OK
	}
	text, err := json.Marshal(results)
	if err != nil {
		return err
	}
	fmt.Println(string(text))
	if !ok {
		return errors.New("a bound was missed")
	}
	return nil
}

func summarize(name string, times []time.Duration, bound time.Duration) result {
	slices.Sort(times)
	ms := func(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }
	r := result{Name: name, N: len(times), P50: ms(times[len(times)/2]), P99: ms(times[(len(times)*99+99)/100-1]),
		Max: ms(times[len(times)-1]), BoundMS: ms(bound)}
	r.OK = bound == 0 || r.P99 <= ms(bound)
	return r
}

func open(agent, dir string) (launcher.Launcher, error) {
	return process.Kind(agent).Open(context.Background(), config.Values{Dir: filepath.Join(dir, "workers")},
		slog.New(slog.DiscardHandler))
}

// launch starts a worker that sleeps until the pipe go.NAME is written to. As its last act it
// records the time.
func launch(ctx context.Context, l launcher.Launcher, dir string) error {
	id := launcher.ID{Run: uuid.NewString(), Attempt: 1}
	if err := syscall.Mkfifo(filepath.Join(dir, "go."+id.String()), 0o600); err != nil {
		return err
	}
	script := fmt.Sprintf("read _ <%[1]s/go.%[2]s; date +%%s%%N >%[1]s/end.%[2]s", dir, id)
	_, err := l.Launch(ctx, &launcher.Request{ID: id, Instance: "bench", Command: []string{"sh", "-c", script},
		At: time.Now()})
	return err
}

func launchTime(ctx context.Context, agent, dir string) (result, error) {
	l, err := open(agent, dir)
	if err != nil {
		return result{}, err
	}
	var times []time.Duration
	for range samples {
		req := &launcher.Request{ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Instance: "bench",
			Command: []string{"true"}, At: time.Now()}
		began := time.Now()
		if _, err := l.Launch(ctx, req); err != nil {
			return result{}, err
		}
		times = append(times, time.Since(began))
	}
	return summarize("process launcher: Launch, one after the other", times, 0), nil
}

func exitKnown(ctx context.Context, agent, dir string) (result, error) {
	l, err := open(agent, dir)
	if err != nil {
		return result{}, err
	}
	for range samples {
		if err := launch(ctx, l, dir); err != nil {
			return result{}, err
		}
	}
	return watchEnds(ctx, l, dir, "worker's last act to its exit known")
}

// launchAll is the life of a daemon before its restart.
func launchAll(agent, dir string) error {
	l, err := open(agent, dir)
	if err != nil {
		return err
	}
	for range samples {
		if err := launch(context.Background(), l, dir); err != nil {
			return err
		}
	}
	return nil
}

func exitKnownAfterRestart(ctx context.Context, agent, dir string) (result, error) {
	if out, err := exec.CommandContext(ctx, os.Args[0], "launch", agent, dir).CombinedOutput(); err != nil {
		return result{}, fmt.Errorf("%w: %s", err, out)
	}
	l, err := open(agent, dir)
	if err != nil {
		return result{}, err
	}
	return watchEnds(ctx, l, dir, "the same, of workers that another process launched")
}

// watchEnds lets the workers end one after the other and measures when the watch reports it.
func watchEnds(ctx context.Context, l launcher.Launcher, dir, name string) (result, error) {
	w, ok := launcher.As[launcher.Watcher](l)
	if !ok {
		return result{}, errors.New("the process launcher does not watch")
	}
	var alive []string
	var times []time.Duration
	release := func() error {
		if len(alive) == 0 {
			return nil
		}
		next := alive[0]
		alive = alive[1:]
		return os.WriteFile(filepath.Join(dir, "go."+next), []byte("go\n"), 0o600)
	}
	for worker, err := range w.Watch(ctx) {
		switch {
		case err != nil:
			return result{}, err
		case worker.Synced:
			if len(alive) != samples {
				return result{}, fmt.Errorf("%d workers are alive, want %d", len(alive), samples)
			}
			if err := release(); err != nil {
				return result{}, err
			}
		case worker.Health.Status.Alive():
			if !slices.Contains(alive, string(worker.Handle)) && len(alive) < samples && len(times) == 0 {
				alive = append(alive, string(worker.Handle))
			}
		default:
			known := time.Now()
			text, err := os.ReadFile(filepath.Join(dir, "end."+string(worker.Handle)))
			if err != nil {
				return result{}, err
			}
			ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				return result{}, err
			}
			times = append(times, known.Sub(time.Unix(0, ns)))
			if len(times) == samples {
				return summarize(name, times, exitBound), nil
			}
			if err := release(); err != nil {
				return result{}, err
			}
		}
	}
	return result{}, ctx.Err()
}
