// Package worker turns a claimed run into the request that a launcher gets: command, working
// directory, environment and labels. It is pure: facts about this machine come through the
// interface [Files].
//
// The command is Dagster's own, `dagster api execute_run`, with the arguments that Dagster's
// launchers pass.
package worker

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// Builder holds what requests of one instance have in common.
type Builder struct {
	Instance string // instance id
	// RefSecret says that InstanceRefs seem to hold a secret. Then they are not put on a command
	// line.
	RefSecret          bool
	AllowSecretsInArgv bool
	Ref                json.RawMessage // InstanceRef of the instance, by which its managed code servers are known
	// command of the worker of runs that need no Python, where it runs on this machine
	GoWorker []string
	Files    Files
	Router   *router.Router // what its rules set; nil: nothing
}

// Files answers questions about this machine, for workers that see its files.
type Files interface {
	Exists(path string) bool
	// Getwd returns the folder that this process was started in.
	Getwd() string
	// CodeServers returns the code servers on this machine that this user may inspect.
	CodeServers() []CodeServer
	LookPath(program string) bool
	// DagsterVersion returns the version of the dagster package of a Python, or "" if it is
	// unknown.
	DagsterVersion(python string) string
}

// Target holds the settings of a launcher that affect requests.
type Target struct {
	Name   string
	Traits launcher.Traits
	Python map[string]string // by code location, "*" for the others
	Cwd    map[string]string // by code location, "*" for the others
	Grace  time.Duration     // between stop and kill
	// LaunchRate is the maximum number of launches per second; 0 means not set.
	LaunchRate int
	Ref        json.RawMessage // InstanceRef for its workers; nil: they have their own dagster.yaml
	Gate       Gate
	// Context is the section of container_context that the launcher reads. Tags are the run tags
	// with raw settings that it reads. Denied are such tags that slipway.yaml does not allow: a run
	// with one of them fails, because it requests something that it cannot get.
	Context      string
	Tags, Denied []string
	// FailsWithRun: workers exit with an error when their run fails.
	FailsWithRun bool
	Allow        Allow
}

// Allow limits what runs may request from a launcher with their tags.
type Allow struct {
	Images []string           // globs of images for the tag slipway/image; without any, the tag is refused
	Forbid []string           // fields that raw settings of code locations and tags may not have
	Max    launcher.Resources // 0 means no limit
}

// Attempt is one attempt at a run, as its claim decided it.
type Attempt struct {
	Number int
	Token  string
	At     time.Time
	Resume bool // continue a run whose worker died
	// Memory maps the memory in bytes that the worker would get to what it gets; nil: unchanged.
	Memory func(base int64) int64
}

// Request builds the request for one attempt at a run. Its error is [launcher.ErrInvalid].
func (b *Builder) Request(r dagster.Run, a Attempt, t Target) (*launcher.Request, error) {
	if r.Code.Raw == nil {
		return nil,
			fmt.Errorf("%w: run %s has no pipeline_code_origin: no webserver or daemon created it, so no worker can "+
				"load its job", launcher.ErrInvalid, r.ID)
	}
	req := &launcher.Request{
		ID: launcher.ID{Run: r.ID, Attempt: a.Number}, Token: a.Token, Instance: b.Instance, At: a.At,
		Job: r.Job, Location: r.Remote.Location, Repository: r.Remote.Repository,
		Labels: map[string]string{
			"dagster-run-id": r.ID, "dagster-job": r.Job, "created-by": "slipway",
			"created-at": a.At.Format(time.RFC3339), "slipway-instance": b.Instance,
		},
		Run: json.RawMessage(r.Body()), InstanceRef: t.Ref, Resume: a.Resume,
	}
	layers, err := b.Layers(r, t)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		l.apply(req)
	}
	if a.Memory != nil {
		req.Resources.MemoryBytes = a.Memory(req.Resources.MemoryBytes)
	}
	req.Env = append(req.Env, launcher.Env{Name: "DAGSTER_RUN_JOB_NAME", Value: r.Job})
	if req.Overrides, err = overrides(r, t, layers); err != nil {
		return nil, err
	}
	if t.Traits.OwnCommand && r.IsCommand() {
		return nil,
			fmt.Errorf("%w: run %s is a command job, and launcher %q launches only jobs of Dagster's code locations: "+
				"send it to another launcher with a rule in slipway.yaml, for example "+
				"`routes: [{when: {location: %s}, to: NAME}]`", launcher.ErrInvalid, r.ID, t.Name,
				dagster.CommandLocation)
	}
	if t.Traits.OwnCommand {
		return req, nil
	}
	verb := "execute_run"
	if a.Resume {
		verb = "resume_run"
	}
	var entry []string
	if r.IsCommand() {
		entry, req.DagsterVersion = []string{dagster.GoWorker}, goVersion
		if t.Traits.LocalFiles && len(b.GoWorker) > 0 {
			entry = slices.Clone(b.GoWorker)
		}
	} else if entry, err = b.python(req, r, t); err != nil {
		return nil, err
	}
	return req, b.start(req, entry, verb, r, a, t)
}

// Canary builds the request for a worker that opens the storage as a run's worker would, prints
// that it did and ends. It is a Python worker, with the Python that launchers.NAME.python sets for
// location, or slipway-worker.
func (b *Builder) Canary(id string, python bool, location, image string, at time.Time,
	t Target) (*launcher.Request, error) {
	r := dagster.NewCommandRun(id, "canary", json.RawMessage("{}"), nil)
	req, err := b.Request(r, Attempt{Number: 1, Token: "canary", At: at}, t)
	if err != nil {
		return nil, err
	}
	if image != "" {
		req.Image = image
	}
	i := slices.Index(req.Command, "api")
	if !python {
		req.Command[i+1] = "canary"
		return req, nil
	}
	interpreter := setting(t.Python, location)
	if interpreter == "" {
		interpreter = "python"
	}
	req.Command = append([]string{interpreter, "-c", canary}, req.Command[i:]...)
	return req, nil
}

// goVersion is the Dagster version whose form of arguments slipway-worker reads: the newest.
const goVersion = "1.13"

func gateEnv(a Attempt) launcher.Env {
	return launcher.Env{Name: launcher.GateEnv, Value: fmt.Sprintf("%d %s", a.Number, a.Token)}
}

// python returns the entry point of Dagster's own worker, and sets its folder and version where it
// runs on this machine.
func (b *Builder) python(req *launcher.Request, r dagster.Run, t Target) (entry []string, err error) {
	entry, python, err := b.entryPoint(r, t)
	if err == nil && t.Traits.LocalFiles {
		req.DagsterVersion = b.Files.DagsterVersion(python)
		req.Dir, err = b.dir(r, t)
	}
	return entry, err
}

// sharedEnv is the key of container_context that all launchers read: a list of NAME=value and NAME.
const sharedEnv = "env_vars"

// overrides returns the raw settings of the run, its code location and its rule, for the launcher
// to decode.
func overrides(r dagster.Run, t Target, layers []Layer) ([]launcher.Override, error) {
	var out []launcher.Override
	untrusted := func(source string, text json.RawMessage) error {
		var tree any
		if err := json.Unmarshal(text, &tree); err == nil { // the launcher refuses a text that is not JSON
			if field := has(tree, t.Allow.Forbid); field != "" {
				return fmt.Errorf(
					"%w: %s of run %s sets %s, which launchers.%s.allow.forbid in slipway.yaml forbids: remove the "+
						"field, or allow it there", launcher.ErrInvalid, source, r.ID, field, t.Name)
			}
		}
		out = append(out, launcher.Override{Source: source, JSON: text})
		return nil
	}
	if o, err := dagster.ParseObject(string(r.Code.Context)); err == nil && t.Context != "" {
		for _, section := range []string{sharedEnv, t.Context} {
			if o[section] == nil {
				continue
			}
			if err := untrusted("container_context."+section, o[section]); err != nil {
				return nil, err
			}
		}
	}
	for _, l := range layers {
		if l.Set.Config != nil {
			out = append(out, launcher.Override{Source: l.Source, JSON: l.Set.Config})
		}
	}
	for _, tag := range t.Tags {
		if text, ok := r.Tags[tag]; ok {
			if err := untrusted("tag "+tag, json.RawMessage(text)); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// has returns the first of fields that a JSON value has at any depth, or "".
func has(v any, fields []string) string {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if slices.Contains(fields, key) {
				return key
			}
			if found := has(v[key], fields); found != "" {
				return found
			}
		}
	case []any:
		for _, item := range v {
			if found := has(item, fields); found != "" {
				return found
			}
		}
	}
	return ""
}

// setting returns the value for a location, else the value for all others.
func setting(m map[string]string, location string) string {
	if v, ok := m[location]; ok {
		return v
	}
	return m["*"]
}

// entryPoint returns the command up to "api", and the Python in it if that is known.
func (b *Builder) entryPoint(r dagster.Run, t Target) (entry []string, python string, err error) {
	module := func(python string) []string { return []string{python, "-m", "dagster"} }
	if !t.Traits.LocalFiles {
		if p := setting(t.Python, r.Remote.Location); p != "" {
			return module(p), "", nil
		}
		if len(r.Code.EntryPoint) > 0 {
			return append([]string{}, r.Code.EntryPoint...), "", nil
		}
		return module(r.Code.Executable), "", nil
	}
	where := fmt.Sprintf("launchers.%s.python.%s in slipway.yaml", t.Name, r.Remote.Location)
	if p := setting(t.Python, r.Remote.Location); p != "" {
		if !b.Files.Exists(p) {
			return nil, "", fmt.Errorf("%w: code location %s: %s does not exist on this machine: correct %s",
				launcher.ErrInvalid, r.Remote.Location, p, where)
		}
		return module(p), p, nil
	}
	// For most locations the entry point is ["dagster"], which can be any dagster on PATH. The code
	// server's own Python is the right one.
	if p := r.Code.Executable; p != "" && b.Files.Exists(p) {
		return module(p), p, nil
	}
	if e := r.Code.EntryPoint; len(e) > 0 && (b.Files.Exists(e[0]) && filepath.IsAbs(e[0]) || b.Files.LookPath(e[0])) {
		return append([]string{}, e...), e[0], nil
	}
	return nil,
		"", fmt.Errorf("%w: code location %s runs in %s, which is not on this machine, and %q is not on PATH; set %s "+
			"to a Python that has the packages of the location", launcher.ErrInvalid, r.Remote.Location,
			orNone(r.Code.Executable), strings.Join(r.Code.EntryPoint, " "), where)
}

func orNone(s string) string {
	if s == "" {
		return "an unknown Python"
	}
	return s
}
