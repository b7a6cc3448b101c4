package postgres

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/internal/storage"
)

const (
	// selfTest is how often Slipway tests whether notices still arrive: a connection may be dead
	// without a sign of it.
	selfTest = 30 * time.Second
	// selfTestWait is how long Slipway's own notice may take.
	selfTestWait = 3 * time.Second
)

// Hints implements [storage.Store] by LISTEN, on a separate connection. It sends itself a notice
// from time to time to find out whether notices arrive; if not, it ends with
// [storage.ErrNoNotices].
func (s *Store) Hints(ctx context.Context) iter.Seq2[storage.Hint, error] {
	return func(yield func(storage.Hint, error) bool) {
		err := s.listen(ctx, func(h storage.Hint) bool { return yield(h, nil) })
		if err != nil && ctx.Err() == nil {
			yield(storage.Hint{}, fmt.Errorf("postgres: hints: %w", err))
		}
	}
}

// listen passes on hints until ctx ends or pass returns false, neither of which is an error, or
// until notices can no longer be received.
func (s *Store) listen(ctx context.Context, pass func(storage.Hint) bool) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is lost with it
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	heard := make(chan string, 1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tested := make(chan struct{})
	go func() { defer close(tested); cancel(s.test(ctx, heard)) }() // ended and awaited below
	defer func() { cancel(nil); <-tested }()
	if !pass(storage.Hint{}) { // what happened before LISTEN
		return nil
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, storage.ErrNoNotices) {
				return cause
			}
			return err
		}
		if strings.HasPrefix(n.Payload, noncePrefix) {
			select {
			case heard <- n.Payload:
			default: // another daemon's
			}
			continue
		}
		run := n.Payload
		if i := strings.LastIndexByte(run, '_'); i >= 0 {
			run = run[:i]
		}
		if !pass(storage.Hint{Run: strings.TrimPrefix(run, changedPrefix)}) {
			return nil
		}
	}
}

// noncePrefix begins notices of our own. They have the form of Dagster's, run and event, so that
// other listeners take them for those of a run they do not know.
const noncePrefix = "slipway-test-"

// changedPrefix begins notices of ours about runs that changed without an event. To Dagster's
// listeners they are about a run that they do not know, too.
const changedPrefix = "slipway-run-"

// test sends a notice now and then and waits for it on the listening connection. It returns
// [storage.ErrNoNotices] if one does not arrive, else nil with ctx.
func (s *Store) test(ctx context.Context, heard <-chan string) error {
	for {
		nonce := noncePrefix + uuid.NewString() + "_0"
		_, err := s.pool.Exec(ctx, "SELECT pg_notify($1, $2)", channel, nonce)
		late := time.After(selfTestWait)
		for err == nil {
			select {
			case got := <-heard:
				if got != nonce {
					continue
				}
			case <-late:
				return storage.ErrNoNotices
			case <-ctx.Done():
				return nil
			}
			break
		}
		select { // also after an error: who listens notices that the server is gone
		case <-ctx.Done():
			return nil
		case <-time.After(selfTest):
		}
	}
}

// checkSession refuses a pooler that gives a session's statements to different connections: LISTEN,
// locks and prepared statements do not work there. A lock that one session holds and a second one
// can take shows it.
func (s *Store) checkSession(ctx context.Context) error {
	first, err := s.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	defer first.Release()
	second, err := s.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	defer second.Release()
	key := time.Now().UnixNano()
	var got bool
	const lock, unlock = "SELECT pg_try_advisory_lock($1)", "SELECT pg_advisory_unlock($1)"
	if err := first.QueryRow(ctx, lock, key).Scan(&got); err != nil {
		return maybePooler(err)
	}
	var both bool
	err = second.QueryRow(ctx, lock, key).Scan(&both)
	if both {
		_, uerr := second.Exec(ctx, unlock, key)
		err = errors.Join(err, uerr)
	}
	_, uerr := first.Exec(ctx, unlock, key)
	if both {
		f := poolerFault
		f.Err = errors.New(
			"postgres: the storage's address leads to a pooler that shares connections between statements, such as " +
				"PgBouncer in transaction mode or RDS Proxy: set storage.direct_url in slipway.yaml to the server's " +
				"own address")
		return storage.Setting(&f)
	}
	if err = errors.Join(err, uerr); err != nil {
		return maybePooler(err)
	}
	return nil
}

func maybePooler(err error) error {
	return fmt.Errorf(
		"postgres: %w; if there is a pooler such as PgBouncer in between, set storage.direct_url in slipway.yaml to "+
			"the server's own address", err)
}
