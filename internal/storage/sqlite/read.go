package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

// maxList is the most values that one query lists.
const maxList = 500

// list is "?, ?, …" and its arguments.
func list[T ~string](values []T) (string, []any) {
	args := make([]any, len(values))
	for i, v := range values {
		args[i] = string(v)
	}
	return strings.TrimSuffix(strings.Repeat("?, ", len(values)), ", "), args
}

// Runs implements [storage.Reader].
func (s *Store) Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error) {
	runs, err := selected(ctx, s, "id, run_id, status, run_body, CAST(create_timestamp AS TEXT), "+
		"CAST(update_timestamp AS TEXT), start_time, end_time", f, scanRun)
	if err != nil {
		return nil, fmt.Errorf("sqlite: runs: %w", err)
	}
	return runs, s.launches(ctx, runs)
}

// Heads implements [storage.Reader].
func (s *Store) Heads(ctx context.Context, f storage.Filter) ([]storage.Head, error) {
	heads, err := selected(ctx, s, "run_id, status, CAST(update_timestamp AS TEXT)", f,
		func(rows *sql.Rows) (h storage.Head, err error) {
			var updated sql.NullString
			err = rows.Scan(&h.ID, &h.Status, &updated)
			h.Updated = parseStamp(updated.String)
			return h, err
		})
	if err != nil {
		return nil, fmt.Errorf("sqlite: heads of runs: %w", err)
	}
	return heads, nil
}

// selected reads columns of the runs that a filter selects.
func selected[T any](ctx context.Context, s *Store, columns string, f storage.Filter,
	scan func(*sql.Rows) (T, error)) ([]T, error) {
	if len(f.IDs) > maxList {
		var all []T
		for ids := range slices.Chunk(f.IDs, maxList) {
			f.IDs = ids
			some, err := selected(ctx, s, columns, f, scan)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	}
	q := "SELECT " + columns + " FROM runs WHERE 1"
	var args []any
	if len(f.Statuses) > 0 {
		marks, values := list(f.Statuses)
		q, args = q+" AND status IN ("+marks+")", append(args, values...)
	}
	if len(f.IDs) > 0 {
		marks, values := list(f.IDs)
		q, args = q+" AND run_id IN ("+marks+")", append(args, values...)
	}
	if !f.Since.IsZero() {
		q, args = q+" AND update_timestamp >= ?", append(args, stamp(f.Since))
	}
	if f.Newest > 0 {
		q, args = q+" ORDER BY id DESC LIMIT ?", append(args, f.Newest)
	} else {
		q += " ORDER BY id"
	}
	rows, err := s.read.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

func scanRun(rows *sql.Rows) (storage.Run, error) {
	var (
		r                storage.Run
		id, status       string
		body             sql.NullString
		created, updated sql.NullString
		start, end       sql.NullFloat64
	)
	if err := rows.Scan(&r.Row, &id, &status, &body, &created, &updated, &start, &end); err != nil {
		return r, err
	}
	r.Run, r.Broken = dagster.ParseRun(body.String)
	r.ID, r.Status = id, dagster.Status(status)
	r.Created, r.Updated = parseStamp(created.String), parseStamp(updated.String)
	r.Start, r.End = scanTime(start), scanTime(end)
	return r, nil
}

// launches adds the launch and handle rows to runs that were ever claimed.
func (s *Store) launches(ctx context.Context, runs []storage.Run) error {
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	tags := map[string][]storage.Tag{}
	for some := range slices.Chunk(ids, maxList) {
		marks, args := list(some)
		keys, values := list(storage.FactKeys)
		rows, err := s.read.QueryContext(ctx,
			"SELECT id, run_id, key, value FROM run_tags WHERE run_id IN ("+marks+") AND key IN ("+keys+") ORDER BY id",
			append(args, values...)...)
		if err != nil {
			return fmt.Errorf("sqlite: launch rows: %w", err)
		}
		for rows.Next() {
			var t storage.Tag
			var run string
			if err := rows.Scan(&t.ID, &run, &t.Key, &t.Value); err != nil {
				return errors.Join(err, rows.Close())
			}
			tags[run] = append(tags[run], t)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("sqlite: launch rows: %w", err)
		}
	}
	for i := range runs {
		runs[i].Facts = storage.FactsOf(runs[i].Run, tags[runs[i].ID])
	}
	return nil
}

// Events implements [storage.Reader]. A run without a shard has none. Events that are committed and
// still wait in the outbox come last.
func (s *Store) Events(ctx context.Context, run string, types ...dagster.EventType) ([]dagster.Event, error) {
	file, err := s.fileOf(run)
	if err != nil {
		return nil, err
	}
	if has, err := hasShard(file); err != nil || !has {
		return nil, err
	}
	// before the shard: what is delivered meanwhile is found there
	late, err := readOutbox(ctx, s.read, outboxPrefix+run+"/")
	if err != nil {
		return nil, err
	}
	shard, err := open(file, 1, patient)
	if err != nil {
		return nil, err
	}
	events, err := readEvents(ctx, shard, run, types)
	if err = errors.Join(err, shard.Close()); err != nil {
		return nil, err
	}
	for _, u := range late {
		e, err := dagster.ParseEvent(u.text)
		if err != nil {
			return nil, fmt.Errorf("sqlite: run %s: %w", run, err)
		}
		delivered := slices.ContainsFunc(events, func(d dagster.Event) bool { return d.JSON() == u.text })
		if !delivered && (len(types) == 0 || slices.Contains(types, e.Type)) {
			events = append(events, e)
		}
	}
	return events, nil
}

// EventsAfter implements [storage.Reader].
func (s *Store) EventsAfter(ctx context.Context, run string, after int64) ([]dagster.Event, int64, error) {
	file, err := s.fileOf(run)
	if err != nil {
		return nil, after, err
	}
	if has, err := hasShard(file); err != nil || !has {
		return nil, max(0, after), err
	}
	shard, err := open(file, 1, patient)
	if err != nil {
		return nil, after, err
	}
	events, newest, err := eventsAfter(ctx, shard, run, after)
	if err = errors.Join(err, shard.Close()); err != nil {
		return nil, after, fmt.Errorf("sqlite: events of run %s: %w", run, err)
	}
	return events, newest, nil
}

func eventsAfter(ctx context.Context, shard *sql.DB, run string,
	after int64) (events []dagster.Event, newest int64, err error) {
	if after < 0 {
		err = shard.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM event_logs WHERE run_id = ?", run).Scan(
			&newest)
		return nil, newest, err
	}
	rows, err := shard.QueryContext(ctx, "SELECT id, event FROM event_logs WHERE run_id = ? AND id > ? ORDER BY id",
		run, after)
	if err != nil {
		return nil, after, err
	}
	defer func() { _ = rows.Close() }()
	newest = after
	for rows.Next() {
		var text string
		if err := rows.Scan(&newest, &text); err != nil {
			return nil, after, err
		}
		e, err := dagster.ParseEvent(text)
		if err != nil {
			return nil, after, err
		}
		events = append(events, e)
	}
	return events, newest, rows.Err()
}

// Mirrored returns the events of a run that are in index.db.
func (s *Store) Mirrored(ctx context.Context, run string) ([]dagster.Event, error) {
	return readEvents(ctx, s.index, run, nil)
}

func readEvents(ctx context.Context, db *sql.DB, run string, types []dagster.EventType) ([]dagster.Event, error) {
	q, args := "SELECT event FROM event_logs WHERE run_id = ?", []any{run}
	if len(types) > 0 {
		marks, values := list(types)
		q, args = q+" AND dagster_event_type IN ("+marks+")", append(args, values...)
	}
	rows, err := db.QueryContext(ctx, q+" ORDER BY id", args...)
	if err != nil {
		return nil, fmt.Errorf("sqlite: events of run %s: %w", run, err)
	}
	defer func() { _ = rows.Close() }()
	var events []dagster.Event
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, err
		}
		e, err := dagster.ParseEvent(text)
		if err != nil {
			return nil, fmt.Errorf("sqlite: run %s: %w", run, err)
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// Heartbeats implements [storage.Heart].
func (s *Store) Heartbeats(ctx context.Context) ([]storage.Heartbeat, error) {
	rows, err := s.read.QueryContext(ctx,
		"SELECT daemon_type, coalesce(daemon_id, ''), CAST(timestamp AS TEXT) FROM daemon_heartbeats")
	if err != nil {
		return nil, fmt.Errorf("sqlite: heartbeats: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []storage.Heartbeat
	for rows.Next() {
		var h storage.Heartbeat
		var at string
		if err := rows.Scan(&h.Type, &h.ID, &at); err != nil {
			return nil, err
		}
		h.At = parseStamp(at)
		out = append(out, h)
	}
	return out, rows.Err()
}

// Beat implements [storage.Heart].
func (s *Store) Beat(ctx context.Context, h storage.Heartbeat, since time.Time) (bool, error) {
	res, err := s.write.ExecContext(ctx,
		`INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) VALUES (?, ?, ?, ?)
		ON CONFLICT (daemon_type)
		DO UPDATE SET daemon_id = excluded.daemon_id, timestamp = excluded.timestamp, body = excluded.body
		WHERE daemon_id = excluded.daemon_id OR timestamp < ?`, h.Type, h.ID, stamp(h.At), h.Body(), stamp(since))
	if err != nil {
		return false, fmt.Errorf("sqlite: heartbeat: %w", err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}
