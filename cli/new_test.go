package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/cli/scaffold"
	"github.com/slipway-run/slipway/test/testenv"
)

// examples are the launchers of examples/spool, which are what launchers new writes.
func examples(t *testing.T, way string) (dir string, files map[string]scaffold.File) {
	t.Helper()
	files, err := scaffold.Files(way, scaffold.Launcher{Name: "spool", Version: "v0.0.0-00010101000000-000000000000", Replace: "../../.."})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(testenv.Root(t), "examples", "spool", way), files
}

// The examples are what launchers new writes, word for word; -update writes them anew.
func TestExamplesAreScaffolds(t *testing.T) {
	update := flag.Lookup("update").Value.String() == "true"
	for _, way := range []string{"command", "go", "python"} {
		dir, files := examples(t, way)
		for path, f := range files {
			file := filepath.Join(dir, path)
			if info, err := os.Lstat(file); path == "go.mod" || err == nil && info.Mode()&os.ModeSymlink != 0 {
				continue // go.mod has what go mod tidy adds
			}
			if update {
				mode := os.FileMode(0o644)
				if f.Program {
					mode = 0o755
				}
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, f.Text, mode)); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, f.Text) {
				t.Errorf("%s is not what launchers new writes (%v); go test ./cli -run Scaffolds -update", file, err)
			}
		}
	}
}

// The example in Go is a module of its own, as an outsider has it: it passes the kit, and its two programs serve the launcher.
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
	if out := run(testenv.Build(t, "slipway"), "launchers", "test", "--config", file, "--only", "Launch twice", "--", filepath.Join(bin, "slipway-spool")); !strings.Contains(out, "1 passed, 0 failed") {
		t.Errorf("the plug-in does not pass:\n%s", out)
	}
	home := parked(t, false, "launchers: {mine: {kind: spool, config: "+settings+"}, local: {kind: process}}\ndefault: mine\n")
	if out := run(filepath.Join(bin, "slipway"), "--home", home, "launchers", "test", "mine", "--only", "Launch twice"); !strings.Contains(out, "1 passed, 0 failed") {
		t.Errorf("the launcher that is built in does not pass:\n%s", out)
	}
	if out := run(filepath.Join(bin, "slipway"), "--home", home, "launchers", "test", "local", "--only", "Launch twice"); !strings.Contains(out, "1 passed, 0 failed") {
		t.Errorf("the process launcher of that Slipway does not pass:\n%s", out)
	}
}

// What launchers new writes under any name compiles, and what can be run passes the kit.
func TestLaunchersNew(t *testing.T) {
	root, dir := testenv.Root(t), t.TempDir()
	newLauncher := func(way, to string, args ...string) {
		t.Helper()
		args = append([]string{"launchers", "new", "my-batch", "--as", way, "--dir", to}, args...)
		if out, err := slipway(t, "", args...); err != nil || !strings.Contains(out, "next:") {
			t.Fatalf("%v = %v\n%s", args, err, out)
		}
		if _, err := slipway(t, "", args...); err == nil || !strings.Contains(err.Error(), "is there already; nothing was written") {
			t.Errorf("%v again = %v", args, err)
		}
	}
	module := filepath.Join(dir, "go")
	newLauncher("go", module, "--slipway", root)
	sums, err := os.ReadFile(filepath.Join(root, "examples/spool/go/go.sum"))
	if err == nil {
		err = os.WriteFile(filepath.Join(module, "go.sum"), sums, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	vet := exec.CommandContext(t.Context(), "go", "vet", "-mod=mod", "./...")
	vet.Dir = module
	if out, err := vet.CombinedOutput(); err != nil {
		t.Errorf("the module does not compile: %v\n%s", err, out)
	}

	// In the tree it is looked at by an overlay: its files stand elsewhere.
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, "launcher/all"), 0o755), os.WriteFile(filepath.Join(tree, "launcher/all/all.go"), nil, 0o644)); err != nil {
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
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-o", os.DevNull, "-overlay", filepath.Join(dir, "overlay.json"), "./launcher/mybatch")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Errorf("the package does not compile: %v\n%s", err, out)
	}
	if _, err := slipway(t, "", "launchers", "new", "x", "--as", "tree", "--dir", module); err == nil || !strings.Contains(err.Error(), "has no Slipway sources") {
		t.Errorf("launchers new in a folder that is no Slipway = %v", err)
	}

	commands := filepath.Join(dir, "command")
	newLauncher("command", commands)
	spooled := filepath.Join(dir, "spool")
	if err := os.Mkdir(spooled, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SPOOL", spooled)
	if out, err := built(t, commands, "launchers", "test", "my-batch", "--only", "Health"); err != nil || !strings.Contains(out, "4 passed, 0 failed, 1 not promised") {
		t.Errorf("the commands do not pass: %v\n%s", err, out)
	}

	for name, want := range map[string]string{"My_Batch": "is no name of a launcher", "": "is no name of a launcher"} {
		if _, err := slipway(t, "", "launchers", "new", name, "--as", "go", "--dir", filepath.Join(dir, "no")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("launchers new %q = %v, want %q", name, err, want)
		}
	}
	if _, err := slipway(t, "", "launchers", "new", "x", "--as", "rust"); err == nil || !strings.Contains(err.Error(), "there is no way \"rust\"; there are [command go python tree]") {
		t.Errorf("launchers new in a way that there is not = %v", err)
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
	out, err := built(t, t.TempDir(), "launchers", "test", "--no-mtls", "--config", settings, "--", interpreter, filepath.Join(dir, "spool.py"))
	if err != nil || strings.Count(out, "\npass ") < 28 {
		t.Errorf("launchers test of the example in Python = %v\n%s", err, out)
	}
}
