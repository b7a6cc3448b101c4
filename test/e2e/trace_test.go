//go:build real

package e2e_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/model"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// The model of the protocol can do what real daemons do when they are killed at random moments. It
// cannot do it with two of their steps swapped.
func TestTracesFitTheModel(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Light)
	d := storagetest.NewSQLite(t)
	w := lightWorld(t, d)
	w.fated(d, failpoint.ReplaceBefore) // dead workers are replaced
	file := filepath.Join(t.TempDir(), "trace")
	var ids []string
	const kills = 8
	for range kills {
		ids = append(ids, enqueue(t, d, 3, nil)...)
		ids = append(ids, enqueue(t, d, 2, map[string]string{"fate": "die once"})...)
		p := w.traced(file)
		p.says("msg=leading")
		time.Sleep(rand.N(300 * time.Millisecond)) // a random moment
		p.kill()
	}
	p := w.traced(file)
	w.ended(2*time.Minute, p, ids...)
	p.stop()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	traces, err := model.Traces(string(text))
	if err != nil {
		t.Fatal(err)
	}
	accepted, refused, several := 0, 0, 0
	for _, id := range ids {
		rules, ok := traces[id].Rules()
		if !ok {
			continue // more leaders in the life of one run than the small model has
		}
		if rules.Daemons > 1 {
			several++
		}
		trace := traces[id].Steps
		if i, ok := model.Replay(rules, trace); !ok {
			t.Errorf("run %s (%s): the model cannot do step %d of %v", id, w.run(id).Status, i, trace)
			continue
		}
		accepted++
		for i := range len(trace) - 1 {
			if trace[i].Daemon != trace[i+1].Daemon || trace[i].What != "claim" && trace[i+1].What != "handle" {
				continue // steps of two daemons, and two requests, may come in either order
			}
			swapped := slices.Clone(trace)
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			if _, ok := model.Replay(rules, swapped); ok {
				t.Errorf("the model can do %v as well", swapped)
			}
			refused++
		}
	}
	t.Logf("%d traces accepted, %d of them of several daemons; %d with two steps swapped refused", accepted, several,
		refused)
	if accepted < len(ids)*3/4 || refused < accepted {
		t.Errorf("of %d runs only %d traces were accepted and %d swapped ones refused", len(ids), accepted, refused)
	}
	w.everyRun(dagster.Success, ids...)
}

// everyRun fails the test unless every run has the wanted status.
func (w *world) everyRun(want dagster.Status, ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		if r := w.run(id); r.Status != want {
			w.t.Errorf("run %s is %s, want %s", id, r.Status, want)
		}
	}
}
