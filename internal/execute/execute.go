// Package execute is the Go run worker. It accepts the arguments of `dagster api execute_run` and
// runs a command job, whose steps are in the run's config. It writes the events that Dagster's own
// worker would write. It needs no Python. Demos, canaries, benchmarks and plain commands run on it.
//
// First the worker passes its gate: it changes the launch row of its run from open to taken. A
// worker that cannot do so has been replaced or was started twice, and exits.
package execute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/launcher"
)

const usage = "usage: slipway-worker api execute_run|resume_run|canary ARGUMENTS; a launcher starts it with the " +
	"arguments of Dagster's own workers"

// Main is the program slipway-worker; it returns the exit code. Like Dagster's worker it returns 0
// even if its run failed, unless the arguments ask for an exit code. It returns 1 if it could not
// begin.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	_, err := config.LoadDotEnv()
	failed := false
	if err == nil {
		failed, err = Run(ctx, args, os.LookupEnv)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway-worker:", err)
		return 1
	}
	if failed {
		return 1
	}
	return 0
}

// Run executes one run. An error means that the worker could not begin or could not write. failed
// means that the run failed and the arguments ask for an exit code. When ctx ends, the steps are
// stopped.
func Run(ctx context.Context, args []string, env config.Lookup) (failed bool, err error) {
	a, err := arguments(args, env)
	if err != nil {
		return false, err
	}
	ref, err := refOf(a, env)
	if err != nil {
		return false, err
	}
	// The store is used even after ctx has ended. Each such call has its own timeout.
	store, err := open(context.WithoutCancel(ctx), ref, env)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if args[1] == "canary" {
		id, err := store.InstanceID(ctx)
		if err == nil {
			fmt.Printf("the storage is open: run_storage_id %s, schema %s\n", id, store.Revision())
		}
		return err != nil, err
	}
	w := &worker{store: store, resume: a.Resume}
	if w.logs, err = instance.ComputeLogsOf(ref, env); err != nil {
		return false, err
	}
	if gate, ok := env(launcher.GateEnv); ok {
		in, err := w.pass(ctx, a.RunID, gate)
		if err != nil || !in {
			if err == nil {
				fmt.Printf("run %s: another worker has passed the gate, or this one was replaced; leaving\n", a.RunID)
			}
			return false, err
		}
	}
	status, err := w.run(ctx, a.RunID)
	return a.SetExitCodeOnFailure && status == dagster.Failure, err
}

// store is the part of the storage that a worker uses.
type store interface {
	storage.Recorder
	storage.Reader
	Revision() string
	Close() error
}

// arguments parses the arguments. They are in the places that Dagster's worker reads: the command
// line or an environment variable.
func arguments(args []string, env config.Lookup) (dagster.ExecuteRunArgs, error) {
	if len(args) < 2 || args[0] != "api" || args[1] != "execute_run" && args[1] != "resume_run" && args[1] != "canary" {
		return dagster.ExecuteRunArgs{}, errors.New(usage)
	}
	compressed, isCompressed := env(dagster.CompressedArgsEnv)
	plain, isPlain := env("DAGSTER_EXECUTE_RUN_ARGS")
	switch {
	case len(args) == 3:
		plain = args[2]
	case len(args) == 4 && args[2] == "--compressed-input-json":
		compressed, isCompressed, isPlain = args[3], true, false
		fallthrough
	case isCompressed && !isPlain:
		text, err := dagster.Decompress(compressed)
		if err != nil {
			return dagster.ExecuteRunArgs{}, err
		}
		plain = text
	case !isPlain:
		return dagster.ExecuteRunArgs{}, errors.New(usage)
	}
	a, err := dagster.ParseExecuteRunArgs(plain)
	if err == nil && a.Resume != (args[1] == "resume_run") {
		err = fmt.Errorf("the arguments are not those of %s", args[1])
	}
	return a, err
}

// refOf returns the InstanceRef in the arguments, else that of the instance in $DAGSTER_HOME.
func refOf(a dagster.ExecuteRunArgs, env config.Lookup) (dagster.InstanceRef, error) {
	if a.InstanceRef != nil {
		return dagster.ParseInstanceRef(string(a.InstanceRef))
	}
	home, err := instance.Home(env)
	if err != nil {
		return dagster.InstanceRef{}, err
	}
	in, err := instance.LoadDagster(home, env)
	if err != nil {
		return dagster.InstanceRef{}, err
	}
	return dagster.ParseInstanceRef(string(in.Ref()))
}

func open(ctx context.Context, ref dagster.InstanceRef, env config.Lookup) (store, error) {
	s, err := instance.StorageOf(ref, env)
	if err != nil {
		return nil, err
	}
	if s.URL == "" {
		return sqlite.Open(ctx, s.BaseDir)
	}
	return retryUncanceled(ctx, func(ctx context.Context) (store, error) {
		s, err := postgres.Open(ctx, s.URL)
		if err != nil && !postgres.Away(err) {
			err = backoff.Permanent(err)
		}
		return s, err
	})
}

const (
	// patience is how long a worker retries while the storage cannot be reached, so that the work
	// of its steps is not lost.
	patience = 5 * time.Minute
	// longestPause is the longest time between two tries.
	longestPause = 5 * time.Second
)

// retryUncanceled is [retry], but continues after ctx has ended.
func retryUncanceled[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	return retry(context.WithoutCancel(ctx), f)
}

// retry calls f until it succeeds, ctx ends, or patience is over. f calls the storage.
func retry[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, longestPause
	return backoff.Retry(ctx, func() (T, error) {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		return f(ctx)
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(patience))
}

// pass reports whether this worker passes its gate. The nonce lets the worker recognize its own
// change of the row if the answer to an earlier try was lost.
func (w *worker) pass(ctx context.Context, run, gate string) (bool, error) {
	attempt, token, _ := strings.Cut(gate, " ")
	n, err := strconv.Atoi(attempt)
	if err != nil || token == "" {
		return false, fmt.Errorf("%s=%q: must be an attempt and a token", launcher.GateEnv, gate)
	}
	w.launch = token
	by := uuid.NewString()
	in, err := retry(ctx, func(ctx context.Context) (bool, error) { return w.store.Take(ctx, run, n, token, by) })
	if err != nil {
		return false, fmt.Errorf("run %s: the gate: %w", run, err)
	}
	return in, nil
}

// writeTimeout limits one call to the storage, which is made even if the worker was told to stop.
const writeTimeout = 30 * time.Second

// worker executes one run.
type worker struct {
	store  store
	logs   string // folder of compute logs; "" for none
	launch string // token of the launch row that this worker took; "" if it has no gate
	resume bool
	events dagster.Inside
}

// record writes events that change the run's status, if that is one of from and this worker's
// launch row is still the current one. The outcome reports whether they were written.
func (w *worker) record(ctx context.Context, from []dagster.Status, tags map[string]string,
	events ...dagster.Event) (storage.Outcome, error) {
	t := storage.Transition{Run: w.events.Run.ID, From: from, Launch: w.launch, Events: events, Tags: tags}
	return retryUncanceled(ctx, func(ctx context.Context) (storage.Outcome, error) { return w.store.Record(ctx, t) })
}

// log writes events that change no status.
func (w *worker) log(ctx context.Context, events ...dagster.Event) error {
	again := false
	_, err := retryUncanceled(ctx, func(ctx context.Context) (storage.Outcome, error) {
		if again { // an earlier try may have written the events although its answer was lost
			if wrote, err := w.wrote(ctx, events[len(events)-1]); wrote || err != nil {
				return storage.Outcome{}, err
			}
		}
		again = true
		return w.store.Record(ctx, storage.Transition{Run: w.events.Run.ID, Events: events})
	})
	return err
}

// wrote reports whether the run's log contains e.
func (w *worker) wrote(ctx context.Context, e dagster.Event) (bool, error) {
	stored, err := w.store.Events(ctx, e.RunID, e.Type)
	return slices.ContainsFunc(stored, func(s dagster.Event) bool { return s.JSON() == e.JSON() }), err
}

// read reads the run.
func (w *worker) read(ctx context.Context, id string) (storage.Run, error) {
	runs, err := retryUncanceled(ctx, func(ctx context.Context) ([]storage.Run, error) {
		return w.store.Runs(ctx, storage.Filter{IDs: []string{id}})
	})
	if err != nil {
		return storage.Run{}, err
	}
	if len(runs) == 0 {
		return storage.Run{}, fmt.Errorf("there is no run %s", id)
	}
	return runs[0], runs[0].Broken
}

// run does all the work of the worker and returns the final status of the run.
func (w *worker) run(ctx context.Context, id string) (dagster.Status, error) {
	r, err := w.read(ctx, id)
	if err != nil {
		return "", err
	}
	w.events = dagster.NewInside(r.Run)
	pid := os.Getpid()
	hello, bye := "Started process for run (pid: %d).", "Process for run exited (pid: %d)."
	if w.resume {
		hello = "Started process for resuming job (pid: %d)."
	}
	if err := w.log(ctx, w.events.Engine(fmt.Sprintf(hello, pid), nil)); err != nil {
		return "", err
	}
	status, err := w.work(ctx, r)
	return status, errors.Join(err, w.log(ctx, w.events.Engine(fmt.Sprintf(bye, pid), nil)))
}

// work starts the run if that is allowed, executes its steps and writes its end.
func (w *worker) work(ctx context.Context, r storage.Run) (dagster.Status, error) {
	job, err := ParseJob(r.Config)
	if err != nil {
		out, werr := w.record(ctx, []dagster.Status{dagster.Starting, dagster.NotStarted},
			reason(dagster.InitializationFailure),
			w.events.Engine("Could not load job definition.", err),
			w.events.Failure(dagster.MarkedFailed, dagster.InitializationFailure, nil, err))
		return out.Status, werr
	}
	done, err := w.begin(ctx)
	if err != nil || done == nil {
		return "", err
	}
	p := &plan{worker: w, job: job, done: done}
	if err := p.run(ctx); err != nil {
		return "", err
	}
	return w.end(ctx, p)
}

func reason(r dagster.RunFailureReason) map[string]string {
	return map[string]string{dagster.FailureReasonTag: string(r)}
}

// begin writes the run's start. It returns the steps that have already succeeded, or nil if this
// worker has nothing to do.
func (w *worker) begin(ctx context.Context) (map[string]bool, error) {
	done := map[string]bool{}
	if w.resume {
		events, err := retryUncanceled(ctx, func(ctx context.Context) ([]dagster.Event, error) {
			return w.store.Events(ctx, w.events.Run.ID, dagster.StepSuccess)
		})
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			done[e.StepKey] = true
		}
		r, err := w.read(ctx, w.events.Run.ID)
		if err != nil {
			return nil, err
		}
		if r.Status == dagster.Started {
			return done, nil
		}
	}
	out, err := w.record(ctx, []dagster.Status{dagster.Starting, dagster.NotStarted}, nil, w.events.Start())
	if err != nil {
		return nil, err
	}
	if out.Done {
		return done, nil
	}
	text := "Ignoring a duplicate run that was started from somewhere other than the run monitor daemon"
	switch {
	case out.Status == dagster.Canceled:
		text = "Not starting execution since the run was canceled before execution could start"
	case out.Status.Finished():
		text = "Ignoring a run worker that started after the run had already finished."
	}
	return nil, w.log(ctx, w.events.Engine(text, nil))
}

// end writes how the run ended.
func (w *worker) end(ctx context.Context, p *plan) (dagster.Status, error) {
	if ctx.Err() != nil {
		return w.interrupted(ctx)
	}
	tags, event := map[string]string(nil), w.events.Success()
	if len(p.failed) > 0 {
		var names []string
		for _, n := range p.failed {
			names = append(names, "'"+n+"'")
		}
		message := fmt.Sprintf("Execution of run for %q failed. Steps failed: [%s].", w.events.Run.Job,
			strings.Join(names, ", "))
		tags, event = reason(dagster.StepFailureReason),
			w.events.Failure(message, dagster.StepFailureReason, p.first, p.err)
	}
	out, err := w.record(ctx, []dagster.Status{dagster.Started}, tags, event)
	if err != nil || out.Done {
		return out.Status, err
	}
	return w.interrupted(ctx) // the run was changed in the meantime, or this worker was replaced
}

// interrupted writes the events of a worker that was told to stop, as Dagster's worker does.
func (w *worker) interrupted(ctx context.Context) (dagster.Status, error) {
	r, err := w.read(ctx, w.events.Run.ID)
	if err != nil {
		return "", err
	}
	if w.launch != "" && (r.Launch == nil || r.Launch.Token != w.launch) {
		return r.Status, w.log(ctx,
			w.events.Engine("[Slipway] Another run worker has replaced this one, which exits without writing the end "+
				"of the run.", nil))
	}
	switch r.Status {
	case dagster.Canceling:
		out, err := w.record(ctx, []dagster.Status{dagster.Canceling}, nil, w.events.Canceled())
		return out.Status, err
	case dagster.Canceled, dagster.Failure, dagster.Success:
		return r.Status, w.log(ctx,
			w.events.Engine(fmt.Sprintf(
				"Computational resources were cleaned up after the run was marked as %s from outside.", r.Status), nil))
	}
	err = errors.New("the run worker was told to stop (SIGTERM), but the run was not canceled")
	out, werr := w.record(ctx, []dagster.Status{dagster.Started}, reason(dagster.UnexpectedTermination),
		w.events.Failure("Execution of run for \""+w.events.Run.Job+"\" failed. "+err.Error(),
			dagster.UnexpectedTermination, nil, err))
	return out.Status, werr
}
