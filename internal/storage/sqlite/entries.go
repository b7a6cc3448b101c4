package sqlite

import (
	"context"
	"errors"
	"fmt"

	"database/sql"
)

// Entries implements [storage.Entries].
func (s *Store) Entries(ctx context.Context, prefix string) (map[string]string, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT key, value FROM kvs WHERE key >= ? AND key < ?", prefix,
		prefix+"\x7f")
	if err != nil {
		return nil, fmt.Errorf("sqlite: entries: %w", err)
	}
	out := map[string]string{}
	for rows.Next() {
		var k, v string
		if err := rows.Scan(&k, &v); err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		out[k] = v
	}
	return out, errors.Join(rows.Err(), rows.Close())
}

// SetEntry implements [storage.Entries].
func (s *Store) SetEntry(ctx context.Context, key, value string) error {
	err := s.tx(ctx, nil, func(tx *sql.Tx) error {
		if value != "" {
			return setKV(ctx, tx, key, value)
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM kvs WHERE key = ?", key)
		return err
	})
	if err != nil {
		return fmt.Errorf("sqlite: entry %s: %w", key, err)
	}
	return nil
}
