package checks_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/queue"
)

func TestPickNeverPassesALimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var queued, active []queue.Entry
		for i := range rapid.IntRange(0, 30).Draw(t, "queued") {
			tags := map[string]string{
				"team":              rapid.SampledFrom([]string{"x", "y"}).Draw(t, "team"),
				dagster.PriorityTag: fmt.Sprint(rapid.IntRange(-2, 2).Draw(t, "priority")),
			}
			queued = append(queued, queue.Entry{Run: dagster.Run{ID: fmt.Sprintf("q%d", i), Tags: tags},
				Row: int64(i + 1)})
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "active") {
			active = append(active, queue.Entry{Run: dagster.Run{ID: "a", Tags: map[string]string{"team": "x"}},
				Row: int64(i + 1)})
		}
		limits := queue.Limits{
			MaxConcurrentRuns: rapid.IntRange(-1, 12).Draw(t, "max"),
			Tags: []queue.TagLimit{{Key: "team", Value: "x",
				Limit: rapid.IntRange(0, 6).Draw(t, "limit")}},
		}
		nothingHeld := func(dagster.Run) queue.Reason { return "" }
		picked := queue.Pick(queued, active, limits, nil, time.Now(), nothingHeld).Picked
		if limits.MaxConcurrentRuns >= 0 && len(picked) > max(0, limits.MaxConcurrentRuns-len(active)) {
			t.Fatalf("%d picked beside %d in flight, limit %d", len(picked), len(active), limits.MaxConcurrentRuns)
		}
		x := 0
		for i, r := range picked {
			if r.Tags["team"] == "x" {
				x++
			}
			if i > 0 && picked[i-1].Priority().Cmp(r.Priority()) < 0 {
				t.Fatalf("%s before %s", picked[i-1].ID, r.ID)
			}
		}
		if x > 0 && x+len(active) > limits.Tags[0].Limit {
			t.Fatalf("%d of team x in flight, limit %d", x+len(active), limits.Tags[0].Limit)
		}
	})
}
