// Package scaffold has the beginnings of launchers, one for each way to write one. Each is whole: its target is a small batch system in shell, which
// is replaced by one's own, step by step, while the kit goes on passing.
package scaffold

import (
	"embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

//go:embed files
var files embed.FS

// Launcher says what is to be written.
type Launcher struct {
	Name    string // as kind in slipway.yaml
	Module  string // of Go; "" for a default
	Version string // of Slipway's module; "" for one that Replace stands for
	Replace string // folder with Slipway's sources, in place of a version; "" for none
}

// Package is the name of its Go package.
func (l Launcher) Package() string { return strings.ReplaceAll(l.Name, "-", "") }

// File is one file, by its path below the folder of the launcher, or in Slipway's own sources for the way tree.
type File struct {
	Text    []byte
	Program bool // it can be executed
}

// Ways are the ways to write a launcher, with their help.
var Ways = map[string]string{
	"command": "commands in slipway.yaml, no code",
	"go":      "a Go module: a plug-in, and a Slipway with the launcher built in",
	"python":  "a plug-in in Python",
	"tree":    "a package in Slipway's own sources",
}

// layout says which file is made of which template.
var layout = map[string]map[string]string{
	"command": {"slipway.yaml": "command/slipway.yaml.tmpl", "spool": "spool"},
	"go": {
		"go.mod": "go/go.mod.tmpl", "{{package}}.go": "go/launcher.go.tmpl", "{{package}}_test.go": "go/launcher_test.go.tmpl",
		"cmd/slipway-{{name}}/main.go": "go/plugin.go.tmpl", "cmd/slipway/main.go": "go/slipway.go.tmpl", "spool": "spool",
	},
	"python": {"{{name}}.py": "python/launcher.py.tmpl", "spool": "spool"},
	"tree": {
		"launcher/{{package}}/{{package}}.go": "go/launcher.go.tmpl", "launcher/{{package}}/{{package}}_test.go": "go/launcher_test.go.tmpl",
		"launcher/{{package}}/spool": "spool", "docs/launchers/{{name}}.md": "tree/docs.md.tmpl",
	},
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// Files are those of a launcher written in one of the ways.
func Files(way string, l Launcher) (map[string]File, error) {
	paths, ok := layout[way]
	if !ok {
		return nil, fmt.Errorf("there is no way %q; there are %s", way, strings.Join(slices.Sorted(maps.Keys(Ways)), ", "))
	}
	if !nameForm.MatchString(l.Name) {
		return nil, fmt.Errorf("%q is no name of a launcher: small letters, digits and single hyphens are, as in my-batch", l.Name)
	}
	pkg := l.Package()
	if l.Version == "" {
		l.Version = "v0.0.0-00010101000000-000000000000"
	}
	if l.Module == "" {
		l.Module = "example.com/slipway-" + l.Name
	}
	if way == "tree" {
		l.Module = "github.com/slipway-run/slipway/launcher/" + pkg
	}
	var class strings.Builder
	for _, part := range strings.Split(l.Name, "-") {
		class.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	fill := strings.NewReplacer("{{name}}", l.Name, "{{package}}", pkg, "{{class}}", class.String(), "{{module}}", l.Module, "{{version}}", l.Version)
	out := map[string]File{}
	for path, from := range paths {
		text, err := files.ReadFile("files/" + from)
		if err != nil {
			return nil, err
		}
		if from != "spool" { // which has braces of its own
			text = []byte(fill.Replace(string(text)))
		}
		if from == "go/go.mod.tmpl" && l.Replace != "" {
			text = fmt.Appendf(text, "\nreplace github.com/slipway-run/slipway => %s\n", l.Replace)
		}
		out[fill.Replace(path)] = File{Text: text, Program: from == "spool"}
	}
	return out, nil
}
