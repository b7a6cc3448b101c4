package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/storage/storagetest"
)

// A leader that stands still in the middle of a transaction holds up nobody: the server ends its session, a standby leads, and what it had begun is
// not committed.
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
