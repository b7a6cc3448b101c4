//go:build real

package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// A run whose worker is killed in the middle continues with another worker of Dagster's. If it is
// resumed, it waits for the step that was being executed, and no step runs twice. If it begins
// again, all steps run again.
func TestDeadWorkersAreReplaced(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	for name, c := range map[string]struct {
		monitoring   string
		job, second  string
		starts, runs int // PIPELINE_START events, and runs of the first step
	}{
		"resumed":    {"max_resume_run_attempts: 1", "dies_in_the_middle", "second_step", 1, 1},
		"begun anew": {"deaths: [{causes: [exit], started: again}]", "dies_once", "once", 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			realStorages(t, func(t *testing.T, location string) {
				w := newWorld(t, location, "monitoring: {"+c.monitoring+"}\n")
				server := w.webserver("test/fates/fates.py")
				p := w.slipway()
				file := filepath.Join(w.home, "wrote")
				op := map[string]any{"config": map[string]any{"file": file}}
				id, err := server.Launch(t.Context(),
					webserver.Job{Location: "fates", Name: c.job,
						Config: map[string]any{"ops": map[string]any{"first_step": op, c.second: op}}})
				if err != nil {
					t.Fatal(err)
				}
				w.ended(2*time.Minute, p, id)
				r := w.run(id)
				if r.Status != dagster.Success || r.Launch.Attempt != 2 || len(r.Deaths) != 1 ||
					r.Deaths[0].Cause != "exit" {
					t.Errorf("the run is %s, launch row %v, deaths %v:\n%s", r.Status, r.Launch, r.Deaths, w.story(id))
				}
				wrote, err := os.ReadFile(file)
				if n := strings.Count(string(wrote), "first "); err != nil || n != c.runs ||
					w.count(id, dagster.RunStart) != c.starts {
					t.Errorf("the first step ran %d times, want %d; the steps wrote %q, %v; %d starts, want %d:\n%s", n,
						c.runs, wrote, err, w.count(id, dagster.RunStart), c.starts, w.story(id))
				}
				if err := server.RunPage(t.Context(), id); err != nil {
					t.Error(err)
				}
				p.stop()
			})
		})
	}
}

// Workers end if their runs are ended without them: marked as canceled by force, deleted, or
// canceled by dagster-daemon as part of a backfill.
func TestStoppedFromEverywhere(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	w := newWorld(t, "", "queue: {max_concurrent_runs: 4}\n")
	server := w.webserver("test/fates/fates.py")
	stock := w.stockDaemon()
	p := w.slipway()
	var ids []string
	for range 2 {
		id, err := server.Launch(t.Context(), waitsFor(filepath.Join(w.home, "never")))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		w.status(p, id, dagster.Started)
	}
	if ok, err := server.ForceTerminate(t.Context(), ids[0]); err != nil || !ok {
		t.Errorf("terminated by force: %v, %v", ok, err)
	}
	if err := server.Delete(t.Context(), ids[1]); err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		testenv.Eventually(t, 3*time.Minute, func() (bool, string) {
			n := workersOf(t, id)
			return n == 0, "a worker lives on whose run was ended without it:\n" + p.output()
		})
	}
	if r := w.run(ids[0]); r.Status != dagster.Canceled {
		t.Errorf("the run that was ended by force is %s:\n%s", r.Status, w.story(ids[0]))
	}

	fill, err := server.Backfill(t.Context(), "fates", "long_rows", []string{"a", "b", "c", "d"})
	if err != nil {
		t.Fatal(err)
	}
	of := func() (runs []storage.Run) {
		all, err := w.open().Runs(t.Context(), storage.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Tags["dagster/backfill"] == fill {
				runs = append(runs, r)
			}
		}
		return runs
	}
	testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
		started := 0
		for _, r := range of() {
			if r.Status == dagster.Started {
				started++
			}
		}
		return started >= 3, "the backfill's runs have not started:\n" + stock.output() + p.output()
	})
	if err := server.CancelBackfill(t.Context(), fill); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 3*time.Minute, func() (bool, string) {
		for _, r := range of() {
			if r.Status != dagster.Canceled || workersOf(t, r.ID) > 0 {
				return false, "run " + r.ID + " of the canceled backfill is " + string(r.Status) + ":\n" + w.story(r.ID)
			}
		}
		return true, ""
	})
	p.stop()
}

// workersOf counts the supervisors of a run's workers. A supervisor ends with its worker and is
// named after it.
func workersOf(t *testing.T, run string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Skip("no /proc")
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), "dagster-run-"+run) {
			n++
		}
	}
	return n
}
