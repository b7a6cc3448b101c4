package queue

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

// A run that has no launch row was launched by another program. One whose launch row has ended may
// have gone back to the queue while it was read.
func TestLaunchedByOther(t *testing.T) {
	for name, c := range map[string]struct {
		launch *storage.LaunchRow
		want   int
	}{
		"without a launch row":     {nil, 1},
		"its launch row has ended": {&storage.LaunchRow{Attempt: 1, State: storage.Void}, 0},
		"launched":                 {&storage.LaunchRow{Attempt: 1, State: storage.Open}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := 0
			run := storage.Run{Run: dagster.Run{ID: "r", Status: dagster.Starting},
				Facts: storage.Facts{Launch: c.launch}}
			l := &Loop{Taken: func(storage.Run) { got++ }}
			l.index = newIndex(Limits{}, func(storage.Run) []stop { return nil })
			l.index.Put(storage.Run{Run: dagster.Run{ID: "r", Status: dagster.Queued}}, time.Now())
			if l.changed(run); got != c.want {
				t.Errorf("of %+v, Taken was told %d times, want %d", run, got, c.want)
			}
		})
	}
}
