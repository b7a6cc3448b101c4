package monitor_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

var claimed = time.Unix(1795337531, 0).UTC()

// log makes events one second apart, the first one before the claim.
func log(types ...dagster.EventType) []dagster.Event {
	var events []dagster.Event
	for i, t := range types {
		events = append(events, dagster.Event{Type: t, Time: claimed.Add(time.Duration(i-1) * time.Second)})
	}
	return events
}

func TestDecide(t *testing.T) {
	one := 1
	dead := launcher.Health{Status: launcher.Failed, Exit: &one, Message: "exit code 1", Cause: launcher.CauseExit}
	started := []dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunStart}
	with := func(more ...dagster.EventType) []dagster.Event { return log(append(started[:3:3], more...)...) }
	for name, c := range map[string]struct {
		status dagster.Status
		health launcher.Health
		events []dagster.Event
		state  storage.LaunchState
		want   monitor.Verb
	}{
		"a live worker of a started run": {dagster.Started, launcher.Health{Status: launcher.Running},
			with(), storage.Open, monitor.Nothing},
		"a dead worker of a started run": {dagster.Started, dead, with(), storage.Open, monitor.Fail},
		"a dead worker of a starting run": {dagster.Starting, dead,
			log(dagster.RunEnqueued, dagster.RunStarting), storage.Open, monitor.Fail},
		"a worker that ended well without a word": {dagster.Starting,
			launcher.Health{Status: launcher.Succeeded}, nil, storage.Open, monitor.Fail},
		"a worker that its target does not know": {dagster.Started,
			launcher.Health{Status: launcher.NotFound}, with(), storage.Open, monitor.Nothing},
		"a worker of which the target cannot tell": {dagster.Started, launcher.Health{Status: launcher.Unknown},
			with(), storage.Open, monitor.Nothing},
		"a finished run": {dagster.Success, dead, with(dagster.RunSuccess),
			storage.Open, monitor.Nothing},
		"a success that the row has not got": {dagster.Started, dead, with(dagster.RunSuccess),
			storage.Open, monitor.Assert},
		"a failure that the row has not got": {dagster.Started, dead, with(dagster.RunFailure),
			storage.Open, monitor.Assert},
		"a success beats our failure": {dagster.Failure, dead,
			with(dagster.RunFailure, dagster.RunSuccess), storage.Open, monitor.Assert},
		"a success before our failure as well": {dagster.Failure, dead,
			with(dagster.RunSuccess, dagster.RunFailure), storage.Open, monitor.Assert},
		"the first canceled stands": {dagster.Success, dead,
			with(dagster.RunCanceled, dagster.RunSuccess), storage.Open, monitor.Assert},
		"a late start over a canceled run": {dagster.Started, launcher.Health{Status: launcher.Running},
			with(dagster.RunCanceled, dagster.RunStart), storage.Open, monitor.Assert},
		"a late start over a canceling run": {dagster.Started, launcher.Health{Status: launcher.Running},
			log(dagster.RunEnqueued, dagster.RunStarting, dagster.RunCanceling, dagster.RunStart), storage.Open,
			monitor.Assert},
		"a failure before the claim is of another attempt": {dagster.Starting,
			launcher.Health{Status: launcher.Running}, log(dagster.RunFailure, dagster.RunStarting), storage.Open,
			monitor.Nothing},
		"a canceling run with a live worker": {dagster.Canceling,
			launcher.Health{Status: launcher.Running}, with(dagster.RunCanceling), storage.Open, monitor.Terminate},
		"a canceling run with a dead worker": {dagster.Canceling, dead, with(dagster.RunCanceling),
			storage.Open, monitor.Cancel},
		"a canceling run whose worker cannot be looked at": {dagster.Canceling,
			launcher.Health{Status: launcher.Unknown}, with(dagster.RunCanceling), storage.Open, monitor.Terminate},
		"a canceling run whose worker is not known": {dagster.Canceling,
			launcher.Health{Status: launcher.NotFound}, with(dagster.RunCanceling), storage.Open, monitor.Nothing},
		"a launch that was voided": {dagster.Started, dead, with(), storage.Void,
			monitor.Nothing},
		"a run that went back to the queue": {dagster.Queued, dead, nil, storage.Open, monitor.Nothing},
	} {
		r := storage.Run{Run: dagster.Run{ID: "r", Status: c.status},
			Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: 2, At: claimed, State: c.state}}}
		if got := monitor.Decide(r, c.health, c.events, monitor.Watch{}); got.Do != c.want {
			t.Errorf("%s: Decide = %+v, want %s", name, got, c.want)
		}
	}
	if got := monitor.Decide(storage.Run{Run: dagster.Run{Status: dagster.Started}}, dead, nil,
		monitor.Watch{}); got.Do != monitor.Nothing {
		t.Errorf("a run that we did not claim: Decide = %+v, want nothing", got)
	}
}

// The log's order tells which events are of this attempt, for the clock of a worker may be behind
// ours, or ours have been set back after the claim.
func TestDecideByTheLogsOrder(t *testing.T) {
	dead := launcher.Health{Status: launcher.Failed, Message: "killed", Cause: launcher.CauseExit}
	for name, c := range map[string]struct {
		attempt int
		events  []dagster.EventType
		want    monitor.Verb
	}{
		"the only attempt wrote its success and died": {1,
			[]dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunStart, dagster.RunSuccess},
			monitor.Assert},
		"the same, before the event of the claim was written": {1,
			[]dagster.EventType{dagster.RunStart, dagster.RunSuccess, dagster.RunEnqueued, dagster.RunStarting},
			monitor.Assert},
		"the second one did": {2,
			[]dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunStart, dagster.RunEnqueued,
				dagster.RunStarting, dagster.RunStart, dagster.RunSuccess}, monitor.Assert},
		"a user had asked to cancel the first one, not this": {2,
			[]dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunCanceling, dagster.RunEnqueued,
				dagster.RunStarting, dagster.RunStart}, monitor.Fail},
		"the worker began and died": {1,
			[]dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunStart}, monitor.Fail},
	} {
		events := log(c.events...)
		for i := range events {
			events[i].Time = events[i].Time.Add(-time.Hour)
		}
		r := storage.Run{Run: dagster.Run{ID: "r", Status: dagster.Started},
			Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", Attempt: c.attempt, At: claimed,
				State: storage.Open}}}
		if got := monitor.Decide(r, dead, events, monitor.Watch{}); got.Do != c.want {
			t.Errorf("%s: Decide = %+v, want %s", name, got, c.want)
		}
	}
}

// That a target knows no worker is proof once it has held for the time to settle, looked at again,
// while the run wrote nothing. Silence of a target that cannot tell ends a run only where a setting
// says so, and after its worker was asked to stop.
func TestDecideOnAbsence(t *testing.T) {
	now := claimed.Add(time.Hour)
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	lost, unknown := launcher.Health{Status: launcher.NotFound}, launcher.Health{Status: launcher.Unknown}
	for name, c := range map[string]struct {
		health                 launcher.Health
		since, answered, heard int // seconds ago
		settle, silence        time.Duration
		asked, killed          int
		want                   monitor.Verb
		events                 []dagster.EventType
	}{
		"absent for less than the time to settle": {health: lost, since: 59, answered: 1, heard: 100,
			settle: time.Minute, want: monitor.Nothing},
		"absent, and not looked at again": {health: lost, since: 500, answered: 500, heard: 600,
			settle: time.Minute, want: monitor.Nothing},
		"absent, and looked at again": {health: lost, since: 61, answered: 1, heard: 100,
			settle: time.Minute, want: monitor.Fail},
		"absent, and the run wrote since": {health: lost, since: 61, answered: 1, heard: 30,
			settle: time.Minute, want: monitor.Nothing},
		"absent for long enough since it last wrote": {health: lost, since: 500, answered: 1, heard: 62,
			settle: time.Minute, want: monitor.Fail},
		"absent where that never counts": {health: lost, since: 5000, answered: 1, heard: 6000,
			want: monitor.Nothing},
		"unknown for ever": {health: unknown, since: 50000, answered: 1, heard: 50000,
			settle: time.Minute, want: monitor.Nothing},
		"unknown for longer than the silence": {health: unknown, since: 500, answered: 1, heard: 400,
			silence: 300 * time.Second, want: monitor.Terminate},
		"unknown, and the run wrote since": {health: unknown, since: 500, answered: 1, heard: 200,
			silence: 300 * time.Second, want: monitor.Nothing},
		"asked to stop": {health: unknown, since: 500, answered: 1, heard: 400,
			silence: 300 * time.Second, asked: 5, want: monitor.Nothing},
		"not stopped": {health: unknown, since: 500, answered: 1, heard: 400,
			silence: 300 * time.Second, asked: 60, want: monitor.Kill},
		"killed, and its end was not observed": {health: unknown, since: 500, answered: 1, heard: 400,
			silence: 300 * time.Second, asked: 90, killed: 31, want: monitor.Fail},
		"not begun, says its target, and it has": {health: launcher.Health{Status: launcher.Starting}, since: 500,
			answered: 1, heard: 400, silence: 300 * time.Second,
			events: []dagster.EventType{dagster.RunEnqueued, dagster.RunStarting, dagster.RunStart},
			want:   monitor.Terminate},
		"not begun, and the run is to be resumed": {health: launcher.Health{Status: launcher.Starting}, since: 500,
			answered: 1, heard: 400, silence: 300 * time.Second, want: monitor.Nothing},
		"a live worker of a run that writes nothing": {health: launcher.Health{Status: launcher.Running}, since: 5000,
			answered: 1, heard: 5000, silence: 300 * time.Second, want: monitor.Nothing},
	} {
		at := func(seconds int) time.Time {
			if seconds == 0 {
				return time.Time{}
			}
			return ago(seconds)
		}
		r := storage.Run{Run: dagster.Run{ID: "r", Status: dagster.Started},
			Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", At: claimed, State: storage.Open}}}
		w := monitor.Watch{
			Now: now, Since: at(c.since), Answered: at(c.answered), Heard: at(c.heard), Asked: at(c.asked),
			Killed: at(c.killed),
			Times:  monitor.Times{Settle: c.settle, Silence: c.silence, Grace: 30 * time.Second},
			Policy: &monitor.Policy{Rules: []monitor.Rule{{Do: monitor.ThenAgain, Started: monitor.ThenAgain}},
				Workers: 1},
		}
		if got := monitor.Decide(r, c.health, log(c.events...), w); got.Do != c.want {
			t.Errorf("%s: Decide = %+v, want %s", name, got, c.want)
		}
		w.Policy.Workers = 9
		if got := monitor.Decide(r, c.health, log(c.events...), w); c.health.Status == launcher.Unknown &&
			got.Do != c.want {
			t.Errorf("%s: Decide = %+v under a policy of new workers, want %s: silence is no proof", name, got, c.want)
		}
	}
}

// What has its time ends when that is over: the worker is asked to stop, then killed, and then the
// run's end is written, in Dagster's words.
func TestDecideInTime(t *testing.T) {
	now := claimed.Add(time.Hour)
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	zero := 0
	running, starting := launcher.Health{Status: launcher.Running}, launcher.Health{Status: launcher.Starting}
	dead, lost := launcher.Health{Status: launcher.Failed, Exit: &zero, Message: "signal 9"},
		launcher.Health{Status: launcher.NotFound}
	canceling := func(seconds int, text string) []dagster.Event {
		return []dagster.Event{{Type: dagster.RunCanceling, Time: ago(seconds), Message: text}}
	}
	const expiring = "Canceling due to exceeding maximum runtime of 500 seconds."
	expired := canceling(1, expiring)
	for name, c := range map[string]struct {
		status                dagster.Status
		health                launcher.Health
		since, asked, killed  int // seconds ago; 0: not
		started               int
		tags                  map[string]string
		events                []dagster.Event
		want                  monitor.Verb
		message, reason, note string
	}{
		"a start in its time": {status: dagster.Starting, health: starting, since: 99,
			want: monitor.Nothing},
		"a start that takes too long": {status: dagster.Starting, health: starting, since: 100,
			want: monitor.Terminate, note: "longer than 100 seconds to start. Its worker is asked to stop"},
		"a start that waits for something": {status: dagster.Starting,
			health: launcher.Health{Status: launcher.Starting, Message: "no node fits"}, since: 100,
			want: monitor.Terminate, note: "asked to stop. The target says: no node fits"},
		"a running worker that does not start": {status: dagster.Starting, health: running, since: 100,
			want: monitor.Terminate},
		"one whose state is unknown": {status: dagster.Starting,
			health: launcher.Health{Status: launcher.Unknown}, since: 100, want: monitor.Terminate},
		"one that was not looked at": {status: dagster.Starting, since: 10000, want: monitor.Nothing},
		"it was asked just now": {status: dagster.Starting, health: running, since: 120, asked: 39,
			want: monitor.Nothing},
		"it did not stop": {status: dagster.Starting, health: running, since: 150, asked: 40,
			want: monitor.Kill},
		"it was killed just now": {status: dagster.Starting, health: running, since: 180, asked: 69,
			killed: 29, want: monitor.Nothing},
		"it ended": {status: dagster.Starting, health: dead, since: 180, asked: 69,
			want: monitor.Fail, message: "Run timed out due to taking longer than 100 seconds to start.",
			reason: "START_TIMEOUT"},
		"its end is not observed": {status: dagster.Starting, health: running, since: 180, asked: 70,
			killed: 30, want: monitor.Fail, message: "Run timed out due to taking longer than 100 seconds to start.",
			reason: "START_TIMEOUT", note: "its end was not observed"},
		"one that its target does not know": {status: dagster.Starting, health: lost, since: 180, asked: 70,
			killed: 30, want: monitor.Fail, reason: "START_TIMEOUT", note: "its end was not observed"},
		"one that started meanwhile": {status: dagster.Started, health: running, started: 5, asked: 5,
			want: monitor.Nothing},
		"a run in its time": {status: dagster.Started, health: running, started: 499,
			want: monitor.Nothing},
		"a run that takes too long": {status: dagster.Started, health: running, started: 500,
			want: monitor.Expire, message: expiring},
		"by its tag": {status: dagster.Started, health: running, started: 31,
			tags: map[string]string{"dagster/max_runtime": "30.5"}, want: monitor.Expire,
			message: "Canceling due to exceeding maximum runtime of 30 seconds."},
		"by its other tag": {status: dagster.Started, health: running, started: 31,
			tags: map[string]string{"dagster/max_runtime_seconds": "30"}, want: monitor.Expire},
		"a tag of 0": {status: dagster.Started, health: running, started: 3000,
			tags: map[string]string{"dagster/max_runtime": "0"}, want: monitor.Nothing},
		"an empty tag is no tag": {status: dagster.Started, health: running, started: 500,
			tags: map[string]string{"dagster/max_runtime": ""}, want: monitor.Expire, message: expiring},
		"an empty tag hides the other": {status: dagster.Started, health: running, started: 31,
			tags: map[string]string{"dagster/max_runtime": "", "dagster/max_runtime_seconds": "30"},
			want: monitor.Nothing},
		"a tag with blanks": {status: dagster.Started, health: running, started: 31,
			tags: map[string]string{"dagster/max_runtime": " 3_0 "}, want: monitor.Expire,
			message: "Canceling due to exceeding maximum runtime of 30 seconds."},
		"a negative tag": {status: dagster.Started, health: running, started: 1,
			tags: map[string]string{"dagster/max_runtime": "-5"}, want: monitor.Expire},
		"a tag beyond all times": {status: dagster.Started, health: running, started: 3000,
			tags: map[string]string{"dagster/max_runtime": "1e300"}, want: monitor.Nothing},
		"an infinite tag": {status: dagster.Started, health: running, started: 3000,
			tags: map[string]string{"dagster/max_runtime": "inf"}, want: monitor.Nothing},
		"a tag that no number equals": {status: dagster.Started, health: running, started: 3000,
			tags: map[string]string{"dagster/max_runtime": "nan"}, want: monitor.Nothing},
		"a hexadecimal tag": {status: dagster.Started, health: running, started: 3000,
			tags: map[string]string{"dagster/max_runtime": "0x10p0"}, want: monitor.Nothing},
		"a tag that is not a number": {status: dagster.Started, health: running, started: 3000,
			tags: map[string]string{"dagster/max_runtime": "soon"}, want: monitor.Nothing},
		"one that is to end": {status: dagster.Canceling, health: running, events: expired,
			want: monitor.Terminate},
		"it has ended": {status: dagster.Canceling, health: dead, asked: 1,
			events: expired, want: monitor.Fail, message: "Exceeded maximum runtime of 500 seconds."},
		"its worker took it for a cancel": {status: dagster.Canceled, health: dead, asked: 1,
			events: append(expired[:1:1], dagster.Event{Type: dagster.RunCanceled, Time: now}), want: monitor.Fail,
			message: "Exceeded maximum runtime of 500 seconds."},
		"and has failed": {status: dagster.Failure, health: dead,
			events: append(expired[:1:1], dagster.Event{Type: dagster.RunCanceled, Time: now},
				dagster.Event{Type: dagster.RunFailure, Time: now}), want: monitor.Nothing},
		"and a late CANCELED changes nothing": {status: dagster.Canceled, health: dead,
			events: append(expired[:1:1], dagster.Event{Type: dagster.RunFailure, Time: now},
				dagster.Event{Type: dagster.RunCanceled, Time: now}), want: monitor.Assert},
		"it does not end": {status: dagster.Canceling, health: running, asked: 100,
			killed: 30, events: canceling(100, expiring), want: monitor.Fail, note: "its end was not observed"},
		"a cancel in its time": {status: dagster.Canceling, health: running, asked: 99,
			events: canceling(99, ""), want: monitor.Nothing},
		"a cancel that takes too long": {status: dagster.Canceling, health: running, asked: 100,
			events: canceling(100, ""), want: monitor.Kill},
		"a cancel that its target took late": {status: dagster.Canceling, health: running, asked: 20,
			events: canceling(500, ""), want: monitor.Nothing},
		"a cancel that its target never took": {status: dagster.Canceling, health: running,
			events: canceling(5000, ""), want: monitor.Terminate},
		"of a worker that its target does not know": {status: dagster.Canceling, health: lost,
			events: canceling(100, ""), want: monitor.Kill},
		"and kills nothing": {status: dagster.Canceling, health: lost, killed: 30,
			events: canceling(130, ""), want: monitor.Cancel,
			message: "Run timed out due to taking longer than 100 seconds to cancel.",
			note:    "its end was not observed"},
		"and kills": {status: dagster.Canceling, health: dead, asked: 130, killed: 3,
			events: canceling(130, ""), want: monitor.Cancel, message: "The run was canceled: its worker ended"},
	} {
		at := func(seconds int) time.Time {
			if seconds == 0 {
				return time.Time{}
			}
			return ago(seconds)
		}
		r := storage.Run{Run: dagster.Run{ID: "r", Status: c.status, Tags: c.tags}, Start: at(c.started),
			Facts: storage.Facts{Launch: &storage.LaunchRow{Run: "r", At: claimed, State: storage.Open}}}
		times := monitor.Times{Start: 100 * time.Second, Cancel: 100 * time.Second, MaxRuntime: 500 * time.Second,
			Grace: 30 * time.Second}.Of(r.Run)
		var since time.Time
		if c.status == dagster.Canceling {
			since, c.events = c.events[0].Time, slices.Clone(c.events)
			c.events[0].Time = since.Add(time.Hour) // by the clock of its writer
		}
		got := monitor.Decide(r, c.health, c.events,
			monitor.Watch{Now: now, Since: at(c.since), Canceling: since, Asked: at(c.asked), Killed: at(c.killed),
				Times: times})
		if got.Do != c.want || !strings.HasPrefix(got.Message, c.message) || c.reason != "" &&
			string(got.Reason) != c.reason || !strings.Contains(got.Note, c.note) || c.note == "" &&
			strings.Contains(got.Note, "not observed") {
			t.Errorf("%s: Decide = %+v, want %s %q %s %q", name, got, c.want, c.message, c.reason, c.note)
		}
	}
}
