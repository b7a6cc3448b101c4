// Package storagetest has the suite that every storage passes. It also has a substitute for
// Dagster's own writers, with which other tests create runs and act as workers.
package storagetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/testenv"
)

// Dagster writes to a storage as Dagster's Python does: the event and the row of the run in
// separate statements, without locks and without checks of transitions.
type Dagster struct {
	Location string // folder of SQLite files, or a Postgres address
	db       *sql.DB
}

const golden = "test/golden/1.13.27"

// NewSQLite makes a copy of a DAGSTER_HOME that real Dagster 1.13 wrote, with its finished and
// queued runs and no others. It returns a writer for it.
func NewSQLite(t testing.TB) *Dagster {
	t.Helper()
	home := t.TempDir()
	if err := os.CopyFS(home, os.DirFS(filepath.Join(testenv.Root(t), golden, "sqlite/home"))); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"history", "history/runs"} { // the copy keeps the modes
		if err := os.Chmod(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Open(t, home)
}

// Open returns a writer for an existing storage.
func Open(t testing.TB, location string) *Dagster {
	t.Helper()
	d, err := Connect(location)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.db.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Connect is Open for programs. The connection is closed when the process ends.
func Connect(location string) (*Dagster, error) {
	if strings.HasPrefix(location, "postgresql://") {
		db, err := sql.Open("pgx", location)
		return &Dagster{location, db}, err
	}
	db, err := openSQLite(filepath.Join(location, "history/runs.db"))
	return &Dagster{location, db}, err
}

func openSQLite(file string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(30000)")
}

// Postgres reports whether the storage is a Postgres database.
func (d *Dagster) Postgres() bool { return strings.HasPrefix(d.Location, "postgresql://") }

// Exec runs one statement. Each ? in it stands for an argument.
func (d *Dagster) Exec(query string, args ...any) error {
	_, err := d.db.Exec(d.marks(query), args...)
	return err
}

// ExecIndex runs one statement on the tables of pools, of assets and of the events of all runs.
func (d *Dagster) ExecIndex(query string, args ...any) error {
	if d.Postgres() {
		return d.Exec(query, args...)
	}
	db, err := openSQLite(filepath.Join(d.Location, "history/runs/index.db"))
	if err != nil {
		return err
	}
	_, err = db.Exec(query, args...)
	return errors.Join(err, db.Close())
}

// TextIndex is [Dagster.Text] for the tables of [Dagster.ExecIndex].
func (d *Dagster) TextIndex(query string, args ...any) (string, error) {
	if d.Postgres() {
		return d.Text(query, args...)
	}
	db, err := openSQLite(filepath.Join(d.Location, "history/runs/index.db"))
	if err != nil {
		return "", err
	}
	var s sql.NullString
	err = db.QueryRow(query, args...).Scan(&s)
	return s.String, errors.Join(err, db.Close())
}

// EventColumn reads a column of the first event of a type in a run.
func (d *Dagster) EventColumn(run, typ, column string) (string, error) {
	query := "SELECT " + column + " FROM event_logs WHERE run_id = ? AND dagster_event_type = ? ORDER BY id LIMIT 1"
	if d.Postgres() {
		return d.Text(query, run, typ)
	}
	db, err := openSQLite(filepath.Join(d.Location, "history/runs", run+".db"))
	if err != nil {
		return "", err
	}
	var s sql.NullString
	err = db.QueryRow(query, run, typ).Scan(&s)
	return s.String, errors.Join(err, db.Close())
}

// Text reads one text. It returns "" if there is no row.
func (d *Dagster) Text(query string, args ...any) (string, error) {
	var s sql.NullString
	err := d.db.QueryRow(d.marks(query), args...).Scan(&s)
	if err == sql.ErrNoRows {
		return "", nil
	}
	return s.String, err
}

func (d *Dagster) marks(query string) string {
	if !d.Postgres() {
		return query
	}
	n := 0
	return regexp.MustCompile(`\?`).ReplaceAllStringFunc(query, func(string) string {
		n++
		return "$" + strconv.Itoa(n)
	})
}

// Body returns the run_body of a run of a small job, in a location with a code server.
func Body(run string, tags map[string]string) string {
	origin := map[string]any{
		"__class__": "ExternalPipelineOrigin", "pipeline_name": "light",
		"external_repository_origin": map[string]any{
			"__class__": "ExternalRepositoryOrigin", "repository_name": "__repository__",
			"repository_location_origin": map[string]any{"__class__": "GrpcServerRepositoryLocationOrigin",
				"host": "localhost", "location_name": "here", "port": 4000, "socket": nil},
		},
	}
	code := map[string]any{
		"__class__": "PipelinePythonOrigin", "pipeline_name": "light",
		"repository_origin": map[string]any{
			"__class__": "RepositoryPythonOrigin", "container_context": map[string]any{}, "container_image": nil,
			"entry_point": []any{"dagster"}, "executable_path": "/nowhere/python",
			"code_pointer": map[string]any{"__class__": "ModuleCodePointer", "fn_name": "defs", "module": "light",
				"working_directory": nil},
		},
	}
	if tags == nil {
		tags = map[string]string{}
	}
	return string(dagster.Encode(map[string]any{
		"__class__": "PipelineRun", "asset_check_selection": nil, "asset_selection": nil,
		"execution_plan_snapshot_id": nil,
		"external_pipeline_origin":   origin, "has_repository_load_data": false, "mode": nil, "parent_run_id": nil,
		"partitions_subset":    nil,
		"pipeline_code_origin": code, "pipeline_name": "light", "pipeline_snapshot_id": nil, "root_run_id": nil,
		"run_config": map[string]any{},
		"run_id":     run, "run_op_concurrency": nil, "solid_selection": nil, "solids_to_execute": nil,
		"status": map[string]any{"__enum__": "PipelineRunStatus.NOT_STARTED"}, "step_keys_to_execute": nil,
		"tags": tags,
	}))
}

// Enqueue creates a run and puts it into the queue.
func (d *Dagster) Enqueue(run string, tags map[string]string) error {
	r, err := dagster.ParseRun(Body(run, tags))
	if err != nil {
		return err
	}
	return d.EnqueueRun(r)
}

// EnqueueRun is [Dagster.Enqueue] for a run of any job.
func (d *Dagster) EnqueueRun(r dagster.Run) error {
	if err := d.Exec("INSERT INTO runs (run_id, pipeline_name, status, run_body) VALUES (?, ?, 'NOT_STARTED', ?)", r.ID,
		r.Job, r.Body()); err != nil {
		return err
	}
	for k, v := range r.Tags {
		if err := d.Exec("INSERT INTO run_tags (run_id, key, value) VALUES (?, ?, ?)", r.ID, k, v); err != nil {
			return err
		}
	}
	return d.Event(dagster.NewRunEnqueued(r, time.Now()))
}

// shardSchema is how Dagster creates event_logs in a new shard.
const shardSchema = `CREATE TABLE IF NOT EXISTS event_logs (
	id INTEGER NOT NULL, run_id VARCHAR(255), event TEXT NOT NULL, dagster_event_type TEXT, timestamp TIMESTAMP,
	step_key TEXT, asset_key TEXT, partition TEXT, PRIMARY KEY (id));
	CREATE INDEX IF NOT EXISTS idx_events_by_run_id ON event_logs (run_id, id)`

const insertEvent = "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp) VALUES (?, ?, ?, ?)"

// Event stores an event and then, if the event changes the status of the run, updates the row of
// the run. Dagster does that in store_event and handle_run_event.
func (d *Dagster) Event(e dagster.Event) error {
	args := []any{e.RunID, e.JSON(), string(e.Type), e.Time.UTC().Format("2006-01-02 15:04:05.000000")}
	if d.Postgres() {
		var id int64
		if err := d.db.QueryRow(d.marks(insertEvent+" RETURNING id"), args...).Scan(&id); err != nil {
			return err
		}
		if err := d.Exec("SELECT pg_notify('run_events', ?)", fmt.Sprintf("%s_%d", e.RunID, id)); err != nil {
			return err
		}
	} else if err := d.shards(e, args); err != nil {
		return err
	}
	status := e.Type.Status()
	if status == "" {
		return nil
	}
	body, err := d.Text("SELECT run_body FROM runs WHERE run_id = ?", e.RunID)
	if err != nil {
		return err
	}
	r, err := dagster.ParseRun(body)
	if err != nil {
		return err
	}
	r.Status = status
	set, extra := "", []any(nil)
	switch at := dagster.ToUnix(e.Time); {
	case e.Type == dagster.RunStart:
		set, extra = ", start_time = ?", []any{at}
	case status.Finished():
		set, extra = ", end_time = ?", []any{at}
	}
	updated, at := "?", args[3]
	if d.Postgres() { // Dagster sends a time with a zone; the server converts it to the zone of the session
		updated, at = "?::timestamptz", any(e.Time)
	}
	args = append([]any{string(status), r.Body(), at}, extra...)
	return d.Exec("UPDATE runs SET status = ?, run_body = ?, update_timestamp = "+updated+set+" WHERE run_id = ?",
		append(args, e.RunID)...)
}

func (d *Dagster) shards(e dagster.Event, args []any) error {
	files := []string{e.RunID + ".db"}
	if e.Type.Status() != "" {
		files = append(files, "index.db")
	}
	for i, f := range files {
		db, err := openSQLite(filepath.Join(d.Location, "history/runs", f))
		if err != nil {
			return err
		}
		if i == 0 {
			if _, err := db.Exec("PRAGMA journal_mode=WAL; " + shardSchema); err != nil {
				return err
			}
		}
		if _, err := db.Exec(insertEvent, args...); err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Status is the column runs.status.
func (d *Dagster) Status(run string) (dagster.Status, error) {
	s, err := d.Text("SELECT status FROM runs WHERE run_id = ?", run)
	return dagster.Status(s), err
}

// timeout returns a context for the calls of the suite.
func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
