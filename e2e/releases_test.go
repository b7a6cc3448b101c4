package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/internal/testenv"
	"github.com/slipway-run/slipway/internal/webserver"
)

// One run of each fate with each release of Dagster, on both storages: its webserver and workers, our daemon.
func TestReleases(t *testing.T) {
	for version, bin := range testenv.Releases(t) {
		for _, storage := range []string{"sqlite", "postgres"} {
			t.Run(version+"/"+storage, func(t *testing.T) {
				location := ""
				if storage == "postgres" {
					location = testenv.Postgres(t)
				}
				w := newWorld(t, location, "")
				w.bin = bin
				server := w.webserver("e2e/fates/fates.py")
				stock := w.start("dagster-daemon", nil, filepath.Join(bin, "dagster-daemon"), "run", "-w", filepath.Join(w.home, "workspace.yaml"))
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
				if ok, err := server.Terminate(t.Context(), canceled); err != nil || !ok {
					t.Errorf("Terminate in the UI = %v, %v, want success", ok, err)
				}
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
