package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/cli/scaffold"
	"github.com/slipway-run/slipway/launcher/python"
)

func (p *program) launchersNewCommand() *cobra.Command {
	l, way, dir := scaffold.Launcher{}, "", ""
	cmd := &cobra.Command{
		Use: "new NAME", Short: "Write the files of a new launcher, ready to edit", Args: oneArg,
		Long: `Writes a working launcher. Its target is spool, a small batch system written in shell, which is also
written. Replace the calls of spool by calls of your target, and keep the conformance kit passing.
docs/writing-a-launcher.md explains it step by step.

` + ways(),
		Example: "  slipway launchers new my-batch --as go\n  slipway launchers new my-batch --as command --dir " +
			"/etc/slipway/my-batch",
		RunE: func(_ *cobra.Command, args []string) error {
			l.Name = args[0]
			if way == "" {
				return fmt.Errorf("--as is required: one of %s",
					strings.Join(slices.Sorted(maps.Keys(scaffold.Ways)), ", "))
			}
			if dir == "" && way == "tree" {
				dir = "."
			} else if dir == "" {
				dir = l.Name
			}
			return p.scaffold(way, dir, l)
		},
	}
	f := cmd.Flags()
	f.StringVar(&way, "as", "", "how to write it, required: command, go, python or tree")
	f.StringVar(&dir, "dir",
		"", "folder to write into (default: NAME; for tree: the current folder, which must have Slipway's sources)")
	f.StringVar(&l.Module, "module", "", "path of the Go module (default: example.com/slipway-NAME)")
	f.StringVar(&l.Replace, "slipway",
		"", "folder with Slipway's sources, for the Go module (default: the sources that this program was built "+
			"from, unless it is a release)")
	return cmd
}

func ways() string {
	var b strings.Builder
	for _, way := range slices.Sorted(maps.Keys(scaffold.Ways)) {
		fmt.Fprintf(&b, "  %-8s  %s\n", way, scaffold.Ways[way])
	}
	return b.String()
}

const modulePath = "github.com/slipway-run/slipway"

// released returns the version of Slipway's module in this program if it is a release, which anyone
// can download. Otherwise it returns the folder of the sources that the program was built from, or
// "" if that is unknown. near are files that may be in that folder.
func released(info *debug.BuildInfo, near ...string) (version, sources string) {
	for _, m := range append(info.Deps, &info.Main) {
		switch {
		case m.Path != modulePath:
		case m.Replace != nil && filepath.IsAbs(m.Replace.Path):
			return "", m.Replace.Path
		case m.Replace == nil && release.MatchString(m.Version):
			return m.Version, ""
		}
	}
	for _, file := range near {
		for dir := filepath.Dir(file); filepath.IsAbs(dir) && dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
			if text, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil &&
				bytes.HasPrefix(text, []byte("module "+modulePath+"\n")) {
				return "", dir
			}
		}
	}
	return "", ""
}

// release matches the versions of tagged commits. It does not match the pseudo-versions that Go
// gives to other commits, nor versions with local changes.
var release = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[a-z]+\.?\d*)?$`)

// scaffold writes the files of a launcher. It never changes an existing file.
func (p *program) scaffold(way, dir string, l scaffold.Launcher) error {
	if way == "tree" {
		if _, err := os.Stat(filepath.Join(dir, "launcher", "all", "all.go")); err != nil {
			return fmt.Errorf(
				"%s has no Slipway sources (launcher/all/all.go): run this command in their folder, or name it with "+
					"--dir", dir)
		}
	}
	if way == "go" && l.Replace == "" {
		_, file, _, _ := runtime.Caller(0) // not a path of this machine if the program was built with -trimpath
		exe, err := os.Executable()
		if info, ok := debug.ReadBuildInfo(); ok && err == nil {
			l.Version, l.Replace = released(info, file, exe)
		}
	}
	if l.Replace != "" {
		abs, err := filepath.Abs(l.Replace)
		if err != nil {
			return err
		}
		l.Replace = abs
	}
	files, err := scaffold.Files(way, l)
	if err != nil {
		return err
	}
	paths := slices.Sorted(maps.Keys(files))
	for _, path := range paths {
		if _, err := os.Lstat(filepath.Join(dir, path)); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s already exists; nothing was written: choose another folder with --dir",
				filepath.Join(dir, path)), err)
		}
	}
	for _, path := range paths {
		mode := fs.FileMode(0o644)
		if files[path].Program {
			mode = 0o755
		}
		to := filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, files[path].Text, mode)); err !=
			nil {
			return err
		}
	}
	if way == "python" {
		if err := python.Unpack(dir); err != nil {
			return err
		}
		paths = append(paths, "slipway_launcher/")
	}
	next := nextSteps(way, dir, l)
	if p.json {
		return p.printJSON(map[string]any{"dir": dir, "files": paths, "next": next})
	}
	_, err = fmt.Fprintf(p.out, "wrote into %s: %s\nnext:\n  %s\n", dir, strings.Join(paths, " "),
		strings.Join(next, "\n  "))
	return err
}

func nextSteps(way, dir string, l scaffold.Launcher) []string {
	const settings = `mkdir -p spooled && echo "folder: $PWD/spooled" >settings.yaml`
	cd := "cd '" + dir + "'"
	switch way {
	case "command":
		return []string{
			cd + " && mkdir -p spooled", "SPOOL=$PWD/spooled slipway --home . launchers test " + l.Name,
			"# then copy the launcher into the slipway.yaml of your instance, and the program spool beside that file",
		}
	case "go":
		steps := []string{cd + " && go mod tidy && go test .",
			"go build ./cmd/slipway-" + l.Name + " && " + settings + " && echo 'program: ./spool' >>settings.yaml",
			"slipway launchers test --config settings.yaml -- ./slipway-" + l.Name}
		if l.Version == "" && l.Replace == "" {
			// This program is not a release, and the folder of its sources is unknown.
			steps = slices.Insert(steps, 0, "git clone https://"+modulePath+" slipway-sources && go mod edit -replace "+modulePath+"=$PWD/slipway-sources '"+filepath.Join(dir, "go.mod")+"'")
		}
		return steps
	case "python":
		return []string{cd + " && python3 -m pip install grpcio protobuf # a Python with Dagster has both", settings,
			"slipway launchers test --no-mtls --config settings.yaml -- python3 " + l.Name + ".py"}
	}
	pkg := l.Package()
	return []string{
		"# add " + pkg + ".Kind() to launcher/all/all.go", "go test ./launcher/all -update",
		"go test ./launcher/" + pkg,
	}
}
