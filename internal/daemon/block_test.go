package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// stubborn gives the instance launchers of these names, to which the tag to leads, and returns the
// names.
func (w *world) stubborn(before map[string]func(context.Context) error) []string {
	w.t.Helper()
	agent := testenv.Build(w.t, "slipway-agent")
	names := slices.Sorted(maps.Keys(before))
	var kinds []*launcher.Kind
	settings, routes := "allow_secrets_in_argv: true\ndefault: "+names[0]+"\nlaunchers:\n", "routes:\n"
	for _, name := range names {
		k := *process.Kind(agent)
		open := k.Open
		k.Name = name
		k.Open = func(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			l, err := open(ctx, v, log)
			return stubborn{l, before[name]}, err
		}
		kinds = append(kinds, &k)
		settings += fmt.Sprintf("  %s: {kind: %[1]s, %s}\n", name, w.lightWorkers())
		routes += fmt.Sprintf("- {when: {tags: {to: %s}}, to: [%s]}\n", name, strings.ReplaceAll(name, "-then-", ", "))
	}
	if err := os.WriteFile(filepath.Join(w.d.Location, "slipway.yaml"), []byte(settings+routes), 0o600); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if w.in, err = instance.Load(w.d.Location, kinds, os.LookupEnv); err != nil {
		w.t.Fatal(err)
	}
	return names
}

// A target that has no room, and cannot say how much it has, is tried with single runs, not with
// the whole queue; when it has some, all of them go.
func TestFullLauncherIsTriedWithFewRuns(t *testing.T) {
	const runs, tries = 60, 3
	w := newWorld(t, parked, "")
	asked, room := atomic.Int32{}, atomic.Bool{}
	w.stubborn(map[string]func(context.Context) error{"full": func(context.Context) error {
		if asked.Add(1); room.Load() {
			return nil
		}
		return errors.Join(launcher.ErrCapacity, errors.New("no node is free"))
	}})
	var ids []string
	for range runs {
		ids = append(ids, w.enqueue(nil))
	}
	if err := w.run(func() {
		testenv.Eventually(t, time.Minute, func() (bool, string) { // after 1 s and 2 s more
			return asked.Load() >= tries, fmt.Sprintf("asked %d times", asked.Load())
		})
		starting, why := 0, 0
		for _, id := range ids {
			starting += strings.Count(w.story(id), string(dagster.RunStarting))
			if w.says(id, "has had no room since ") && w.says(id, "no node is free") {
				why++
			}
		}
		if starting > 2*tries {
			t.Errorf("%d claims for %d tries of a launcher without room", starting, tries)
		}
		if why < tries-1 {
			t.Errorf("%d runs say why they wait, want at least each that was tried", why)
		}
		room.Store(true)
		for _, id := range ids {
			if r := w.ended(id); r.Status != dagster.Success {
				t.Errorf("run %s is %s, want SUCCESS", id, r.Status)
			}
		}
	}); err != nil {
		t.Error(err)
	}
}

// A launcher that denies access leaves its runs to the next launcher of their rule. Runs without a
// next launcher wait in the queue: they take up no place, are not failed, and say why.
func TestDeniedRunsWaitInTheQueue(t *testing.T) {
	w := newWorld(t, parked, "")
	denied := func(context.Context) error { return errors.Join(launcher.ErrDenied, errors.New("key expired")) }
	w.stubborn(map[string]func(context.Context) error{
		"denied": denied, "works": func(context.Context) error { return nil },
		"denied-then-works": denied, // only its rule is of use
	})
	waits, next := w.enqueue(map[string]string{"to": "denied"}), w.enqueue(map[string]string{"to": "denied-then-works"})
	if err := w.run(func() {
		if r := w.ended(next); r.Status != dagster.Success || !w.says(next, `launcher "works"`) {
			t.Errorf("the run with a next launcher is %s, want SUCCESS there", r.Status)
		}
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			return w.says(waits, "key expired"), "the log of the run that waits does not say why: " + w.story(waits)
		})
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			runs, err := w.store.Runs(t.Context(), storage.Filter{IDs: []string{waits}})
			return err == nil && len(runs) == 1 && runs[0].Status == dagster.Queued, fmt.Sprint(runs, err)
		})
	}); err != nil {
		t.Error(err)
	}
}

// A launcher that hangs, and one that always fails, hold up no run of another, under the default
// limit of ten runs at once: those end while the first still hangs.
func TestSickLaunchersHoldUpNobody(t *testing.T) {
	const most, some = 40, 15 // more than a launcher takes at once, and enough
	w := newWorld(t, parked, "")
	release, hanging := make(chan struct{}), atomic.Int32{}
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo)
	kinds := w.stubborn(map[string]func(context.Context) error{
		"hangs": func(context.Context) error { // it does not even mind its deadline
			hanging.Add(1)
			<-release
			return nil
		},
		"fails": func(context.Context) error { return errors.Join(launcher.ErrTransient, errors.New("always")) },
		"works": func(context.Context) error { return nil },
	})
	runs := map[string][]string{}
	for i := range most {
		for _, name := range kinds {
			if i < some || name == "hangs" {
				runs[name] = append(runs[name], w.enqueue(map[string]string{"to": name}))
			}
		}
	}
	err := w.run(func() {
		for _, id := range runs["works"] {
			if r := w.ended(id); r.Status != dagster.Success {
				t.Errorf("run %s is %s, want SUCCESS", id, r.Status)
			}
		}
		if hanging.Load() == 0 {
			t.Error("the launcher that hangs was not even asked")
		}
		// The lead is lost meanwhile, and comes back: what hangs does not hold that up either.
		if err := w.d.Exec("UPDATE kvs SET value = '1000 another' WHERE key = 'slipway/leader'"); err != nil {
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
