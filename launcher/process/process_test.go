package process_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/agent"
	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/testenv"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/launcher/process"
)

// The test binary is also, as "launch AGENT DIR NAME", a daemon that launches one worker and dies.
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
	times := 3
	if os.Getenv("SLIPWAY_SOAK") != "" {
		times = 20
	}
	for i := range times {
		t.Run(fmt.Sprintf("time %d", i+1), func(t *testing.T) {
			dir := t.TempDir()
			launchertest.Run(t, launchertest.Target{
				Kind: kind(t), Timeout: time.Minute,
				Open: func(t testing.TB) launcher.Launcher { return open(t, dir) },
			})
		})
	}
}

func request(script string) *launcher.Request {
	return &launcher.Request{
		ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Instance: "test", Command: []string{"sh", "-c", script}, At: time.Now(),
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
	if err := exec.Command(os.Args[0], "launch", testenv.Build(t, "slipway-agent"), dir, run).Run(); err == nil || !strings.Contains(err.Error(), "killed") {
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
		return h.Status == launcher.Failed && h.Exit == nil, "want Failed without an exit code, have " + string(h.Status)
	})
}

// A worker starts as a program started by hand does: its files are for whom they were before, and signals mean what they mean.
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

// A supervisor that cannot begin has started nothing: the launch says so, and works when it is repeated.
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
