package config_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/test/testenv"
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
	want := settings{Name: "ann-x--${Y}", Wait: 90 * time.Second, Token: "hunter2", List: []string{"a", "ann"},
		Map: map[string]string{"k": "1.10"}, Sub: sub{"y"}, Pointer: &seven}
	if d := testenv.Diff(got, want); d != "" {
		t.Errorf("Decode (-got +want):\n%s", d)
	}
	got, err = decode(t, "name: n\n")
	if d := testenv.Diff(got, settings{Name: "n", Count: 3, On: true, Wait: time.Minute, Sub: sub{"x"}}); d != "" ||
		err != nil {
		t.Errorf("defaults: %v (-got +want):\n%s", err, d)
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	_, err := decode(t, "nmae: x\ncount: many\nwait: soon\nlist: one\nsub: {deeep: 1}\n")
	for _, want := range []string{
		"f.yaml:1:1: nmae: unknown setting; did you mean name?", "f.yaml:1:1: name: required",
		`f.yaml:2:8: count: "many" is not an integer`,
		`f.yaml:3:7: wait: "soon" is not a duration`, "f.yaml:4:7: list: a list is expected",
		"f.yaml:5:7: sub.deeep: unknown setting; did you mean deep?",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Decode = %v\nwant in it: %s", err, want)
		}
	}
}

// A value that was read from elsewhere is named with its place, because the file does not show it.
func TestProblemsNameWhatWasRead(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for yaml, want := range map[string]string{
		"count: many":             `count: "many" is not an integer`,
		"count: {env: USER_NAME}": `count: the value "ann" of environment variable USER_NAME is not an integer`,
		"count: '${USER_NAME}'":   `count: "ann", which is ${USER_NAME}, is not an integer`,
		"'on': {env: USER_NAME}": `on: the value "ann" of environment variable USER_NAME is neither true nor ` +
			`false`,
		"wait: {env: USER_NAME}":       `wait: the value "ann" of environment variable USER_NAME is not a duration`,
		"wait: {file: " + secret + "}": "wait: the content of " + secret + " is not a duration",
	} {
		if _, err := decode(t, "name: n\n"+yaml+"\n"); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", yaml, err, want)
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

func TestFileAndText(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f.yaml")
	var s struct {
		Token config.Secret          `config:"token"`
		Env   map[string]config.Text `config:"env"`
		List  []string               `config:"list"`
		Opt   *int                   `config:"opt"`
	}
	n, err := config.Parse(file,
		[]byte("token: {file: token}\nenv: {A: plain, B: '${USER_NAME}', C: {file: token}, D: {env: "+
			"USER_NAME}}\nlist:\nopt: null\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := (config.Values{File: file, Node: n, Env: env}).Decode(&s); err != nil {
		t.Fatal(err)
	}
	want := map[string]config.Text{"A": {Value: "plain"}, "B": {Value: "ann", Secret: true},
		"C": {Value: "hunter2", Secret: true}, "D": {Value: "ann", Secret: true}}
	if d := testenv.Diff(s.Env, want); d != "" || s.Token != "hunter2" || s.Opt != nil {
		t.Errorf("token %q, opt %v, env (-got +want):\n%s", string(s.Token), s.Opt, d)
	}
	if text := fmt.Sprint(s.Env, s.Token); strings.Contains(text, "hunter2") || strings.Contains(text, "ann") {
		t.Errorf("a secret shows: %s", text)
	}
	n, err = config.Parse(file, []byte("token: {file: gone}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := (config.Values{File: file, Node: n, Env: env}).Decode(&s); err == nil ||
		!strings.Contains(err.Error(), file+":1:8: token: stat "+dir+"/gone") {
		t.Errorf("a file that is missing: %v", err)
	}
}

func TestTableNamesNestedSettings(t *testing.T) {
	table := config.Table(config.Fields(settings{}))
	for _, want := range []string{"| `name` | text | required | A name. |", "| `sub.deep` | text | `x` |",
		"| `map` | map of text |", "| `token` | secret |"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
}
