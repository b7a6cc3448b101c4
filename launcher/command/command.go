// Package command has launchers without code: each call of the contract is a command in
// slipway.yaml, an argument vector with placeholders. A command gets what Slipway knows about the
// worker from its arguments, its environment and JSON on its standard input. It answers with its
// exit code and with JSON on its standard output.
package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// Config holds the settings of a launcher whose calls are commands.
type Config struct {
	Launch    []string `config:"launch" required:"true" help:"Starts the worker {name}, which runs {command}, and ends without waiting for it."`
	Health    []string `config:"health" required:"true" help:"Reports on the worker {name}."`
	Terminate []string `config:"terminate" required:"true" help:"Asks the worker {name} to stop, and kills it after {grace} seconds; with 0 it kills at once."`
	List      []string `config:"list" help:"Reports on all workers of {instance}."`
	Logs      []string `config:"logs" help:"Writes the last {tail} lines that the worker {name} wrote; 0 means all. If {follow} is true it continues until the worker ends."`
	Describe  []string `config:"describe" help:"Writes debug information of the worker {name} as a JSON object."`
	Remove    []string `config:"remove" help:"Frees what the target keeps of the ended worker {name}."`
	Check     []string `config:"check" help:"Looks for causes of failing launches."`

	PassEnv   []string               `config:"pass_env" help:"Variables of the daemon's environment that the commands get. They always get PATH, HOME and similar ones. * means all."`
	Env       map[string]config.Text `config:"env" help:"Further environment variables of the commands."`
	Timeout   time.Duration          `config:"timeout" default:"25s" help:"How long a command may take. It does not apply to logs that are followed."`
	LateStart time.Duration          `config:"settle" default:"0s" help:"For a target that would start a second worker if launch ran again: how long after an interrupted launch the worker may still appear in health."`

	Promises Promises `config:"promises" help:"Properties of the target. slipway launchers test checks them."`
}

// Promises are the traits that depend on a launcher's commands.
type Promises struct {
	Unique        bool `config:"unique" default:"false" help:"Two launches of one name at the same moment start one worker."`
	StrongRead    bool `config:"strong_read" default:"false" help:"Health knows a worker as soon as launch has ended."`
	Restarts      bool `config:"restarts" default:"false" help:"The target may restart a worker by itself."`
	LocalFiles    bool `config:"local_files" default:"false" help:"Workers see this machine's files."`
	Nodes         bool `config:"nodes" default:"false" help:"The target puts workers on nodes with the labels that {node} or the request names."`
	SignalsWorker bool `config:"signals_worker" default:"false" help:"Terminate reaches the worker as SIGTERM."`
}

// Kind declares launchers whose calls are commands.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "command", Help: "Run workers by commands of your own, without code.", Schema: config.Fields(Config{}),
		Traits: launcher.Traits{Gate: true},
		Open: func(_ context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			var c Config
			if err := v.Decode(&c); err != nil {
				return nil, err
			}
			return open(c, v, log)
		},
	}
}

// verbs returns the calls, each with the placeholders that it may use.
func verbs(c Config) map[string]verb {
	worker := []string{"name", "run_id", "attempt"}
	request := slices.Concat([]string{"name", "run_id", "attempt", "instance", "job", "location", "repository", "image",
		"dir", "cpus", "memory", "gpus", "disk", "grace"}, lists)
	all := map[string]verb{
		"launch": {c.Launch, request}, "health": {c.Health, worker},
		"terminate": {c.Terminate, append(slices.Clone(worker), "grace")},
		"list":      {c.List, []string{"instance"}}, "logs": {c.Logs, append(slices.Clone(worker), "tail", "follow")},
		"describe": {c.Describe, worker}, "remove": {c.Remove, worker}, "check": {c.Check, nil},
	}
	maps.DeleteFunc(all, func(_ string, v verb) bool { return len(v.args) == 0 })
	return all
}

func open(c Config, v config.Values, log *slog.Logger) (*Launcher, error) {
	l := &Launcher{c: c, verbs: verbs(c), env: v.Environ(c.PassEnv, c.Env), dir: v.Dir, log: log}
	var errs []error
	for _, name := range []string{"launch", "health", "terminate"} {
		if _, ok := l.verbs[name]; !ok {
			errs = append(errs, v.Problem(name, "a command is needed"))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.verbs)) {
		for _, arg := range l.verbs[name].args {
			if err := l.verbs[name].check(arg); err != nil {
				errs = append(errs, v.Problem(name, "%v", err))
			}
		}
		var err error
		if l.verbs[name].args[0], err = v.Program(name, l.verbs[name].args[0]); err != nil {
			errs = append(errs, err)
		}
	}
	kind := *Kind()
	p := c.Promises
	kind.Traits = launcher.Traits{
		Unique: p.Unique, StrongRead: p.StrongRead, Restarts: p.Restarts, LocalFiles: p.LocalFiles,
		SignalsWorker: p.SignalsWorker, Nodes: p.Nodes, Gate: true, LateStart: c.LateStart,
	}
	l.kind = &kind
	return l, errors.Join(errs...)
}

// Launcher launches by commands. It is safe for use by many goroutines.
type Launcher struct {
	c     Config
	kind  *launcher.Kind
	verbs map[string]verb
	env   []string // of every command
	dir   string   // for this launcher alone; holds a lock file for each launch
	log   *slog.Logger
}

// Declared returns the kind with the traits that the settings promise.
func (l *Launcher) Declared() *launcher.Kind { return l.kind }

// As provides the abilities for which there is a command.
func (l *Launcher) As(ability any) bool {
	return launcher.Provide(ability, abilities{l}, func(name string) bool {
		_, ok := l.verbs[name]
		return ok || name == "find" || name == "preview" // these need no command of their own
	})
}

// abilities implements all abilities. Launcher.As decides which of them exist.
type abilities struct{ *Launcher }

// launched is the output of launch. Each field may be left out.
type launched struct {
	Tags  map[string]string `json:"tags"`
	Notes []string          `json:"notes"`
}

// Launch implements [launcher.Launcher]. It first asks health for the worker, so that one machine
// does not launch the same worker twice.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	if err := req.Check(); err != nil {
		return launcher.Launched{}, err
	}
	unlock, err := l.lock(ctx, req.ID)
	if err != nil {
		return launcher.Launched{}, err
	}
	defer unlock()
	if got, found, err := l.find(ctx, req.ID); err != nil || found {
		return got, err
	}
	var out launched
	if err := l.run(ctx, "launch", values(req), req, &out); err != nil {
		return launcher.Launched{}, err
	}
	got := launcher.Launched{Handle: launcher.Handle(req.ID.String()), Tags: out.Tags}
	for _, text := range out.Notes {
		got.Notes = append(got.Notes, launcher.Note{Text: text})
	}
	return got, nil
}

// lock locks the launch of one name on this machine.
func (l *Launcher) lock(ctx context.Context, id launcher.ID) (unlock func(), err error) {
	dir := filepath.Join(l.dir, "launching")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("command: %w", err)
	}
	name := filepath.Join(dir, id.String())
	for {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("command: %w", err)
		}
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			// The previous holder removes the file. Then a lock on it is worthless, because others
			// lock a new file.
			held, herr := f.Stat()
			there, terr := os.Stat(name)
			if herr == nil && terr == nil && os.SameFile(held, there) {
				return func() { _, _ = os.Remove(name), f.Close() }, nil
			}
		}
		_ = f.Close() // nothing was written
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("command: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Find implements [launcher.Finder].
func (a abilities) Find(ctx context.Context, req *launcher.Request) (launcher.Launched, bool, error) {
	return a.find(ctx, req.ID)
}

// find asks health for the worker of an ID.
func (l *Launcher) find(ctx context.Context, id launcher.ID) (launcher.Launched, bool, error) {
	got := launcher.Launched{Handle: launcher.Handle(id.String())}
	h, err := l.Health(ctx, got.Handle)
	if err == nil && h.Status == launcher.Unknown {
		err = fmt.Errorf("%w: health cannot tell whether %s exists: %s", launcher.ErrTransient, id, h.Message)
	}
	return got, err == nil && h.Status != launcher.NotFound, err
}

// Terminate implements [launcher.Launcher].
func (l *Launcher) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	vars, err := worker(h)
	if err != nil {
		return false, nil //nolint:nilerr // not a worker of this launcher
	}
	vars["grace"] = seconds(grace)
	out := struct {
		Stopped *bool `json:"stopped"` // default: true
	}{}
	err = l.run(ctx, "terminate", vars, vars, &out)
	if errors.Is(err, launcher.ErrNotFound) {
		return false, nil
	}
	return err == nil && (out.Stopped == nil || *out.Stopped), err
}

// health is the output of health.
type health struct {
	Status      launcher.Status `json:"status"`
	Phase       launcher.Phase  `json:"phase"`
	Cause       launcher.Cause  `json:"cause"`
	Message     string          `json:"message"`
	Exit        *int            `json:"exit"`
	Incarnation string          `json:"incarnation"`
	Started     *time.Time      `json:"started"`
	Ended       *time.Time      `json:"ended"`
	Tail        []string        `json:"tail"`
}

var statuses = []launcher.Status{launcher.Starting, launcher.Running, launcher.Succeeded, launcher.Failed,
	launcher.NotFound, launcher.Unknown}

func (h health) contract() (launcher.Health, error) {
	if !slices.Contains(statuses, h.Status) {
		known := make([]string, len(statuses))
		for i, s := range statuses {
			known[i] = string(s)
		}
		return launcher.Health{}, fmt.Errorf("the status %q is none of %s", h.Status, strings.Join(known, ", "))
	}
	out := launcher.Health{Status: h.Status, Phase: h.Phase, Cause: h.Cause, Message: h.Message, Exit: h.Exit,
		Incarnation: h.Incarnation, Tail: h.Tail}
	if h.Started != nil {
		out.Started = *h.Started
	}
	if h.Ended != nil {
		out.Ended = *h.Ended
	}
	if h.Status == launcher.Failed && h.Cause == "" {
		out.Cause = launcher.CauseUnknown
		if h.Exit != nil {
			out.Cause = launcher.CauseExit
		}
	}
	if h.Status == launcher.Failed && h.Message == "" && h.Exit != nil {
		out.Message = fmt.Sprintf("exit code %d", *h.Exit)
	}
	return out, nil
}

// Health implements [launcher.Launcher].
func (l *Launcher) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	vars, err := worker(h)
	if err != nil {
		return launcher.Health{Status: launcher.NotFound, Message: err.Error()}, nil
	}
	var out health
	if err = l.run(ctx, "health", vars, vars, &out); errors.Is(err, launcher.ErrNotFound) {
		return launcher.Health{Status: launcher.NotFound}, nil
	}
	if err != nil {
		return launcher.Health{}, err
	}
	got, err := out.contract()
	if err != nil {
		err = fmt.Errorf("health of %s: %w", h, err)
	}
	return got, err
}

// listed is one worker in the output of list.
type listed struct {
	Name string `json:"name"`
	health
}

// List implements [launcher.Lister].
func (a abilities) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		var all []listed
		vars := map[string]string{"instance": f.Instance}
		if err := a.run(ctx, "list", vars, vars, &all); err != nil {
			yield(launcher.Worker{}, err)
			return
		}
		for _, w := range all {
			id, ok := launcher.ParseID(w.Name)
			if !ok || !f.Wants(id.Run) {
				continue
			}
			h, err := w.contract()
			if err != nil {
				err = fmt.Errorf("list: %s: %w", w.Name, err)
			}
			if !yield(launcher.Worker{ID: id, Instance: f.Instance, Handle: launcher.Handle(w.Name), Health: h}, err) ||
				err != nil {
				return
			}
		}
	}
}

// Logs implements [launcher.LogReader].
func (a abilities) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	vars, err := worker(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", launcher.ErrNotFound, err)
	}
	vars["tail"], vars["follow"] = fmt.Sprint(o.Tail), fmt.Sprint(o.Follow)
	if o.Follow {
		return a.follow(ctx, h, vars)
	}
	text, err := a.output(ctx, "logs", vars, vars)
	return io.NopCloser(bytes.NewReader(text)), err
}

// Describe implements [launcher.Describer].
func (a abilities) Describe(ctx context.Context, h launcher.Handle, _ bool) (json.RawMessage, error) {
	vars, err := worker(h)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", launcher.ErrNotFound, err)
	}
	var out map[string]any
	if err := a.run(ctx, "describe", vars, vars, &out); err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// Remove implements [launcher.Remover].
func (a abilities) Remove(ctx context.Context, h launcher.Handle) error {
	got, err := a.Health(ctx, h)
	switch {
	case err != nil:
		return err
	case got.Status == launcher.NotFound:
		return nil
	case !got.Status.Ended():
		return fmt.Errorf("command: %s has not ended: it is %s", h, got.Status)
	}
	vars, err := worker(h)
	if err != nil {
		return err
	}
	if err = a.run(ctx, "remove", vars, vars, nil); errors.Is(err, launcher.ErrNotFound) {
		return nil
	}
	return err
}

// Check implements [launcher.Checker].
func (a abilities) Check(ctx context.Context) []launcher.Finding {
	var out []struct {
		OK   bool   `json:"ok"`
		What string `json:"what"`
		Fix  string `json:"fix"`
	}
	if err := a.run(ctx, "check", nil, nil, &out); err != nil {
		return []launcher.Finding{{What: "the command check failed: " + err.Error(),
			Fix: "run it by hand: " + strings.Join(a.c.Check, " ")}}
	}
	if len(out) == 0 {
		return []launcher.Finding{{OK: true, What: "the command check has nothing to say"}}
	}
	var all []launcher.Finding
	for _, f := range out {
		all = append(all, launcher.Finding{OK: f.OK, What: f.What, Fix: f.Fix})
	}
	return all
}

// Preview implements [launcher.Previewer].
func (a abilities) Preview(_ context.Context, req *launcher.Request) (json.RawMessage, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, e := range req.Env {
		if env[e.Name] = e.Value; e.Secret {
			env[e.Name] = config.Secret("").String()
		}
	}
	args, err := a.verbs["launch"].fill(values(req), req)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"command": args, "env": env})
}
