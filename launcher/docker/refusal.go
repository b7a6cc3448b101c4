package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/launcher"
)

// refusal returns the error of a launch that the engine did not carry out. An answer of the engine
// concerns this request ([launcher.ErrInvalid]), unless every other request would meet it too.
func refusal(what string, err error) error {
	text := err.Error()
	switch {
	case cerrdefs.IsUnauthorized(err), cerrdefs.IsPermissionDenied(err) && !strings.Contains(text, "denied by plugin"):
		return fmt.Errorf("%w: docker cannot %s: %w", launcher.ErrDenied, what, err)
	case isAnswer(err) && !inTrouble(text):
		return fmt.Errorf("%w: docker cannot %s: %w", launcher.ErrInvalid, what, err)
	}
	return unclear(err)
}

// isAnswer reports whether the engine itself answered. Gateways answer 502 and 504. An engine that
// cannot work answers 503 and 429. Other errors tell nothing about what the engine has done.
func isAnswer(err error) bool {
	for _, is := range []func(error) bool{
		cerrdefs.IsInvalidArgument, cerrdefs.IsNotFound, cerrdefs.IsConflict, cerrdefs.IsFailedPrecondition,
		cerrdefs.IsPermissionDenied,
		cerrdefs.IsInternal, cerrdefs.IsNotImplemented,
	} {
		if is(err) {
			return true
		}
	}
	return false
}

// inTrouble reports whether the text is about the engine or its machine. The status does not tell,
// because the engine answers 500 to most requests that it cannot carry out.
func inTrouble(text string) bool {
	for _, sign := range []string{
		"no space left on device", "too many open files", "cannot allocate memory", "resource temporarily unavailable",
		"no available IPv4 addresses",
		"containerd.sock", ": unavailable", "transport is closing", "context deadline exceeded", "context canceled",
		// The client's text for an answer without one.
		"client version", "check if the server supports the requested API version",
	} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// unclear returns an error that leaves the outcome open.
func unclear(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: docker: %w", launcher.ErrTransient, err)
}

// startedBefore reports whether the engine could not start a container because its runtime already
// has it. An engine that was killed during a start does not remember the start afterwards. It
// reports the container as "created" and cannot start it. Its process may be running, and the
// engine cannot stop it.
func startedBefore(text string) bool {
	return strings.Contains(text, "id already in use") || strings.Contains(text, "cannot delete running task") ||
		strings.Contains(text, "failed to start shim") && strings.Contains(text, "file exists")
}

// giveUp returns the error of a launch whose container cannot be connected or started. A refused
// container is removed. The removal also proves that it does not run, because the engine removes no
// running container.
func (l *Launcher) giveUp(ctx context.Context, id, what string, err error) error {
	if cerrdefs.IsNotFound(err) && strings.Contains(err.Error(), id) { // it has just been removed
		return unclear(err)
	}
	err = refusal(what, err)
	if !errors.Is(err, launcher.ErrInvalid) {
		return err
	}
	_, kept := l.engine.ContainerRemove(ctx, id, client.ContainerRemoveOptions{RemoveVolumes: true})
	if kept != nil && !cerrdefs.IsNotFound(kept) && !strings.Contains(kept.Error(), "already in progress") {
		// The refusal does not count while the container exists, so it is not wrapped.
		return unclear(fmt.Errorf("container %.12s was not removed: %w, after: %v", id, kept, err)) //nolint:errorlint
	}
	return err
}
