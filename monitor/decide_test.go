package monitor_test

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/monitor"
	"github.com/slipway-run/slipway/storage"
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
		"a live worker of a started run":                   {dagster.Started, launcher.Health{Status: launcher.Running}, with(), storage.Open, monitor.Nothing},
		"a dead worker of a started run":                   {dagster.Started, dead, with(), storage.Open, monitor.Fail},
		"a dead worker of a starting run":                  {dagster.Starting, dead, log(dagster.RunEnqueued, dagster.RunStarting), storage.Open, monitor.Fail},
		"a worker that ended well without a word":          {dagster.Starting, launcher.Health{Status: launcher.Succeeded}, nil, storage.Open, monitor.Fail},
		"a worker that nobody knows":                       {dagster.Started, launcher.Health{Status: launcher.NotFound}, with(), storage.Open, monitor.Nothing},
		"a worker of which the target cannot tell":         {dagster.Started, launcher.Health{Status: launcher.Unknown}, with(), storage.Open, monitor.Nothing},
		"a finished run":                                   {dagster.Success, dead, with(dagster.RunSuccess), storage.Open, monitor.Nothing},
		"a success that the row has not got":               {dagster.Started, dead, with(dagster.RunSuccess), storage.Open, monitor.Assert},
		"a failure that the row has not got":               {dagster.Started, dead, with(dagster.RunFailure), storage.Open, monitor.Assert},
		"a success beats our failure":                      {dagster.Failure, dead, with(dagster.RunFailure, dagster.RunSuccess), storage.Open, monitor.Assert},
		"a success before our failure as well":             {dagster.Failure, dead, with(dagster.RunSuccess, dagster.RunFailure), storage.Open, monitor.Assert},
		"the first canceled stands":                        {dagster.Success, dead, with(dagster.RunCanceled, dagster.RunSuccess), storage.Open, monitor.Assert},
		"a late start over a canceled run":                 {dagster.Started, launcher.Health{Status: launcher.Running}, with(dagster.RunCanceled, dagster.RunStart), storage.Open, monitor.Assert},
		"a late start over a canceling run":                {dagster.Started, launcher.Health{Status: launcher.Running}, log(dagster.RunEnqueued, dagster.RunStarting, dagster.RunCanceling, dagster.RunStart), storage.Open, monitor.Assert},
		"a failure before the claim is of another attempt": {dagster.Starting, launcher.Health{Status: launcher.Running}, log(dagster.RunFailure, dagster.RunStarting), storage.Open, monitor.Nothing},
		"a canceling run with a live worker":               {dagster.Canceling, launcher.Health{Status: launcher.Running}, with(dagster.RunCanceling), storage.Open, monitor.Terminate},
		"a canceling run with a dead worker":               {dagster.Canceling, dead, with(dagster.RunCanceling), storage.Open, monitor.Cancel},
		"a canceling run whose worker cannot be looked at": {dagster.Canceling, launcher.Health{Status: launcher.Unknown}, with(dagster.RunCanceling), storage.Open, monitor.Terminate},
		"a canceling run whose worker nobody knows":        {dagster.Canceling, launcher.Health{Status: launcher.NotFound}, with(dagster.RunCanceling), storage.Open, monitor.Nothing},
		"a launch that was voided":                         {dagster.Started, dead, with(), storage.Void, monitor.Nothing},
		"a run that went back to the queue":                {dagster.Queued, dead, nil, storage.Open, monitor.Nothing},
	} {
		r := storage.Run{Run: dagster.Run{ID: "r", Status: c.status}, Launch: &storage.LaunchRow{Run: "r", At: claimed, State: c.state}}
		if got := monitor.Decide(r, c.health, c.events); got.Do != c.want {
			t.Errorf("%s: Decide = %+v, want %s", name, got, c.want)
		}
	}
	if got := monitor.Decide(storage.Run{Run: dagster.Run{Status: dagster.Started}}, dead, nil); got.Do != monitor.Nothing {
		t.Errorf("a run that we did not claim: Decide = %+v, want nothing", got)
	}
}
