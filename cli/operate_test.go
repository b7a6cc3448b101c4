package cli

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// statusOf reads the status; what the leader alone knows is there once it was found.
func statusOf(t *testing.T, home string) daemon.Status {
	t.Helper()
	var st daemon.Status
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := built(t, home, "status", "--json")
		if err != nil {
			return false, out
		}
		return json.Unmarshal([]byte(out), &st) == nil && st.Launchers != nil, out
	})
	return st
}

// Paused runs wait, even after a restart of the daemon, and status shows who paused them and why.
// Other runs are launched.
func TestPause(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, false, "")
	out, err := built(t, home, "pause", "--tag", "team=a", "--why", "audit", "--by", "ann")
	if err != nil || !strings.Contains(out, "launches of tag team=a are paused") {
		t.Fatalf("pause = %v\n%s", err, out)
	}
	held, free := enqueued(t, home, "--tag", "team=a", "--", "true"), enqueued(t, home, "--", "true")
	start(t, home)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := built(t, home, "status")
		return err == nil && regexp.MustCompile(`tag team=a +\S+ \S+ +unpaused +ann +audit`).MatchString(out), out
	})
	status(t, home, free, "SUCCESS")
	if st := statusOf(t, home); st.Runs["QUEUED"] != 1 || st.Waiting["paused"] != 1 || st.Leader.Lease != "held" ||
		st.Launchers[1].Name != "local" || st.Launchers[1].Sick {
		t.Errorf("status = %+v", st)
	}
	if out, err := built(t, home, "unpause"); err == nil ||
		!strings.Contains(out, "launches of the instance are not paused; slipway status shows all pauses") {
		t.Errorf("unpause of what is not paused = %v\n%s", err, out)
	}
	if out, err := built(t, home, "unpause", "--tag", "team=a"); err != nil || !strings.Contains(out, "1 pause ended") {
		t.Errorf("unpause = %v\n%s", err, out)
	}
	status(t, home, held, "SUCCESS")
	for _, args := range [][]string{{"pause", "--launcher", "moon"}, {"pause", "--tag", "team"},
		{"pause", "--job", "a", "--tag", "b=c"}} {
		if out, err := built(t, home, args...); err == nil {
			t.Errorf("%v is taken: %s", args, out)
		}
	}
}

func TestDrain(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, true, "")
	file := filepath.Join(t.TempDir(), "go")
	run := enqueued(t, home, "--", "sh", "-c", "while [ ! -e "+file+" ]; do sleep 0.05; done")
	status(t, home, run, "STARTED")
	if out, err := built(t, home, "drain", "--launcher", "local", "--timeout", "1s"); err == nil ||
		!strings.Contains(out, "1 run of launcher local still in flight after 1s; its launches stay paused until "+
			"slipway unpause") {
		t.Errorf("drain while a run is in flight = %v\n%s", err, out)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := built(t, home, "drain", "--launcher", "local"); err != nil ||
		!strings.Contains(out, "no run of launcher local is in flight any more") {
		t.Errorf("drain = %v\n%s", err, out)
	}
	if out, err := built(t, home, "unpause", "--all"); err != nil || !strings.Contains(out, "1 pause ended") {
		t.Errorf("unpause --all = %v\n%s", err, out)
	}
}

// Metrics, health and status are served. If a token is set, only health is served without it.
func TestSeenFromOutside(t *testing.T) {
	home := parked(t, true, "web: {token: sesame}\n")
	status(t, home, enqueued(t, home, "--", "true"), "SUCCESS")
	st := statusOf(t, home) // with the token of slipway.yaml
	get := func(path, token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, st.Leader.Address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.Body.Close() != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, text := get(path, ""); code != http.StatusOK || text != "ok\n" {
			t.Errorf("%s = %d %q", path, code, text)
		}
	}
	for _, path := range []string{"/metrics", "/status", "/queue"} {
		for _, token := range []string{"", "wrong"} {
			if code, text := get(path, token); code != http.StatusUnauthorized || strings.Contains(text, home) {
				t.Errorf("%s with token %q = %d %s", path, token, code, text)
			}
		}
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		_, text := get("/metrics", "sesame")
		for _, line := range []string{
			`slipway_leader 1`, `slipway_launch_seconds_count{launcher="local",outcome="launched"} 1`,
			`slipway_ended_runs_total{launcher="local",status="SUCCESS"} 1`,
			`slipway_queue_seconds_count 1`, `slipway_queued_runs{reason="paused"} 0`,
			`slipway_launcher_sick{launcher="local",place=""} 0`, `slipway_epoch `,
			`slipway_storage_seconds_bucket{outcome="ok"`,
		} {
			if !strings.Contains(text, "\n"+line) {
				return false, line + " is not among the metrics:\n" + text
			}
		}
		return true, ""
	})
	if code, text := get("/status", "sesame"); code != http.StatusOK || !strings.Contains(text, `"lease":"held"`) {
		t.Errorf("/status = %d %s", code, text)
	}
}

func TestDoctor(t *testing.T) {
	home := parked(t, false, "")
	out, err := built(t, home, "doctor")
	if err == nil || !strings.Contains(out,
		"error    no daemon leads this instance: nothing is launched\n         next: start slipway daemon") {
		t.Errorf("doctor without a daemon = %v\n%s", err, out)
	}
	if out, err := built(t, home, "status"); err == nil ||
		!strings.Contains(out, "no daemon leads this instance: start slipway daemon") {
		t.Errorf("status without a daemon = %v\n%s", err, out)
	}
	start(t, home)
	statusOf(t, home)
	testenv.Eventually(t, time.Minute, func() (bool, string) { // the endpoint may take a moment
		out, err = built(t, home, "doctor")
		return err == nil && strings.Contains(out,
			"ok       the endpoint for Terminate in Dagster's UI answers at unix:"), out
	})
	for _, text := range []string{"ok       dagster.yaml and slipway.yaml in " + home + " can be read",
		"leads, epoch 1", "dagster-daemon's dequeuer is parked", "launcher local: no problem found",
		"0 runs are queued", "the storage accepts writes"} {
		if !strings.Contains(out, text) {
			t.Errorf("doctor does not say %q:\n%s", text, out)
		}
	}
	db := storagetest.Open(t, home)
	for _, q := range []string{
		"INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) VALUES ('MONITORING', 'stock', " +
			"strftime('%Y-%m-%d %H:%M:%f', 'now'), '{}')",
		"INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) VALUES ('SENSOR', 'stock', " +
			"'2020-01-01 00:00:00.000000', '{}')",
	} {
		if err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	out, err = built(t, home, "doctor")
	if err == nil || !strings.Contains(out, "error    dagster-daemon monitors runs of this instance") ||
		!strings.Contains(out, "warning  dagster-daemon's SENSOR was last heard of") {
		t.Errorf("doctor beside a stock monitor = %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(home, "slipway.yaml"), []byte("queue: {max_concurrent_runs: many}\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	var found []daemon.Symptom
	if out, err = built(t, home, "doctor", "--json"); err == nil ||
		json.Unmarshal([]byte(out[:strings.LastIndex(out, "]")+1]), &found) != nil || len(found) != 1 ||
		!strings.Contains(found[0].What, "queue.max_concurrent_runs") {
		t.Errorf("doctor of settings that cannot be read = %v\n%s", err, out)
	}
}

// One call cancels thousands of waiting runs: all that match and no others.
func TestTerminateMany(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, false, "")
	db := storagetest.Open(t, home)
	const many = 300
	for i := range many {
		team := "a"
		if i%3 == 0 {
			team = "b"
		}
		if err := db.Enqueue("00000000-0000-4000-8000-"+strings.Repeat("0", 12-len(strconv.Itoa(i)))+strconv.Itoa(i),
			map[string]string{"team": team}); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := built(t, home, "runs", "terminate"); err == nil ||
		!strings.Contains(out, "no run to cancel is given: either name runs or select them") {
		t.Errorf("terminate of nothing = %v\n%s", err, out)
	}
	if out, err := built(t, home, "runs", "terminate", "--tag", "team=b", "--status", "QUEUED", "--dry-run"); err !=
		nil || !strings.Contains(out, "100 runs would be canceled; QUEUED: 100") {
		t.Errorf("terminate --dry-run = %v\n%s", err, out)
	}
	if out, err := built(t, home, "runs", "terminate", "--tag", "team=a", "--job", "light"); err != nil ||
		!strings.Contains(out, "200 runs canceled or asked to stop; CANCELED: 200") {
		t.Errorf("terminate = %v\n%s", err, out)
	}
	left, err := db.Text("SELECT count(*) FROM runs WHERE status = 'QUEUED'")
	if err != nil || left != "100" {
		t.Errorf("%s runs are left in the queue, %v, want 100", left, err)
	}
}

// The place of a queued run is shown, and everything that holds it back, not only the first rule.
func TestWhyARunWaits(t *testing.T) {
	home := parked(t, false,
		"queue: {max_concurrent_runs: 1, tag_concurrency_limits: [{key: team, value: a, limit: 1}]}\nmaintenance: "+
			"[{cron: '* * * * *', for: 10m, job: light, why: nightly}]\n")
	db := storagetest.Open(t, home)
	var ids []string
	for i := range 3 {
		ids = append(ids, "00000000-0000-4000-8000-00000000000"+strconv.Itoa(i))
		if err := db.Enqueue(ids[i], map[string]string{"team": "a"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Event(dagster.NewEvent(dagster.Run{ID: ids[0], Job: "light"}, dagster.RunStart, time.Now(),
		"")); err != nil {
		t.Fatal(err)
	}
	if out, err := slipway(t, home, "pause", "--launcher", "code-server", "--why", "quota talks", "--by", "ann"); err !=
		nil {
		t.Fatal(out, err)
	}
	for _, command := range []string{"explain", "show"} {
		out, err := slipway(t, home, "runs", command, ids[2])
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			`place +2 of 2 queued`, `waits for +max_concurrent_runs: max_concurrent_runs is reached: 1 of 1 in flight`,
			`waits for +tag_limit: tag_concurrency_limits, team=a: 1 of 1 in flight`,
			`held by +` + ids[0] + ` light, since `,
			`waits for +no_leader: no daemon leads this instance: start slipway daemon`,
			`waits for +paused: job light has been paused by slipway.yaml, maintenance\[0\] since .* until .*: nightly`,
			`waits for +paused: launcher code-server has been paused by ann since .*: quota talks`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("runs %s does not say %q:\n%s", command, want, out)
			}
		}
		var got struct{ Wait daemon.Wait }
		if out, err = slipway(t, home, "runs", command, ids[1], "--json"); err != nil ||
			json.Unmarshal([]byte(out), &got) != nil || got.Wait.Place != 1 || len(got.Wait.Rules) != 5 {
			t.Errorf("runs %s --json = %v\n%s", command, err, out)
		}
		if out, err = slipway(t, home, "runs", command, ids[0]); err != nil || strings.Contains(out, "waits for") {
			t.Errorf("runs %s of a run in flight = %v\n%s", command, err, out)
		}
	}
}

// A run's events are shown with all their details.
func TestShowOfAFailedRun(t *testing.T) {
	home := storagetest.NewSQLite(t).Location
	db := storagetest.Open(t, home)
	id, err := db.Text("SELECT run_id FROM runs WHERE pipeline_name = 'fail_job' LIMIT 1")
	if err != nil || id == "" {
		t.Fatal(id, err)
	}
	r := dagster.Run{ID: id, Job: "fail_job"}
	texts := []dagster.Metadata{{Label: "Cause", Text: "oom"},
		{Label: "Last lines of the worker", Text: "one\ttwo\nthree"},
		{Label: "Debug info", Text: "{\"state\": \"Terminated\"}"}}
	if err := db.Event(dagster.NewEngineEvent(r, time.Now(), "[Slipway] The run worker ended.\nIts second line", texts,
		errors.New("exit code 137"))); err != nil {
		t.Fatal(err)
	}
	out, err := slipway(t, home, "runs", "show", id)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Its second line", "  Cause: oom\n", "  Last lines of the worker: one    two\n",
		"  three\n", `  Debug info: {"state": "Terminated"}`, "  Error: exit code 137\n",
		"  Error: dagster._core.errors.DagsterExecutionStepExecutionError: ", "  caused by: "} {
		if !strings.Contains(out, want) {
			t.Errorf("runs show does not say %q:\n%s", want, out)
		}
	}
	type exception struct {
		Message string
		Stack   []string
		Cause   *exception
	}
	var got struct {
		Events []struct {
			Type     string
			Metadata []struct{ Label, Text string }
			Error    *exception
		}
	}
	if out, err = slipway(t, home, "runs", "show", id, "--json"); err != nil ||
		json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("runs show --json = %v\n%s", err, out)
	}
	last := got.Events[len(got.Events)-1]
	if len(last.Metadata) != 3 || last.Metadata[1].Text != texts[1].Text || last.Error == nil ||
		last.Error.Message != "exit code 137" {
		t.Errorf("the last event is %+v", last)
	}
	for _, e := range got.Events {
		if e.Type == "STEP_FAILURE" && (e.Error == nil || e.Error.Cause == nil || len(e.Error.Cause.Stack) == 0) {
			t.Errorf("the step's failure has the error %+v, want its cause with a stack", e.Error)
		}
	}
}

// A status that no run has is an error of the command, which names the statuses.
func TestUnknownStatus(t *testing.T) {
	home := parked(t, false, "")
	for _, args := range [][]string{{"runs", "list", "--status", "BOGUS"}, {"runs", "terminate", "--status", "BOGUS"}} {
		if out, err := slipway(t, home, args...); exitCode(err) != 2 ||
			!strings.Contains(err.Error(), "--status BOGUS: runs have no such status; there are QUEUED, NOT_STARTED") {
			t.Errorf("%v = %v, exit code %d\n%s", args, err, exitCode(err), out)
		}
	}
	if _, err := slipway(t, home, "runs", "list", "--status", "queud"); err == nil ||
		!strings.Contains(err.Error(), "did you mean QUEUED?") {
		t.Errorf("runs list --status queud = %v", err)
	}
	if exitCode(nil) != 0 || exitCode(errSick) != 1 {
		t.Errorf("exit codes %d and %d, want 0 and 1", exitCode(nil), exitCode(errSick))
	}
}

// A duration in the JSON log has its unit.
func TestDurationsInTheLog(t *testing.T) {
	var out strings.Builder
	p := &program{err: &out, logLevel: "info", logJSON: true}
	log, _, err := p.log()
	if err != nil {
		t.Fatal(err)
	}
	if log.Info("worker launched", "dur", 47249752*time.Nanosecond); !strings.Contains(out.String(),
		`"dur":"47.249752ms"`) {
		t.Errorf("the log has %s", out.String())
	}
}

// The demo's summary counts separately the runs that did not end as expected.
func TestDemoCountsWhatIsWrong(t *testing.T) {
	var out strings.Builder
	d := &demo{program: &program{out: &out}}
	rows := []*row{
		{demoRun: demoRun{job: "a", want: dagster.Success}, id: "00000000-a", status: dagster.Failure},
		{demoRun: demoRun{job: "b", want: dagster.Success}, id: "00000000-b", status: dagster.Success},
		{demoRun: demoRun{job: "c", want: dagster.Failure}, id: "00000000-c", status: dagster.Failure},
	}
	if err := d.summary(t.Context(), rows); err == nil ||
		!strings.Contains(out.String(), "3 runs: 1 succeeded, 1 failed as expected, 1 did not end as expected;") {
		t.Errorf("summary = %v\n%s", err, out.String())
	}
}

// The priority of queued runs can be changed, of one or of all that match flags: the order changes,
// and the run's log says who did it. A daemon that leads takes the new order.
func TestPriority(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, false, "queue: {max_concurrent_runs: 1}\nmaintenance: [{cron: '* * * * *', for: 10m}]\n")
	var ids []string
	for i := range 4 {
		ids = append(ids, enqueued(t, home, "--tag", "team="+string("ab"[i%2]), "--", "true"))
	}
	place := func(id string) int {
		var got struct{ Wait daemon.Wait }
		out, err := slipway(t, home, "runs", "explain", id, "--json")
		if err != nil || json.Unmarshal([]byte(out), &got) != nil {
			t.Fatal(out, err)
		}
		return got.Wait.Place
	}
	if out, err := slipway(t, home, "queue"); err == nil || !strings.Contains(err.Error(), "no daemon leads") {
		t.Errorf("queue without a daemon = %v\n%s", err, out)
	}
	d := launch(t, home)
	d.says(1, "leading")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := slipway(t, home, "queue")
		return err == nil && regexp.MustCompile(`(?m)^4 +paused +the instance +-$`).MatchString(out),
			out
	})
	if out, err := slipway(t, home, "runs", "priority", ids[3], "7"); err != nil ||
		out != "run "+ids[3]+": QUEUED\n" || place(ids[3]) != 1 || place(ids[0]) != 2 {
		t.Errorf("priority = %v, %d and %d\n%s", err, place(ids[3]), place(ids[0]), out)
	}
	if out, err := slipway(t, home, "runs", "priority", "--tag", "team=a", "--dry-run", "--", "-1"); err != nil ||
		!strings.HasPrefix(out, "2 runs would have priority -1") || place(ids[0]) != 2 {
		t.Errorf("priority --dry-run = %v, %s", err, out)
	}
	if out, err := slipway(t, home, "runs", "priority", "--tag", "team=a", "--", "-1"); err != nil ||
		!strings.HasPrefix(out, "2 runs have priority -1; QUEUED: 2") || place(ids[1]) != 2 || place(ids[0]) != 3 {
		t.Errorf("priority of many = %v, %d and %d\n%s", err, place(ids[1]), place(ids[0]), out)
	}
	if out, err := slipway(t, home, "runs", "show", ids[0]); err != nil ||
		!strings.Contains(out, "The priority was changed from 0 to -1 by ") {
		t.Errorf("runs show = %v\n%s", err, out)
	}
	for want, args := range map[string][]string{
		`the priority "high" is not an integer`: {ids[0], "high"},
		"the priority is missing":               {},
		"either name runs before the priority":  {"5"},
		"there is no run nosuch":                {"nosuch", "5"},
	} {
		if out, err := slipway(t, home, append([]string{"runs", "priority"}, args...)...); err == nil ||
			!strings.Contains(out+err.Error(), want) {
			t.Errorf("priority %q = %v, want %q\n%s", args, err, want, out)
		}
	}
	if out, err := slipway(t, home, "unpause"); err != nil {
		t.Fatal(out, err)
	}
	for _, id := range ids {
		status(t, home, id, "SUCCESS")
	}
	var order []string
	for line := range strings.Lines(d.output()) {
		for i, id := range ids {
			if strings.Contains(line, "run claimed") && strings.Contains(line, id) {
				order = append(order, strconv.Itoa(i))
			}
		}
	}
	if got := strings.Join(order, " "); got != "3 1 0 2" {
		t.Errorf("the daemon claimed in the order %s, want 3 1 0 2", got)
	}
	if out, err := slipway(t, home, "runs", "priority", ids[0], "5"); err == nil ||
		!strings.Contains(out, "only queued runs are ordered by priority") {
		t.Errorf("priority of a run that has ended = %v\n%s", err, out)
	}
}

// Values that no command can have a use for are refused with exit code 2, and nothing is done.
func TestImpossibleFlags(t *testing.T) {
	home := parked(t, false, "")
	for want, args := range map[string]string{
		"--for: -2h0m0s is less than 1s; see slipway pause --help":  "pause --for -2h",
		"--timeout: -1s is less than 0s":                            "drain --timeout -1s",
		"--grace: -5m0s is less than 0s":                            "sweep --grace -5m",
		"--limit: -3 is less than 0; see slipway runs list --help":  "runs list --limit -3",
		"--tail: -1 is less than 0":                                 "runs logs x --tail -1",
		"--count: 0 is less than 1":                                 "runs enqueue --count 0 -- true",
		"--many: 0 is less than 1":                                  "launchers test local --many 0",
		"--all ends every pause, not only that of job x":            "unpause --all --job x",
		`--limit: "x" is not an integer (for example: 5)`:           "runs list --limit x",
		"slipway runs show needs exactly one argument, but got 0: ": "runs show",
	} {
		out, err := slipway(t, home, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != 2 || out != "" {
			t.Errorf("%s = %v, exit code %d, want %q and 2\n%s", args, err, exitCode(err), want, out)
		}
	}
	if n, err := storagetest.Open(t, home).Text("SELECT count(*) FROM runs WHERE status = 'QUEUED'"); err != nil ||
		n != "0" {
		t.Errorf("%s runs were enqueued, %v", n, err)
	}
}
