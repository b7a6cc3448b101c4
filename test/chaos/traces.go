package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/slipway-run/slipway/test/model"
)

// replayTime limits how long traces are replayed. A trace of a run that a user ended may be in
// hundreds of thousands of states at once.
const replayTime = 30 * time.Second

// replays replays through the model of the protocol what the daemons recorded. It returns what the
// model cannot do.
func (w *world) replays() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(w.dir, "trace"))
	if err != nil {
		return nil, err
	}
	traces, err := model.Traces(string(text))
	if err != nil {
		return nil, err
	}
	var bad []string
	fit, large, late := 0, 0, 0
	began := time.Now()
	// Runs that no user touched come first.
	for _, id := range slices.SortedFunc(maps.Keys(traces), func(a, b string) int {
		return len(w.ends[a]) - len(w.ends[b])
	}) {
		t := traces[id]
		rules, ok := t.Rules()
		ended := w.ends[id]
		switch {
		case !ok, slices.Contains(ended, "delete"):
			large++
			continue
		case time.Since(began) > replayTime:
			late++
			continue
		}
		rules.Calm, rules.Cancels = !slices.Contains(ended, "force"), slices.Contains(ended, "cancel")
		if i, ok := model.Replay(rules, t.Steps); !ok {
			bad = append(bad, fmt.Sprintf("run %s: the model cannot do step %d of %v", id, i, t.Steps))
			continue
		}
		fit++
	}
	fmt.Printf("chaos: the model of the protocol can do what the daemons did with %d runs; %d were too much for it "+
		"(more daemons or workers than it has), or deleted; %d were not tried in %s\n", fit, large, late, replayTime)
	if tried := len(traces) - late; fit < tried/2 {
		bad = append(bad, fmt.Sprintf("of %d traces only %d could be replayed", tried, fit))
	}
	return bad, nil
}
