package worker

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Machine is the machine that this process runs on.
type Machine struct{}

var _ Files = Machine{}

// Exists implements [Files].
func (Machine) Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// LookPath implements [Files].
func (Machine) LookPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// DagsterVersion implements [Files] by the name of the package's metadata, without starting Python.
func (Machine) DagsterVersion(python string) string {
	if !filepath.IsAbs(python) {
		p, err := exec.LookPath(python)
		if err != nil {
			return ""
		}
		python = p
	}
	prefix := filepath.Dir(filepath.Dir(python)) // PREFIX/bin/python
	found, err := filepath.Glob(filepath.Join(prefix, "lib", "python3*", "site-packages", "dagster-*.dist-info"))
	if err != nil || len(found) != 1 {
		return ""
	}
	name := filepath.Base(found[0])
	return strings.TrimSuffix(strings.TrimPrefix(name, "dagster-"), ".dist-info")
}
