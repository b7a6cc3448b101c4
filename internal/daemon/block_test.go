package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/process"
	"github.com/slipway-run/slipway/test/testenv"
)

// stubborn is the process launcher whose Launch first calls a function.
type stubborn struct {
	launcher.Launcher
	before func(context.Context) error
}

func (s stubborn) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	if err := s.before(ctx); err != nil {
		return launcher.Launched{}, err
	}
	return s.Launcher.Launch(ctx, req)
}

// A launcher that hangs, and one that always fails, hold up no run of another: those end while the first still hangs.
func TestSickLaunchersHoldUpNobody(t *testing.T) {
	const most, some = 40, 15 // more than a launcher takes at once, and enough
	w := newWorld(t, parked, "")
	release, hanging := make(chan struct{}), atomic.Int32{}
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo)
	agent := testenv.Build(t, "slipway-agent")
	kind := func(name string, before func(context.Context) error) *launcher.Kind {
		k := *process.Kind(agent)
		open := k.Open
		k.Name = name
		k.Open = func(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			l, err := open(ctx, v, log)
			return stubborn{l, before}, err
		}
		return &k
	}
	kinds := []*launcher.Kind{
		kind("hangs", func(context.Context) error { // it does not even mind its deadline
			hanging.Add(1)
			<-release
			return nil
		}),
		kind("fails", func(context.Context) error { return errors.Join(launcher.ErrTransient, errors.New("always")) }),
		kind("works", func(context.Context) error { return nil }),
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	settings := "queue: {max_concurrent_runs: -1}\ndefault: works\nlaunchers:\n"
	routes := "routes:\n"
	for _, k := range kinds {
		settings += fmt.Sprintf("  %s: {kind: %[1]s, python: {\"*\": %q}}\n", k.Name, self)
		routes += fmt.Sprintf("- {when: {tags: {to: %s}}, to: %[1]s}\n", k.Name)
	}
	if err := os.WriteFile(filepath.Join(w.d.Location, "slipway.yaml"), []byte(settings+routes), 0o600); err != nil {
		t.Fatal(err)
	}
	if w.in, err = instance.Load(w.d.Location, kinds, os.LookupEnv); err != nil {
		t.Fatal(err)
	}
	runs := map[string][]string{}
	for i := range most {
		for _, k := range kinds {
			if i < some || k.Name == "hangs" {
				runs[k.Name] = append(runs[k.Name], w.enqueue(map[string]string{"to": k.Name}))
			}
		}
	}
	err = w.run(func() {
		for _, id := range runs["works"] {
			if r := w.ended(id); r.Status != dagster.Success {
				t.Errorf("run %s is %s, want SUCCESS", id, r.Status)
			}
		}
		if hanging.Load() == 0 {
			t.Error("the launcher that hangs was not even asked")
		}
		// The lead is lost meanwhile, and comes back: what hangs does not hold that up either.
		if err := w.d.Exec("UPDATE kvs SET value = '1000 somebody' WHERE key = 'slipway/leader'"); err != nil {
			t.Error(err)
		}
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			return strings.Count(w.output(), "msg=leading") >= 2, "the daemon does not lead again:\n" + w.output()
		})
		letGo()
		for _, id := range runs["hangs"] {
			if r := w.ended(id); r.Status != dagster.Success {
				t.Errorf("run %s is %s after the launcher went on, want SUCCESS", id, r.Status)
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
	waiting, err := w.store.Runs(t.Context(), storage.Filter{IDs: runs["fails"]})
	if err != nil || len(waiting) != some {
		t.Fatalf("Runs = %d, %v", len(waiting), err)
	}
	for _, r := range waiting {
		if r.Status != dagster.Queued && r.Status != dagster.Starting {
			t.Errorf("run %s of the launcher that fails is %s, want it to wait", r.ID, r.Status)
		}
	}
}
