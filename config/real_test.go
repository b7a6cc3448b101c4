//go:build real

package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/test/testenv"
)

// Scalars are read as real Dagster's YAML library reads them.
func TestScalarsAndDumpEqualPyYAML(t *testing.T) {
	python := filepath.Join(testenv.DagsterBin(t), "python")
	words := []string{"yes", "No", "on", "OFF", "y", "true", "~", "null", "Null", "''", "010", "0o10", "0x1F",
		"1_000", "1:30", "190:20:30", "1.5", "1e3", "1.0e+3", ".5", "1.",
		".inf", "-.INF", ".nan", "0b101", "+12", "-0", "2026-11-23", "09", "abc", "'1'", "\"yes\"", "<<x", "a b",
		"1.2.3", "-", "1__0", "0.0", "100000000000"}
	var doc strings.Builder
	for _, w := range words {
		fmt.Fprintf(&doc, "- %s\n", w)
	}
	n, err := config.Parse("words", []byte(doc.String()))
	if err != nil {
		t.Fatal(err)
	}
	list := config.Tree(n).([]any)
	list = append(list, map[string]any{"b": list[0], "a": map[string]any{}, "c": []any{},
		"d": []any{map[string]any{"x": "1", "y": []any{"p"}}}, "e: f": "- x", "é": "tab\t"})
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

// A file .env is read, line by line, as the library that Dagster uses reads it.
func TestDotEnvEqualsPythonDotenv(t *testing.T) {
	texts := []string{
		"A=1\nB = two words # remark\n#C=3\nexport D=4\nE='single $A " +
			"${A}'\nF=\"double\\n${A}-${NO:-other}\"\nG=\nH\nI=\"a\" b\n'J K'=5\n=6\nL=${A\n",
		"\ufeffA=bom\r\nB='two\nlines'\rC=\"not closed\nD=after\nE=#no\nF= #remark\nG=a#b\nH=a #b\nI='it\\'s \\\\ " +
			"\\n'\n", "export\tA=1\nexport=2\nexport B\n export C=3",
		"A=${X} ${FROM_ENV} ${FROM_ENV:-no} $FROM_ENV ${}\nFROM_ENV=file\nB=${FROM_ENV}\nA\nC=<${A}>", "A=1\nA", "",
	}
	r := rand.New(rand.NewPCG(3, 4))
	parts := []string{"A", "B", "C", "=", "=", "'", "\"", "\\", "\\n", "\n", "\n", "\r\n", " ", "\t", "#", "${A}",
		"${FROM_ENV}", "${B:-x}", "$A", "export ", "text", "ü", ":", "}"}
	for range 3000 {
		var b strings.Builder
		for range r.IntN(30) {
			b.WriteString(parts[r.IntN(len(parts))])
		}
		texts = append(texts, b.String())
	}
	script := `
import io, json, logging, os, sys
from dotenv import dotenv_values
logging.disable()
os.environ.clear()
os.environ["FROM_ENV"] = "env"
out = []
for text in json.load(sys.stdin):
    with open(sys.argv[1], "w", encoding="utf-8", newline="") as f:
        f.write(text)
    out.append({k: v for k, v in dotenv_values(sys.argv[1]).items() if v is not None})
print(json.dumps(out))
`
	in, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), ".env")
	cmd := exec.Command(filepath.Join(testenv.DagsterBin(t), "python"), "-c", script, file)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []map[string]string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	env := func(name string) (string, bool) { return "env", name == "FROM_ENV" }
	for i, text := range texts {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.ReadDotEnv(file, env)
		if err != nil {
			t.Fatal(err)
		}
		if d := testenv.Diff(got, want[i]); d != "" {
			t.Errorf("%q (-got +want):\n%s", text, d)
		}
	}
}
