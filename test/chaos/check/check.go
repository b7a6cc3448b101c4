// Package check examines what a chaos run left behind, and reports what must not be there. It
// shares no code with Slipway. It uses its own SQL, what the steps of the workers wrote themselves,
// the list of processes, and a journal of what was done to which run.
package check

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"
)

// Entry is one line of the journal: something that was done.
type Entry struct {
	// Do is enqueue, foreign, kill_worker, kill_supervisor, cancel, force or delete. Others are
	// ignored.
	Do  string `json:"do"`
	Run string `json:"run,omitempty"` // the run to which it was done
	// Fate belongs to enqueue. ok and fail are how the step ends; expire takes longer than it may.
	// dagster is executed by Dagster's own worker, and would succeed if its storage were always
	// there.
	Fate string `json:"fate,omitempty"`
	Note string `json:"note,omitempty"` // of foreign: the status of its row; otherwise for people
	At   string `json:"at,omitempty"`   // for people, who compare it with the logs of the daemons
}

// World is what a chaos run left behind.
type World struct {
	Location string // folder of SQLite files, or a Postgres address
	Witness  string // folder in which the step of each run writes "begin PID" and "end"
	Journal  string // file
	Mark     string // text in the command line of every worker and step of this world
	Proc     string // /proc
}

// run is everything that is known about one run.
type run struct {
	fate, foreign                         string
	killed, orphaned                      int
	canceled, forced, deleted             bool
	status                                string
	starts, successes, failures, attempts int
	cancels                               int
	epochs                                []int64
	begins, ends                          int
	byDagster                             bool // Dagster's own worker wrote that the run failed
	expired                               bool // it was canceled because it had taken longer than it may
}

// Check returns every violation. An error means that it could not look.
func Check(w World) ([]string, error) {
	runs, err := w.journal()
	if err != nil {
		return nil, err
	}
	db, err := open(w.Location)
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }() // it was only read
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if err := w.rows(db, runs, say); err != nil {
		return nil, err
	}
	if err := w.events(db, runs, say); err != nil {
		return nil, err
	}
	if err := w.witnesses(runs, say); err != nil {
		return nil, err
	}
	if err := w.slots(db, runs, say); err != nil {
		return nil, err
	}
	for _, id := range sorted(runs) {
		judge(id, runs[id], say)
	}
	alive, err := w.alive()
	if err != nil {
		return nil, err
	}
	for _, p := range alive {
		say("%s%s", livesOn, p)
	}
	return bad, nil
}

// Texts of violations that may pass by themselves.
const (
	livesOn = "a worker lives on: "
	holds   = " holds a place of a pool "
)

// MayPass reports whether a violation may be gone when the checker looks again, for example after
// the next sweep.
func MayPass(violation string) bool {
	return strings.HasPrefix(violation, livesOn) || strings.Contains(violation, holds)
}

func sorted(runs map[string]*run) []string {
	var ids []string
	for id := range runs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// judge reports what is wrong with one run.
func judge(id string, r *run, say func(string, ...any)) {
	if r.foreign != "" {
		if r.status != r.foreign || r.attempts > 0 {
			say("foreign run %s was touched: it is %s with %d launch rows, was %s", id, r.status, r.attempts, r.foreign)
		}
		return
	}
	if r.deleted {
		return
	}
	hurt := r.killed + r.orphaned
	switch {
	case r.status == "":
		say("run %s is lost: it has no row", id)
	case r.status != "SUCCESS" && r.status != "FAILURE" && r.status != "CANCELED":
		say("run %s has not ended: it is %s", id, r.status)
	case r.status == "CANCELED" && !r.canceled && !r.forced:
		say("run %s is CANCELED, although it was not canceled", id)
	case r.status == "FAILURE" && r.fate == "ok" && !r.canceled:
		say("healthy run %s is FAILURE (its workers were killed %d times, which has them replaced)", id, hurt)
	case r.status == "FAILURE" && r.fate == "dagster" && !r.canceled && !r.byDagster:
		say("run %s of Dagster's own worker is FAILURE, which that worker has not written", id)
	// CANCELED stays. Only for an expired run is it just the word of its worker.
	case r.status != "CANCELED" && r.cancels > 0 && !r.expired:
		say("run %s is %s, and its log has %d CANCELED", id, r.status, r.cancels)
	case r.status == "SUCCESS" && r.fate == "expire":
		say("run %s is SUCCESS, and takes longer than it may", id)
	case r.status == "SUCCESS" && r.fate == "fail":
		say("run %s is SUCCESS, and its step fails", id)
	case r.status == "SUCCESS" && r.ends == 0:
		say("run %s is SUCCESS, and its step has not come to its end", id)
	}
	if r.successes > 0 && r.status == "FAILURE" && (r.fate != "dagster" || !r.byDagster) {
		say("run %s was reported as a success by its worker, and is FAILURE", id)
	}
	if r.starts > r.attempts {
		say("run %s was started %d times with %d launch rows", id, r.starts, r.attempts)
	}
	if r.begins > 1+hurt && r.fate != "dagster" { // Dagster's worker also ends if its storage is away
		say("run %s: %d workers past their gate, of which %d were killed", id, r.begins, hurt)
	}
	if !slices.IsSorted(r.epochs) {
		say("run %s: launch rows of epochs %v: an old leader has written after a new one", id, r.epochs)
	}
}

func (w World) journal() (map[string]*run, error) {
	f, err := os.Open(w.Journal)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	runs := map[string]*run{}
	of := func(id string) *run {
		if runs[id] == nil {
			runs[id] = &run{}
		}
		return runs[id]
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, err
		}
		switch e.Do {
		case "enqueue":
			of(e.Run).fate = e.Fate
		case "foreign":
			of(e.Run).foreign = e.Note
		case "kill_worker":
			of(e.Run).killed++
		case "kill_supervisor":
			of(e.Run).orphaned++
		case "cancel":
			of(e.Run).canceled = true
		case "force":
			of(e.Run).forced = true
		case "delete":
			of(e.Run).deleted = true
		}
	}
	return runs, lines.Err()
}

func open(location string) (*sql.DB, error) {
	if strings.HasPrefix(location, "postgresql://") {
		return sql.Open("pgx", location)
	}
	return sql.Open("sqlite", "file:"+filepath.Join(location, "history/runs.db")+"?mode=ro&_pragma=busy_timeout(30000)")
}

// index returns the database with the pools and the events of all runs.
func (w World) index(db *sql.DB) (*sql.DB, func(), error) {
	if strings.HasPrefix(w.Location, "postgresql://") {
		return db, func() {}, nil
	}
	i, err := sql.Open("sqlite", "file:"+filepath.Join(w.Location, "history/runs/index.db")+
		"?mode=ro&_pragma=busy_timeout(30000)")
	return i, func() { _ = i.Close() }, err
}

// each calls f with the texts of each row.
func each(db *sql.DB, query string, f func(row []string)) error {
	rows, err := db.Query(query)
	if err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	defer func() { _ = rows.Close() }() // Err reports errors
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		cells := make([]sql.NullString, len(names))
		into := make([]any, len(names))
		for i := range cells {
			into[i] = &cells[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		row := make([]string, len(names))
		for i, c := range cells {
			row[i] = c.String
		}
		f(row)
	}
	return rows.Err()
}

func (w World) rows(db *sql.DB, runs map[string]*run, say func(string, ...any)) error {
	err := each(db, "SELECT run_id, status FROM runs", func(row []string) {
		if r := runs[row[0]]; r != nil {
			r.status = row[1]
		}
	})
	if err != nil {
		return err
	}
	last, lastRun := int64(0), ""
	return each(db, "SELECT run_id, value FROM run_tags WHERE key = '.dagster/slipway/launch' ORDER BY id",
		func(row []string) {
			f := strings.Fields(row[1])
			r := runs[row[0]]
			if r == nil || len(f) != 8 {
				return
			}
			epoch, err := strconv.ParseInt(f[5], 10, 64)
			if err != nil {
				say("run %s has a launch row that cannot be read: %s", row[0], row[1])
				return
			}
			r.attempts++
			r.epochs = append(r.epochs, epoch)
			if f[7] == "void" { // written again when the launch was ended
				return
			}
			if epoch < last {
				say("the launch row of run %s has epoch %d, and stands after that of run %s of epoch %d", row[0], epoch,
					lastRun, last)
			}
			last, lastRun = max(last, epoch), row[0]
		})
}

// dagsterFailed are the texts with which Dagster's own worker fails a run. It writes the second one
// if its connection to the storage broke before it had fully written the success of the run. The
// log then has both.
var dagsterFailed = []string{"Execution of run for", "marked as failed from outside the execution context"}

// expiry is what the log says about a run that took longer than it may.
const expiry = "Canceling due to exceeding maximum runtime of "

// events counts what workers wrote. On SQLite it also compares the log of each run with index.db.
func (w World) events(db *sql.DB, runs map[string]*run, say func(string, ...any)) error {
	count := func(id, typ, event string) {
		r := runs[id]
		if r == nil {
			return
		}
		switch typ {
		case "PIPELINE_START":
			r.starts++
		case "PIPELINE_SUCCESS":
			r.successes++
		case "PIPELINE_CANCELED":
			r.cancels++
		case "PIPELINE_CANCELING":
			r.expired = r.expired || strings.Contains(event, expiry)
		case "PIPELINE_FAILURE":
			r.failures++
			r.byDagster = r.byDagster || slices.ContainsFunc(dagsterFailed, func(text string) bool {
				return strings.Contains(event, text)
			})
		}
	}
	if strings.HasPrefix(w.Location, "postgresql://") {
		return each(db,
			"SELECT run_id, dagster_event_type, event FROM event_logs WHERE dagster_event_type LIKE 'PIPELINE_%'",
			func(row []string) { count(row[0], row[1], row[2]) })
	}
	index, done, err := w.index(db)
	if err != nil {
		return err
	}
	defer done()
	mirrored := map[string]int{}
	const query = "SELECT run_id, dagster_event_type, event FROM event_logs WHERE dagster_event_type IN " +
		"('PIPELINE_STARTING', 'PIPELINE_START', 'PIPELINE_CANCELING', 'PIPELINE_SUCCESS', 'PIPELINE_FAILURE', " +
		"'PIPELINE_CANCELED')"
	if err := each(index, query, func(row []string) { mirrored[row[0]]++ }); err != nil {
		return err
	}
	for id, r := range runs {
		file := filepath.Join(w.Location, "history/runs", id+".db")
		if _, err := os.Stat(file); err != nil || r.deleted {
			continue
		}
		shard, err := sql.Open("sqlite", "file:"+file+"?mode=ro&_pragma=busy_timeout(30000)")
		if err != nil {
			return err
		}
		n := 0
		err = each(shard, query, func(row []string) { n++; count(row[0], row[1], row[2]) })
		if err = errors.Join(err, shard.Close()); err != nil {
			return err
		}
		lacking := 0
		if r.fate == "dagster" { // its worker writes to its own log first, and may be killed then
			lacking = r.killed
		}
		if missing := n - mirrored[id]; (missing < 0 || missing > lacking) && r.foreign == "" {
			say("run %s has %d events of status in its own log and %d in index.db", id, n, mirrored[id])
		}
	}
	return nil
}

// witnesses reads what the steps themselves wrote.
func (w World) witnesses(runs map[string]*run, say func(string, ...any)) error {
	for id, r := range runs {
		text, err := os.ReadFile(filepath.Join(w.Witness, id))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		open := ""
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			switch {
			case strings.HasPrefix(line, "begin"):
				r.begins++
				// Dagster's workers write "beside" themselves if another one is alive.
				if open != "" && r.killed+r.orphaned == 0 && r.fate != "dagster" {
					say("run %s: a second worker (%s) began while the first (%s) was running, which was not killed",
						id, line, open)
				}
				open = line
			case strings.HasPrefix(line, "beside"):
				say("run %s: a second worker began while the first lived (%s)", id, line)
			case line == "end":
				r.ends++
				open = ""
			}
		}
		if r.foreign != "" && r.begins > 0 {
			say("foreign run %s was executed", id)
		}
	}
	return nil
}

func (w World) slots(db *sql.DB, runs map[string]*run, say func(string, ...any)) error {
	index, done, err := w.index(db)
	if err != nil {
		return err
	}
	defer done()
	for _, table := range []string{"concurrency_slots", "pending_steps"} {
		err := each(index, "SELECT run_id FROM "+table+" WHERE run_id IS NOT NULL", func(row []string) {
			if r := runs[row[0]]; r != nil && r.foreign == "" {
				say("run %s, which is %q,%s(%s)", row[0], r.status, holds, table)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// alive returns the processes of workers and steps of this world.
func (w World) alive() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(w.Proc, "[0-9]*", "cmdline"))
	if err != nil {
		return nil, err
	}
	var found []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		line := strings.ReplaceAll(string(text), "\x00", " ")
		if strings.Contains(line, w.Mark) &&
			(strings.Contains(line, "execute_run") || strings.Contains(line, "resume_run") ||
				strings.Contains(line, "begin $$")) {
			found = append(found, strings.TrimSpace(filepath.Base(filepath.Dir(f))+" "+line[:min(len(line), 200)]))
		}
	}
	return found, nil
}
