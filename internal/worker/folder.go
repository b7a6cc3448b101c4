package worker

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// A CodeServer is a process of this machine that serves a code location.
type CodeServer struct {
	Dir      string // folder that it runs in
	Location string // name of its location; "" if its command line has none
	Ref      string // InstanceRef of its instance; "" unless the server is managed
	// Its code, as on its command line: a Python file or a module, and the folder for imports, ""
	// for Dir.
	File, Module, WorkingDirectory string
}

// serves reports whether s serves the code of a run. A managed server is recognized by its location
// and the storage of its instance, any other server by the code on its command line.
func (s CodeServer) serves(r dagster.Run, storage string) bool {
	if s.Ref != "" {
		return s.Location == r.Remote.Location && storageOf(s.Ref) == storage
	}
	code, wd := r.Code, s.WorkingDirectory
	if wd == "" {
		wd = s.Dir
	}
	return !r.Remote.Managed && s.File == code.PythonFile && s.Module == code.Module && wd == code.WorkingDirectory
}

// storageOf returns the storage section of an InstanceRef as text, or "" if it has none.
func storageOf(ref string) string {
	parsed, err := dagster.ParseInstanceRef(ref)
	if err != nil {
		return ""
	}
	part, _ := parsed.Part("storage")
	return part.ConfigYAML
}

// dir returns the worker's working directory. Stock Dagster executes runs in the folder of their
// code server: it opens a relative python_file there, imports from a relative working_directory
// there, and reads .env there. So the worker gets the same folder: the folder that slipway.yaml
// names, else the folder of the code server if this user can see its process. Otherwise dir returns
// the first of these folders that contains the code: the location's working directory, which is the
// code server's folder unless the user chose another one; the daemon's own folder; the parent of
// the working directory.
func (b *Builder) dir(r dagster.Run, t Target) (string, error) {
	own, wd := b.Files.Getwd(), r.Code.WorkingDirectory
	var tried []string
	try := func(dir string) bool {
		if dir == "" {
			return false
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(own, dir)
		}
		if slices.Contains(tried, dir) {
			return false
		}
		tried = append(tried, dir)
		if !b.Files.Exists(dir) {
			return false
		}
		for _, path := range []string{r.Code.PythonFile, wd} {
			if path != "" && !filepath.IsAbs(path) && !b.Files.Exists(filepath.Join(dir, path)) {
				return false
			}
		}
		return true
	}
	found := func() string { return tried[len(tried)-1] }
	if try(setting(t.Cwd, r.Remote.Location)) {
		return found(), nil
	}
	storage := storageOf(string(b.Ref))
	for _, s := range b.Files.CodeServers() {
		if s.serves(r, storage) && try(s.Dir) {
			return found(), nil
		}
	}
	if filepath.IsAbs(wd) && try(wd) || try(own) || filepath.IsAbs(wd) && try(filepath.Dir(wd)) {
		return found(), nil
	}
	code := r.Code.PythonFile
	if code == "" || filepath.IsAbs(code) {
		code = "the working directory " + wd
	}
	return "", fmt.Errorf("%w: code location %s: %s is in none of %s; "+
		"set launchers.%s.cwd.%s in slipway.yaml to the folder that the code server was started in",
		launcher.ErrInvalid, r.Remote.Location, code, strings.Join(tried, ", "), t.Name, r.Remote.Location)
}
