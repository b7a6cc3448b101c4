package sqlite_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/test/storagetest"
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

// claimed leads and claims a run, whose event waits in the outbox.
func claimed(t *testing.T, d *storagetest.Dagster, s storage.Store) (storage.Fence, string) {
	t.Helper()
	fence, leads, err := s.Lead(t.Context(), "me", time.Minute)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	run := uuid.NewString()
	if err := d.Enqueue(run, nil); err != nil {
		t.Fatal(err)
	}
	out, err := s.Claim(t.Context(), fence,
		[]storage.Claim{{Run: run, Instance: "i", Launcher: "l", Token: "t", At: time.Now()}})
	if err != nil || !out[0].Done {
		t.Fatal(out, err)
	}
	return fence, run
}

// A change that was committed stands although its events cannot be written to the run's shard, as
// on a full disk; they are written when they can be.
func TestCommittedStands(t *testing.T) {
	d := storagetest.NewSQLite(t)
	s := openStore(t, d.Location)
	defer s.Close()
	fence, run := claimed(t, d, s)
	shard := filepath.Join(d.Location, "history", "runs", run+".db")
	if err := errors.Join(os.Rename(shard, shard+".away"), os.Mkdir(shard, 0o700)); err != nil {
		t.Fatal(err)
	}
	runs, err := s.Runs(t.Context(), storage.Filter{IDs: []string{run}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.(storage.Recorder).Record(t.Context(),
		storage.Transition{Run: run, From: []dagster.Status{dagster.Starting},
			Events: []dagster.Event{dagster.NewEvent(runs[0].Run, dagster.RunStart, time.Now(), "")}})
	if err != nil || !out.Done || out.Status != dagster.Started {
		t.Errorf("Record = %+v, %v, though it was committed", out, err)
	}
	if out, err := s.Move(t.Context(), fence, storage.Transition{Run: run, Handle: "h", Launch: "t"}); err != nil ||
		!out.Done {
		t.Errorf("Move = %+v, %v, though it was committed", out, err)
	}
	if err := s.Flush(t.Context(), fence); err == nil {
		t.Error("Flush is content although events wait")
	}
	if err := errors.Join(os.Remove(shard), os.Rename(shard+".away", shard), s.Flush(t.Context(), fence)); err != nil {
		t.Fatal(err)
	}
	events, err := s.Events(t.Context(), run, dagster.RunStarting, dagster.RunStart)
	if err != nil || len(events) != 2 {
		t.Errorf("Events = %v, %v, want PIPELINE_STARTING and PIPELINE_START", events, err)
	}
	// Events would also return the events that still wait
	for _, typ := range []dagster.EventType{dagster.RunStarting, dagster.RunStart} {
		if text, err := d.EventColumn(run, string(typ), "event"); err != nil || text == "" {
			t.Errorf("%s is not in the shard: %q, %v", typ, text, err)
		}
	}
}

// An event is read once, whether it still waits in the outbox, or stands in the shard, or, half
// delivered, in both.
func TestEventsThatWaitAreRead(t *testing.T) {
	d := storagetest.NewSQLite(t)
	s := openStore(t, d.Location)
	defer s.Close()
	fence, run := claimed(t, d, s)
	want := []dagster.EventType{dagster.RunEnqueued, dagster.RunStarting}
	check := func(when string, types ...dagster.EventType) {
		t.Helper()
		events, err := s.Events(t.Context(), run, types...)
		var got []dagster.EventType
		for _, e := range events {
			got = append(got, e.Type)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: Events(%v) = %v, %v, want %v", when, types, got, err, want)
		}
	}
	check("it waits")
	text, err := d.Text("SELECT value FROM kvs WHERE key LIKE 'slipway/outbox/' || ? || '/%'", run)
	if err != nil || text == "" {
		t.Fatalf("nothing waits: %q, %v", text, err)
	}
	if err := s.Flush(t.Context(), fence); err != nil {
		t.Fatal(err)
	}
	check("it is delivered")
	if err := d.Exec("INSERT INTO kvs (key, value) VALUES ('slipway/outbox/' || ? || '/1', ?)", run, text); err != nil {
		t.Fatal(err)
	}
	check("it stands in both")
	want = want[1:]
	check("of a type", dagster.RunStarting)
	want = nil
	check("of another type", dagster.RunStart)
}

// While the storage is away nothing is written to where it went, nor once another file is in its
// place.
func TestMoved(t *testing.T) {
	d := storagetest.NewSQLite(t)
	s := openStore(t, d.Location)
	defer s.Close()
	lead := func() storage.Fence {
		t.Helper()
		fence, leads, err := s.Lead(t.Context(), "me", time.Minute)
		if err != nil || !leads {
			t.Fatal(leads, err)
		}
		return fence
	}
	fence := lead()
	enqueued := func() storage.Claim {
		t.Helper()
		run := uuid.NewString()
		if err := d.Enqueue(run, nil); err != nil {
			t.Fatal(err)
		}
		return storage.Claim{Run: run, Instance: "i", Launcher: "l", Token: "t", At: time.Now()}
	}
	first, second := enqueued(), enqueued()

	history := filepath.Join(d.Location, "history")
	away := history + ".away"
	if err := os.Rename(history, away); err != nil {
		t.Fatal(err)
	}
	if out, err := s.Claim(t.Context(), fence, []storage.Claim{first}); err == nil ||
		!strings.Contains(err.Error(), "no longer where it was") {
		t.Errorf("Claim of a storage that is away = %v, %v", out, err)
	}
	if _, leads, err := s.Lead(t.Context(), "me", time.Minute); err == nil || leads {
		t.Errorf("Lead of a storage that is away = %v, %v", leads, err)
	}
	if events, err := s.Events(t.Context(), first.Run); err == nil {
		t.Errorf("Events of a storage that is away = %v", events)
	}
	if err := os.Rename(away, history); err != nil {
		t.Fatal(err)
	}
	fence = lead()
	if out, err := s.Claim(t.Context(), fence, []storage.Claim{first}); err != nil || !out[0].Done {
		t.Fatalf("Claim of a storage that is back = %v, %v", out, err)
	}

	hinted := make(chan error)
	heard := make(chan struct{}, 1)
	go func() {
		for _, err := range s.Hints(t.Context()) {
			if err != nil {
				hinted <- err
			}
			select {
			case heard <- struct{}{}:
			default:
			}
		}
	}()
	<-heard
	runs := filepath.Join(history, "runs.db")
	copied := runs + ".copy"
	if err := d.Exec("VACUUM INTO ?", copied); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(copied, runs); err != nil {
		t.Fatal(err)
	}
	for _, more := range []string{"-wal", "-shm"} {
		if err := os.Remove(runs + more); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := <-hinted; !strings.Contains(err.Error(), "replaced") {
		t.Errorf("Hints of a file that was replaced end with %v", err)
	}
	fence = lead()
	if out, err := s.Claim(t.Context(), fence, []storage.Claim{second}); err != nil || !out[0].Done {
		t.Fatalf("Claim of a storage that was replaced = %v, %v", out, err)
	}
	fresh := openStore(t, d.Location)
	defer fresh.Close()
	found, err := fresh.Runs(t.Context(), storage.Filter{IDs: []string{first.Run, second.Run}})
	if err != nil || len(found) != 2 || found[0].Status != dagster.Starting || found[1].Status != dagster.Starting {
		t.Errorf("in the file that is in its place now: %v, %v; want both runs STARTING", found, err)
	}
}
