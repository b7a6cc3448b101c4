package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

// Runs implements [storage.Reader].
func (s *Store) Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error) {
	runs, err := selected(ctx, s, "id, run_id, status, run_body, create_timestamp::timestamptz, "+
		"update_timestamp::timestamptz, start_time, end_time", f, scanRun)
	if err != nil {
		return nil, fmt.Errorf("postgres: runs: %w", err)
	}
	return runs, s.launches(ctx, runs)
}

// Heads implements [storage.Reader].
func (s *Store) Heads(ctx context.Context, f storage.Filter) ([]storage.Head, error) {
	heads, err := selected(ctx, s, "run_id, status, update_timestamp::timestamptz", f,
		func(row pgx.CollectableRow) (h storage.Head, err error) {
			var updated pgtype.Timestamptz
			err = row.Scan(&h.ID, &h.Status, &updated)
			h.Updated = updated.Time.UTC()
			return h, err
		})
	if err != nil {
		return nil, fmt.Errorf("postgres: heads of runs: %w", err)
	}
	return heads, nil
}

// selected reads columns of the runs that a filter selects.
func selected[T any](ctx context.Context, s *Store, columns string, f storage.Filter,
	scan pgx.RowToFunc[T]) ([]T, error) {
	q := "SELECT " + columns + " FROM runs"
	var where []string
	var args []any
	cond := func(text string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf(text, len(args)))
	}
	if len(f.Statuses) > 0 {
		cond("status = ANY($%d)", f.Statuses)
	}
	if len(f.IDs) > 0 {
		cond("run_id = ANY($%d)", f.IDs)
	}
	if !f.Since.IsZero() {
		cond("update_timestamp >= $%d::timestamptz::timestamp", f.Since)
	}
	if len(where) > 0 {
		q += " WHERE " + strings.Join(where, " AND ")
	}
	q += " ORDER BY id"
	if f.Newest > 0 {
		q += fmt.Sprintf(" DESC LIMIT %d", f.Newest)
	}
	rows, err := s.pool.Query(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

func scanRun(row pgx.CollectableRow) (storage.Run, error) {
	var (
		r                storage.Run
		id, status       string
		body             pgtype.Text
		created, updated pgtype.Timestamptz
		start, end       pgtype.Float8
	)
	if err := row.Scan(&r.Row, &id, &status, &body, &created, &updated, &start, &end); err != nil {
		return r, err
	}
	r.Run, r.Broken = dagster.ParseRun(body.String)
	r.ID, r.Status = id, dagster.Status(status)
	r.Created, r.Updated = created.Time.UTC(), updated.Time.UTC()
	if start.Valid {
		r.Start = dagster.FromUnix(start.Float64)
	}
	if end.Valid {
		r.End = dagster.FromUnix(end.Float64)
	}
	return r, nil
}

// launches adds the launch and handle rows to runs that were ever claimed.
func (s *Store) launches(ctx context.Context, runs []storage.Run) error {
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := s.pool.Query(ctx,
		"SELECT run_id, id, key, value FROM run_tags WHERE run_id = ANY($1) AND key = ANY($2) ORDER BY id", ids,
		storage.FactKeys)
	if err != nil {
		return fmt.Errorf("postgres: launch rows: %w", err)
	}
	tags := map[string][]storage.Tag{}
	var run string
	var t storage.Tag
	if _, err := pgx.ForEachRow(rows, []any{&run, &t.ID, &t.Key, &t.Value}, func() error {
		tags[run] = append(tags[run], t)
		return nil
	}); err != nil {
		return fmt.Errorf("postgres: launch rows: %w", err)
	}
	for i := range runs {
		runs[i].Facts = storage.FactsOf(runs[i].Run, tags[runs[i].ID])
	}
	return nil
}

// Events implements [storage.Reader].
func (s *Store) Events(ctx context.Context, run string, types ...dagster.EventType) ([]dagster.Event, error) {
	rows, err := s.pool.Query(ctx,
		"SELECT event FROM event_logs WHERE run_id = $1 AND (cardinality($2::text[]) = 0 OR dagster_event_type = "+
			"ANY($2)) ORDER BY id", run, append([]dagster.EventType{}, types...))
	if err != nil {
		return nil, fmt.Errorf("postgres: events of run %s: %w", run, err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (dagster.Event, error) {
		var text string
		if err := row.Scan(&text); err != nil {
			return dagster.Event{}, err
		}
		return dagster.ParseEvent(text)
	})
	if err != nil {
		return nil, fmt.Errorf("postgres: events of run %s: %w", run, err)
	}
	return events, nil
}

// EventsAfter implements [storage.Reader].
func (s *Store) EventsAfter(ctx context.Context, run string,
	after int64) (events []dagster.Event, newest int64, err error) {
	if after < 0 {
		err = s.pool.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM event_logs WHERE run_id = $1", run).Scan(&newest)
	} else {
		newest = after
		// an error comes with the rows
		rows, _ := s.pool.Query(ctx, "SELECT id, event FROM event_logs WHERE run_id = $1 AND id > $2 ORDER BY id", run,
			after)
		var text string
		_, err = pgx.ForEachRow(rows, []any{&newest, &text}, func() error {
			e, err := dagster.ParseEvent(text)
			events = append(events, e)
			return err
		})
	}
	if err != nil {
		return nil, after, fmt.Errorf("postgres: events of run %s: %w", run, err)
	}
	return events, newest, nil
}

// Heartbeats implements [storage.Heart].
func (s *Store) Heartbeats(ctx context.Context) ([]storage.Heartbeat, error) {
	rows, err := s.pool.Query(ctx,
		"SELECT daemon_type, coalesce(daemon_id, ''), timestamp::timestamptz, body FROM daemon_heartbeats")
	if err != nil {
		return nil, fmt.Errorf("postgres: heartbeats: %w", err)
	}
	beats, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (storage.Heartbeat, error) {
		var h storage.Heartbeat
		var body pgtype.Text
		err := row.Scan(&h.Type, &h.ID, &h.At, &body)
		h.At = beatAt(body.String, h.At)
		return h, err
	})
	if err != nil {
		return nil, fmt.Errorf("postgres: heartbeats: %w", err)
	}
	return beats, nil
}

// beatAt is when a heartbeat was written: what its body says in seconds since 1970, or else column.
func beatAt(body string, column time.Time) time.Time {
	if h, err := dagster.ParseHeartbeat(body); err == nil {
		return h.Time
	}
	return column.UTC()
}

// Beat implements [storage.Heart].
func (s *Store) Beat(ctx context.Context, h storage.Heartbeat, since time.Time) (bool, error) {
	var id string
	var at time.Time
	var body pgtype.Text
	err := s.pool.QueryRow(ctx,
		"SELECT coalesce(daemon_id, ''), timestamp::timestamptz, body FROM daemon_heartbeats WHERE daemon_type = $1",
		h.Type).Scan(&id, &at, &body)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, fmt.Errorf("postgres: heartbeat: %w", err)
	}
	if err == nil && id != h.ID && !beatAt(body.String, at).Before(since) {
		return false, nil
	}
	// Another heartbeat than the one that was read is left alone.
	tag, err := s.pool.Exec(ctx,
		`INSERT INTO daemon_heartbeats AS d (daemon_type, daemon_id, timestamp, body)
		VALUES ($1, $2, $3::timestamptz, $4)
		ON CONFLICT (daemon_type)
		DO UPDATE SET daemon_id = excluded.daemon_id, timestamp = excluded.timestamp, body = excluded.body
		WHERE d.daemon_id = excluded.daemon_id OR d.body IS NOT DISTINCT FROM $5`, h.Type, h.ID, h.At, h.Body(), body)
	if err != nil {
		return false, fmt.Errorf("postgres: heartbeat: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}
