package sqlite_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/slipway-run/slipway/dagster"
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

// The same suite on a storage that Slipway made.
func TestSuiteOnOurOwn(t *testing.T) {
	made := func(t testing.TB) *storagetest.Dagster {
		dir := t.TempDir()
		for range 2 { // again is nothing
			if err := sqlite.Create(context.Background(), dir); err != nil {
				t.Fatal(err)
			}
		}
		return storagetest.Open(t, dir)
	}
	storagetest.Run(t, storagetest.Target{New: made, Open: openStore})
}

func TestFolderWithAnOddName(t *testing.T) {
	d := storagetest.NewSQLite(t)
	odd := filepath.Join(t.TempDir(), "a b#c?d%20é")
	if err := os.CopyFS(odd, os.DirFS(d.Location)); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, odd)
	defer s.Close()
	runs, err := s.Runs(t.Context(), storage.Filter{Statuses: []dagster.Status{dagster.Success}})
	if err != nil || len(runs) == 0 {
		t.Fatalf("Runs = %d, %v", len(runs), err)
	}
	events, err := s.Events(t.Context(), runs[0].ID)
	if err != nil || len(events) == 0 {
		t.Errorf("Events = %d, %v", len(events), err)
	}
}
