package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"

	"github.com/slipway-run/slipway/launcher"
)

// adopted is the prefix of the handle of a container that Dagster's own launcher started. The
// container's ID and the ID of its run follow.
const adopted = "id/"

// Adopt implements [launcher.Adopter].
func (l *Launcher) Adopt(f launcher.Foreign) (launcher.Handle, bool) {
	id := f.Tags["docker/container_id"]
	if id == "" || strings.Contains(id, "/") || len(adopted)+len(id)+1+len(f.Run) > launcher.MaxHandle {
		return "", false
	}
	return launcher.Handle(adopted + id + "/" + f.Run), true
}

// inspect returns the container of a handle. The error is [launcher.ErrNotFound] if there is none,
// or if it is not the container of the handle's run.
func (l *Launcher) inspect(ctx context.Context, h launcher.Handle) (container.InspectResponse, error) {
	name, run := string(h), ""
	if rest, ok := strings.CutPrefix(name, adopted); ok {
		name, run, _ = strings.Cut(rest, "/")
	} else if id, ok := launcher.ParseID(name); ok {
		run = id.Run
	} else {
		return container.InspectResponse{}, fmt.Errorf("%w: %q is not a handle of this launcher", launcher.ErrNotFound,
			h)
	}
	got, err := l.engine.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if cerrdefs.IsNotFound(err) || err == nil && got.Container.Config.Labels[runLabel] != run {
		return got.Container, fmt.Errorf("%w: container %s", launcher.ErrNotFound, name)
	}
	if err != nil {
		return got.Container, unclear(err)
	}
	return got.Container, nil
}

// Health implements [launcher.Launcher].
func (l *Launcher) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	c, err := l.inspect(ctx, h)
	if errors.Is(err, launcher.ErrNotFound) {
		l.canceled.Delete(h)
		return launcher.Health{Status: launcher.NotFound, Message: "there is no such container"}, nil
	}
	if err != nil {
		return launcher.Health{}, err
	}
	return l.healthOf(ctx, h, c), nil
}

// tailLines is the number of last lines in the health of an ended worker.
const tailLines = 20

func (l *Launcher) healthOf(ctx context.Context, h launcher.Handle, c container.InspectResponse) launcher.Health {
	health := Health(c.State)
	if c.RestartCount > 0 {
		health.Incarnation = strconv.Itoa(c.RestartCount)
	}
	if _, ours := l.canceled.Load(h); ours && health.Status == launcher.Failed {
		health.Cause = launcher.CauseCanceled
	}
	if health.Status == launcher.Failed {
		if tail, err := l.lines(ctx, c, tailLines); err == nil {
			health.Tail = tail
		}
	}
	return health
}

// Health returns the health that a container's state means for its worker.
func Health(s *container.State) launcher.Health {
	h := launcher.Health{Started: instant(s.StartedAt), Ended: instant(s.FinishedAt)}
	if !h.Ended.IsZero() && h.Ended.Before(h.Started) {
		// The container ended at once: the engine records the end before the start.
		h.Ended = h.Started
	}
	switch s.Status {
	case container.StateCreated:
		h.Status, h.Phase, h.Started, h.Ended = launcher.Starting, launcher.Accepted, time.Time{}, time.Time{}
		switch {
		case startedBefore(s.Error): // it may be running, and past its gate
			h.Message = "the engine has lost the container in its start: " + s.Error
		case inTrouble(s.Error): // the next start may succeed
			h.Message = "the engine could not start the container: " + s.Error
		case s.Error != "":
			h.Status, h.Cause, h.Message = launcher.Failed, launcher.CauseExit,
				"the container could not be started: "+s.Error
		}
		return h
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		h.Status, h.Phase, h.Ended = launcher.Running, launcher.PhaseStarted, time.Time{}
		return h
	case container.StateRemoving, container.StateDead:
		if h.Ended.IsZero() {
			h.Status, h.Message = launcher.Unknown, "the container is "+string(s.Status)
			return h
		}
	}
	exit := s.ExitCode
	h.Exit = &exit
	if exit == 0 {
		h.Status = launcher.Succeeded
		return h
	}
	h.Status, h.Cause, h.Message = launcher.Failed, launcher.CauseExit,
		fmt.Sprintf("the container ended with exit code %d", exit)
	switch {
	case s.OOMKilled && exit == 137: // with another exit code the kernel killed a child of the worker
		h.Cause, h.Message = launcher.CauseOOM, "the container ran out of memory and was killed (exit code 137)"
	case exit > 128 && exit < 160:
		h.Message += fmt.Sprintf(", as after signal %d", exit-128)
	}
	if s.Error != "" {
		h.Message += ": " + s.Error
	}
	return h
}

func instant(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || t.Year() < 1970 { // the engine reports 0001-01-01 for an event that has not happened
		return time.Time{}
	}
	return t
}

// HealthOf implements [launcher.Batcher].
func (l *Launcher) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	return launcher.HealthOfEach(ctx, l, hs, atOnce)
}

// atOnce is the number of containers that are inspected at the same time.
const atOnce = 8

// workerOf returns the worker that a container's labels name, and false if it is not one of
// Slipway's.
func workerOf(labels map[string]string, name string) (launcher.Worker, bool) {
	attempt, err := strconv.Atoi(labels[attemptLabel])
	w := launcher.Worker{ID: launcher.ID{Run: labels[runLabel], Attempt: attempt}, Instance: labels[instanceLabel]}
	w.Handle = launcher.Handle(w.ID.String())
	return w, err == nil && w.Instance != "" && w.ID.Check() == nil && strings.TrimPrefix(name, "/") == w.ID.String()
}

// List implements [launcher.Lister].
func (l *Launcher) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		filters := client.Filters{}.Add("label", instanceLabel)
		if f.Instance != "" {
			filters = client.Filters{}.Add("label", instanceLabel+"="+f.Instance)
		}
		if len(f.Runs) == 1 {
			filters = filters.Add("label", runLabel+"="+f.Runs[0])
		}
		if f.Runs != nil && len(f.Runs) == 0 {
			return
		}
		all, err := l.engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
		if err != nil {
			yield(launcher.Worker{}, unclear(err))
			return
		}
		var found []launcher.Worker
		for _, c := range all.Items {
			if w, ok := workerOf(c.Labels, strings.Join(c.Names[:min(1, len(c.Names))], "")); ok && f.Wants(w.ID.Run) {
				w.Health = Health(&container.State{Status: c.State})
				found = append(found, w)
			}
		}
		g, look := errgroup.WithContext(ctx)
		g.SetLimit(atOnce)
		for i, w := range found {
			if w.Health.Status == launcher.Running { // for a live worker the list lacks only the start
				continue
			}
			g.Go(func() (err error) {
				found[i].Health, err = l.Health(look, w.Handle)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			yield(launcher.Worker{}, err)
			return
		}
		for _, w := range found {
			if w.Health.Status != launcher.NotFound && !yield(w, nil) { // else it was removed in between
				return
			}
		}
	}
}

// Watch implements [launcher.Watcher] with the engine's events.
func (l *Launcher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		info, err := l.engine.Info(ctx, client.InfoOptions{})
		if err != nil {
			failed(ctx, yield, unclear(err))
			return
		}
		// The events begin at the engine's time before the list, so that no event is missed.
		events := l.engine.Events(ctx, client.EventsListOptions{
			Since: info.Info.SystemTime,
			Filters: client.Filters{}.Add("type", "container").Add("label", instanceLabel).Add("event", "start", "die",
				"oom", "destroy"),
		})
		for w, err := range l.List(ctx, launcher.Filter{}) {
			if err != nil {
				failed(ctx, yield, err)
				return
			}
			if !yield(w, nil) {
				return
			}
		}
		if !yield(launcher.Worker{Synced: true}, nil) {
			return
		}
		for {
			select {
			case <-ctx.Done():
				return
			case err := <-events.Err:
				if err == nil || errors.Is(err, io.EOF) {
					err = fmt.Errorf("%w: docker: the engine ended its events", launcher.ErrTransient)
				}
				failed(ctx, yield, err)
				return
			case e := <-events.Messages:
				w, ok := workerOf(e.Actor.Attributes, e.Actor.Attributes["name"])
				if !ok {
					continue
				}
				if w.Health, err = l.Health(ctx, w.Handle); err != nil {
					failed(ctx, yield, err)
					return
				}
				if !yield(w, nil) {
					return
				}
			}
		}
	}
}

// failed yields an error, unless the only reason is that the caller's context ended.
func failed(ctx context.Context, yield func(launcher.Worker, error) bool, err error) {
	if ctx.Err() == nil {
		yield(launcher.Worker{}, err)
	}
}

// Remove implements [launcher.Remover].
func (l *Launcher) Remove(ctx context.Context, h launcher.Handle) error {
	c, err := l.inspect(ctx, h)
	if errors.Is(err, launcher.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if Health(c.State).Status.Alive() {
		return fmt.Errorf("docker: container %s still runs", h)
	}
	_, err = l.engine.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{RemoveVolumes: true})
	if err != nil && !cerrdefs.IsNotFound(err) && !strings.Contains(err.Error(), "already in progress") {
		return fmt.Errorf("docker: %w", err)
	}
	l.canceled.Delete(h)
	return nil
}

// Logs implements [launcher.LogReader].
func (l *Launcher) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	c, err := l.inspect(ctx, h)
	if err != nil {
		return nil, err
	}
	return l.read(ctx, c, o)
}

func (l *Launcher) read(ctx context.Context, c container.InspectResponse,
	o launcher.LogOptions) (io.ReadCloser, error) {
	options := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: o.Follow}
	if o.Tail > 0 {
		options.Tail = strconv.Itoa(o.Tail)
	}
	stream, err := l.engine.ContainerLogs(ctx, c.ID, options)
	if err != nil && c.HostConfig != nil &&
		(cerrdefs.IsNotImplemented(err) || strings.Contains(err.Error(), "does not support reading")) {
		return nil,
			noOutput{fmt.Errorf(
				"docker: the log driver %q of container %s keeps no output that can be read "+
					"(container_kwargs.log_config)", c.HostConfig.LogConfig.Type, strings.TrimPrefix(c.Name, "/"))}
	}
	if cerrdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w: docker: %w", launcher.ErrNotFound, err)
	}
	if err != nil {
		return nil, unclear(err)
	}
	if c.Config.Tty {
		return stream, nil
	}
	r, w := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(w, w, stream)
		w.CloseWithError(errors.Join(err, stream.Close()))
	}()
	return both{r, stream}, nil
}

// noOutput is a [launcher.ErrNotFound] without its text: the worker exists, but its output does
// not.
type noOutput struct{ error }

func (noOutput) Is(target error) bool {
	return target == launcher.ErrNotFound //nolint:errorlint // errors.Is passes the sentinel itself
}

// both closes the engine's stream together with the reader. That ends the copying.
type both struct {
	*io.PipeReader
	stream io.Closer
}

func (b both) Close() error {
	err := b.PipeReader.Close()
	_ = b.stream.Close() // closed already if all was read
	return err
}

func (l *Launcher) lines(ctx context.Context, c container.InspectResponse, n int) ([]string, error) {
	r, err := l.read(ctx, c, launcher.LogOptions{Tail: n})
	if err != nil {
		return nil, err
	}
	var lines []string
	for s := bufio.NewScanner(r); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines, r.Close()
}

// Describe implements [launcher.Describer].
func (l *Launcher) Describe(ctx context.Context, h launcher.Handle, logs bool) (json.RawMessage, error) {
	c, err := l.inspect(ctx, h)
	if err != nil {
		return nil, err
	}
	networks := []string{}
	if c.NetworkSettings != nil {
		for name := range c.NetworkSettings.Networks {
			networks = append(networks, name)
		}
		slices.Sort(networks)
	}
	out := map[string]any{
		"engine": l.engine.DaemonHost(), "container": strings.TrimPrefix(c.Name, "/"), "id": c.ID,
		"image": c.Config.Image, "image_id": c.Image, "created": c.Created,
		"state": c.State, "restarts": c.RestartCount, "networks": networks, "labels": c.Config.Labels,
		"env": redactedEnv(c.Config.Env, c.Config.Labels[secretsLabel]), "host_config": c.HostConfig,
	}
	if logs {
		tail, err := l.lines(ctx, c, 10*tailLines)
		if err != nil {
			out["log_error"] = err.Error()
		}
		out["log"] = tail
	}
	return json.MarshalIndent(out, "", "  ")
}

// Check implements [launcher.Checker].
func (l *Launcher) Check(ctx context.Context) []launcher.Finding {
	v, err := l.engine.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return []launcher.Finding{{What: fmt.Sprintf("the engine at %s does not answer: %v", l.engine.DaemonHost(),
			err), Fix: "start it, or put its address into host of the launcher's config; the daemon's user needs " +
			"access to the socket"}}
	}
	out := []launcher.Finding{{OK: true,
		What: fmt.Sprintf("engine %s at %s, API %s", v.Version, l.engine.DaemonHost(), l.engine.ClientVersion())}}
	if host, err := l.Host(ctx); err == nil && host == "" {
		out = append(out, launcher.Finding{OK: true,
			What: "the engine hides its ID (GET /info): if another daemon of this instance used another engine, it " +
				"would end runs of this one"})
	}
	if l.image != "" {
		_, err := l.engine.ImageInspect(ctx, l.image)
		f := launcher.Finding{OK: err == nil, What: "image " + l.image + " is there"}
		switch {
		case cerrdefs.IsNotFound(err) && l.pull != "never":
			f = launcher.Finding{OK: true, What: "image " + l.image + " is not there yet; the first launch pulls it"}
		case err != nil:
			f.What, f.Fix = fmt.Sprintf("image %s: %v", l.image, err),
				"build or load it, or allow pulling with pull: missing"
		}
		out = append(out, f)
	}
	if r := l.base.registry; r != nil {
		_, err := l.engine.RegistryLogin(ctx,
			client.RegistryLoginOptions{Username: r.Username, Password: r.Password, ServerAddress: r.URL})
		f := launcher.Finding{OK: err == nil, What: "login at registry " + r.URL}
		if err != nil {
			f.What, f.Fix = fmt.Sprintf("login at registry %s as %s: %v", r.URL, r.Username, err),
				"correct registry.username and registry.password"
		}
		out = append(out, f)
	}
	for _, n := range l.base.networks {
		_, err := l.engine.NetworkInspect(ctx, n, client.NetworkInspectOptions{})
		f := launcher.Finding{OK: err == nil, What: "network " + n}
		if err != nil {
			f.What, f.Fix = fmt.Sprintf("network %s: %v", n, err), "docker network create "+n
		}
		out = append(out, f)
	}
	return out
}
