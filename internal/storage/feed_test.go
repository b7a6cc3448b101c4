package storage_test

import (
	"context"
	"iter"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/test/storagetest"
)

// scripted is a real storage whose hints the test gives.
type scripted struct {
	storage.Store
	hints chan storage.Hint
}

func (s scripted) Hints(ctx context.Context) iter.Seq2[storage.Hint, error] {
	return func(yield func(storage.Hint, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case h := <-s.hints:
				if !yield(h, nil) {
					return
				}
			}
		}
	}
}

type feedWorld struct {
	t     *testing.T
	d     *storagetest.Dagster
	hints chan storage.Hint
	seen  chan storage.Run
	first int // how many runs the first call had
}

func newFeed(t *testing.T) *feedWorld {
	t.Helper()
	d := storagetest.NewSQLite(t)
	s, err := sqlite.Open(t.Context(), d.Location)
	if err != nil {
		t.Fatal(err)
	}
	w := &feedWorld{t: t, d: d, hints: make(chan storage.Hint, 100), seen: make(chan storage.Run, 1000)}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		f := &storage.Feed{Store: scripted{s, w.hints}, Log: slog.New(slog.DiscardHandler),
			Put: func(runs ...storage.Run) {
				if w.first == 0 {
					w.first = len(runs)
				}
				for _, r := range runs {
					w.seen <- r
				}
			}}
		if err := f.Run(ctx); err != nil {
			t.Errorf("Feed.Run = %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	w.next("the first of the two queued runs of real Dagster", func(r storage.Run) bool {
		return r.Status == dagster.Queued
	})
	w.next("the second", func(r storage.Run) bool { return r.Status == dagster.Queued })
	if w.first != 2 { // a limit that counted only some of the runs in flight would be passed
		t.Errorf("the first call had %d runs, want both of them", w.first)
	}
	return w
}

// next waits for a run that the feed passes on.
func (w *feedWorld) next(what string, ok func(storage.Run) bool) time.Duration {
	w.t.Helper()
	began, deadline := time.Now(), time.After(30*time.Second)
	for {
		select {
		case r := <-w.seen:
			if ok(r) {
				return time.Since(began)
			}
		case <-deadline:
			w.t.Fatalf("the feed never passed on %s", what)
		}
	}
}

func is(id string, status dagster.Status) func(storage.Run) bool {
	return func(r storage.Run) bool { return r.ID == id && r.Status == status }
}

// Dagster announces an event before it turns the row: the notice is remembered and the row looked
// at several times.
func TestFeedWaitsForTheRowBehindANotice(t *testing.T) {
	w := newFeed(t)
	id := uuid.NewString()
	if err := w.d.Exec(
		"INSERT INTO runs (run_id, pipeline_name, status, run_body) VALUES (?, 'light', 'NOT_STARTED', ?)", id,
		storagetest.Body(id, nil)); err != nil {
		t.Fatal(err)
	}
	w.hints <- storage.Hint{Run: id}
	time.Sleep(40 * time.Millisecond) // what Dagster takes between the notice and the row
	if err := w.d.Exec("UPDATE runs SET status = 'QUEUED' WHERE run_id = ?", id); err != nil {
		t.Fatal(err)
	}
	if took := w.next("the run", is(id, dagster.Queued)); took > 2*time.Second {
		t.Errorf("the run was passed on after %v: by the poll, not by the notice", took)
	}
}

func TestFeedFindsWhatNoHintNamed(t *testing.T) {
	w := newFeed(t)
	id := uuid.NewString()
	if err := w.d.Enqueue(id, nil); err != nil {
		t.Fatal(err)
	}
	w.next("a run without any hint", is(id, dagster.Queued))
	for _, typ := range []dagster.EventType{dagster.RunStarting, dagster.RunStart, dagster.RunSuccess} {
		if err := w.d.Event(dagster.NewEvent(dagster.Run{ID: id, Job: "light"}, typ, time.Now(), "")); err != nil {
			t.Fatal(err)
		}
		w.hints <- storage.Hint{}
		w.next(string(typ), is(id, typ.Status()))
	}
}

func TestRowsOfOurs(t *testing.T) {
	at := time.Unix(1795337531, 5000).UTC()
	l := storage.LaunchRow{Run: "r", Attempt: 2, Instance: "i", Launcher: "l", Token: "t", Epoch: 3, At: at,
		State: storage.Open}
	if got, ok := storage.ParseLaunch("r", l.String()); !ok || got != l {
		t.Errorf("ParseLaunch(%q) = %+v, %v", l.String(), got, ok)
	}
	for _, bad := range []string{"", "r", l.String() + " x", "other" + l.String()[1:], "r x i l t 3 1 open"} {
		if got, ok := storage.ParseLaunch("r", bad); ok {
			t.Errorf("ParseLaunch(%q) = %+v", bad, got)
		}
	}
	older := l
	older.Attempt = 1
	rows := []storage.Tag{
		{ID: 1, Key: storage.LaunchKey, Value: older.String()}, {ID: 2, Key: storage.HandleKey, Value: "r 1 old"},
		{ID: 3, Key: storage.LaunchKey, Value: l.String()}, {ID: 4, Key: storage.HandleKey, Value: "r 1 late"},
		{ID: 5, Key: storage.HandleKey, Value: "r 2 a b"},
	}
	if f := storage.Ours("r", rows, nil); f.Launch == nil || *f.Launch != l || f.Handle != "a b" {
		t.Errorf("Ours = %v, %q, want attempt 2 with its own handle", f.Launch, f.Handle)
	}
	if got := storage.Ours("r", rows[2:3], map[string]string{storage.LaunchKey: l.String()}).Launch; got != nil {
		t.Errorf("Ours = %v for a row that stands in the body", got)
	}
}
