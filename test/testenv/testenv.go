// Package testenv tells tests which real targets this machine has, such as a Postgres server or a
// Python with Dagster. If one is missing, the test is skipped with the reason. If SLIPWAY_REQUIRE
// names it, the test fails instead. The value is a comma-separated list such as "dagster,postgres".
package testenv

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// RequireEnv names the environment variable with the list of targets that tests may not skip.
const RequireEnv = "SLIPWAY_REQUIRE"

// Missing skips the test because a target is missing, or fails it if the target is required.
func Missing(t testing.TB, target, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv(RequireEnv), ","), target) {
		t.Fatalf("%s is required (%s) and missing: %s", target, RequireEnv, reason)
	}
	t.Skipf("no %s: %s", target, reason)
}

// Crowd returns how many workers the kit starts at once: 100 in the long form, 10 in the short
// form. All launchers but one run the short form.
func Crowd() int {
	if os.Getenv("SLIPWAY_SOAK") != "" {
		return 100
	}
	return 10
}

// Root returns the folder of the module.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("go.mod is in no folder above this test")
	return ""
}

// Golden returns the folders of data that real Dagster wrote: the folder of this module and the one
// that SLIPWAY_GOLDEN names, if any.
func Golden(t testing.TB) []string {
	t.Helper()
	dirs := []string{filepath.Join(Root(t), "test/golden/1.13.27")}
	if extra := os.Getenv("SLIPWAY_GOLDEN"); extra != "" {
		dirs = append(dirs, extra)
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); err != nil {
			t.Fatal(err)
		}
	}
	return dirs
}

// GoldenLaunches reads recordings of what real launchers of Dagster did. It reads the file name
// below launchers/ in each golden folder that has it.
func GoldenLaunches[C any](t testing.TB, name string) []C {
	t.Helper()
	var all []C
	for _, dir := range Golden(t) {
		text, err := os.ReadFile(filepath.Join(dir, "launchers", name))
		if errors.Is(err, os.ErrNotExist) && len(all) > 0 {
			continue
		}
		var file struct {
			Cases []C `json:"cases"`
		}
		if err == nil {
			err = json.Unmarshal(text, &file)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, file.Cases...)
	}
	return all
}

// BinEnv names the environment variable with a folder of built programs, for a machine without Go.
// [Build] and [BuildFailpoints] then build nothing: the first returns NAME in that folder, the
// second failpoints/NAME.
const BinEnv = "SLIPWAY_TEST_BIN"

var built struct {
	sync.Mutex
	dir  string
	bins map[string]string
}

// Build builds a program of this module, cmd/NAME, once per test process, and returns its path. It
// builds the program that users get, without the race detector.
func Build(t testing.TB, name string) string {
	t.Helper()
	return build(t, name, "")
}

// BuildFailpoints is Build for a test that arms a failpoint or reads a trace.
func BuildFailpoints(t testing.TB, name string) string {
	t.Helper()
	return build(t, name, "failpoints")
}

func build(t testing.TB, name, tags string) string {
	t.Helper()
	file := filepath.Join(tags, name)
	if dir := os.Getenv(BinEnv); dir != "" {
		return filepath.Join(dir, file)
	}
	built.Lock()
	defer built.Unlock()
	if bin := built.bins[file]; bin != "" {
		return bin
	}
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "slipway-bin-")
		if err != nil {
			t.Fatal(err)
		}
		built.dir, built.bins = dir, map[string]string{}
	}
	bin := filepath.Join(built.dir, file)
	// The same flags as in hack/build, so that both share compiled packages.
	cmd := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", bin,
		"github.com/slipway-run/slipway/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	built.bins[file] = bin
	return bin
}

// Cleanup removes the programs that [Build] and [BuildFailpoints] made. A TestMain calls it before
// it exits.
func Cleanup() { _ = os.RemoveAll(built.dir) }

// slack multiplies the deadlines of tests. A busy or shared machine is slow, and that must not fail
// a test.
const slack = 3

// Eventually waits until condition returns true. If that takes longer than [slack] times within, it
// fails the test with the last status that condition returned.
func Eventually(t testing.TB, within time.Duration, condition func() (ok bool, status string)) {
	t.Helper()
	deadline := time.Now().Add(slack * within)
	for {
		ok, status := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", slack*within, status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// WorkersGone waits, at the end of the test, until no worker or supervisor of the process launcher
// is alive below home, a DAGSTER_HOME. Until then they may still write into that folder.
func WorkersGone(t testing.TB, home string) {
	t.Helper()
	t.Cleanup(func() {
		Eventually(t, time.Minute, func() (bool, string) {
			locks, err := filepath.Glob(filepath.Join(home, "slipway", "*", "*", "workers", "*", "lock"))
			for _, file := range locks {
				f, err := os.Open(file)
				if err != nil {
					return false, err.Error()
				}
				err = errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), f.Close())
				if err != nil {
					return false, file + " is held"
				}
			}
			return err == nil, "workers cannot be listed"
		})
	})
}

// FreeAddress returns an address of this machine on which no program listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// Server runs a program until the test ends. It returns as soon as the program listens on address.
func Server(t testing.TB, address, program string, args ...string) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second // its child processes may outlive it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }() // killed below
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	Eventually(t, 30*time.Second, func() (bool, string) {
		select {
		case <-done:
			t.Fatalf("%s ended: %s", program, out.String())
		default:
		}
		c, err := net.Dial("tcp", address)
		if err != nil {
			return false, err.Error()
		}
		return true, errText(c.Close())
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
