package cli

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
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
