//go:build real

package e2e_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// realStorages runs a test on the storages that real Dagster makes itself. The location "" is
// SQLite in the home.
func realStorages(t *testing.T, f func(t *testing.T, location string)) {
	t.Parallel()
	testenv.DagsterBin(t)
	t.Run("sqlite", func(t *testing.T) { onSQLite(t, f) })
	t.Run("postgres", func(t *testing.T) { onPostgres(t, f) })
}

// halves is realStorages for a test that needs much processor time, most of it for Dagster itself:
// make test runs it on SQLite, make test-faults on Postgres.
func halves(t *testing.T, f func(t *testing.T, location string)) {
	t.Parallel()
	testenv.DagsterBin(t)
	t.Run("sqlite", func(t *testing.T) {
		testenv.NotFaults(t)
		onSQLite(t, f)
	})
	t.Run("postgres", func(t *testing.T) {
		testenv.Faults(t)
		onPostgres(t, f)
	})
}

func onSQLite(t *testing.T, f func(t *testing.T, location string)) {
	testenv.Beside(t, testenv.Dagster)
	f(t, "")
}

func onPostgres(t *testing.T, f func(t *testing.T, location string)) {
	testenv.Beside(t, testenv.Dagster)
	f(t, testenv.Postgres(t))
}

const maxAtOnce = 8

// queuedRuns returns how many runs are queued at once. Each run needs seconds of a processor, most
// of it for the start of Dagster. So only the long form, which CI runs separately, has 50.
func queuedRuns() int {
	if os.Getenv("SLIPWAY_SOAK") == "" {
		return 8
	}
	return 50
}

// Runs that are launched in Dagster's own UI end as they should. Their Python has no code of ours,
// and the stock dagster-daemon runs beside, parked.
func TestLaunchRunInDagstersUI(t *testing.T) {
	realStorages(t, func(t *testing.T, location string) {
		w := newWorld(t, location, fmt.Sprintf("queue: {max_concurrent_runs: %d}\n", maxAtOnce))
		server := w.webserver("examples/etl/definitions.py", "test/fates/fates.py")
		stock := w.stockDaemon()
		fates := []struct {
			job  webserver.Job
			want dagster.Status
		}{
			{webserver.Job{Location: "etl", Name: "yearly"}, dagster.Success},
			{webserver.Job{Location: "etl", Name: "snow_in_july"}, dagster.Failure},
			{webserver.Job{Location: "etl", Name: "forecast", Tags: map[string]string{"team": "weather"}},
				dagster.Success},
			{webserver.Job{Location: "fates", Name: "kills_itself"}, dagster.Failure},
			{webserver.Job{Location: "etl", Name: "monthly", Partition: "2014-07-01"}, dagster.Success},
		}
		for len(fates) < queuedRuns() {
			fates = append(fates, fates[4])
			fates[len(fates)-1].job = webserver.Job{Location: "fates", Name: "light"}
		}
		var ids []string
		for _, f := range fates {
			id, err := server.Launch(t.Context(), f.job)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		for _, id := range ids {
			if s := w.run(id).Status; s != dagster.Queued {
				t.Fatalf("run %s is %s before Slipway was started, want QUEUED: the stock daemon is not parked", id, s)
			}
		}
		p := w.slipway()
		w.ended(8*time.Minute, p, ids...)
		for i, id := range ids {
			w.endedWell(id, fates[i].job.Name, fates[i].want)
		}
		if n := w.atOnce(ids); n > maxAtOnce || n < 2 {
			t.Errorf("%d runs at once, want at most %d and at least 2", n, maxAtOnce)
		}
		if n := w.count(ids[2], "STEP_UP_FOR_RETRY"); n != 1 {
			t.Errorf("forecast has %d STEP_UP_FOR_RETRY, want 1", n)
		}
		w.diedInWords(ids[3])
		readable(t, server, ids, func(i int) dagster.Status { return fates[i].want })
		p.stop()
		noErrors(t, stock)
		if text := p.output(); strings.Contains(text, "level=ERROR") || location != "" &&
			strings.Contains(text, "slipway:slipway") {
			t.Errorf("the daemon's log has errors or a password:\n%s", text)
		}
	})
}

// endedWell checks that a run ended as wanted and was started once.
func (w *world) endedWell(id, job string, want dagster.Status) {
	w.t.Helper()
	r := w.run(id)
	if r.Status != want {
		w.t.Errorf("%s %s is %s, want %s:\n%s", job, id, r.Status, want, w.story(id))
	}
	if r.Launch == nil || r.Launch.Attempt != 1 || r.Launch.Launcher != "local" || r.Handle == "" {
		w.t.Errorf("%s %s: launch row %v, handle %q", job, id, r.Launch, r.Handle)
	}
	for _, typ := range []dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunStart} {
		if n := w.count(id, typ); n != 1 {
			w.t.Errorf("%s %s has %d events %s, want 1:\n%s", job, id, n, typ, w.story(id))
		}
	}
	if r.Start.IsZero() || r.End.Before(r.Start) {
		w.t.Errorf("%s %s: start %v, end %v", job, id, r.Start, r.End)
	}
	for k := range r.Tags {
		if strings.HasPrefix(k, storage.RowPrefix) {
			w.t.Errorf("%s %s: the body has our row %s", job, id, k)
		}
	}
}

// story returns the log of a run, for messages.
func (w *world) story(id string) string {
	var b strings.Builder
	for _, e := range w.events(id) {
		fmt.Fprintf(&b, "%s %s %s %.200s\n", e.Time.Format("15:04:05.000"), e.Type, e.StepKey, e.Message)
	}
	return b.String()
}

// atOnce returns how many runs at most were between claim and end at the same moment.
func (w *world) atOnce(ids []string) int {
	w.t.Helper()
	type edge struct {
		at time.Time
		by int
	}
	var edges []edge
	for _, id := range ids {
		starting := w.events(id, dagster.RunStarting)
		edges = append(edges, edge{starting[0].Time, 1}, edge{w.run(id).End, -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	now, peak := 0, 0
	for _, e := range edges {
		now += e.by
		peak = max(peak, now)
	}
	return peak
}

// diedInWords checks that the log of a dead worker's run says how the worker died.
func (w *world) diedInWords(id string) {
	w.t.Helper()
	failure := w.events(id, dagster.RunFailure)
	if len(failure) != 1 || !strings.Contains(failure[0].Message, "killed by signal 9") {
		w.t.Errorf("the failure of a killed worker: %+v", failure)
	}
	if reason := w.run(id).Tags[dagster.FailureReasonTag]; reason != "UNEXPECTED_TERMINATION" {
		w.t.Errorf("failure reason %q", reason)
	}
}

// readable requests for every run what Dagster's pages request.
func readable(t *testing.T, server *webserver.Server, ids []string, want func(int) dagster.Status) {
	t.Helper()
	runs, err := server.Runs(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]webserver.Run{}
	for _, r := range runs {
		shown[r.RunID] = r
	}
	for i, id := range ids {
		if shown[id].Status != string(want(i)) {
			t.Errorf("the runs page shows %s as %q, want %s", id, shown[id].Status, want(i))
		}
		for _, tag := range shown[id].Tags {
			if strings.HasPrefix(tag.Key, storage.RowPrefix) {
				t.Errorf("the runs page shows our row %s", tag.Key)
			}
		}
		events, err := server.Events(t.Context(), id)
		if err != nil {
			t.Errorf("the log of run %s: %v", id, err)
			continue
		}
		if !slices.ContainsFunc(events, func(e webserver.Event) bool {
			return strings.HasPrefix(e.Message, "[Slipway] Launched")
		}) {
			t.Errorf("the log of run %s does not say that Slipway launched it", id)
		}
		if err := server.RunPage(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	var pages map[string]any
	err = server.Query(t.Context(), `{
		assetsOrError {__typename
			... on AssetConnection {nodes {
				key {path} definition {hasMaterializePermission} assetMaterializations(limit: 1) {runId}}}
			... on PythonError {message}}
		instance {id info runLauncher {name} runQueuingSupported
			daemonHealth {
				allDaemonStatuses {daemonType healthy lastHeartbeatTime lastHeartbeatErrors {message}}}
			runQueueConfig {maxConcurrentRuns}}
		runTagKeysOrError {__typename ... on RunTagKeys {keys}} partitionBackfillsOrError(limit: 10) {__typename}}`,
		nil, &pages)
	if err != nil || strings.Contains(fmt.Sprint(pages), "PythonError") {
		t.Errorf("pages: %v %v", pages, err)
	}
	if strings.Contains(fmt.Sprint(pages["runTagKeysOrError"]), storage.RowPrefix) {
		t.Errorf("the tag filter offers our rows: %v", pages["runTagKeysOrError"])
	}
}

// noErrors checks that the stock daemon is still running and logged no errors.
func noErrors(t *testing.T, stock *process) {
	t.Helper()
	select {
	case <-stock.done:
		t.Errorf("dagster-daemon ended:\n%s", stock.output())
	default:
	}
	if text := stock.output(); strings.Contains(text, " ERROR ") || strings.Contains(text, "Traceback") {
		t.Errorf("dagster-daemon reports errors:\n%s", text)
	}
}

// A run is terminated in the UI although Dagster's own launcher does not know its worker: Slipway
// sees the status CANCELING in storage.
func TestCancelInDagstersUI(t *testing.T) {
	halves(t, func(t *testing.T, location string) {
		w := newWorld(t, location, "")
		server := w.webserver("test/fates/fates.py")
		p := w.slipway()
		never := filepath.Join(w.home, "never")
		id, err := server.Launch(t.Context(), waitsFor(never))
		if err != nil {
			t.Fatal(err)
		}
		w.status(p, id, dagster.Started)
		noPasswordInProcessList(t, location)
		w.terminate(server, id)
		w.ended(time.Minute, p, id)
		if r := w.run(id); r.Status != dagster.Canceled {
			t.Errorf("the run is %s, want CANCELED:\n%s", r.Status, w.story(id))
		}
		p.stop()
	})
}

// noPasswordInProcessList examines the arguments of the workers, as any user of the machine can.
func noPasswordInProcessList(t *testing.T, location string) {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	password, ok := u.User.Password()
	if !ok {
		return
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Skip("no /proc")
	}
	workers := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		if !strings.Contains(string(text), "\x00api\x00execute_run") {
			continue // the stock webserver's own code server shows it
		}
		workers++
		if strings.Contains(string(text), ":"+password+"@"+u.Host+u.Path) {
			t.Errorf("%s shows the storage's password: %q", f, text)
		}
	}
	if workers == 0 {
		t.Error("no worker in the process list, so that this test shows nothing")
	}
}

func waitsFor(file string) webserver.Job {
	return webserver.Job{Location: "fates", Name: "waits",
		Config: map[string]any{"ops": map[string]any{
			"wait_for_file": map[string]any{"config": map[string]any{"file": file}}}}}
}

// status waits until a run has a status.
func (w *world) status(p *process, id string, want dagster.Status) {
	w.t.Helper()
	testenv.Eventually(w.t, 2*time.Minute, func() (bool, string) {
		got := w.run(id).Status
		return got == want, fmt.Sprintf("run %s is %s, want %s; the daemon's log:\n%s", id, got, want, p.output())
	})
}

// A worker of Dagster's survives a restart of the daemon, and the next daemon sees its end.
func TestWorkerOutlivesRestart(t *testing.T) {
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	w := newWorld(t, "", "")
	server := w.webserver("test/fates/fates.py")
	first := w.slipway()
	file := filepath.Join(w.home, "go")
	id, err := server.Launch(t.Context(), waitsFor(file))
	if err != nil {
		t.Fatal(err)
	}
	w.status(first, id, dagster.Started)
	first.stop()
	second := w.slipway()
	second.says("msg=leading")
	if s := w.run(id).Status; s != dagster.Started {
		t.Fatalf("the run is %s after a restart of the daemon", s)
	}
	w.write("go", "")
	w.ended(time.Minute, second, id)
	second.stop()
	w.endedWell(id, "waits", dagster.Success)
}

const inProcess = `
import sys
from dagster import DagsterInstance
sys.path.insert(0, sys.argv[1])
from fates import defs
config = {"ops": {"wait_for_file": {"config": {"file": sys.argv[2]}}}}
with DagsterInstance.get() as instance:
    defs.resolve_job_def("waits").execute_in_process(run_config=config, instance=instance)
`

// Runs that Slipway did not claim are left alone, whatever happens to them: one that a Python
// process executes itself, and one of Dagster's own DefaultRunLauncher.
func TestForeignRunsAreLeftAlone(t *testing.T) {
	halves(t, func(t *testing.T, location string) {
		w := newWorld(t, location, "queue: {max_concurrent_runs: 4}\n")
		server := w.webserver("test/fates/fates.py")
		file := filepath.Join(w.home, "go")

		// A second webserver on the same storage, with a coordinator that launches at once.
		other := &world{t: t, home: t.TempDir(), location: w.location}
		storageYAML := fmt.Sprintf("storage: {sqlite: {base_dir: %q}}\n", w.location)
		if location != "" {
			storageYAML = fmt.Sprintf("storage: {postgres: {postgres_url: %q}}\n",
				strings.Replace(location, "postgresql://", "postgresql+psycopg2://", 1))
		}
		other.write("dagster.yaml", storageYAML+
			"run_coordinator: {module: dagster.core.run_coordinator, class: DefaultRunCoordinator}\ntelemetry: "+
			"{enabled: false}\n")
		stock := other.webserver("test/fates/fates.py")
		launched, err := stock.Launch(t.Context(), waitsFor(file))
		if err != nil {
			t.Fatal(err)
		}
		python := w.start("in-process", nil, filepath.Join(testenv.DagsterBin(t), "python"), "-c", inProcess,
			filepath.Join(testenv.Root(t), "test/fates"), file)
		var executed string
		testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
			runs, err := w.open().Runs(t.Context(), storage.Filter{Statuses: []dagster.Status{dagster.Started}})
			for _, r := range runs {
				if r.ID != launched {
					executed = r.ID
				}
			}
			return len(runs) == 2, fmt.Sprint(len(runs), " runs are STARTED ", err, "\n", python.output())
		})

		p := w.slipway()
		p.says("msg=leading")
		python.kill()
		id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
		if err != nil {
			t.Fatal(err)
		}
		w.ended(2*time.Minute, p, id)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.ended(2*time.Minute, p, launched)
		p.stop()
		if s := w.run(executed).Status; s != dagster.Started {
			t.Errorf("the foreign run whose process was killed is %s, want STARTED as it was left", s)
		}
		if s := w.run(launched).Status; s != dagster.Success {
			t.Errorf("the run of DefaultRunLauncher is %s, want SUCCESS", s)
		}
		for _, id := range []string{executed, launched} {
			if r := w.run(id); r.Launch != nil || r.Handle != "" || strings.Contains(w.story(id), "[Slipway]") {
				t.Errorf("foreign run %s was touched: %v\n%s", id, r.Launch, w.story(id))
			}
		}
		w.endedWell(id, "light", dagster.Success)
	})
}

// Slipway watches a dagster-daemon that none of our files parks. While that daemon dequeues,
// Slipway claims nothing, status and log say so, and the runs of the daemon continue. When a daemon
// replaces it that leaves runs alone, Slipway claims runs again. The new daemon reads a separate
// folder. The webserver and Slipway keep their dagster.yaml with the true limits.
func TestStockDequeuer(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	w := newWorld(t, "", "")
	w.write("dagster.yaml", "telemetry: {enabled: false}\n")
	server := w.webserver("test/fates/fates.py")
	stock := w.stockDaemon()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		beats, err := w.open().Heartbeats(t.Context())
		return slices.ContainsFunc(beats, func(b storage.Heartbeat) bool { return b.Type == "QUEUED_RUN_COORDINATOR" }),
			fmt.Sprint(beats, err, stock.output())
	})
	p := w.slipway()
	p.says("waiting to see whether dagster-daemon dequeues runs")
	file := filepath.Join(w.home, "go")
	job := waitsFor(file)
	theirs, err := server.Launch(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	p.says("another program launches runs that are waiting for Slipway")
	w.status(p, theirs, dagster.Started)
	status, err := w.command("status")
	if err != nil || !strings.Contains(status, theirs+" was launched by another program") ||
		!strings.Contains(status, "max_concurrent_runs: 0") {
		t.Errorf("slipway status: %v\n%s", err, status)
	}
	stock.stop()

	ours, err := server.Launch(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	own := t.TempDir()
	if err := os.WriteFile(filepath.Join(own, "dagster.yaml"),
		[]byte(parked+fmt.Sprintf("storage: {sqlite: {base_dir: %q}}\n", w.home)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := w.run(ours); r.Status != dagster.Queued {
		t.Errorf("a run is %s while it is not known whether dagster-daemon dequeues", r.Status)
	}
	w.start("parked-dagster-daemon", []string{"DAGSTER_HOME=" + own}, filepath.Join(w.dagster(), "dagster-daemon"),
		"run", "-w", filepath.Join(w.home, "workspace.yaml"))
	p.says("runs are claimed again")
	w.write("go", "")
	w.ended(2*time.Minute, p, theirs, ours)
	if r := w.run(ours); r.Launch == nil {
		t.Errorf("Slipway did not launch the run that waited for it:\n%s", w.story(ours))
	}
	if r := w.run(theirs); r.Launch != nil || r.Status != dagster.Success {
		t.Errorf("the run of dagster-daemon is %s, launch row %v", r.Status, r.Launch)
	}
	p.stop()

	again := w.slipway() // dagster-daemon counts as parked once it has left a run alone
	again.says("waiting to see whether dagster-daemon dequeues runs")
	id, err := server.Launch(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	again.says("it is parked; runs are claimed")
	w.ended(2*time.Minute, again, id)
	again.stop()
	last := w.slipway() // so does the next one, without waiting
	last.says("msg=leading")
	if id, err = server.Launch(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	w.ended(2*time.Minute, last, id)
	if strings.Contains(last.output(), "waiting to see") {
		t.Errorf("it does not know what the one before saw:\n%s", last.output())
	}
	last.stop()
}
