package config

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// Program returns the path of the program that a setting names. It looks on PATH; a relative path
// with a slash begins at the folder of the settings' file. A program that users other than root and
// this user may change is refused.
func (v Values) Program(setting, name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) && !filepath.IsAbs(name) {
		dir, err := filepath.Abs(filepath.Dir(v.File))
		if err != nil {
			return "", v.Problem(setting, "%v", err)
		}
		name = filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		err = fmt.Errorf("%w: install it, or give its path", err)
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		err = onlyOurs(path)
	}
	if err != nil {
		return "", v.Problem(setting, "%v", err)
	}
	return path, nil
}

// onlyOurs returns an error if other users can change a program.
func onlyOurs(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf(
			"%s belongs to user %d, who can change it: make root or the user that runs Slipway its owner", path, s.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be changed by others (%v): chmod go-w %[1]s", path, info.Mode().Perm())
	}
	return nil
}

// everyProgram lists the variables that every program gets that Slipway starts as a launcher.
var everyProgram = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR",
	"SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
}

// Environ returns the environment of a program: the variables that every program needs, the
// variables named in pass, and the variables set in own. A "*" in pass means all variables of this
// process.
func (v Values) Environ(pass []string, own map[string]Text) []string {
	if v.Env == nil {
		v.Env = os.LookupEnv
	}
	var env []string
	if slices.Contains(pass, "*") {
		env = os.Environ()
	}
	for _, name := range slices.Concat(everyProgram, pass) {
		if value, ok := v.Env(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for name, text := range own {
		env = append(env, name+"="+text.Value)
	}
	return env
}

// EnvNames returns the variables that a section names, by {env: NAME} or in Dagster's lists
// env_vars.
func EnvNames(n *yaml.Node) []string {
	var names []string
	for _, p := range pairs(n) {
		switch value := resolve(p.value); {
		case p.key.Value == "env" && value.Kind == yaml.ScalarNode:
			names = append(names, value.Value)
		case p.key.Value == "env_vars" && value.Kind == yaml.SequenceNode:
			for _, item := range value.Content {
				if item.Kind == yaml.ScalarNode && !strings.Contains(item.Value, "=") {
					names = append(names, item.Value)
				}
			}
		}
		names = append(names, EnvNames(p.value)...)
	}
	if n = resolve(n); n != nil && n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			names = append(names, EnvNames(item)...)
		}
	}
	return names
}
