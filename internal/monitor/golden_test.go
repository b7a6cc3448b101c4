package monitor_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// What real Dagster's monitoring does with runs that are stuck or whose worker is sick, and what we
// do: the same outcome in the same words, or, where we do better on purpose, a row of
// docs/compatibility.md.
func TestOutcomesOfTheRealMonitoring(t *testing.T) {
	running, unknown, lost := launcher.Health{Status: launcher.Running}, launcher.Health{Status: launcher.Unknown},
		launcher.Health{Status: launcher.NotFound}
	failed, succeeded := launcher.Health{Status: launcher.Failed, Message: "worker says so"},
		launcher.Health{Status: launcher.Succeeded}
	now := claimed.Add(2 * time.Hour)
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	// its end is not observed: the golden launcher's workers have none
	killed := monitor.Watch{Asked: ago(60), Killed: ago(40)}
	cases := map[string]struct {
		health  launcher.Health
		age     int // seconds since what counts
		seen    monitor.Watch
		first   string // a step before: the message of PIPELINE_CANCELING
		row     string // of docs/compatibility.md, where we differ
		foreign bool   // no launch row of ours: not touched
	}{
		"starting_young":       {health: running, age: 5},
		"starting_old":         {health: running, age: 3600, seen: killed},
		"starting_old_debug":   {health: running, age: 3600, seen: killed},
		"starting_dead_worker": {health: failed, age: 5, row: "A worker that dies"},
		"not_started_old":      {foreign: true, row: "A run that was never queued"},
		"not_started_young":    {foreign: true},
		"started_RUNNING":      {health: running, age: 60},
		"started_SUCCESS": {health: succeeded, age: 60,
			row: "A worker that succeeds but leaves its run unfinished"},
		"started_FAILED":    {health: failed, age: 60, row: "A worker that dies"},
		"started_NOT_FOUND": {health: lost, age: 60, row: "A target that does not know the worker"},
		"started_UNKNOWN":   {health: unknown, age: 60, row: "A target that does not answer"},
		"started_too_long_terminate_true": {health: failed, age: 3600,
			first: "Canceling due to exceeding maximum runtime of 500 seconds."},
		"started_too_long_terminate_false": {health: running, age: 3600, seen: killed,
			first: "Canceling due to exceeding maximum runtime of 500 seconds.",
			row:   "A run beyond `dagster/max_runtime`"},
		"started_too_long_terminate_raise": {health: running, age: 3600, seen: killed,
			first: "Canceling due to exceeding maximum runtime of 500 seconds.",
			row:   "A run beyond `dagster/max_runtime`"},
		"started_tag_limit": {health: failed, age: 3600,
			first: "Canceling due to exceeding maximum runtime of 30 seconds."},
		"started_tag_limit_other_name": {health: failed, age: 3600,
			first: "Canceling due to exceeding maximum runtime of 30 seconds."},
		"started_tag_zero": {health: running, age: 3600},
		"started_tag_bad":  {health: running, age: 400},
		"canceling_young":  {health: running, age: 5, seen: monitor.Watch{Asked: ago(5)}},
		"canceling_old":    {health: running, age: 3500, seen: killed},
	}
	docs, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs/compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range testenv.Golden(t) {
		text, err := os.ReadFile(filepath.Join(dir, "monitor_events.json"))
		if err != nil {
			t.Fatal(err)
		}
		var golden []struct {
			Runs map[string]struct {
				Before dagster.Status    `json:"status_before"`
				After  dagster.Status    `json:"status_after"`
				Tags   map[string]string `json:"tags_after"`
				Events [][]any           `json:"new_events"`
			}
		}
		if err := json.Unmarshal(text, &golden); err != nil {
			t.Fatal(err)
		}
		// The second part is about resuming.
		for name, g := range golden[0].Runs {
			c, ok := cases[name]
			if !ok {
				t.Errorf("%s: %s is not in the table", dir, name)
				continue
			}
			r := storage.Run{Run: dagster.Run{ID: "r", Status: g.Before, Tags: g.Tags}, Start: ago(c.age),
				Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", At: claimed, State: storage.Open}}}
			if c.foreign {
				r.Launch = nil
			}
			w := c.seen
			w.Now, w.Since, w.Canceling = now, ago(c.age), ago(c.age)
			w.Times = monitor.Times{Start: 100 * time.Second, Cancel: 100 * time.Second, MaxRuntime: 500 * time.Second,
				Grace: 5 * time.Second}.Of(r.Run)
			var events []dagster.Event
			if g.Before == dagster.Canceling {
				events = []dagster.Event{{Type: dagster.RunCanceling, Time: ago(c.age)}}
			}
			var said []string
			got := monitor.Decide(r, c.health, events, w)
			if c.first != "" {
				if expire := monitor.Decide(r, running, events, w); expire.Do != monitor.Expire ||
					expire.Message != c.first {
					t.Errorf("%s: Decide = %+v, want %q", name, expire, c.first)
				}
				said = append(said, c.first)
				r.Status = dagster.Canceling
				events = append(events, dagster.Event{Type: dagster.RunCanceling, Time: ago(3000), Message: c.first})
				got = monitor.Decide(r, c.health, events, w)
			}
			after := r.Status
			switch got.Do {
			case monitor.Fail:
				after, said = dagster.Failure, append(said, got.Message)
			case monitor.Cancel:
				after, said = dagster.Canceled, append(said, got.Message)
			}
			var want []string
			for _, e := range g.Events {
				// then the launcher's debug information, which is an engine event of ours
				first, _, _ := strings.Cut(e[2].(string), "\n")
				want = append(want, first)
			}
			same := after == g.After && strings.Join(said, "|") == strings.Join(want, "|")
			if c.row == "" && !same {
				t.Errorf("%s: %s %q, want %s %q as Dagster", name, after, said, g.After, want)
			}
			if c.row != "" && (same || !strings.Contains(string(docs), "| "+c.row)) {
				t.Errorf("%s: we do as Dagster (%v), or docs/compatibility.md does not say what differs: %q", name,
					same, c.row)
			}
		}
	}
}
