//go:build real

package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// All the ways in which Dagster creates runs: partitions in a pool, tag limits, a retry by
// dagster-daemon, re-execution, forged tags, and a run that is canceled while it waits.
func TestRunsOfEveryKind(t *testing.T) {
	halves(t, func(t *testing.T, location string) {
		w := newWorld(t, location,
			"queue: {max_concurrent_runs: 8, tag_concurrency_limits: [{key: db, value: main, limit: 1}, {key: hold, "+
				"limit: 0}]}\n")
		w.write("dagster.yaml",
			"concurrency: {runs: {max_concurrent_runs: 0}, pools: {default_limit: 1, granularity: run}}\n"+
				"run_monitoring: {enabled: false}\nrun_retries: {enabled: true}\ntelemetry: {enabled: false}\n"+
				w.storageYAML())
		server := w.webserver("test/fates/fates.py")
		stock := w.stockDaemon()
		launch := func(job, partition string, tags map[string]string) string {
			t.Helper()
			id, err := server.Launch(t.Context(),
				webserver.Job{Location: "fates", Name: job, Partition: partition, Tags: tags})
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		db := storagetest.Open(t, w.location)
		// It ignores events from before its first look.
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			cursor, err := db.Text("SELECT value FROM kvs WHERE key = 'EVENT_LOG_CONSUMER_CURSOR-PIPELINE_FAILURE'")
			return cursor != "", fmt.Sprint("dagster-daemon has not begun to look for runs to retry: ", err,
				stock.output())
		})
		var partitions, limited []string
		for _, p := range []string{"a", "b", "c"} {
			partitions = append(partitions, launch("load_rows", p, nil))
			limited = append(limited, launch("light", "", map[string]string{"db": "main"}))
		}
		forged := launch("light", "", map[string]string{
			storage.LaunchKey: (storage.LaunchRow{Run: partitions[0], Attempt: 1, Instance: "x", Launcher: "local",
				Token: "t", Epoch: 1, At: time.Now(), State: storage.Open}).String(),
			storage.HandleKey: partitions[0] + " 1 /elsewhere", dagster.GRPCInfoTag: `{"host": "evil", "port": 1}`,
		})
		dies := launch("kills_itself", "", map[string]string{"dagster/max_retries": "1"})
		held := launch("light", "", map[string]string{"hold": "yes"})
		p := w.slipway()
		w.ended(5*time.Minute, p, append(append(partitions, limited...), forged, dies)...)

		for _, id := range append(append([]string{}, partitions...), limited...) {
			w.endedWell(id, "", dagster.Success)
		}
		if r := w.run(forged); r.Status != dagster.Success || r.Launch == nil || r.Launch.Run != forged ||
			!strings.Contains(r.Tags[dagster.GRPCInfoTag], "socket") {
			t.Errorf("the run with forged tags is %s, launch row %v, tags %v", r.Status, r.Launch, r.Tags)
		}
		if n := w.atOnce(partitions); n != 1 {
			t.Errorf("%d runs of a pool with one place at once", n)
		}
		if n := w.atOnce(limited); n != 1 {
			t.Errorf("%d runs of a tag with a limit of 1 at once", n)
		}
		pools, err := w.open().Pools(t.Context())
		if err != nil || pools["warehouse"] != (storage.Pool{Limit: 1, Default: true, Slots: 1}) {
			t.Errorf("pools: %+v, %v", pools, err)
		}
		w.retried(p, dies)

		again, err := server.Reexecute(t.Context(), limited[0])
		if err != nil {
			t.Fatal(err)
		}
		w.ended(time.Minute, p, again)
		w.endedWell(again, "light", dagster.Success)
		if r := w.run(again); r.Parent != limited[0] || r.Launch.Run != again {
			t.Errorf("the re-execution: parent %s, launch row %v", r.Parent, r.Launch)
		}
		if s := w.run(held).Status; s != dagster.Queued {
			t.Errorf("the run that a limit of 0 holds is %s", s)
		}
		w.terminate(server, held)
		w.ended(time.Minute, p, held)
		if r := w.run(held); r.Status != dagster.Canceled || r.Launch != nil {
			t.Errorf("the run that was canceled in the queue is %s, launch row %v", r.Status, r.Launch)
		}
		p.stop()
		born, err := server.Reexecute(t.Context(), dies) // and no daemon claims it
		if err != nil {
			t.Fatal(err)
		}
		if cause, copied := w.run(born).Shown()[storage.CauseTag]; copied || w.run(dies).Cause == "" {
			t.Errorf("the re-execution was born with the cause %q of a run that ended of %q", cause, w.run(dies).Cause)
		}
		noErrors(t, stock)
	})
}

// retried checks the run that the real dagster-daemon created to retry a run whose worker died.
func (w *world) retried(p *process, id string) {
	w.t.Helper()
	w.endedWell(id, "kills_itself", dagster.Failure)
	var child storage.Run
	testenv.Eventually(w.t, 2*time.Minute, func() (bool, string) {
		runs, err := w.open().Runs(w.t.Context(), storage.Filter{})
		for _, r := range runs {
			if r.Parent == id {
				child = r
			}
		}
		return child.ID != "" && child.Status.Finished(), fmt.Sprint("the retry is ", child.ID, child.Status, err)
	})
	w.endedWell(child.ID, "kills_itself", dagster.Failure)
	if r := w.run(child.ID); r.Tags["dagster/retry_number"] != "1" || r.Launch.Run != child.ID {
		w.t.Errorf("the retry: tags %v, launch row %v\n%s", r.Tags, r.Launch, p.output())
	}
	if tag := w.run(id).Tags["dagster/will_retry"]; tag != "true" {
		w.t.Errorf("dagster/will_retry = %q, want true", tag)
	}
}

// Slipway for a part of production: dagster-daemon launches the runs of one location, Slipway those
// of the other.
func TestOnlyOneLocation(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	w := newWorld(t, "", "queue: {only: {locations: [fates]}}\n")
	w.write("dagster.yaml",
		"run_queue: {dequeue_interval_seconds: 1, tag_concurrency_limits: [{key: dagster/code_location, value: "+
			"fates, limit: 0}]}\nrun_monitoring: {enabled: false}\ntelemetry: {enabled: false}\n")
	server := w.webserver("test/fates/fates.py", "examples/etl/definitions.py")
	stock := w.stockDaemon()
	p := w.slipway()
	p.says("msg=leading")
	var ours, theirs []string
	for range 2 {
		for _, j := range []webserver.Job{{Location: "fates", Name: "light"}, {Location: "etl", Name: "yearly"}} {
			id, err := server.Launch(t.Context(), j)
			if err != nil {
				t.Fatal(err)
			}
			if j.Location == "fates" {
				ours = append(ours, id)
			} else {
				theirs = append(theirs, id)
			}
		}
	}
	w.ended(3*time.Minute, p, append(append([]string{}, ours...), theirs...)...)
	for _, id := range ours {
		w.endedWell(id, "light", dagster.Success)
	}
	for _, id := range theirs {
		if r := w.run(id); r.Status != dagster.Success || r.Launch != nil {
			t.Errorf("run %s of dagster-daemon's is %s, launch row %v", id, r.Status, r.Launch)
		}
	}
	p.stop()
	noErrors(t, stock)
}
