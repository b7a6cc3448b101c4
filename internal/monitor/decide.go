// Package monitor decides what to do about runs in flight, and does it.
//
// [Decide], a pure function, makes the decision from the run, the health of its worker, the run's
// own events and the time. It acts on proof: a record of that worker's end, or its absence from the
// target for the time [Times.Settle] while the run wrote nothing. A target that does not answer
// proves nothing, and the run is left alone. Starting, canceling and the run itself can have a time
// limit. When one has passed, the worker is asked to stop, then killed; only then is the end of the
// run written.
package monitor

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// Action is what to do about a run.
type Action struct {
	Do      Verb
	Event   *dagster.Event           // of Assert: it is in the log already
	Message string                   // of Fail, Cancel and Expire
	Reason  dagster.RunFailureReason // of Fail; "" is none
	Note    string                   // text of an additional engine event
	Then    Then                     // of Again and Resume
	Cause   launcher.Cause           // of Again and Resume
}

// Verb is what to do about a run.
type Verb string

// The verbs.
const (
	Nothing   Verb = "nothing"
	Assert    Verb = "assert"    // give the run the status that its own events imply
	Fail      Verb = "fail"      // the worker is dead and the run is not finished
	Cancel    Verb = "cancel"    // the worker is dead and the run was being canceled
	Terminate Verb = "terminate" // ask the worker to stop
	Kill      Verb = "kill"      // it was asked and has not stopped
	Expire    Verb = "expire"    // the run has reached its maximum runtime: it becomes CANCELING, and then fails
	Again     Verb = "again"     // the worker is dead; back to the queue for another one
	Resume    Verb = "resume"    // the worker is dead; another one continues the run
)

// Times are the time limits of a run. 0 is no limit.
type Times struct {
	Start      time.Duration // from when the target took the worker, or its last phase began, to PIPELINE_START
	Cancel     time.Duration // from PIPELINE_CANCELING to the worker's end
	MaxRuntime time.Duration // from PIPELINE_START
	Grace      time.Duration // between stop and kill
	Settle     time.Duration // how long the target, asked repeatedly, must not know a worker to prove its death
	// how long a run may write no event while its target cannot tell the state of its worker; 0,
	// the default, is for ever
	Silence time.Duration
}

// Of returns the times with the run's own tag applied: dagster/max_runtime in seconds. Dagster
// reads the tag with float(). An empty tag counts as absent, a tag that is not a number is no
// limit, and a negative one has passed at once.
func (t Times) Of(r dagster.Run) Times {
	_, text := r.MaxRuntime()
	if text == "" {
		return t
	}
	seconds, ok := dagster.Float(text)
	switch {
	case !ok, seconds == 0, !(seconds < math.MaxInt64/float64(time.Second)): // also nan and inf
		t.MaxRuntime = 0
	default:
		t.MaxRuntime = max(1, time.Duration(seconds*float64(time.Second)))
	}
	return t
}

// Watch is what the monitor itself has seen of a worker and done about it.
type Watch struct {
	Now           time.Time
	Since         time.Time // when the worker's phase began
	Canceling     time.Time // when the run was seen to be canceling; zero: it is not
	Answered      time.Time // the target's last answer
	Heard         time.Time // when a new event of the run was last seen; only looked up where it matters
	Asked, Killed time.Time // when the target took the stop, and the kill; zero: not yet
	Times         Times
	Policy        *Policy
}

// inconclusiveTooLong reports whether the target has not known the state of the worker for so long
// that the time of the run's last event matters.
func (w Watch) inconclusiveTooLong(h launcher.Health) bool {
	return w.lost(h) || inconclusive(h) && w.over(w.Since, w.Times.Silence)
}

// inconclusive reports whether a worker, by its target's answer, neither runs nor has ended.
func inconclusive(h launcher.Health) bool { return h.Status != launcher.Running && !h.Status.Ended() }

// tells reports whether the target knows the state of the worker of a run that has started. The
// answer that the worker has not begun counts if a resume is waiting for that worker.
func tells(h launcher.Health, events []dagster.Event) bool {
	return h.Status == launcher.Running || h.Status == launcher.Starting && newest(events, dagster.RunStart) == nil
}

// lost reports whether the target, asked again after the time to settle, still knows no such
// worker, while the run wrote nothing. An event begins that time anew.
func (w Watch) lost(h launcher.Health) bool {
	return h.Status == launcher.NotFound && w.Times.Settle > 0 && !w.Since.IsZero() &&
		w.Answered.Sub(w.quiet()) >= w.Times.Settle
}

// quiet is since when the worker is in its phase and its run has written nothing.
func (w Watch) quiet() time.Time { return latest(w.Since, w.Heard) }

// settled turns the answer that there is no such worker into the proof that it is dead, if it has
// held.
func (w Watch) settled(h launcher.Health) launcher.Health {
	if w.lost(h) {
		h.Status, h.Cause = launcher.Failed, launcher.CauseUnknown
		h.Message = fmt.Sprintf("the target has known no such worker for %s, and the run wrote nothing in this time",
			w.Answered.Sub(w.quiet()).Round(time.Second))
	}
	return h
}

// afterKill is how long to wait for the observed end of a worker that was killed. A target may have
// gone away meanwhile: then the run ends, and its log says that the worker's end was not observed.
const afterKill = 30 * time.Second

// Decide returns what to do about a run of ours, given its worker's health and its status events in
// the log's order.
func Decide(r storage.Run, h launcher.Health, events []dagster.Event, w Watch) Action {
	if r.Launch == nil || r.Launch.State == storage.Void {
		return Action{Do: Nothing}
	}
	events = ofAttempt(*r.Launch, events)
	if e := sticky(events); e != nil && e.Type.Status() != r.Status {
		return Action{Do: Assert, Event: e}
	}
	h = w.settled(h)
	canceling := newest(events, dagster.RunCanceling)
	expired, isExpired := expiry(canceling)
	switch {
	case r.Status == dagster.Canceled && isExpired: // its worker took it for a user's cancel
		return Action{Do: Fail, Message: expired}
	case r.Status.Finished() || !r.Status.Active():
		return Action{Do: Nothing}
	case h.Status.Ended() && isExpired:
		return Action{Do: Fail, Message: expired}
	case h.Status.Ended() && r.Status == dagster.Canceling:
		return Action{Do: Cancel, Message: "The run was canceled: its worker ended (" + why(h) + ")."}
	case h.Status.Ended() && r.Status == dagster.Starting && !w.Asked.IsZero():
		return w.dead(r, h, events, Action{Do: Fail, Message: tooLongToStart(w.Times), Reason: dagster.StartTimeout})
	case h.Status.Ended():
		return w.dead(r, h, events, Action{Do: Fail,
			Message: "The run worker ended without finishing the run: " + why(h) + ".",
			Reason:  dagster.UnexpectedTermination})
	case r.Status == dagster.Canceling:
		return w.cancel(h, isExpired, expired)
	case r.Status == dagster.Starting && h.Status != "" && w.over(w.Since, w.Times.Start):
		a := w.end(Action{Do: Fail, Message: tooLongToStart(w.Times), Reason: dagster.StartTimeout})
		if a.Do == Terminate && h.Message != "" {
			a.Note += " The target says: " + h.Message
		}
		return a
	case r.Status == dagster.Started && !w.Heard.IsZero() && w.over(latest(w.Since, w.Heard), w.Times.Silence) &&
		!tells(h, events):
		return w.end(Action{Do: Fail, Reason: dagster.UnexpectedTermination,
			Message: "The run wrote nothing, and its target could not tell the state of its worker, for " +
				seconds(w.Times.Silence) + "."})
	case r.Status == dagster.Started && w.over(r.Start, w.Times.MaxRuntime):
		return Action{Do: Expire, Message: fmt.Sprintf("%s%s.", expiryText, seconds(w.Times.MaxRuntime))}
	}
	return Action{Do: Nothing}
}

// dead says what becomes of a run whose worker is proved dead: what the policy says of the cause,
// else last.
func (w Watch) dead(r storage.Run, h launcher.Health, events []dagster.Event, last Action) Action {
	if h.Status != launcher.Failed { // it left by itself
		return last
	}
	started := r.Status == dagster.Started || newest(events, dagster.RunStart) != nil
	cause := causeOf(h, last.Reason)
	then, whyFail := w.Policy.Decide(r, cause, started)
	switch then {
	case ThenAgain, ThenNext:
		return Action{Do: Again, Then: then, Cause: cause, Message: last.Message}
	case ThenResume:
		return Action{Do: Resume, Then: then, Cause: cause, Message: last.Message}
	}
	if whyFail != "" {
		last.Message = strings.TrimSuffix(last.Message, ".") + "; " + whyFail + "."
	}
	return last
}

// causeOf is why a worker died.
func causeOf(h launcher.Health, reason dagster.RunFailureReason) launcher.Cause {
	switch {
	case reason == dagster.StartTimeout:
		return launcher.CauseTimeout
	case h.Cause == "":
		return launcher.CauseUnknown
	}
	return h.Cause
}

// cancel says what to do about a run that is canceling and whose worker has not been seen to end.
func (w Watch) cancel(h launcher.Health, isExpired bool, expired string) Action {
	if w.Asked.IsZero() && h.Status != launcher.NotFound { // also a worker of which its target can tell nothing
		return Action{Do: Terminate}
	}
	if !w.over(w.Canceling, w.Times.Cancel) {
		return Action{Do: Nothing}
	}
	if !w.Asked.IsZero() && w.Now.Sub(w.Asked) < min(w.Times.Grace, w.Times.Cancel) { // its target took the stop late
		return Action{Do: Nothing}
	}
	w.Asked = w.Now.Add(-w.Times.Grace - afterKill) // it has had its time, whatever its grace
	if isExpired {
		return w.end(Action{Do: Fail, Message: expired})
	}
	return w.end(Action{Do: Cancel, Message: "Run timed out due to taking longer than " + seconds(w.Times.Cancel) +
		" to cancel."})
}

// end has a worker stopped and killed before what ends its run is written.
func (w Watch) end(last Action) Action {
	switch {
	case w.Asked.IsZero():
		return Action{Do: Terminate, Note: "[Slipway] " + last.Message + " Its worker is asked to stop."}
	case w.Killed.IsZero() && w.Now.Sub(w.Asked) < w.Times.Grace+afterKill/3:
		return Action{Do: Nothing}
	case w.Killed.IsZero():
		return Action{Do: Kill}
	case w.Now.Sub(w.Killed) < afterKill:
		return Action{Do: Nothing}
	}
	last.Note = "[Slipway] The run worker was asked to stop and killed, but its end was not observed: what it " +
		"created on its target may still be there."
	return last
}

// over reports whether a limit has passed since a time.
func (w Watch) over(since time.Time, limit time.Duration) bool {
	return limit > 0 && !since.IsZero() && w.Now.Sub(since) >= limit
}

// Texts of dagster._daemon.monitoring.run_monitoring, 1.13.
const expiryText = "Canceling due to exceeding maximum runtime of "

func tooLongToStart(t Times) string {
	return "Run timed out due to taking longer than " + seconds(t.Start) + " to start."
}

func seconds(d time.Duration) string { return fmt.Sprintf("%d seconds", int(d.Seconds())) }

// expiry reports whether a run is canceling because it reached its maximum runtime, and returns the
// message with which it then fails.
func expiry(canceling *dagster.Event) (string, bool) {
	if canceling == nil {
		return "", false
	}
	rest, ok := strings.CutPrefix(canceling.Message, expiryText)
	return "Exceeded maximum runtime of " + rest, ok
}

// ofAttempt leaves out the events of earlier attempts; before the first there was none. The log's
// order tells, as far as it goes: a worker's clock may be behind ours, or ours have been stepped.
// In SQLite's files the event of our own claim may be written after the worker's first ones; of
// those, the time tells.
func ofAttempt(l storage.LaunchRow, events []dagster.Event) []dagster.Event {
	if l.Attempt == 1 {
		return events
	}
	queued := len(events)
	for i, e := range events {
		if e.Type == dagster.RunEnqueued {
			queued = i
		}
	}
	var ours []dagster.Event
	for i, e := range events {
		if i > queued || !e.Time.Before(l.At) {
			ours = append(ours, e)
		}
	}
	return ours
}

func newest(events []dagster.Event, typ dagster.EventType) *dagster.Event {
	for i := len(events) - 1; i >= 0; i-- {
		if events[i].Type == typ {
			return &events[i]
		}
	}
	return nil
}

// sticky is the event whose status wins over the column, if there is one: the first CANCELED; else
// a SUCCESS, which only a worker writes, also over a FAILURE that we wrote; else the last FAILURE;
// else a CANCELING. Of a run that has had its longest time a FAILURE wins over what its worker took
// for a user's cancel. Dagster itself checks no transitions, so that a late write may have undone
// any of them.
func sticky(events []dagster.Event) *dagster.Event {
	rank := map[dagster.EventType]int{dagster.RunCanceling: 1, dagster.RunFailure: 2, dagster.RunSuccess: 3,
		dagster.RunCanceled: 4}
	if _, expired := expiry(newest(events, dagster.RunCanceling)); expired {
		rank[dagster.RunFailure] = 5
	}
	var best *dagster.Event
	for i, e := range events {
		switch {
		case rank[e.Type] == 0:
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
