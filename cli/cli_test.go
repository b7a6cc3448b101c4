package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/storagetest"
)

// slipway runs one command on an instance and returns its output.
func slipway(t *testing.T, home string, args ...string) (string, error) {
	t.Helper()
	return interrupted(t.Context(), home, args...)
}

// interrupted is slipway, but ctx stops the command as a signal would.
func interrupted(ctx context.Context, home string, args ...string) (string, error) {
	return withKinds(ctx, all.Kinds("/nowhere"), home, args...)
}

// withKinds is slipway with other kinds of launchers.
func withKinds(ctx context.Context, kinds []*launcher.Kind, home string, args ...string) (string, error) {
	var out bytes.Buffer
	p := &program{kinds: kinds, out: &out, err: &out, env: func(name string) (string, bool) {
		return map[string]string{"DAGSTER_HOME": home}[name], name == "DAGSTER_HOME" && home != ""
	}}
	cmd := p.command()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

const success = "1a9ccfd4-76f3-4b5b-86b6-05a8869aa43f" // of real Dagster's runs in testdata

func TestRuns(t *testing.T) {
	home := storagetest.NewSQLite(t).Location
	out, err := slipway(t, home, "runs", "list", "--status", "queued,failure", "--limit", "3")
	if err != nil || strings.Count(out, "\n") != 4 || !strings.Contains(out, "QUEUED") ||
		strings.Contains(out, "SUCCESS") {
		t.Errorf("runs list = %v\n%s", err, out)
	}
	out, err = slipway(t, home, "runs", "list", "--json")
	var runs []map[string]any
	if err != nil || json.Unmarshal([]byte(out), &runs) != nil || len(runs) != 12 || runs[11]["status"] != "FAILURE" {
		t.Errorf("runs list --json = %v\n%s", err, out)
	}
	out, err = slipway(t, home, "runs", "show", success[:8])
	if err != nil || !strings.Contains(out, success) ||
		!strings.Contains(out, `Started execution of run for "ok_job".`) || !strings.Contains(out, "remote_loc") {
		t.Errorf("runs show = %v\n%s", err, out)
	}
	out, err = slipway(t, home, "runs", "show", success, "--json")
	var run struct {
		Tags   map[string]string
		Events []map[string]any
	}
	if err != nil || json.Unmarshal([]byte(out), &run) != nil || run.Tags["team"] != "data" || len(run.Events) != 33 {
		t.Errorf("runs show --json = %v\n%s", err, out)
	}
}

// steps writes a file for --steps.
func steps(t *testing.T, yaml string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "steps.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// canceled returns the ID of a canceled run of testdata.
func canceled(t *testing.T, home string) string {
	t.Helper()
	id, err := storagetest.Open(t, home).Text("SELECT run_id FROM runs WHERE status = 'CANCELED' LIMIT 1")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestErrorsSayWhatToDo(t *testing.T) {
	home := storagetest.NewSQLite(t).Location
	empty := t.TempDir()
	for want, c := range map[string]struct {
		home string
		args []string
	}{
		"DAGSTER_HOME is not set":                   {"", []string{"runs", "list"}},
		"is not a folder":                           {"/no/such/folder", []string{"daemon"}},
		"is not an absolute path":                   {"relative", []string{"daemon"}},
		"Dagster has not created a storage in":      {empty, []string{"status"}},
		"there is no run deadbeef":                  {home, []string{"runs", "show", "deadbeef"}},
		`runs begin with "a"; give more`:            {home, []string{"runs", "show", "a"}},
		"unknown command":                           {home, []string{"lauch"}},
		"--limit: \"x\" is not an integer":          {home, []string{"runs", "list", "--limit", "x"}},
		"--for: \"2\" is not a duration":            {home, []string{"pause", "--for", "2"}},
		"--tag: \"a\" is not KEY=VALUE; see":        {home, []string{"runs", "enqueue", "--tag", "a"}},
		"see slipway status --help":                 {home, []string{"status", "--jsn"}},
		"takes no arguments, but got \"x\"":         {home, []string{"runs", "list", "x"}},
		"needs exactly one argument":                {home, []string{"runs", "show"}},
		"must be debug, info, warn or error":        {home, []string{"daemon", "--log-level", "loud"}},
		"there is no dagster-webserver in":          {empty, []string{"demo", "--dagster", "--bin", empty}},
		"is not empty and not from an earlier demo": {home, []string{"demo", "--home", home}},
		"--home /no/such is not a folder":           {home, []string{"status", "--home", "/no/such"}},
		"select them with flags, not both":          {home, []string{"runs", "terminate", "--all", success}},
		"steps.yaml:1:13: steps.a.comand": {home,
			[]string{"runs", "enqueue", "--steps", steps(t, "steps: {a: {comand: [x]}}")}},
		"--steps: open /no/such":         {home, []string{"runs", "enqueue", "--steps", "/no/such"}},
		"nothing to run: give a command": {home, []string{"runs", "enqueue"}},
		"either a command or --steps":    {home, []string{"runs", "enqueue", "--steps", "x", "--", "true"}},
		"there is no step \"b\"": {home,
			[]string{"runs", "enqueue", "--steps", steps(t, "steps: {a: {command: [x], needs: [b]}}")}},
		"steps wait for each other: a, b": {home,
			[]string{"runs", "enqueue", "--steps", steps(t,
				"steps: {a: {command: [x], needs: [b]}, b: {command: [x], needs: [a]}}")}},
		"did you mean command?": {home,
			[]string{"runs", "enqueue", "--steps", steps(t, "steps: {a: {comand: [x]}}")}},
		"is already CANCELED": {home,
			[]string{"runs", "terminate", "--json", "abcd", canceled(t, home)}},
		"has no worker that Slipway started":   {home, []string{"runs", "logs", success}},
		"there is no launcher of kind \"ecs\"": {home, []string{"launchers", "schema", "ecs"}},
		"there is no launcher \"spot\"": {home,
			[]string{"launchers", "preview", success, "--launcher", "spot"}},
	} {
		if out, err := slipway(t, c.home, c.args...); err == nil || !strings.Contains(err.Error()+out, want) {
			t.Errorf("slipway %v = %v\n%s\nwant %q", c.args, err, out, want)
		}
	}
}

// No error contains the password in the storage's address, whatever is wrong with the address.
func TestErrorsShowNoPassword(t *testing.T) {
	for name, url := range map[string]string{
		"a server that is not there": "postgresql+psycopg2://u:hunter2@127.0.0.1:1/d",
		"a port that is none":        "postgresql://u:hunter2@127.0.0.1:port/d",
		"a parameter that is none":   "postgresql://u:hunter2@127.0.0.1:1/d?sslmode=none",
		"a bad escape":               "postgresql://u:hunter2%@h/d",
	} {
		home := t.TempDir()
		if err := os.WriteFile(filepath.Join(home, "dagster.yaml"),
			[]byte("storage: {postgres: {postgres_url: '"+url+"'}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := slipway(t, home, "runs", "list")
		if err == nil || strings.Contains(err.Error()+out, "hunter2") || !strings.Contains(err.Error(), "postgres") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestVersion(t *testing.T) {
	out, err := slipway(t, "", "version")
	if err != nil || !strings.HasPrefix(out, "slipway "+Version) {
		t.Errorf("version = %q, %v", out, err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }
