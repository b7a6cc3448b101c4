package execute

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/test/storagetest"
)

// A worker that continues after another worker has replaced it does not end the run, whether it
// succeeds or is told to stop.
func TestReplacedWorkerEndsNothing(t *testing.T) {
	d := storagetest.NewSQLite(t)
	s, err := sqlite.Open(t.Context(), d.Location)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	fence, leads, err := s.Lead(t.Context(), "leader", time.Minute)
	if err != nil || !leads {
		t.Fatal(leads, err)
	}
	r := dagster.NewCommandRun(uuid.NewString(), "job", dagster.Encode(map[string]any{"steps": map[string]any{}}), nil)
	if err := d.EnqueueRun(r); err != nil {
		t.Fatal(err)
	}
	out, err := s.Claim(t.Context(), fence,
		[]storage.Claim{{Run: r.ID, Launcher: "l", Instance: "i", Token: "first", At: time.Now()}})
	if err != nil || !out[0].Done {
		t.Fatal(out, err)
	}
	w := &worker{store: s, events: dagster.NewInside(r)}
	if in, err := w.pass(t.Context(), r.ID, "1 first"); err != nil || !in {
		t.Fatal(in, err)
	}
	if done, err := w.begin(t.Context()); err != nil || done == nil {
		t.Fatal(done, err)
	}
	moved, err := s.Move(t.Context(), fence, storage.Transition{
		Run: r.ID, From: []dagster.Status{dagster.Started}, Launch: "first",
		Death: &storage.Death{Attempt: 1, Launcher: "l", Cause: "node_lost", Then: storage.ThenResume},
		Next:  &storage.Next{Launcher: "l", Token: "second", Epoch: fence.Epoch, At: time.Now()},
	})
	if err != nil || !moved.Done {
		t.Fatal(moved, err)
	}
	ends := func(how string, status dagster.Status, err error) {
		t.Helper()
		if err != nil || status.Finished() {
			t.Errorf("%s: it leaves the run %s, %v", how, status, err)
		}
	}
	status, err := w.end(t.Context(), &plan{worker: w})
	ends("it succeeds", status, err)
	status, err = w.interrupted(t.Context())
	ends("it is told to stop", status, err)
	if err := d.Event(dagster.NewEvent(r, dagster.RunCanceling, time.Now(), "")); err != nil {
		t.Fatal(err)
	}
	status, err = w.interrupted(t.Context())
	ends("the run is canceling", status, err)
	events, err := s.Events(t.Context(), r.ID, dagster.RunSuccess, dagster.RunFailure, dagster.RunCanceled)
	if err != nil || len(events) != 0 {
		t.Errorf("the run's log has %v, %v", events, err)
	}
}
