package sqlite

import (
	"context"
	"database/sql"
	_ "embed" // for the schema
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
)

// The tables as Dagster 1.13 makes them.
var (
	//go:embed schema/runs.sql
	runsSchema string
	//go:embed schema/shard.sql
	shardSchema string // of index.db and of each run's shard
)

// Create makes the storage below baseDir that Dagster would make there, if there is none yet.
// Dagster opens it as its own. If several processes call it at once, one makes it and the others
// wait.
func Create(ctx context.Context, baseDir string) error {
	history := filepath.Join(baseDir, "history")
	if err := os.MkdirAll(filepath.Join(history, "runs"), 0o755); err != nil {
		return fmt.Errorf("sqlite: %w", err)
	}
	// runs.db last: it is what Open looks for.
	if err := create(ctx, filepath.Join(history, "runs/index.db"), shardSchema, storage.EventIndexes()); err != nil {
		return err
	}
	return create(ctx, filepath.Join(history, "runs.db"), runsSchema, storage.RunIndexes())
}

// create makes one database, unless it has its tables already. As Dagster does, it records the
// revision of the schema, and the given indexes as complete.
func create(ctx context.Context, file, schema string, indexes []string) error {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(30000)", "journal_mode(WAL)"}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: file, RawQuery: q.Encode()}).String())
	if err != nil {
		return fmt.Errorf("sqlite: create %s: %w", file, err)
	}
	db.SetMaxOpenConns(1)
	err = fill(ctx, db, schema, indexes)
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("sqlite: create %s: %w", file, err)
	}
	return nil
}

func fill(ctx context.Context, db *sql.DB, schema string, indexes []string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	var tables int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").Scan(
		&tables); err != nil || tables > 0 {
		return err
	}
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO alembic_version (version_num) VALUES (?)", storage.Revision); err !=
		nil {
		return err
	}
	for _, name := range indexes {
		if _, err := tx.ExecContext(ctx, "INSERT INTO secondary_indexes (name, migration_completed) VALUES (?, ?)",
			name, stamp(time.Now())); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// AddRun implements [storage.Adder]. The shard is made first, because events from the outbox are
// written to it.
func (s *Store) AddRun(ctx context.Context, n storage.NewRun) error {
	file, err := s.fileOf(n.Run.ID)
	if err != nil {
		return err
	}
	if err := create(ctx, file, shardSchema, nil); err != nil {
		return err
	}
	ch, columns := storage.PlanAdd(n)
	err = s.tx(ctx, nil, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx,
			`INSERT INTO runs (run_id, snapshot_id, pipeline_name, status, run_body, partition, partition_set,
				create_timestamp, update_timestamp)
			VALUES (?, nullif(?, ''), ?, ?, ?, nullif(?, ''), nullif(?, ''), ?, ?)`,
			n.Run.ID, columns.Snapshot, n.Run.Job, ch.Status, ch.Body, columns.Partition, columns.PartitionSet,
			stamp(n.At), stamp(n.At)); err != nil {
			return fmt.Errorf("sqlite: add run %s: %w", n.Run.ID, err)
		}
		return s.apply(ctx, tx, n.Run.ID, ch)
	})
	if err != nil {
		return err
	}
	s.deliver(ctx, n.Run.ID, patient)
	return nil
}
