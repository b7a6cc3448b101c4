package launchertest

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/launcher"
)

// Instance is an instance in memory, for the first tests of a launcher. It has made-up runs and
// launches their workers.
type Instance struct {
	t       TB
	l       launcher.Launcher
	ID      string
	Timeout time.Duration // for a worker to end
}

// Open opens a launcher with the given settings, and closes it when the test ends.
func Open(t TB, kind *launcher.Kind, settings map[string]any) launcher.Launcher {
	t.Helper()
	l, err := opener(t, kind, settings)()
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := launcher.Close(l); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// NewInstance returns an instance whose runs are launched by l.
func NewInstance(t TB, l launcher.Launcher) *Instance {
	return &Instance{t: t, l: l, ID: "test-" + uuid.NewString()[:8], Timeout: time.Minute}
}

// NewRun makes up a run, and returns the request for its first worker, which executes a command.
func (in *Instance) NewRun(command ...string) *launcher.Request {
	return &launcher.Request{
		ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Token: uuid.NewString(), Instance: in.ID, Command: command,
		At:  time.Now(),
		Job: "made_up", Location: "tests", Repository: "__repository__",
	}
}

// Worker is the launched worker of a run.
type Worker struct {
	launcher.Launched
	in *Instance
}

// Launch launches a run's worker. If that fails the test ends. The worker is killed when the test
// ends.
func (in *Instance) Launch(req *launcher.Request) *Worker {
	in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), in.Timeout)
	defer cancel()
	got, err := in.l.Launch(ctx, req)
	if err != nil {
		in.t.Fatalf("Launch(%s) = %v", req.ID, err)
	}
	r := &Worker{Launched: got, in: in}
	in.t.Cleanup(func() {
		if r.Terminate(0) {
			r.End()
		}
	})
	return r
}

// Health returns what the target reports about the worker now.
func (r *Worker) Health() launcher.Health {
	r.in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), r.in.Timeout)
	defer cancel()
	h, err := r.in.l.Health(ctx, r.Handle)
	if err != nil {
		r.in.t.Fatalf("Health(%s) = %v", r.Handle, err)
	}
	return h
}

// Terminate stops the worker and reports whether it was still running.
func (r *Worker) Terminate(grace time.Duration) bool {
	r.in.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), r.in.Timeout)
	defer cancel()
	ran, err := r.in.l.Terminate(ctx, r.Handle, grace)
	if err != nil {
		r.in.t.Fatalf("Terminate(%s) = %v", r.Handle, err)
	}
	return ran
}

// End waits until the worker is no longer alive, for at most the instance's Timeout.
func (r *Worker) End() launcher.Health {
	r.in.t.Helper()
	for deadline := time.Now().Add(r.in.Timeout); ; time.Sleep(10 * time.Millisecond) {
		if h := r.Health(); !h.Status.Alive() {
			return h
		}
		if time.Now().After(deadline) {
			r.in.t.Fatalf("worker %s has not ended within %v", r.Handle, r.in.Timeout)
		}
	}
}
