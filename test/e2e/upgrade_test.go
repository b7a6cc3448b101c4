//go:build real

package e2e_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/testenv"
)

// older is how many commits back the older Slipway is, if there is no tag.
const older = "50"

// before builds the newest tag, or the state of some commits ago.
func before(t *testing.T) string {
	t.Helper()
	if os.Getenv(testenv.OlderEnv) == "" {
		testenv.Missing(t, "older", "make test-releases builds an older Slipway, which takes a minute")
	}
	root := testenv.Root(t)
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", root}, args...)...)
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("describe", "--tags", "--abbrev=0")
	if err != nil {
		commit, err = git("rev-list", "-n1", "--skip="+older, "HEAD")
	}
	if err != nil || commit == "" {
		testenv.Missing(t, "older", "there is no git history here from which an older Slipway could be built")
	}
	dir := t.TempDir()
	archive := exec.CommandContext(t.Context(), "git", "-C", root, "archive", commit)
	tree, err := archive.Output()
	if err != nil {
		t.Fatal(err)
	}
	untar := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	untar.Stdin = bytes.NewReader(tree)
	if err := untar.Run(); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "slipway")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/slipway")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", commit, err, out)
	}
	t.Logf("the older Slipway is %s", commit)
	return bin
}

// A new Slipway takes over from an older one, and the older one from the new, with runs in flight.
// No worker notices.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	bin := before(t)
	for name, s := range storages() {
		t.Run(name, func(t *testing.T) {
			testenv.Beside(t, testenv.Light)
			d := s.make(t)
			w := lightWorld(t, d)
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			// Only settings that both know.
			w.write("slipway.yaml", "launchers: {local: {kind: process, python: {\"*\": \""+self+
				"\"}}}\nallow_secrets_in_argv: true\nqueue: {max_concurrent_runs: 10}\nterminate: {local_only: true}\n")
			old := w.start("old", nil, bin, "daemon", "--log-level", "debug")
			old.says("msg=leading")
			hold := filepath.Join(w.home, "go")
			ids := enqueueGo(t, d, 3, "while [ ! -e "+hold+" ]; do sleep 0.05; done")
			for _, id := range ids {
				w.status(old, id, dagster.Started)
			}
			young := w.slipway()
			young.says("standing by")
			old.stop()
			young.says("msg=leading")
			more := enqueue(t, d, 3, nil)
			w.ended(time.Minute, young, more...)
			back := w.start("old", nil, bin, "daemon", "--log-level", "debug")
			back.says("standing by")
			young.stop()
			back.says("msg=leading")
			w.write("go", "")
			last := enqueue(t, d, 2, map[string]string{"fate": "die"})
			w.ended(time.Minute, back, append(ids, last...)...)
			back.stop()
			w.exactlyOnce(dagster.Success, append(ids, more...)...)
			w.exactlyOnce(dagster.Failure, last...)
		})
	}
}
