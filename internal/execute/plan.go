package execute

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// stepGrace is the time between stop and kill of a step.
const stepGrace = 10 * time.Second

// plan executes the steps of a job.
type plan struct {
	*worker
	job    Job
	done   map[string]bool // succeeded
	begun  map[string]bool
	failed []string
	first  *dagster.Event // event of the first failed step
	err    error          // error of that step
}

// ended is the end of a step.
type ended struct {
	step    string
	failure *dagster.Event // nil: it succeeded, or was stopped
	cause   error
	err     error // events could not be written
}

// run executes steps until none is left that can start. An error means that events could not be
// written.
func (p *plan) run(ctx context.Context) error {
	p.begun = map[string]bool{}
	for step := range p.done {
		p.begun[step] = true
	}
	ends := make(chan ended)
	running := 0
	var errs []error
	for {
		for _, step := range p.job.ready(func(s string) bool { return p.done[s] }, func(s string) bool {
			return p.begun[s]
		}) {
			if running == p.job.MaxParallel || ctx.Err() != nil || len(errs) > 0 {
				break
			}
			p.begun[step] = true
			running++
			go func() { ends <- p.step(ctx, step) }() // received below
		}
		if running == 0 {
			break
		}
		e := <-ends
		running--
		switch {
		case e.err != nil:
			errs = append(errs, e.err)
		case e.failure != nil:
			p.failed = append(p.failed, e.step)
			if p.first == nil {
				p.first, p.err = e.failure, e.cause
			}
		case e.cause == nil:
			p.done[e.step] = true
		}
	}
	return errors.Join(append(errs, p.skipped(ctx))...)
}

// skipped logs the steps that could not start because other steps failed.
func (p *plan) skipped(ctx context.Context) error {
	if ctx.Err() != nil || len(p.failed) == 0 {
		return nil
	}
	var events []dagster.Event
	for step, s := range p.job.Steps {
		if !p.begun[step] {
			events = append(events, p.events.Log(step, dagster.LevelError,
				fmt.Sprintf("Dependencies for step %s failed: %v. Not executing.", step, s.Needs)))
		}
	}
	if len(events) == 0 {
		return nil
	}
	slices.SortFunc(events, func(a, b dagster.Event) int { return strings.Compare(a.StepKey, b.StepKey) })
	return p.log(ctx, events...)
}

// step executes one step with its retries.
func (p *plan) step(ctx context.Context, name string) ended {
	s := p.job.Steps[name]
	out, key, err := p.capture(name)
	if err != nil {
		return ended{step: name, err: err}
	}
	defer out.complete()
	if key != "" {
		if err := p.log(ctx, p.events.LogsCaptured(key, name)); err != nil {
			return ended{step: name, err: err}
		}
	}
	for attempt := 1; ; attempt++ {
		if err := p.log(ctx, p.events.StepStart(name, attempt)); err != nil {
			return ended{step: name, err: err}
		}
		began := time.Now()
		cause := p.command(ctx, s, name, attempt, out)
		switch {
		case cause == nil:
			return ended{step: name, err: p.log(ctx, p.events.StepSuccess(name, time.Since(began)))}
		case ctx.Err() != nil:
			return ended{step: name, cause: cause,
				err: p.log(ctx, p.events.StepFailure(name, errors.New("stopped: the run worker was told to stop")))}
		case attempt > s.Retries:
			failure := p.events.StepFailure(name, cause)
			return ended{step: name, cause: cause, failure: &failure, err: p.log(ctx, failure)}
		}
		if err := p.log(ctx, p.events.StepUpForRetry(name, s.RetryDelay, cause)); err != nil {
			return ended{step: name, err: err}
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.RetryDelay):
		}
	}
}

// command runs one attempt. Its error says how it failed, with the exit code.
func (p *plan) command(ctx context.Context, s Step, name string, attempt int, out *output) error {
	limited, cancel := ctx, context.CancelFunc(func() {})
	if s.Timeout > 0 {
		limited, cancel = context.WithTimeout(ctx, s.Timeout)
	}
	defer cancel()
	cmd := exec.CommandContext(limited, s.Command[0], s.Command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, out.stdout, out.stderr
	cmd.Env = append(os.Environ(), "DAGSTER_RUN_ID="+p.events.Run.ID, "DAGSTER_RUN_JOB_NAME="+p.events.Run.Job,
		"DAGSTER_STEP_KEY="+name, fmt.Sprintf("DAGSTER_STEP_ATTEMPT=%d", attempt))
	cmd.Env = slices.DeleteFunc(cmd.Env, func(e string) bool { // these variables are for the worker only
		return strings.HasPrefix(e, launcher.GateEnv+"=") || strings.HasPrefix(e, dagster.CompressedArgsEnv+"=")
	})
	for k, v := range s.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	// A step stays in the worker's process group, which is killed as a whole when the worker ends.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stepGrace
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // success, even if a leftover process keeps the output open
		return nil
	case limited.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("command took longer than its timeout of %v and was stopped", s.Timeout)
	case errors.As(err, &exit):
		return fmt.Errorf("command ended with %s", describe(exit))
	}
	return fmt.Errorf("command could not be started: %w", err)
}

func describe(exit *exec.ExitError) string {
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("signal %d (%s)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("exit code %d", exit.ExitCode())
}

// output receives a step's standard output and error. It writes them to files that Dagster's UI
// shows, and to the worker's own output.
type output struct {
	stdout, stderr io.Writer
	files          []*os.File
	done           string // file that marks the others as complete
}

// capture opens the files of a step's output. It returns the key under which Dagster finds them, or
// "" if nothing is captured.
func (p *plan) capture(step string) (*output, string, error) {
	o := &output{stdout: os.Stdout, stderr: os.Stderr}
	if p.logs == "" {
		return o, "", nil
	}
	key := strings.ToLower(rand.Text()[:8])
	dir := filepath.Join(p.logs, p.events.Run.ID, "compute_logs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", fmt.Errorf("captured logs of step %s: %w", step, err)
	}
	for _, w := range []struct {
		ext  string
		into *io.Writer
	}{{".out", &o.stdout}, {".err", &o.stderr}} {
		f, err := os.Create(filepath.Join(dir, key+w.ext))
		if err != nil {
			return nil, "", fmt.Errorf("captured logs of step %s: %w", step, err)
		}
		o.files = append(o.files, f)
		*w.into = io.MultiWriter(f, *w.into)
	}
	o.done = filepath.Join(dir, key+".complete")
	return o, key, nil
}

// complete closes the files and marks them as complete.
func (o *output) complete() {
	for _, f := range o.files {
		if err := f.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "slipway-worker:", err)
		}
	}
	if o.done == "" {
		return
	}
	if err := os.WriteFile(o.done, nil, 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "slipway-worker:", err)
	}
}
