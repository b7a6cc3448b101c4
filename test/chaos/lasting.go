package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	_ "modernc.org/sqlite"             // driver "sqlite"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/chaos/check"
)

// With -lasting one daemon leads from the beginning to the end. No take-over heals anything, so the
// leading daemon must heal small faults itself: single answers that are lost, targets that hang,
// refuse or forget, rows and shards that another program has locked, workers that die and are
// resumed, runs that take too long.

// moodsEnv is the same as in test/chaos/slipway.
const moodsEnv = "SLIPWAY_TEST_MOODS"

// lastingSettings are the settings of one daemon with three launchers: one that works, one with
// moods, and one with moods that proves nothing.
const lastingSettings = `queue: {max_concurrent_runs: 40}
terminate: {local_only: true}
allow_secrets_in_argv: true
monitoring:
  launch_attempts: 1000
  max_resume_run_attempts: 1000
  cancel_timeout_seconds: 15
  free_slots_after_run_end_seconds: 1
  deaths:
    - {causes: [exit], do: again, started: resume}
    - {causes: [unknown, timeout], do: again, started: again}
crash_loop: {deaths: 0}
launchers:
  local: {kind: process, stop_grace: 1s, settle: 5s}
  moody: {kind: moody, stop_grace: 1s, settle: 5s}
  blunt: {kind: blunt, stop_grace: 1s, settle: 5s}
default: local
routes:
  - {when: {tags: {on: moody}}, to: moody}
  - {when: {tags: {on: blunt}}, to: blunt}
  - {when: {tags: {on: either}}, to: [moody, local]}
`

// where returns the tag that sends a run to one of the launchers.
func where(r *rand.Rand) map[string]string {
	return []map[string]string{nil, nil, {"on": "moody"}, {"on": "moody"}, {"on": "blunt"}, {"on": "either"}}[r.IntN(6)]
}

// moods returns the file that switches the moods of the launchers on.
func (w *world) moods() string { return filepath.Join(w.dir, "moods") }

// answers are the writes whose answers are lost. Each has two texts that a client sends within one
// transaction. No query that only reads contains the first text.
var answers = [][2]string{
	{`"event_type_value": "PIPELINE_STARTING"`, "commit"}, {"Launched the run worker", "commit"},
	{`"event_type_value": "PIPELINE_FAILURE"`, "commit"},
	{"goes back to the queue", "commit"}, {"Launching a new run worker to resume run", "commit"},
	{`"event_type_value": "PIPELINE_CANCELED"`, "commit"},
	{`"event_type_value": "PIPELINE_ENQUEUED"`, "commit"}, {"slipway/lease", "commit"},
}

// troubles starts the faults that a leader survives, each kind in its own goroutine, so that they
// overlap.
func (w *world) troubles(ctx context.Context, wg *sync.WaitGroup) {
	kinds := []func(r *rand.Rand){
		func(r *rand.Rand) {
			w.during(ctx, r, "moods", func(on bool) {
				if on {
					_ = os.WriteFile(w.moods(), nil, 0o600) // without the file there are no moods
				} else {
					_ = os.Remove(w.moods())
				}
			})
		},
		func(r *rand.Rand) { w.vanish(r); pause(ctx, time.Second) },
		func(r *rand.Rand) { w.locks(ctx, r) },
	}
	if w.proxy != nil {
		kinds = append(kinds, func(r *rand.Rand) { w.lose(ctx, r) }, func(r *rand.Rand) {
			w.during(ctx, r, "delay", func(on bool) {
				// A lease takes five answers, or ten on a new connection, and must last.
				w.proxy.Delay(map[bool]time.Duration{true: time.Duration(1+r.IntN(9)) * time.Millisecond}[on])
			})
		})
	}
	for i, trouble := range kinds {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w.seed, uint64(10+i)))
			for ctx.Err() == nil {
				pause(ctx, time.Duration(200+r.IntN(1500))*time.Millisecond)
				trouble(r)
			}
		})
	}
}

// lose loses the answer to one write.
func (w *world) lose(ctx context.Context, r *rand.Rand) {
	a := answers[r.IntN(len(answers))]
	select {
	case <-w.proxy.LoseAnswer(a[0], a[1], r.IntN(2) == 0):
		w.note(check.Entry{Do: "lose_one_answer", Note: a[0]})
	case <-ctx.Done():
	case <-time.After(time.Second): // no client sent it
		// Lose nothing any more, so that every lost answer is in the journal.
		w.proxy.LoseAnswer("a text that never comes", "", false)
	}
}

// vanish removes a worker, its supervisor and everything that its target knows about it.
func (w *world) vanish(r *rand.Rand) {
	victims := w.victims("\x00dagster-run-")
	ids := slices.Sorted(maps.Values(victims))
	if len(ids) == 0 {
		return
	}
	id := ids[r.IntN(len(ids))]
	w.note(check.Entry{Do: "vanish", Run: id})
	w.note(check.Entry{Do: "kill_supervisor", Run: id})
	w.note(check.Entry{Do: "kill_worker", Run: id})
	// The supervisor first, so that it does not record the end.
	for _, text := range []string{"\x00dagster-run-", "execute_run", "resume_run"} {
		for pid, of := range w.victims(text) {
			if of == id {
				// Kill its steps as well. The process may have ended.
				_ = errors.Join(syscall.Kill(pid, syscall.SIGKILL), syscall.Kill(-pid, syscall.SIGKILL))
			}
		}
	}
	files, _ := filepath.Glob(filepath.Join(w.home, "slipway", "*", "*", "*", "*"+id+"*")) // the pattern is valid
	for _, dir := range files {
		_ = os.RemoveAll(dir)
	}
}

// locks locks the row or the shard of some runs, as an open transaction of another program does.
func (w *world) locks(ctx context.Context, r *rand.Rand) {
	ids := map[string]bool{}
	for range 3 {
		if id, err := w.d.Text(
			"SELECT run_id FROM runs WHERE pipeline_name <> 'foreign' AND status IN ('QUEUED', 'STARTING', " +
				"'STARTED') ORDER BY random() LIMIT 1"); err == nil && id != "" {
			ids[id] = true
		}
	}
	var open []func() error
	for id := range ids {
		end, err := w.lock(ctx, id)
		if err != nil {
			continue // another transaction has it
		}
		open = append(open, end)
	}
	if len(open) > 0 {
		w.note(check.Entry{Do: "lock"})
	}
	pause(ctx, time.Duration(500+r.IntN(5000))*time.Millisecond)
	for _, end := range open {
		if err := end(); err != nil {
			fmt.Println("chaos: lock:", err)
		}
	}
}

// lock returns a function that ends the lock.
func (w *world) lock(ctx context.Context, id string) (func() error, error) {
	driver, location, statement, args := "pgx", w.location, "SELECT status FROM runs WHERE run_id = $1 FOR UPDATE",
		[]any{id}
	if w.proxy == nil {
		file := filepath.Join(w.home, "history", "runs", id+".db")
		if _, err := os.Stat(file); err != nil { // it has no shard yet
			return nil, err
		}
		driver, location, statement, args = "sqlite", "file:"+file+"?_txlock=immediate&_pragma=busy_timeout(100)",
			"UPDATE event_logs SET step_key = step_key WHERE 0", nil
	}
	db, err := sql.Open(driver, location)
	if err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	end := func() error { return errors.Join(tx.Rollback(), db.Close()) } // DB.Close alone leaves a transaction open
	if _, err := tx.Exec(statement, args...); err != nil {
		return nil, errors.Join(err, end())
	}
	return end, nil
}

// expires makes a run take longer than it may.
func expires(run dagster.Run) dagster.Run {
	run.Tags["dagster/max_runtime"] = "2"
	return run
}

// lasted reports what shows that the lead did not last.
func (w *world) lasted() ([]string, error) {
	log, err := os.ReadFile(filepath.Join(w.dir, "daemon-0.log"))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(log), "msg=leading"); n != 1 {
		return []string{fmt.Sprintf("the daemon began to lead %d times: its lead did not last", n)}, nil
	}
	if w.daemon(0).Signal(syscall.Signal(0)) != nil {
		return []string{"the daemon ended"}, nil
	}
	return nil, nil
}
