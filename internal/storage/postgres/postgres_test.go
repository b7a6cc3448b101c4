//go:build real

package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func openStore(t testing.TB, location string) storage.Store {
	t.Helper()
	s, err := postgres.Open(context.Background(), config.Secret(location))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSuite(t *testing.T) {
	storagetest.Run(t, storagetest.Target{New: storagetest.NewPostgres, Open: openStore})
}

// The same suite on a storage that Slipway made.
func TestSuiteOnOurOwn(t *testing.T) {
	made := func(t testing.TB) *storagetest.Dagster {
		address := testenv.Postgres(t)
		for range 2 { // again is nothing
			if err := postgres.Create(context.Background(), config.Secret(address)); err != nil {
				t.Fatal(err)
			}
		}
		return storagetest.Open(t, address)
	}
	storagetest.Run(t, storagetest.Target{New: made, Open: openStore})
}

// The same suite on a database whose time zone is not UTC.
func TestSuiteInAnotherZone(t *testing.T) {
	storagetest.Run(t, storagetest.Target{New: storagetest.NewPostgresIn("America/New_York"), Open: openStore})
}

func TestPoolerIsRefused(t *testing.T) {
	d := storagetest.NewPostgres(t)
	pooled := testenv.PgBouncer(t, d.Location, "transaction")
	s, err := postgres.Open(t.Context(), config.Secret(pooled))
	if err == nil {
		_ = s.Close() // the test fails
	}
	if err == nil || !strings.Contains(err.Error(), "storage.direct_url") {
		t.Errorf("Open through PgBouncer in transaction mode = %v, want an error that names storage.direct_url", err)
	}
	if s, err = postgres.Open(t.Context(), config.Secret(testenv.PgBouncer(t, d.Location, "session"))); err != nil {
		t.Fatalf("Open through PgBouncer in session mode: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A database that is at another revision works if it has the columns, and is refused if it has not.
func TestSchemaRevisions(t *testing.T) {
	d := storagetest.NewPostgres(t)
	if err := errors.Join(d.Exec("DELETE FROM alembic_version"),
		d.Exec("INSERT INTO alembic_version VALUES ('fromthefuture')"),
		d.Exec("ALTER TABLE runs ADD COLUMN new_one text")); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, d.Location)
	if r := s.Revision(); r != "fromthefuture" || storage.KnowsRevision(r) {
		t.Errorf("Revision = %q, known %v", r, storage.KnowsRevision(r))
	}
	if err := errors.Join(s.Close(), d.Exec("ALTER TABLE runs RENAME COLUMN run_body TO body")); err != nil {
		t.Fatal(err)
	}
	var fault *storage.Fault
	if _, err := postgres.Open(t.Context(), config.Secret(d.Location)); !errors.As(err, &fault) ||
		!strings.Contains(fault.Fix, "dagster instance migrate") {
		t.Errorf("Open without a column = %v, want what to do", err)
	}
}

// Notices that do not arrive are noticed.
func TestHintsTellThatNothingArrives(t *testing.T) {
	d := storagetest.NewPostgres(t)
	// A function of that name that comes first in the search path takes the notices away.
	if err := d.Exec("CREATE SCHEMA silent"); err != nil {
		t.Fatal(err)
	}
	if err := d.Exec("CREATE FUNCTION silent.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''"); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, d.Location+"?search_path=silent,public,pg_catalog")
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, err := range s.Hints(ctx) {
		if errors.Is(err, storage.ErrNoNotices) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("Hints did not tell that notices do not arrive")
}
