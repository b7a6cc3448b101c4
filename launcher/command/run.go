package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

// exits maps exit codes to their meaning. They are those of sysexits.h that fit.
var exits = map[int]error{
	64: launcher.ErrInvalid, 65: launcher.ErrInvalid,
	66: launcher.ErrNotFound,
	69: launcher.ErrTransient, 75: launcher.ErrTransient,
	73: launcher.ErrCapacity,
	77: launcher.ErrDenied,
}

// lists are the placeholders that are replaced by several arguments.
var lists = []string{"command", "env", "label", "node"}

// verb is an argument vector with placeholders, and the placeholders that it may contain.
type verb struct {
	args  []string
	known []string
}

var (
	placeholder = regexp.MustCompile(`\{\{|\}\}|\{([a-z_]+)\}`)
	// wholes matches an argument with a placeholder: the placeholder stands alone, or ends plain
	// text. Inside a script its value would be read as part of the script.
	wholes = regexp.MustCompile(`^([A-Za-z0-9_./:=@,-]*)\{([a-z_]+)\}$`)
)

// check refuses unknown placeholders, and those at a place where their value could be taken for
// something else.
func (v verb) check(arg string) error {
	for _, m := range placeholder.FindAllStringSubmatch(arg, -1) {
		switch name, whole := m[1], wholes.FindStringSubmatch(arg); {
		case name == "":
		case !slices.Contains(v.known, name):
			return fmt.Errorf(
				"there is no placeholder {%s} here, only %s; braces that stand for themselves are doubled", name,
				strings.Join(v.known, ", "))
		case whole == nil:
			return fmt.Errorf(
				"a placeholder is an argument by itself, or ends one that begins with plain text, as --name={name}; "+
					"a script has it as an argument or as $SLIPWAY_%s: %q", strings.ToUpper(name), arg)
		case name == "command" && whole[1] != "":
			return fmt.Errorf("{command} is an argument by itself, for it stands for several: %q", arg)
		}
	}
	return nil
}

// fill returns the arguments for some values. It leaves out an argument whose value is missing. An
// argument with {env}, {label} or {node} is repeated for each variable's name, label, or label of a
// node. The error is an [launcher.ErrInvalid]: a value would be taken for an option or for several
// lines.
func (v verb) fill(vars map[string]string, req *launcher.Request) ([]string, error) {
	var out []string
	ended := false // the arguments that follow are not options
	for _, arg := range v.args {
		m := wholes.FindStringSubmatch(arg)
		if m == nil {
			out, ended = append(out, strings.NewReplacer("{{", "{", "}}", "}").Replace(arg)), ended || arg == "--"
			continue
		}
		prefix, name := m[1], m[2]
		var all []string
		switch {
		case name == "command" && req != nil:
			out = append(out, req.Command...)
			continue
		case name == "env" && req != nil:
			for _, e := range req.Env {
				all = append(all, e.Name)
			}
		case name == "label" && req != nil:
			for _, k := range slices.Sorted(maps.Keys(req.Labels)) {
				all = append(all, k+"="+req.Labels[k])
			}
		case name == "node" && req != nil:
			for _, k := range slices.Sorted(maps.Keys(req.Nodes)) {
				all = append(all, k+"="+req.Nodes[k])
			}
		case vars[name] != "":
			all = []string{vars[name]}
		}
		for _, value := range all {
			if strings.ContainsAny(value, "\x00\n\r") || prefix == "" && !ended && strings.HasPrefix(value, "-") {
				return nil, fmt.Errorf("%w: %q cannot be the value of {%s} in a command", launcher.ErrInvalid, value,
					name)
			}
			out = append(out, prefix+value)
		}
	}
	return out, nil
}

// values returns the values of a request. What the request leaves to the target has no value.
func values(req *launcher.Request) map[string]string {
	number := func(n int64) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	vars := map[string]string{
		"name": req.ID.String(), "run_id": req.ID.Run, "attempt": strconv.Itoa(req.ID.Attempt),
		"instance": req.Instance, "job": req.Job, "location": req.Location,
		"repository": req.Repository, "image": req.Image, "dir": req.Dir, "memory": number(req.Resources.MemoryBytes),
		"gpus": number(req.Resources.GPUs),
		"disk": number(req.Resources.DiskBytes), "grace": seconds(req.Grace), "cpus": "",
	}
	if m := req.Resources.CPUMillis; m != 0 {
		vars["cpus"] = strconv.FormatFloat(float64(m)/1000, 'f', -1, 64)
	}
	return vars
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// worker returns the values of a handle, which is the worker's name.
func worker(h launcher.Handle) (map[string]string, error) {
	id, ok := launcher.ParseID(string(h))
	if !ok {
		return nil, fmt.Errorf("%q is not a handle of this launcher", h)
	}
	return map[string]string{"name": string(h), "run_id": id.Run, "attempt": strconv.Itoa(id.Attempt)}, nil
}

// input returns what a command reads from its standard input: the request of launch, with secrets,
// or the values.
func input(in any) ([]byte, error) {
	req, ok := in.(*launcher.Request)
	if !ok {
		return json.Marshal(in)
	}
	env := map[string]string{}
	for _, e := range req.Env {
		env[e.Name] = e.Value
	}
	return json.Marshal(map[string]any{
		"name": req.ID.String(), "run_id": req.ID.Run, "attempt": req.ID.Attempt, "instance": req.Instance,
		"command": req.Command, "dir": req.Dir, "env": env,
		"image": req.Image, "labels": req.Labels, "nodes": req.Nodes, "job": req.Job, "location": req.Location,
		"repository": req.Repository, "grace_s": req.Grace.Seconds(),
		"resources": map[string]any{"cpu_millis": req.Resources.CPUMillis, "memory_bytes": req.Resources.MemoryBytes,
			"gpus": req.Resources.GPUs, "disk_bytes": req.Resources.DiskBytes},
		"resume": req.Resume, "run": req.Run, "instance_ref": req.InstanceRef,
	})
}

// command returns the command of a verb.
func (l *Launcher) command(ctx context.Context, name string, vars map[string]string, in any) (*exec.Cmd, error) {
	req, _ := in.(*launcher.Request)
	args, err := l.verbs[name].fill(vars, req)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = slices.Clone(l.env)
	if req != nil && l.c.Promises.LocalFiles {
		cmd.Dir = req.Dir // the worker's folder
	}
	for key, value := range vars {
		cmd.Env = append(cmd.Env, "SLIPWAY_"+strings.ToUpper(key)+"="+value)
	}
	if req != nil {
		for _, e := range req.Env {
			cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
		}
	}
	text, err := input(in)
	if err != nil {
		return nil, err
	}
	cmd.Stdin = bytes.NewReader(text)
	// A Ctrl-C must reach only the daemon. A kill must also reach the processes that the command
	// started. A process in the background may hold the output open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// maxOutput is the maximum number of bytes that a command may write.
const maxOutput = 16 << 20

// limited keeps the beginning of an output.
type limited struct {
	bytes.Buffer
	over bool
}

func (b *limited) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxOutput {
		b.over = true
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// output runs a command and returns its output.
func (l *Launcher) output(ctx context.Context, name string, vars map[string]string, in any) ([]byte, error) {
	limit, cancel := context.WithTimeout(ctx, l.c.Timeout)
	defer cancel()
	cmd, err := l.command(limit, name, vars, in)
	if err != nil {
		return nil, err
	}
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	said := lastLines(stderr.String())
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limit.Err() != nil:
		return nil, fmt.Errorf("%w: %s did not end within %v: %s", launcher.ErrTransient, name, l.c.Timeout, said)
	case err != nil:
		return nil, failed(name, err, stdout.Bytes(), said)
	case stdout.over:
		return nil, fmt.Errorf("%s wrote more than %d bytes", name, maxOutput)
	case said != "":
		l.log.DebugContext(ctx, "a command wrote", "command", name, "stderr", said)
	}
	return stdout.Bytes(), nil
}

// run runs a command and decodes its output into out, if there is any.
func (l *Launcher) run(ctx context.Context, name string, vars map[string]string, in, out any) error {
	text, err := l.output(ctx, name, vars, in)
	if text = bytes.TrimSpace(text); err != nil || out == nil || len(text) == 0 {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("%s wrote what cannot be read: %w: %.200s", name, err, text)
	}
	if d.More() {
		return fmt.Errorf("%s wrote more than one JSON value: %.200s", name, text)
	}
	return nil
}

// failed returns the error of a command that failed. It depends on the exit code and on the output:
// standard error is text for people, and standard output may contain {"retry_after": "30s",
// "cause": "quota"}.
func failed(name string, err error, stdout []byte, text string) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", name, err)
	}
	if text == "" {
		text = exit.String()
	}
	meaning, ok := exits[exit.ExitCode()]
	if !ok {
		return fmt.Errorf("%s: %s (%w)", name, text, err)
	}
	out := fmt.Errorf("%w: %s: %s", meaning, name, text)
	var more struct {
		RetryAfter string         `json:"retry_after"`
		Cause      launcher.Cause `json:"cause"`
	}
	if json.Unmarshal(stdout, &more) == nil {
		if more.Cause != "" {
			out = launcher.WithCause(out, more.Cause)
		}
		if after, err := time.ParseDuration(more.RetryAfter); err == nil {
			out = launcher.WithRetryAfter(out, after)
		}
	}
	return out
}

// lastLines returns the end of what a command wrote for people.
func lastLines(text string) string {
	const most = 2 << 10
	text = strings.TrimSpace(text)
	return strings.ToValidUTF8(text[max(0, len(text)-most):], "")
}

// follow runs logs and returns its output while it is written.
func (l *Launcher) follow(ctx context.Context, h launcher.Handle, vars map[string]string) (io.ReadCloser, error) {
	got, err := l.Health(ctx, h)
	if err == nil && got.Status == launcher.NotFound {
		err = fmt.Errorf("%w: %s", launcher.ErrNotFound, h)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd, err := l.command(ctx, "logs", vars, vars)
	if err != nil {
		cancel()
		return nil, err
	}
	r, w := io.Pipe()
	var stderr limited
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("logs: %w", err)
	}
	f := &followed{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		switch err := cmd.Wait(); {
		case err == nil, errors.Is(err, exec.ErrWaitDelay):
			_ = w.Close() // never fails
		case ctx.Err() != nil:
			w.CloseWithError(ctx.Err())
		default:
			w.CloseWithError(failed("logs", err, nil, lastLines(stderr.String())))
		}
	}()
	return f, nil
}

// followed is the output of a command, readable while it is written.
type followed struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// Close ends the command.
func (f *followed) Close() error {
	f.cancel()
	err := f.PipeReader.Close()
	<-f.done
	return err
}
