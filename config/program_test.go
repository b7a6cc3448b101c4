package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
)

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	v := config.Values{File: filepath.Join(dir, "slipway.yaml"), Path: "launchers.x.config"}
	program := filepath.Join(dir, "batch")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"./batch", program} {
		if got, err := v.Program("command", name); err != nil || got != program {
			t.Errorf("Program(%s) = %s, %v, want %s", name, got, err, program)
		}
	}
	if got, err := v.Program("command", "sh"); err != nil || !filepath.IsAbs(got) {
		t.Errorf("Program(sh) = %s, %v", got, err)
	}
	refused := func(name, why string) {
		t.Helper()
		if _, err := v.Program("command", name); err == nil || !strings.Contains(err.Error(), why) ||
			!strings.Contains(err.Error(), "launchers.x.config.command") {
			t.Errorf("Program(%s) = %v, want %q", name, err, why)
		}
	}
	refused("./gone", "no such file")
	for _, mode := range []os.FileMode{0o775, 0o757} {
		if err := os.Chmod(program, mode); err != nil {
			t.Fatal(err)
		}
		refused("./batch", "chmod go-w "+program)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(program, 12345, 0); err != nil {
		t.Fatal(err)
	}
	refused("./batch", "belongs to user 12345")
}

// A program gets only those variables of the daemon that it was given.
func TestEnviron(t *testing.T) {
	t.Setenv("A_PASSWORD", "hunter2")
	t.Setenv("GIVEN", "yes")
	v := config.Values{Env: os.LookupEnv}
	got := v.Environ([]string{"GIVEN", "NOT_SET"}, map[string]config.Text{"OWN": {Value: "1"}})
	for _, want := range []string{"GIVEN=yes", "OWN=1", "PATH=" + os.Getenv("PATH")} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if text := strings.Join(got, " "); strings.Contains(text, "hunter2") || strings.Contains(text, "NOT_SET") {
		t.Errorf("the environment is %s", text)
	}
	if got := v.Environ([]string{"*"}, nil); !slices.Contains(got, "A_PASSWORD=hunter2") {
		t.Errorf("with *, the environment is %v", got)
	}
}

func TestEnvNames(t *testing.T) {
	doc, err := config.Parse("x.yaml",
		[]byte("a: {env: ONE}\nlist: [{b: {env: TWO}}, {env: THREE}]\nenv_vars: [FOUR, FIVE=5]\nnone: env\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := config.EnvNames(doc), []string{"ONE", "TWO", "THREE", "FOUR"}; !slices.Equal(got, want) {
		t.Errorf("EnvNames = %v, want %v", got, want)
	}
}
