package config_test

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/testenv"
)

type settings struct {
	Name    string            `config:"name" required:"true" help:"A name."`
	Count   int               `config:"count" default:"3"`
	On      bool              `config:"on" default:"true"`
	Wait    time.Duration     `config:"wait" default:"1m"`
	Token   config.Secret     `config:"token"`
	List    []string          `config:"list"`
	Map     map[string]string `config:"map"`
	Sub     sub               `config:"sub"`
	Pointer *int              `config:"pointer"`
}

type sub struct {
	Deep string `config:"deep" default:"x"`
}

func env(name string) (string, bool) {
	v, ok := map[string]string{"USER_NAME": "ann", "EMPTY": ""}[name]
	return v, ok
}

func decode(t *testing.T, yaml string) (settings, error) {
	t.Helper()
	n, err := config.Parse("f.yaml", []byte(yaml))
	if err != nil {
		return settings{}, err
	}
	var s settings
	return s, config.Values{File: "f.yaml", Node: n, Env: env}.Decode(&s)
}

func TestDecode(t *testing.T) {
	seven := 7
	got, err := decode(t, `
name: ${USER_NAME}-${MISSING:-x}-${EMPTY}-$${Y}
count: {env: COUNT}
token: hunter2
wait: 90
list: [a, "${USER_NAME}"]
map: {k: 1.10}
sub: {deep: y}
pointer: 7
on: no
`)
	if err == nil || !strings.Contains(err.Error(), "f.yaml:3:8: count: environment variable COUNT is not set") {
		t.Errorf("Decode with an unset variable = %v", err)
	}
	want := settings{Name: "ann-x--${Y}", Wait: 90 * time.Second, Token: "hunter2", List: []string{"a", "ann"}, Map: map[string]string{"k": "1.10"}, Sub: sub{"y"}, Pointer: &seven}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("Decode (-got +want):\n%s", d)
	}
	got, err = decode(t, "name: n\n")
	if d := cmp.Diff(got, settings{Name: "n", Count: 3, On: true, Wait: time.Minute, Sub: sub{"x"}}); d != "" || err != nil {
		t.Errorf("defaults: %v (-got +want):\n%s", err, d)
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	_, err := decode(t, "nmae: x\ncount: many\nwait: soon\nlist: one\nsub: {deeep: 1}\n")
	for _, want := range []string{
		"f.yaml:1:1: nmae: unknown setting; did you mean name?", "f.yaml:1:1: name: required", `f.yaml:2:8: count: "many" is no integer`,
		`f.yaml:3:7: wait: "soon" is no duration`, "f.yaml:4:7: list: a list is expected", "f.yaml:5:7: sub.deeep: unknown setting; did you mean deep?",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Decode = %v\nwant in it: %s", err, want)
		}
	}
}

func TestSecretNeverShows(t *testing.T) {
	s := struct{ Token config.Secret }{"hunter2"}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "token", s.Token, "all", s)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "token", s.Token, "all", s)
	fmt.Fprintf(&b, "%v %+v %s %q %#v", s.Token, s, s.Token, s.Token, s.Token)
	if strings.Contains(b.String(), "hunter2") || !strings.Contains(b.String(), "[redacted]") {
		t.Errorf("a secret shows: %s", b.String())
	}
}

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
	if d := cmp.Diff(config.Dump(list), string(want)); d != "" {
		t.Errorf("Dump (-got +want):\n%s", d)
	}
}
