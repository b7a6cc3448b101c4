// Package worker turns a claimed run into the request that a launcher is given: command, working
// directory, environment and labels. It is pure; what it needs to know of this machine it asks through functions.
//
// The command is Dagster's own, `dagster api execute_run`, with the arguments that Dagster's launchers pass.
package worker

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// Builder holds what requests of one instance have in common.
type Builder struct {
	Instance string // instance id
	// RefSecret says that InstanceRefs hold a password, which then is not put on a command line.
	RefSecret          bool
	AllowSecretsInArgv bool
	Home               string          // DAGSTER_HOME, whose dagster.yaml a worker on this machine can read itself
	Ref                json.RawMessage // InstanceRef of the instance, by which its managed code servers are known
	GoWorker           []string        // command of the worker of runs that need no Python, where it runs on this machine
	Files              Files
	Router             *router.Router // what its rules set; nil: nothing
}

// Files is this machine, for workers that see its files.
type Files interface {
	Exists(path string) bool
	// Getwd returns the folder that this process was started in.
	Getwd() string
	// CodeServers returns the code servers that run here, as far as this user may look at them.
	CodeServers() []CodeServer
	LookPath(program string) bool
	// DagsterVersion is the version of the dagster package beside a Python; "" if it cannot be told.
	DagsterVersion(python string) string
}

// Target is what of a launcher's settings decides about commands.
type Target struct {
	Name   string
	Traits launcher.Traits
	Python map[string]string // by code location, "*" for the others
	Cwd    map[string]string // likewise
	Grace  time.Duration     // between stop and kill
	// LaunchRate is the most launches per second; 0 is no bound of its own.
	LaunchRate int
	Ref        json.RawMessage // InstanceRef for its workers; nil: they have a dagster.yaml of their own
	Gate       Gate
	// Context is the section of container_context that the launcher reads, Tags the run tags with raw settings that it reads. Denied are such tags that
	// slipway.yaml does not allow: a run that has one fails, as it asks for what it cannot get.
	Context      string
	Tags, Denied []string
	// FailsWithRun: workers exit with an error when their run fails.
	FailsWithRun bool
	Allow        Allow
}

// Allow says what runs may ask of a launcher by their tags.
type Allow struct {
	Images []string           // globs of images for the tag slipway/image; none: the tag is refused
	Forbid []string           // fields that raw settings of code locations and tags may not have
	Max    launcher.Resources // 0 is no limit
}

// Attempt is what the claim of a run decided.
type Attempt struct {
	Number int
	Token  string
	At     time.Time
	Resume bool // go on with a run whose worker died
	// Memory turns the bytes that the worker would get into those that it gets; nil leaves them.
	Memory func(base int64) int64
}

// Request builds the request for one attempt at a run. Its error is [launcher.ErrInvalid].
func (b *Builder) Request(r dagster.Run, a Attempt, t Target) (*launcher.Request, error) {
	if r.Code.Raw == nil {
		return nil, fmt.Errorf("%w: run %s has no pipeline_code_origin: it was not made by a webserver or daemon, and no worker can load its job", launcher.ErrInvalid, r.ID)
	}
	req := &launcher.Request{
		ID: launcher.ID{Run: r.ID, Attempt: a.Number}, Token: a.Token, Instance: b.Instance, At: a.At,
		Job: r.Job, Location: r.Remote.Location, Repository: r.Remote.Repository,
		Labels: map[string]string{
			"dagster-run-id": r.ID, "dagster-job": r.Job, "created-by": "slipway", "created-at": a.At.Format(time.RFC3339), "slipway-instance": b.Instance,
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
		return nil, fmt.Errorf("%w: run %s is a command job, and launcher %q launches jobs of Dagster's code locations only: send it to another launcher by a rule in slipway.yaml, for example "+
			"`routes: [{when: {location: %s}, to: NAME}]`", launcher.ErrInvalid, r.ID, t.Name, dagster.CommandLocation)
	}
	if t.Traits.OwnCommand {
		return req, nil
	}
	verb := "execute_run"
	if a.Resume {
		verb = "resume_run"
	}
	if r.IsCommand() {
		req.Command, req.DagsterVersion = []string{dagster.GoWorker}, goVersion
		if t.Traits.LocalFiles && len(b.GoWorker) > 0 {
			req.Command = append([]string{}, b.GoWorker...)
		}
		req.Env = append(req.Env, gateEnv(a))
	} else if err := b.python(req, r, a, t); err != nil {
		return nil, err
	}
	req.Command = append(req.Command, "api", verb)
	return req, b.arguments(req, r, a, t)
}

// Canary builds the request for a worker that opens the storage as a run's worker would, says so and ends: by Dagster's Python, that of a
// code location if it has one of its own, or by slipway-worker.
func (b *Builder) Canary(id string, python bool, location, image string, at time.Time, t Target) (*launcher.Request, error) {
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

// goVersion stands for the version of slipway-worker, which takes its arguments as the newest Dagster does.
const goVersion = "1.13"

func gateEnv(a Attempt) launcher.Env {
	return launcher.Env{Name: launcher.GateEnv, Value: fmt.Sprintf("%d %s", a.Number, a.Token)}
}

// python sets what starts Dagster's own worker.
func (b *Builder) python(req *launcher.Request, r dagster.Run, a Attempt, t Target) error {
	entry, python, err := b.entryPoint(r, t)
	if err != nil {
		return err
	}
	if t.Traits.LocalFiles {
		if req.Dir, err = b.dir(r, t); err != nil {
			return err
		}
		req.DagsterVersion = b.Files.DagsterVersion(python)
	}
	if t.Gate.closed(a.Number) {
		if len(entry) != 3 { // no "python -m dagster": the interpreter of whoever's PATH, as the entry point is
			entry = []string{"python"}
		}
		entry = []string{entry[0], "-c", bootstrap}
		req.Env = append(req.Env, gateEnv(a))
	}
	req.Command = entry
	return nil
}

// sharedEnv is what all launchers read of container_context: a list of NAME=value and NAME.
const sharedEnv = "env_vars"

// overrides are the raw settings that stand on the run, for the launcher to decode.
func overrides(r dagster.Run, t Target, layers []Layer) ([]launcher.Override, error) {
	var out []launcher.Override
	untrusted := func(source string, text json.RawMessage) error {
		var tree any
		if err := json.Unmarshal(text, &tree); err == nil { // what is no JSON, the launcher refuses
			if field := has(tree, t.Allow.Forbid); field != "" {
				return fmt.Errorf("%w: %s of run %s sets %s, which launchers.%s.allow.forbid in slipway.yaml forbids", launcher.ErrInvalid, source, r.ID, field, t.Name)
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

// has is the first of some fields that a JSON value has, at any depth; "" for none.
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

// arguments adds what says which run to execute: on the command line as Dagster's launchers do, or, where that would show a
// password or is too long, in a variable, or for an older Dagster on this machine by leaving out the InstanceRef, which the worker
// then makes from dagster.yaml itself.
func (b *Builder) arguments(req *launcher.Request, r dagster.Run, a Attempt, t Target) error {
	full := dagster.ExecuteRunArgs{InstanceRef: t.Ref, Origin: r.Code.Raw, RunID: r.ID, Resume: a.Resume, SetExitCodeOnFailure: t.FailsWithRun}
	args := full.JSON()
	fits := func(n int) bool { return t.Traits.MaxCommand == 0 || n <= t.Traits.MaxCommand }
	if fits(len(args)) && (!b.RefSecret || b.AllowSecretsInArgv || t.Ref == nil) {
		req.Command = append(req.Command, args)
		return nil
	}
	if takesCompressed(req.DagsterVersion) && !a.Resume { // resume_run reads no variable
		compressed := dagster.Compress(args)
		if !fits(len(compressed) + len(dagster.CompressedArgsEnv) + 1) {
			return fmt.Errorf("%w: the arguments of run %s have %d bytes even when compressed, more than %s takes", launcher.ErrInvalid, r.ID, len(compressed), t.Name)
		}
		req.Env = append(req.Env, launcher.Env{Name: dagster.CompressedArgsEnv, Value: compressed, Secret: true})
		return nil
	}
	full.InstanceRef = nil
	if short := full.JSON(); t.Traits.LocalFiles && b.Home != "" && fits(len(short)) {
		req.Env = append(req.Env, launcher.Env{Name: "DAGSTER_HOME", Value: b.Home})
		req.Command = append(req.Command, short)
		return nil
	}
	if b.RefSecret {
		return fmt.Errorf("%w: dagster.yaml holds a password, which Dagster %s of code location %s can only take on its command line, where every user of the machine sees it; write the password as {env: NAME}, or set allow_secrets_in_argv: true in slipway.yaml", launcher.ErrInvalid, orUnknown(req.DagsterVersion), r.Remote.Location)
	}
	return fmt.Errorf("%w: the arguments of run %s have %d bytes, more than %s takes, and Dagster %s cannot take them another way", launcher.ErrInvalid, r.ID, len(args), t.Name, orUnknown(req.DagsterVersion))
}

func orUnknown(version string) string {
	if version == "" {
		return "(version unknown)"
	}
	return version
}

// takesCompressed says whether a version of Dagster reads its arguments from a variable: 1.12 and newer.
func takesCompressed(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, err1 := strconv.Atoi(major)
	n, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (m > 1 || m == 1 && n >= 12)
}

// setting is a location's value, else that of all others.
func setting(m map[string]string, location string) string {
	if v, ok := m[location]; ok {
		return v
	}
	return m["*"]
}

// entryPoint is the command up to "api", and the Python in it where that is known.
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
			return nil, "", fmt.Errorf("%w: code location %s: there is no %s here (%s)", launcher.ErrInvalid, r.Remote.Location, p, where)
		}
		return module(p), p, nil
	}
	// The entry point is ["dagster"] for most locations: the dagster of whoever's PATH. The code server's own Python is the right one.
	if p := r.Code.Executable; p != "" && b.Files.Exists(p) {
		return module(p), p, nil
	}
	if e := r.Code.EntryPoint; len(e) > 0 && (b.Files.Exists(e[0]) && filepath.IsAbs(e[0]) || b.Files.LookPath(e[0])) {
		return append([]string{}, e...), e[0], nil
	}
	return nil, "", fmt.Errorf("%w: code location %s runs in %s, which is not on this machine, and %q is not on PATH; set %s to a Python that has its packages", launcher.ErrInvalid, r.Remote.Location, orNone(r.Code.Executable), strings.Join(r.Code.EntryPoint, " "), where)
}

func orNone(s string) string {
	if s == "" {
		return "an unknown Python"
	}
	return s
}
