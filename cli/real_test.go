//go:build real

package cli

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// As the first process of a container Slipway reaps what ends there, and passes on how it itself
// ended.
func TestFirstProcessReaps(t *testing.T) {
	unshare := func(command ...string) *exec.Cmd {
		return exec.Command("unshare", append([]string{"--pid", "--fork", "--mount-proc", "--kill-child"},
			command...)...)
	}
	if out, err := unshare("true").CombinedOutput(); err != nil {
		t.Skipf("no PID namespace can be made: %v %s", err, out)
	}
	bin := testenv.Build(t, "slipway")
	if out, err := unshare(bin, "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "slipway ") {
		t.Errorf("version as the first process: %v\n%s", err, out)
	}
	out, err := unshare(bin, "lauch").CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Errorf("a wrong command as the first process: %v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := storagetest.NewSQLite(t)
	testenv.WorkersGone(t, d.Location)
	for name, text := range map[string]string{
		"dagster.yaml": "run_queue: {max_concurrent_runs: 0}\n",
		"slipway.yaml": "launchers: {local: {kind: process, python: {\"*\": \"" + self +
			"\"}}}\nallow_secrets_in_argv: true\n",
	} {
		if err := os.WriteFile(filepath.Join(d.Location, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Exec("UPDATE runs SET status = 'CANCELED' WHERE status = 'QUEUED'"); err != nil {
		t.Fatal(err)
	}
	if err := d.Exec("DELETE FROM daemon_heartbeats"); err != nil {
		t.Fatal(err)
	}
	run := "11111111-2222-4333-8444-555555555555"
	if err := d.Enqueue(run, nil); err != nil {
		t.Fatal(err)
	}
	cmd := unshare("sh", "-c", "exec "+bin+" daemon --home "+d.Location)
	cmd.Env = append(os.Environ(), storagetest.LightStorage+"="+d.Location, "GORACE=atexit_sleep_ms=0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // unshare takes its child with it
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	})
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		status, err := d.Status(run)
		return status == "SUCCESS", string(status) + " " + errText(err)
	})
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := exec.Command("ps", "-eo", "stat,args").Output()
		zombie := ""
		for line := range strings.SplitSeq(string(out), "\n") {
			if strings.HasPrefix(line, "Z") &&
				(strings.Contains(line, "slipway") || strings.Contains(line, filepath.Base(self))) {
				zombie = line
			}
		}
		return err == nil && zombie == "", "a zombie stays: " + zombie + errText(err)
	})
}

func TestCheck(t *testing.T) {
	home := parked(t, false,
		"launchers: {local: {kind: process}, far: {kind: docker, config: {host: 'unix:///no/such/socket'}}}\n")
	out, err := built(t, home, "launchers", "check")
	for _, want := range []string{"local", "far", "WRONG", "does not answer", "SQLite"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("launchers check = %v, %q is missing in\n%s", err, want, out)
		}
	}
	if out, err := built(t, home, "launchers", "check", "local"); err != nil {
		t.Errorf("launchers check local = %v\n%s", err, out)
	}
	if out, err := built(t, home, "launchers", "check", "local", "--from-target"); err != nil ||
		!strings.Contains(out, "a worker there opened the storage: the storage is open: run_storage_id ") {
		t.Errorf("launchers check local --from-target = %v\n%s", err, out)
	}
	if out, err := built(t, home, "launchers", "check", "local", "--from-target=perl"); err == nil ||
		!strings.Contains(out, "must be go or python") {
		t.Errorf("launchers check --from-target=perl = %v\n%s", err, out)
	}
	python := filepath.Join(testenv.DagsterBin(t), "python")
	mine := parked(t, false, "launchers: {local: {kind: process, python: {'*': "+python+
		"}, config: {env: {PYTHONWARNINGS: ignore}}}}\n")
	if out, err := built(t, mine, "launchers", "check", "--from-target=python"); err != nil ||
		!strings.Contains(out, ", Dagster 1.") {
		t.Errorf("launchers check --from-target=python = %v\n%s", err, out)
	}
	bad := parked(t, false, "launchers: {local: {kind: process, python: {'*': /bin/false}}}\n")
	if out, err := built(t, bad, "launchers", "check", "--from-target=python"); err == nil ||
		!strings.Contains(out, "WRONG") || !strings.Contains(out, "exit code 1") {
		t.Errorf("launchers check --from-target=python without Python = %v\n%s", err, out)
	}
	for _, home := range []string{home, mine, bad} {
		if left, err := filepath.Glob(filepath.Join(home, "slipway/process/local/*/*")); err != nil || len(left) > 0 {
			t.Errorf("the canary left %v, %v", left, err)
		}
	}
}

// What the page for readers of Dagster's guide says of Dagster is so.
func TestWhatGuidesGetWrong(t *testing.T) {
	python := filepath.Join(testenv.DagsterBin(t), "python")
	out, err := exec.CommandContext(t.Context(), python, "-c", `
import os, subprocess, sys, tempfile
from dagster import DagsterInstance
from dagster._core.launcher.base import LaunchRunContext, RunLauncher
assert not hasattr(RunLauncher, "can_terminate") and not hasattr(RunLauncher, "_logger")
try:
    LaunchRunContext(dagster_run=None)
except TypeError as e:
    assert "workspace" in str(e)
else:
    raise AssertionError("workspace is not needed")
p = subprocess.run(
    [sys.executable, "-m", "dagster", "api", "execute_run", "--instance-ref", "{}", "--run-id", "x"],
    capture_output=True, text=True)
assert p.returncode == 2 and "No such option" in p.stderr, p.stderr
home = tempfile.mkdtemp()
os.environ["PLACE"] = home
with open(os.path.join(home, "dagster.yaml"), "w") as f:
    f.write("local_artifact_storage: {module: dagster.core.storage.root, class: LocalArtifactStorage, "
            "config: {base_dir: '${PLACE}'}}\n")
with DagsterInstance.from_config(home) as instance:
    assert instance.root_directory == "${PLACE}", instance.root_directory
`).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The example in Python passes the kit.
func TestLauncherInPython(t *testing.T) {
	interpreter := filepath.Join(testenv.DagsterBin(t), "python")
	dir := filepath.Join(t.TempDir(), "spool")
	if out, err := slipway(t, "", "launchers", "new", "spool", "--as", "python", "--dir", dir); err != nil {
		t.Fatalf("launchers new = %v\n%s", err, out)
	}
	settings := filepath.Join(dir, "settings.yaml")
	if err := os.WriteFile(settings, []byte("folder: "+t.TempDir()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := built(t, t.TempDir(), "launchers", "test", "--no-mtls", "--config", settings, "--", interpreter,
		filepath.Join(dir, "spool.py"))
	if err != nil || strings.Count(out, "\npass ") < 28 {
		t.Errorf("launchers test of the example in Python = %v\n%s", err, out)
	}
}

// The example in Go is a module of its own, as an outsider has it: it passes the kit, and its two
// programs serve the launcher.
func TestModuleOfAnOutsider(t *testing.T) {
	dir, _ := examples(t, "go")
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	bin := t.TempDir()
	run("go", "vet", "./...")
	run("go", "build", "-o", bin+"/", "./...")
	if out := run("go", "test", "-count=1", "-v", "./..."); strings.Count(out, "    --- PASS: TestContract/") < 30 {
		t.Errorf("the kit passes little:\n%s", out)
	}
	spooled := filepath.Join(t.TempDir(), "spool")
	if err := os.Mkdir(spooled, 0o755); err != nil {
		t.Fatal(err)
	}
	settings := "{program: '" + filepath.Join(dir, "spool") + "', folder: '" + spooled + "'}"
	file := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := run(testenv.Build(t, "slipway"), "launchers", "test", "--config", file, "--only", "Launch twice",
		"--", filepath.Join(bin, "slipway-spool")); !strings.Contains(out, "1 passed, 0 failed") {
		t.Errorf("the plug-in does not pass:\n%s", out)
	}
	home := parked(t, false, "launchers: {mine: {kind: spool, config: "+settings+
		"}, local: {kind: process}}\ndefault: mine\n")
	if out := run(filepath.Join(bin, "slipway"), "--home", home, "launchers", "test", "mine",
		"--only", "Launch twice"); !strings.Contains(out, "1 passed, 0 failed") {
		t.Errorf("the launcher that is built in does not pass:\n%s", out)
	}
	if out := run(filepath.Join(bin, "slipway"), "--home", home, "launchers", "test", "local",
		"--only", "Launch twice"); !strings.Contains(out, "1 passed, 0 failed") {
		t.Errorf("the process launcher of that Slipway does not pass:\n%s", out)
	}
}

// What launchers new says to do next works, as it stands, from an empty folder and a program that
// was built from a checkout.
func TestScaffoldsFromAnEmptyFolder(t *testing.T) {
	cache := filepath.Join(testenv.Root(t), ".cache") // as bin, it is in the checkout and not under git
	program, err := os.ReadFile(testenv.Build(t, "slipway"))
	if err == nil {
		err = os.MkdirAll(cache, 0o755)
	}
	bin, merr := os.MkdirTemp(cache, "bin-")
	t.Cleanup(func() {
		if err := os.RemoveAll(bin); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(err, merr, os.WriteFile(filepath.Join(bin, "slipway"), program, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"command", "go", "python"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			path := bin + ":" + os.Getenv("PATH")
			if way == "python" {
				path = testenv.DagsterBin(t) + ":" + path
			}
			run := func(script string) []byte {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), "bash", "-euc", script)
				cmd.Dir = t.TempDir()
				cmd.Env = append(os.Environ(), "PATH="+path)
				var stderr strings.Builder
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%s: %v\n%s%s", script, err, out, stderr.String())
				}
				return out
			}
			dir := filepath.Join(t.TempDir(), "new")
			var wrote struct{ Next []string }
			if err := json.Unmarshal(run("slipway launchers new my-batch --json --as "+way+" --dir '"+dir+"'"),
				&wrote); err != nil {
				t.Fatal(err)
			}
			script := strings.NewReplacer("go test .", "go test -run 'TestExitCode|TestContract/Launch_twice' .",
				"launchers test", "launchers test --only 'Launch twice'").Replace(strings.Join(wrote.Next, "\n"))
			if out := string(run(script)); !strings.Contains(out, "1 passed, 0 failed") || way == "go" &&
				!strings.Contains(out, "ok  \texample.com/slipway-my-batch") {
				t.Errorf("%s\n= %s", script, out)
			}
		})
	}
}

// What launchers new writes under any name compiles, and nothing that there is is overwritten.
func TestLaunchersNew(t *testing.T) {
	root, dir := testenv.Root(t), t.TempDir()
	newLauncher := func(way, to string, args ...string) {
		t.Helper()
		args = append([]string{"launchers", "new", "my-batch", "--as", way, "--dir", to}, args...)
		if out, err := slipway(t, "", args...); err != nil || !strings.Contains(out, "next:") {
			t.Fatalf("%v = %v\n%s", args, err, out)
		}
		if _, err := slipway(t, "", args...); err == nil ||
			!strings.Contains(err.Error(), "already exists; nothing was written") {
			t.Errorf("%v again = %v", args, err)
		}
	}
	module := filepath.Join(dir, "go")
	newLauncher("go", module, "--slipway", root)

	// In the tree it is looked at by an overlay: its files stand elsewhere.
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, "launcher/all"), 0o755),
		os.WriteFile(filepath.Join(tree, "launcher/all/all.go"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	newLauncher("tree", tree)
	replace := map[string]string{}
	for _, f := range []string{"mybatch.go", "mybatch_test.go"} {
		replace[filepath.Join(root, "launcher/mybatch", f)] = filepath.Join(tree, "launcher/mybatch", f)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-o", os.DevNull,
		"-overlay", filepath.Join(dir, "overlay.json"), "./launcher/mybatch")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("the package does not compile: %v\n%s", err, out)
	}
	if _, err := slipway(t, "", "launchers", "new", "x", "--as", "tree", "--dir", module); err == nil ||
		!strings.Contains(err.Error(), "has no Slipway sources") {
		t.Errorf("launchers new in a folder that is no Slipway = %v", err)
	}

	for name, want := range map[string]string{"My_Batch": "is not a valid name of a launcher",
		"": "is not a valid name of a launcher"} {
		if _, err := slipway(t, "", "launchers", "new", name, "--as", "go", "--dir", filepath.Join(dir, "no")); err ==
			nil || !strings.Contains(err.Error(), want) {
			t.Errorf("launchers new %q = %v, want %q", name, err, want)
		}
	}
	if _, err := slipway(t, "", "launchers", "new", "x", "--as", "rust"); err == nil ||
		!strings.Contains(err.Error(), "--as rust: unknown; use one of command, go, python, tree") {
		t.Errorf("launchers new in a way that there is not = %v", err)
	}
}

// Everything that the guide shows is of the example, which is compiled and passes the kit, or is
// run here.
func TestGuideShowsWhatWorks(t *testing.T) {
	bin := filepath.Dir(testenv.Build(t, "slipway"))
	dir := t.TempDir()
	kinds := append(all.Kinds("/nowhere"), &launcher.Kind{Name: "spool", Schema: config.Fields(struct {
		Folder string `config:"folder"`
	}{})})
	shells := 0
	for _, s := range snippets(t, "docs/writing-a-launcher.md") {
		language, text := s[0], s[1]
		switch {
		case language == "go", language == "python", language == "yaml" && !strings.HasPrefix(text, "launchers:"):
			if !strings.Contains(sources(t, map[string]string{"go": ".go", "python": ".py", "yaml": ".yaml"}[language]),
				text) {
				t.Errorf("this is not in examples/spool:\n%s", text)
			}
		case language == "yaml":
			home := t.TempDir()
			if err := os.WriteFile(filepath.Join(home, "slipway.yaml"), []byte(text+"default: batch\n"), 0o600); err !=
				nil {
				t.Fatal(err)
			}
			if _, err := instance.Load(home, kinds, os.LookupEnv); err != nil {
				t.Errorf("this is no slipway.yaml: %v\n%s", err, text)
			}
		case language == "json":
			d := json.NewDecoder(strings.NewReader(text))
			d.DisallowUnknownFields()
			if err := d.Decode(&launcher.Health{}); err != nil {
				t.Errorf("this is no health: %v\n%s", err, text)
			}
		case language == "sh":
			shells++
			script := strings.ReplaceAll(text, "launchers test", "launchers test --only 'Launch twice'")
			cmd := exec.CommandContext(t.Context(), "bash", "-euc", script)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+testenv.DagsterBin(t)+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil || strings.Contains(text, "launchers test") &&
				!strings.Contains(string(out), "1 passed, 0 failed") {
				t.Errorf("%s= %v\n%s", text, err, out)
			}
		default:
			t.Errorf("a snippet in %q is neither compiled nor run:\n%s", language, text)
		}
	}
	if shells < 5 {
		t.Errorf("only %d snippets were run", shells)
	}
}
