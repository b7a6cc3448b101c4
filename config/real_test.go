//go:build real

package config_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/test/testenv"
)

// Scalars are read as the YAML library of real Dagster reads them.
func TestScalarsAndDumpEqualPyYAML(t *testing.T) {
	python := filepath.Join(testenv.DagsterBin(t), "python")
	words := []string{"yes", "No", "on", "OFF", "y", "true", "~", "null", "Null", "''", "010", "0o10", "0x1F", "1_000", "1:30", "190:20:30", "1.5", "1e3", "1.0e+3", ".5", "1.",
		".inf", "-.INF", ".nan", "0b101", "+12", "-0", "2026-11-23", "09", "abc", "'1'", "\"yes\"", "<<x", "a b", "1.2.3", "-", "1__0", "0.0", "100000000000"}
	var doc strings.Builder
	for _, w := range words {
		fmt.Fprintf(&doc, "- %s\n", w)
	}
	n, err := config.Parse("words", []byte(doc.String()))
	if err != nil {
		t.Fatal(err)
	}
	list := config.Tree(n).([]any)
	list = append(list, map[string]any{"b": list[0], "a": map[string]any{}, "c": []any{}, "d": []any{map[string]any{"x": "1", "y": []any{"p"}}}, "e: f": "- x", "é": "tab\t"})
	script := `
import sys, yaml
from dagster_shared.yaml_utils import load_yaml_from_path
tree = load_yaml_from_path(sys.argv[1])
tree.append({"b": tree[0], "a": {}, "c": [], "d": [{"x": "1", "y": ["p"]}], "e: f": "- x", "\u00e9": "tab\t"})
sys.stdout.write(yaml.dump(tree, default_flow_style=False))
`
	file := filepath.Join(t.TempDir(), "words.yaml")
	if err := os.WriteFile(file, []byte(doc.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	want, err := exec.Command(python, "-c", script, file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, want)
	}
	if d := testenv.Diff(config.Dump(list), string(want)); d != "" {
		t.Errorf("Dump (-got +want):\n%s", d)
	}
}
