// Package monitor decides what to do about runs in flight, and does it.
//
// The decision is a pure function of the run, what its target says of the worker, and the run's own
// events ([Decide]). It acts on proof alone: an exit record of that very worker. A target that does
// not answer, or does not know the worker, is no proof; the run is left as it is.
package monitor

import (
	"fmt"
	"strings"

	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/storage"
)

// Action is what to do about a run.
type Action struct {
	Do      Verb
	Event   *dagster.Event // of Assert: it stands in the log already
	Message string         // of Fail and Cancel
}

// Verb says what to do.
type Verb string

// The verbs.
const (
	Nothing   Verb = "nothing"
	Assert    Verb = "assert"    // give the run the status that its own events say it has
	Fail      Verb = "fail"      // the worker is dead and the run is not finished
	Cancel    Verb = "cancel"    // the worker is dead and the run was being canceled
	Terminate Verb = "terminate" // ask the worker to stop
)

// Decide says what to do about a run of ours, given its worker's health and its status events since the claim, oldest first.
func Decide(r storage.Run, h launcher.Health, events []dagster.Event) Action {
	if r.Launch == nil || r.Launch.State == storage.Void {
		return Action{Do: Nothing}
	}
	if e := Sticky(*r.Launch, events); e != nil && e.Type.Status() != r.Status {
		return Action{Do: Assert, Event: e}
	}
	switch {
	case r.Status.Finished() || !r.Status.Active():
		return Action{Do: Nothing}
	case h.Status.Ended() && r.Status == dagster.Canceling:
		return Action{Do: Cancel, Message: "The run was canceled: its worker ended (" + why(h) + ")."}
	case h.Status.Ended():
		return Action{Do: Fail, Message: "The run worker ended without finishing the run: " + why(h) + "."}
	case r.Status == dagster.Canceling && h.Status != launcher.NotFound: // also a worker of which its target can tell nothing
		return Action{Do: Terminate}
	}
	return Action{Do: Nothing}
}

// Sticky is the event whose status wins over the column, if there is one: the first CANCELED; else a SUCCESS, which
// only a worker writes, also over a FAILURE that we wrote; else the last FAILURE; else a CANCELING.
// Dagster itself checks no transitions, so that a late write may have undone any of them.
func Sticky(l storage.LaunchRow, events []dagster.Event) *dagster.Event {
	rank := map[dagster.EventType]int{dagster.RunCanceling: 1, dagster.RunFailure: 2, dagster.RunSuccess: 3, dagster.RunCanceled: 4}
	var best *dagster.Event
	for i, e := range events {
		switch {
		case e.Time.Before(l.At) || rank[e.Type] == 0:
		case best == nil, rank[e.Type] > rank[best.Type], e.Type == best.Type && e.Type != dagster.RunCanceled:
			best = &events[i]
		}
	}
	return best
}

// why is the target's words on a worker's end.
func why(h launcher.Health) string {
	text := h.Message
	if h.Cause != "" && h.Cause != launcher.CauseExit && h.Cause != launcher.CauseUnknown {
		text = fmt.Sprintf("%s (%s)", text, h.Cause)
	}
	return strings.TrimSuffix(text, ".")
}
