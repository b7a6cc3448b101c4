package monitor

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

func TestJudge(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	run := func(status dagster.Status, attempt int, end time.Duration) *storage.Run {
		r := &storage.Run{Run: dagster.Run{ID: "r", Status: status},
			Facts: storage.Facts{Launch: &storage.LaunchRow{Instance: "us", Attempt: attempt, At: ago(3 * time.Hour)}}}
		if status.Finished() {
			r.End, r.Updated = ago(end), ago(end)
		}
		return r
	}
	theirs := run(dagster.Success, 1, 3*time.Hour)
	theirs.Launch.Instance = "them"
	foreign := run(dagster.Success, 1, 3*time.Hour)
	foreign.Launch = nil
	day := Removal{After: 24 * time.Hour}
	for name, c := range map[string]struct {
		status launcher.Status
		ended  time.Duration
		run    *storage.Run
		rule   Removal
		since  time.Duration // the run is missing
		want   string
	}{
		"a worker of a run in flight": {status: launcher.Running,
			run: run(dagster.Started, 1, 0), rule: day},
		"one that has ended, of a run in flight": {status: launcher.Failed, ended: 48 * time.Hour,
			run: run(dagster.Started, 1, 0), rule: day},
		"one that writes its last lines": {status: launcher.Running,
			run: run(dagster.Success, 1, time.Minute), rule: day},
		"one that goes on although its run ended": {status: launcher.Running,
			run: run(dagster.Canceled, 1, 3*time.Minute), rule: day, want: "stop: its run is CANCELED"},
		"one that never began although its run ended": {status: launcher.Starting,
			run: run(dagster.Failure, 1, 3*time.Minute), rule: day, want: "stop: its run is FAILURE"},
		"one whose run was deleted just now": {status: launcher.Running, since: time.Minute,
			rule: day},
		"one whose run was deleted": {status: launcher.Running, since: 3 * time.Minute,
			rule: day, want: "stop: its run is no longer in the storage"},
		"one of an earlier attempt": {status: launcher.Running,
			run: run(dagster.Started, 2, 0), rule: day, want: "stop: attempt 2 has taken its place"},
		"one of a run that another instance launched": {status: launcher.Running, run: theirs, rule: day},
		"one of a run without a launch row":           {status: launcher.Running, run: foreign, rule: day},
		"one of which its target can tell nothing": {status: launcher.Unknown,
			run: run(dagster.Success, 1, 48*time.Hour), rule: day},
		"an ended one, soon after": {status: launcher.Succeeded, ended: time.Hour,
			run: run(dagster.Success, 1, time.Hour), rule: day},
		"an ended one, after its time": {status: launcher.Succeeded, ended: 25 * time.Hour,
			run: run(dagster.Success, 1, 25*time.Hour), rule: day, want: "remove: it ended 25h0m0s ago"},
		"an ended one whose run ended later": {status: launcher.Failed, ended: 25 * time.Hour,
			run: run(dagster.Failure, 1, time.Hour), rule: day},
		"an ended one of an earlier attempt": {status: launcher.Failed, ended: 25 * time.Hour,
			run: run(dagster.Started, 2, 0), rule: day, want: "remove: it ended 25h0m0s ago"},
		"an ended one whose run was deleted": {status: launcher.Failed, ended: 25 * time.Hour,
			since: time.Second, rule: day, want: "remove: it ended 25h0m0s ago"},
		"always: while its name has to be kept": {status: launcher.Succeeded, ended: 9 * time.Minute,
			run: run(dagster.Success, 1, 9*time.Minute)},
		"always: after that": {status: launcher.Failed, ended: 11 * time.Minute,
			run: run(dagster.Failure, 1, 11*time.Minute), want: "remove: it ended 11m0s ago"},
		"on_success: one that failed": {status: launcher.Failed, ended: 90 * time.Hour,
			run: run(dagster.Failure, 1, 90*time.Hour), rule: Removal{KeepFailed: true}},
		"on_success: one that succeeded, of a run that failed": {status: launcher.Succeeded, ended: 90 * time.Hour,
			run: run(dagster.Failure, 1, 90*time.Hour), rule: Removal{KeepFailed: true}},
		"on_success: one that succeeded": {status: launcher.Succeeded, ended: 11 * time.Minute,
			run: run(dagster.Success, 1, 11*time.Minute), rule: Removal{KeepFailed: true},
			want: "remove: it ended 11m0s ago"},
		"never": {status: launcher.Succeeded, ended: 90 * time.Hour,
			run: run(dagster.Success, 1, 90*time.Hour), rule: Removal{Never: true}},
	} {
		w := launcher.Worker{ID: launcher.ID{Run: "r", Attempt: 1}, Health: launcher.Health{Status: c.status}}
		if c.ended > 0 {
			w.Health.Ended = ago(c.ended)
		}
		terms := Terms{Instance: "us", Removal: c.rule, Keep: 10 * time.Minute, Grace: OrphanGrace}
		got := ""
		if f, ok := Judge(w, c.run, terms, ago(c.since), now); ok && f.Stop {
			got = "stop: " + f.Why
		} else if ok {
			got = "remove: " + f.Why
		}
		if got != c.want {
			t.Errorf("%s: Judge = %q, want %q", name, got, c.want)
		}
	}
}
