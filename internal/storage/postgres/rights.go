package postgres

import (
	"context"
	"fmt"
)

// missingRights lists the rights that a daemon needs and this role lacks. Tables that are newer
// than the schema are left out.
const missingRights = `SELECT current_user, current_setting('transaction_read_only') = 'on',
	coalesce(string_agg(verb || ' on ' || name, ', ' ORDER BY name, verb), '')
FROM (
	SELECT name, verb FROM (VALUES
		('runs', 'SELECT'), ('runs', 'UPDATE'),
		('run_tags', 'SELECT'), ('run_tags', 'INSERT'), ('run_tags', 'UPDATE'), ('run_tags', 'DELETE'),
		('kvs', 'SELECT'), ('kvs', 'INSERT'), ('kvs', 'UPDATE'), ('kvs', 'DELETE'),
		('event_logs', 'SELECT'), ('event_logs', 'INSERT'),
		('daemon_heartbeats', 'SELECT'), ('daemon_heartbeats', 'INSERT'), ('daemon_heartbeats', 'UPDATE'),
		('instance_info', 'SELECT'),
		('concurrency_slots', 'UPDATE'), ('pending_steps', 'DELETE')
	) AS needed (name, verb) WHERE to_regclass(name) IS NOT NULL AND NOT has_table_privilege(to_regclass(name), verb)
	UNION ALL
	SELECT name, 'USAGE' FROM (VALUES
		(pg_get_serial_sequence('run_tags', 'id')), (pg_get_serial_sequence('event_logs', 'id'))
	) AS needed (name)
	WHERE NOT has_sequence_privilege(name, 'USAGE')
) AS missing`

// Writable returns an error if this role lacks a right that a daemon needs, or the database is
// read-only. It writes nothing.
func (s *Store) Writable(ctx context.Context) error {
	var role, missing string
	var readOnly bool
	err := s.pool.QueryRow(ctx, missingRights).Scan(&role, &readOnly, &missing)
	switch {
	case err != nil:
		return fmt.Errorf("postgres: rights: %w", err)
	case readOnly:
		s.pool.Reset() // connections keep what was so when they were made
		return fmt.Errorf(
			"postgres: the database accepts no writes: it is a standby, or default_transaction_read_only is on for it "+
				"or for role %s; Slipway needs the primary", role)
	case missing != "":
		return fmt.Errorf("postgres: role %s lacks %s: GRANT it the rights that Dagster's role has", role, missing)
	}
	return nil
}
