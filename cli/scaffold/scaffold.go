// Package scaffold holds templates of launchers, one for each way to write a launcher. Each
// template is complete: its target is a small batch system in shell. The user replaces that target
// step by step, while the conformance kit keeps passing.
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

// Launcher describes the launcher to write.
type Launcher struct {
	Name    string // its kind in slipway.yaml
	Module  string // path of the Go module; "" for the default
	Version string // version of Slipway's module; "" if Replace is used instead
	Replace string // folder with Slipway's sources, used instead of a version; "" for none
}

// Package returns the name of the launcher's Go package.
func (l Launcher) Package() string { return strings.ReplaceAll(l.Name, "-", "") }

// File is one file. Its path is relative to the folder of the launcher or, for the way tree, to
// Slipway's own sources.
type File struct {
	Text    []byte
	Program bool // the file is executable
}

// Ways holds the ways to write a launcher, with their help texts.
var Ways = map[string]string{
	"command": "commands in slipway.yaml, no code",
	"go":      "a Go module: a plug-in, and a Slipway with the launcher built in",
	"python":  "a plug-in in Python",
	"tree":    "a package in Slipway's own sources",
}

// layout maps, for each way, each file to its template.
var layout = map[string]map[string]string{
	"command": {"slipway.yaml": "command/slipway.yaml.tmpl", "spool": "spool"},
	"go": {
		"go.mod": "go/go.mod.tmpl", "{{package}}.go": "go/launcher.go.tmpl",
		"{{package}}_test.go":          "go/launcher_test.go.tmpl",
		"cmd/slipway-{{name}}/main.go": "go/plugin.go.tmpl", "cmd/slipway/main.go": "go/slipway.go.tmpl",
		"spool": "spool",
	},
	"python": {"{{name}}.py": "python/launcher.py.tmpl", "spool": "spool"},
	"tree": {
		"launcher/{{package}}/{{package}}.go":      "go/launcher.go.tmpl",
		"launcher/{{package}}/{{package}}_test.go": "go/launcher_test.go.tmpl",
		"launcher/{{package}}/spool":               "spool", "docs/launchers/{{name}}.md": "tree/docs.md.tmpl",
	},
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// Files returns the files of a launcher that is written in the given way.
func Files(way string, l Launcher) (map[string]File, error) {
	paths, ok := layout[way]
	if !ok {
		return nil, fmt.Errorf("--as %s: unknown; use one of %s", way,
			strings.Join(slices.Sorted(maps.Keys(Ways)), ", "))
	}
	if !nameForm.MatchString(l.Name) {
		return nil,
			fmt.Errorf("%q is not a valid name of a launcher: use small letters, digits and single hyphens (for "+
				"example: my-batch)", l.Name)
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
	fill := strings.NewReplacer("{{name}}", l.Name, "{{package}}", pkg, "{{class}}", class.String(),
		"{{module}}", l.Module, "{{version}}", l.Version)
	out := map[string]File{}
	for path, from := range paths {
		text, err := files.ReadFile("files/" + from)
		if err != nil {
			return nil, err
		}
		if from != "spool" { // spool contains braces that are not template actions
			text = []byte(fill.Replace(string(text)))
		}
		if from == "go/go.mod.tmpl" && l.Replace != "" {
			text = fmt.Appendf(text, "\nreplace github.com/slipway-run/slipway => %s\n", l.Replace)
		}
		out[fill.Replace(path)] = File{Text: text, Program: from == "spool"}
	}
	return out, nil
}
