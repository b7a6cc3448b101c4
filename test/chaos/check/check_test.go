package check_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/test/chaos/check"
)

// world is one without violations. It has a run that succeeded, one whose first worker was killed,
// one that fails by itself, one that was canceled, and a foreign one.
type world struct {
	t   *testing.T
	dir string
}

func (w *world) exec(file, query string, args ...any) {
	w.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "history", file)+"?_pragma=busy_timeout(30000)")
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) event(run, typ string) { w.eventOf(run, typ, "{}") }

func (w *world) eventOf(run, typ, body string) {
	w.exec("runs/"+run+".db",
		"CREATE TABLE IF NOT EXISTS event_logs (id INTEGER PRIMARY KEY, run_id TEXT, event TEXT, dagster_event_type "+
			"TEXT)")
	for _, file := range []string{"runs/" + run + ".db", "runs/index.db"} {
		w.exec(file, "INSERT INTO event_logs (run_id, event, dagster_event_type) VALUES (?, ?, ?)", run, body, typ)
	}
}

func (w *world) launch(run string, attempt, epoch int, state string) {
	w.exec("runs.db", "INSERT INTO run_tags (run_id, key, value) VALUES (?, '.dagster/slipway/launch', ?)", run,
		fmt.Sprintf("%s %d i local t%d %d 1 %s", run, attempt, attempt, epoch, state))
}

func (w *world) run(run, status, end string) {
	w.exec("runs.db", "INSERT INTO runs (run_id, pipeline_name, status, run_body) VALUES (?, 'job', ?, '{}')", run,
		status)
	w.event(run, "PIPELINE_STARTING")
	w.event(run, "PIPELINE_START")
	if end != "" {
		w.event(run, end)
	}
}

func (w *world) witness(run, text string) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, "witness", run), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) note(entries ...check.Entry) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.dir, "journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	for _, e := range entries {
		if err := json.NewEncoder(f).Encode(e); err != nil {
			w.t.Fatal(err)
		}
	}
}

func inOrder(t *testing.T) *world {
	t.Helper()
	w := &world{t, t.TempDir()}
	if err := sqlite.Create(t.Context(), w.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.dir, "witness"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.note(check.Entry{Do: "enqueue", Run: "good", Fate: "ok"}, check.Entry{Do: "enqueue", Run: "hurt", Fate: "ok"},
		check.Entry{Do: "enqueue", Run: "bad", Fate: "fail"},
		check.Entry{Do: "enqueue", Run: "stopped", Fate: "ok"}, check.Entry{Do: "cancel", Run: "stopped"},
		check.Entry{Do: "kill_worker", Run: "hurt"}, check.Entry{Do: "foreign", Run: "foreign", Note: "STARTED"})
	w.run("good", "SUCCESS", "PIPELINE_SUCCESS")
	w.launch("good", 1, 1, "taken")
	w.witness("good", "begin 1\nend\n")
	w.run("bad", "FAILURE", "PIPELINE_FAILURE")
	w.launch("bad", 1, 1, "taken")
	w.witness("bad", "begin 2\nend\n")
	w.run("stopped", "CANCELED", "PIPELINE_CANCELED")
	w.launch("stopped", 1, 1, "taken")
	w.witness("stopped", "begin 3\n")
	// Its worker was killed when it had written its success to its own log.
	w.note(check.Entry{Do: "enqueue", Run: "theirs", Fate: "dagster"}, check.Entry{Do: "kill_worker", Run: "theirs"})
	w.run("theirs", "SUCCESS", "PIPELINE_SUCCESS")
	w.launch("theirs", 1, 1, "open")
	w.witness("theirs", "begin 6\nend\n")
	w.exec("runs/index.db",
		"DELETE FROM event_logs WHERE run_id = 'theirs' AND dagster_event_type = 'PIPELINE_SUCCESS'")
	w.run("hurt", "SUCCESS", "")
	w.launch("hurt", 1, 1, "void")
	w.event("hurt", "PIPELINE_STARTING")
	w.event("hurt", "PIPELINE_START")
	w.event("hurt", "PIPELINE_SUCCESS")
	w.launch("hurt", 2, 2, "taken")
	w.witness("hurt", "begin 4\nbegin 5\nend\n")
	w.run("foreign", "STARTED", "")
	w.note(check.Entry{Do: "enqueue", Run: "slow", Fate: "expire"})
	w.run("slow", "FAILURE", "")
	w.eventOf("slow", "PIPELINE_CANCELING",
		`{"user_message": "Canceling due to exceeding maximum runtime of 2 seconds."}`)
	w.event("slow", "PIPELINE_CANCELED") // its worker took the cancel for a user's
	w.event("slow", "PIPELINE_FAILURE")
	w.launch("slow", 1, 2, "taken")
	w.witness("slow", "begin 7\n")
	return w
}

// The checker finds nothing in a world without violations, and it finds each kind of violation that
// was planted.
func TestCheckerFindsWhatWasPlanted(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(w *world)
		finds string
	}{
		"nothing": {func(*world) {}, ""},
		"a lost run": {func(w *world) { w.exec("runs.db", "DELETE FROM runs WHERE run_id = 'good'") },
			"run good is lost"},
		"a run of Dagster's worker that was failed for it": {func(w *world) {
			w.note(check.Entry{Do: "enqueue", Run: "own", Fate: "dagster"})
			w.run("own", "FAILURE", "PIPELINE_FAILURE")
			w.launch("own", 1, 2, "taken")
		}, "run own of Dagster's own worker is FAILURE, which that worker has not written"},
		"a worker beside Dagster's": {func(w *world) {
			w.note(check.Entry{Do: "enqueue", Run: "own", Fate: "dagster"})
			w.run("own", "SUCCESS", "PIPELINE_SUCCESS")
			w.launch("own", 1, 2, "taken")
			w.witness("own", "begin 1\nbeside 1\nbegin 2\nend\nend\n")
		}, "run own: a second worker began while the first lived (beside 1)"},
		"a run that has not ended": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'STARTING' WHERE run_id = 'bad'")
		}, "run bad has not ended: it is STARTING"},
		"a healthy run that failed": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'FAILURE' WHERE run_id = 'hurt'")
		}, "healthy run hurt is FAILURE"},
		"a success that is a failure": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'FAILURE' WHERE run_id = 'good'")
		}, "run good was reported as a success by its worker, and is FAILURE"},
		"a failure that is a success": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'SUCCESS' WHERE run_id = 'bad'")
		}, "run bad is SUCCESS, and its step fails"},
		"a success without its step": {func(w *world) { _ = os.Remove(filepath.Join(w.dir, "witness", "good")) },
			"run good is SUCCESS, and its step has not come to its end"},
		"a run that was not canceled": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'CANCELED' WHERE run_id = 'good'")
		}, "although it was not canceled"},
		"a doubled start": {func(w *world) { w.event("good", "PIPELINE_START") },
			"run good was started 2 times with 1 launch rows"},
		"two workers at once": {func(w *world) {
			_ = os.Remove(filepath.Join(w.dir, "witness", "good"))
			w.witness("good", "begin 1\nbegin 9\nend\nend\n")
		}, "run good: a second worker (begin 9) began while the first (begin 1) was running"},
		"two workers at once where the supervisor was killed": {func(w *world) {
			w.note(check.Entry{Do: "kill_supervisor", Run: "good"})
			_ = os.Remove(filepath.Join(w.dir, "witness", "good"))
			w.witness("good", "begin 1\nbeside 1\nbegin 9\nend\nend\n")
		}, "run good: a second worker began while the first lived (beside 1)"},
		"a canceled run that is a success": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'SUCCESS' WHERE run_id = 'stopped'")
			w.witness("stopped", "end\n")
		}, "run stopped is SUCCESS, and its log has 1 CANCELED"},
		"a canceled run that is a failure": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'FAILURE' WHERE run_id = 'stopped'")
		}, "run stopped is FAILURE, and its log has 1 CANCELED"},
		"a canceled run that would have expired": {func(w *world) {
			w.note(check.Entry{Do: "enqueue", Run: "soon", Fate: "expire"}, check.Entry{Do: "cancel", Run: "soon"})
			w.run("soon", "FAILURE", "PIPELINE_CANCELED")
			w.launch("soon", 1, 2, "taken")
		}, "run soon is FAILURE, and its log has 1 CANCELED"},
		"an expired run that is a success": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'SUCCESS' WHERE run_id = 'slow'")
		}, "run slow is SUCCESS, and "},
		"two workers one after the other": {func(w *world) { w.witness("good", "begin 9\nend\n") },
			"run good: 2 workers past their gate, of which 0 were killed"},
		"a leaked place": {func(w *world) {
			w.exec("runs/index.db",
				"INSERT INTO concurrency_slots (concurrency_key, run_id, step_key, deleted) VALUES ('p', 'bad', 's', "+
					"0)")
		}, `run bad, which is "FAILURE", holds a place of a pool (concurrency_slots)`},
		"a leaked step": {func(w *world) {
			w.exec("runs/index.db",
				"INSERT INTO pending_steps (concurrency_key, run_id, step_key) VALUES ('p', 'bad', 's')")
		}, "(pending_steps)"},
		"a foreign run that was failed": {func(w *world) {
			w.exec("runs.db", "UPDATE runs SET status = 'FAILURE' WHERE run_id = 'foreign'")
		}, "foreign run foreign was touched"},
		"a foreign run that was launched": {func(w *world) { w.launch("foreign", 1, 2, "open") },
			"foreign run foreign was touched"},
		"a foreign run that was executed": {func(w *world) { w.witness("foreign", "begin 1\n") },
			"foreign run foreign was executed"},
		"an old leader that wrote": {func(w *world) {
			w.launch("late", 1, 1, "open")
			w.note(check.Entry{Do: "enqueue", Run: "late", Fate: "ok"})
		}, "stands after that of run slow of epoch 2"},
		"an old leader's second attempt": {func(w *world) { w.launch("hurt", 3, 1, "void") },
			"run hurt: launch rows of epochs [1 2 1]"},
		"an event that index.db lacks": {func(w *world) {
			w.exec("runs/index.db",
				"DELETE FROM event_logs WHERE run_id = 'good' AND dagster_event_type = 'PIPELINE_SUCCESS'")
		}, "run good has 3 events of status in its own log and 2 in index.db"},
		"more than Dagster's worker loses when it is killed": {func(w *world) {
			w.exec("runs/index.db", "DELETE FROM event_logs WHERE run_id = 'theirs'")
		}, "run theirs has 3 events of status in its own log and 0 in index.db"},
	} {
		t.Run(name, func(t *testing.T) {
			w := inOrder(t)
			c.plant(w)
			bad, err := check.Check(check.World{Location: w.dir, Witness: filepath.Join(w.dir, "witness"),
				Journal: filepath.Join(w.dir, "journal"), Mark: w.dir, Proc: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			found := strings.Join(bad, "\n")
			if c.finds == "" && found != "" || !strings.Contains(found, c.finds) {
				t.Errorf("found %q, want %q", found, c.finds)
			}
		})
	}
}

// A worker that is still alive is found among the real processes.
func TestCheckerFindsWorkers(t *testing.T) {
	w := inOrder(t)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 60 # "+w.dir+" execute_run; :")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bad, err := check.Check(check.World{Location: w.dir, Witness: filepath.Join(w.dir, "witness"),
		Journal: filepath.Join(w.dir, "journal"), Mark: w.dir, Proc: "/proc"})
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if err != nil || len(bad) != 1 || !strings.Contains(bad[0], "a worker lives on") {
		t.Errorf("Check = %q, %v", bad, err)
	}
}
