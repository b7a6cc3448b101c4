// Package postgres is Dagster's Postgres storage. Every write of Slipway, with its events, is one
// transaction, and each event is announced on the channel run_events as Dagster's own are.
//
// Dagster's columns without a time zone hold UTC in event_logs. In runs, daemon_heartbeats and
// pending_steps they hold the time of the session's zone, because Dagster writes times with a zone
// there and the server converts them. This package does the same, in the same zone: that of the
// server, the database, the role or the address. These times may be an hour off in the hour that
// comes twice when a clock is set back. The guard against a stock daemon therefore reads the bodies
// of heartbeats, which are never off.
//
// A notice comes before its row has changed, because Dagster writes the event and the row in two
// statements. So it is only a hint.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
)

// Error codes of Postgres.
const (
	undefinedTable  = "42P01"
	undefinedColumn = "42703"
	lockTimeout     = "55P03"
)

// Store is Dagster's storage in one Postgres database.
type Store struct {
	pool *pgxpool.Pool
	// defaultLimits: concurrency_limits has the column using_default_limit, which is newer than the
	// table.
	defaultLimits bool
	hasPools      bool   // the tables of pools are newer than the others
	revision      string // of the schema
}

// Revision implements [storage.Store].
func (s *Store) Revision() string { return s.revision }

var (
	_ storage.Store    = (*Store)(nil)
	_ storage.Adder    = (*Store)(nil)
	_ storage.Recorder = (*Store)(nil)
)

// maxConns is the most connections of a store, without the one that listens.
const maxConns = 6

// channel is where every stored event is announced, as "<run id>_<event id>".
const channel = "run_events"

// sessionSettings limit how long the server waits for us, and how long we wait for others. A daemon
// that is stopped or loses its network must not keep its locks. Settings that a server does not
// have are left out.
//   - idle_in_transaction_session_timeout ends a session that sends nothing within a transaction.
//   - tcp_user_timeout ends a session that does not read its rows; keepalives end a session whose
//     machine is gone.
//   - lock_timeout ends the wait for a locked row, also after the client has gone.
//   - transaction_timeout (Postgres 17) ends a session that stops in the middle of a message.
const sessionSettings = `SELECT set_config(name, value, false) FROM (VALUES
	('idle_in_transaction_session_timeout', '1s'), ('lock_timeout', '2s'),
	('tcp_user_timeout', '10s'), ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '2'),
	('transaction_timeout', '30s')) v (name, value)
	WHERE current_setting(name, true) IS NOT NULL`

// connectTimeout is how long connecting may take if the address does not set it.
const connectTimeout = 5 * time.Second

// Open connects to a database in which Dagster has made its tables. It creates nothing.
func Open(ctx context.Context, address config.Secret) (*Store, error) {
	c, err := parseAddress(string(address))
	if err != nil {
		return nil, storage.Setting(err)
	}
	c.MaxConns = maxConns
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = connectTimeout
	}
	c.ConnConfig.Tracer = answerWithin
	c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		// A caller that waits for the connection may give up. The pool does not, and its Close
		// waits for the connection.
		ctx, cancel := context.WithTimeout(ctx, c.ConnConfig.ConnectTimeout)
		defer cancel()
		_, err := conn.Exec(ctx, sessionSettings)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	s := &Store{pool: pool}
	for _, check := range []func(context.Context) error{s.checkServer, s.checkSession, s.checkSchema} {
		if err := check(ctx); err != nil {
			pool.Close()
			return nil, diagnose(err)
		}
	}
	return s, nil
}

// saidCode reports whether err is an error of the server with one of some codes.
func saidCode(err error, codes ...string) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && slices.Contains(codes, said.Code)
}

// checkServer looks whether the server can be reached.
func (s *Store) checkServer(ctx context.Context) error {
	if err := s.pool.Ping(ctx); err != nil {
		c := s.pool.Config().ConnConfig
		return fmt.Errorf("postgres: cannot connect to %s:%d/%s as %s: %w", c.Host, c.Port, c.Database, c.User,
			cause(err))
	}
	return nil
}

// checkSchema refuses a database that lacks a column Slipway uses.
func (s *Store) checkSchema(ctx context.Context) error {
	for _, q := range []string{
		"SELECT id, run_id, status, run_body, create_timestamp, update_timestamp, start_time, end_time FROM runs " +
			"LIMIT 0",
		"SELECT id, run_id, key, value FROM run_tags LIMIT 0", "SELECT key, value FROM kvs LIMIT 0",
		"SELECT id, run_id, event, dagster_event_type, timestamp, step_key FROM event_logs LIMIT 0",
		"SELECT daemon_type, daemon_id, timestamp, body FROM daemon_heartbeats LIMIT 0",
		"SELECT run_storage_id FROM instance_info LIMIT 0",
	} {
		if _, err := s.pool.Exec(ctx, q); err != nil {
			if saidCode(err, undefinedTable, undefinedColumn) {
				c := s.pool.Config().ConnConfig
				return fmt.Errorf("postgres: the schema is not one that Slipway knows: database %s on %s:%d: %w",
					c.Database, c.Host, c.Port, err)
			}
			return fmt.Errorf("postgres: schema: %w", err)
		}
	}
	if err := s.pool.QueryRow(ctx, "SELECT version_num FROM alembic_version").Scan(&s.revision); err != nil &&
		!errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("postgres: schema: %w", err)
	}
	if err := s.pool.QueryRow(ctx,
		"SELECT to_regclass('concurrency_limits') IS NOT NULL AND to_regclass('pending_steps') IS NOT NULL").Scan(
		&s.hasPools); err != nil {
		return fmt.Errorf("postgres: schema: %w", err)
	}
	const column = "SELECT count(*) > 0 FROM pg_attribute WHERE attrelid = to_regclass('concurrency_limits') AND " +
		"attname = 'using_default_limit' AND NOT attisdropped"
	if err := s.pool.QueryRow(ctx, column).Scan(&s.defaultLimits); err != nil {
		return fmt.Errorf("postgres: schema: %w", err)
	}
	return nil
}

// Close closes all connections. It waits for those in use.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

// tx runs f in a transaction, under the fence if one is given. The fence is checked last, so that
// no standby has to wait while f waits, or while rows are sent to a leader that has just stopped.
// The lock of the leader row keeps another daemon from taking over between the check and the
// commit.
func (s *Store) tx(ctx context.Context, fence *storage.Fence, f func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := f(tx); err != nil || fence == nil {
			return err
		}
		return checkFence(ctx, tx, *fence)
	})
}

// checkFence fails with [storage.ErrFenced] if f does not hold, and keeps it until the end of the
// transaction.
func checkFence(ctx context.Context, tx pgx.Tx, f storage.Fence) error {
	value, err := kv(ctx, tx, storage.LeaderKey, "FOR SHARE")
	if err == nil && value != storage.FenceValue(f) {
		return storage.ErrFenced
	}
	return err
}

// kv reads one value, "" if there is none, with a lock on its row, or none.
func kv(ctx context.Context, tx pgx.Tx, key, lock string) (string, error) {
	var value string
	err := tx.QueryRow(ctx, "SELECT value FROM kvs WHERE key = $1 "+lock, key).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return value, err
}

const setKV = "INSERT INTO kvs (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"

// nowMicro is the database's clock, which does not stand still in a transaction.
const nowMicro = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

// Lead implements [storage.Leaser]. The lease ends by the database's clock.
func (s *Store) Lead(ctx context.Context, leader string,
	ttl time.Duration) (fence storage.Fence, leads bool, err error) {
	err = s.tx(ctx, nil, func(tx pgx.Tx) error {
		value, err := kv(ctx, tx, storage.LeaderKey, "")
		if err != nil {
			return err
		}
		// One lock, and at once the one that is needed: of several standbys that raise a shared
		// one, all but one fail.
		if fence = storage.ParseFence(value); fence.Leader == leader {
			err = checkFence(ctx, tx, fence)
			if errors.Is(err, storage.ErrFenced) { // taken over since it was read
				return nil
			}
		} else {
			var ok bool
			fence, ok, err = s.takeOver(ctx, tx, leader)
			if !ok {
				return err
			}
		}
		if err != nil {
			return err
		}
		leads = true
		_, err = tx.Exec(ctx, "INSERT INTO kvs (key, value) VALUES ($1, "+nowMicro+
			" + $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value", storage.LeaseKey, ttl.Microseconds())
		return err
	})
	if err != nil {
		if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.Code == readOnlyTransaction {
			s.pool.Reset() // connections keep what was so when they were made
		}
		return storage.Fence{}, false, fmt.Errorf("postgres: lease: %w", err)
	}
	return fence, leads, nil
}

// Clock implements [storage.Leaser].
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	var micro int64
	if err := s.pool.QueryRow(ctx, "SELECT "+nowMicro).Scan(&micro); err != nil {
		return time.Time{}, fmt.Errorf("postgres: clock: %w", err)
	}
	return time.UnixMicro(micro).UTC(), nil
}

// takeOver makes leader the next leader if the lease of the last one has ended.
func (s *Store) takeOver(ctx context.Context, tx pgx.Tx, leader string) (storage.Fence, bool, error) {
	if _, err := tx.Exec(ctx,
		"INSERT INTO kvs (key, value) VALUES ($1, '0 none'), ($2, '0') ON CONFLICT (key) DO NOTHING",
		storage.LeaderKey, storage.LeaseKey); err != nil {
		return storage.Fence{}, false, err
	}
	var ended bool
	if err := tx.QueryRow(ctx, "SELECT value::bigint < "+nowMicro+" FROM kvs WHERE key = $1", storage.LeaseKey).Scan(
		&ended); err != nil || !ended {
		return storage.Fence{}, false, err
	}
	value, err := kv(ctx, tx, storage.LeaderKey, "FOR UPDATE")
	if err != nil {
		return storage.Fence{}, false, err
	}
	// Another one may have been faster while this one waited for the lock.
	if err := tx.QueryRow(ctx, "SELECT value::bigint < "+nowMicro+" FROM kvs WHERE key = $1", storage.LeaseKey).Scan(
		&ended); err != nil || !ended {
		return storage.Fence{}, false, err
	}
	f := storage.Fence{Leader: leader, Epoch: storage.ParseFence(value).Epoch + 1}
	_, err = tx.Exec(ctx, setKV, storage.LeaderKey, storage.FenceValue(f))
	return f, err == nil, err
}

// Yield implements [storage.Leaser].
func (s *Store) Yield(ctx context.Context, f storage.Fence) error {
	err := s.tx(ctx, nil, func(tx pgx.Tx) error {
		if err := checkFence(ctx, tx, f); err != nil { // first, for a take-over locks the two rows in this order
			return err
		}
		_, err := tx.Exec(ctx, setKV, storage.LeaseKey, "0")
		return err
	})
	if errors.Is(err, storage.ErrFenced) {
		return nil
	}
	return err
}

// Flush implements [storage.Store]; a transaction leaves nothing half written.
func (s *Store) Flush(context.Context, storage.Fence) error { return nil }

const readInstanceID = "SELECT run_storage_id FROM instance_info ORDER BY id LIMIT 1"

// InstanceID implements [storage.Reader].
func (s *Store) InstanceID(ctx context.Context) (string, error) {
	var id string
	err := s.tx(ctx, nil, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, readInstanceID).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) { // of several that find none at once, one makes it
			if _, err := tx.Exec(ctx, "LOCK TABLE instance_info IN SHARE ROW EXCLUSIVE MODE"); err != nil {
				return err
			}
			err = tx.QueryRow(ctx, readInstanceID).Scan(&id)
		}
		if errors.Is(err, pgx.ErrNoRows) {
			if _, err := tx.Exec(ctx, "INSERT INTO instance_info (run_storage_id) VALUES ($1)",
				uuid.NewString()); err != nil {
				return err
			}
			err = tx.QueryRow(ctx, readInstanceID).Scan(&id)
		}
		return err
	})
	if err != nil {
		return "", diagnose(fmt.Errorf("postgres: instance id: %w", err))
	}
	return id, nil
}

// Claim implements [storage.Writer].
func (s *Store) Claim(ctx context.Context, f storage.Fence, claims []storage.Claim) ([]storage.Outcome, error) {
	failpoint.Here(failpoint.ClaimBegun)
	ids := make([]string, len(claims))
	for i, c := range claims {
		ids[i] = c.Run
	}
	plan := func(i int, row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanClaim(f, claims[i], row, ours)
	}
	outcomes, err := s.changeAll(ctx, &f, ids, wait, plan)
	if saidCode(err, lockTimeout) {
		outcomes, err = s.changeAll(ctx, &f, ids, skip, plan)
	}
	if err != nil {
		return nil, wrap(err, "claim")
	}
	storage.TraceClaims(outcomes)
	failpoint.Here(failpoint.ClaimCommitted)
	return outcomes, nil
}

// Move implements [storage.Writer].
func (s *Store) Move(ctx context.Context, f storage.Fence, t storage.Transition) (storage.Outcome, error) {
	out, err := s.change(ctx, &f, t.Run, func(row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanMove(t, row, ours)
	})
	if err != nil {
		return out, err
	}
	storage.TraceMove(t, out)
	if t.Handle != "" {
		failpoint.Here(failpoint.HandleCommitted)
	}
	return out, nil
}

func wrap(err error, what string) error {
	if errors.Is(err, storage.ErrFenced) {
		return err
	}
	return fmt.Errorf("postgres: %s: %w", what, err)
}

// What to do about rows that another program has locked.
const (
	wait = ""
	skip = "SKIP LOCKED"
)

// lockRows reads the rows of runs under their locks, in one order for all writers, with their rows
// of run_tags that are ours. Those are locked as well, because a gate of Dagster's Python changes a
// launch row without a lock of its run.
func lockRows(ctx context.Context, tx pgx.Tx, ids []string,
	locked string) (map[string]storage.Row, map[string][]storage.Tag, error) {
	rows, ours := map[string]storage.Row{}, map[string][]storage.Tag{}
	var id, status string
	var body pgtype.Text
	var updated pgtype.Timestamptz
	var start, end float64
	q, err := tx.Query(ctx,
		"SELECT run_id, status, run_body, update_timestamp::timestamptz, coalesce(start_time, 0), coalesce(end_time, "+
			"0) FROM runs WHERE run_id = ANY($1) ORDER BY id FOR UPDATE "+locked, ids)
	if err != nil {
		return nil, nil, err
	}
	if _, err = pgx.ForEachRow(q, []any{&id, &status, &body, &updated, &start, &end}, func() error {
		rows[id] = storage.Row{Status: dagster.Status(status), Body: body.String, Updated: updated.Time, Start: start,
			End: end}
		return nil
	}); err != nil {
		return nil, nil, err
	}
	var t storage.Tag
	q, err = tx.Query(ctx,
		"SELECT run_id, id, key, value FROM run_tags WHERE run_id = ANY($1) AND key LIKE $2 ORDER BY id FOR UPDATE",
		slices.Collect(maps.Keys(rows)), storage.RowPrefix+"%")
	if err != nil {
		return nil, nil, err
	}
	_, err = pgx.ForEachRow(q, []any{&id, &t.ID, &t.Key, &t.Value}, func() error {
		ours[id] = append(ours[id], t)
		return nil
	})
	return rows, ours, err
}

// queue adds the statements of a change to a batch.
func queue(b *pgx.Batch, run string, ch storage.Change) {
	if !ch.Outcome.Done {
		return
	}
	if len(ch.DeleteTags) > 0 {
		b.Queue("DELETE FROM run_tags WHERE id = ANY($1)", ch.DeleteTags)
	}
	for _, t := range ch.UpdateTags {
		b.Queue("UPDATE run_tags SET value = $2 WHERE id = $1", t.ID, t.Value)
	}
	for _, t := range ch.AddTags {
		b.Queue("INSERT INTO run_tags (run_id, key, value) VALUES ($1, $2, $3)", run, t.Key, t.Value)
	}
	if len(ch.DropTags) > 0 {
		b.Queue("DELETE FROM run_tags WHERE run_id = $1 AND key = ANY($2)", run, ch.DropTags)
	}
	for k, v := range ch.SetTags {
		b.Queue("DELETE FROM run_tags WHERE run_id = $1 AND key = $2", run, k)
		b.Queue("INSERT INTO run_tags (run_id, key, value) VALUES ($1, $2, $3)", run, k, v)
	}
	if ch.Body != "" {
		// A row whose status changes by an event of the past changes now all the same.
		b.Queue(
			`UPDATE runs SET status = $2::text, run_body = $3,
			update_timestamp = coalesce($4::timestamptz::timestamp,
				CASE WHEN status = $2::text THEN update_timestamp ELSE now()::timestamp END),
			start_time = coalesce(nullif($5::double precision, 0), start_time),
			end_time = coalesce(nullif($6::double precision, 0), end_time) WHERE run_id = $1`,
			run, string(ch.Status), ch.Body, pgtype.Timestamptz{Time: ch.Updated, Valid: !ch.Updated.IsZero()},
			ch.Start, ch.End)
	}
	if ch.Body != "" && len(ch.Events) == 0 { // no event announces it
		b.Queue("SELECT pg_notify('"+channel+"', $1)", changedPrefix+run+"_0")
	}
	insert := insertEvent
	if ch.OnlyEvents {
		insert = insertNewEvent
	}
	for _, e := range ch.Events {
		b.Queue("WITH e AS ("+insert+" RETURNING id) SELECT pg_notify('"+channel+"', $1 || '_' || id) FROM e",
			e.RunID, e.JSON(), string(e.Type), e.Time.UTC(), e.StepKey)
	}
}

const (
	insertEvent = `INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key)
		SELECT $1::text, $2::text, nullif($3, ''), $4::timestamp, nullif($5, '')`
	// insertNewEvent reads all events of the run.
	insertNewEvent = insertEvent +
		" WHERE NOT EXISTS (SELECT FROM event_logs WHERE run_id = $1::text AND timestamp = $4 AND event = $2)"
)

// Away reports whether Open failed because the server cannot be reached now, or is just starting or
// stopping; false if it refuses us.
func Away(err error) bool {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		// shutdown, starting, too many connections
		return strings.HasPrefix(said.Code, "57P") || strings.HasPrefix(said.Code, "53")
	}
	var failed *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &failed) || errors.As(err, &network) || pgconn.SafeToRetry(err) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF)
}
