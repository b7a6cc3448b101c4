// Package spool is a launcher for Slipway. Its target is the program spool beside it, a small batch
// system that keeps each worker in a separate folder with the worker's name.
package spool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// Config holds the settings of the launcher.
type Config struct {
	Program string `config:"program" default:"spool" help:"The program; a relative path with a slash begins at slipway.yaml."`
	Folder  string `config:"folder" required:"true" help:"The spool folder."`
}

// Kind declares the launcher. Its traits are the promises of the target, which the kit tests.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "spool", Help: "Run workers as processes that a spool folder keeps.", Schema: config.Fields(Config{}),
		Traits: launcher.Traits{Unique: true, StrongRead: true, LocalFiles: true, SignalsWorker: true, Gate: true},
		Open: func(_ context.Context, v config.Values, _ *slog.Logger) (launcher.Launcher, error) {
			var c Config
			err := v.Decode(&c)
			if err == nil {
				c.Program, err = v.Program("program", c.Program)
			}
			return &Launcher{c}, err
		},
	}
}

// Launcher calls the program spool. It has no state, and many goroutines and processes may use it
// at the same time.
type Launcher struct{ c Config }

var (
	_ launcher.Launcher  = (*Launcher)(nil)
	_ launcher.Lister    = (*Launcher)(nil)
	_ launcher.LogReader = (*Launcher)(nil)
	_ launcher.Remover   = (*Launcher)(nil)
)

// exits maps the program's exit codes to their meaning for Slipway. With any other code the outcome
// is unknown: Slipway asks again with the same name.
var exits = map[int]error{64: launcher.ErrInvalid, 66: launcher.ErrNotFound, 73: launcher.ErrCapacity,
	75: launcher.ErrTransient, 77: launcher.ErrDenied}

// spool runs the program and decodes its output into out, unless out is nil.
func (l *Launcher) spool(ctx context.Context, out any, args ...string) error {
	return l.run(l.command(ctx, args...), out)
}

func (l *Launcher) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.c.Program, args...)
	cmd.Env = append(os.Environ(), "SPOOL="+l.c.Folder)
	return cmd
}

func (l *Launcher) run(cmd *exec.Cmd, out any) error {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exits[exit.ExitCode()] != nil:
		return fmt.Errorf("%w: %s", exits[exit.ExitCode()], strings.TrimSpace(stderr.String()))
	case err != nil:
		return fmt.Errorf("spool: %w: %s", err, strings.TrimSpace(stderr.String()))
	case out == nil || stdout.Len() == 0:
		return nil
	}
	return json.Unmarshal(stdout.Bytes(), out)
}

// Launch implements [launcher.Launcher]. The program itself refuses a second worker with the same
// name.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	if err := req.Check(); err != nil {
		return launcher.Launched{}, err
	}
	args := []string{"launch", req.ID.String(), req.Instance}
	for key, value := range req.Labels {
		args = append(args, key+"="+value)
	}
	cmd := l.command(ctx, slices.Concat(args, []string{"--"}, req.Command)...)
	cmd.Dir = req.Dir
	for _, e := range req.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	return launcher.Launched{Handle: launcher.Handle(req.ID.String())}, l.run(cmd, nil)
}

// Terminate implements [launcher.Launcher].
func (l *Launcher) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	out := struct{ Stopped bool }{true}
	err := l.spool(ctx, &out, "terminate", string(h), fmt.Sprint(grace.Seconds()))
	if errors.Is(err, launcher.ErrNotFound) {
		return false, nil
	}
	return out.Stopped && err == nil, err
}

// Health implements [launcher.Launcher].
func (l *Launcher) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	var out launcher.Health
	err := l.spool(ctx, &out, "health", string(h))
	if errors.Is(err, launcher.ErrNotFound) {
		return launcher.Health{Status: launcher.NotFound}, nil
	}
	return out, err
}

// List implements [launcher.Lister].
func (l *Launcher) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		var all []struct {
			Name string
			launcher.Health
		}
		if err := l.spool(ctx, &all, "list", f.Instance); err != nil {
			yield(launcher.Worker{}, err)
			return
		}
		for _, w := range all {
			id, ok := launcher.ParseID(w.Name)
			if ok && (f.Runs == nil || slices.Contains(f.Runs, id.Run)) &&
				!yield(launcher.Worker{ID: id, Instance: f.Instance, Handle: launcher.Handle(w.Name), Health: w.Health},
					nil) {
				return
			}
		}
	}
}

// Logs implements [launcher.LogReader].
func (l *Launcher) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	if got, err := l.Health(ctx, h); err != nil || got.Status == launcher.NotFound {
		return nil, errors.Join(err, launcher.ErrNotFound)
	}
	cmd := l.command(ctx, "logs", string(h), fmt.Sprint(o.Tail), fmt.Sprint(o.Follow))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	return &output{out, cmd}, err
}

// output streams the output of a running command.
type output struct {
	io.ReadCloser
	cmd *exec.Cmd
}

func (o *output) Close() error {
	_ = o.cmd.Process.Kill() // it may have already ended
	_ = o.cmd.Wait()
	return nil
}

// Remove implements [launcher.Remover].
func (l *Launcher) Remove(ctx context.Context, h launcher.Handle) error {
	err := l.spool(ctx, nil, "remove", string(h))
	if errors.Is(err, launcher.ErrNotFound) {
		return nil
	}
	return err
}
