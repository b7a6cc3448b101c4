package worker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// files is a machine with some files.
type files struct {
	present string // separated by spaces
	version string
	servers []worker.CodeServer
}

func (f files) Exists(path string) bool {
	return strings.Contains(" /daemon "+f.present+" ", " "+path+" ")
}
func (f files) LookPath(program string) bool { return f.Exists("PATH/" + program) }
func (f files) DagsterVersion(string) string { return f.version }
func (f files) Getwd() string                { return "/daemon" }

func (f files) CodeServers() []worker.CodeServer { return f.servers }

func run(t *testing.T, python, file, dir string, entry ...string) dagster.Run {
	t.Helper()
	pointer := map[string]any{"__class__": "FileCodePointer", "fn_name": "defs", "python_file": file,
		"working_directory": dir}
	return runOf(t, python, pointer, map[string]any{"location_name": "etl"}, entry...)
}

// runOf returns a run in a code location, with a code pointer to its job.
func runOf(t *testing.T, python string, pointer, location map[string]any, entry ...string) dagster.Run {
	t.Helper()
	body := dagster.Encode(map[string]any{
		"run_id": "0a", "pipeline_name": "job", "tags": map[string]any{},
		"external_pipeline_origin": map[string]any{"external_repository_origin": map[string]any{"repository_name": "r",
			"repository_location_origin": location}},
		"pipeline_code_origin": map[string]any{"repository_origin": map[string]any{"code_pointer": pointer,
			"entry_point": entry, "executable_path": python}},
	})
	r, err := dagster.ParseRun(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var local = worker.Target{Name: "local", Traits: launcher.Traits{LocalFiles: true, MaxCommand: 1000}}

var far = worker.Target{Name: "far", Traits: launcher.Traits{Gate: true, MaxCommand: 1000}}

var attempt = worker.Attempt{Number: 2, Token: "tok", At: time.Unix(1795337531, 0).UTC()}

func TestCommandAndDirectory(t *testing.T) {
	for name, c := range map[string]struct {
		files       string
		python, cwd map[string]string
		file        string
		want        string // command up to "api", then the directory; or an error
	}{
		"the code server's own Python": {"/venv/python /code", nil, nil, "/code/defs.py",
			"/venv/python -m dagster in /code"},
		"a setting for the location": {"/venv/python /other/python /code",
			map[string]string{"etl": "/other/python", "*": "/no"}, nil, "/abs.py", "/other/python -m dagster in /code"},
		"a setting for all locations": {"/venv/python /other/python /code",
			map[string]string{"*": "/other/python"}, nil, "/abs.py", "/other/python -m dagster in /code"},
		"a setting that is not there": {"/venv/python", map[string]string{"etl": "/gone"}, nil, "/abs.py",
			"/gone does not exist on this machine: correct launchers.local.python.etl in slipway.yaml"},
		"the entry point on PATH": {"PATH/dagster /code", nil, nil, "/abs.py", "dagster in /code"},
		"neither": {"", nil, nil, "/abs.py",
			`code location etl runs in /venv/python, which is not on this machine, and "dagster" is not on PATH; set ` +
				`launchers.local.python.etl`},
		"a relative file in its directory": {"/venv/python /code /code/defs.py", nil, nil, "defs.py",
			"/venv/python -m dagster in /code"},
		"a relative file beside it": {"/venv/python / /defs.py", nil, nil, "defs.py",
			"/venv/python -m dagster in /"},
		"a relative file in the cwd setting": {"/venv/python /code /code/defs.py /x /x/defs.py", nil,
			map[string]string{"etl": "/x"}, "defs.py", "/venv/python -m dagster in /x"},
		"a relative file that is nowhere": {"/venv/python /x /code /daemon", nil, map[string]string{"*": "/x"},
			"defs.py", "defs.py is in none of /x, /code, /daemon, /; set launchers.local.cwd.etl"},
	} {
		b := &worker.Builder{Instance: "prod", Files: files{present: c.files}}
		target := local
		target.Python, target.Cwd = c.python, c.cwd
		req, err := b.Request(run(t, "/venv/python", c.file, "/code", "dagster"), attempt, target)
		got := ""
		if err != nil {
			got = err.Error()
			if !errors.Is(err, launcher.ErrInvalid) {
				t.Errorf("%s: %v is not ErrInvalid", name, err)
			}
		} else {
			command, _, _ := strings.Cut(strings.Join(req.Command, " "), " api execute_run")
			if strings.Contains(command, " -c ") {
				command = strings.Fields(command)[0] + " -m dagster" // begun by our own lines
			}
			got = command + " in " + req.Dir
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got %s\nwant %s", name, got, c.want)
		}
	}
}

// The worker runs in the folder of the code server, whatever the code pointer is, or in the first
// folder that has the code.
func TestFolderOfTheCodeServer(t *testing.T) {
	ref := func(base string) json.RawMessage {
		return dagster.Encode(map[string]any{"__class__": "InstanceRef",
			"storage_data": map[string]any{"__class__": "ConfigurableClassData", "module_name": "m", "class_name": "C",
				"config_yaml": "base_dir: " + base + "\n"}})
	}
	managed := func(dir, storage string) worker.CodeServer {
		return worker.CodeServer{Dir: dir, Location: "etl", Ref: string(ref(storage))}
	}
	module := map[string]any{"__class__": "ModuleCodePointer", "module": "pkg", "fn_name": "defs",
		"working_directory": "sub"}
	anywhere := map[string]any{"__class__": "ModuleCodePointer", "module": "pkg", "fn_name": "defs",
		"working_directory": "/abs"}
	file := map[string]any{"__class__": "FileCodePointer", "python_file": "code/defs.py", "fn_name": "defs",
		"working_directory": "code"}
	custom := map[string]any{"__class__": "CustomPointer", "reconstructor_pointer": module}
	for name, c := range map[string]struct {
		pointer map[string]any
		managed bool
		present string
		cwd     string
		servers []worker.CodeServer
		want    string
	}{
		"the managed code server's": {module, true, "/s /s/sub /daemon /daemon/sub",
			"", []worker.CodeServer{managed("/s", "/st")}, "/s"},
		"of a code location with a custom pointer": {custom, true, "/s /s/sub",
			"", []worker.CodeServer{managed("/s", "/st")}, "/s"},
		"where its code can be anywhere": {anywhere, true, "/s /daemon /abs",
			"", []worker.CodeServer{managed("/s", "/st")}, "/s"},
		"a setting wins": {module, true, "/s /s/sub /x /x/sub", "/x",
			[]worker.CodeServer{managed("/s", "/st")}, "/x"},
		"a relative setting": {module, true, "/daemon/x /daemon/x/sub", "x", nil, "/daemon/x"},
		"another instance's server": {module, true, "/s /s/sub /daemon /daemon/sub",
			"", []worker.CodeServer{managed("/s", "/other")}, "/daemon"},
		"another location's server": {module, true, "/s /s/sub /daemon /daemon/sub",
			"", []worker.CodeServer{{Dir: "/s", Location: "ml", Ref: string(ref("/st"))}}, "/daemon"},
		"a server of its own, by its command line": {file, false, "/s /s/code /s/code/defs.py",
			"", []worker.CodeServer{{Dir: "/s", File: "code/defs.py", WorkingDirectory: "code"}}, "/s"},
		"a server of its own, with other code": {file, false, "/s /s/code /s/code/defs.py /daemon",
			"", []worker.CodeServer{{Dir: "/s", File: "defs.py", WorkingDirectory: "code"}},
			"code/defs.py is in none of /daemon; set launchers.local.cwd.etl"},
		"a server in whose folder imports begin": {anywhere, false, "/abs /daemon",
			"", []worker.CodeServer{{Dir: "/abs", Module: "pkg"}}, "/abs"},
		"no server is seen":                         {module, true, "/daemon /daemon/sub", "", nil, "/daemon"},
		"no server is seen, and imports begin here": {anywhere, true, "/abs /daemon", "", nil, "/abs"},
		"nowhere": {module, true, "/x /s /daemon", "/x",
			[]worker.CodeServer{managed("/s", "/st")},
			"the working directory sub is in none of /x, /s, /daemon; set launchers.local.cwd.etl in slipway.yaml"},
		"an absolute folder that is not here": {anywhere, true, "/daemon", "", nil, "/daemon"},
	} {
		class := map[bool]string{true: "ManagedGrpcPythonEnvRepositoryLocationOrigin",
			false: "GrpcServerRepositoryLocationOrigin"}[c.managed]
		r := runOf(t, "/venv/python", c.pointer, map[string]any{"__class__": class, "location_name": "etl"})
		b := &worker.Builder{Ref: ref("/st"), Files: files{present: "/venv/python " + c.present, servers: c.servers}}
		target := local
		target.Cwd = map[string]string{"etl": c.cwd}
		req, err := b.Request(r, attempt, target)
		got := fmt.Sprint(err)
		if err == nil {
			got = req.Dir
		} else if !errors.Is(err, launcher.ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", name, err)
		}
		if err == nil && got != c.want || !strings.HasSuffix(got, c.want) && !strings.Contains(got, c.want) {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestRequestCarriesTheRun(t *testing.T) {
	r := run(t, "/venv/python", "/defs.py", "/code", "dagster")
	b := &worker.Builder{Instance: "prod"}
	target := far
	target.Ref = json.RawMessage(`{"__class__": "InstanceRef"}`)
	req, err := b.Request(r, attempt, target)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"__class__": "ExecuteRunArgs", "instance_ref": {"__class__": "InstanceRef"}, "pipeline_origin": ` +
		string(r.Code.Raw) + `, "pipeline_run_id": "0a", "set_exit_code_on_failure": null}`
	if d := testenv.Diff(req.Command[len(req.Command)-1], want); d != "" {
		t.Errorf("argument (-got +want):\n%s", d)
	}
	if req.ID != (launcher.ID{Run: "0a", Attempt: 2}) || req.Token != "tok" || req.Instance != "prod" ||
		req.Labels["dagster-run-id"] != "0a" {
		t.Errorf("request = %+v", req)
	}
	if d := testenv.Diff(req.Env, []launcher.Env{{Name: "DAGSTER_RUN_JOB_NAME", Value: "job"}}); d != "" {
		t.Errorf("env (-got +want):\n%s", d)
	}
}

// No command line on this machine has any part of the InstanceRef, whatever the worker's Dagster
// version. On other machines, no command line has anything that may be a secret.
func TestSecretsAndLongArgumentsLeaveTheCommandLine(t *testing.T) {
	const (
		argv      = "on the command line"
		variable  = "in a variable that Dagster reads"
		bootstrap = "in a variable that our own lines read"
	)
	python := run(t, "/venv/python", "/defs.py", "/code", "dagster")
	context := runOf(t, "/venv/python", map[string]any{"__class__": "FileCodePointer", "python_file": "/defs.py"}, nil)
	context.Code.Context = json.RawMessage(`{"docker": {"env_vars": ["DB_PASSWORD=hunter2"]}}`)
	command := dagster.NewCommandRun("0a", "job", json.RawMessage(`{}`), nil)
	ref, long := json.RawMessage(`"hunter2"`), json.RawMessage(`"`+strings.Repeat("x", 2000)+`"`)
	resume := worker.Attempt{Number: 1, Token: "tok", Resume: true}
	for name, c := range map[string]struct {
		b       worker.Builder
		version string
		target  worker.Target
		ref     json.RawMessage
		run     dagster.Run
		a       worker.Attempt
		want    string
	}{
		"here": {worker.Builder{}, "1.12.0", local, ref, python, attempt,
			variable},
		"here, newest": {worker.Builder{}, "2.0", local, ref, python, attempt, variable},
		"here, an old Dagster": {worker.Builder{}, "1.11.9", local, ref, python, attempt,
			bootstrap},
		"here, no version": {worker.Builder{}, "", local, ref, python, attempt, bootstrap},
		"here, resumed":    {worker.Builder{}, "1.13", local, ref, python, resume, bootstrap},
		"here, where it may show": {worker.Builder{AllowSecretsInArgv: true}, "1.13", local, ref,
			python, attempt, argv},
		"here, with a file of its own": {worker.Builder{RefSecret: true}, "1.13", local, nil, python,
			attempt, argv},
		"here, slipway-worker":              {worker.Builder{}, "", local, ref, command, attempt, variable},
		"here, slipway-worker that resumes": {worker.Builder{}, "", local, ref, command, resume, variable},
		"elsewhere":                         {worker.Builder{}, "", far, ref, python, attempt, argv},
		"elsewhere, resumed":                {worker.Builder{}, "", far, ref, python, resume, argv},
		"elsewhere, a secret": {worker.Builder{RefSecret: true}, "", far, ref, python, attempt,
			bootstrap},
		"elsewhere, a secret, resumed": {worker.Builder{RefSecret: true}, "", far, ref, python, resume,
			bootstrap},
		"elsewhere, a secret that may show": {worker.Builder{RefSecret: true, AllowSecretsInArgv: true},
			"", far, ref, python, attempt, argv},
		"elsewhere, a secret of the location":        {worker.Builder{}, "", far, ref, context, attempt, bootstrap},
		"elsewhere, a secret of the location, image": {worker.Builder{}, "", far, nil, context, attempt, bootstrap},
		"elsewhere, with a file of its own": {worker.Builder{RefSecret: true}, "", far, nil, python, attempt,
			argv},
		"elsewhere, slipway-worker": {worker.Builder{RefSecret: true}, "", far, ref, command, attempt,
			variable},
		"elsewhere, long": {worker.Builder{}, "", far, long, python, attempt, bootstrap},
		"here, long, where it may show": {worker.Builder{AllowSecretsInArgv: true}, "1.13.27", local, long,
			python, attempt, variable},
	} {
		c.b.Files, c.target.Ref, c.target.Gate = files{present: "/venv/python /code", version: c.version}, c.ref,
			worker.GateOff
		req, err := c.b.Request(c.run, c.a, c.target)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		line := strings.Join(req.Command, " ")
		got := argv
		if i := slices.IndexFunc(req.Env, func(e launcher.Env) bool {
			return e.Name == dagster.CompressedArgsEnv
		}); i >= 0 {
			got = variable
			if strings.Contains(line, " -c ") {
				got = bootstrap
			}
			if args, err := dagster.Decompress(req.Env[i].Value); err != nil || !req.Env[i].Secret || c.ref != nil &&
				!strings.Contains(args, string(c.ref)) || strings.Contains(line, "hunter2") {
				t.Errorf("%s: variable %s, command %s", name, args, line)
			}
		}
		if verb := map[bool]string{true: " api resume_run", false: " api execute_run"}[c.a.Resume]; got != c.want ||
			!strings.Contains(line, verb) {
			t.Errorf("%s: %s, want %s: %s", name, got, c.want, line)
		}
	}
}

func TestDagsterVersionIsReadFromThePackage(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"dagster-1.13.27.dist-info", "dagster_postgres-0.29.27.dist-info"} {
		if err := os.MkdirAll(dir+"/lib/python3.11/site-packages/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := (&worker.Machine{}).DagsterVersion(dir + "/bin/python"); got != "1.13.27" {
		t.Errorf("DagsterVersion = %q, want 1.13.27", got)
	}
	if got := (&worker.Machine{}).DagsterVersion("/nowhere/bin/python"); got != "" {
		t.Errorf("DagsterVersion of nothing = %q", got)
	}
}

func TestGoRunsAndGates(t *testing.T) {
	b := &worker.Builder{Instance: "prod", GoWorker: []string{"/bin/slipway", "worker"},
		Files: files{present: "/venv/python", version: "1.13"}}
	command := dagster.NewCommandRun("0a", "job", json.RawMessage(`{}`), nil)
	python := run(t, "/venv/python", "/defs.py", "/code", "dagster")
	for name, c := range map[string]struct {
		run    dagster.Run
		target worker.Target
		gate   worker.Gate
		number int
		want   string // how the command begins
		gated  bool
	}{
		"a Go run here": {command, local, worker.GateOff, 1, "/bin/slipway worker api execute_run",
			true},
		"a Go run elsewhere": {command, far, worker.GateOff, 1, "slipway-worker api execute_run", true},
		"Python without a gate": {python, local, worker.GateOff, 2, "/venv/python -m dagster api execute_run",
			false},
		"Python, first attempt": {python, local, worker.GateRelaunch, 1,
			"/venv/python -m dagster api execute_run", false},
		"Python, second attempt":       {python, local, worker.GateRelaunch, 2, "/venv/python -c ", true},
		"Python with a gate":           {python, local, worker.GateOn, 1, "/venv/python -c ", true},
		"Python with a gate elsewhere": {python, far, worker.GateOn, 1, "python -c ", true},
	} {
		c.target.Gate = c.gate
		req, err := b.Request(c.run, worker.Attempt{Number: c.number, Token: "tok"}, c.target)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		gated := false
		for _, e := range req.Env {
			gated = gated || e.Name == launcher.GateEnv && e.Value == fmt.Sprintf("%d tok", c.number)
		}
		if got := strings.Join(req.Command, " "); !strings.HasPrefix(got, c.want) || gated != c.gated {
			t.Errorf("%s: %.80s, gated %v; want %s, %v", name, got, gated, c.want, c.gated)
		}
	}
	for traits, want := range map[launcher.Traits]worker.Gate{
		{Gate: true, Unique: true, LocalFiles: true}: worker.GateOff, {Gate: true, Unique: true}: worker.GateRelaunch,
		{Gate: true}: worker.GateOn, {}: worker.GateOff,
	} {
		if got := worker.DefaultGate(traits); got != want {
			t.Errorf("DefaultGate(%+v) = %s, want %s", traits, got, want)
		}
	}
}

// A launcher that builds its own command has no command for a job that no code location has.
func TestCommandJobsNeedOurCommand(t *testing.T) {
	b := &worker.Builder{Instance: "prod"}
	hosted := worker.Target{Name: "swarm", Traits: launcher.Traits{OwnCommand: true}}
	_, err := b.Request(dagster.NewCommandRun("0a", "nightly", json.RawMessage(`{}`), nil), attempt, hosted)
	if want := "routes: [{when: {location: slipway}, to: NAME}]"; !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), `launcher "swarm"`) || !strings.Contains(err.Error(), want) {
		t.Errorf("Request = %v, want ErrInvalid with %q", err, want)
	}
	if _, err := b.Request(run(t, "/venv/python", "/defs.py", "", "dagster"), attempt, hosted); err != nil {
		t.Errorf("Request of a job of Dagster's = %v", err)
	}
}

func TestResume(t *testing.T) {
	b := &worker.Builder{Files: files{present: "/venv/python", version: "1.13"}}
	req, err := b.Request(run(t, "/venv/python", "/defs.py", "/code", "dagster"),
		worker.Attempt{Number: 2, Token: "t", Resume: true}, far)
	if err != nil || req.Command[2] != "resume_run" ||
		!strings.HasPrefix(req.Command[3], `{"__class__": "ResumeRunArgs"`) {
		t.Errorf("Request = %v, %v", req, err)
	}
}

// The settings of a worker come from the code location, then the rule, then those of the run's tags
// that the launcher allows.
func TestLayers(t *testing.T) {
	target := local
	target.Grace = 30 * time.Second
	target.Allow = worker.Allow{Images: []string{"registry/team/*"}, Max: launcher.Resources{MemoryBytes: 8 << 30}}
	set := router.Set{Image: "rule:1", Resources: launcher.Resources{CPUMillis: 2000, MemoryBytes: 1 << 30},
		Grace: time.Minute, Env: []launcher.Env{{Name: "A", Value: "rule"}},
		Labels: map[string]string{"team": "data", "dagster-run-id": "mine"}}
	rules, err := router.New([]router.Rule{{To: []string{"local"}, Set: set}}, []string{"local"},
		map[string]router.Launcher{"local": {}})
	if err != nil {
		t.Fatal(err)
	}
	b := &worker.Builder{Files: files{present: "/venv/python"}, Router: rules}
	for tags, want := range map[string]string{
		"": "rule:1 {2000 1073741824 0 0}", "slipway/memory=4Gi": "rule:1 {2000 4294967296 0 0}",
		"slipway/image=registry/team/x:2": "registry/team/x:2 {2000 1073741824 0 0}",
		"slipway/memory=16Gi":             "launchers.local.allow.max_memory",
		"slipway/image=evil:1":            "launchers.local.allow.images", "slipway/cpu=lots": `tag slipway/cpu="lots"`,
	} {
		r := run(t, "/venv/python", "/defs.py", "/code", "dagster")
		for tag := range strings.FieldsSeq(tags) {
			k, v, _ := strings.Cut(tag, "=")
			r.Tags[k] = v
		}
		req, err := b.Request(r, attempt, target)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(req.Image, " ", req.Resources)
			if req.Grace != time.Minute || req.Labels["team"] != "data" || req.Labels["dagster-run-id"] != r.ID ||
				req.Env[0] != set.Env[0] {
				t.Errorf("%q: grace %v, labels %v, env %v", tags, req.Grace, req.Labels, req.Env)
			}
		} else if !errors.Is(err, launcher.ErrInvalid) {
			t.Errorf("%q: %v is not ErrInvalid", tags, err)
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", tags, got, want)
		}
	}
}

// If code location, rule and tags name images, also in raw settings, the one with the highest rank
// is used. A tag with raw settings that slipway.yaml does not allow fails the run.
func TestRawImages(t *testing.T) {
	rule := func(set router.Set) *router.Router {
		rules, err := router.New([]router.Rule{{To: []string{"aci"}, Set: set}}, []string{"aci"},
			map[string]router.Launcher{"aci": {}})
		if err != nil {
			t.Fatal(err)
		}
		return rules
	}
	target := worker.Target{Name: "aci", Context: "aci", Tags: []string{"slipway/aci"},
		Denied: []string{"slipway/other"}, Allow: worker.Allow{Images: []string{"*"}}}
	for name, c := range map[string]struct {
		context string
		set     router.Set
		tags    map[string]string
		want    string
	}{
		"the code location":     {"", router.Set{}, nil, "location:1"},
		"its container_context": {`{"aci": {"image": "context:1"}}`, router.Set{}, nil, "context:1"},
		"one of another kind":   {`{"docker": {"image": "context:1"}}`, router.Set{}, nil, "location:1"},
		"no text":               {`{"aci": {"image": {"a": 1}}}`, router.Set{}, nil, "location:1"},
		"a rule":                {`{"aci": {"image": "context:1"}}`, router.Set{Image: "rule:1"}, nil, "rule:1"},
		"a rule's raw settings": {`{"aci": {"image": "context:1"}}`,
			router.Set{Image: "rule:1", Config: json.RawMessage(`{"image": "raw:1"}`)}, nil, "raw:1"},
		"a tag": {`{"aci": {"image": "context:1"}}`, router.Set{Image: "rule:1"},
			map[string]string{"slipway/image": "tag:1"}, "tag:1"},
		"raw settings of a tag": {`{"aci": {"image": "context:1"}}`, router.Set{Image: "rule:1"},
			map[string]string{"slipway/aci": `{"image": "raw:1"}`}, "raw:1"},
		"a tag with other settings": {"", router.Set{Image: "rule:1"}, map[string]string{"slipway/aci": `{"cpu": 2}`},
			"rule:1"},
		"a tag that is not allowed": {"", router.Set{}, map[string]string{"slipway/other": `{}`},
			"tag slipway/other of run 0a is not among launchers.aci.allow.tags in slipway.yaml"},
	} {
		r := run(t, "/venv/python", "/abs.py", "", "dagster")
		r.Code.Image, r.Tags = "location:1", c.tags
		if c.context != "" {
			r.Code.Context = json.RawMessage(c.context)
		}
		b := &worker.Builder{Files: files{present: "/venv/python"}, Router: rule(c.set)}
		req, err := b.Request(r, attempt, target)
		got := fmt.Sprint(err)
		if err == nil {
			got = req.Image
		} else if !errors.Is(err, launcher.ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", name, err)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A forbidden field in raw settings of a code location or a tag fails the run. The settings of a
// rule may have it, because the administrator writes them.
func TestForbiddenFields(t *testing.T) {
	r := run(t, "/venv/python", "/abs.py", "", "dagster")
	r.Code.Context = json.RawMessage(
		`{"env_vars": ["A=1"], "docker": {"container_kwargs": {"labels": {"a": "b"}, "ulimits": [{"privileged": ` +
			`true}]}}}`)
	r.Tags = map[string]string{"docker/config": `{"volumes": ["/:/host"]}`}
	target := worker.Target{Name: "docker", Context: "docker", Tags: []string{"docker/config"}}
	for forbid, want := range map[string]string{
		"":             "",
		"network_mode": "",
		"privileged": "container_context.docker of run 0a sets privileged, which launchers.docker.allow.forbid " +
			"in slipway.yaml forbids",
		"volumes":          "tag docker/config of run 0a sets volumes",
		"container_kwargs": "sets container_kwargs",
	} {
		target.Allow.Forbid = []string{forbid}
		req, err := (&worker.Builder{Instance: "i", Files: files{}}).Request(r, attempt, target)
		if want == "" && (err != nil || len(req.Overrides) != 3) {
			t.Errorf("forbid %q: Request = %+v, %v, want three overrides", forbid, req, err)
		}
		if want != "" && (!errors.Is(err, launcher.ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("forbid %q: Request = %v, want %q", forbid, err, want)
		}
	}
}
