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

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
)

// outboxPrefix begins the keys of kvs under which committed events wait to be written to the shards.
const outboxPrefix = "slipway/outbox/"

// Settle implements [storage.Store]: it empties the outbox.
func (s *Store) Settle(ctx context.Context, _ storage.Fence) error { return s.drain(ctx) }

// deliver drains the outbox after a commit. What is committed stands, whether its events can be written to the shards now or not: told of a failure, who asked for
// the change would take it for one that was not made. The next write delivers what is left, or the leader's [Store.Settle].
func (s *Store) deliver(ctx context.Context) {
	for range 3 {
		if s.drain(ctx) == nil || ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// undelivered is an event of the outbox.
type undelivered struct{ key, text string }

// readOutbox gives the events of the outbox whose keys begin with a prefix, in order.
func readOutbox(ctx context.Context, db *sql.DB, prefix string) (out []undelivered, err error) {
	rows, err := db.QueryContext(ctx, "SELECT key, value FROM kvs WHERE key >= ? AND key < ? ORDER BY id", prefix, prefix+"\x7f")
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

// drain writes every event of the outbox to its shards, in order, and then takes it out. What a process that
// dies in the middle has written is found there again and not written twice.
func (s *Store) drain(ctx context.Context) error {
	s.flush.Lock()
	defer s.flush.Unlock()
	out, err := readOutbox(ctx, s.write, outboxPrefix)
	if err != nil {
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
		written, err := s.storeAll(ctx, some, texts)
		errs = append(errs, err) // the events of those that failed wait for the next time
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

// storeAll writes events of runs to their shards, and those that change a status to index.db as well, and gives the runs for which that was done.
func (s *Store) storeAll(ctx context.Context, runs []string, texts map[string][]string) ([]string, error) {
	errs := make([]error, len(runs))
	var g errgroup.Group
	g.SetLimit(shardsAtOnce)
	for i, run := range runs {
		g.Go(func() error {
			errs[i] = s.shard(ctx, run, texts[run])
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
	if err := s.insert(ctx, s.index, all, true); err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	return written, errors.Join(errs...)
}

// store writes events of one run to its shard and those that change its status to index.db as well.
func (s *Store) store(ctx context.Context, run string, texts []string) error {
	_, err := s.storeAll(ctx, []string{run}, map[string][]string{run: texts})
	return err
}

// errDeleted: the run has no shard any more.
var errDeleted = errors.New("the run was deleted meanwhile")

// shard writes events of one run to its shard.
func (s *Store) shard(ctx context.Context, run string, texts []string) error {
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
	shard, err := open(file, 1)
	if err != nil {
		return err
	}
	err = s.insert(ctx, shard, texts, false)
	return errors.Join(err, shard.Close())
}

// hasShard says whether a run has a shard: false if it was deleted, but not if no run's file is where it was.
func hasShard(file string) (bool, error) {
	_, err := os.Stat(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	_, err = os.Stat(filepath.Join(filepath.Dir(file), "index.db"))
	return false, err
}

const insertEvent = `INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
	SELECT ?1, ?2, nullif(?3, ''), ?4, nullif(?5, '') WHERE NOT EXISTS (SELECT 1 FROM event_logs WHERE run_id = ?1 AND timestamp = ?4 AND event = ?2)`

func (s *Store) insert(ctx context.Context, db *sql.DB, texts []string, statusOnly bool) error {
	if len(texts) == 0 {
		return nil
	}
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
		if statusOnly && e.Type.Status() == "" {
			continue
		}
		failpoint.Here(failpoint.SQLiteStatement)
		if _, err := tx.ExecContext(ctx, insertEvent, e.RunID, text, string(e.Type), stamp(e.Time), e.StepKey); err != nil {
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
