package worker_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/worker"
)

// files is a machine with some files.
type files struct {
	present string // separated by spaces
	version string
}

func (f files) Exists(path string) bool      { return strings.Contains(" "+f.present+" ", " "+path+" ") }
func (f files) LookPath(program string) bool { return f.Exists("PATH/" + program) }
func (f files) DagsterVersion(string) string { return f.version }

func run(t *testing.T, python, file, dir string, entry ...string) dagster.Run {
	t.Helper()
	pointer := map[string]any{"__class__": "FileCodePointer", "fn_name": "defs", "python_file": file, "working_directory": dir}
	body := dagster.Encode(map[string]any{
		"run_id": "0a", "pipeline_name": "job", "tags": map[string]any{},
		"external_pipeline_origin": map[string]any{"external_repository_origin": map[string]any{"repository_name": "r", "repository_location_origin": map[string]any{"location_name": "etl"}}},
		"pipeline_code_origin":     map[string]any{"repository_origin": map[string]any{"code_pointer": pointer, "entry_point": entry, "executable_path": python}},
	})
	r, err := dagster.ParseRun(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var local = worker.Target{Name: "local", Traits: launcher.Traits{LocalFiles: true, MaxCommand: 1000}}

var attempt = worker.Attempt{Number: 2, Token: "tok", At: time.Unix(1795337531, 0).UTC()}

func TestCommandAndDirectory(t *testing.T) {
	for name, c := range map[string]struct {
		files       string
		python, cwd map[string]string
		file        string
		want        string // command up to "api", then the directory; or an error
	}{
		"the code server's own Python":       {"/venv/python /code", nil, nil, "/code/defs.py", "/venv/python -m dagster in /code"},
		"a setting for the location":         {"/venv/python /other/python", map[string]string{"etl": "/other/python", "*": "/no"}, nil, "/abs.py", "/other/python -m dagster in "},
		"a setting for all locations":        {"/venv/python /other/python", map[string]string{"*": "/other/python"}, nil, "/abs.py", "/other/python -m dagster in "},
		"a setting that is not there":        {"/venv/python", map[string]string{"etl": "/gone"}, nil, "/abs.py", "there is no /gone here (launchers.local.python.etl in slipway.yaml)"},
		"the entry point on PATH":            {"PATH/dagster", nil, nil, "/abs.py", "dagster in "},
		"neither":                            {"", nil, nil, "/abs.py", `code location etl runs in /venv/python, which is not on this machine, and "dagster" is not on PATH; set launchers.local.python.etl`},
		"a relative file in its directory":   {"/venv/python /code/defs.py", nil, nil, "defs.py", "/venv/python -m dagster in /code"},
		"a relative file beside it":          {"/venv/python /defs.py", nil, nil, "defs.py", "/venv/python -m dagster in /"},
		"a relative file in the cwd setting": {"/venv/python /code/defs.py /x/defs.py", nil, map[string]string{"etl": "/x"}, "defs.py", "/venv/python -m dagster in /x"},
		"a relative file that is nowhere":    {"/venv/python", nil, map[string]string{"*": "/x"}, "defs.py", "defs.py is in none of /x, /code, /; set launchers.local.cwd.etl"},
	} {
		b := &worker.Builder{Instance: "prod", Ref: json.RawMessage(`{}`), Files: files{present: c.files}}
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
			command, _, _ := strings.Cut(strings.Join(req.Command, " "), " api execute_run ")
			got = command + " in " + req.Dir
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got %s\nwant %s", name, got, c.want)
		}
	}
}

func TestRequestCarriesTheRun(t *testing.T) {
	r := run(t, "/venv/python", "/defs.py", "/code", "dagster")
	b := &worker.Builder{Instance: "prod", Ref: json.RawMessage(`{"__class__": "InstanceRef"}`), Files: files{present: "/venv/python"}}
	req, err := b.Request(r, attempt, local)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"__class__": "ExecuteRunArgs", "instance_ref": {"__class__": "InstanceRef"}, "pipeline_origin": ` + string(r.Code.Raw) + `, "pipeline_run_id": "0a", "set_exit_code_on_failure": null}`
	if d := cmp.Diff(req.Command[len(req.Command)-1], want); d != "" {
		t.Errorf("argument (-got +want):\n%s", d)
	}
	if req.ID != (launcher.ID{Run: "0a", Attempt: 2}) || req.Token != "tok" || req.Instance != "prod" || req.Labels["dagster-run-id"] != "0a" {
		t.Errorf("request = %+v", req)
	}
	if d := cmp.Diff(req.Env, []launcher.Env{{Name: "DAGSTER_RUN_JOB_NAME", Value: "job"}}); d != "" {
		t.Errorf("env (-got +want):\n%s", d)
	}
}

func TestSecretsAndLongArgumentsLeaveTheCommandLine(t *testing.T) {
	r := run(t, "/venv/python", "/defs.py", "/code", "dagster")
	long := json.RawMessage(`"` + strings.Repeat("x", 2000) + `"`)
	for name, c := range map[string]struct {
		b    worker.Builder
		want string // "argv", "env" or an error
	}{
		"no secret":                   {worker.Builder{Ref: json.RawMessage(`1`)}, "argv"},
		"a secret":                    {worker.Builder{Ref: json.RawMessage(`"hunter2"`), RefSecret: true, Files: files{version: "1.12.0"}}, "env"},
		"a secret, newest":            {worker.Builder{Ref: json.RawMessage(`"hunter2"`), RefSecret: true, Files: files{version: "2.0"}}, "env"},
		"a secret and an old Dagster": {worker.Builder{Ref: json.RawMessage(`"hunter2"`), RefSecret: true, Files: files{version: "1.11.9"}}, "dagster.yaml holds a password, which Dagster 1.11.9 of code location etl"},
		"a secret and no version":     {worker.Builder{Ref: json.RawMessage(`"hunter2"`), RefSecret: true}, "(version unknown)"},
		"a secret that may show":      {worker.Builder{Ref: json.RawMessage(`"hunter2"`), RefSecret: true, AllowSecretsInArgv: true, Files: files{version: "1.11"}}, "argv"},
		"long":                        {worker.Builder{Ref: long, Files: files{version: "1.13.27"}}, "env"},
		"long, for an old Dagster":    {worker.Builder{Ref: long, Files: files{version: "1.9"}}, "more than local takes"},
	} {
		c.b.Files = files{present: "/venv/python", version: func() string {
			if f, ok := c.b.Files.(files); ok {
				return f.version
			}
			return ""
		}()}
		req, err := c.b.Request(r, attempt, local)
		got := ""
		switch {
		case err != nil:
			got = err.Error()
		case len(req.Env) == 2 && req.Env[1].Name == dagster.CompressedArgsEnv && req.Env[1].Secret && strings.Join(req.Command, " ") == "/venv/python -m dagster api execute_run":
			got = "env"
		case len(req.Env) == 1 && len(req.Command) == 6:
			got = "argv"
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
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
	if got := (worker.Machine{}).DagsterVersion(dir + "/bin/python"); got != "1.13.27" {
		t.Errorf("DagsterVersion = %q, want 1.13.27", got)
	}
	if got := (worker.Machine{}).DagsterVersion("/nowhere/bin/python"); got != "" {
		t.Errorf("DagsterVersion of nothing = %q", got)
	}
}
