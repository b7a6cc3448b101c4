package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/internal/storage"
)

// Pools implements [storage.Pooler].
func (s *Store) Pools(ctx context.Context) (map[string]storage.Pool, error) {
	if !s.hasPools {
		return nil, nil
	}
	using := "using_default_limit"
	if !s.defaultLimits {
		using = "false"
	}
	rows, err := s.pool.Query(ctx, `SELECT l.concurrency_key, l."limit", `+using+`,
		(SELECT count(*) FROM concurrency_slots s WHERE s.concurrency_key = l.concurrency_key AND NOT s.deleted),
		(SELECT count(*) FROM concurrency_slots s WHERE s.concurrency_key = l.concurrency_key AND s.run_id IS NOT NULL),
		(SELECT count(*) FROM pending_steps p WHERE p.concurrency_key = l.concurrency_key) FROM concurrency_limits l`)
	if err != nil {
		return nil, fmt.Errorf("postgres: pools: %w", err)
	}
	pools := map[string]storage.Pool{}
	var name string
	var p storage.Pool
	if _, err := pgx.ForEachRow(rows, []any{&name, &p.Limit, &p.Default, &p.Slots, &p.Taken, &p.Pending}, func() error {
		pools[name] = p
		return nil
	}); err != nil {
		return nil, fmt.Errorf("postgres: pools: %w", err)
	}
	return pools, nil
}

// DefaultPools implements [storage.Pooler].
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
	err = s.tx(ctx, &f, func(tx pgx.Tx) error {
		for _, name := range stale {
			if err := s.setDefault(ctx, tx, name, limit); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, wrap(err, "pools")
	}
	pools, err = s.Pools(ctx)
	return storage.Among(pools, names), err
}

// setDefault sets the limit of one pool, and makes as many places: free ones go first, taken ones
// when they are free.
func (s *Store) setDefault(ctx context.Context, tx pgx.Tx, name string, limit *int) error {
	places, query, args := 0, `DELETE FROM concurrency_limits WHERE concurrency_key = $1`, []any{name}
	if limit != nil {
		places, args = *limit, append(args, *limit)
		query =
			`INSERT INTO concurrency_limits AS l (concurrency_key, "limit", using_default_limit) VALUES ($1, $2, true)
			ON CONFLICT (concurrency_key) DO UPDATE SET "limit" = excluded."limit" WHERE l.using_default_limit`
		if !s.defaultLimits { // before Dagster 1.10 a default, once written, is a limit like any other
			query = `INSERT INTO concurrency_limits (concurrency_key, "limit") VALUES ($1, $2) ON CONFLICT ` +
				`(concurrency_key) DO NOTHING`
		}
	}
	if _, err := tx.Exec(ctx, query, args...); err != nil {
		return err
	}
	var have int
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM concurrency_slots WHERE concurrency_key = $1 AND NOT deleted",
		name).Scan(&have); err != nil {
		return err
	}
	if have < places {
		_, err := tx.Exec(ctx,
			"INSERT INTO concurrency_slots (concurrency_key, deleted) SELECT $1, false FROM generate_series(1, $2)",
			name, places-have)
		return err
	}
	gone, err := tx.Exec(ctx,
		"DELETE FROM concurrency_slots WHERE id IN (SELECT id FROM concurrency_slots WHERE concurrency_key = $1 AND "+
			"NOT deleted AND run_id IS NULL ORDER BY id DESC LIMIT $2 FOR UPDATE)", name, have-places)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx,
		"UPDATE concurrency_slots SET deleted = true WHERE id IN (SELECT id FROM concurrency_slots WHERE "+
			"concurrency_key = $1 AND NOT deleted ORDER BY id DESC LIMIT $2 FOR UPDATE)", name,
		have-places-int(gone.RowsAffected()))
	return err
}

// Holders implements [storage.Pooler].
func (s *Store) Holders(ctx context.Context) ([]string, error) {
	if !s.hasPools {
		return nil, nil
	}
	rows, err := s.pool.Query(ctx,
		"SELECT run_id FROM pending_steps UNION SELECT run_id FROM concurrency_slots WHERE run_id IS NOT NULL")
	if err != nil {
		return nil, fmt.Errorf("postgres: pools: %w", err)
	}
	runs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("postgres: pools: %w", err)
	}
	return runs, nil
}

// FreeSlots implements [storage.Pooler].
func (s *Store) FreeSlots(ctx context.Context, f storage.Fence, run string) error {
	err := s.tx(ctx, &f, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM concurrency_slots WHERE run_id = $1 AND deleted", run); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "UPDATE concurrency_slots SET run_id = NULL, step_key = NULL WHERE run_id = $1",
			run); err != nil {
			return err
		}
		rows, err := tx.Query(ctx,
			"DELETE FROM pending_steps WHERE run_id = $1 RETURNING concurrency_key, assigned_timestamp IS NOT NULL",
			run)
		if err != nil {
			return err
		}
		var free []string
		var pool string
		var assigned bool
		if _, err := pgx.ForEachRow(rows, []any{&pool, &assigned}, func() error {
			if assigned {
				free = append(free, pool)
			}
			return nil
		}); err != nil {
			return err
		}
		for _, pool := range free {
			if _, err := tx.Exec(ctx,
				`UPDATE pending_steps SET assigned_timestamp = now() WHERE id = (SELECT id FROM pending_steps
				WHERE concurrency_key = $1 AND assigned_timestamp IS NULL
				ORDER BY priority DESC, create_timestamp, id LIMIT 1 FOR UPDATE)`, pool); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return wrap(err, "slots of run "+run)
	}
	return nil
}
