package dagster_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/testenv"
)

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
	for _, dir := range testenv.Golden(t) {
		bodies := texts(t, filepath.Join(dir, "sqlite/home/history/runs.db"), "SELECT run_body FROM runs")
		if len(bodies) < 10 {
			t.Fatalf("%s has %d runs, want at least 10", dir, len(bodies))
		}
		for _, body := range bodies {
			r, err := dagster.ParseRun(body)
			if err != nil {
				t.Fatalf("ParseRun(%.80s…): %v", body, err)
			}
			if d := testenv.Diff(r.Body(), body); d != "" {
				t.Errorf("run %s: body changed (-got +want):\n%s", r.ID, d)
			}
			if r.Job == "" || r.Remote.Location == "" || r.Remote.Repository == "" || len(r.Code.EntryPoint) == 0 {
				t.Errorf("run %s: origins not read: %+v %+v", r.ID, r.Remote, r.Code)
			}
		}
	}
}

func TestGoldenEventsComeBackByteForByte(t *testing.T) {
	for _, dir := range testenv.Golden(t) {
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
					t.Errorf("%s: event changed (-got +want):\n%s", shard, testenv.Diff(got, text))
				}
				normal, err := dagster.Normalize(text)
				if err != nil || normal != text {
					t.Errorf("%s: Normalize: %v\n%s", shard, err, testenv.Diff(normal, text))
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

// The events that Slipway writes have the same keys and values as the events that Dagster wrote in
// the same situation.
func TestEventsFromOutsideEqualDagsters(t *testing.T) {
	for _, dir := range testenv.Golden(t) {
		eventsFromOutside(t, filepath.Join(dir, "sqlite"))
	}
}

func eventsFromOutside(t *testing.T, dir string) {
	t.Helper()
	run := dagster.Run{Job: "ok_job", Remote: dagster.RemoteOrigin{Location: "remote_loc",
		Repository: "__repository__"}}
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
		if d := testenv.Diff(got, golden.Event); d != "" {
			t.Errorf("%s (-got +want):\n%s", file, d)
		}
	}
}

// Every serialized text in the databases and raw files comes back byte for byte, whatever its
// class.
func TestGoldenTextsOfAllClassesComeBackByteForByte(t *testing.T) {
	columns := map[string][]string{
		"history/runs.db": {"SELECT body FROM daemon_heartbeats", "SELECT body FROM bulk_actions"},
		"history/runs/index.db": {"SELECT event FROM event_logs",
			"SELECT last_materialization FROM asset_keys WHERE last_materialization IS NOT NULL"},
		"schedules/schedules.db": {"SELECT instigator_body FROM instigators", "SELECT tick_body FROM job_ticks"},
	}
	for _, dir := range testenv.Golden(t) {
		var all []string
		for file, queries := range columns {
			for _, q := range queries {
				all = append(all, texts(t, filepath.Join(dir, "sqlite/home", file), q)...)
			}
		}
		raw, err := filepath.Glob(filepath.Join(dir, "*/args/*.raw.json"))
		if err != nil || len(raw) < 6 {
			t.Fatalf("%s has %d raw files (%v), want 6", dir, len(raw), err)
		}
		for _, file := range raw {
			all = append(all, read(t, file))
		}
		for _, text := range all {
			if got, err := dagster.Normalize(text); err != nil || got != text {
				t.Errorf("Normalize: %v\n%s", err, testenv.Diff(got, text))
			}
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The pretty-printed examples, written as Dagster stores them, go through the typed decoders and
// come back.
func TestGoldenExamplesComeBack(t *testing.T) {
	decoders := map[string]func(string) (string, error){
		"EventLogEntry":   func(s string) (string, error) { e, err := dagster.ParseEvent(s); return e.JSON(), err },
		"PipelineRun":     func(s string) (string, error) { r, err := dagster.ParseRun(s); return r.Body(), err },
		"DaemonHeartbeat": func(s string) (string, error) { h, err := dagster.ParseHeartbeat(s); return h.JSON(), err },
		"InstanceRef": func(s string) (string, error) {
			r, err := dagster.ParseInstanceRef(s)
			return r.JSON(), err
		},
		"ExecuteRunArgs": func(s string) (string, error) {
			a, err := dagster.ParseExecuteRunArgs(s)
			return a.JSON(), err
		},
		"ResumeRunArgs": func(s string) (string, error) {
			a, err := dagster.ParseExecuteRunArgs(s)
			return a.JSON(), err
		},
	}
	for _, dir := range testenv.Golden(t) {
		seen := map[string]int{}
		for _, pattern := range []string{"*/events/*.json", "*/runs/*.run_body.json", "*/heartbeats/*.json",
			"*/instance_ref.pretty.json", "*/args/*.pretty.json"} {
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) == 0 {
				t.Fatalf("%s/%s: no files (%v)", dir, pattern, err)
			}
			for _, file := range files {
				o, err := dagster.ParseObject(read(t, file))
				if err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				for _, wrapped := range []string{"event", "body"} { // beside the row's other columns
					if inner, ok := o[wrapped]; ok && o.Class() == "" {
						if o, err = dagster.ParseObject(string(inner)); err != nil {
							t.Fatalf("%s: %v", file, err)
						}
					}
				}
				text, err := dagster.Normalize(o.JSON())
				decode := decoders[o.Class()]
				if err != nil || decode == nil {
					t.Errorf("%s: class %q, %v", file, o.Class(), err)
					continue
				}
				seen[o.Class()]++
				if got, err := decode(text); err != nil || got != text {
					t.Errorf("%s: %v (-got +want)\n%s", file, err, testenv.Diff(got, text))
				}
			}
		}
		for class := range decoders {
			if seen[class] == 0 {
				t.Errorf("%s has no %s", dir, class)
			}
		}
	}
}

func TestPoolsAndErrorsAreRead(t *testing.T) {
	dir := "../../test/golden/1.13.27/sqlite"
	r, err := dagster.ParseRun(read(t, filepath.Join(dir, "runs/partitioned_asset.run_body.json")))
	if err != nil {
		t.Fatal(err)
	}
	want := &dagster.Pools{All: []string{"warehouse"}, Root: map[string]int{"warehouse": 1}}
	if d := testenv.Diff(r.Pools, want); d != "" {
		t.Errorf("Pools (-got +want):\n%s", d)
	}
	o, err := dagster.ParseObject(read(t, filepath.Join(dir, "events/STEP_FAILURE.StepFailureData.json")))
	if err != nil {
		t.Fatal(err)
	}
	e, err := dagster.ParseEvent(string(o["event"]))
	if err != nil {
		t.Fatal(err)
	}
	if info := e.Error(); info == nil || info.Class == "" || info.Cause == nil || len(info.Stack) == 0 {
		t.Errorf("Error() = %+v, want a class, a stack and a cause", info)
	}
}

func TestCompressedArgumentsComeBack(t *testing.T) {
	text := read(t, "../../test/golden/1.13.27/sqlite/args/execute.raw.json")
	if got, err := dagster.Decompress(dagster.Compress(text)); err != nil || got != text {
		t.Errorf("Decompress(Compress) = %v, %.80s", err, got)
	}
	if _, err := dagster.Decompress("!"); err == nil {
		t.Error("Decompress(!) gives no error")
	}
}

func TestExecuteRunArgsEqualDagsters(t *testing.T) {
	for _, dir := range testenv.Golden(t) {
		for _, storage := range []string{"sqlite", "postgres"} {
			for file, exit := range map[string]bool{"execute.raw.json": false, "execute_exit_code.raw.json": true,
				"resume.raw.json": false} {
				raw, err := os.ReadFile(filepath.Join(dir, storage, "args", file))
				if err != nil {
					t.Fatal(err)
				}
				o, err := dagster.ParseObject(string(raw))
				if err != nil {
					t.Fatal(err)
				}
				id, _ := o.Value("pipeline_run_id").(string)
				a := dagster.ExecuteRunArgs{InstanceRef: o["instance_ref"], Origin: o["pipeline_origin"], RunID: id,
					SetExitCodeOnFailure: exit, Resume: file == "resume.raw.json"}
				if d := testenv.Diff(a.JSON(), string(raw)); d != "" {
					t.Errorf("%s/%s (-got +want):\n%s", storage, file, d)
				}
			}
		}
	}
}

// The events that slipway-worker writes have the same keys and values as the events that Dagster's
// worker wrote in the same situation.
func TestEventsFromInsideEqualDagsters(t *testing.T) {
	for _, dir := range testenv.Golden(t) {
		for file, make := range map[string]func(dagster.Inside, string) dagster.Event{
			"PIPELINE_START.json":   func(i dagster.Inside, _ string) dagster.Event { return i.Start() },
			"PIPELINE_SUCCESS.json": func(i dagster.Inside, _ string) dagster.Event { return i.Success() },
			"STEP_START.json":       func(i dagster.Inside, step string) dagster.Event { return i.StepStart(step, 1) },
			"STEP_RESTARTED.json":   func(i dagster.Inside, step string) dagster.Event { return i.StepStart(step, 2) },
			"STEP_SUCCESS.StepSuccessData.json": func(i dagster.Inside, step string) dagster.Event {
				return i.StepSuccess(step, 83935575*time.Nanosecond)
			},
			"STEP_FAILURE.StepFailureData.json": func(i dagster.Inside, step string) dagster.Event {
				return i.StepFailure(step, errors.New("x"))
			},
			"STEP_UP_FOR_RETRY.StepRetryData.json": func(i dagster.Inside, step string) dagster.Event {
				return i.StepUpForRetry(step, 0, errors.New("x"))
			},
			"LOGS_CAPTURED.ComputeLogsCaptureData.json": func(i dagster.Inside, _ string) dagster.Event {
				return i.LogsCaptured("key", "step")
			},
			"LOG_MESSAGE.json": func(i dagster.Inside, step string) dagster.Event {
				return i.Log(step, 20, "hello golden")
			},
		} {
			o, err := dagster.ParseObject(read(t, filepath.Join(dir, "sqlite/events", file)))
			if err != nil {
				t.Fatal(err)
			}
			var want, got map[string]any
			if err := json.Unmarshal(o["event"], &want); err != nil {
				t.Fatal(err)
			}
			inside := dagster.Inside{Run: dagster.Run{ID: want["run_id"].(string), Job: want["pipeline_name"].(string)},
				Now: time.Now}
			step, _ := want["step_key"].(string)
			if e, ok := want["dagster_event"].(map[string]any); ok {
				inside.PID = int(e["pid"].(float64))
				step, _ = e["step_key"].(string)
			}
			if err := json.Unmarshal([]byte(make(inside, step).JSON()), &got); err != nil {
				t.Fatal(err)
			}
			for _, m := range []map[string]any{got, want} { // what must differ
				delete(m, "timestamp")
				if e, ok := m["dagster_event"].(map[string]any); ok {
					if d, ok := e["event_specific_data"].(map[string]any); ok {
						for _, k := range []string{"error", "duration_ms", "log_key", "step_keys"} {
							if _, has := d[k]; has {
								d[k] = "differs"
							}
						}
					}
				}
			}
			if d := testenv.Diff(got, want); d != "" {
				t.Errorf("%s (-got +want):\n%s", file, d)
			}
		}
	}
}
