//go:build real

package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// Real Dagster writes times in the zone of the database, without the zone. Slipway runs beside it
// in one zone west and one east of UTC. The guard distinguishes a live daemon from one that has
// ended, heartbeats of others are left alone, and ages are right.
func TestDatabaseInAnotherZone(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	testenv.DagsterBin(t)
	for _, zone := range []string{"America/New_York", "Asia/Kolkata"} {
		t.Run(filepath.Base(zone), func(t *testing.T) {
			testenv.Beside(t, testenv.Dagster)
			address := testenv.FreeAddress(t)
			w := newWorld(t, testenv.PostgresIn(t, zone), fmt.Sprintf("web: {listen: %q}\n", address))
			server := w.webserver("test/fates/fates.py")
			settings := func(text string) {
				w.write("dagster.yaml", text+"telemetry: {enabled: false}\n"+w.storageYAML())
			}

			settings("")
			stock := w.stockDaemon()
			w.beats("QUEUED_RUN_COORDINATOR")
			beside := w.slipway()
			beside.says("waiting to see whether dagster-daemon dequeues runs")
			beside.stop()
			stock.kill()

			settings("run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: true}\n")
			stock = w.stockDaemon()
			w.beats("MONITORING")
			stock.kill()
			settings("run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\n")
			waits := w.slipway()
			waits.says("waiting to see whether it is still running")
			waits.kill()
			found := regexp.MustCompile(`at_most=(\S+)`).FindStringSubmatch(waits.output())
			if len(found) == 0 {
				t.Fatalf("it does not say how long it waits:\n%s", waits.output())
			}
			if d, err := time.ParseDuration(found[1]); err != nil || d > 90*time.Second || d < 0 {
				t.Errorf("it waits %s for a monitor that has ended, want at most 90 s", found[1])
			}
			if err := storagetest.Open(t, w.location).Exec("DELETE FROM daemon_heartbeats"); err != nil {
				t.Fatal(err)
			}

			stock = w.stockDaemon() // parked
			theirs := w.beats("QUEUED_RUN_COORDINATOR")
			id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
			if err != nil {
				t.Fatal(err)
			}
			if age := time.Since(w.run(id).Created); age.Abs() > 10*time.Minute {
				t.Errorf("a run that was just created is %v old", age)
			}
			doctor, _ := w.command("doctor") // fails, because no daemon leads
			if strings.Contains(doctor, "waited for longer") ||
				!regexp.MustCompile(`ok +dagster-daemon was last heard of \d+s ago`).MatchString(doctor) {
				t.Errorf("doctor takes a young run or heartbeat for an old one:\n%s", doctor)
			}
			p := w.slipway()
			w.ended(2*time.Minute, p, id)
			w.endedWell(id, "light", dagster.Success)
			if r := w.run(id); r.Updated.Sub(r.End).Abs() > time.Second {
				t.Errorf("the run ended at %v and was updated at %v", r.End, r.Updated)
			}
			if s := queueSeconds(t, address); s < 0 || s > 600 {
				t.Errorf("slipway_queue_seconds_sum is %v", s)
			}
			if now := w.beats("QUEUED_RUN_COORDINATOR"); now.ID != theirs.ID {
				t.Errorf("the heartbeat of %s was overwritten by %s", theirs.ID, now.ID)
			}
			p.stop()
			noErrors(t, stock)
		})
	}
}

// beats waits for a heartbeat of a daemon type.
func (w *world) beats(daemonType string) (beat storage.Heartbeat) {
	w.t.Helper()
	testenv.Eventually(w.t, time.Minute, func() (bool, string) {
		beats, err := w.open().Heartbeats(w.t.Context())
		i := slices.IndexFunc(beats, func(b storage.Heartbeat) bool { return b.Type == daemonType })
		if i >= 0 {
			beat = beats[i]
		}
		return i >= 0, fmt.Sprint(beats, err)
	})
	return beat
}

// queueSeconds returns how long runs have waited in total, according to the metrics of the daemon.
func queueSeconds(t *testing.T, address string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^slipway_queue_seconds_sum (\S+)$`).FindSubmatch(text)
	if len(found) == 0 {
		t.Fatalf("no slipway_queue_seconds_sum in\n%s", text)
	}
	sum, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
