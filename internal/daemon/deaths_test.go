package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// fate is what becomes of one worker.
type fate struct {
	writes []dagster.EventType // into its run's log
	health launcher.Health     // then
}

var (
	succeeds = fate{[]dagster.EventType{dagster.RunStart, dagster.RunSuccess},
		launcher.Health{Status: launcher.Succeeded}}
	starts = []dagster.EventType{dagster.RunStart}
)

func dies(cause launcher.Cause, writes ...dagster.EventType) fate {
	return fate{writes, launcher.Health{Status: launcher.Failed, Cause: cause, Message: "the target says so"}}
}

// mortal is a target whose workers have the fates they are given, one after the other, whatever
// launcher of it they are asked of.
type mortal struct {
	d       *storagetest.Dagster
	mu      sync.Mutex
	fates   []fate
	asked   []string // launcher, verb and memory of each worker
	workers map[launcher.Handle]launcher.Worker
	changed chan launcher.Worker
}

type mortalLauncher struct {
	*mortal
	name string
}

func (m mortalLauncher) Launch(_ context.Context, req *launcher.Request) (launcher.Launched, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := launcher.Handle(req.ID.String())
	if _, ok := m.workers[h]; ok {
		return launcher.Launched{Handle: h}, nil
	}
	f := fate{health: launcher.Health{Status: launcher.Failed, Message: "no fate was left"}}
	if len(m.fates) > 0 {
		f, m.fates = m.fates[0], m.fates[1:]
	}
	verb := "execute"
	if req.Resume {
		verb = "resume"
	}
	m.asked = append(m.asked, fmt.Sprintf("%s %d %s %d", m.name, req.ID.Attempt, verb, req.Resources.MemoryBytes>>20))
	for _, typ := range f.writes {
		if err := m.d.Event(dagster.NewEvent(dagster.Run{ID: req.ID.Run, Job: "light"}, typ, time.Now(), "")); err !=
			nil {
			return launcher.Launched{}, err
		}
	}
	w := launcher.Worker{ID: req.ID, Instance: req.Instance, Handle: h, Health: f.health}
	m.workers[h] = w
	m.changed <- w
	return launcher.Launched{Handle: h}, nil
}

func (m mortalLauncher) Terminate(context.Context, launcher.Handle, time.Duration) (bool, error) {
	return false, nil
}

func (m mortalLauncher) Health(_ context.Context, h launcher.Handle) (launcher.Health, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w, ok := m.workers[h]; ok {
		return w.Health, nil
	}
	return launcher.Health{Status: launcher.NotFound}, nil
}

func (m mortalLauncher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		for {
			select {
			case w := <-m.changed:
				if !yield(w, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// Adopt knows workers of another launcher by the tag elsewhere/worker, which is their handle.
func (m mortalLauncher) Adopt(f launcher.Foreign) (launcher.Handle, bool) {
	h, ok := f.Tags["elsewhere/worker"]
	return launcher.Handle(h), ok && m.name == "one"
}

// Describe implements [launcher.Describer].
func (m mortalLauncher) Describe(context.Context, launcher.Handle, bool) (json.RawMessage, error) {
	return json.RawMessage(`{"seen_by": "the target"}`), nil
}

// mortals gives the world a target with the launchers one and two and the settings.
func (w *world) mortals(settings string, fates ...fate) *mortal {
	w.t.Helper()
	m := &mortal{d: w.d, fates: fates, workers: map[launcher.Handle]launcher.Worker{},
		changed: make(chan launcher.Worker, 100)}
	var kinds []*launcher.Kind
	settings += "default: one\nlaunchers:\n"
	for _, name := range []string{"one", "two"} {
		kinds = append(kinds, &launcher.Kind{
			Name: name, Traits: launcher.Traits{Unique: true, StrongRead: true},
			Open: func(context.Context, config.Values, *slog.Logger) (launcher.Launcher, error) {
				return mortalLauncher{m, name}, nil
			},
		})
		settings += "  " + name + ": {kind: " + name + ", settle: 1s}\n"
	}
	err := os.WriteFile(filepath.Join(w.d.Location, "slipway.yaml"),
		[]byte(settings+"routes: [{to: [one, two]}]\nallow_secrets_in_argv: true\n"), 0o600)
	if err == nil {
		w.in, err = instance.Load(w.d.Location, kinds, os.LookupEnv)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// What becomes of a run whose worker dies is what the settings say of the cause and of how far the
// run had come.
func TestWhatADeathLeadsTo(t *testing.T) {
	memory := "memory: [1Gi, 4Gi], "
	for name, c := range map[string]struct {
		monitoring string
		fates      []fate
		status     dagster.Status
		asked      string
		cause      string
		says       []string
	}{
		"nothing is said": {"", []fate{dies(launcher.CauseExit)}, dagster.Failure,
			"one 1 execute 0", "exit", []string{"The run worker ended without finishing the run: the target says so."}},
		"preempted before its run had started": {"", []fate{dies(launcher.CausePreempted), succeeds}, dagster.Success,
			"one 1 execute 0, one 2 execute 0",
			"", []string{"The run goes back to the queue for a new run worker on the same launcher " +
				"(monitoring.deaths: preempted: again)."}},
		"preempted when it had": {"", []fate{dies(launcher.CausePreempted, starts...)}, dagster.Failure,
			"one 1 execute 0", "preempted", nil},
		"of those whose run had started": {"deaths: [{causes: [exit], do: again}]",
			[]fate{dies(launcher.CauseExit, starts...)}, dagster.Failure, "one 1 execute 0", "exit", nil},
		"again though it had started": {"deaths: [{causes: [exit], started: again}]",
			[]fate{dies(launcher.CauseExit, starts...), succeeds}, dagster.Success, "one 1 execute 0, one 2 execute 0",
			"", nil},
		"the next launcher": {"deaths: [{causes: [image_pull], do: next}]",
			[]fate{dies(launcher.CauseImagePull), succeeds}, dagster.Success, "one 1 execute 0, two 2 execute 0",
			"", []string{"on the next launcher of its route"}},
		"no next launcher is left": {"launch_attempts: 9, deaths: [{causes: [image_pull], do: next}]",
			[]fate{dies(launcher.CauseImagePull), dies(launcher.CauseImagePull)}, dagster.Failure,
			"one 1 execute 0, two 2 execute 0", "image_pull", []string{"its route has no further launcher"}},
		"as many workers as it may have": {"launch_attempts: 2",
			[]fate{dies(launcher.CauseEvicted), dies(launcher.CauseEvicted), succeeds}, dagster.Failure,
			"one 1 execute 0, one 2 execute 0",
			"evicted", []string{"it has had 2 workers, as many as monitoring.launch_attempts allows"}},
		"more memory each time": {memory + "deaths: [{causes: [oom], do: again}]",
			[]fate{dies(launcher.CauseOOM), dies(launcher.CauseOOM), succeeds}, dagster.Success,
			"one 1 execute 0, one 2 execute 1024, one 3 execute 4096", "", nil},
		"no more memory to give": {memory + "launch_attempts: 9, deaths: [{causes: [oom], do: again}]",
			[]fate{dies(launcher.CauseOOM), dies(launcher.CauseOOM), dies(launcher.CauseOOM)}, dagster.Failure,
			"one 1 execute 0, one 2 execute 1024, one 3 execute 4096",
			"oom", []string{"the most memory that monitoring.memory gives"}},
		"resumed": {"max_resume_run_attempts: 1",
			[]fate{dies(launcher.CauseExit, starts...),
				{[]dagster.EventType{dagster.RunSuccess}, launcher.Health{Status: launcher.Succeeded}}},
			dagster.Success, "one 1 execute 0, one 2 resume 0",
			"exit", []string{"Detected run worker status FAILED: 'the target says so'. Resuming run",
				"Launching a new run worker to resume run"}},
		"resumed as often as it may be": {"max_resume_run_attempts: 1",
			[]fate{dies(launcher.CauseExit, starts...), dies(launcher.CauseExit)}, dagster.Failure,
			"one 1 execute 0, one 2 resume 0",
			"exit", []string{"it has surpassed the configured maximum attempts to resume the run: 1"}},
		"a target that knows no such worker": {"", []fate{{starts, launcher.Health{Status: launcher.NotFound}}},
			dagster.Failure, "one 1 execute 0", "unknown", []string{"the target has known no such worker for"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, parked, "")
			m := w.mortals("monitoring: {"+c.monitoring+"}\n", c.fates...)
			id := w.enqueue(nil)
			var r storage.Run
			if err := w.run(func() { r = w.ended(id) }); err != nil {
				t.Fatal(err)
			}
			if r.Status != c.status || r.Cause != c.cause {
				t.Errorf("the run is %s of %q, want %s of %q; its story is %s; log:\n%s", r.Status, r.Cause, c.status,
					c.cause, w.story(id), w.output())
			}
			if got := strings.Join(m.asked, ", "); got != c.asked {
				t.Errorf("workers: %s; want %s", got, c.asked)
			}
			for _, text := range c.says {
				if !w.says(id, text) {
					t.Errorf("no event says %q", text)
				}
			}
		})
	}
}

// A worker of which its target can tell nothing keeps its run: for ever, or, where a setting says
// so, until nothing was heard of the run for a time.
func TestSilenceFailsARunOnlyWhereASettingSaysSo(t *testing.T) {
	unknown := fate{starts, launcher.Health{Status: launcher.Unknown}}
	w := newWorld(t, parked, "")
	m := w.mortals("monitoring: {silence_timeout: 3s, max_resume_run_attempts: 5}\n", unknown, unknown)
	quiet, busy := w.enqueue(nil), ""
	const text = "[Slipway] The run wrote nothing, and its target could not tell the state of its worker, for " +
		"3 seconds. Its worker is asked to stop."
	err := w.run(func() {
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.asked) == 1, "not launched"
		})
		busy = w.enqueue(nil)
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() { // it writes on
			defer close(done)
			for {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Millisecond):
					_ = w.d.Event(dagster.NewEngineEvent(dagster.Run{ID: busy, Job: "light"}, time.Now(), "still here",
						nil, nil))
				}
			}
		}()
		testenv.Eventually(t, time.Minute, func() (bool, string) { return w.says(quiet, text), w.story(quiet) })
		close(stop)
		<-done
	})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := w.d.Status(busy); err != nil || status != dagster.Started {
		t.Errorf("the run that writes is %s, %v, want STARTED", status, err)
	}
	if w.says(busy, "The run wrote nothing") || len(m.asked) != 2 {
		t.Errorf("workers %v; story of the run that writes %s", m.asked, w.story(busy))
	}
}

// A run that another launcher started is adopted if the target shows its worker, and watched from
// then on; one whose worker is not to be seen, or that no launcher knows, is left alone.
func TestRunsOfOtherLaunchersAreAdopted(t *testing.T) {
	w := newWorld(t, parked, "")
	m := w.mortals("")
	var ids []string
	for _, tags := range []map[string]string{{"elsewhere/worker": "theirs"}, {"elsewhere/worker": "gone"}, nil} {
		id := w.enqueue(tags)
		for _, typ := range []dagster.EventType{dagster.RunStarting, dagster.RunStart} {
			if err := w.d.Event(dagster.NewEvent(dagster.Run{ID: id, Job: "light"}, typ, time.Now(), "")); err != nil {
				t.Fatal(err)
			}
		}
		ids = append(ids, id)
	}
	m.workers["theirs"] = launcher.Worker{ID: launcher.ID{Run: ids[0], Attempt: 1}, Handle: "theirs",
		Health: launcher.Health{Status: launcher.Failed, Cause: launcher.CauseOOM, Message: "out of memory"}}
	err := w.run(func() {
		if r := w.ended(ids[0]); r.Status != dagster.Failure || r.Handle != "theirs" || r.Cause != "oom" {
			t.Errorf("the adopted run is %s, handle %q, tags %v: %s", r.Status, r.Handle, r.Tags, w.story(ids[0]))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !w.says(ids[0], "[Slipway] Adopted the run worker") {
		t.Errorf("its log does not say so: %s", w.story(ids[0]))
	}
	for _, id := range ids[1:] {
		runs, err := w.store.Runs(t.Context(), storage.Filter{IDs: []string{id}})
		if err != nil || runs[0].Status != dagster.Started || runs[0].Launch != nil {
			t.Errorf("run %s was touched: %+v, %v", id, runs[0], err)
		}
	}
}

// A user may cancel a run just when its dead worker is to be replaced, because the run still seems
// to run. It becomes CANCELED: nothing else would ever end it.
func TestCanceledBetweenTwoWorkers(t *testing.T) {
	w := newWorld(t, parked, "")
	w.mortals("")
	id := w.enqueue(nil)
	name, err := w.store.InstanceID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fence, leads, err := w.store.Lead(t.Context(), "slipway-before", time.Second)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	out, err := w.store.Claim(t.Context(), fence,
		[]storage.Claim{{Run: id, Launcher: "one", Instance: name, Token: "t", At: time.Now()}})
	if err != nil || !out[0].Done {
		t.Fatal(out, err)
	}
	r := dagster.Run{ID: id, Job: "light"}
	if _, err := w.store.Move(t.Context(), fence,
		storage.Transition{Run: id, Launch: "t", Void: true,
			Events: []dagster.Event{dagster.NewRunEnqueued(r, time.Now())}}); err != nil {
		t.Fatal(err)
	}
	// it had seen the run STARTED
	if err := w.d.Event(dagster.NewEvent(r, dagster.RunCanceling, time.Now(), "")); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Yield(t.Context(), fence); err != nil {
		t.Fatal(err)
	}
	err = w.run(func() {
		if r := w.ended(id); r.Status != dagster.Canceled {
			t.Errorf("the run is %s: %s", r.Status, w.story(id))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
