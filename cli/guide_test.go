package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/testenv"
)

// snippets are the fenced blocks of a page, with their language.
func snippets(t *testing.T, page string) (blocks [][2]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split("\n"+string(text), "\n```")
	for i := 1; i < len(parts); i += 2 {
		language, block, _ := strings.Cut(parts[i], "\n")
		blocks = append(blocks, [2]string{language, block + "\n"})
	}
	return blocks
}

// sources are all files of the example that have an extension, one after the other.
func sources(t *testing.T, extension string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(filepath.Join(testenv.Root(t), "examples/spool"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != extension {
			return err
		}
		text, err := os.ReadFile(path)
		b.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Everything that the guide shows is of the example, which is compiled and passes the kit, or is run here.
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
			if !strings.Contains(sources(t, map[string]string{"go": ".go", "python": ".py", "yaml": ".yaml"}[language]), text) {
				t.Errorf("this is not in examples/spool:\n%s", text)
			}
		case language == "yaml":
			home := t.TempDir()
			if err := os.WriteFile(filepath.Join(home, "slipway.yaml"), []byte(text+"default: batch\n"), 0o600); err != nil {
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
			if err != nil || strings.Contains(text, "launchers test") && !strings.Contains(string(out), "1 passed, 0 failed") {
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
p = subprocess.run([sys.executable, "-m", "dagster", "api", "execute_run", "--instance-ref", "{}", "--run-id", "x"], capture_output=True, text=True)
assert p.returncode == 2 and "No such option" in p.stderr, p.stderr
home = tempfile.mkdtemp()
os.environ["PLACE"] = home
with open(os.path.join(home, "dagster.yaml"), "w") as f:
    f.write("local_artifact_storage: {module: dagster.core.storage.root, class: LocalArtifactStorage, config: {base_dir: '${PLACE}'}}\n")
with DagsterInstance.from_config(home) as instance:
    assert instance.root_directory == "${PLACE}", instance.root_directory
`).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
