package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/internal/agent"
	"github.com/slipway-run/slipway/launcher"
)

// tailLines is the number of last lines in the health of an ended worker.
const tailLines = 20

// Health implements [launcher.Launcher].
func (l *Launcher) Health(_ context.Context, h launcher.Handle) (launcher.Health, error) {
	p, err := l.paths(h)
	if err != nil {
		return launcher.Health{}, err
	}
	if health, ok, err := ended(p); ok || err != nil {
		return health, err
	}
	// The order matters: a supervisor that has begun already holds the lock.
	var b agent.Begun
	unbegun := agent.ReadJSON(p.Begun, &b)
	alive, err := held(p.Lock)
	switch {
	case err != nil:
		return launcher.Health{}, err
	case errors.Is(unbegun, fs.ErrNotExist) && alive:
		return launcher.Health{Status: launcher.Starting, Phase: launcher.Accepted}, nil
	case errors.Is(unbegun, fs.ErrNotExist):
		return launcher.Health{Status: launcher.NotFound, Message: "no process was started under this name"}, nil
	case unbegun != nil:
		return launcher.Health{}, fmt.Errorf("process: %w", unbegun)
	case alive:
		return running(p, b), nil
	}
	// The supervisor may have written its record after the first look at the records and before the
	// look at the lock.
	if health, ok, err := ended(p); ok || err != nil {
		return health, err
	}
	return launcher.Health{
		Status: launcher.Failed, Cause: launcher.CauseUnknown, Started: b.At, Tail: tail(p.Log, tailLines),
		Message: "worker and supervisor ended without a record of how: both were killed, or the machine was restarted",
	}, nil
}

func running(p agent.Paths, b agent.Begun) launcher.Health {
	var w agent.Worker
	if agent.ReadJSON(p.Worker, &w) != nil {
		return launcher.Health{Status: launcher.Starting, Phase: launcher.Scheduled, Started: b.At}
	}
	return launcher.Health{Status: launcher.Running, Phase: launcher.PhaseStarted, Started: w.At,
		Message: fmt.Sprintf("process %d", w.PID)}
}

// ended returns the health of a worker whose end is recorded, and false if there is no record.
func ended(p agent.Paths) (launcher.Health, bool, error) {
	var e agent.Ended
	err := agent.ReadJSON(p.Ended, &e)
	if errors.Is(err, fs.ErrNotExist) {
		return launcher.Health{}, false, nil
	}
	if err != nil {
		return launcher.Health{}, false, fmt.Errorf("process: %w", err)
	}
	h := launcher.Health{
		Status: launcher.Failed, Exit: e.Exit, Started: e.Started, Ended: e.At,
		Usage: launcher.Usage{CPU: e.CPU, MaxMemoryBytes: e.MaxBytes}, Tail: tail(p.Log, tailLines),
	}
	switch {
	case e.Error != "":
		h.Message, h.Cause = e.Error, launcher.CauseExit
	case e.Exit != nil:
		h.Message, h.Cause = fmt.Sprintf("exit code %d", *e.Exit), launcher.CauseExit
		if *e.Exit == 0 {
			h.Status, h.Cause = launcher.Succeeded, ""
		}
	default:
		sig := syscall.Signal(e.Signal)
		h.Message, h.Cause = fmt.Sprintf("killed by signal %d (%s)", e.Signal, sig), launcher.CauseExit
	}
	if e.OOM && h.Status == launcher.Failed {
		h.Cause, h.Message = launcher.CauseOOM, h.Message+"; it had used all the memory that it may use"
	}
	if e.Stopped && h.Status == launcher.Failed {
		h.Cause = launcher.CauseCanceled
	}
	return h, true, nil
}

// HealthOf implements [launcher.Batcher].
func (l *Launcher) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	out := make([]launcher.Health, len(hs))
	for i, h := range hs {
		var err error
		if out[i], err = l.Health(ctx, h); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// maxTail is how many bytes at the end of a log are searched for the last lines.
const maxTail = 64 << 10

// tail returns the last n lines of a file, as far as they are in its last 64 KiB.
func tail(file string, n int) []string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > maxTail {
		if _, err := f.Seek(-maxTail, io.SeekEnd); err != nil {
			return nil
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if lines[0] == "" && len(lines) == 1 {
		return nil
	}
	return lines[max(0, len(lines)-n):]
}

// Logs implements [launcher.LogReader].
func (l *Launcher) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	p, err := l.paths(h)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p.Log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("process: log of %s: %w", h, launcher.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	if o.Tail > 0 {
		if err := seekTail(f, o.Tail); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if !o.Follow {
		return f, nil
	}
	return &follower{File: f, ctx: ctx, ended: func() bool {
		health, err := l.Health(ctx, h)
		return err != nil || !health.Status.Alive()
	}}, nil
}

// seekTail moves to the beginning of the n-th line from the end.
func seekTail(f *os.File, n int) error {
	starts := []int64{0}
	r := bufio.NewReader(f)
	var at int64
	for {
		line, err := r.ReadString('\n')
		at += int64(len(line))
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		starts = append(starts, at)
	}
	if len(starts) > 1 && starts[len(starts)-1] == at {
		starts = starts[:len(starts)-1] // no line begins after the last line break
	}
	_, err := f.Seek(starts[max(0, len(starts)-n)], io.SeekStart)
	return err
}

// follower reads a file that grows until its writer has ended.
type follower struct {
	*os.File
	ctx   context.Context // of the call that made the follower; the follower ends with it
	ended func() bool
}

// Read waits for more data at the end of the file.
func (f *follower) Read(b []byte) (int, error) {
	for {
		over := f.ended() // before the read, so that nothing written before the end is missed
		n, err := f.File.Read(b)
		if n > 0 || err != io.EOF || over {
			return n, err
		}
		select {
		case <-f.ctx.Done():
			return 0, f.ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Describe implements [launcher.Describer].
func (l *Launcher) Describe(ctx context.Context, h launcher.Handle, logs bool) (json.RawMessage, error) {
	p, err := l.paths(h)
	if err != nil {
		return nil, err
	}
	health, err := l.Health(ctx, h)
	if err != nil {
		return nil, err
	}
	if health.Status == launcher.NotFound {
		return nil, fmt.Errorf("process: %s: %w", h, launcher.ErrNotFound)
	}
	info := map[string]any{"name": h, "status": health.Status, "message": health.Message, "exit_code": health.Exit,
		"log_file": p.Log, "started": health.Started}
	if !health.Ended.IsZero() {
		info["ended"] = health.Ended
	}
	var w agent.Worker
	if agent.ReadJSON(p.Worker, &w) == nil {
		info["pid"] = w.PID
	}
	var m meta
	if agent.ReadJSON(p.Meta, &m) == nil {
		info["labels"], info["instance"] = m.Labels, m.Instance
	}
	if logs {
		info["log_tail"] = tail(p.Log, 50)
	}
	return json.Marshal(info)
}
