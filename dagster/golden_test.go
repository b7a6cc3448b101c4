package dagster_test

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/google/go-cmp/cmp"

	"github.com/slipway-run/slipway/dagster"
)

// goldenDirs are the folders of data that real Dagster wrote; SLIPWAY_GOLDEN names one more.
func goldenDirs(t *testing.T) []string {
	dirs := []string{"../testdata/dagster/1.13.27"}
	if extra := os.Getenv("SLIPWAY_GOLDEN"); extra != "" {
		dirs = append(dirs, extra)
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); err != nil {
			t.Fatal(err)
		}
	}
	return dirs
}

// texts reads one text column of a database that must not be written to.
func texts(t *testing.T, file, query string) []string {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?mode=ro&immutable=1")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGoldenRunBodiesComeBackByteForByte(t *testing.T) {
	for _, dir := range goldenDirs(t) {
		bodies := texts(t, filepath.Join(dir, "sqlite/home/history/runs.db"), "SELECT run_body FROM runs")
		if len(bodies) < 10 {
			t.Fatalf("%s has %d runs, want at least 10", dir, len(bodies))
		}
		for _, body := range bodies {
			r, err := dagster.ParseRun(body)
			if err != nil {
				t.Fatalf("ParseRun(%.80s…): %v", body, err)
			}
			if d := cmp.Diff(r.Body(), body); d != "" {
				t.Errorf("run %s: body changed (-got +want):\n%s", r.ID, d)
			}
			if r.Job == "" || r.Remote.Location == "" || r.Remote.Repository == "" || len(r.Code.EntryPoint) == 0 {
				t.Errorf("run %s: origins not read: %+v %+v", r.ID, r.Remote, r.Code)
			}
		}
	}
}

func TestGoldenEventsComeBackByteForByte(t *testing.T) {
	for _, dir := range goldenDirs(t) {
		shards, err := filepath.Glob(filepath.Join(dir, "sqlite/home/history/runs/*.db"))
		if err != nil || len(shards) < 10 {
			t.Fatalf("%s has %d shards (%v), want at least 10", dir, len(shards), err)
		}
		for _, shard := range shards {
			for _, text := range texts(t, shard, "SELECT event FROM event_logs") {
				e, err := dagster.ParseEvent(text)
				if err != nil {
					t.Fatalf("%s: %v", shard, err)
				}
				if got := e.JSON(); got != text {
					t.Errorf("%s: event changed (-got +want):\n%s", shard, cmp.Diff(got, text))
				}
				normal, err := dagster.Normalize(text)
				if err != nil || normal != text {
					t.Errorf("%s: Normalize: %v\n%s", shard, err, cmp.Diff(normal, text))
				}
			}
			stamps := texts(t, shard, "SELECT timestamp || '|' || event FROM event_logs")
			for _, s := range stamps {
				column, text, _ := strings.Cut(s, "|")
				e, _ := dagster.ParseEvent(text)
				if got := e.Time.Format("2006-01-02 15:04:05.000000"); got != column {
					t.Errorf("%s: time of event is %s, column has %s", shard, got, column)
				}
			}
		}
	}
}

// What Slipway writes itself has the same keys and values as what Dagster wrote for the same happening.
func TestEventsFromOutsideEqualDagsters(t *testing.T) {
	dir := "../testdata/dagster/1.13.27/sqlite"
	run := dagster.Run{Job: "ok_job", Remote: dagster.RemoteOrigin{Location: "remote_loc", Repository: "__repository__"}}
	for file, typ := range map[string]dagster.EventType{
		"PIPELINE_STARTING.json": dagster.RunStarting, "PIPELINE_FAILURE.json": dagster.RunFailure,
		"PIPELINE_CANCELED.json": dagster.RunCanceled, "PIPELINE_ENQUEUED.RunEnqueuedData.json": dagster.RunEnqueued,
	} {
		text, err := os.ReadFile(filepath.Join(dir, "events", file))
		if err != nil {
			t.Fatal(err)
		}
		var golden struct{ Event map[string]any }
		if err := json.Unmarshal(text, &golden); err != nil {
			t.Fatal(err)
		}
		run.ID = golden.Event["run_id"].(string)
		run.Job = golden.Event["pipeline_name"].(string)
		at := dagster.FromUnix(golden.Event["timestamp"].(float64))
		message, _ := golden.Event["dagster_event"].(map[string]any)["message"].(string)
		e := dagster.NewEvent(run, typ, at, message)
		if typ == dagster.RunEnqueued {
			e = dagster.NewRunEnqueued(run, at)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(e.JSON()), &got); err != nil {
			t.Fatal(err)
		}
		got["timestamp"] = golden.Event["timestamp"] // ours has microseconds, Python's clock more
		if d := cmp.Diff(got, golden.Event); d != "" {
			t.Errorf("%s (-got +want):\n%s", file, d)
		}
	}
}

func TestExecuteRunArgsEqualDagsters(t *testing.T) {
	for _, dir := range goldenDirs(t) {
		for _, storage := range []string{"sqlite", "postgres"} {
			for file, exit := range map[string]bool{"execute.raw.json": false, "execute_exit_code.raw.json": true} {
				raw, err := os.ReadFile(filepath.Join(dir, storage, "args", file))
				if err != nil {
					t.Fatal(err)
				}
				o, err := dagster.ParseObject(string(raw))
				if err != nil {
					t.Fatal(err)
				}
				id, _ := o.Value("pipeline_run_id").(string)
				a := dagster.ExecuteRunArgs{InstanceRef: o["instance_ref"], Origin: o["pipeline_origin"], RunID: id, SetExitCodeOnFailure: exit}
				if d := cmp.Diff(a.JSON(), string(raw)); d != "" {
					t.Errorf("%s/%s (-got +want):\n%s", storage, file, d)
				}
			}
		}
	}
}
