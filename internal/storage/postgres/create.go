package postgres

import (
	"context"
	_ "embed" // the schema
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/storage"
)

// schema is what Dagster 1.13 makes in an empty database.
//
//go:embed schema/dagster.sql
var schema string

// Create makes the tables that Dagster would make, in one transaction, if the database has none
// yet. Dagster opens the database as its own.
func Create(ctx context.Context, address config.Secret) error {
	c, err := parseAddress(string(address))
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, c.ConnConfig)
	if err != nil {
		return fmt.Errorf("postgres: create: %w", err)
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('slipway create'))"); err != nil {
			return err
		}
		var tables int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM pg_class WHERE oid = to_regclass('alembic_version')").Scan(
			&tables); err != nil || tables > 0 {
			return err
		}
		if _, err := tx.Exec(ctx, schema); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO alembic_version (version_num) VALUES ($1)", storage.Revision); err !=
			nil {
			return err
		}
		names := slices.Concat(storage.RunIndexes(), storage.EventIndexes(), storage.ScheduleIndexes())
		_, err := tx.Exec(ctx,
			"INSERT INTO secondary_indexes (name, migration_completed) SELECT unnest($1::text[]), $2::timestamp", names,
			time.Now().UTC())
		return err
	})
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("postgres: create: %w", err)
	}
	return nil
}

// AddRun implements [storage.Adder].
func (s *Store) AddRun(ctx context.Context, n storage.NewRun) error {
	ch, columns := storage.PlanAdd(n)
	err := s.tx(ctx, nil, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx,
			`INSERT INTO runs (run_id, snapshot_id, pipeline_name, status, run_body, partition, partition_set,
				create_timestamp, update_timestamp)
			VALUES ($1, nullif($2, ''), $3, $4, $5, nullif($6, ''), nullif($7, ''), $8::timestamptz, $8::timestamptz)`,
			n.Run.ID, columns.Snapshot, n.Run.Job, string(ch.Status), ch.Body, columns.Partition, columns.PartitionSet,
			n.At); err != nil {
			return err
		}
		b := &pgx.Batch{}
		queue(b, n.Run.ID, ch)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return fmt.Errorf("postgres: add run %s: %w", n.Run.ID, err)
	}
	return nil
}
