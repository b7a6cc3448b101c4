//go:build failpoints

package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/storagetest"
)

// The test binary is also, as "life HOME RUN", a process that takes a run from the queue to its
// end.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "life" {
		if err := life(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// life claims a run, records its worker and ends it, as a daemon does.
func life(home, run string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, home)
	if err != nil {
		return err
	}
	fence, leads, err := s.Lead(ctx, "slipway-"+run, time.Minute)
	if err != nil || !leads {
		return errors.Join(err, fmt.Errorf("leads: %v", leads))
	}
	if err := s.Flush(ctx, fence); err != nil {
		return err
	}
	out, err := s.Claim(ctx, fence,
		[]storage.Claim{{Run: run, Launcher: "local", Instance: "i", Token: "t", At: time.Now()}})
	if err != nil || !out[0].Done {
		return errors.Join(err, fmt.Errorf("claim: %+v", out))
	}
	if err := s.Flush(ctx, fence); err != nil {
		return err
	}
	r := dagster.Run{ID: run, Job: "light"}
	for _, t := range []storage.Transition{
		{Run: run, Launch: "t", Handle: "h",
			Events: []dagster.Event{dagster.NewEngineEvent(r, time.Now(), "launched", nil, nil)}},
		{Run: run, Launch: "t", Events: []dagster.Event{
			dagster.NewEngineEvent(r, time.Now(), "ended", nil, nil),
			dagster.NewRunFailure(r, time.Now(), "died", dagster.UnexpectedTermination, nil),
		}, Tags: map[string]string{dagster.FailureReasonTag: "UNEXPECTED_TERMINATION"}},
	} {
		if _, err := s.Move(ctx, fence, t); err != nil {
			return err
		}
	}
	return s.Close()
}

// A process is killed between every two statements of a run's life, and the three files are
// compared after the next one has recovered: the row says what the newest status event in the run's
// shard says, index.db has the shard's status events, and no event stands twice.
func TestKilledBetweenAnyTwoStatements(t *testing.T) {
	kills := 120 // each step of a life, several times
	if os.Getenv("SLIPWAY_SOAK") != "" {
		kills = 500
	}
	d := storagetest.NewSQLite(t)
	s, err := sqlite.Open(t.Context(), d.Location)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	killed, lastStep := 0, 0
	for step := 1; killed < kills; step++ {
		run := uuid.NewString()
		if err := d.Enqueue(run, nil); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "life", d.Location, run)
		armed := fmt.Sprintf("%s=%s:%d", failpoint.Env, failpoint.SQLiteStatement, step)
		cmd.Env = append(os.Environ(), armed, "GORACE=atexit_sleep_ms=0")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil: // the whole life has fewer steps
			if step < 10 {
				t.Fatalf("a life has only %d steps", step-1)
			}
			lastStep, step = step-1, 0
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
			killed++
		default:
			t.Fatalf("step %d: %v\n%s", step, err, out)
		}
		compare(t, s, run, step)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills, %d steps in a life", killed, lastStep)
}

// compare settles and compares the three files for one run.
func compare(t *testing.T, s *sqlite.Store, run string, step int) {
	t.Helper()
	ctx := t.Context()
	fence, leads, err := s.Lead(ctx, "slipway-"+uuid.NewString(), time.Minute)
	if err != nil || !leads {
		t.Fatalf("step %d: the dead leader's place is not free: %v, %v", step, leads, err)
	}
	if err := s.Flush(ctx, fence); err != nil {
		t.Fatalf("step %d: Flush: %v", step, err)
	}
	if err := s.Yield(ctx, fence); err != nil {
		t.Fatal(err)
	}
	runs, err := s.Runs(ctx, storage.Filter{IDs: []string{run}})
	if err != nil || len(runs) != 1 {
		t.Fatalf("step %d: Runs = %v, %v", step, runs, err)
	}
	r := runs[0]
	shard, err := s.Events(ctx, run)
	if err != nil {
		t.Fatal(err)
	}
	index, err := s.Mirrored(ctx, run)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var status dagster.Status
	var mirrored []dagster.Event
	for _, e := range shard {
		if seen[e.JSON()] {
			t.Errorf("step %d: event twice in the shard: %s", step, e.JSON())
		}
		seen[e.JSON()] = true
		if st := e.Type.Status(); st != "" {
			status = st
			mirrored = append(mirrored, e)
		}
	}
	if r.Status != status {
		t.Errorf("step %d: the row says %s, the shard's events %s", step, r.Status, status)
	}
	if len(index) != len(mirrored) {
		t.Errorf("step %d: index.db has %d events, the shard %d of status", step, len(index), len(mirrored))
	}
	for i := range min(len(index), len(mirrored)) {
		if index[i].JSON() != mirrored[i].JSON() {
			t.Errorf("step %d: index.db has %s, the shard %s", step, index[i].JSON(), mirrored[i].JSON())
		}
	}
	if claimed := r.Status != dagster.Queued; claimed != (r.Launch != nil) {
		t.Errorf("step %d: status %s with launch row %v", step, r.Status, r.Launch)
	}
	if (r.Handle != "") != seenType(shard, dagster.EngineEvent) {
		t.Errorf("step %d: handle %q, engine event %v", step, r.Handle, seenType(shard, dagster.EngineEvent))
	}
}

func seenType(events []dagster.Event, typ dagster.EventType) bool {
	for _, e := range events {
		if e.Type == typ {
			return true
		}
	}
	return false
}
