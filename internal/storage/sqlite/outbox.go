package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
)

// outboxPrefix begins the keys of kvs under which committed events wait to be written to the
// shards.
const outboxPrefix = "slipway/outbox/"

// How long the write of events waits for a file that another program writes to.
const (
	// brief is for a leader: a worker that is frozen within a write holds up its own run's events
	// alone.
	brief = 500 * time.Millisecond
	// patient is for a process that writes only to its own run.
	patient = 30 * time.Second
	// busyPause is the least time for which a leader leaves a file alone that was still busy after
	// brief. Opening it in an unlucky moment takes 10 s; then the pause is longer.
	busyPause = 5 * time.Second
)

// errBusy: the file was busy a moment ago.
var errBusy = errors.New("another program keeps the file locked")

// Flush implements [storage.Store]: it empties the outbox, except events whose files are busy.
func (s *Store) Flush(ctx context.Context, _ storage.Fence) error {
	return s.drain(ctx, outboxPrefix, brief)
}

// deliver writes the events of one run from the outbox to its files after a commit. A commit is
// final whether that succeeds or not: an error would make the caller believe nothing was committed.
// What is left is written by the leader's next [Store.Flush].
func (s *Store) deliver(ctx context.Context, run string, wait time.Duration) {
	_ = s.drain(ctx, outboxPrefix+run+"/", wait)
}

// undelivered is an event of the outbox.
type undelivered struct{ key, text string }

// readOutbox gives the events of the outbox whose keys begin with a prefix, in order.
func readOutbox(ctx context.Context, db *sql.DB, prefix string) (out []undelivered, err error) {
	rows, err := db.QueryContext(ctx, "SELECT key, value FROM kvs WHERE key >= ? AND key < ? ORDER BY id", prefix,
		prefix+"\x7f")
	if err != nil {
		return nil, fmt.Errorf("sqlite: outbox: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var u undelivered
		if err := rows.Scan(&u.key, &u.text); err != nil {
			return nil, fmt.Errorf("sqlite: outbox: %w", err)
		}
		out = append(out, u)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("sqlite: outbox: %w", err)
	}
	return out, nil
}

// drain writes the events of the outbox whose keys begin with a prefix to their files, in order,
// and then takes them out. What a process that dies in the middle has written, or another one
// writes at the same time, is found there again and not written twice.
func (s *Store) drain(ctx context.Context, prefix string, wait time.Duration) error {
	out, err := readOutbox(ctx, s.write, prefix)
	if err != nil || len(out) == 0 {
		return err
	}
	texts, keys := map[string][]string{}, map[string][]string{}
	var order []string
	for _, w := range out {
		run, _, _ := strings.Cut(strings.TrimPrefix(w.key, outboxPrefix), "/")
		if texts[run] == nil {
			order = append(order, run)
		}
		texts[run], keys[run] = append(texts[run], w.text), append(keys[run], w.key)
	}
	var errs []error
	for some := range slices.Chunk(order, drainBatch) {
		written, err := s.storeAll(ctx, some, texts, wait)
		errs = append(errs, err) // the events of runs that failed wait for the next time
		if len(written) == 0 {
			continue
		}
		errs = append(errs, s.tx(ctx, nil, func(tx *sql.Tx) error {
			for _, run := range written {
				for _, k := range keys[run] {
					if _, err := tx.ExecContext(ctx, "DELETE FROM kvs WHERE key = ?", k); err != nil {
						return fmt.Errorf("sqlite: outbox: %w", err)
					}
				}
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}

const (
	// drainBatch is of how many runs the events are written to index.db in one transaction.
	drainBatch = 200
	// shardsAtOnce is how many shards, each a file of its own, are written together.
	shardsAtOnce = 4
)

// storeAll writes events of runs to their shards. It also writes the events that change a status to
// index.db. It returns the runs for which that was done.
func (s *Store) storeAll(ctx context.Context, runs []string, texts map[string][]string,
	wait time.Duration) ([]string, error) {
	errs := make([]error, len(runs))
	var g errgroup.Group
	g.SetLimit(shardsAtOnce)
	for i, run := range runs {
		g.Go(func() error {
			errs[i] = s.shard(ctx, run, texts[run], wait)
			return nil
		})
	}
	_ = g.Wait() // each has its own error
	var written, all []string
	for i, run := range runs {
		if errs[i] == nil {
			written, all = append(written, run), append(all, texts[run]...)
		}
		if errors.Is(errs[i], errDeleted) {
			written, errs[i] = append(written, run), nil
		}
	}
	if err := s.into(ctx, filepath.Join(s.history, "runs/index.db"), ofStatus(all), wait); err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	return written, errors.Join(errs...)
}

// errDeleted: the run has no shard any more.
var errDeleted = errors.New("the run was deleted meanwhile")

// shard writes events of one run to its shard.
func (s *Store) shard(ctx context.Context, run string, texts []string, wait time.Duration) error {
	file, err := s.fileOf(run)
	if err != nil {
		return err
	}
	has, err := hasShard(file)
	if err != nil {
		return fmt.Errorf("sqlite: events of run %s: %w", run, err)
	}
	if !has {
		return errDeleted
	}
	return s.into(ctx, file, texts, wait)
}

// hasShard reports whether a run has a shard. It returns false if the run was deleted, but an error
// if the files of all runs are gone.
func hasShard(file string) (bool, error) {
	_, err := os.Stat(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	_, err = os.Stat(filepath.Join(filepath.Dir(file), "index.db"))
	return false, err
}

const insertEvent = `INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
	SELECT ?1, ?2, nullif(?3, ''), ?4, nullif(?5, '')
	WHERE NOT EXISTS (SELECT 1 FROM event_logs WHERE run_id = ?1 AND timestamp = ?4 AND event = ?2)`

// ofStatus picks the events that change a run's status, which are those of index.db.
func ofStatus(texts []string) (picked []string) {
	for _, text := range texts {
		if e, err := dagster.ParseEvent(text); err != nil || e.Type.Status() != "" {
			picked = append(picked, text) // one that cannot be read fails below
		}
	}
	return picked
}

// into writes events to a file, and waits no longer for others who write to it. A brief try leaves
// a file alone that was busy a moment ago.
func (s *Store) into(ctx context.Context, file string, texts []string, wait time.Duration) error {
	if len(texts) == 0 {
		return nil
	}
	s.mu.Lock()
	until := s.busy[file]
	s.mu.Unlock()
	began := time.Now()
	if wait == brief && began.Before(until) {
		return fmt.Errorf("sqlite: %s: %w", file, errBusy)
	}
	db, err := open(file, 1, wait)
	if err != nil {
		return err
	}
	err = errors.Join(insert(ctx, db, texts), db.Close())
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.busy, file); isBusy(err) {
		now := time.Now()
		s.busy[file] = now.Add(max(busyPause, 10*now.Sub(began)))
	}
	return err
}

// isBusy reports whether err means that another process has locked the file, or is about to open
// it.
func isBusy(err error) bool {
	var said *driver.Error
	return errors.As(err, &said) && (said.Code()&0xff == sqlite3.SQLITE_BUSY ||
		said.Code()&0xff == sqlite3.SQLITE_PROTOCOL)
}

func insert(ctx context.Context, db *sql.DB, texts []string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("sqlite: events: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	for _, text := range texts {
		e, err := dagster.ParseEvent(text)
		if err != nil {
			return err
		}
		failpoint.Here(failpoint.SQLiteStatement)
		if _, err := tx.ExecContext(ctx, insertEvent, e.RunID, text, string(e.Type), stamp(e.Time), e.StepKey); err !=
			nil {
			return fmt.Errorf("sqlite: event of run %s: %w", e.RunID, err)
		}
	}
	failpoint.Here(failpoint.SQLiteStatement)
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("sqlite: events: %w", err)
	}
	failpoint.Here(failpoint.SQLiteStatement)
	return nil
}
