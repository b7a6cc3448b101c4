package instance

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// Allow limits what runs may request from a launcher with their tags.
type Allow struct {
	Images []string `config:"images" help:"Images that the tag slipway/image may name, as globs. Without any, the tag is refused."`
	Tags   []string `config:"tags" help:"Tags with raw settings that runs may have, for example slipway/aci. A run with such a tag that is not listed fails. Default: none; for k8s, the tags that K8sRunLauncher obeys. A list here, even an empty one, replaces the default."`
	Forbid []string `config:"forbid" help:"Fields that neither code locations nor tags may set in raw settings (container_context, tags), at any depth: for example privileged or volumes."`
	CPU    string   `config:"max_cpu" help:"Maximum that the tag slipway/cpu may request."`
	Memory string   `config:"max_memory" help:"Maximum that the tag slipway/memory may request."`
	GPU    int      `config:"max_gpu" default:"0" help:"Maximum that the tag slipway/gpu may request; 0: no limit."`
	Disk   string   `config:"max_disk" help:"Maximum that the tag slipway/disk may request."`
}

// RawTags returns the run tags with raw settings that a kind of launcher reads, divided into
// allowed and denied tags.
func (a Allow) RawTags(kind *launcher.Kind) (allowed, denied []string) {
	for _, tag := range kind.Tags {
		if slices.Contains(a.Tags, tag) || kind.StockTags && a.Tags == nil {
			allowed = append(allowed, tag)
		} else {
			denied = append(denied, tag)
		}
	}
	return allowed, denied
}

// Max returns the limits as amounts. Its error names the setting.
func (a Allow) Max() (launcher.Resources, error) {
	return amounts(a.CPU, a.Memory, a.Disk, a.GPU, "max_")
}

// amountError is an error about an amount.
type amountError struct {
	setting string
	err     error
}

func (e *amountError) Error() string { return e.setting + ": " + e.err.Error() }
func (e *amountError) Unwrap() error { return e.err }

// amounts parses the amounts of a section. Its error joins one [amountError] for each amount that
// is wrong. prefix is the beginning of the settings' names.
func amounts(cpu, memory, disk string, gpu int, prefix string) (launcher.Resources, error) {
	res := launcher.Resources{GPUs: int64(gpu)}
	var errs []error
	for _, n := range []struct {
		setting, text string
		to            *int64
		parse         func(string) (int64, error)
	}{{"cpu", cpu, &res.CPUMillis, config.ParseMillis}, {"memory", memory, &res.MemoryBytes, config.ParseBytes},
		{"disk", disk, &res.DiskBytes, config.ParseBytes}} {
		if n.text == "" {
			continue
		}
		v, err := n.parse(n.text)
		if *n.to = v; err != nil {
			errs = append(errs, &amountError{prefix + n.setting, err})
		}
	}
	return res, errors.Join(errs...)
}

type routeSection struct {
	Name     string        `config:"name" help:"Name of the rule, shown to users."`
	When     whenSection   `config:"when" help:"Conditions, all of which must match. Without any, every run matches."`
	To       config.Values `config:"to" help:"The launcher, or a list of launchers in order of preference: while one is full or sick, the next is used."`
	AllowTag bool          `config:"allow_tag" default:"false" help:"A run may choose one of these launchers with its tag slipway/launcher."`
	Set      setSection    `config:"set" help:"Settings for the workers of these runs."`
}

type whenSection struct {
	Location   config.Values            `config:"location" help:"Code location: a text or a list of texts. * matches any text and ? any character, as in the other conditions on texts."`
	CodeServer *bool                    `config:"code_server" help:"Whether the location has its own code server (grpc_server in workspace.yaml)."`
	Repository config.Values            `config:"repository" help:"Repository."`
	Job        config.Values            `config:"job" help:"Job."`
	Assets     config.Values            `config:"assets" help:"Key of an asset selected for the run, for example a/b."`
	Partition  config.Values            `config:"partition" help:"Partition."`
	Tags       map[string]config.Values `config:"tags" help:"Values of tags."`
	Priority   string                   `config:"priority" help:"Comparison with the run's priority, for example >=5."`
	CPU        string                   `config:"cpu" help:"Comparison with the tag slipway/cpu, for example >2."`
	Memory     string                   `config:"memory" help:"Comparison with the tag slipway/memory, for example >=8Gi."`
	GPU        string                   `config:"gpu" help:"Comparison with the tag slipway/gpu, for example >=1."`
	CEL        string                   `config:"cel" help:"Expression in the Common Expression Language over run, which has job, location, repository, tags, assets, partition, priority, cpu, memory and gpu."`
}

type setSection struct {
	Image  string                 `config:"image" help:"Image."`
	CPU    string                 `config:"cpu" help:"Processors, for example 2 or 500m. The run's tag overrides it, as it does memory, gpu and disk."`
	Memory string                 `config:"memory" help:"Memory, for example 4Gi."`
	GPU    int                    `config:"gpu" default:"0" help:"GPUs."`
	Disk   string                 `config:"disk" help:"Disk, for example 20Gi."`
	Env    map[string]config.Text `config:"env" help:"Additional environment variables."`
	Labels map[string]string      `config:"labels" help:"Additional labels."`
	Nodes  map[string]string      `config:"nodes" help:"Labels that the worker's node must have; only for launchers that choose nodes."`
	Grace  time.Duration          `config:"stop_grace" default:"0" help:"Time between the stop signal and the kill, instead of the launcher's stop_grace."`
	Start  time.Duration          `config:"start_timeout" default:"0" help:"How long a worker may take to start its run, instead of monitoring.start_timeout_seconds."`
	MaxRun time.Duration          `config:"max_runtime" default:"0" help:"How long the run may take, instead of monitoring.max_runtime_seconds. The tag dagster/max_runtime of a run overrides it."`
	Config config.Values          `config:"config" help:"Settings of the launcher, in the form that container_context of a code location has."`
}

// texts reads a text or a list of texts.
func texts(v config.Values) ([]string, error) {
	if v.Node == nil {
		return nil, nil
	}
	single := v.Node.Kind != yaml.SequenceNode
	if single {
		v.Node = &yaml.Node{Kind: yaml.SequenceNode, Line: v.Node.Line, Column: v.Node.Column,
			Content: []*yaml.Node{v.Node}}
	}
	var s struct {
		List []string `config:"list"`
	}
	key := &yaml.Node{Kind: yaml.ScalarNode, Value: "list"}
	list := v.Node
	v.Node = &yaml.Node{Kind: yaml.MappingNode, Line: list.Line, Column: list.Column, Content: []*yaml.Node{key, list}}
	err := v.Decode(&s)
	for _, p := range config.Problems(err) { // name the setting as it is in the file
		rest := strings.TrimPrefix(p.Setting, v.Path+".list")
		if single {
			rest = strings.TrimPrefix(rest, "[0]")
		}
		p.Setting = v.Path + rest
	}
	return s.List, err
}

// routes makes the router of slipway.yaml's rules.
func (in *Instance) routes(file string, doc *yaml.Node) error {
	var errs []error
	var rules []router.Rule
	for i, s := range in.Settings.Routes {
		rule, err := s.rule()
		for _, err := range each(err) {
			var wrong *amountError
			if errors.As(err, &wrong) {
				err = problem(file, at(doc, i, wrong.setting), fmt.Sprintf("routes[%d].%s", i, wrong.setting), "%v",
					wrong.err)
			}
			errs = append(errs, atFile(err, file, at(doc, i, "")))
		}
		rules = append(rules, rule)
	}
	rules = append(rules, in.implied...)
	known := map[string]router.Launcher{}
	for name, l := range in.Settings.Launchers {
		known[name] = router.Launcher{Restricted: l.Restricted}
	}
	var err error
	in.Router, err = router.New(rules, []string{in.Settings.Default}, known)
	for _, p := range each(err) {
		var fault *router.Problem
		if errors.As(p, &fault) {
			p = problem(file, at(doc, fault.Rule, fault.Setting),
				fmt.Sprintf("routes[%d].%s", fault.Rule, fault.Setting), "%s", fault.Text)
		}
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// RuleProblem returns an error about a setting of a rule, with its line in slipway.yaml.
func (in *Instance) RuleProblem(rule int, setting, format string, args ...any) error {
	file := filepath.Join(in.Home, "slipway.yaml")
	doc, err := parse(file)
	return errors.Join(err, problem(file, at(doc, rule, setting), fmt.Sprintf("routes[%d].%s", rule, setting), format,
		args...))
}

// each returns the errors that err joins.
func each(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // of errors.Join itself
		return j.Unwrap()
	}
	return []error{err}
}

// at returns the node of a rule's setting, or the nearest node above it that exists.
func at(doc *yaml.Node, rule int, setting string) *yaml.Node {
	n := config.Child(doc, "routes")
	if n == nil || rule >= len(n.Content) {
		return n
	}
	n = n.Content[rule]
	for _, key := range splitPath(setting) {
		if c := config.Child(n, key); c != nil {
			n = c
		}
	}
	return n
}

func splitPath(setting string) []string {
	var out []string
	for setting != "" {
		i := 0
		for i < len(setting) && setting[i] != '.' {
			i++
		}
		out, setting = append(out, setting[:i]), setting[min(i+1, len(setting)):]
	}
	return out
}

// atFile adds the place n to an error that has no place.
func atFile(err error, file string, n *yaml.Node) error {
	var p *config.Problem
	if errors.As(err, &p) {
		return err
	}
	return problem(file, n, "routes", "%v", err)
}

func (s routeSection) rule() (router.Rule, error) {
	var errs []error
	list := func(v config.Values) []string {
		l, err := texts(v)
		errs = append(errs, each(err)...)
		return l
	}
	w := s.When
	r := router.Rule{Name: s.Name, To: list(s.To), ByTag: s.AllowTag, When: router.When{
		Location: list(w.Location), Repository: list(w.Repository), Job: list(w.Job), Assets: list(w.Assets),
		Partition:  list(w.Partition),
		CodeServer: w.CodeServer, Priority: w.Priority, CPU: w.CPU, Memory: w.Memory, GPU: w.GPU, CEL: w.CEL,
	}}
	if len(w.Tags) > 0 {
		r.When.Tags = map[string][]string{}
		for key, v := range w.Tags {
			r.When.Tags[key] = list(v)
		}
	}
	res, err := amounts(s.Set.CPU, s.Set.Memory, s.Set.Disk, s.Set.GPU, "set.")
	errs = append(errs, each(err)...)
	r.Set = router.Set{Image: s.Set.Image, Resources: res, Labels: s.Set.Labels, Nodes: s.Set.Nodes, Grace: s.Set.Grace,
		Start: s.Set.Start, MaxRun: s.Set.MaxRun}
	for name, v := range s.Set.Env {
		r.Set.Env = append(r.Set.Env, launcher.Env{Name: name, Value: v.Value, Secret: v.Secret})
	}
	if s.Set.Config.Node != nil {
		r.Set.Config, err = s.Set.Config.JSON()
		errs = append(errs, err)
	}
	return r, errors.Join(errs...)
}
