//go:build real

package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// lightWorld returns an instance with light workers. Runs for them are enqueued through d.
func lightWorld(t *testing.T, d *storagetest.Dagster) *world {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, d.Location,
		fmt.Sprintf("launchers: {local: {kind: process, python: {\"*\": %q}}}\nallow_secrets_in_argv: true\nqueue: "+
			"{max_concurrent_runs: 10}\nweb: {listen: 'off'}\ncrash_loop: {deaths: 0}\n", self))
	w.env = []string{storagetest.LightStorage + "=" + d.Location}
	if !d.Postgres() { // the queued runs of real Dagster are not for light workers
		if err := d.Exec("UPDATE runs SET status = 'CANCELED' WHERE status = 'QUEUED'"); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// storages returns the two kinds of storage, each with its number of random kills. It is smaller on
// Postgres, where a daemon takes over only when the lease of the killed one has ended, 2 s later.
func storages() map[string]struct {
	make  func(testing.TB) *storagetest.Dagster
	kills int
} {
	type s = struct {
		make  func(testing.TB) *storagetest.Dagster
		kills int
	}
	return map[string]s{"sqlite": {storagetest.NewSQLite, 35}, "postgres": {storagetest.NewPostgres, 15}}
}

// enqueueGo puts n runs of command jobs into the queue. Slipway's own workers execute them.
func enqueueGo(t *testing.T, d *storagetest.Dagster, n int, script string) []string {
	t.Helper()
	var ids []string
	for range n {
		config := dagster.Encode(map[string]any{
			"steps": map[string]any{"only": map[string]any{"command": []string{"sh", "-c", script}}}})
		r := dagster.NewCommandRun(uuid.NewString(), "command", config, nil)
		if err := d.EnqueueRun(r); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
	}
	return ids
}

// enqueue puts n runs into the queue.
func enqueue(t *testing.T, d *storagetest.Dagster, n int, tags map[string]string) []string {
	t.Helper()
	var ids []string
	for range n {
		id := uuid.NewString()
		if err := d.Enqueue(id, tags); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

// exactlyOnce fails the test unless every run has ended as wanted, with one start, one launch row
// and one end. A run that ended while no daemon led need not have a handle row.
func (w *world) exactlyOnce(want dagster.Status, ids ...string) {
	w.t.Helper()
	w.exactly(1, want, ids...)
}

// exactly is exactlyOnce for runs with attempts workers, of which all but the last one died.
func (w *world) exactly(attempts int, want dagster.Status, ids ...string) {
	w.t.Helper()
	end := map[dagster.Status]dagster.EventType{dagster.Success: dagster.RunSuccess,
		dagster.Failure: dagster.RunFailure}[want]
	for _, id := range ids {
		r := w.run(id)
		if r.Status != want {
			w.t.Errorf("run %s is %s, want %s", id, r.Status, want)
		}
		if r.Launch == nil || r.Launch.Attempt != attempts || len(r.Deaths) != attempts-1 {
			w.t.Errorf("run %s: launch row %v, deaths %v, want %d attempts", id, r.Launch, r.Deaths, attempts)
		}
		for typ, n := range map[dagster.EventType]int{dagster.RunEnqueued: attempts, dagster.RunStarting: attempts,
			dagster.RunStart: attempts, end: 1} {
			if got := w.count(id, typ); got != n {
				w.t.Errorf("run %s has %d events %s, want %d", id, got, typ, n)
			}
		}
		if s, ok := w.open().(*sqlite.Store); ok {
			// A worker first commits the end of its run, and then writes it to index.db.
			testenv.Eventually(w.t, time.Minute, func() (bool, string) {
				index, err := s.Mirrored(w.t.Context(), id)
				want := 3*attempts + 1
				return err == nil && len(index) == want,
					fmt.Sprintf("run %s: index.db has %d status events, %v, want %d", id, len(index), err, want)
			})
		}
	}
}

// fated enqueues runs that reach a failpoint. It returns how many attempts they take and how they
// end.
func (w *world) fated(d *storagetest.Dagster, point failpoint.Point) (ids []string, attempts int, want dagster.Status) {
	w.t.Helper()
	policy := "monitoring: {deaths: []}\n"
	tags, script := map[string]string(nil), "true"
	attempts, want = 1, dagster.Success
	switch point {
	case failpoint.FinishBefore, failpoint.FinishCommitted, failpoint.FinishDone:
		tags, script, want = map[string]string{"fate": "die"}, "kill -9 $PPID", dagster.Failure
	case failpoint.ReplaceBefore, failpoint.ReplaceCommitted:
		mark := filepath.Join(w.t.TempDir(), "died")
		tags, script, attempts = map[string]string{"fate": "die once"},
			"[ -e "+mark+" ] || { touch "+mark+"; kill -9 $PPID; }", 2
		policy = "monitoring: {deaths: [{causes: [exit], do: again, started: again}]}\n"
	}
	text, err := os.ReadFile(filepath.Join(w.home, "slipway.yaml"))
	if err != nil {
		w.t.Fatal(err)
	}
	rest, _, _ := strings.Cut(string(text), "monitoring:")
	w.write("slipway.yaml", rest+policy)
	return append(enqueue(w.t, d, 2, tags), enqueueGo(w.t, d, 1, script)...), attempts, want
}

func TestKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	for name, s := range storages() {
		for _, point := range failpoint.Points() {
			t.Run(name+"/"+string(point), func(t *testing.T) {
				if name == "postgres" {
					testenv.Faults(t)
				} else {
					testenv.NotFaults(t)
				}
				testenv.Beside(t, testenv.Light)
				d := s.make(t)
				w := lightWorld(t, d)
				ids, attempts, want := w.fated(d, point)
				w.armed(point).killed()
				p := w.slipway()
				// The runs may have ended without the daemon. Until it leads, a signal ends it like
				// any other program.
				p.says("msg=leading")
				w.ended(time.Minute, p, ids...)
				p.stop()
				w.exactly(attempts, want, ids...)
				if t.Failed() {
					t.Logf("the next daemon's log:\n%s", p.output())
				}
			})
		}
	}
}

func TestKilledAtRandomMoments(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	for name, s := range storages() {
		t.Run(name, func(t *testing.T) {
			testenv.Beside(t, testenv.Light)
			d := s.make(t)
			w := lightWorld(t, d)
			kills := s.kills
			if os.Getenv("SLIPWAY_SOAK") != "" {
				kills *= 10
			}
			var good, bad []string
			for range kills {
				good = append(good, enqueue(t, d, 1, nil)...)
				good = append(good, enqueueGo(t, d, 1, "true")...)
				p := w.slipway()
				p.says("msg=leading")
				bad = append(bad, enqueue(t, d, 1, map[string]string{"fate": "die"})...)
				bad = append(bad, enqueueGo(t, d, 1, "kill -9 $PPID")...)
				good = append(good, enqueue(t, d, 1, nil)...)
				time.Sleep(rand.N(120 * time.Millisecond)) // a random moment
				p.kill()
			}
			p := w.slipway()
			p.says("msg=leading")
			w.ended(2*time.Minute, p, append(good, bad...)...)
			p.stop()
			w.exactlyOnce(dagster.Success, good...)
			w.exactlyOnce(dagster.Failure, bad...)
			if t.Failed() {
				t.Logf("the last daemon's log:\n%s", p.output())
			}
		})
	}
}

func TestKilledWithDagstersWorkers(t *testing.T) {
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	w := newWorld(t, "", "queue: {max_concurrent_runs: 2}\n")
	server := w.webserver("test/fates/fates.py")
	var ids []string
	for range 5 {
		p := w.slipway()
		p.says("msg=leading")
		id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		time.Sleep(rand.N(3 * time.Second)) // a random moment
		p.kill()
	}
	p := w.slipway()
	p.says("msg=leading")
	w.ended(3*time.Minute, p, ids...)
	p.stop()
	w.exactlyOnce(dagster.Success, ids...)
}

// A second daemon is a standby and takes over. Together the two launch every run once.
func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	for name, s := range storages() {
		t.Run(name, func(t *testing.T) {
			testenv.Beside(t, testenv.Light)
			d := s.make(t)
			w := lightWorld(t, d)
			first := w.slipway()
			first.says("msg=leading")
			second := w.slipway()
			second.says("standing by")
			ids := enqueue(t, d, 5, nil)
			w.ended(time.Minute, first, ids...)
			first.kill()
			began := time.Now()
			more := enqueue(t, d, 5, nil)
			w.ended(time.Minute, second, more...)
			t.Logf("five runs ended %v after the leader was killed", time.Since(began).Round(time.Millisecond))
			second.stop()
			w.exactlyOnce(dagster.Success, append(ids, more...)...)
		})
	}
}

// A run whose launch row another instance wrote, or that has none, is not ours and is never
// touched. A run with the same row from our instance gets a new worker.
func TestForeignLaunchRowsAreLeftAlone(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	d := storagetest.NewSQLite(t)
	w := lightWorld(t, d)
	w.write("slipway.yaml", w.read("slipway.yaml")+"former_instance_ids: [another]\n")
	own, err := w.open().InstanceID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids := enqueue(t, d, 3, nil)
	for i, instance := range []string{"another", "", own} {
		if instance != "" {
			l := storage.LaunchRow{Run: ids[i], Attempt: 1, Instance: instance, Launcher: "local", Token: "x", Epoch: 1,
				At: time.Now(), State: storage.Open}
			if err := d.Exec("INSERT INTO run_tags (run_id, key, value) VALUES (?, ?, ?)", ids[i], storage.LaunchKey,
				l.String()); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Event(dagster.NewEvent(dagster.Run{ID: ids[i], Job: "light"}, dagster.RunStarting, time.Now(),
			"")); err != nil {
			t.Fatal(err)
		}
	}
	foreign, ours := ids[:2], append(enqueue(t, d, 1, nil), ids[2])
	p := w.slipway()
	w.ended(time.Minute, p, ours...)
	p.stop()
	for _, id := range foreign {
		if r := w.run(id); r.Status != dagster.Starting || r.Handle != "" || w.count(id, dagster.RunStart) != 0 {
			t.Errorf("foreign run %s: %s, handle %q", id, r.Status, r.Handle)
		}
	}
	for _, id := range ours {
		if r := w.run(id); r.Status != dagster.Success {
			t.Errorf("run %s of ours: %s\n%s", id, r.Status, p.output())
		}
	}
}
