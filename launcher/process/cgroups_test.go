//go:build real

package process_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestLimitsByCgroups(t *testing.T) {
	l, err := openWith(t, "cgroup: slipway-test-"+uuid.NewString()[:8]+"\nmemory: 64Mi\ncpu: 500m\n")
	if err != nil {
		testenv.Missing(t, "cgroups", err.Error())
	}
	got, err := l.Launch(t.Context(), request("sleep 0.05; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if h := ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Exit != nil && *h.Exit == 3 }); h.Cause == launcher.CauseOOM {
		t.Errorf("Health = %+v, want no oom", h)
	}
	// tail keeps a line of 256 MiB in memory.
	got, err = l.Launch(t.Context(), request(`head -c 268435456 /dev/zero | tail >/dev/null`))
	if err != nil {
		t.Fatal(err)
	}
	ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Status == launcher.Failed && h.Cause == launcher.CauseOOM })
	req := request(`head -c 268435456 /dev/zero | tail >/dev/null`)
	req.Resources.MemoryBytes = 2 << 30
	if got, err = l.Launch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	ended(t, l, got.Handle, func(h launcher.Health) bool { return h.Status == launcher.Succeeded })
}
