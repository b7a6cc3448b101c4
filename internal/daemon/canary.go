package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
)

// Canary describes a test worker that is sent to a target and opens the storage from there.
type Canary struct {
	Python   bool   // Dagster's Python opens the storage, else slipway-worker
	Location string // code location whose Python is used, if launchers.NAME.python has several
	Image    string // instead of the launcher's image
	Instance string
	Worker   []string      // command of slipway-worker on this machine
	Within   time.Duration // how long the worker may take
}

// Send sends a canary to a target, waits for its end and returns its result. Then it removes the
// worker from the target, if the target allows that in time.
func (c Canary) Send(ctx context.Context, in *instance.Instance, t *dispatch.Target) launcher.Finding {
	if t.Traits.OwnCommand {
		return launcher.Finding{OK: true,
			What: fmt.Sprintf(
				"launchers of kind %s build the worker's command themselves, so no other worker can be sent there",
				t.Kind.Name)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Within)
	defer cancel()
	// The instance has another name, so that no daemon takes this worker for a run's worker.
	req, err := Builder(in, c.Instance+"-check", c.Worker).Canary(uuid.NewString(), c.Python, c.Location, c.Image,
		time.Now(), t.Target)
	if err != nil {
		return launcher.Finding{What: "no worker can be sent there: " + err.Error(), Fix: "correct that first"}
	}
	got, err := t.Launcher.Launch(ctx, req)
	for errors.Is(err, launcher.ErrPending) && wait(ctx, time.Second) {
		got, err = t.Launcher.Launch(ctx, req)
	}
	if err != nil {
		return launcher.Finding{What: fmt.Sprintf("a worker could not be launched there: %v", err),
			Fix: "see docs/launchers/" + t.Kind.Name + ".md"}
	}
	health, err := t.Launcher.Health(ctx, got.Handle)
	for (err != nil || health.Status.Alive()) && wait(ctx, 200*time.Millisecond) {
		health, err = t.Launcher.Health(ctx, got.Handle)
	}
	said := c.said(ctx, t, got.Handle, health)
	c.leaveNothing(ctx, t, got.Handle)
	switch {
	case err != nil:
		return launcher.Finding{What: fmt.Sprintf("the target cannot report on the worker sent there: %v", err),
			Fix: "see docs/launchers/" + t.Kind.Name + ".md"}
	case health.Status == launcher.Succeeded && (said == "" || strings.Contains(said, "the storage is open")):
		return launcher.Finding{OK: true, What: "a worker there opened the storage: " + said}
	case health.Status.Alive():
		return launcher.Finding{What: fmt.Sprintf("a worker there did not open the storage within %v: %s", c.Within,
			said), Fix: "let the network there reach the storage, or allow more time with --timeout"}
	}
	return launcher.Finding{What: fmt.Sprintf("a worker there could not open the storage: %s: %s", health.Message,
		said), Fix: "give workers what is missing: the storage's address and password in env, its library in the image"}
}

// said returns the last lines that the worker wrote.
func (c Canary) said(ctx context.Context, t *dispatch.Target, h launcher.Handle, health launcher.Health) string {
	lines := health.Tail
	if reader, ok := launcher.As[launcher.LogReader](t.Launcher); ok {
		if rc, err := reader.Logs(ctx, h, launcher.LogOptions{Tail: 5}); err == nil {
			text, _ := io.ReadAll(rc) // after an error, the lines before it are enough
			_ = rc.Close()
			lines = strings.Split(string(text), "\n")
		}
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

// leaveNothing stops and removes the worker. It gives up after checkTimeout.
func (c Canary) leaveNothing(ctx context.Context, t *dispatch.Target, h launcher.Handle) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	_, _ = t.Launcher.Terminate(ctx, h, 0) // most workers have ended by now
	r, ok := launcher.As[launcher.Remover](t.Launcher)
	for ok && r.Remove(ctx, h) != nil && wait(ctx, 200*time.Millisecond) {
		continue // its supervisor may still be writing
	}
}

// wait waits for a time, and reports whether ctx has not ended until then.
func wait(ctx context.Context, t time.Duration) bool {
	sleep(ctx, t)
	return ctx.Err() == nil
}
