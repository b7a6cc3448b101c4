//go:build real

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/testenv"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// TestTutorial runs the shell commands of docs/tutorial.md in order, as one session. If the page
// leaves a program running and starts it again later, the test interrupts it first, as a reader
// would do with Ctrl-C.
func TestTutorial(t *testing.T) {
	testenv.Faults(t) // because it takes long
	testenv.Beside(t, testenv.Dagster)
	root := testenv.Root(t)
	w := &world{t: t, home: t.TempDir()}
	w.location = filepath.Join(w.home, "slipway-tutorial")
	clone := filepath.Join(w.home, "clone")
	testenv.WorkersGone(t, w.location)
	testenv.WorkersGone(t, filepath.Join(clone, ".demo"))
	if err := os.MkdirAll(filepath.Join(clone, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"bin/slipway": testenv.Build(t, "slipway"), ".venv": filepath.Dir(w.dagster()),
		"examples": filepath.Join(root, "examples"),
	} {
		if err := os.Symlink(target, filepath.Join(clone, name)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	page, ci := read("docs/tutorial.md"), read(".ci/run")
	const session = `cd ~/clone; unset DAGSTER_HOME; [ ! -e ~/session ] || . ~/session; set -a` + "\n"
	// The output that each block must contain.
	expected := []struct{ block, prints string }{
		{"slipway demo\n", "every run ended as it should"}, {"list --home .demo\n", "snow_in_july"},
		{"dagster dev -f", "Serving dagster-webserver"}, {"slipway runs list\n", "yearly"},
		{"adopt || true\n", "to do: in"}, {"adopt\n", "Everything is in place"}, {"slipway daemon", "leading"},
		{"runs logs $RUN", "hello from a worker"}, {"slipway doctor", "leads, epoch"},
		{"drain\n", "no run of the instance is in flight"},
	}
	met := map[string]bool{}
	running := map[string]*process{}
	interrupt := func(command string) {
		if p := running[command]; p != nil {
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT)
			p.ends(command + " did not end after Ctrl-C")
			delete(running, command)
		}
	}
	launched := 0
	for _, m := range shellBlock.FindAllStringSubmatchIndex(page, -1) {
		block := page[m[2]:m[3]]
		// CI runs these in the clone itself.
		block = strings.ReplaceAll(block, "make build\n", "")
		if block == "make demo\n" {
			continue
		}
		var wants []string
		for _, e := range expected {
			if strings.Contains(block, e.block) {
				wants, met[e.block] = append(wants, e.prints), true
			}
		}
		if command, found := strings.CutSuffix(block, "   # leave it running\n"); found {
			interrupt(command)
			p := w.start("left-running", []string{"HOME=" + w.home}, "bash", "-c", session+"exec "+command)
			for _, want := range wants {
				p.says(want)
			}
			running[command] = p
			continue
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-euc", session+block+"export -p >~/session")
		cmd.Env = append(os.Environ(), "HOME="+w.home, "DAGSTER_DISABLE_TELEMETRY=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s= %v\n%s", block, err, out)
		}
		for _, want := range wants {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s does not print %q:\n%s", block, want, out)
			}
		}
		if strings.Contains(block, "job launch") || strings.Contains(block, "runs enqueue") {
			launched++
			w.succeeded(launched)
		}
		if strings.Contains(block, "drain") {
			interrupt("bin/slipway daemon")
		}
	}
	for _, e := range expected {
		if !met[e.block] {
			t.Errorf("no block of the page has %q", e.block)
		}
	}
	for _, command := range []string{"make build", "make demo"} {
		if !strings.Contains(page, command) || !strings.Contains(ci, command) {
			t.Errorf("%s is not in docs/tutorial.md and .ci/run", command)
		}
	}
	for command := range running {
		interrupt(command)
	}
	runs, err := w.open().Runs(t.Context(), storage.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range runs {
		if ours := r.Launch != nil; ours != (i > 0 && i < len(runs)-1) {
			t.Errorf("run %d of %d was launched by Slipway: %v; want all but the first and the last", i+1, len(runs),
				ours)
		}
	}
}

// succeeded waits until the instance has n runs and all have succeeded.
func (w *world) succeeded(n int) {
	w.t.Helper()
	testenv.Eventually(w.t, time.Minute, func() (bool, string) {
		runs, err := w.open().Runs(w.t.Context(), storage.Filter{})
		if err != nil {
			return false, err.Error()
		}
		status := ""
		good := 0
		for _, r := range runs {
			status += string(r.Status) + " "
			if r.Status == dagster.Success {
				good++
			}
		}
		return good == n && len(runs) == n, status
	})
}
