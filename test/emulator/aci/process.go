package aci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Processes is a [Backend] for machines without a container engine. A container is a process of
// this machine, with only the environment of its container. Images, sizes and volumes are ignored.
// Its containers end with the emulator.
type Processes struct {
	// Images are the images that can be pulled; nil: all.
	Images []string
	// Path is the PATH of the processes; "" is the PATH of the emulator.
	Path string
}

// Pull implements [Backend].
func (p *Processes) Pull(_ context.Context, image string, _ *Login) error {
	if p.Images != nil && !slices.Contains(p.Images, image) {
		return fmt.Errorf("%w: manifest for %s not found: manifest unknown", ErrNoImage, image)
	}
	return nil
}

// Find implements [Backend].
func (p *Processes) Find(context.Context, string) (Container, bool) { return nil, false }

// Start implements [Backend].
func (p *Processes) Start(_ context.Context, s Spec) (Container, error) {
	if len(s.Command) == 0 {
		return nil, errors.New("a process needs a command: without a container engine an image has none")
	}
	path := p.Path
	if path == "" {
		path = os.Getenv("PATH")
	}
	c := &process{done: make(chan struct{})}
	program, err := find(s.Command[0], path)
	if err != nil {
		return nil, fmt.Errorf("failed to create shim task: %w", err)
	}
	c.cmd = exec.Command(program, s.Command[1:]...)
	c.cmd.Env = append([]string{"PATH=" + path, "LANG=C.UTF-8"}, s.Env...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.cmd.Stdout, c.cmd.Stderr = w, w
	c.exit.Started = time.Now()
	err = c.cmd.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("failed to create shim task: %w", err), r.Close())
	}
	go c.wait(r)
	return c, nil
}

// find looks up a program in a PATH other than that of this process.
func find(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		if program, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return program, nil
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

type line struct {
	at   time.Time
	text string
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	exit Exit // valid after done is closed

	mu    sync.Mutex
	lines []line
}

func (c *process) wait(r *os.File) {
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		in := bufio.NewReader(r)
		for {
			text, err := in.ReadString('\n')
			if text != "" {
				c.mu.Lock()
				c.lines = append(c.lines, line{time.Now(), text})
				c.mu.Unlock()
			}
			if err != nil {
				return
			}
		}
	}()
	_ = c.cmd.Wait()                                      // ProcessState has the result
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // the processes of a container end with its first one
	<-copied
	_ = r.Close()
	c.exit.Finished = time.Now()
	c.exit.Code = c.cmd.ProcessState.ExitCode()
	if ws, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		c.exit.Code = 128 + int(ws.Signal())
	}
	close(c.done)
}

func (c *process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-c.done:
		return c.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (c *process) signal(s syscall.Signal) {
	select {
	case <-c.done:
	default:
		_ = syscall.Kill(-c.cmd.Process.Pid, s) // it may just have ended
	}
}

func (c *process) Stop(_ context.Context, grace time.Duration) error {
	if grace > 0 {
		_ = syscall.Kill(c.cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-c.done:
			return nil
		case <-time.After(grace):
		}
	}
	c.signal(syscall.SIGKILL)
	<-c.done
	return nil
}

func (c *process) Logs(_ context.Context, tail int, times bool) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.lines
	if tail > 0 {
		lines = lines[max(0, len(lines)-tail):]
	}
	var b strings.Builder
	for _, l := range lines {
		if times {
			b.WriteString(l.at.UTC().Format(time.RFC3339Nano) + " ")
		}
		b.WriteString(l.text)
	}
	return b.String(), nil
}

func (c *process) Exec(ctx context.Context, command []string, in io.Reader, out io.Writer) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.cmd.Env, in, out, out
	cmd.WaitDelay = time.Second // its input may never end
	return cmd.Run()
}

func (c *process) Remove(context.Context) error {
	c.signal(syscall.SIGKILL)
	<-c.done
	return nil
}
