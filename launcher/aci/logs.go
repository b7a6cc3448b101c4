package aci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

// Logs implements [launcher.LogReader].
func (l *Launcher) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	name, err := l.name(h)
	if err != nil {
		return nil, err
	}
	health, err := l.look(ctx, name, false)
	if err != nil {
		return nil, err
	}
	if health.Status == launcher.NotFound {
		return nil, fmt.Errorf("%w: container group %s", launcher.ErrNotFound, name)
	}
	if !o.Follow {
		text, err := l.output(ctx, name, o.Tail)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader(text)), nil
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	go func() {
		defer cancel()
		w.CloseWithError(l.follow(ctx, name, o.Tail, w))
	}()
	return following{r, cancel}, nil
}

type following struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (f following) Close() error {
	f.cancel()
	return f.PipeReader.Close()
}

// output returns the output of a worker. If the output is gone, it returns the last lines that were
// saved before.
func (l *Launcher) output(ctx context.Context, name string, tail int) (string, error) {
	text, err := l.api.logs(ctx, name, tail)
	if err == nil && tail > 0 { // the service may ignore the option
		text = strings.Join(lastLines(text, tail), "")
	}
	if err != nil && errors.Is(err, launcher.ErrNotFound) {
		if lines := l.kept(name); len(lines) > 0 {
			return strings.Join(lines, "\n") + "\n", nil
		}
		return "", err
	}
	if err != nil {
		return "", transient(err)
	}
	return text, nil
}

func (l *Launcher) kept(name string) []string {
	w := l.workers.of(name)
	l.workers.mu.Lock()
	defer l.workers.mu.Unlock()
	return w.tail
}

// lastLines returns the last n lines of a text, each with its line break.
func lastLines(text string, n int) []string {
	lines := strings.SplitAfter(text, "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines[max(0, len(lines)-n):]
}

// lines returns a worker's last lines, or none if they cannot be read. They may soon be gone, so it
// repeats the request if the outcome was unclear.
func (l *Launcher) lines(ctx context.Context, name string, n int) []string {
	text, err := l.api.logs(ctx, name, n)
	for again := 0; again < 3 && errors.Is(err, errUnclear) && ctx.Err() == nil; again++ {
		text, err = l.api.logs(ctx, name, n)
	}
	if err != nil {
		return nil
	}
	out := lastLines(text, n)
	for i, line := range out {
		out[i] = strings.TrimSuffix(line, "\n")
	}
	return out
}

// follow writes a worker's output until the worker has ended. There is no stream, so it reads the
// log repeatedly.
func (l *Launcher) follow(ctx context.Context, name string, tail int, w io.Writer) error {
	sent := ""
	for first := true; ; first = false {
		health, err := l.look(ctx, name, false) // before the log, so that the log contains all output until the end
		if err == nil {
			var text string
			if text, err = l.api.logs(ctx, name, 0); err == nil {
				if first && tail > 0 {
					sent = strings.TrimSuffix(text, strings.Join(lastLines(text, tail), ""))
				}
				fresh := after(sent, text)
				if _, err := io.WriteString(w, fresh); err != nil {
					return err
				}
				sent = text
			}
			if !health.Status.Alive() && (err == nil || errors.Is(err, launcher.ErrNotFound)) {
				return nil
			}
		}
		if errors.Is(err, launcher.ErrDenied) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(l.workers.poll, time.Second)):
		}
	}
}

// overlap is how much of the sent text must be found in a log whose beginning is gone.
const overlap = 1 << 10

// after returns the part of a log that follows the sent text, even if the log's beginning is gone.
func after(sent, text string) string {
	if rest, ok := strings.CutPrefix(text, sent); ok {
		return rest
	}
	end := sent[max(0, len(sent)-overlap):]
	if i := strings.LastIndex(text, end); i >= 0 {
		return text[i+len(end):]
	}
	for n := min(len(end), len(text)); n > 0; n-- { // the rest of the sent text may begin within its end
		if strings.HasSuffix(end, text[:n]) {
			return text[n:]
		}
	}
	return text
}

// Describe implements [launcher.Describer].
func (l *Launcher) Describe(ctx context.Context, h launcher.Handle, logs bool) (json.RawMessage, error) {
	name, err := l.name(h)
	if err != nil {
		return nil, err
	}
	if _, err := l.look(ctx, name, false); err != nil {
		return nil, err
	}
	w := l.workers.of(name)
	l.workers.mu.Lock()
	g, tail, health := w.group, w.tail, w.health
	l.workers.mu.Unlock()
	if g == nil {
		return nil, fmt.Errorf("%w: container group %s", launcher.ErrNotFound, name)
	}
	// The first three members are those of the guide's example.
	out := map[string]any{"container_state": nil, "events": []any{}, "start_time": nil}
	if v := containerOf(g).InstanceView; v != nil {
		out["events"], out["restarts"], out["current_state"], out["previous_state"] = v.Events, v.RestartCount,
			v.CurrentState, v.PreviousState
		if s := v.CurrentState; s != nil {
			out["container_state"], out["start_time"] = s.State, s.StartTime
		}
	}
	out["health"] = map[string]any{"status": health.Status, "cause": health.Cause, "message": health.Message}
	out["subscription"], out["resource_group"], out["container_group"], out["location"], out["tags"] =
		l.c.SubscriptionID, l.c.ResourceGroup, name, g.Location, g.Tags
	out["group"] = hidden(*g)
	out["hint"] = "az container show -g " + l.c.ResourceGroup + " -n " + name
	if logs {
		if lines := l.lines(ctx, name, 10*tailLines); len(lines) > 0 {
			tail = lines
		}
		out["log"] = tail
	}
	return json.MarshalIndent(out, "", "  ")
}
