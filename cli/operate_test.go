package cli

import (
	"encoding/json"
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

// What is paused waits, over a restart of the daemon as well, and everybody sees who paused it and why; what is not goes on.
func TestPause(t *testing.T) {
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
	if st := statusOf(t, home); st.Runs["QUEUED"] != 1 || st.Waiting["paused"] != 1 || st.Leader.Lease != "held" || st.Launchers[1].Name != "local" || st.Launchers[1].Sick {
		t.Errorf("status = %+v", st)
	}
	if out, err := built(t, home, "unpause"); err == nil || !strings.Contains(out, "launches of the instance are not paused; slipway status shows what is") {
		t.Errorf("unpause of what is not paused = %v\n%s", err, out)
	}
	if out, err := built(t, home, "unpause", "--tag", "team=a"); err != nil || !strings.Contains(out, "1 pauses taken away") {
		t.Errorf("unpause = %v\n%s", err, out)
	}
	status(t, home, held, "SUCCESS")
	for _, args := range [][]string{{"pause", "--launcher", "moon"}, {"pause", "--tag", "team"}, {"pause", "--job", "a", "--tag", "b=c"}} {
		if out, err := built(t, home, args...); err == nil {
			t.Errorf("%v is taken: %s", args, out)
		}
	}
}

func TestDrain(t *testing.T) {
	home := parked(t, true, "")
	file := filepath.Join(t.TempDir(), "go")
	run := enqueued(t, home, "--", "sh", "-c", "while [ ! -e "+file+" ]; do sleep 0.05; done")
	status(t, home, run, "STARTED")
	if out, err := built(t, home, "drain", "--launcher", "local", "--timeout", "1s"); err == nil || !strings.Contains(out, "1 runs of launcher local are in flight after 1s; its launches stay paused") {
		t.Errorf("drain while a run is in flight = %v\n%s", err, out)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := built(t, home, "drain", "--launcher", "local"); err != nil || !strings.Contains(out, "nothing of launcher local is in flight any more") {
		t.Errorf("drain = %v\n%s", err, out)
	}
	if out, err := built(t, home, "unpause", "--all"); err != nil || !strings.Contains(out, "1 pauses taken away") {
		t.Errorf("unpause --all = %v\n%s", err, out)
	}
}

// Metrics, health and status are to be had; with a token, only health without it.
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
	for _, path := range []string{"/metrics", "/status"} {
		for _, token := range []string{"", "wrong"} {
			if code, text := get(path, token); code != http.StatusUnauthorized || strings.Contains(text, home) {
				t.Errorf("%s with token %q = %d %s", path, token, code, text)
			}
		}
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		_, text := get("/metrics", "sesame")
		for _, line := range []string{
			`slipway_leader 1`, `slipway_launch_seconds_count{launcher="local",outcome="launched"} 1`, `slipway_ended_runs_total{launcher="local",status="SUCCESS"} 1`,
			`slipway_queue_seconds_count 1`, `slipway_queued_runs{reason="paused"} 0`, `slipway_launcher_sick{launcher="local",place=""} 0`, `slipway_epoch `, `slipway_storage_seconds_bucket{outcome="ok"`,
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
	if err == nil || !strings.Contains(out, "error    no daemon leads this instance: nothing is launched\n         next: start slipway daemon") {
		t.Errorf("doctor without a daemon = %v\n%s", err, out)
	}
	if out, err := built(t, home, "status"); err == nil || !strings.Contains(out, "no daemon leads this instance: start slipway daemon") {
		t.Errorf("status without a daemon = %v\n%s", err, out)
	}
	start(t, home)
	statusOf(t, home)
	testenv.Eventually(t, time.Minute, func() (bool, string) { // the endpoint may take a moment
		out, err = built(t, home, "doctor")
		return err == nil && strings.Contains(out, "ok       the endpoint for Terminate in Dagster's UI answers at unix:"), out
	})
	for _, text := range []string{"ok       dagster.yaml and slipway.yaml in " + home + " can be read", "leads, epoch 1", "dagster-daemon's dequeuer is parked", "launcher local: nothing was found against it", "0 runs are queued"} {
		if !strings.Contains(out, text) {
			t.Errorf("doctor does not say %q:\n%s", text, out)
		}
	}
	db := storagetest.Open(t, home)
	for _, q := range []string{
		"INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) VALUES ('MONITORING', 'stock', strftime('%Y-%m-%d %H:%M:%f', 'now'), '{}')",
		"INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) VALUES ('SENSOR', 'stock', '2020-01-01 00:00:00.000000', '{}')",
	} {
		if err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	out, err = built(t, home, "doctor")
	if err == nil || !strings.Contains(out, "error    dagster-daemon monitors runs of this instance") || !strings.Contains(out, "warning  dagster-daemon's SENSOR was last heard of") {
		t.Errorf("doctor beside a stock monitor = %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(home, "slipway.yaml"), []byte("queue: {max_concurrent_runs: many}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var found []daemon.Symptom
	if out, err = built(t, home, "doctor", "--json"); err == nil || json.Unmarshal([]byte(out[:strings.LastIndex(out, "]")+1]), &found) != nil || len(found) != 1 || !strings.Contains(found[0].What, "queue.max_concurrent_runs") {
		t.Errorf("doctor of settings that cannot be read = %v\n%s", err, out)
	}
}

// Thousands of runs that wait are canceled in one call, those that fit and no others.
func TestTerminateMany(t *testing.T) {
	home := parked(t, false, "")
	db := storagetest.Open(t, home)
	const many = 300
	for i := range many {
		team := "a"
		if i%3 == 0 {
			team = "b"
		}
		if err := db.Enqueue("00000000-0000-4000-8000-"+strings.Repeat("0", 12-len(strconv.Itoa(i)))+strconv.Itoa(i), map[string]string{"team": team}); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := built(t, home, "runs", "terminate"); err == nil || !strings.Contains(out, "either runs are named, or flags select them") {
		t.Errorf("terminate of nothing = %v\n%s", err, out)
	}
	if out, err := built(t, home, "runs", "terminate", "--tag", "team=b", "--status", "QUEUED", "--dry-run"); err != nil || !strings.Contains(out, "100 runs would be canceled; QUEUED: 100") {
		t.Errorf("terminate --dry-run = %v\n%s", err, out)
	}
	if out, err := built(t, home, "runs", "terminate", "--tag", "team=a", "--job", "light"); err != nil || !strings.Contains(out, "200 runs canceled or asked to stop; CANCELED: 200") {
		t.Errorf("terminate = %v\n%s", err, out)
	}
	left, err := db.Text("SELECT count(*) FROM runs WHERE status = 'QUEUED'")
	if err != nil || left != "100" {
		t.Errorf("%s runs are left in the queue, %v, want 100", left, err)
	}
}
