//go:build real

package postgres

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/storagetest"
)

// A leader that stops in a transaction, with the lock of the leader row, blocks no other daemon:
// the server ends its session, a standby leads, and its transaction is not committed.
func TestLeaderStallsInATransaction(t *testing.T) {
	d := storagetest.NewPostgres(t)
	open := func() *Store {
		s, err := Open(t.Context(), config.Secret(d.Location))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	old, young := open(), open()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	fence, leads, err := old.Lead(ctx, "old", 100*time.Millisecond)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	inside, on, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- old.tx(ctx, &fence, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, setKV, "stalled", "yes"); err != nil {
				return err
			}
			if err := checkFence(ctx, tx, fence); err != nil {
				return err
			}
			close(inside)
			<-on
			return nil
		})
	}()
	<-inside
	for leads := false; !leads; {
		if _, leads, err = young.Lead(ctx, "young", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	close(on)
	if err := <-done; err == nil {
		t.Error("the old leader's transaction was committed")
	}
	if got, err := d.Text("SELECT value FROM kvs WHERE key = 'stalled'"); err != nil || got != "" {
		t.Errorf("it wrote %q, %v", got, err)
	}
}

// Connections that are swallowed right after they were made do not take up the pool's places for
// ever.
func TestPoolForgetsSwallowedConnections(t *testing.T) {
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	server := u.Host
	var forgetful atomic.Bool
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go pass(c, server, forgetful.Load())
		}
	}()
	u.Host = l.Addr().String()
	s, err := Open(t.Context(), config.Secret(u.String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	forgetful.Store(true)
	if err := d.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND " +
		"pid <> pg_backend_pid()"); err != nil {
		t.Fatal(err)
	}
	ask := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, err := s.Runs(ctx, storage.Filter{})
		return err
	}
	for range 2 * maxConns {
		if err := ask(50 * time.Millisecond); err == nil {
			t.Fatal("an answer came through")
		}
	}
	forgetful.Store(false)
	if err := ask(time.Minute); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}

// What was asked and lost is given up in time by who set no bound, and asked again.
func TestLostQuestionIsGivenUp(t *testing.T) {
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := faultproxy.New(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	u.Host = proxy.Addr()
	c, err := pgx.ParseConfig(u.String())
	if err != nil {
		t.Fatal(err)
	}
	c.Tracer = patience(300 * time.Millisecond)
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT 1").Scan(&n); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	proxy.Swallow(true)
	asked := make(chan error, 1)
	go func() { asked <- conn.QueryRow(t.Context(), "SELECT 1").Scan(&n) }()
	select {
	case err := <-asked:
		if !errors.Is(err, context.DeadlineExceeded) || !conn.IsClosed() {
			t.Errorf("%v, closed %v", err, conn.IsClosed())
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for ever")
	}
	s, err := Open(t.Context(), config.Secret(d.Location))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if p, ok := s.pool.Config().ConnConfig.Tracer.(patience); !ok || p != answerWithin {
		t.Errorf("a store has the patience %v", s.pool.Config().ConnConfig.Tracer)
	}
}

// pass passes on what a client and a server say; a forgetful one, only until the client sets its
// first setting.
func pass(client net.Conn, server string, forgetful bool) {
	defer func() { _ = client.Close() }()
	s, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() { _, _ = io.Copy(client, s) }() // until either hangs up
	buf := make([]byte, 64<<10)
	lost := false
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if lost = lost || forgetful && bytes.Contains(buf[:n], []byte("idle_in_transaction")); lost {
			continue
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return
		}
	}
}
