//go:build real

package process_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestLimitsByCgroups(t *testing.T) {
	parent := cgroup(t)
	l, err := openWith(t, "cgroup: "+parent+"\nmemory: 64Mi\ncpu: 500m\n")
	if err != nil {
		testenv.Missing(t, "cgroups", err.Error())
	}
	// The worker reads its own limit. The first of the files exists in version 1, the second in
	// version 2.
	quota := "/sys/fs/cgroup/cpu/" + parent + "/*/cpu.cfs_quota_us /sys/fs/cgroup/" + parent + "/*/cpu.max"
	got, err := l.Launch(t.Context(), request("cat "+quota+" | grep -xE '50000( 100000)?' && exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if h := ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Exit != nil && *h.Exit == 3 }); h.Cause ==
		launcher.CauseOOM {
		t.Errorf("Health = %+v, want no oom", h)
	}
	const fill = "dd if=/dev/zero of=/dev/null bs=268435456 count=1" // fills a buffer of 256 MiB
	got, err = l.Launch(t.Context(), request(fill))
	if err != nil {
		t.Fatal(err)
	}
	ended(t, l, got.Handle, func(h launcher.Health) bool {
		return h.Status == launcher.Failed && h.Cause == launcher.CauseOOM
	})
	req := request(fill)
	req.Resources.MemoryBytes = 2 << 30
	if got, err = l.Launch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Status == launcher.Succeeded })
}

func TestCgroupThatHoldsAProcess(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		testenv.Missing(t, "cgroup2", "cgroups have version 1; hack/cgroup2 runs this test")
	}
	parent := cgroup(t)
	dir := filepath.Join("/sys/fs/cgroup", parent)
	if err := os.Mkdir(dir, 0o755); err != nil {
		testenv.Missing(t, "cgroup2", err.Error())
	}
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = sleep.Process.Kill(), sleep.Wait() }() // Wait reports that it was killed
	pid := strconv.Itoa(sleep.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, setting := range []string{"cpu: 500m", "memory: 64Mi"} {
		want := dir + "/cgroup.subtree_control: device or resource busy"
		_, err := openWith(t, "cgroup: "+parent+"\n"+setting+"\n")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Open = %v, want %q in it", setting, err, want)
		}
	}
}

// cgroup returns the name of a cgroup for a test, and removes the cgroup at the end.
func cgroup(t *testing.T) string {
	t.Helper()
	name := filepath.Join(os.Getenv(testenv.CgroupEnv), "slipway-test-"+uuid.NewString()[:8])
	t.Cleanup(func() { // fails if a worker's cgroup is still in it
		for _, above := range []string{"", "cpu", "memory"} { // version 2; version 1
			err := os.Remove(filepath.Join("/sys/fs/cgroup", above, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	return name
}
