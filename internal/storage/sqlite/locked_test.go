package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// lockFile locks a file below history/runs as a worker that is frozen within a write, until the
// function that it gives is called.
func lockFile(t *testing.T, d *storagetest.Dagster, name string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.Location, "history/runs", name)+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// A leader whose write meets a locked file of events continues with all runs, and writes these
// events when the file is free.
func TestLockedFileHoldsUpNobody(t *testing.T) {
	for name, file := range map[string]func(run string) string{
		"a shard":  func(run string) string { return run + ".db" },
		"index.db": func(string) string { return "index.db" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := storagetest.NewSQLite(t)
			s := openStore(t, d.Location)
			defer s.Close()
			fence, run := claimed(t, d, s)
			if err := s.Flush(t.Context(), fence); err != nil {
				t.Fatal(err)
			}
			var others []storage.Claim
			for range 10 {
				c := storage.Claim{Run: uuid.NewString(), Instance: "i", Launcher: "l", Token: uuid.NewString(),
					At: time.Now()}
				if err := d.Enqueue(c.Run, nil); err != nil {
					t.Fatal(err)
				}
				others = append(others, c)
			}
			unlock := lockFile(t, d, file(run))
			began := time.Now()
			starts := func(run string) {
				t.Helper()
				e := dagster.NewEvent(dagster.Run{ID: run, Job: "light"}, dagster.RunStart, time.Now(), "")
				if out, err := s.Move(t.Context(), fence,
					storage.Transition{Run: run, From: []dagster.Status{dagster.Starting},
						Events: []dagster.Event{e}}); err != nil || !out.Done {
					t.Fatal(out, err)
				}
			}
			starts(run)
			if out, err := s.Claim(t.Context(), fence, others); err != nil || !out[0].Done {
				t.Fatal(out, err)
			}
			_ = s.Flush(t.Context(), fence) // it may say that something is left
			for _, c := range others {
				starts(c.Run)
			}
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("eleven runs and their events took %v while one file was locked", took)
			}
			unlock()
			testenv.Eventually(t, time.Minute, func() (bool, string) {
				err := s.Flush(t.Context(), fence)
				left, terr := d.Text("SELECT count(*) FROM kvs WHERE key LIKE 'slipway/outbox/%'")
				return err == nil && terr == nil && left == "0", left + " events wait for their files"
			})
			if text, err := d.EventColumn(run, string(dagster.RunStart), "event"); err != nil || text == "" {
				t.Errorf("the event is not in the shard: %q, %v", text, err)
			}
		})
	}
}
