// Package sqlite is Dagster's SQLite storage: history/runs.db, one event shard per run, and
// index.db, which mirrors the events that change a run's status.
//
// No transaction spans the three files. So the commit point of every write is one transaction in
// runs.db, which also puts the events into an outbox (rows of kvs). From there they are written to
// the shard and to index.db, and again after a crash; an event that is already there is left alone.
// Run shards are opened for each use and closed: an open one stops the live log of Dagster's UI.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
)

// Store is Dagster's storage below one base_dir.
type Store struct {
	history string
	read    *sql.DB  // runs.db
	write   *sql.DB  // runs.db, one connection, transactions take the write lock at once
	lease   *sql.DB  // runs.db, a connection that waits for none of our own writes; used by Lead and Yield only
	index   *sql.DB  // index.db, one connection
	lock    *os.File // history/slipway.lock; used by Lead and Yield only
	led     bool     // Lead said yes last time
	last    atomic.Int64
	mu      sync.Mutex
	busy    map[string]time.Time // files of events that were busy: until when they are left alone
	// defaultLimits: concurrency_limits has the column using_default_limit, which is newer than the
	// table.
	defaultLimits bool
	hasPools      bool   // the tables of pools are newer than the others
	revision      string // of the schema
}

// Revision implements [storage.Store].
func (s *Store) Revision() string { return s.revision }

var (
	_ storage.Store    = (*Store)(nil)
	_ storage.Adder    = (*Store)(nil)
	_ storage.Recorder = (*Store)(nil)
)

// hintInterval is how often PRAGMA data_version is looked at, which takes microseconds.
const hintInterval = 5 * time.Millisecond

// Open opens the storage that Dagster has made below baseDir. It creates nothing.
func Open(ctx context.Context, baseDir string) (*Store, error) {
	s := &Store{history: filepath.Join(baseDir, "history"), busy: map[string]time.Time{}}
	for _, f := range []string{"runs.db", "runs/index.db"} {
		if _, err := os.Stat(filepath.Join(s.history, f)); err != nil {
			err = fmt.Errorf("sqlite: Dagster has not created a storage in %s yet: %w", baseDir, err)
			return nil, &storage.Fault{Code: storage.CodeStorageEmpty, Err: err,
				Fix: "start dagster-webserver once with this DAGSTER_HOME; if it uses another one, set that one here"}
		}
	}
	var err error
	runs := filepath.Join(s.history, "runs.db")
	if s.read, err = open(runs, 4, patient); err != nil {
		return nil, err
	}
	if s.write, err = open(runs, 1, patient); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.lease, err = open(runs, 1, patient); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.index, err = open(filepath.Join(s.history, "runs/index.db"), 1, patient); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.checkSchema(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.read.QueryRowContext(ctx, "SELECT version_num FROM alembic_version").Scan(&s.revision); err != nil &&
		!errors.Is(err, sql.ErrNoRows) {
		return nil, errors.Join(fmt.Errorf("sqlite: %w", err), s.Close())
	}
	const tables = "SELECT count(*) = 2 FROM sqlite_master WHERE name IN ('concurrency_limits', 'pending_steps')"
	if err := s.index.QueryRowContext(ctx, tables).Scan(&s.hasPools); err != nil {
		return nil, errors.Join(fmt.Errorf("sqlite: %w", err), s.Close())
	}
	const column = "SELECT count(*) > 0 FROM pragma_table_info('concurrency_limits') WHERE name = 'using_default_limit'"
	if err := s.index.QueryRowContext(ctx, column).Scan(&s.defaultLimits); err != nil {
		return nil, errors.Join(fmt.Errorf("sqlite: %w", err), s.Close())
	}
	return s, nil
}

// open opens an existing file for reading and writing. wait is how long it waits for other writers.
func open(file string, conns int, wait time.Duration) (*sql.DB, error) {
	q := url.Values{"mode": {"rw"}, "_txlock": {"immediate"},
		"_pragma": {fmt.Sprintf("busy_timeout(%d)", wait.Milliseconds())}}
	p, err := placeOf(file, (&url.URL{Scheme: "file", Path: file, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(p)
	db.SetMaxOpenConns(conns)
	return db, nil
}

// checkSchema refuses a storage that lacks a column Slipway uses.
func (s *Store) checkSchema(ctx context.Context) error {
	for db, q := range map[*sql.DB]string{
		s.read: "SELECT r.id, r.run_id, r.status, r.run_body, r.create_timestamp, r.update_timestamp, r.start_time, " +
			"r.end_time, t.id, t.key, t.value, k.key, k.value FROM runs r, run_tags t, kvs k LIMIT 0",
		s.index: "SELECT id, run_id, event, dagster_event_type, timestamp, step_key FROM event_logs LIMIT 0",
	} {
		rows, err := db.QueryContext(ctx, q)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			err = fmt.Errorf("sqlite: the schema in %s is not one that Slipway knows: %w",
				s.history, err)
			return &storage.Fault{Code: storage.CodeStorageSchema, Err: err,
				Fix: "run dagster instance migrate with the Dagster that you use; if that does not help, the file is " +
					"damaged or is not Dagster's"}
		}
		if err := rows.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Close closes all files. Locks and the lease are left to end by themselves.
func (s *Store) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write, s.lease, s.index} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// tx runs f in a transaction of runs.db that has the write lock, under the fence if one is given.
func (s *Store) tx(ctx context.Context, fence *storage.Fence, f func(*sql.Tx) error) error {
	return txOn(ctx, s.write, fence, f)
}

func txOn(ctx context.Context, db *sql.DB, fence *storage.Fence, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("sqlite: begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if fence != nil {
		value, err := kv(ctx, tx, storage.LeaderKey)
		if err != nil {
			return err
		}
		if value != storage.FenceValue(*fence) {
			return storage.ErrFenced
		}
	}
	if err := f(tx); err != nil {
		return err
	}
	failpoint.Here(failpoint.SQLiteStatement)
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("sqlite: commit: %w", err)
	}
	failpoint.Here(failpoint.SQLiteStatement)
	return nil
}

func kv(ctx context.Context, tx *sql.Tx, key string) (string, error) {
	var value string
	err := tx.QueryRowContext(ctx, "SELECT value FROM kvs WHERE key = ?", key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return value, err
}

func setKV(ctx context.Context, tx *sql.Tx, key, value string) error {
	_, err := tx.ExecContext(ctx,
		"INSERT INTO kvs (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value)
	return err
}

// Lead implements [storage.Leaser]. It must not be called from several goroutines at once. The
// lease ends by this machine's clock, because all users of the files are on this machine. If a
// leader dies, the kernel drops its file lock, so another daemon takes over without waiting for the
// lease.
func (s *Store) Lead(ctx context.Context, leader string,
	ttl time.Duration) (fence storage.Fence, leads bool, err error) {
	if s.lock != nil {
		// another one's lock would not be seen
		if was, err := s.lock.Stat(); err != nil || inPlace(s.lock.Name(), was) != nil {
			_ = s.lock.Close()
			s.lock, s.led = nil, false
		}
	}
	if s.lock == nil {
		if s.lock, err = os.OpenFile(filepath.Join(s.history, "slipway.lock"), os.O_CREATE|os.O_RDWR, 0o600); err !=
			nil {
			return fence, false, fmt.Errorf("sqlite: %w", away(err))
		}
	}
	locked := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
	err = txOn(ctx, s.lease, nil, func(tx *sql.Tx) error {
		value, err := kv(ctx, tx, storage.LeaderKey)
		if err != nil {
			return err
		}
		lease, err := kv(ctx, tx, storage.LeaseKey)
		if err != nil {
			return err
		}
		var ends int64
		_, _ = fmt.Sscan(lease, &ends) // no lease, or one that cannot be read, has ended
		now := time.Now()
		fence = storage.ParseFence(value)
		if fence.Leader != leader {
			if (!locked || s.led) && now.UnixMicro() < ends {
				return nil
			}
			fence = storage.Fence{Leader: leader, Epoch: fence.Epoch + 1}
			if err := setKV(ctx, tx, storage.LeaderKey, storage.FenceValue(fence)); err != nil {
				return err
			}
		}
		leads = true
		return setKV(ctx, tx, storage.LeaseKey, fmt.Sprint(now.Add(ttl).UnixMicro()))
	})
	if s.led && err == nil && !leads { // the lock no longer tells who leads
		_ = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN)
	}
	s.led = leads && err == nil
	return fence, s.led, err
}

// Clock implements [storage.Leaser]: all users of the files are on this machine, so its clock is
// the database's.
func (s *Store) Clock(context.Context) (time.Time, error) { return time.Now().UTC().Round(0), nil }

// Yield implements [storage.Leaser].
func (s *Store) Yield(ctx context.Context, f storage.Fence) error {
	err := txOn(ctx, s.lease, &f, func(tx *sql.Tx) error { return setKV(ctx, tx, storage.LeaseKey, "0") })
	if s.lock != nil {
		err = errors.Join(err, syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN))
		s.led = false
	}
	if errors.Is(err, storage.ErrFenced) {
		return nil
	}
	return err
}

// InstanceID implements [storage.Reader].
func (s *Store) InstanceID(ctx context.Context) (string, error) {
	var id string
	err := s.read.QueryRowContext(ctx, "SELECT run_storage_id FROM instance_info").Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		id = uuid.NewString()
		err = s.tx(ctx, nil, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx,
				"INSERT INTO instance_info (run_storage_id) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM instance_info)",
				id); err != nil {
				return err
			}
			return tx.QueryRowContext(ctx, "SELECT run_storage_id FROM instance_info").Scan(&id)
		})
	}
	if err != nil {
		return "", diagnose(fmt.Errorf("sqlite: instance id: %w", err))
	}
	return id, nil
}

// Hints implements [storage.Store]: SQLite cannot say what changed, so each hint is about
// everything.
func (s *Store) Hints(ctx context.Context) iter.Seq2[storage.Hint, error] {
	return func(yield func(storage.Hint, error) bool) {
		file := filepath.Join(s.history, "runs.db")
		was, err := os.Stat(file)
		if err != nil {
			yield(storage.Hint{}, fmt.Errorf("sqlite: hints: %w", away(err)))
			return
		}
		conn, err := s.read.Conn(ctx)
		if err != nil {
			yield(storage.Hint{}, fmt.Errorf("sqlite: hints: %w", err))
			return
		}
		defer func() { _ = conn.Close() }() // it only goes back to the pool
		tick := time.NewTicker(hintInterval)
		defer tick.Stop()
		seen := int64(-1)
		for {
			var version int64
			err := inPlace(file, was)
			if err == nil {
				err = conn.QueryRowContext(ctx, "PRAGMA data_version").Scan(&version)
			}
			if err != nil {
				if ctx.Err() == nil {
					yield(storage.Hint{}, fmt.Errorf("sqlite: hints: %w", err))
				}
				return
			}
			if version != seen && !yield(storage.Hint{}, nil) {
				return
			}
			seen = version
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// stamp is a time as Dagster's SQLite columns hold it: UTC without a zone.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000000") }

// parseStamp reads a column; CURRENT_TIMESTAMP defaults have no fraction.
func parseStamp(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05.999999", strings.Replace(s, "T", " ", 1))
	if err != nil {
		return time.Time{}
	}
	return t
}

// Claim implements [storage.Writer]. A launch need not wait for the three commits that Flush makes;
// the run's next Move or Record makes them too.
func (s *Store) Claim(ctx context.Context, f storage.Fence, claims []storage.Claim) ([]storage.Outcome, error) {
	failpoint.Here(failpoint.ClaimBegun)
	ids := make([]string, len(claims))
	for i, c := range claims {
		ids[i] = c.Run
	}
	outcomes, err := s.changeAll(ctx, &f, ids,
		func(i int, row storage.Row, ours []storage.Tag) (storage.Change, error) {
			return storage.PlanClaim(f, claims[i], row, ours)
		})
	if err != nil {
		return nil, err
	}
	storage.TraceClaims(outcomes)
	failpoint.Here(failpoint.ClaimCommitted)
	return outcomes, nil
}

// Move implements [storage.Writer].
func (s *Store) Move(ctx context.Context, f storage.Fence, t storage.Transition) (storage.Outcome, error) {
	out, err := s.change(ctx, &f, t.Run, func(row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanMove(t, row, ours)
	})
	if err != nil {
		return out, err
	}
	storage.TraceMove(t, out)
	if t.Handle != "" {
		failpoint.Here(failpoint.HandleCommitted)
	}
	s.deliver(ctx, t.Run, brief)
	return out, nil
}

// row reads a run's row and its rows of run_tags that are ours; a zero Row if there is no such run.
func (s *Store) row(ctx context.Context, tx *sql.Tx, run string) (storage.Row, []storage.Tag, error) {
	var r storage.Row
	var updated string
	err := tx.QueryRowContext(ctx,
		"SELECT status, run_body, coalesce(CAST(update_timestamp AS TEXT), ''), coalesce(start_time, 0), "+
			"coalesce(end_time, 0) FROM runs WHERE run_id = ?", run).
		Scan(&r.Status, &r.Body, &updated, &r.Start, &r.End)
	r.Updated = parseStamp(updated)
	if errors.Is(err, sql.ErrNoRows) {
		return storage.Row{}, nil, nil
	}
	if err != nil {
		return r, nil, fmt.Errorf("sqlite: run %s: %w", run, err)
	}
	rows, err := tx.QueryContext(ctx, "SELECT id, key, value FROM run_tags WHERE run_id = ? AND key LIKE ? ORDER BY id",
		run, storage.RowPrefix+"%")
	if err != nil {
		return r, nil, fmt.Errorf("sqlite: rows of run %s: %w", run, err)
	}
	defer func() { _ = rows.Close() }()
	var tags []storage.Tag
	for rows.Next() {
		var t storage.Tag
		if err := rows.Scan(&t.ID, &t.Key, &t.Value); err != nil {
			return r, nil, err
		}
		tags = append(tags, t)
	}
	return r, tags, rows.Err()
}

// apply carries out a change, the events of which go to the outbox.
func (s *Store) apply(ctx context.Context, tx *sql.Tx, run string, ch storage.Change) error {
	if !ch.Outcome.Done {
		return nil
	}
	exec := func(query string, args ...any) error {
		failpoint.Here(failpoint.SQLiteStatement)
		_, err := tx.ExecContext(ctx, query, args...)
		if err != nil {
			return fmt.Errorf("sqlite: run %s: %w", run, err)
		}
		return nil
	}
	var errs []error
	for _, id := range ch.DeleteTags {
		errs = append(errs, exec("DELETE FROM run_tags WHERE id = ?", id))
	}
	for _, t := range ch.UpdateTags {
		errs = append(errs, exec("UPDATE run_tags SET value = ? WHERE id = ?", t.Value, t.ID))
	}
	for _, t := range ch.AddTags {
		errs = append(errs, exec("INSERT INTO run_tags (run_id, key, value) VALUES (?, ?, ?)", run, t.Key, t.Value))
	}
	for _, k := range ch.DropTags {
		errs = append(errs, exec("DELETE FROM run_tags WHERE run_id = ? AND key = ?", run, k))
	}
	for k, v := range ch.SetTags {
		errs = append(errs, exec("DELETE FROM run_tags WHERE run_id = ? AND key = ?", run, k),
			exec("INSERT INTO run_tags (run_id, key, value) VALUES (?, ?, ?)", run, k, v))
	}
	if ch.Body != "" {
		// A row whose status changes by an event of the past changes now all the same.
		errs = append(errs,
			exec(
				`UPDATE runs SET status = ?1, run_body = ?2,
			update_timestamp = coalesce(nullif(?3, ''), CASE WHEN status = ?1 THEN update_timestamp ELSE ?4 END),
			start_time = coalesce(nullif(?5, 0), start_time), end_time = coalesce(nullif(?6, 0), end_time)
			WHERE run_id = ?7`,
				ch.Status, ch.Body, stampOr(ch.Updated), stamp(time.Now()), ch.Start, ch.End, run))
	}
	for _, e := range ch.Events {
		errs = append(errs, exec("INSERT INTO kvs (key, value) VALUES (?, ?)",
			fmt.Sprintf("%s%s/%d", outboxPrefix, run, s.sequence()), e.JSON()))
	}
	return errors.Join(errs...)
}

func stampOr(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return stamp(t)
}

// sequence gives rising numbers, also from one process to the next.
func (s *Store) sequence() int64 {
	for {
		last := s.last.Load()
		next := max(last+1, time.Now().UnixMicro())
		if s.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// fileOf is the path of a run's event shard. A run ID comes from storage; one that would leave the
// folder is refused.
func (s *Store) fileOf(run string) (string, error) {
	if run == "" || strings.ContainsAny(run, "/\\\x00") || run == "index" {
		return "", fmt.Errorf("sqlite: %q is not a run ID", run)
	}
	return filepath.Join(s.history, "runs", run+".db"), nil
}

func scanTime(f sql.NullFloat64) time.Time {
	if !f.Valid || f.Float64 == 0 {
		return time.Time{}
	}
	return dagster.FromUnix(f.Float64)
}
