//go:build real

package e2e_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// One run of each fate with each release of Dagster. The webserver and the workers are of that
// release, the daemon is ours. Releases take turns on the two storages; make soak has each on both.
func TestReleases(t *testing.T) {
	t.Parallel()
	releases := testenv.Releases(t)
	for i, version := range slices.Sorted(maps.Keys(releases)) {
		bin := releases[version]
		for j, storage := range []string{"sqlite", "postgres"} {
			t.Run(version+"/"+storage, func(t *testing.T) {
				if i%2 != j {
					testenv.Soak(t)
				}
				testenv.Beside(t, testenv.Dagster)
				location := ""
				if storage == "postgres" {
					location = testenv.Postgres(t)
				}
				w := newWorld(t, location, "")
				w.bin = bin
				server := w.webserver("test/fates/fates.py")
				stock := w.stockDaemon()
				p := w.slipway()
				fates := []struct {
					job  webserver.Job
					want dagster.Status
				}{
					{webserver.Job{Name: "light"}, dagster.Success},
					{webserver.Job{Name: "fails"}, dagster.Failure},
					{webserver.Job{Name: "retries"}, dagster.Success},
					{webserver.Job{Name: "kills_itself"}, dagster.Failure},
					{webserver.Job{Name: "load_rows", Partition: "a"}, dagster.Success},
					{waitsFor(filepath.Join(w.home, "never")), dagster.Canceled},
				}
				var ids []string
				for _, f := range fates {
					f.job.Location = "fates"
					id, err := server.Launch(t.Context(), f.job)
					if err != nil {
						t.Fatal(err)
					}
					ids = append(ids, id)
				}
				canceled := ids[len(ids)-1]
				w.status(p, canceled, dagster.Started)
				noPasswordInProcessList(t, location)
				w.terminate(server, canceled)
				w.ended(3*time.Minute, p, ids...)
				runs, err := server.Runs(t.Context(), 10)
				if err != nil || len(runs) != len(ids) {
					t.Errorf("the runs page shows %v, %v", runs, err)
				}
				for i, id := range ids {
					w.endedWell(id, fates[i].job.Name, fates[i].want)
					if events, err := server.Events(t.Context(), id); err != nil || len(events) == 0 {
						t.Errorf("the log of run %s: %d events, %v", id, len(events), err)
					}
				}
				w.diedInWords(ids[3])
				p.stop()
				noErrors(t, stock)
				if text := p.output(); strings.Contains(text, "level=ERROR") {
					t.Errorf("the daemon's log has errors:\n%s", text)
				}
			})
		}
	}
}

// Two code locations, each with its own Python and another release of Dagster. The worker of each
// run is that of its location. The Python of a third location is gone when its run is launched.
func TestEachLocationHasItsPython(t *testing.T) {
	older, ok := testenv.Releases(t)["1.12"]
	if !ok {
		testenv.Missing(t, "releases", "Dagster 1.12 is not in .venvs")
	}
	testenv.Beside(t, testenv.Dagster)
	w := newWorld(t, "", "")
	root := testenv.Root(t)
	for _, name := range []string{"newer.py", "older.py", "moved.py"} {
		text, err := os.ReadFile(filepath.Join(root, "test/fates/fates.py"))
		if err != nil {
			t.Fatal(err)
		}
		w.write(name, string(text))
	}
	gone := filepath.Join(w.home, "venv")
	if err := os.Symlink(filepath.Dir(testenv.DagsterBin(t)), gone); err != nil {
		t.Fatal(err)
	}
	bin := testenv.DagsterBin(t)
	server := w.serves(webserver.Options{
		Locations: []string{filepath.Join(w.home, "newer.py"), filepath.Join(w.home, "older.py"),
			filepath.Join(w.home, "moved.py")},
		Python: map[string]string{"older": filepath.Join(older, "python"),
			"moved": filepath.Join(gone, "bin/python")},
	})
	never := waitsFor(filepath.Join(w.home, "never"))
	launch := func(location string) string {
		t.Helper()
		never.Location = location
		id, err := server.Launch(t.Context(), never)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ids := map[string]string{"newer": launch("newer"), "older": launch("older")}
	moved := launch("moved")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	p := w.slipway("PATH=/usr/bin:/bin") // there is no dagster in it
	w.ended(time.Minute, p, moved)
	if f := w.story(moved); w.run(moved).Status != dagster.Failure ||
		!strings.Contains(fmt.Sprint(w.errors(moved)), "launchers.local.python.moved in slipway.yaml") {
		t.Errorf("the run whose Python is gone is %s: %s %v", w.run(moved).Status, f, w.errors(moved))
	}
	for location, python := range map[string]string{"newer": filepath.Join(bin, "python"),
		"older": filepath.Join(older, "python")} {
		id := ids[location]
		w.status(p, id, dagster.Started)
		var pid string
		for _, e := range w.events(id, dagster.EngineEvent) {
			if _, rest, ok := strings.Cut(e.Message, "Started process for run (pid: "); ok {
				pid = rest
			}
		}
		line, err := os.ReadFile("/proc/" + strings.TrimSuffix(pid, ").") + "/cmdline")
		if err != nil || !strings.HasPrefix(string(line), python+"\x00") {
			t.Errorf("the worker of location %s is %q, %v, want %s", location, line, err, python)
		}
		w.terminate(server, id)
	}
	w.ended(time.Minute, p, ids["newer"], ids["older"])
	p.stop()
}

// errors returns the messages of the errors in a run's log.
func (w *world) errors(id string) []string {
	w.t.Helper()
	var all []string
	for _, e := range w.events(id) {
		if info := e.Error(); info != nil {
			all = append(all, info.Message)
		}
	}
	return all
}
