package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/test/testenv"
)

// A step notices another step of its run that is alive, even if others beside it were killed. It
// does not notice one that has ended.
func TestStepSeesTheOneBesideIt(t *testing.T) {
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("no /proc: steps cannot see each other")
	}
	file := filepath.Join(t.TempDir(), "run")
	read := func() string { b, _ := os.ReadFile(file); return string(b) } // there is no file before the first step
	first := exec.CommandContext(t.Context(), "sh", "-c", step(file, 600, 0))
	first.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	first.Cancel = func() error { return syscall.Kill(-first.Process.Pid, syscall.SIGKILL) }
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, func() (bool, string) { return strings.HasSuffix(read(), "\n"), read() })
	second := func() {
		t.Helper()
		if err := exec.CommandContext(t.Context(), "sh", "-c", step(file, 0, 0)).Run(); err != nil {
			t.Fatal(err)
		}
	}
	second()
	if !strings.Contains(read(), "beside ") {
		t.Errorf("beside a step that lives, a second one wrote %q", read())
	}
	_, _ = first.Cancel(), first.Wait() // killed
	if err := os.Truncate(file, int64(strings.Index(read(), "beside "))); err != nil {
		t.Fatal(err)
	}
	second()
	if strings.Contains(read(), "beside ") {
		t.Errorf("after a step that was killed, a second one wrote %q", read())
	}
	own := "echo begin $$ > " + file + "; " + step(file, 0, 0)
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(read(), "beside ") {
		t.Errorf("a step with the number of an earlier one in another container wrote %q", read())
	}
}
