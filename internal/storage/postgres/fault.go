package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/storage"
)

// Further error codes of Postgres.
const (
	invalidPassword      = "28P01"
	invalidAuthorization = "28000"
	unknownDatabase      = "3D000"
	tooManyConnections   = "53300"
	diskFull             = "53100"
	readOnlyTransaction  = "25006"
	insufficientRights   = "42501"
	// The next two come from a pooler that gives a session's statements to different connections.
	duplicateStatement = "42P05"
	unknownStatement   = "26000"
)

var poolerFault = storage.Fault{Code: storage.CodeStoragePooler,
	Fix: "set storage.direct_url in slipway.yaml to the address of the server itself"}

// faults has the remedy for an error of the server, by the server's code.
var faults = map[string]storage.Fault{
	invalidPassword: {Code: storage.CodeStorageLogin,
		Fix: "correct the user and the password of storage.postgres in dagster.yaml, or the environment variable " +
			"that holds it"},
	invalidAuthorization: {Code: storage.CodeStorageLogin,
		Fix: "correct the user of storage.postgres in dagster.yaml, or admit it in pg_hba.conf of the server"},
	unknownDatabase: {Code: storage.CodeStorageDatabase,
		Fix: "correct the database's name (db_name) of storage.postgres in dagster.yaml"},
	tooManyConnections: {Code: storage.CodeStorageConnections,
		Fix: "allow more connections: ALTER ROLE … CONNECTION LIMIT, or max_connections of the server"},
	diskFull: {Code: storage.CodeStorageFull, Fix: "free space on the disk of the Postgres server"},
	readOnlyTransaction: {Code: storage.CodeStorageReadOnly,
		Fix: "set the primary server in dagster.yaml, or end the read-only mode (default_transaction_read_only, or " +
			"a standby that was not promoted)"},
	insufficientRights: {Code: storage.CodeStorageRights,
		Fix: "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, and USAGE ON ALL SEQUENCES IN " +
			"SCHEMA public, to that role"},
	duplicateStatement: poolerFault,
	unknownStatement:   poolerFault,
	undefinedTable: {Code: storage.CodeStorageEmpty,
		Fix: "start dagster-webserver once with this dagster.yaml, which creates the tables; if it uses another " +
			"database, set that one here"},
	undefinedColumn: {Code: storage.CodeStorageSchema,
		Fix: "run dagster instance migrate with the Dagster that you use"},
}

// refusedTLS is pgconn's text for a server that has no TLS; there is no value to compare with.
const refusedTLS = "server refused TLS connection"

// diagnose turns an error whose remedy is known into a [storage.Fault].
func diagnose(err error) error {
	if err == nil || errors.As(err, new(*storage.Fault)) {
		return err
	}
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		if f, ok := faults[e.Code]; ok {
			f.Err = err
			return &f
		}
		return err
	}
	if strings.Contains(err.Error(), refusedTLS) {
		return &storage.Fault{Code: storage.CodeStorageTLS, Err: err,
			Fix: "set sslmode=prefer in the address of storage.postgres in dagster.yaml, or switch TLS on in the " +
				"server (ssl = on)"}
	}
	if e := net.Error(nil); errors.As(err, &e) {
		return &storage.Fault{Code: storage.CodeStorageUnreachable, Err: err,
			Fix: "start the Postgres server, or correct host and port of storage.postgres in dagster.yaml"}
	}
	return err
}

// cause is the server's own error, if it gave one. pgconn lists one error for each way in which it
// tried to connect, the last one last, so that a wrong password comes after the refusal of TLS,
// which does not matter.
func cause(err error) error {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e
	}
	return withoutRepeats{err}
}

// withoutRepeats is an error whose text has each line once. pgconn repeats the line of an address
// that it tried with TLS and without.
type withoutRepeats struct{ error }

func (e withoutRepeats) Error() string {
	return strings.Join(slices.Compact(strings.Split(e.error.Error(), "\n")), "\n")
}

func (e withoutRepeats) Unwrap() error { return e.error }

// probes write what a daemon writes. Postgres checks rights and the read-only mode also for a
// statement that selects no row. The event is a row, since its sequence is used only then.
var probes = []string{
	"INSERT INTO kvs (key, value) VALUES ('slipway/probe', '') ON CONFLICT (key) DO UPDATE SET value = excluded.value",
	"DELETE FROM kvs WHERE key = 'slipway/probe'",
	"UPDATE runs SET status = status, run_body = run_body WHERE false",
	"INSERT INTO run_tags (run_id, key, value) SELECT '', '', '' WHERE false",
	"UPDATE run_tags SET value = value WHERE false",
	"DELETE FROM run_tags WHERE false",
	"INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp) VALUES ('slipway-probe', '', " +
		"'ENGINE_EVENT', now())",
	"INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp) SELECT '', '', now() WHERE false",
	"UPDATE daemon_heartbeats SET timestamp = timestamp WHERE false",
}

// connections is how many a daemon uses at most: those of the pool and the one that listens.
const connections = maxConns + 1

// Probe implements [storage.Store].
func (s *Store) Probe(ctx context.Context) []error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return []error{diagnose(fmt.Errorf("postgres: %w", cause(err)))}
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing of it is to stay
	var denied []string
	for _, q := range probes {
		err := pgx.BeginFunc(ctx, tx, func(step pgx.Tx) error { // a savepoint: a statement that fails spoils only that
			_, err := step.Exec(ctx, q)
			return err
		})
		if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.Code == insufficientRights {
			denied = append(denied, fmt.Sprintf("%s (%s)", e.Message, strings.Join(strings.Fields(q)[:1], "")))
			continue
		}
		if err != nil {
			return []error{diagnose(fmt.Errorf("postgres: cannot write to the storage: %w", err))}
		}
	}
	var out []error
	if len(denied) > 0 {
		f := faults[insufficientRights]
		f.Err = fmt.Errorf("postgres: the role %s lacks rights: %s", s.pool.Config().ConnConfig.User,
			strings.Join(denied, ", "))
		out = append(out, &f)
	}
	var limit *int
	const limits = `SELECT least(CASE WHEN rolsuper THEN NULL ELSE nullif(rolconnlimit, -1) END,
			nullif(datconnlimit, -1))
		FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()`
	// without the right to read them, they are only noticed when they are reached
	if err := tx.QueryRow(ctx, limits).Scan(&limit); err == nil && limit != nil && *limit < connections {
		f := faults[tooManyConnections]
		f.Err = fmt.Errorf(
			"postgres: the role %s may have %d connections at once; a daemon uses up to %d, a standby daemon as many, "+
				"and each worker its own",
			s.pool.Config().ConnConfig.User, *limit, connections)
		out = append(out, &f)
	}
	return out
}

// InstanceIDAt reads the run_storage_id of the database at an address, which may lead through any
// pooler. It is "" if Dagster has not created one.
func InstanceIDAt(ctx context.Context, address config.Secret) (id string, err error) {
	parsed, err := parseAddress(string(address))
	if err != nil {
		return "", err
	}
	c := parsed.ConnConfig
	c.ConnectTimeout, c.DefaultQueryExecMode = cmp.Or(c.ConnectTimeout, connectTimeout), pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return "", diagnose(fmt.Errorf("postgres: cannot connect to %s:%d/%s as %s: %w", c.Host, c.Port, c.Database,
			c.User, cause(err)))
	}
	err = conn.QueryRow(ctx, readInstanceID).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return id, diagnose(errors.Join(err, conn.Close(ctx)))
}
