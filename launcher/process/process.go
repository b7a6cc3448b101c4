// Package process launches run workers as processes of this machine. Each runs under a supervisor
// of its own (package agent) and in its own session. So workers outlive the daemon, and the end of
// each is recorded.
//
// All state is in files below one folder, which package agent describes. Any process with the same
// folder can report on all workers in it.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/agent"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

// Config holds the settings of the process launcher.
type Config struct {
	Dir        string                 `config:"dir" default:"" help:"Folder of the workers' records and logs, on a local disk. Default: slipway/process/NAME in DAGSTER_HOME."`
	InheritEnv bool                   `config:"inherit_env" default:"true" help:"Workers get the daemon's environment. With Dagster they got the code server's."`
	Env        map[string]config.Text `config:"env" help:"Further environment variables of workers."`
	EnvFiles   []string               `config:"env_files" help:"Files with environment variables of workers, in the format of Dagster's .env. They are read at each launch. Later files win over earlier ones, and env wins over all files."`
	Nice       int                    `config:"nice" default:"0" help:"Niceness of workers, 0 to 19; below 0 needs root."`
	Cgroup     string                 `config:"cgroup" help:"Name of the parent cgroup: each worker that has a limit gets a cgroup below it. Without it there are no limits. The daemon's user must be allowed to make cgroups there."`
	CPU        string                 `config:"cpu" help:"Maximum processors of one worker, for example 2 or 500m. A run's tag slipway/cpu wins. Needs cgroup."`
	Memory     string                 `config:"memory" help:"Maximum memory of one worker, for example 512Mi or 2G. A run's tag slipway/memory wins. Needs cgroup."`
	MaxWorkers int                    `config:"max_workers" default:"0" help:"Maximum number of workers at once; further runs wait in the queue. 0 means that only the queue's limits apply."`
}

// Launcher launches processes. It is safe for use by many goroutines.
type Launcher struct {
	root    string
	host    string // random; stored in root
	setting string // the setting that determines root
	agent   []string
	inherit bool
	env     []launcher.Env
	files   []string
	bounds  bounds
}

var (
	_ launcher.Launcher  = (*Launcher)(nil)
	_ launcher.Lister    = (*Launcher)(nil)
	_ launcher.Watcher   = (*Launcher)(nil)
	_ launcher.Batcher   = (*Launcher)(nil)
	_ launcher.Remover   = (*Launcher)(nil)
	_ launcher.LogReader = (*Launcher)(nil)
	_ launcher.Describer = (*Launcher)(nil)
	_ launcher.Previewer = (*Launcher)(nil)
	_ launcher.Checker   = (*Launcher)(nil)
	_ launcher.Capacity  = (*Launcher)(nil)
	_ launcher.Local     = (*Launcher)(nil)
)

// Kind declares the process launcher. agentCommand is the command of its supervisor, to which the
// launcher adds the arguments of [agent.Main]. If there is none, it is this program with the
// argument "agent", which cli.Main handles.
func Kind(agentCommand ...string) *launcher.Kind {
	return &launcher.Kind{
		Name: "process", Help: "Run workers as processes of this machine.",
		Schema: config.Fields(Config{}),
		Traits: launcher.Traits{
			Unique: true, StrongRead: true, LocalFiles: true, SignalsWorker: true, Gate: true,
			MaxCommand: launcher.MaxArgument, Keep: 10 * time.Minute,
		},
		Open: func(_ context.Context, v config.Values, _ *slog.Logger) (launcher.Launcher, error) {
			return open(v, agentCommand)
		},
	}
}

func open(v config.Values, agentCommand []string) (*Launcher, error) {
	var c Config
	if err := v.Decode(&c); err != nil {
		return nil, err
	}
	if len(agentCommand) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		agentCommand = []string{self, "agent"}
	}
	l := &Launcher{root: c.Dir, setting: strings.TrimPrefix(v.Path+".dir", "."), agent: agentCommand,
		inherit: c.InheritEnv}
	if l.root == "" {
		l.root = v.Dir
	}
	if !filepath.IsAbs(l.root) {
		return nil, v.Problem("dir", "%q is not an absolute path: write it whole", l.root)
	}
	for name, value := range c.Env {
		l.env = append(l.env, launcher.Env{Name: name, Value: value.Value, Secret: value.Secret ||
			launcher.SecretName(name)})
	}
	for _, f := range c.EnvFiles {
		if !filepath.IsAbs(f) {
			return nil, v.Problem("env_files", "%q is not an absolute path: write it whole", f)
		}
		if _, err := os.ReadFile(f); err != nil {
			return nil, v.Problem("env_files", "%v: it has to be there when the daemon starts, and at each launch", err)
		}
	}
	l.files = c.EnvFiles
	var err error
	if l.bounds, err = readBounds(c, v); err != nil {
		return nil, err
	}
	for _, sub := range []string{"workers", "state", "tmp"} {
		if err := os.MkdirAll(filepath.Join(l.root, sub), 0o700); err != nil {
			return nil,
				v.Problem("dir", "workers' files cannot be written: %v; let the daemon's user write there, or set "+
					"this to another folder on a local disk", err)
		}
	}
	if l.host, err = launcher.HostOf(l.root); err != nil {
		return nil,
			v.Problem("dir", "the name of this host cannot be kept there: %v; let the daemon's user write there, "+
				"free space on its disk, or set this to another folder on a local disk", err)
	}
	return l, nil
}

// Host implements [launcher.Local].
func (l *Launcher) Host(context.Context) (string, error) { return l.host, nil }

// meta is the record of a worker, apart from its command.
type meta struct {
	Instance string            `json:"instance"`
	Labels   map[string]string `json:"labels,omitempty"`
	At       time.Time         `json:"at"`
}

// Launch implements [launcher.Launcher]. The worker's lock serializes launches of one ID. The
// supervisor makes a file before it starts the worker. This file cannot be made twice, so no worker
// is started twice.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	if err := l.check(req); err != nil {
		return launcher.Launched{}, err
	}
	name := req.ID.String()
	done := launcher.Launched{Handle: launcher.Handle(name)}
	p := agent.PathsOf(l.root, name)
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return launcher.Launched{}, fmt.Errorf("process: %w", err)
	}
	leave, err := l.line(ctx)
	if err != nil {
		return launcher.Launched{}, err
	}
	defer leave()
	lock, err := acquire(ctx, p)
	if err != nil || lock == nil {
		return done, err
	}
	if err := l.mine(p, req.Instance); err != nil {
		return launcher.Launched{}, errors.Join(err, lock.Close())
	}
	if done := l.full(); done != nil {
		return launcher.Launched{}, errors.Join(done, lock.Close())
	}
	env, err := l.environ(req)
	if err != nil {
		return launcher.Launched{}, errors.Join(err, lock.Close())
	}
	spec := agent.Spec{Command: req.Command, Env: env, Dir: req.Dir, Limits: l.bounds.of(name, req.Resources)}
	if spec.Dir == "" {
		spec.Dir = p.Dir
	}
	err = errors.Join(
		agent.WriteJSON(p.Meta, meta{Instance: req.Instance, Labels: req.Labels, At: req.At}),
		agent.WriteJSON(p.Spec, spec))
	if err != nil {
		return launcher.Launched{}, errors.Join(fmt.Errorf("process: %w", err), lock.Close())
	}
	failpoint.Here(failpoint.LaunchDir)
	err = l.spawn(ctx, p, name, lock)
	if err = errors.Join(err, lock.Close()); err != nil { // the supervisor has its own reference by now
		return launcher.Launched{}, err
	}
	failpoint.Here(failpoint.LaunchSpawned)
	return done, begun(ctx, p)
}

// line makes the launches of a launcher with max_workers take turns. Otherwise another launch could
// begin between one launch's count and its begin. The caller calls leave at the end of its turn.
func (l *Launcher) line(ctx context.Context) (leave func(), err error) {
	if l.bounds.maxWorkers == 0 {
		return func() {}, nil
	}
	f, err := os.OpenFile(filepath.Join(l.root, "line"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	for syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("process: waiting for other launches: %w", ctx.Err()), f.Close())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return func() { _ = f.Close() }, nil // closing releases the lock
}

// full returns ErrCapacity if max_workers workers are alive.
func (l *Launcher) full() error {
	if l.bounds.maxWorkers == 0 {
		return nil
	}
	alive, err := l.alive()
	if err == nil && alive >= l.bounds.maxWorkers {
		return fmt.Errorf("%w: process: %d workers run, as many as max_workers allows", launcher.ErrCapacity, alive)
	}
	return err
}

// begun waits the few milliseconds until the supervisor has begun. A supervisor that dies before
// that, because disk or memory is full, has started nothing. Then the launch may be repeated.
func begun(ctx context.Context, p agent.Paths) error {
	for !exists(p.Begun) {
		alive, err := held(p.Lock)
		if err != nil {
			return err
		}
		if !alive && !exists(p.Begun) {
			return fmt.Errorf("%w: process: the supervisor ended before it began: %s", launcher.ErrTransient,
				strings.Join(tail(p.Log, 1), ""))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process: the supervisor has not begun: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (l *Launcher) check(req *launcher.Request) error {
	if err := req.Check(); err != nil {
		return err
	}
	if req.Dir != "" {
		if info, err := os.Stat(req.Dir); err != nil || !info.IsDir() {
			return fmt.Errorf("%w: working directory %s is not a folder here; set launchers.NAME.cwd in slipway.yaml",
				launcher.ErrInvalid, req.Dir)
		}
	}
	for _, a := range req.Command {
		if len(a) > launcher.MaxArgument || strings.ContainsRune(a, 0) {
			return fmt.Errorf("%w: an argument of %d bytes is more than the system takes (%d), or holds a NUL",
				launcher.ErrInvalid, len(a), launcher.MaxArgument)
		}
	}
	return nil
}

// mine refuses a name that another instance uses in the same folder.
func (l *Launcher) mine(p agent.Paths, instance string) error {
	var m meta
	if err := agent.ReadJSON(p.Meta, &m); err == nil && m.Instance != instance {
		return fmt.Errorf("%w: %s belongs to the instance %s", launcher.ErrInvalid, p.Dir, m.Instance)
	}
	return nil
}

// acquire takes the worker's lock for a launch. It returns nil if a supervisor has already begun,
// so that there is nothing to launch.
func acquire(ctx context.Context, p agent.Paths) (*os.File, error) {
	lock, err := os.OpenFile(p.Lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if _, begun := os.Stat(p.Begun); begun == nil {
			return nil, lock.Close()
		}
		if err == nil {
			return lock, nil
		}
		select { // another launch of this ID holds the lock, or a process tests whether it is held
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("process: %s is locked: %w", p.Dir, ctx.Err()), lock.Close())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// environ returns the worker's environment. It leaves out variables that concern only the daemon.
func (l *Launcher) environ(req *launcher.Request) ([]string, error) {
	var env []string
	if l.inherit {
		for _, e := range os.Environ() {
			if !strings.HasPrefix(e, "SLIPWAY_") && !strings.HasPrefix(e, "NOTIFY_SOCKET=") {
				env = append(env, e)
			}
		}
	} else {
		env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+os.Getenv("HOME"))
	}
	vars, err := l.variables(req)
	for _, e := range vars {
		env = append(env, e.Name+"="+e.Value)
	}
	return env, err
}

// variables returns the variables of env_files, env and the request. If names are equal the later
// one wins.
func (l *Launcher) variables(req *launcher.Request) ([]launcher.Env, error) {
	var vars []launcher.Env
	for _, file := range l.files {
		read, err := config.ReadDotEnv(file, os.LookupEnv)
		if err != nil {
			return nil, fmt.Errorf("%w: process: env_files: %w", launcher.ErrDenied, err)
		}
		for _, name := range slices.Sorted(maps.Keys(read)) {
			vars = append(vars, launcher.Env{Name: name, Value: read[name], Secret: true})
		}
	}
	return append(append(vars, l.env...), req.Env...), nil
}

// spawn starts the supervisor, which inherits the lock.
func (l *Launcher) spawn(ctx context.Context, p agent.Paths, name string, lock *os.File) error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("process: %w", err)
	}
	args := append(append([]string{}, l.agent[1:]...), "start", l.root, name)
	cmd := exec.CommandContext(ctx, l.agent[0], args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{lock}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	if err := errors.Join(cmd.Run(), log.Close()); err != nil {
		return fmt.Errorf("process: start the supervisor %s: %w", l.agent[0], err)
	}
	return nil
}

// Terminate implements [launcher.Launcher]. It writes the wish into a file, which a supervisor that
// has not begun yet will find. Then it signals a supervisor that has begun.
func (l *Launcher) Terminate(_ context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	p, err := l.paths(h)
	if err != nil {
		return false, err
	}
	if !exists(p.Dir) || exists(p.Ended) {
		return false, nil
	}
	was, err := held(p.Lock)
	if err != nil {
		return false, err
	}
	// A supervisor that still handles an earlier wish may act on this one at once. Then it is gone
	// below.
	if err := agent.WriteJSON(p.Stop, agent.Stop{Grace: grace}); err != nil {
		return false, fmt.Errorf("process: %w", err)
	}
	var b agent.Begun
	err = agent.ReadJSON(p.Begun, &b)
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil // the supervisor finds the wish before it starts the worker
	}
	if err != nil {
		return false, fmt.Errorf("process: %w", err)
	}
	if b.Agent.Signal(syscall.SIGTERM) {
		return true, nil
	}
	return was, l.stopAlone(p, b.Agent, grace)
}

// stopAlone stops a worker whose supervisor is gone, if the worker or its steps are still alive.
func (l *Launcher) stopAlone(p agent.Paths, supervisor agent.Process, grace time.Duration) error {
	alive, err := held(p.Lock)
	if err != nil || !alive {
		return err
	}
	signal := syscall.SIGTERM
	if grace <= 0 {
		signal = syscall.SIGKILL
	}
	var w agent.Worker
	if err := agent.ReadJSON(p.Worker, &w); err != nil {
		// The supervisor was killed before it wrote down the worker. The worker is in the
		// supervisor's session, unless another process has the supervisor's number now, and with it
		// the session.
		_, taken := agent.Identify(supervisor.PID)
		groups := agent.Groups(supervisor.PID)
		if taken == nil || len(groups) == 0 {
			return fmt.Errorf("process: %s lost its supervisor and its process is not known: %w", p.Dir, err)
		}
		for _, group := range groups {
			_ = syscall.Kill(-group, signal) // it may have ended by itself meanwhile
		}
		return nil
	}
	now, err := agent.Identify(w.PID)
	switch {
	case err == nil && now != w.Process: // another process has its number, so its group has ended
	case err == nil && grace > 0:
		w.Signal(signal)
	default: // if the worker is gone, its steps hold the lock, and their group keeps the worker's number
		_ = syscall.Kill(-w.PID, signal) // it may have ended by itself meanwhile
	}
	return nil
}

func (l *Launcher) paths(h launcher.Handle) (agent.Paths, error) {
	if _, ok := launcher.ParseID(string(h)); !ok {
		return agent.Paths{}, fmt.Errorf("%w: %q is not a handle of a process", launcher.ErrInvalid, h)
	}
	return agent.PathsOf(l.root, string(h)), nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// held reports whether the supervisor or the worker is alive. It takes the lock for an instant, in
// shared mode, so that several processes can test it at the same time.
func held(file string) (bool, error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("process: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, f.Close()
	}
	return false, errors.Join(err, f.Close())
}

// Remove implements [launcher.Remover].
func (l *Launcher) Remove(_ context.Context, h launcher.Handle) error {
	p, err := l.paths(h)
	if err != nil {
		return err
	}
	if alive, err := held(p.Lock); err != nil || alive {
		return errors.Join(err, fmt.Errorf("process: %s still runs", h))
	}
	// The records are removed last, because List lists the workers that have a folder.
	if err := os.RemoveAll(p.Dir); err != nil {
		return fmt.Errorf("process: %w", err)
	}
	for _, f := range []string{p.Begun, p.Ended} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("process: %w", err)
		}
	}
	return nil
}

// Preview implements [launcher.Previewer].
func (l *Launcher) Preview(_ context.Context, req *launcher.Request) (json.RawMessage, error) {
	if err := l.check(req); err != nil {
		return nil, err
	}
	vars, err := l.variables(req)
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, e := range vars {
		env[e.Name] = e.Value
		if e.Secret {
			env[e.Name] = config.Secret("").String()
		}
	}
	return json.Marshal(map[string]any{
		"name": req.ID.String(), "command": req.Command, "dir": req.Dir, "env": env, "inherit_env": l.inherit,
		"labels": req.Labels, "limits": l.bounds.of(req.ID.String(), req.Resources),
	})
}

// Check implements [launcher.Checker].
func (l *Launcher) Check(context.Context) []launcher.Finding {
	probe := filepath.Join(l.root, "tmp", "check")
	err := agent.WriteJSON(probe, "check")
	_ = os.Remove(probe) // it was only a probe
	files := launcher.Finding{OK: true, What: l.root + " can be written to"}
	if err != nil {
		files = launcher.Finding{What: fmt.Sprintf("workers' files cannot be written: %v", err),
			Fix: fmt.Sprintf("let the daemon's user write to %s, or set %s to another folder on a local disk", l.root,
				l.setting)}
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		files.Fix = fmt.Sprintf("free space on the disk of %s, or set %s to a folder on another one", l.root, l.setting)
	}
	supervisor := launcher.Finding{OK: true, What: fmt.Sprintf("the supervisor %s can be started", l.agent[0])}
	if _, err := exec.LookPath(l.agent[0]); err != nil {
		supervisor = launcher.Finding{What: fmt.Sprintf("the supervisor of workers cannot be started: %v", err),
			Fix: "reinstall slipway"}
	}
	return []launcher.Finding{files, supervisor}
}

// List implements [launcher.Lister].
func (l *Launcher) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		names, err := l.names(f)
		if err != nil {
			yield(launcher.Worker{}, err)
			return
		}
		for _, name := range names {
			w, ok, err := l.worker(ctx, name)
			if ok && f.Instance != "" && w.Instance != f.Instance {
				continue
			}
			if (ok || err != nil) && !yield(w, err) || err != nil {
				return
			}
		}
	}
}

// names returns the names of the workers that a filter may select.
func (l *Launcher) names(f launcher.Filter) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(l.root, "workers"))
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	var names []string
	for _, e := range entries {
		id, ok := launcher.ParseID(e.Name())
		if ok && f.Wants(id.Run) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// worker observes one worker by name. It returns false if there is none. A worker whose supervisor
// has not begun does not count: its launch may still be given up, and a second launch of the same
// name waits for the outcome.
func (l *Launcher) worker(ctx context.Context, name string) (launcher.Worker, bool, error) {
	id, ok := launcher.ParseID(name)
	if !ok {
		return launcher.Worker{}, false, nil
	}
	var m meta
	err := agent.ReadJSON(agent.PathsOf(l.root, name).Meta, &m)
	if errors.Is(err, fs.ErrNotExist) {
		return launcher.Worker{}, false, nil
	}
	if err != nil {
		return launcher.Worker{}, false, fmt.Errorf("process: %w", err)
	}
	if !exists(agent.PathsOf(l.root, name).Begun) {
		return launcher.Worker{}, false, nil
	}
	h, err := l.Health(ctx, launcher.Handle(name))
	if err != nil || h.Status == launcher.NotFound {
		return launcher.Worker{}, false, err
	}
	return launcher.Worker{ID: id, Instance: m.Instance, Handle: launcher.Handle(name), Health: h}, true, nil
}
