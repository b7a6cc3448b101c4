package docker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/launcher"
)

// Terminate implements [launcher.Launcher]. The engine itself observes the grace: it continues a
// stop even if the client has disconnected.
func (l *Launcher) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	c, err := l.inspect(ctx, h)
	if errors.Is(err, launcher.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	switch c.State.Status {
	case container.StateCreated: // it must no longer be started
		_, err := l.engine.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true})
		return err == nil, errors.Join(err)
	case container.StateRunning, container.StatePaused, container.StateRestarting:
	default:
		return false, nil
	}
	l.canceled.Store(h, true)
	if grace <= 0 {
		_, err = l.engine.ContainerKill(ctx, c.ID, client.ContainerKillOptions{Signal: "SIGKILL"})
	} else {
		if seconds, serr := strconv.Atoi(c.Config.Labels[stopLabel]); serr == nil {
			grace = max(grace, time.Duration(seconds)*time.Second)
		}
		err = l.stop(ctx, c.ID, grace)
	}
	switch {
	case err == nil:
		return true, nil
	// it has just ended
	case cerrdefs.IsNotFound(err), cerrdefs.IsConflict(err), strings.Contains(err.Error(), "is not running"):
		return false, nil
	}
	return false, unclear(err)
}

// stop asks the engine to stop a container. It returns as soon as the request is sent.
func (l *Launcher) stop(ctx context.Context, id string, grace time.Duration) error {
	asked, done := make(chan struct{}, 1), make(chan error, 1)
	seconds := int(math.Ceil(grace.Seconds()))
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+time.Minute)
		defer cancel()
		ctx = httptrace.WithClientTrace(ctx,
			&httptrace.ClientTrace{WroteRequest: func(info httptrace.WroteRequestInfo) {
				if info.Err == nil {
					asked <- struct{}{}
				}
			}})
		_, err := l.engine.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &seconds})
		if err != nil && !cerrdefs.IsNotFound(err) {
			l.log.Warn("docker: a container was not stopped", "container", id, "err", err)
		}
		done <- err
	}()
	select {
	case <-asked:
		return nil
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("docker: %w", ctx.Err())
	}
}
