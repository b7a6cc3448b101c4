package sqlite_test

import (
	"context"
	"testing"

	"github.com/slipway-run/slipway/storage"
	"github.com/slipway-run/slipway/storage/sqlite"
	"github.com/slipway-run/slipway/storage/storagetest"
)

func openStore(t testing.TB, location string) storage.Store {
	t.Helper()
	s, err := sqlite.Open(context.Background(), location)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSuite(t *testing.T) {
	storagetest.Run(t, storagetest.Target{New: storagetest.NewSQLite, Open: openStore})
}
