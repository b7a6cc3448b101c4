//go:build real

package storagetest

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"

	"github.com/slipway-run/slipway/test/testenv"
)

// NewPostgres makes a database with the tables that real Dagster 1.13 made. It returns a writer for
// it.
func NewPostgres(t testing.TB) *Dagster {
	t.Helper()
	return madePostgres(t, testenv.Postgres(t))
}

// NewPostgresIn is [NewPostgres] with a time zone for the sessions of the database.
func NewPostgresIn(zone string) func(testing.TB) *Dagster {
	return func(t testing.TB) *Dagster {
		t.Helper()
		return madePostgres(t, testenv.PostgresIn(t, zone))
	}
}

func madePostgres(t testing.TB, address string) *Dagster {
	t.Helper()
	d := Open(t, address)
	d.MakeTables(t)
	return d
}

// MakeTables makes the tables that real Dagster 1.13 made, in an empty database.
func (d *Dagster) MakeTables(t testing.TB) {
	t.Helper()
	schema, err := os.ReadFile(filepath.Join(testenv.Root(t), golden, "postgres/schema/postgres.sql"))
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^(SET|\\|SELECT pg_catalog.set_config|ALTER .* OWNER TO).*$`).ReplaceAllString(
		string(schema), "")
	if _, err := d.db.Exec(text); err != nil {
		t.Fatalf("golden schema: %v", err)
	}
}
