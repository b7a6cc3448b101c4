// Package python has launchers that are RunLauncher classes of Dagster's. A Python that has the
// class hosts it unchanged, and Slipway calls it over the wire of package plugin.
//
// The package slipway_launcher beside this file is that host. Launchers in Python can also build on
// it.
package python

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/plugin"
)

// Config holds the settings of a hosted class.
type Config struct {
	Module  string                 `config:"module" required:"true" help:"Python module of the class, as in dagster.yaml."`
	Class   string                 `config:"class" required:"true" help:"The RunLauncher class."`
	Config  config.Values          `config:"config" help:"The config of the class, which checks it. Dagster's {env: NAME} works in it."`
	Python  string                 `config:"python" default:"python3" help:"Python that has the class and Dagster. No other program needs them."`
	Path    []string               `config:"path" help:"Folders with further Python modules. PYTHONPATH is ignored."`
	PassEnv []string               `config:"pass_env" help:"Variables of the daemon's environment that this Python gets. It always gets PATH, HOME and similar ones, and the ones that dagster.yaml and the config name by {env: NAME} or in env_vars. * means all."`
	Env     map[string]config.Text `config:"env" help:"Further environment variables of that Python."`
}

//go:embed slipway_launcher/*.py slipway_launcher/contract.binpb
var files embed.FS

// startTime is how long the import of Dagster may take on a busy machine.
const startTime = 2 * time.Minute

// Kind declares the launchers that are hosted classes.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "python", Help: "Run workers by a RunLauncher class of Dagster's, hosted by a Python that has it.",
		Schema: config.Fields(Config{}),
		Traits: launcher.Traits{OwnCommand: true, WritesStorage: true, StrongRead: true},
		Open:   open,
	}
}

func open(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
	var c Config
	if err := v.Decode(&c); err != nil {
		return nil, err
	}
	interpreter, err := v.Program("python", c.Python)
	if err != nil {
		return nil, err
	}
	home, _ := v.Env("DAGSTER_HOME")
	if home == "" {
		return nil, v.Problem("", "DAGSTER_HOME is not set, by which the class finds its instance")
	}
	if err := Unpack(v.Dir); err != nil {
		return nil, err
	}
	named, err := instanceNames(home)
	if err != nil {
		return nil, err
	}
	const start = "import sys; sys.path[:0] = sys.argv[1:]; from slipway_launcher import host; host.main()"
	return plugin.Open(ctx, plugin.Options{
		Command: append([]string{interpreter, "-I", "-c", start, v.Dir}, c.Path...),
		Env: append(v.Environ(slices.Concat(c.PassEnv, named, config.EnvNames(c.Config.Node)), c.Env),
			"DAGSTER_HOME="+home),
		Plain: true, Timeout: startTime, Dir: v.Dir, Cwd: v.Dir,
	}, v, log)
}

// instanceNames returns the variables that the instance's dagster.yaml names, for its storage.
func instanceNames(home string) ([]string, error) {
	file := filepath.Join(home, "dagster.yaml")
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := config.Parse(file, text)
	return config.EnvNames(doc), err
}

// Unpack writes the Python package slipway_launcher into a folder. It skips files that are already
// there unchanged.
func Unpack(dir string) error {
	return fs.WalkDir(files, ".", func(path string, e fs.DirEntry, err error) error {
		to := filepath.Join(dir, path)
		if err != nil || e.IsDir() {
			return errors.Join(err, os.MkdirAll(to, 0o755))
		}
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		if there, err := os.ReadFile(to); err == nil && bytes.Equal(there, text) {
			return nil
		}
		if err := replace(to, text); err != nil {
			return fmt.Errorf("python: the host cannot be written: %w", err)
		}
		return nil
	})
}

// replace writes a file that other processes may read at the same time.
func replace(to string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(to), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
