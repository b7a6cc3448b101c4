package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// A layer is the settings of the launcher or of a code location. Later layers are laid over earlier
// ones.
type layer struct {
	registry *registry
	env      []variable
	networks []string
	kwargs   []member
}

// A variable is NAME=value, or NAME for the value in this process.
type variable struct {
	text   string
	secret bool
}

type registry struct {
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// over lays a code location's layer over l. The later registry replaces the earlier one, lists are
// appended, and keywords are replaced one by one.
func (l layer) over(later layer) layer {
	out := layer{registry: l.registry, env: slices.Concat(l.env, later.env),
		networks: slices.Concat(l.networks, later.networks), kwargs: slices.Clone(l.kwargs)}
	if later.registry != nil {
		out.registry = later.registry
	}
	for _, m := range later.kwargs {
		if i := slices.IndexFunc(out.kwargs, func(o member) bool { return o.name == m.name }); i >= 0 {
			out.kwargs[i] = m
		} else {
			out.kwargs = append(out.kwargs, m)
		}
	}
	return out
}

// contextLayer reads a section of container_context. As in Dagster, its texts may be {"env": NAME}.
func contextLayer(o launcher.Override, env config.Lookup) (layer, error) {
	var out layer
	if isList(o.JSON) { // env_vars, which all launchers share
		list, err := sources(o.JSON, env)
		for _, text := range list {
			out.env = append(out.env, variable{text: text})
		}
		return out, err
	}
	members, err := object(o.JSON)
	if err != nil {
		return out, err
	}
	var errs []error
	for _, m := range members {
		if string(m.value) == "null" {
			continue
		}
		switch m.name {
		case "env_vars":
			var list []string
			list, err = sources(m.value, env)
			for _, text := range list {
				out.env = append(out.env, variable{text: text})
			}
		case "networks":
			out.networks, err = sources(m.value, env)
		case "container_kwargs":
			out.kwargs, err = object(m.value)
		case "registry":
			out.registry, err = readRegistry(m.value, env)
		default:
			err = errors.New("unknown setting; registry, env_vars, networks and container_kwargs are known")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return out, errors.Join(errs...)
}

func readRegistry(value json.RawMessage, env config.Lookup) (*registry, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(value, &raw); err != nil {
		return nil, err
	}
	var r registry
	for name, to := range map[string]*string{"url": &r.URL, "username": &r.Username, "password": &r.Password} {
		if raw[name] == nil {
			return nil, fmt.Errorf("%s is required", name)
		}
		text, err := source(raw[name], env)
		if *to = text; err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return &r, nil
}

// source reads a text or {"env": NAME}.
func source(value json.RawMessage, env config.Lookup) (string, error) {
	var from struct {
		Env string `json:"env"`
	}
	if strict(value, &from) != nil || from.Env == "" {
		return scalar(value)
	}
	return lookup(from.Env, env)
}

func sources(value json.RawMessage, env config.Lookup) ([]string, error) {
	var raw []json.RawMessage
	if err := strict(value, &raw); err != nil {
		return nil, err
	}
	list := make([]string, len(raw))
	for i, r := range raw {
		var err error
		if list[i], err = source(r, env); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func lookup(name string, env config.Lookup) (string, error) {
	if env != nil {
		if v, ok := env(name); ok {
			return v, nil
		}
	}
	return "", fmt.Errorf("environment variable %s is not set where slipway runs", name)
}

// spec returns what a request asks of the engine. The error is an [launcher.ErrInvalid].
func (l *Launcher) spec(req *launcher.Request) (*spec, *registry, error) {
	invalid := func(format string, args ...any) (*spec, *registry, error) {
		return nil, nil, fmt.Errorf("%w: "+format, append([]any{launcher.ErrInvalid}, args...)...)
	}
	if err := req.Check(); err != nil {
		return nil, nil, err
	}
	all := l.base
	for _, o := range req.Overrides {
		later, err := contextLayer(o, l.env)
		if err != nil {
			return invalid("%s: %w", o.Source, err)
		}
		all = all.over(later)
	}
	s := &spec{}
	if err := l.typed(s); err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, e := range s.apply(all.kwargs) {
		errs = append(errs, e)
	}
	if err := errors.Join(errs...); err != nil {
		return invalid("%w", err)
	}
	s.Networks = all.networks
	if len(s.Networks) > 0 {
		s.Host.NetworkMode = container.NetworkMode(s.Networks[0])
	} else if s.Host.NetworkMode == "" {
		s.Host.NetworkMode = "default"
	}
	s.Config.Cmd = req.Command
	if s.Config.Image = req.Image; s.Config.Image == "" {
		s.Config.Image = l.image
	}
	if s.Config.Image == "" {
		return invalid("code location %s names no image, and the launcher's settings have none: set image, or "+
			"container_image in the code location", req.Location)
	}
	if _, err := reference.ParseNormalizedNamed(s.Config.Image); err != nil {
		return invalid("%q names no image: %w", s.Config.Image, err)
	}
	vars := all.env
	if s.UseProxy == nil || *s.UseProxy {
		vars = slices.Concat(l.proxies(), vars)
	}
	secret, err := s.environment(vars, req.Env, l.env)
	if err != nil {
		return invalid("env_vars: %w", err)
	}
	if r := req.Resources; r.CPUMillis > 0 {
		s.Host.NanoCPUs = r.CPUMillis * 1e6
	}
	if r := req.Resources; r.MemoryBytes > 0 {
		s.Host.Memory = r.MemoryBytes
	}
	s.gpus(req.Resources.GPUs)
	s.label(req, secret)
	return s, all.registry, nil
}

// environment sets the variables of a worker and lists the secret ones. If names are equal the last
// one wins.
func (s *spec) environment(vars []variable, more []launcher.Env, env config.Lookup) ([]string, error) {
	var names, secret []string
	values := map[string]string{}
	set := func(name, value string, hidden bool) {
		if _, ok := values[name]; !ok {
			names = append(names, name)
		}
		if values[name] = value; (hidden || launcher.SecretName(name)) && !slices.Contains(secret, name) {
			secret = append(secret, name)
		}
	}
	for _, v := range vars {
		name, value, given := strings.Cut(v.text, "=")
		if !given {
			var err error
			if value, err = lookup(name, env); err != nil {
				return nil, err
			}
		}
		set(name, value, v.secret)
	}
	for _, e := range more {
		set(e.Name, e.Value, e.Secret)
	}
	for _, name := range names {
		s.Config.Env = append(s.Config.Env, name+"="+values[name])
	}
	return secret, nil
}

// label adds the labels that identify the worker. They win over labels of the same name from
// settings and runs.
func (s *spec) label(req *launcher.Request, secret []string) {
	labels := map[string]string{}
	maps.Copy(labels, s.Config.Labels)
	maps.Copy(labels, req.Labels)
	labels[runLabel], labels[jobLabel] = req.ID.Run, req.Job
	labels[instanceLabel], labels[attemptLabel], labels[imageLabel] = req.Instance, strconv.Itoa(req.ID.Attempt),
		s.Config.Image
	if len(secret) > 0 {
		labels[secretsLabel] = strings.Join(secret, ",")
	}
	if s.Stop != nil {
		labels[stopLabel] = strconv.Itoa(*s.Stop)
	}
	s.Config.Labels = labels
}

// redactedEnv returns an environment without the values of secrets.
func redactedEnv(env []string, secrets string) []string {
	hidden := strings.Split(secrets, ",")
	out := slices.Clone(env)
	for i, e := range out {
		if name, _, _ := strings.Cut(e, "="); launcher.SecretName(name) || slices.Contains(hidden, name) {
			out[i] = name + "=" + launcher.Redacted
		}
	}
	return out
}
