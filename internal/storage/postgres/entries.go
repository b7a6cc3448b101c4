package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Entries implements [storage.Entries].
func (s *Store) Entries(ctx context.Context, prefix string) (map[string]string, error) {
	rows, err := s.pool.Query(ctx, "SELECT key, value FROM kvs WHERE starts_with(key, $1)", prefix)
	if err != nil {
		return nil, fmt.Errorf("postgres: entries: %w", err)
	}
	out := map[string]string{}
	var k, v string
	if _, err := pgx.ForEachRow(rows, []any{&k, &v}, func() error {
		out[k] = v
		return nil
	}); err != nil {
		return nil, fmt.Errorf("postgres: entries: %w", err)
	}
	return out, nil
}

// SetEntry implements [storage.Entries].
func (s *Store) SetEntry(ctx context.Context, key, value string) error {
	query, args := "INSERT INTO kvs (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = "+
		"excluded.value", []any{key, value}
	if value == "" {
		query, args = "DELETE FROM kvs WHERE key = $1", args[:1]
	}
	if _, err := s.pool.Exec(ctx, query, args...); err != nil {
		return fmt.Errorf("postgres: entry %s: %w", key, err)
	}
	return nil
}
