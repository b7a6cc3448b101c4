package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/storage"
)

// outboxPrefix begins the keys of kvs under which committed events wait to be written to the shards.
const outboxPrefix = "slipway/outbox/"

// Settle implements [storage.Store]: it empties the outbox.
func (s *Store) Settle(ctx context.Context, _ storage.Fence) error { return s.drain(ctx) }

// drain writes every event of the outbox to its shards, in order, and then takes it out. What a process that
// dies in the middle has written is found there again and not written twice.
func (s *Store) drain(ctx context.Context) error {
	s.flush.Lock()
	defer s.flush.Unlock()
	rows, err := s.write.QueryContext(ctx, "SELECT key, value FROM kvs WHERE key >= ? AND key < ? ORDER BY id", outboxPrefix, outboxPrefix+"\x7f")
	if err != nil {
		return fmt.Errorf("sqlite: outbox: %w", err)
	}
	type waiting struct{ key, text string }
	var out []waiting
	for rows.Next() {
		var w waiting
		if err := rows.Scan(&w.key, &w.text); err != nil {
			return errors.Join(err, rows.Close())
		}
		out = append(out, w)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("sqlite: outbox: %w", err)
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
	var done []string
	for _, run := range order {
		if err := s.store(ctx, run, texts[run]); err != nil { // its events wait for the next time
			errs = append(errs, err)
			continue
		}
		done = append(done, keys[run]...)
	}
	if len(done) > 0 {
		errs = append(errs, s.tx(ctx, nil, func(tx *sql.Tx) error {
			for _, k := range done {
				if _, err := tx.ExecContext(ctx, "DELETE FROM kvs WHERE key = ?", k); err != nil {
					return fmt.Errorf("sqlite: outbox: %w", err)
				}
			}
			return nil
		}))
	}
	return errors.Join(errs...)
}

// store writes events of one run to its shard and those that change its status to index.db as well.
func (s *Store) store(ctx context.Context, run string, texts []string) error {
	file, err := s.fileOf(run)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil // the run was deleted meanwhile
	}
	shard, err := open(file, 1)
	if err != nil {
		return err
	}
	err = s.insert(ctx, shard, texts, false)
	if err = errors.Join(err, shard.Close()); err != nil {
		return err
	}
	return s.insert(ctx, s.index, texts, true)
}

const insertEvent = `INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
	SELECT ?1, ?2, nullif(?3, ''), ?4, nullif(?5, '') WHERE NOT EXISTS (SELECT 1 FROM event_logs WHERE run_id = ?1 AND timestamp = ?4 AND event = ?2)`

func (s *Store) insert(ctx context.Context, db *sql.DB, texts []string, statusOnly bool) error {
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
		s.step()
		if _, err := tx.ExecContext(ctx, insertEvent, e.RunID, text, string(e.Type), stamp(e.Time), e.StepKey); err != nil {
			return fmt.Errorf("sqlite: event of run %s: %w", e.RunID, err)
		}
	}
	s.step()
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("sqlite: events: %w", err)
	}
	s.step()
	return nil
}
