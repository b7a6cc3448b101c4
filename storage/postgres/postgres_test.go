package postgres_test

import (
	"context"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/storage"
	"github.com/slipway-run/slipway/storage/postgres"
	"github.com/slipway-run/slipway/storage/storagetest"
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
