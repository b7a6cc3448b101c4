//go:build real

package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func openAt(t *testing.T, location string) *Store {
	t.Helper()
	s, err := Open(t.Context(), config.Secret(location))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// session opens a connection of another program.
func session(t *testing.T, location string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

func begin(t *testing.T, c *pgx.Conn) pgx.Tx {
	t.Helper()
	tx, err := c.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// claimedRun is a run that leader has claimed, and its launch row.
func claimedRun(t *testing.T, d *storagetest.Dagster, s *Store) (storage.Fence, storage.LaunchRow) {
	t.Helper()
	fence, leads, err := s.Lead(t.Context(), "leader", time.Minute)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	c := queuedClaim(t, d)
	out, err := s.Claim(t.Context(), fence, []storage.Claim{c})
	if err != nil || !out[0].Done {
		t.Fatal(out, err)
	}
	return fence, out[0].Launch
}

func queuedClaim(t *testing.T, d *storagetest.Dagster) storage.Claim {
	t.Helper()
	run := uuid.NewString()
	if err := d.Enqueue(run, nil); err != nil {
		t.Fatal(err)
	}
	return storage.Claim{Run: run, Launcher: "l", Instance: "i", Token: uuid.NewString(),
		At: time.Now().UTC().Truncate(time.Microsecond)}
}

// waiting waits until a session of the database waits for something, as pg_stat_activity names it.
func waiting(t *testing.T, d *storagetest.Dagster, kind, event string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		n, err := d.Text(
			"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = ? AND (? "+
				"= '' OR wait_event = ?)", kind, event, event)
		return err == nil && n != "0", fmt.Sprintf("no session waits for %s %s: %v", kind, event, err)
	})
}

// passGate is what the gate of Dagster's Python does: it looks at no row but the launch row.
func passGate(ctx context.Context, db interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
}, l storage.LaunchRow) (bool, error) {
	taken := l
	taken.State, taken.By = storage.Taken, "gate"
	tag, err := db.Exec(ctx, "UPDATE run_tags SET value = $1 WHERE run_id = $2 AND value = $3", taken.String(), l.Run,
		l.String())
	return err == nil && tag.RowsAffected() == 1, err
}

// A worker passes its gate while the leader ends its launch row, or another worker of the same row
// comes: only one of them gets it, the one that is first.
func TestGateMeetsAnotherWriter(t *testing.T) {
	d := storagetest.NewPostgres(t)
	s := openAt(t, d.Location)
	writers := map[string]func(f storage.Fence, l storage.LaunchRow) (bool, error){
		"the launch row ends": func(f storage.Fence, l storage.LaunchRow) (bool, error) {
			out, err := s.Move(t.Context(), f, storage.Transition{
				Run: l.Run, From: []dagster.Status{dagster.Starting}, Launch: l.Token, Void: true,
				Events: []dagster.Event{dagster.NewRunEnqueued(dagster.Run{ID: l.Run, Job: "light"}, time.Now())},
			})
			return out.Done, err
		},
		"another worker": func(_ storage.Fence, l storage.LaunchRow) (bool, error) {
			return s.Take(t.Context(), l.Run, l.Attempt, l.Token, "another")
		},
	}
	for name, write := range writers {
		t.Run(name+", the gate first", func(t *testing.T) {
			fence, l := claimedRun(t, d, s)
			gate := begin(t, session(t, d.Location))
			if passed, err := passGate(t.Context(), gate, l); err != nil || !passed {
				t.Fatal(passed, err)
			}
			done := make(chan bool, 1)
			go func() {
				got, err := write(fence, l)
				if err != nil {
					t.Error(err)
				}
				done <- got
			}()
			waiting(t, d, "Lock", "")
			if err := gate.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if <-done {
				t.Error("it was done although a worker had passed the gate")
			}
			runs, err := s.Runs(t.Context(), storage.Filter{IDs: []string{l.Run}})
			if err != nil || runs[0].Status != dagster.Starting || runs[0].Launch.State != storage.Taken {
				t.Errorf("the run is %v, %v, want STARTING with a launch row that is taken", runs, err)
			}
		})
		t.Run(name+", the gate last", func(t *testing.T) {
			fence, l := claimedRun(t, d, s)
			gate := session(t, d.Location)
			passed := make(chan bool, 1)
			// Between what the writer reads and what it writes the gate comes.
			err := s.tx(t.Context(), &fence, func(tx pgx.Tx) error {
				if _, _, err := lockRows(t.Context(), tx, []string{l.Run}, wait); err != nil {
					return err
				}
				go func() {
					got, err := passGate(t.Context(), gate, l)
					if err != nil {
						t.Error(err)
					}
					passed <- got
				}()
				waiting(t, d, "Lock", "")
				l.State = storage.Void
				_, err := tx.Exec(t.Context(), "UPDATE run_tags SET value = $1 WHERE run_id = $2 AND key = $3",
					l.String(), l.Run, storage.LaunchKey)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if <-passed {
				t.Error("the worker passed the gate of a launch row that had ended")
			}
		})
	}
}

// A leader that waits in a transaction, for whatever, keeps no standby from leading, and commits
// nothing then.
func TestLeaderWaitsInATransaction(t *testing.T) {
	d := storagetest.NewPostgres(t)
	old, young := openAt(t, d.Location), openAt(t, d.Location)
	fence, leads, err := old.Lead(t.Context(), "old", time.Millisecond)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	err = old.tx(t.Context(), &fence, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), setKV, "stalled", "yes"); err != nil {
			return err
		}
		testenv.Eventually(t, 10*time.Second, func() (bool, string) {
			_, leads, err := young.Lead(t.Context(), "young", time.Minute)
			return leads, fmt.Sprintf("no daemon leads: %v", err)
		})
		return nil
	})
	if !errors.Is(err, storage.ErrFenced) {
		t.Errorf("the old leader's transaction ends with %v, want ErrFenced", err)
	}
	if got, err := d.Text("SELECT value FROM kvs WHERE key = 'stalled'"); err != nil || got != "" {
		t.Errorf("it wrote %q, %v", got, err)
	}
}

// A leader freezes while the server sends it the rows of a claim, more than the buffers hold. A
// standby leads at once, and has the runs when the server has given the frozen one up.
func TestLeaderFreezesWhileRowsAreSent(t *testing.T) {
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
	old, young := openAt(t, u.String()), openAt(t, d.Location)
	fence, leads, err := old.Lead(t.Context(), "old", time.Millisecond)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	var claims []storage.Claim
	for range 32 {
		c := queuedClaim(t, d)
		claims = append(claims, c)
		// A body of 600 kB.
		if err := d.Exec(`UPDATE runs SET run_body = replace(run_body, '"run_config": {}', '"run_config": {"pad": "' `+
			`|| repeat('x', 600000) || '"}') WHERE run_id = ?`, c.Run); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		var ids []string
		for _, c := range claims {
			ids = append(ids, c.Run)
		}
		err := old.tx(ctx, &fence, func(tx pgx.Tx) error {
			// so that the next one is sent without a question before
			if _, _, err := lockRows(ctx, tx, nil, wait); err != nil {
				return err
			}
			proxy.Stall(true)
			_, _, err := lockRows(ctx, tx, ids, wait)
			return err
		})
		if err == nil {
			t.Error("the frozen leader committed")
		}
	})
	waiting(t, d, "Client", "ClientWrite")
	next, leads, err := young.Lead(t.Context(), "young", time.Minute)
	if err != nil || !leads {
		t.Fatalf("Lead = %v, %v, while the server sends rows to the old leader", leads, err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := young.Claim(t.Context(), next, claims)
		done := 0
		for _, o := range out {
			if o.Done {
				done++
			}
		}
		return done == len(claims), fmt.Sprintf("%d of %d are claimed: %v", done, len(claims), err)
	})
}

// Another program has locked the row of one queued run: the other runs of the claim are claimed,
// and this run when its row is free.
func TestClaimBesideALockedRow(t *testing.T) {
	d := storagetest.NewPostgres(t)
	s := openAt(t, d.Location)
	fence, leads, err := s.Lead(t.Context(), "leader", time.Minute)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	claims := []storage.Claim{queuedClaim(t, d), queuedClaim(t, d)}
	holder := begin(t, session(t, d.Location))
	if _, err := holder.Exec(t.Context(), "SELECT FROM runs WHERE run_id = $1 FOR UPDATE", claims[0].Run); err != nil {
		t.Fatal(err)
	}
	out, err := s.Claim(t.Context(), fence, claims)
	if err != nil || !out[0].Busy || out[0].Done || !out[1].Done {
		t.Errorf("Claim = %+v, %v, want the first busy and the second done", out, err)
	}
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err = s.Claim(t.Context(), fence, claims); err != nil || !out[0].Done || !out[1].Done {
		t.Errorf("Claim = %+v, %v, when the row is free", out, err)
	}
}

// Several standbys see at once that the lease has ended: one leads, and none fails.
func TestStandbysAtOnce(t *testing.T) {
	d := storagetest.NewPostgres(t)
	var stores []*Store
	for range 4 {
		stores = append(stores, openAt(t, d.Location))
	}
	for round := range 20 {
		if _, leads, err := stores[0].Lead(t.Context(), fmt.Sprint("leader", round), time.Minute); err != nil ||
			!leads {
			t.Fatal(leads, err)
		}
		if err := d.Exec("UPDATE kvs SET value = '0' WHERE key = ?", storage.LeaseKey); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		leaders := 0
		start := make(chan struct{})
		for i, s := range stores[1:] {
			wg.Go(func() {
				<-start
				_, leads, err := s.Lead(t.Context(), fmt.Sprint("standby", round, i), time.Minute)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				if leads {
					leaders++
				}
			})
		}
		close(start)
		wg.Wait()
		if leaders != 1 {
			t.Errorf("round %d: %d lead", round, leaders)
		}
		if err := d.Exec("UPDATE kvs SET value = '0' WHERE key = ?", storage.LeaseKey); err != nil {
			t.Fatal(err)
		}
	}
}
