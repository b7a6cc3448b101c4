//go:build real

// Package e2e_test runs real Dagster beside the built program, and kills the program at every step.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/home"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }

// world is one instance: a DAGSTER_HOME and the programs that run on it.
type world struct {
	t        *testing.T
	home     string
	location string // of the storage: the home, or a Postgres address
	store    storage.Store
	env      []string // environment of the programs, in addition to that of this process
	bin      string   // folder of Dagster's programs; "": the one in .venv
}

const parked = home.Parked

// newWorld makes a home with a parked dagster.yaml.
func newWorld(t *testing.T, location, slipwayYAML string) *world {
	t.Helper()
	w := &world{t: t, home: t.TempDir(), location: location}
	testenv.WorkersGone(t, w.home)
	if location == "" {
		w.location = w.home
	}
	if err := home.Write(w.home, w.location, parked, slipwayYAML+home.LocalOnly); err != nil {
		t.Fatal(err)
	}
	return w
}

// storageYAML returns the storage section of dagster.yaml, or "" for Dagster's default.
func (w *world) storageYAML() string { return home.Storage(w.home, w.location) }

func (w *world) read(name string) string {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.home, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.home, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// open opens the storage as soon as it exists.
func (w *world) open() storage.Store {
	w.t.Helper()
	if w.store != nil {
		return w.store
	}
	testenv.Eventually(w.t, time.Minute, func() (bool, string) {
		var err error
		w.store, err = home.Open(w.t.Context(), w.location)
		return err == nil, fmt.Sprint(err)
	})
	w.t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return w.store
}

func (w *world) run(id string) storage.Run {
	w.t.Helper()
	runs, err := w.open().Runs(w.t.Context(), storage.Filter{IDs: []string{id}})
	if err != nil || len(runs) != 1 {
		w.t.Fatalf("Runs(%s) = %v, %v", id, runs, err)
	}
	return runs[0]
}

func (w *world) events(id string, types ...dagster.EventType) []dagster.Event {
	w.t.Helper()
	events, err := w.open().Events(w.t.Context(), id, types...)
	if err != nil {
		w.t.Fatal(err)
	}
	return events
}

// count returns how many events of a type a run has.
func (w *world) count(id string, typ dagster.EventType) int {
	w.t.Helper()
	return len(w.events(id, typ))
}

// webserver starts a real dagster-webserver.
func (w *world) webserver(locations ...string) *webserver.Server {
	w.t.Helper()
	return w.serves(webserver.Options{Locations: w.files(locations...)})
}

// files returns the paths of files of this module.
func (w *world) files(names ...string) (paths []string) {
	w.t.Helper()
	root := testenv.Root(w.t)
	for _, name := range names {
		paths = append(paths, filepath.Join(root, name))
	}
	return paths
}

// serves starts a real dagster-webserver with some code locations.
func (w *world) serves(o webserver.Options) *webserver.Server {
	w.t.Helper()
	o.Bin, o.Home, o.Env = w.dagster(), w.home, w.env
	s, err := webserver.Start(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Stop)
	return s
}

// dagster returns the folder of Dagster's programs.
func (w *world) dagster() string {
	w.t.Helper()
	if w.bin == "" {
		w.bin = testenv.DagsterBin(w.t)
	}
	return w.bin
}

// stockDaemon starts a real dagster-daemon with the workspace of the webserver.
func (w *world) stockDaemon() *process {
	w.t.Helper()
	return w.start("dagster-daemon", nil, filepath.Join(w.dagster(), "dagster-daemon"), "run",
		"-w", filepath.Join(w.home, "workspace.yaml"))
}

// command runs a command of slipway on the instance. It returns what the command printed.
func (w *world) command(args ...string) (string, error) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), testenv.Build(w.t, "slipway"),
		append([]string{"--home", w.home}, args...)...)
	cmd.Env = append(os.Environ(), w.env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// codeServer starts a code server for test/fates/NAME.py, as a deployment with separate code
// servers does. It returns its address.
func (w *world) codeServer(name string) (string, *process) {
	w.t.Helper()
	address := testenv.FreeAddress(w.t)
	return address, w.codeServerAt(address, name, name)
}

func (w *world) codeServerAt(address, location, name string) *process {
	w.t.Helper()
	return w.codeServerOf(address, location, filepath.Join(testenv.Root(w.t), "test/fates", name+".py"))
}

// codeServerOf starts a code server for a file. The path of the file may be relative to the home.
func (w *world) codeServerOf(address, location, file string) *process {
	w.t.Helper()
	host, port, _ := strings.Cut(address, ":")
	p := w.start("code-server-"+location, nil, filepath.Join(testenv.DagsterBin(w.t), "dagster"), "api", "grpc",
		"--host", host, "--port", port,
		"--python-file", file, "--location-name", location)
	testenv.Eventually(w.t, time.Minute, func() (bool, string) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return false, p.output()
		}
		return c.Close() == nil, ""
	})
	return p
}

// process is a program that a test started.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  string // file
	done chan struct{}
}

func (w *world) start(name string, env []string, command ...string) *process {
	w.t.Helper()
	p := &process{t: w.t, done: make(chan struct{})}
	log, err := os.CreateTemp(w.home, name+"-*.log")
	if err != nil {
		w.t.Fatal(err)
	}
	p.log = log.Name()
	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = w.home, log, log
	p.cmd.Env = append(append(append(os.Environ(), "DAGSTER_HOME="+w.home, "DAGSTER_DISABLE_TELEMETRY=1",
		"GORACE=atexit_sleep_ms=0"), w.env...), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(p.cmd.Start(), log.Close()); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }() // kill waits for it
	w.t.Cleanup(p.kill)
	return p
}

// slipway starts the daemon.
func (w *world) slipway(env ...string) *process {
	w.t.Helper()
	return w.start("slipway", env, testenv.Build(w.t, "slipway"), "daemon", "--log-level", "debug")
}

// armed starts a daemon that is killed at a failpoint. With "stop " before the name of the
// failpoint it is stopped instead.
func (w *world) armed(point failpoint.Point) *process {
	w.t.Helper()
	return w.withFailpoints(failpoint.Env + "=" + string(point))
}

// traced starts a daemon that appends its steps to a file.
func (w *world) traced(file string) *process {
	w.t.Helper()
	return w.withFailpoints(failpoint.TraceEnv + "=" + file)
}

func (w *world) withFailpoints(env string) *process {
	w.t.Helper()
	return w.start("slipway", []string{env}, testenv.BuildFailpoints(w.t, "slipway"), "daemon", "--log-level", "debug")
}

func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// killOne kills only this process. The processes that it started continue.
func (p *process) killOne() {
	_ = syscall.Kill(p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// ends waits until the process has ended by itself. If it does not, the test fails with the text
// otherwise.
func (p *process) ends(otherwise string) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.t.Fatalf("%s:\n%s", otherwise, p.output())
	}
}

// stop ends the process as a user would, and fails the test if the exit code is not 0.
func (p *process) stop() {
	p.t.Helper()
	_ = syscall.Kill(p.cmd.Process.Pid, syscall.SIGTERM)
	p.ends("it did not stop")
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("exit code %d after SIGTERM:\n%s", code, p.output())
	}
}

func (p *process) output() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// says waits until the process has written a text.
func (p *process) says(text string) {
	p.t.Helper()
	testenv.Eventually(p.t, time.Minute, func() (bool, string) {
		return strings.Contains(p.output(), text), fmt.Sprintf("%q was not written:\n%s", text, p.output())
	})
}

// killed waits until the process has died of SIGKILL.
func (p *process) killed() {
	p.t.Helper()
	p.ends("the failpoint was not passed")
	if s, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		p.t.Fatalf("it ended as %v, not by its failpoint:\n%s", p.cmd.ProcessState, p.output())
	}
}

// ended waits until all runs have ended.
func (w *world) ended(within time.Duration, p *process, ids ...string) {
	w.t.Helper()
	defer func() {
		if w.t.Failed() {
			w.t.Logf("the daemon's log:\n%s", p.output())
		}
	}()
	testenv.Eventually(w.t, within, func() (bool, string) {
		runs, err := w.open().Runs(context.Background(), storage.Filter{IDs: ids})
		if err != nil {
			return false, err.Error()
		}
		var open []string
		for _, r := range runs {
			if !r.Status.Finished() {
				open = append(open, fmt.Sprintf("%s %s (%s)", r.ID, r.Job, r.Status))
			}
		}
		return len(open) == 0 && len(runs) == len(ids), strings.Join(open, "\n")
	})
}

// terminate presses Terminate in Dagster's UI for a run of ours. Dagster reads the run again after
// it has written CANCELING, and says that it cannot terminate one that has ended meanwhile, which
// a run may have: the daemon stops its worker at once.
func (w *world) terminate(server *webserver.Server, run string) {
	w.t.Helper()
	ok, err := server.Terminate(w.t.Context(), run)
	if r := w.run(run); (err != nil || !ok) && r.Status != dagster.Canceled {
		w.t.Errorf("Terminate of run %s, which is %s: %v, %v", run, r.Status, ok, err)
	}
}
