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

// NewPostgres makes a database with the tables that real Dagster 1.13 made, and returns a writer for it.
func NewPostgres(t testing.TB) *Dagster {
	t.Helper()
	d := Open(t, testenv.Postgres(t))
	schema, err := os.ReadFile(filepath.Join(testenv.Root(t), golden, "postgres/schema/postgres.sql"))
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^(SET|\\|SELECT pg_catalog.set_config|ALTER .* OWNER TO).*$`).ReplaceAllString(string(schema), "")
	if _, err := d.db.Exec(text); err != nil {
		t.Fatalf("golden schema: %v", err)
	}
	return d
}
