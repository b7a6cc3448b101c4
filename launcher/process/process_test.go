package process_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/agent"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/launcher/process"
	"github.com/slipway-run/slipway/test/testenv"
)

// The test binary also serves, as "launch AGENT DIR NAME", as a daemon that launches one worker and
// dies.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "launch" {
		launchAndDie(os.Args[2], os.Args[3], os.Args[4])
	}
	code := m.Run()
	testenv.Cleanup()
	os.Exit(code)
}

func kind(t testing.TB) *launcher.Kind { return process.Kind(testenv.Build(t, "slipway-agent")) }

func open(t testing.TB, dir string) launcher.Launcher {
	t.Helper()
	l, err := kind(t).Open(context.Background(), config.Values{Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestContract(t *testing.T) {
	times := 1
	if os.Getenv("SLIPWAY_SOAK") != "" {
		times = 20
	}
	for i := range times {
		t.Run(fmt.Sprintf("time %d", i+1), func(t *testing.T) {
			dir := t.TempDir()
			launchertest.Run(t, launchertest.Target{
				Kind: kind(t), Timeout: time.Minute,
				Open: func() (launcher.Launcher, error) {
					return kind(t).Open(context.Background(), config.Values{Dir: dir}, slog.New(slog.DiscardHandler))
				},
			})
		})
	}
}

func request(script string) *launcher.Request {
	return &launcher.Request{
		ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Instance: "test", Command: []string{"sh", "-c", script},
		At: time.Now(),
	}
}

func health(t *testing.T, l launcher.Launcher, h launcher.Handle) launcher.Health {
	t.Helper()
	got, err := l.Health(context.Background(), h)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func launchAndDie(agent, dir, run string) {
	l, err := process.Kind(agent).Open(context.Background(), config.Values{Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	req := request("echo started; while [ ! -e " + dir + "/go ]; do sleep 0.02; done; exit 6")
	req.ID.Run = run
	if _, err := l.Launch(context.Background(), req); err != nil {
		panic(err)
	}
	p, err := os.FindProcess(os.Getpid())
	if err != nil {
		panic(err)
	}
	_ = p.Kill()
	select {}
}

func TestWorkerOutlivesItsDaemon(t *testing.T) {
	dir, run := t.TempDir(), uuid.NewString()
	if err := exec.Command(os.Args[0], "launch", testenv.Build(t, "slipway-agent"), dir, run).Run(); err == nil ||
		!strings.Contains(err.Error(), "killed") {
		t.Fatalf("the daemon was to die: %v", err)
	}
	l := open(t, dir)
	h := launcher.Handle(launcher.ID{Run: run, Attempt: 1}.String())
	if got := health(t, l, h); !got.Status.Alive() {
		t.Fatalf("Health = %+v, want a worker that outlives its daemon", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		got := health(t, l, h)
		return got.Exit != nil && *got.Exit == 6, "exit code 6 is not on record: " + got.Message
	})
}

func TestSupervisorKilledWorkerIsStillSeen(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	req := request("exec sleep 1000")
	got, err := l.Launch(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	p := agent.PathsOf(dir, string(got.Handle))
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return health(t, l, got.Handle).Status == launcher.Running, "not running"
	})
	var b agent.Begun
	if err := agent.ReadJSON(p.Begun, &b); err != nil {
		t.Fatal(err)
	}
	supervisor, err := os.FindProcess(b.Agent.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := supervisor.Kill(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) { return !b.Agent.Alive(), "the supervisor lives" })
	if h := health(t, l, got.Handle); h.Status != launcher.Running {
		t.Fatalf("Health without its supervisor = %+v, want Running", h)
	}
	if ok, err := l.Terminate(context.Background(), got.Handle, 0); err != nil || !ok {
		t.Fatalf("Terminate without the supervisor = %v, %v", ok, err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		h := health(t, l, got.Handle)
		return h.Status == launcher.Failed && h.Exit == nil,
			"want Failed without an exit code, have " + string(h.Status)
	})
}

// Supervisor and worker are killed, but a step of the worker lives on and holds the worker's lock.
// The worker counts as running until the step is stopped.
func TestStepThatOutlivesItsWorkerIsStopped(t *testing.T) {
	for name, c := range map[string]struct {
		grace   time.Duration
		unknown bool // the supervisor was killed before it wrote down the worker's process
	}{
		"with grace": {time.Second, false}, "at once": {0, false}, "of an unknown worker": {time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.unknown && runtime.GOOS != "linux" {
				t.Skip("this system does not tell the groups of a session")
			}
			dir := t.TempDir()
			l := open(t, dir)
			got, err := l.Launch(context.Background(), request("sleep 1000 & echo begun; wait"))
			if err != nil {
				t.Fatal(err)
			}
			p := agent.PathsOf(dir, string(got.Handle))
			var b agent.Begun
			var w agent.Worker
			testenv.Eventually(t, time.Minute, func() (bool, string) {
				log, _ := os.ReadFile(p.Log) // there may be none yet
				err := errors.Join(agent.ReadJSON(p.Begun, &b), agent.ReadJSON(p.Worker, &w))
				return err == nil && len(log) > 0, fmt.Sprintf("no step: %s, %v", log, err)
			})
			for _, p := range []agent.Process{b.Agent, w.Process} {
				p.Signal(syscall.SIGKILL)
				testenv.Eventually(t, time.Minute, func() (bool, string) { return !p.Alive(), "it lives" })
			}
			want := launcher.Running
			if c.unknown {
				want = launcher.Starting
				if err := os.Remove(p.Worker); err != nil {
					t.Fatal(err)
				}
			}
			if h := health(t, l, got.Handle); h.Status != want {
				t.Fatalf("Health while a step lives = %+v, want %s", h, want)
			}
			if was, err := l.Terminate(context.Background(), got.Handle, c.grace); err != nil || !was {
				t.Fatalf("Terminate(%v) while a step lives = %v, %v", c.grace, was, err)
			}
			testenv.Eventually(t, time.Minute, func() (bool, string) {
				h := health(t, l, got.Handle)
				return h.Status == launcher.Failed, "want Failed, have " + string(h.Status)
			})
		})
	}
}

// A worker starts like a program started by hand: its files get the usual permissions, and its
// signals their usual handling.
func TestWorkerInheritsNothingOfItsSupervisor(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("no /proc")
	}
	dir := t.TempDir()
	l := open(t, dir)
	const script = "umask; grep -E '^Sig(Ign|Blk)' /proc/self/status"
	want, err := exec.Command("sh", "-c", script).Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Launch(context.Background(), request(script))
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return health(t, l, got.Handle).Status.Ended(), "not ended"
	})
	log, err := os.ReadFile(agent.PathsOf(dir, string(got.Handle)).Log)
	if err != nil {
		t.Fatal(err)
	}
	if string(log) != string(want) {
		t.Errorf("the worker has:\n%s\nwant:\n%s", log, want)
	}
}

// A supervisor that cannot begin has started nothing: Launch returns that error, and works when it
// is repeated.
func TestSupervisorThatCannotBegin(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	state := filepath.Join(dir, "state")
	if err := os.Rename(state, state+".away"); err != nil {
		t.Fatal(err)
	}
	req := request("exit 5")
	if got, err := l.Launch(context.Background(), req); !errors.Is(err, launcher.ErrTransient) {
		t.Fatalf("Launch = %+v, %v, want ErrTransient", got, err)
	}
	if err := os.Rename(state+".away", state); err != nil {
		t.Fatal(err)
	}
	got, err := l.Launch(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		h := health(t, l, got.Handle)
		return h.Exit != nil && *h.Exit == 5, "exit code 5 is not on record: " + h.Message
	})
}

func TestRecordsShowNoArguments(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	req := request("sleep 1000")
	req.Env = []launcher.Env{{Name: "TOKEN", Value: "hunter2", Secret: true}}
	got, err := l.Launch(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := l.Terminate(context.Background(), got.Handle, 0); err != nil {
			t.Error(err)
		}
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			return health(t, l, got.Handle).Status.Ended(), "not ended"
		})
	}()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return health(t, l, got.Handle).Status == launcher.Running, "not running"
	})
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		_, err := os.Stat(agent.PathsOf(dir, string(got.Handle)).Spec)
		return os.IsNotExist(err), "spec.json is still there"
	})
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if path != dir && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, want nothing for others", path, info.Mode())
		}
		if d.IsDir() {
			return nil
		}
		text, err := os.ReadFile(path)
		if strings.Contains(string(text), "hunter2") {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStepProcessesEndWithTheirWorker(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	pidFile := filepath.Join(dir, "child")
	got, err := l.Launch(context.Background(), request("sleep 1000 & echo $! >"+pidFile+"; kill -9 $$"))
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return health(t, l, got.Handle).Status.Ended(), "not ended"
	})
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		err := exec.Command("sh", "-c", "kill -0 "+string(text)).Run()
		return err != nil, "the child lives: " + string(text)
	})
}

// openWith opens a launcher with settings given as YAML.
func openWith(t *testing.T, yaml string) (launcher.Launcher, error) {
	t.Helper()
	n, err := config.Parse("slipway.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	env := func(name string) (string, bool) { return map[string]string{"PW": "hunter2"}[name], true }
	return kind(t).Open(t.Context(), config.Values{File: "slipway.yaml", Path: "launchers.local.config", Node: n,
		Dir: t.TempDir(), Env: env}, slog.New(slog.DiscardHandler))
}

func TestEnvironmentFromFilesAndSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("A=file\nB='from file'\nexport C=3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := openWith(t, "env_files: ["+file+"]\nenv: {A: setting, DB: '${PW}'}\nnice: 5\n")
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Launch(t.Context(),
		request(`test "$A $B $C $DB" = "setting from file 3 hunter2" && test $(nice) = 5`))
	if err != nil {
		t.Fatal(err)
	}
	ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Status == launcher.Succeeded })
	preview, err := l.(launcher.Previewer).Preview(t.Context(), request("true"))
	if err != nil || strings.Contains(string(preview), "hunter2") || strings.Contains(string(preview), "from file") ||
		!strings.Contains(string(preview), `"A":"setting"`) {
		t.Errorf("Preview = %s, %v", preview, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Launch(t.Context(), request("true")); !errors.Is(err, launcher.ErrDenied) ||
		!strings.Contains(err.Error(), file) {
		t.Errorf("Launch without its file = %v, want ErrDenied naming it", err)
	}
}

// ended waits for a worker's end.
func ended(t *testing.T, l launcher.Launcher, h launcher.Handle, ok func(launcher.Health) bool) launcher.Health {
	t.Helper()
	var got launcher.Health
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		got = health(t, l, h)
		return got.Status.Ended(), fmt.Sprintf("%+v", got)
	})
	if !ok(got) {
		t.Errorf("Health = %+v", got)
	}
	return got
}

func TestMaxWorkers(t *testing.T) {
	l, err := openWith(t, "max_workers: 2\n")
	if err != nil {
		t.Fatal(err)
	}
	var first launcher.Handle
	full := 0
	for i := range 5 {
		got, err := l.Launch(t.Context(), request("while :; do sleep 0.05; done"))
		switch {
		case errors.Is(err, launcher.ErrCapacity):
			full++
		case err != nil:
			t.Fatal(err)
		case i == 0:
			first = got.Handle
		}
		if err == nil {
			t.Cleanup(func() { // before the folder is removed: an agent still writes there after its worker was killed
				_, _ = l.Terminate(context.Background(), got.Handle, 0) // one has ended
				ended(t, l, got.Handle, func(launcher.Health) bool { return true })
			})
		}
	}
	if n, known, err := l.(launcher.Capacity).Free(t.Context(), launcher.Resources{}); full != 3 || n != 0 || !known ||
		err != nil {
		t.Errorf("%d of 5 launches had no room, Free = %d, %v, %v; want 3 and 0", full, n, known, err)
	}
	if _, err := l.Terminate(t.Context(), first, 0); err != nil {
		t.Fatal(err)
	}
	ended(t, l, first, func(launcher.Health) bool { return true })
	got, err := l.Launch(t.Context(), request("true"))
	if err != nil {
		t.Fatalf("Launch after one has ended: %v", err)
	}
	ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Status == launcher.Succeeded })
}

func TestSettingsThatCannotWork(t *testing.T) {
	for yaml, want := range map[string]string{
		"memory: 1G":            "launchers.local.config.cgroup: required with cpu and memory",
		"cpu: many\ncgroup: x":  `launchers.local.config.cpu: "many" is not an amount`,
		"memory: 1X\ncgroup: x": `launchers.local.config.memory: "1X" is not an amount`,
		"nice: 20":              "launchers.local.config.nice: 20 is not between",
		"env_files: [relative]": `launchers.local.config.env_files: "relative" is not an absolute path`,
		"dir: relative":         `launchers.local.config.dir: "relative" is not an absolute path`,
		"max_worker: 3":         "did you mean max_workers?",
	} {
		if _, err := openWith(t, yaml); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: Open = %v, want %q in it", yaml, err, want)
		}
	}
}
