// Package docker launches run workers as containers of a Docker engine: on this machine, over TCP
// with TLS, or over ssh.
//
// Its settings include those of Dagster's DockerRunLauncher. The name of a container is derived
// from run and attempt, and the engine accepts a name only once. A container that has run is never
// started again.
package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sync/singleflight"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

// Config holds the settings of the docker launcher.
type Config struct {
	Host string     `config:"host" help:"The engine: unix:///path, tcp://host:2376 or ssh://user@host[:port][/path/of/its/socket]. Default: DOCKER_HOST, else this machine's."`
	TLS  tlsConfig  `config:"tls" help:"Files for an engine over TCP. Default: those of DOCKER_CERT_PATH."`
	SSH  *sshConfig `config:"ssh" help:"Files for an engine over ssh."`

	Image     string          `config:"image" help:"Image of workers whose code location does not name one."`
	Registry  *registryConfig `config:"registry" help:"Login for pulling images of this registry. A code location's own login wins. For other registries, run docker login as the daemon's user."`
	EnvVars   []config.Text   `config:"env_vars" help:"Environment of workers: NAME=value, or NAME for the daemon's value."`
	Network   string          `config:"network" help:"Network of workers. Not together with networks."`
	Networks  []string        `config:"networks" help:"Networks of workers."`
	Kwargs    config.Values   `config:"container_kwargs" help:"Options of docker-py's containers.create, as in DockerRunLauncher. A code location's options replace them key by key."`
	Pull      string          `config:"pull" default:"missing" help:"When to pull the image: missing, always (once for each run) or never."`
	PullLimit time.Duration   `config:"pull_timeout" default:"30m" help:"How long pulling may be tried before the run fails."`

	CPU         string            `config:"cpu" help:"Maximum processors of one worker, for example 2 or 500m. A run's tag slipway/cpu wins."`
	Memory      string            `config:"memory" help:"Maximum memory of one worker, for example 512Mi or 2G. A run's tag slipway/memory wins."`
	GPUs        int               `config:"gpus" default:"0" help:"GPUs of one worker; -1 means all. A run's tag slipway/gpu wins."`
	ShmSize     string            `config:"shm_size" help:"Size of /dev/shm, for example 64Mi."`
	Ulimits     map[string]string `config:"ulimits" help:"Limits of the process by name, SOFT or SOFT:HARD."`
	Tmpfs       map[string]string `config:"tmpfs" help:"Folders in memory, with their mount options."`
	Mounts      []string          `config:"mounts" help:"Folders and volumes, SOURCE:TARGET or SOURCE:TARGET:ro."`
	ExtraHosts  map[string]string `config:"extra_hosts" help:"Addresses by host name."`
	SecurityOpt []string          `config:"security_opt" help:"Security options, for example no-new-privileges."`
	User        string            `config:"user" help:"User of the worker's process, for example 1000:1000."`
	Entrypoint  []string          `config:"entrypoint" help:"Entrypoint that replaces the image's."`
	Init        bool              `config:"init" default:"false" help:"Run the worker below a small init process, which reaps processes that steps leave behind."`
	ReadOnly    bool              `config:"read_only" default:"false" help:"Make the image's files read-only."`
	Labels      map[string]string `config:"labels" help:"Further labels of containers."`
}

type tlsConfig struct {
	CA   string `config:"ca" help:"File with the certificate of the authority."`
	Cert string `config:"cert" help:"File with the client's certificate."`
	Key  string `config:"key" help:"File with the client's private key."`
}

type registryConfig struct {
	URL      string        `config:"url" required:"true" help:"Address of the registry. The login is used only for images from this host."`
	Username string        `config:"username" required:"true" help:"User name."`
	Password config.Secret `config:"password" required:"true" help:"Password."`
}

// Launcher launches containers. It is safe for use by many goroutines.
type Launcher struct {
	engine   *client.Client
	base     layer
	typed    func(*spec) error // Slipway's own settings; every other layer wins over them
	image    string
	pull     string
	env      config.Lookup
	pulls    *puller
	log      *slog.Logger
	canceled sync.Map     // handles of workers that this process has stopped, until they are gone
	engineID atomic.Value // the last ID that the engine reported, a string
}

var (
	_ launcher.Launcher  = (*Launcher)(nil)
	_ launcher.Finder    = (*Launcher)(nil)
	_ launcher.Lister    = (*Launcher)(nil)
	_ launcher.Watcher   = (*Launcher)(nil)
	_ launcher.Batcher   = (*Launcher)(nil)
	_ launcher.Remover   = (*Launcher)(nil)
	_ launcher.LogReader = (*Launcher)(nil)
	_ launcher.Describer = (*Launcher)(nil)
	_ launcher.Previewer = (*Launcher)(nil)
	_ launcher.Checker   = (*Launcher)(nil)
	_ launcher.Adopter   = (*Launcher)(nil)
	_ launcher.Local     = (*Launcher)(nil)
)

// Kind declares the docker launcher.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "docker", Help: "Run workers as containers of a Docker engine, here or elsewhere.",
		Schema: config.Fields(Config{}), Context: "docker",
		Traits: launcher.Traits{Unique: true, StrongRead: true, SignalsWorker: true, Gate: true,
			MaxCommand: launcher.MaxArgument, Keep: 10 * time.Minute},
		Stock: "dagster_docker.DockerRunLauncher",
		Steps: steps,
		Open: func(_ context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			return open(v, log)
		},
	}
}

// Labels of containers. The first two are Dagster's.
const (
	runLabel      = "dagster/run_id"
	jobLabel      = "dagster/job_name"
	instanceLabel = "slipway-instance"
	attemptLabel  = "slipway-attempt"
	secretsLabel  = "slipway-secret-env" // names of variables whose values are not shown
	stopLabel     = "slipway-stop-timeout"
	imageLabel    = "slipway-image" // the requested image reference
)

func open(v config.Values, log *slog.Logger) (*Launcher, error) {
	var c Config
	if err := v.Decode(&c); err != nil {
		return nil, err
	}
	problem := func(setting, format string, args ...any) error { return v.Problem(setting, format, args...) }
	l := &Launcher{image: c.Image, pull: c.Pull, env: v.Env, log: log}
	l.base.networks = c.Networks
	if c.Network != "" {
		if len(c.Networks) > 0 {
			return nil, problem("network", "set either network or networks, not both")
		}
		l.base.networks = []string{c.Network}
	}
	if c.Image != "" {
		if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
			return nil, problem("image", "%q names no image (%v): write it as registry/name:tag", c.Image, err)
		}
	}
	if c.Pull != "missing" && c.Pull != "always" && c.Pull != "never" {
		return nil, problem("pull", "%q is none of missing, always and never", c.Pull)
	}
	for _, e := range c.EnvVars {
		l.base.env = append(l.base.env, variable{e.Value, e.Secret})
	}
	if c.Registry != nil {
		l.base.registry = &registry{URL: c.Registry.URL, Username: c.Registry.Username,
			Password: string(c.Registry.Password)}
	}
	kwargs, err := c.Kwargs.JSON()
	if err != nil {
		return nil, err
	}
	if string(kwargs) != "null" {
		if l.base.kwargs, err = object(kwargs); err != nil {
			return nil, problem("container_kwargs", "%v", err)
		}
	}
	var errs []error
	for _, e := range new(spec).apply(l.base.kwargs) {
		errs = append(errs, problem(e.setting, "%v", e.err))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	l.typed = c.typed
	if err := c.typed(new(spec)); err != nil {
		var s *settingError
		errors.As(err, &s)
		return nil, problem(s.setting, "%v", s.err)
	}
	if l.engine, err = connect(c, v.Env, log); err != nil {
		return nil, problem("host", "%v", err)
	}
	l.pulls = newPuller(l.engine, c.PullLimit, v.Env, log)
	return l, nil
}

// steps returns the settings that dagster_docker's docker_executor reads, so that its steps get the
// same network, variables and options.
func steps(v config.Values) (launcher.Class, error) {
	var c Config
	if err := v.Decode(&c); err != nil {
		return launcher.Class{}, err
	}
	out := launcher.Class{Module: "dagster_docker", Name: "DockerRunLauncher", Config: map[string]any{}}
	var env []any
	for _, e := range c.EnvVars {
		if !e.Secret {
			env = append(env, e.Value)
		}
	}
	networks := []any{}
	for _, n := range c.Networks {
		networks = append(networks, n)
	}
	if c.Network != "" {
		networks = []any{c.Network}
	}
	for key, value := range map[string]any{"image": c.Image, "env_vars": env, "networks": networks} {
		if value != "" {
			out.Config[key] = value
		}
	}
	text, err := c.Kwargs.JSON()
	if err != nil {
		return launcher.Class{}, err
	}
	var kwargs map[string]any
	if err := json.Unmarshal(text, &kwargs); err != nil {
		return launcher.Class{}, err
	}
	if kwargs == nil { // null
		kwargs = map[string]any{}
	}
	if len(c.Mounts) > 0 && kwargs["volumes"] == nil {
		volumes := make([]any, len(c.Mounts))
		for i, m := range c.Mounts {
			volumes[i] = m
		}
		kwargs["volumes"] = volumes
	}
	if len(kwargs) > 0 {
		out.Config["container_kwargs"] = kwargs
	}
	return out, nil
}

type settingError struct {
	setting string
	err     error
}

func (e *settingError) Error() string { return e.setting + ": " + e.err.Error() }

// typed applies Slipway's own settings.
func (c Config) typed(s *spec) error {
	bad := func(setting string, err error) error {
		if err == nil {
			return nil
		}
		return &settingError{setting, err}
	}
	if c.CPU != "" {
		millis, err := config.ParseMillis(c.CPU)
		if s.Host.NanoCPUs = millis * 1e6; err != nil {
			return bad("cpu", err)
		}
	}
	for setting, at := range map[string]struct {
		text string
		to   *int64
	}{"memory": {c.Memory, &s.Host.Memory}, "shm_size": {c.ShmSize, &s.Host.ShmSize}} {
		if at.text == "" {
			continue
		}
		n, err := config.ParseBytes(at.text)
		if *at.to = n; err != nil {
			return bad(setting, err)
		}
	}
	s.gpus(int64(c.GPUs))
	for name, text := range c.Ulimits {
		soft, hard, both := strings.Cut(text, ":")
		if !both {
			hard = soft
		}
		n, err1 := strconv.ParseInt(soft, 10, 64)
		m, err2 := strconv.ParseInt(hard, 10, 64)
		if err1 != nil || err2 != nil {
			return bad("ulimits."+name, fmt.Errorf("%q is not SOFT or SOFT:HARD", text))
		}
		s.Host.Ulimits = append(s.Host.Ulimits, &container.Ulimit{Name: name, Soft: n, Hard: m})
	}
	for _, m := range c.Mounts {
		if parts := strings.Split(m, ":"); len(parts) < 2 || len(parts) > 3 || !strings.HasPrefix(parts[1], "/") {
			return bad("mounts", fmt.Errorf("%q is not SOURCE:TARGET or SOURCE:TARGET:ro", m))
		}
	}
	for name, address := range c.ExtraHosts {
		if _, err := netip.ParseAddr(address); err != nil && address != "host-gateway" {
			return bad("extra_hosts."+name, fmt.Errorf("%q is not an address", address))
		}
		s.Host.ExtraHosts = append(s.Host.ExtraHosts, name+":"+address)
	}
	s.Host.Binds = append([]string(nil), c.Mounts...)
	s.Host.Tmpfs, s.Host.SecurityOpt, s.Host.ReadonlyRootfs = c.Tmpfs, c.SecurityOpt, c.ReadOnly
	s.Config.User, s.Config.Entrypoint, s.Config.Labels = c.User, c.Entrypoint, c.Labels
	if c.Init {
		s.Host.Init = &c.Init
	}
	return nil
}

func (s *spec) gpus(n int64) {
	if n != 0 {
		s.Host.DeviceRequests = []container.DeviceRequest{{Count: int(n), Capabilities: [][]string{{"gpu"}}}}
	}
}

// launching coalesces concurrent launches of the same container in this process, so that one call
// makes and starts it.
var launching singleflight.Group

// Launch implements [launcher.Launcher]. The engine accepts a name only once. A container that was
// made but not started is started now. One that has run is left as it is.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	s, auth, err := l.spec(req)
	if err != nil {
		return launcher.Launched{}, err
	}
	name := req.ID.String()
	c, err, _ := launching.Do(l.engine.DaemonHost()+" "+name, func() (any, error) {
		return l.start(ctx, req, name, s, auth)
	})
	if err != nil {
		return launcher.Launched{}, err
	}
	return launched(c.(container.InspectResponse)), nil
}

// Find implements [launcher.Finder]. A container that was made and never started is not a worker
// yet: Launch starts it.
func (l *Launcher) Find(ctx context.Context, req *launcher.Request) (launcher.Launched, bool, error) {
	c, err := l.find(ctx, req, req.ID.String())
	switch {
	case cerrdefs.IsNotFound(err):
		return launcher.Launched{}, false, nil
	case err != nil:
		return launcher.Launched{}, false, err
	case c.State.Status == container.StateCreated && !startedBefore(c.State.Error):
		return launcher.Launched{}, false, nil
	}
	return launched(c), true, nil
}

func launched(c container.InspectResponse) launcher.Launched {
	image := c.Config.Labels[imageLabel]
	return launcher.Launched{
		Handle: launcher.Handle(strings.TrimPrefix(c.Name, "/")),
		Tags:   map[string]string{"docker/container_id": c.ID, "dagster/image": image},
		Notes: []launcher.Note{
			{Text: fmt.Sprintf("[DockerRunLauncher] Launching run in a new container %s with image %s", c.ID, image)}},
	}
}

// start makes the container and starts it. It skips what an earlier call has done.
func (l *Launcher) start(ctx context.Context, req *launcher.Request, name string, s *spec,
	auth *registry) (container.InspectResponse, error) {
	none := container.InspectResponse{}
	c, err := l.find(ctx, req, name)
	if cerrdefs.IsNotFound(err) {
		c, err = l.create(ctx, req, name, s, auth)
	}
	if err != nil {
		return none, err
	}
	if c.State.Status != container.StateCreated || startedBefore(c.State.Error) {
		return c, nil
	}
	for _, n := range s.Networks[min(1, len(s.Networks)):] {
		_, err := l.engine.NetworkConnect(ctx, n,
			client.NetworkConnectOptions{Container: c.ID, EndpointConfig: s.endpoint(n)})
		if err != nil && !strings.Contains(err.Error(), "already exists") {
			return none, l.giveUp(ctx, c.ID, "connect the container to network "+n, err)
		}
	}
	failpoint.Here(failpoint.DockerCreated)
	if _, err := l.engine.ContainerStart(ctx, c.ID, client.ContainerStartOptions{}); err != nil &&
		!startedBefore(err.Error()) {
		return none, l.giveUp(ctx, c.ID, "start the container", err)
	}
	return c, nil
}

// find returns the container with a name, if it belongs to this request.
func (l *Launcher) find(ctx context.Context, req *launcher.Request, name string) (container.InspectResponse, error) {
	got, err := l.engine.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	switch {
	case cerrdefs.IsNotFound(err):
		return got.Container, err
	case err != nil:
		return got.Container, unclear(err)
	case got.Container.Config.Labels[instanceLabel] != req.Instance ||
		got.Container.Config.Labels[runLabel] != req.ID.Run:
		return got.Container, fmt.Errorf("%w: there is a container %s that is not of this instance; it is left alone",
			launcher.ErrInvalid, name)
	}
	return got.Container, nil
}

func (l *Launcher) create(ctx context.Context, req *launcher.Request, name string, s *spec,
	auth *registry) (container.InspectResponse, error) {
	none := container.InspectResponse{}
	w, pull := waiter{pullKey{image: s.Config.Image, login: loginFor(s.Config.Image, auth)}, name},
		client.ImagePullOptions{}
	if p := s.Create.Platform; p != nil {
		w.platform, pull.Platforms = path.Join(p.OS, p.Architecture, p.Variant), append(pull.Platforms, *p)
	}
	pulled, err := l.pulls.ended(w)
	if err != nil {
		return none, err
	}
	if l.pull == "always" && !pulled {
		return none, l.pulls.start(w, pull)
	}
	options := s.Create
	options.Name, options.Config, options.HostConfig, options.NetworkingConfig = name, &s.Config, &s.Host,
		s.networking()
	_, err = l.engine.ContainerCreate(ctx, options)
	missing := cerrdefs.IsNotFound(err) && strings.Contains(strings.ToLower(err.Error()), "image")
	switch {
	case err == nil, cerrdefs.IsConflict(err) && strings.Contains(err.Error(), name):
		// In both cases: another process may have just made it.
		return l.appears(ctx, req, name)
	case missing && l.pull != "never" && !pulled && strings.Contains(strings.ToLower(err.Error()), "no such image"):
		return none, l.pulls.start(w, pull)
	}
	if err = refusal("create the container", err); missing {
		err = launcher.WithCause(err, launcher.CauseImagePull)
	}
	return none, err
}

// appears returns the container whose name is taken. The engine reserves the name a moment before
// it knows the container.
func (l *Launcher) appears(ctx context.Context, req *launcher.Request, name string) (container.InspectResponse, error) {
	const moment = 5 * time.Second
	for began := time.Now(); ; {
		c, err := l.find(ctx, req, name)
		if !cerrdefs.IsNotFound(err) {
			return c, err
		}
		if time.Since(began) > moment { // it was removed again
			return c, unclear(err)
		}
		select {
		case <-ctx.Done():
			return c, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Preview implements [launcher.Previewer].
func (l *Launcher) Preview(_ context.Context, req *launcher.Request) (json.RawMessage, error) {
	s, _, err := l.spec(req)
	if err != nil {
		return nil, err
	}
	s.Config.Env = redactedEnv(s.Config.Env, s.Config.Labels[secretsLabel])
	return json.MarshalIndent(map[string]any{
		"engine": l.engine.DaemonHost(), "name": req.ID.String(), "pull": l.pull, "networks": s.Networks,
		"Config": s.Config, "HostConfig": s.Host, "Platform": s.Create.Platform,
	}, "", "  ")
}
