package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/slipway-run/slipway/internal/storage"
)

// Pools implements [storage.Pooler]. The pools are in index.db.
func (s *Store) Pools(ctx context.Context) (map[string]storage.Pool, error) {
	if !s.hasPools {
		return nil, nil
	}
	using := `using_default_limit`
	if !s.defaultLimits {
		using = "0"
	}
	rows, err := s.index.QueryContext(ctx, `SELECT l.concurrency_key, l."limit", `+using+`,
		(SELECT count(*) FROM concurrency_slots s WHERE s.concurrency_key = l.concurrency_key AND NOT s.deleted),
		(SELECT count(*) FROM concurrency_slots s WHERE s.concurrency_key = l.concurrency_key AND s.run_id IS NOT NULL),
		(SELECT count(*) FROM pending_steps p WHERE p.concurrency_key = l.concurrency_key) FROM concurrency_limits l`)
	if err != nil {
		return nil, fmt.Errorf("sqlite: pools: %w", err)
	}
	pools := map[string]storage.Pool{}
	for rows.Next() {
		var name string
		var p storage.Pool
		if err := rows.Scan(&name, &p.Limit, &p.Default, &p.Slots, &p.Taken, &p.Pending); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		pools[name] = p
	}
	return pools, errors.Join(rows.Err(), rows.Close())
}

// DefaultPools implements [storage.Pooler]. The fence is in runs.db, so it is read before. A daemon
// that loses the lead in between writes what the next leader would write.
func (s *Store) DefaultPools(ctx context.Context, f storage.Fence, names []string,
	limit *int) (map[string]storage.Pool, error) {
	pools, err := s.Pools(ctx)
	if err != nil {
		return nil, err
	}
	stale := storage.Stale(pools, names, limit)
	if len(stale) == 0 || !s.hasPools {
		return storage.Among(pools, names), nil
	}
	if err := s.tx(ctx, &f, func(*sql.Tx) error { return nil }); err != nil {
		return nil, err
	}
	tx, err := s.index.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("sqlite: pools: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	for _, name := range stale {
		if err := s.setDefault(ctx, tx, name, limit); err != nil {
			return nil, fmt.Errorf("sqlite: pool %s: %w", name, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return nil, fmt.Errorf("sqlite: pools: %w", err)
	}
	pools, err = s.Pools(ctx)
	return storage.Among(pools, names), err
}

// setDefault sets the limit of one pool, and makes as many places: free ones go first, taken ones
// when they are free.
func (s *Store) setDefault(ctx context.Context, tx *sql.Tx, name string, limit *int) error {
	var errs []error
	exec := func(query string, args ...any) {
		if _, err := tx.ExecContext(ctx, query, args...); err != nil {
			errs = append(errs, err)
		}
	}
	places := 0
	switch {
	case limit == nil:
		exec("DELETE FROM concurrency_limits WHERE concurrency_key = ?", name)
	case s.defaultLimits:
		places = *limit
		exec(`INSERT INTO concurrency_limits (concurrency_key, "limit", using_default_limit) VALUES (?, ?, 1)
			ON CONFLICT (concurrency_key) DO UPDATE SET "limit" = excluded."limit" WHERE using_default_limit`, name,
			places)
	default: // before Dagster 1.10 a default, once written, is a limit like any other
		places = *limit
		exec(`INSERT INTO concurrency_limits (concurrency_key, "limit") VALUES (?, ?) ON CONFLICT (concurrency_key) `+
			`DO NOTHING`, name, places)
	}
	var have int
	if err := tx.QueryRowContext(ctx,
		"SELECT count(*) FROM concurrency_slots WHERE concurrency_key = ? AND NOT deleted", name).Scan(&have); err !=
		nil {
		return err
	}
	for range places - have {
		exec("INSERT INTO concurrency_slots (concurrency_key, deleted) VALUES (?, 0)", name)
	}
	if n := have - places; n > 0 {
		res, err := tx.ExecContext(ctx,
			"DELETE FROM concurrency_slots WHERE id IN (SELECT id FROM concurrency_slots WHERE concurrency_key = ? "+
				"AND NOT deleted AND run_id IS NULL ORDER BY id DESC LIMIT ?)", name, n)
		if err != nil {
			return err
		}
		gone, err := res.RowsAffected()
		if err != nil {
			return err
		}
		exec("UPDATE concurrency_slots SET deleted = 1 WHERE id IN (SELECT id FROM concurrency_slots WHERE "+
			"concurrency_key = ? AND NOT deleted ORDER BY id DESC LIMIT ?)", name, n-int(gone))
	}
	return errors.Join(errs...)
}

// Holders implements [storage.Pooler].
func (s *Store) Holders(ctx context.Context) ([]string, error) {
	if !s.hasPools {
		return nil, nil
	}
	rows, err := s.index.QueryContext(ctx,
		"SELECT run_id FROM pending_steps UNION SELECT run_id FROM concurrency_slots WHERE run_id IS NOT NULL")
	if err != nil {
		return nil, fmt.Errorf("sqlite: pools: %w", err)
	}
	var runs []string
	for rows.Next() {
		var run string
		if err := rows.Scan(&run); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		runs = append(runs, run)
	}
	return runs, errors.Join(rows.Err(), rows.Close())
}

// FreeSlots implements [storage.Pooler]. The fence is read before, as for DefaultPools: a daemon
// that loses the lead in between does what the next leader would do.
func (s *Store) FreeSlots(ctx context.Context, f storage.Fence, run string) error {
	if err := s.tx(ctx, &f, func(*sql.Tx) error { return nil }); err != nil {
		return err
	}
	tx, err := s.index.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("sqlite: pools: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	rows, err := tx.QueryContext(ctx,
		"SELECT concurrency_key FROM pending_steps WHERE run_id = ? AND assigned_timestamp IS NOT NULL", run)
	if err != nil {
		return fmt.Errorf("sqlite: slots of run %s: %w", run, err)
	}
	var free []string
	for rows.Next() {
		var pool string
		if err := rows.Scan(&pool); err != nil {
			return errors.Join(err, rows.Close())
		}
		free = append(free, pool)
	}
	errs := []error{rows.Err(), rows.Close()}
	exec := func(query string, args ...any) {
		_, err := tx.ExecContext(ctx, query, args...)
		errs = append(errs, err)
	}
	exec("DELETE FROM concurrency_slots WHERE run_id = ? AND deleted", run)
	exec("UPDATE concurrency_slots SET run_id = NULL, step_key = NULL WHERE run_id = ?", run)
	exec("DELETE FROM pending_steps WHERE run_id = ?", run)
	for _, pool := range free {
		exec(`UPDATE pending_steps SET assigned_timestamp = CURRENT_TIMESTAMP WHERE id = (SELECT id FROM pending_steps
			WHERE concurrency_key = ? AND assigned_timestamp IS NULL
			ORDER BY priority DESC, create_timestamp, id LIMIT 1)`, pool)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sqlite: slots of run %s: %w", run, err)
	}
	return tx.Commit()
}
