package dagster

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// Run is a run of Dagster, decoded from runs.run_body. Its status is only as fresh as the body; the
// column runs.status is authoritative.
type Run struct {
	ID, Job      string
	Status       Status
	Tags         map[string]string
	Remote       RemoteOrigin
	Code         CodeOrigin
	Root, Parent string          // run IDs; "" unless this is a re-execution
	Pools        *Pools          // nil: no step uses one
	Config       json.RawMessage // run_config
	Snapshot     string          // pipeline_snapshot_id; "" if there is none
	Assets       []string        // keys of the assets that were selected, a/b; nil if none were
	body         Object
}

// RemoteOrigin names the code location, repository and job of a run.
type RemoteOrigin struct {
	Location, Repository, Job string
	Managed                   bool   // the webserver or daemon starts the code server itself
	Host, Socket              string // of a code server that another program started
	Port                      int
	TLS                       bool
}

// CodeOrigin describes how a worker loads the job's code.
type CodeOrigin struct {
	EntryPoint       []string // usually ["dagster"]
	Executable       string   // the code server's Python
	PythonFile       string   // of a FileCodePointer; may be relative to the worker's current folder
	Module           string   // of any other pointer
	WorkingDirectory string   // where imports begin; may be relative to the worker's current folder
	Image            string
	Context          json.RawMessage // container_context, nil if none
	Raw              json.RawMessage // the whole PipelinePythonOrigin; nil if the run has none
}

// ParseRun decodes a run_body.
func ParseRun(body string) (Run, error) {
	o, err := ParseObject(body)
	if err != nil {
		return Run{}, fmt.Errorf("run body: %w", err)
	}
	r := Run{
		ID: o.text("run_id"), Job: o.text("pipeline_name"),
		Root: o.text("root_run_id"), Parent: o.text("parent_run_id"),
		Tags: map[string]string{}, Pools: poolsOf(o.object("run_op_concurrency")), Config: o["run_config"],
		Snapshot: o.text("pipeline_snapshot_id"), body: o,
	}
	if r.ID == "" {
		return Run{}, fmt.Errorf("run body: run_id is missing")
	}
	r.Status = NotStarted // Dagster's default for a missing status
	if s := o.object("status"); s != nil {
		r.Status = Status(strings.TrimPrefix(s.text("__enum__"), "PipelineRunStatus."))
	}
	for k, v := range o.object("tags") {
		s, err := Decode(string(v))
		text, ok := s.(string)
		if err != nil || !ok {
			return Run{}, fmt.Errorf("run %s: tag %q is not a string", r.ID, k)
		}
		r.Tags[k] = text
	}
	r.Assets = assetsOf(o["asset_selection"])
	r.Remote = remoteOrigin(o.object("external_pipeline_origin"))
	r.Code = codeOrigin(o["pipeline_code_origin"])
	return r, nil
}

// assetsOf decodes a frozenset of AssetKey, sorted.
func assetsOf(raw json.RawMessage) []string {
	var set struct {
		Members []struct {
			Path []string `json:"path"`
		} `json:"__frozenset__"`
	}
	if json.Unmarshal(raw, &set) != nil {
		return nil // null, or absent
	}
	var keys []string
	for _, m := range set.Members {
		keys = append(keys, strings.Join(m.Path, "/"))
	}
	slices.Sort(keys)
	return keys
}

func remoteOrigin(o Object) RemoteOrigin {
	repo := o.object("external_repository_origin")
	loc := repo.object("repository_location_origin")
	port, _ := loc.Value("port").(json.Number)
	n, _ := strconv.Atoi(string(port))
	tls, _ := loc.Value("use_ssl").(bool)
	return RemoteOrigin{
		Location: loc.text("location_name"), Repository: repo.text("repository_name"), Job: o.text("pipeline_name"),
		Managed: loc.Class() == "ManagedGrpcPythonEnvRepositoryLocationOrigin",
		Host:    loc.text("host"), Socket: loc.text("socket"), Port: n, TLS: tls,
	}
}

func codeOrigin(raw json.RawMessage) CodeOrigin {
	o, err := ParseObject(string(raw))
	if err != nil { // null, or absent
		return CodeOrigin{}
	}
	repo := o.object("repository_origin")
	pointer := repo.object("code_pointer")
	if pointer.Class() == "CustomPointer" {
		pointer = pointer.object("reconstructor_pointer")
	}
	c := CodeOrigin{
		Executable: repo.text("executable_path"), Image: repo.text("container_image"),
		PythonFile: pointer.text("python_file"), Module: pointer.text("module"),
		WorkingDirectory: pointer.text("working_directory"), Raw: raw,
	}
	entry, _ := repo.Value("entry_point").([]any)
	for _, e := range entry {
		s, _ := e.(string)
		c.EntryPoint = append(c.EntryPoint, s)
	}
	if ctx := repo["container_context"]; string(ctx) != "null" {
		c.Context = ctx
	}
	return c
}

// Body returns the run_body to store: the parsed one, with the status and tags of r.
func (r Run) Body() string {
	return r.body.with(map[string]any{
		"status": Object{"__enum__": Encode("PipelineRunStatus." + string(r.Status))},
		"tags":   r.Tags,
	}).JSON()
}

// Slim returns r without what only its worker and its storage need: the configuration, the code and
// the body. [Run.Body] must not be called on it.
func (r Run) Slim() Run {
	r.Config, r.Snapshot, r.Assets, r.Code, r.body = nil, "", nil, CodeOrigin{}, nil
	return r
}

// IsCommand reports whether the run's worker is slipway-worker, not Dagster's Python.
func (r Run) IsCommand() bool { return len(r.Code.EntryPoint) > 0 && r.Code.EntryPoint[0] == GoWorker }

// HasCodeServer reports whether the run's location has its own code server (grpc_server in
// workspace.yaml).
func (r Run) HasCodeServer() bool {
	return !r.IsCommand() && !r.Remote.Managed && r.Remote.Host+r.Remote.Socket != ""
}

// Priority returns the tag dagster/priority as Python's int() parses it, of any size, or 0 if the
// tag is missing or is not an integer.
func (r Run) Priority() *big.Int {
	if text, ok := r.Tags[PriorityTag]; ok {
		if n, ok := Int(text); ok {
			return n
		}
	}
	return new(big.Int)
}

// MaxRuntime returns the tag that limits how long r may take, and its value
// (dagster._daemon.monitoring.run_monitoring, 1.13: check_run_timeout). The value is "" if r has no
// such tag.
func (r Run) MaxRuntime() (tag, value string) {
	if value, ok := r.Tags[MaxRuntimeTag]; ok {
		return MaxRuntimeTag, value
	}
	return maxRuntimeSecondsTag, r.Tags[maxRuntimeSecondsTag]
}

// IgnoredTags describes each tag of r that Dagster ignores because it is not a number. Dagster
// reports at most a warning in the log of a daemon.
func (r Run) IgnoredTags() []string {
	var out []string
	ignored := func(tag, want, effect string, read func(string) bool) {
		if text := r.Tags[tag]; text != "" && !read(text) {
			out = append(out, fmt.Sprintf("The tag %s is ignored: %q is not %s. %s", tag, text, want, effect))
		}
	}
	ignored(PriorityTag, "an integer", "The run has priority 0.", func(text string) bool {
		_, ok := Int(text)
		return ok
	})
	longest, _ := r.MaxRuntime()
	ignored(longest, "a number of seconds", "The run may take as long as it needs.", func(text string) bool {
		_, ok := Float(text)
		return ok
	})
	return out
}
