package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/process"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(storagetest.Main(m)) }

// moody is the process launcher on a bad day: the n-th Launch meets the n-th mood, and later ones
// are good.
type moody struct {
	launcher.Launcher
	mu    sync.Mutex
	moods []mood
	asked []launcher.ID
}

type mood struct {
	err   error
	after bool // the worker is launched, and the answer is lost
}

func (m *moody) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	m.mu.Lock()
	var now mood
	if len(m.moods) > 0 {
		now, m.moods = m.moods[0], m.moods[1:]
	}
	m.asked = append(m.asked, req.ID)
	m.mu.Unlock()
	if now.err != nil && !now.after {
		return launcher.Launched{}, now.err
	}
	got, err := m.Launcher.Launch(ctx, req)
	if now.err != nil {
		return launcher.Launched{}, now.err
	}
	got.Tags = map[string]string{"moody/tag": "set"}
	got.Notes = []launcher.Note{{Text: "a note of the launcher", Metadata: [][2]string{{"label", "text"}}}}
	return got, err
}

// As gives the abilities of the process launcher.
func (m *moody) As(ability any) bool {
	switch a := ability.(type) {
	case *launcher.Watcher:
		*a = m.Launcher.(launcher.Watcher)
	case *launcher.Lister:
		*a = m.Launcher.(launcher.Lister)
	default:
		return false
	}
	return true
}

// world is an instance on SQLite with light workers and a daemon in this process.
type world struct {
	t     *testing.T
	d     *storagetest.Dagster
	store storage.Store
	moody *moody
	in    *instance.Instance
	kinds []*launcher.Kind
	log   *strings.Builder
	mu    sync.Mutex
}

// Write takes the daemon's log.
func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

// newWorld is the first call of a test: it waits until the test fits beside others.
func newWorld(t *testing.T, dagsterYAML, slipwayYAML string, moods ...mood) *world {
	t.Helper()
	testenv.Beside(t, testenv.Leads) // a busy machine must not end a lead
	testenv.GoroutinesEnd(t)
	w := &world{t: t, d: storagetest.NewSQLite(t), moody: &moody{moods: moods}, log: &strings.Builder{}}
	testenv.WorkersGone(t, w.d.Location)
	if err := w.d.Exec("UPDATE runs SET status = 'CANCELED' WHERE status = 'QUEUED'"); err != nil {
		t.Fatal(err)
	}
	if err := w.d.Exec("DELETE FROM daemon_heartbeats"); err != nil {
		t.Fatal(err)
	}
	// light workers read their arguments
	slipwayYAML += fmt.Sprintf("launchers: {local: {kind: moody, %s}}\nallow_secrets_in_argv: true\n", w.lightWorkers())
	for name, text := range map[string]string{"dagster.yaml": dagsterYAML, "slipway.yaml": slipwayYAML} {
		if err := os.WriteFile(filepath.Join(w.d.Location, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kind := *process.Kind(testenv.Build(t, "slipway-agent"))
	open := kind.Open
	kind.Name = "moody"
	kind.Open = func(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
		l, err := open(ctx, v, log)
		if w.moody.Launcher != nil { // opened before: by a reload, while the first one is in use
			return l, err
		}
		w.moody.Launcher = l
		return w.moody, err
	}
	w.kinds = []*launcher.Kind{&kind}
	var err error
	if w.in, err = instance.Load(w.d.Location, w.kinds, os.LookupEnv); err != nil {
		t.Fatal(err)
	}
	if w.store, err = sqlite.Open(t.Context(), w.d.Location); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// lightWorkers are the settings of a launcher of processes for light workers.
func (w *world) lightWorkers() string {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("python: {\"*\": %q}, config: {env: {%s: %q, GORACE: atexit_sleep_ms=0}}", self,
		storagetest.LightStorage, w.d.Location)
}

// run runs a daemon while f does, or without f until it ends by itself, and returns its error.
func (w *world) run(f func()) error {
	w.t.Helper()
	ctx, stop := context.WithCancel(w.t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- (&daemon.Daemon{Instance: w.in, Store: w.store,
			Log: slog.New(slog.NewTextHandler(io.Writer(w), nil))}).Run(ctx)
	}()
	if f != nil {
		f()
		stop()
	}
	return <-done
}

func (w *world) output() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

func (w *world) enqueue(tags map[string]string) string {
	w.t.Helper()
	id := uuid.NewString()
	if err := w.d.Enqueue(id, tags); err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) ended(id string) storage.Run {
	w.t.Helper()
	var r storage.Run
	testenv.Eventually(w.t, 3*time.Minute, func() (bool, string) {
		runs, err := w.store.Runs(w.t.Context(), storage.Filter{IDs: []string{id}})
		if err != nil || len(runs) != 1 {
			return false, fmt.Sprint(len(runs), err)
		}
		r = runs[0]
		return r.Status.Finished(), fmt.Sprintf("the run is %s; log:\n%s", r.Status, w.output())
	})
	return r
}

// story is the run's events, types only.
func (w *world) story(id string) string {
	w.t.Helper()
	events, err := w.store.Events(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	var types []string
	for _, e := range events {
		types = append(types, string(e.Type))
	}
	return strings.Join(types, " ")
}

const parked = "run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\n"

func TestWhatALaunchersErrorsDo(t *testing.T) {
	transient, lost := errors.Join(launcher.ErrTransient, errors.New("busy")), errors.New("connection reset")
	capacity, invalid := errors.Join(launcher.ErrCapacity, errors.New("quota")),
		errors.Join(launcher.ErrInvalid, errors.New("no such image"))
	launched := "PIPELINE_START"
	for name, c := range map[string]struct {
		moods   []mood
		status  dagster.Status
		asked   string // attempts of each Launch
		has     string // in the run's story
		lacks   string
		message string // of some event
	}{
		"none": {nil, dagster.Success, "1", launched, "", "a note of the launcher"},
		"transient: the same worker again": {[]mood{{err: transient}, {err: transient}}, dagster.Success, "1 1 1",
			launched, "PIPELINE_STARTING PIPELINE_ENQUEUED", "[Slipway] Launched"},
		"an answer that was lost": {[]mood{{err: lost, after: true}}, dagster.Success, "1", launched,
			"", "[Slipway] Launched"},
		"no capacity: back to the queue": {[]mood{{err: capacity}, {err: capacity}}, dagster.Success, "1 2 3",
			"PIPELINE_STARTING ENGINE_EVENT PIPELINE_ENQUEUED PIPELINE_STARTING", "", "has had no room"},
		"invalid: the run fails": {[]mood{{err: invalid}}, dagster.Failure,
			"1", "PIPELINE_STARTING ENGINE_EVENT PIPELINE_FAILURE", launched,
			"Caught an unrecoverable error while dequeuing the run."},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, parked, "", c.moods...)
			id := w.enqueue(nil)
			var r storage.Run
			err := w.run(func() { r = w.ended(id); w.settled(id) })
			if err != nil || r.Status != c.status {
				t.Fatalf("Run = %v; the run is %s, want %s; log:\n%s", err, r.Status, c.status, w.output())
			}
			var asked []string
			for _, a := range w.moody.asked {
				asked = append(asked, fmt.Sprint(a.Attempt))
			}
			if got := strings.Join(asked, " "); !strings.HasPrefix(got, c.asked) || c.moods == nil && got != c.asked {
				t.Errorf("attempts asked for: %s, want %s", got, c.asked)
			}
			story := " " + w.story(id) + " "
			if !strings.Contains(story, " "+c.has+" ") || c.lacks != "" && strings.Contains(story, " "+c.lacks+" ") ||
				strings.Count(story, " "+launched+" ") > 1 {
				t.Errorf("story %s\nwant %q in it, not %q, and at most one start", story, c.has, c.lacks)
			}
			if !w.says(id, c.message) {
				t.Errorf("no event says %q", c.message)
			}
		})
	}
}

// settled waits until the daemon has written what it writes after a launch, or has failed the run.
func (w *world) settled(id string) {
	w.t.Helper()
	testenv.Eventually(w.t, time.Minute, func() (bool, string) {
		return w.says(id, "[Slipway] Launched") || w.says(id, "unrecoverable"), w.story(id)
	})
}

func (w *world) says(id, text string) bool {
	w.t.Helper()
	events, err := w.store.Events(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range events {
		if strings.Contains(e.Message, text) {
			return true
		}
	}
	return false
}

func TestTagsAndHandleAreWritten(t *testing.T) {
	w := newWorld(t, parked, "")
	id := w.enqueue(map[string]string{"team": "x"})
	if err := w.run(func() { w.ended(id); w.settled(id) }); err != nil {
		t.Fatal(err)
	}
	runs, err := w.store.Runs(t.Context(), storage.Filter{IDs: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	if r := runs[0]; r.Tags["team"] != "x" || r.Handle != (launcher.ID{Run: id, Attempt: 1}).String() {
		t.Errorf("tags %v, handle %q", r.Tags, r.Handle)
	}
	// The row stays. The body can lose the tag to a worker that writes its status at the same
	// moment: Dagster's reads the body, changes it and writes it back.
	if tag, err := w.d.Text("SELECT value FROM run_tags WHERE run_id = ? AND key = 'moody/tag'", id); err != nil ||
		tag != "set" {
		t.Errorf("the row of the launcher's tag: %q, %v", tag, err)
	}
}

// Dagster accepts run IDs in several forms. Runs with such IDs are executed, and a later daemon
// recognizes their workers.
func TestRunIDsOfAllForms(t *testing.T) {
	w := newWorld(t, parked, "")
	ids := []string{strings.ToUpper(uuid.NewString()), "{" + uuid.NewString() + "}",
		strings.ReplaceAll(uuid.NewString(), "-", "")}
	for _, id := range ids {
		if err := w.d.Enqueue(id, nil); err != nil {
			t.Fatal(err)
		}
	}
	err := w.run(func() {
		for _, id := range ids {
			if r := w.ended(id); r.Status != dagster.Success {
				t.Errorf("run %s is %s: %s", id, r.Status, w.story(id))
			}
			w.settled(id)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A dagster-daemon that monitors runs is refused. One that may dequeue is watched, see
// rival_test.go.
func TestStockDaemonIsRefused(t *testing.T) {
	beat := func(w *world, daemonType, id string, age time.Duration) {
		t.Helper()
		if _, err := w.store.Beat(t.Context(), storage.Heartbeat{Type: daemonType, ID: id, At: time.Now().Add(-age)},
			time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	idle := func(w *world) func() {
		return func() {
			testenv.Eventually(t, time.Minute, func() (bool, string) {
				return strings.Contains(w.output(), "msg=leading"), w.output()
			})
		}
	}
	t.Run("one that may dequeue, whose limits stand elsewhere", func(t *testing.T) {
		w := newWorld(t,
			"run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: {max_concurrent_runs: 6}}\n", "")
		beat(w, "QUEUED_RUN_COORDINATOR", "stock", time.Second)
		err := w.run(func() {
			for _, text := range []string{"waiting to see whether dagster-daemon dequeues",
				"write max_concurrent_runs: 0 under run_coordinator.config in ",
				"write queue: {max_concurrent_runs: 6} in ", "restart dagster-daemon and dagster-webserver"} {
				testenv.Eventually(t, time.Minute, func() (bool, string) {
					return strings.Contains(w.output(), text), fmt.Sprintf("the log lacks %q:\n%s", text, w.output())
				})
			}
		})
		if err != nil {
			t.Errorf("Run = %v", err)
		}
		for _, s := range daemon.Doctor(t.Context(), w.in, w.store, slog.New(slog.DiscardHandler)) {
			if strings.Contains(s.What+s.Fix, "run_queue") {
				t.Errorf("the doctor names another section: %+v", s)
			}
		}
	})
	t.Run("one that was there long ago", func(t *testing.T) {
		w := newWorld(t, "", "")
		beat(w, "QUEUED_RUN_COORDINATOR", "stock", 2*time.Minute)
		if err := w.run(idle(w)); err != nil || !strings.Contains(w.output(), "does not park dagster-daemon") {
			t.Errorf("Run = %v; log:\n%s", err, w.output())
		}
	})
	t.Run("one that is parked", func(t *testing.T) {
		w := newWorld(t, parked, "")
		beat(w, "QUEUED_RUN_COORDINATOR", "stock", time.Second)
		if err := w.run(idle(w)); err != nil || strings.Contains(w.output(), "level=WARN") {
			t.Errorf("Run = %v; log:\n%s", err, w.output())
		}
	})
	t.Run("coexist", func(t *testing.T) {
		w := newWorld(t, "", "coexist: true\n")
		beat(w, "QUEUED_RUN_COORDINATOR", "stock", time.Second)
		if err := w.run(idle(w)); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Run("another daemon of ours", func(t *testing.T) {
		w := newWorld(t, "", "")
		beat(w, "QUEUED_RUN_COORDINATOR", "slipway-other", time.Second)
		if err := w.run(idle(w)); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Run("a monitor that goes on", func(t *testing.T) {
		w := newWorld(t, parked, "")
		beat(w, "MONITORING", "stock", 10*time.Second)
		go func() { // it ends with the daemon, which waits for this beat
			testenv.Eventually(t, time.Minute, func() (bool, string) {
				return strings.Contains(w.output(), "waiting to see whether it is still running"), w.output()
			})
			beat(w, "MONITORING", "stock", 0)
		}()
		err := w.run(nil)
		if err == nil || !strings.Contains(err.Error(), "run_monitoring") {
			t.Errorf("Run = %v; log:\n%s", err, w.output())
		}
	})
	t.Run("a monitor that has just ended", func(t *testing.T) {
		w := newWorld(t, parked, "")
		beat(w, "MONITORING", "stock", 88*time.Second)
		if err := w.run(idle(w)); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestHeartbeatIsWrittenForTheUI(t *testing.T) {
	w := newWorld(t, parked, "")
	err := w.run(func() {
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			beats, err := w.store.Heartbeats(t.Context())
			return len(beats) == 1 && beats[0].Type == "QUEUED_RUN_COORDINATOR" &&
				strings.HasPrefix(beats[0].ID, "slipway-"), fmt.Sprint(beats, err)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}
