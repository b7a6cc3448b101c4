package worker

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Machine is the machine that this process runs on. It is safe for use by many goroutines.
type Machine struct {
	mu      sync.Mutex
	servers []CodeServer
	looked  time.Time // when servers were read
}

var _ Files = (*Machine)(nil)

// Exists implements [Files].
func (*Machine) Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// LookPath implements [Files].
func (*Machine) LookPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// Getwd implements [Files].
func (*Machine) Getwd() string {
	dir, err := os.Getwd()
	if err != nil { // the folder was deleted; it has no code
		return "/"
	}
	return dir
}

// DagsterVersion implements [Files]. It reads the name of the package's metadata folder, because
// starting Python takes long.
func (*Machine) DagsterVersion(python string) string {
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

// serversFor is how long the list of code servers is reused, so that a hundred launches at once do
// not each read all of /proc.
const serversFor = time.Second

// CodeServers implements [Files]. It reads /proc; without /proc it finds no server. It finds
// servers of other users only if this process is root's, because their folder is hidden from other
// users.
func (m *Machine) CodeServers() []CodeServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.looked) < serversFor {
		return m.servers
	}
	m.servers, m.looked = nil, time.Now()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		s, ok := parseCodeServer(strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00"))
		if !ok {
			continue
		}
		if s.Dir, err = os.Readlink(filepath.Join(filepath.Dir(file), "cwd")); err == nil {
			m.servers = append(m.servers, s)
		}
	}
	return m.servers
}

// parseCodeServer parses the command line of a process: dagster api grpc or dagster code-server
// start, with the options that name the code to serve (Dagster 1.13:
// dagster_shared.cli.python_pointer_options).
func parseCodeServer(args []string) (s CodeServer, ok bool) {
	i := slices.Index(args, "grpc")
	if i < 1 || args[i-1] != "api" {
		if i = slices.Index(args, "code-server"); i < 1 {
			return s, false
		}
	}
	into := map[string]*string{
		"--location-name": &s.Location, "--instance-ref": &s.Ref,
		"-f": &s.File, "--python-file": &s.File,
		"-m": &s.Module, "--module-name": &s.Module, "--package-name": &s.Module,
		"--autoload-defs-module-name": &s.Module,
		"-d":                          &s.WorkingDirectory, "--working-directory": &s.WorkingDirectory,
	}
	for rest := args[i+1:]; len(rest) > 0; rest = rest[1:] {
		name, value, joined := strings.Cut(rest[0], "=")
		field := into[name]
		if field != nil && !joined && len(rest) > 1 {
			rest = rest[1:]
			value = rest[0]
		}
		if field != nil {
			*field = value
		}
	}
	return s, true
}
