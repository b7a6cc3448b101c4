package cli

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"github.com/slipway-run/slipway/cli/scaffold"
	"github.com/slipway-run/slipway/test/testenv"
)

// examples are the launchers in examples/spool, which launchers new writes.
func examples(t *testing.T, way string) (dir string, files map[string]scaffold.File) {
	t.Helper()
	files, err := scaffold.Files(way, scaffold.Launcher{Name: "spool", Replace: "../../.."})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(testenv.Root(t), "examples", "spool", way), files
}

// The examples equal the output of launchers new; -update writes them again.
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
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, f.Text, mode)); err !=
					nil {
					t.Fatal(err)
				}
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, f.Text) {
				t.Errorf("%s is not what launchers new writes (%v); go test ./cli -run Scaffolds -update", file, err)
			}
		}
	}
}

// A release is returned as its version. Sources are returned as their folder, wherever the program
// says that it is.
func TestReleased(t *testing.T) {
	root := testenv.Root(t)
	built, elsewhere := filepath.Join(root, "bin", "slipway"), filepath.Join(t.TempDir(), "slipway")
	module := func(version, replace string) *debug.Module {
		m := &debug.Module{Path: "github.com/slipway-run/slipway", Version: version}
		if replace != "" {
			m.Replace = &debug.Module{Path: replace}
		}
		return m
	}
	for name, c := range map[string]struct {
		main, dep       *debug.Module
		near            string
		version, folder string
	}{
		"a release":                  {module("v1.2.3", ""), nil, elsewhere, "v1.2.3", ""},
		"a release candidate":        {module("v1.2.3-rc.1", ""), nil, elsewhere, "v1.2.3-rc.1", ""},
		"a commit":                   {module("v0.0.0-20261127204512-a39b383a39b3", ""), nil, built, "", root},
		"a commit after a release":   {module("v1.2.4-0.20261127204512-a39b383a39b3", ""), nil, built, "", root},
		"changed files":              {module("v1.2.3+dirty", ""), nil, built, "", root},
		"sources without git":        {module("(devel)", ""), nil, built, "", root},
		"sources that are elsewhere": {module("(devel)", ""), nil, elsewhere, "", ""},
		"sources without a path": {module("(devel)", ""), nil, "github.com/slipway-run/slipway/cli/new.go",
			"", ""},
		"a Slipway of one's own": {&debug.Module{Path: "example.com/x"}, module("v1.2.3", ""), elsewhere,
			"v1.2.3", ""},
		"a Slipway of one's own of sources": {&debug.Module{Path: "example.com/x"}, module("v0.0.0", "/src/slipway"),
			elsewhere, "", "/src/slipway"},
	} {
		info := &debug.BuildInfo{Main: *c.main}
		if c.dep != nil {
			info.Deps = []*debug.Module{c.dep}
		}
		if version, folder := released(info, c.near); version != c.version || folder != c.folder {
			t.Errorf("%s: released = %q, %q, want %q, %q", name, version, folder, c.version, c.folder)
		}
	}
}
