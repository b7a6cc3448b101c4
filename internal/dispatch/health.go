package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

const (
	// sickAfter is how many failures in a row make a target sick, if no single one does.
	sickAfter = 5
	// sickFirst is the pause before a target that has become sick is tried; each further failure
	// doubles it.
	sickFirst = time.Second
	// sickFor is the longest such pause.
	sickFor = 15 * time.Second
	// fresh is how long a target counts as answering after an answer.
	fresh = 10 * time.Second
	// someUnclear is how many runs of unknown outcome a target may have while its launches fail
	// with errors of no known kind, which may be about these runs alone.
	someUnclear = 3
)

// health records how a target has answered lately. The zero value has not answered yet.
//
// A sick target gets one call at a time, with growing pauses, and is well again when a call is
// answered. Only what every request would meet makes it sick: a refusal of us, no answer in time,
// or several failures in a row.
type health struct {
	mu       sync.Mutex
	answered time.Time // the last time
	failures int       // calls in a row that failed
	last     string    // words of the last one
	since    time.Time // of the first one
	sick     bool
	trying   bool      // a call tries a sick target
	next     time.Time // when the next one may

	unclear int    // while launches fail: how many runs of unknown outcome it may have; 0: they do not fail
	launch  string // words of the last launch, if it failed
}

// Trouble describes the calls to a target that failed in a row.
type Trouble struct {
	Sick  bool      // only single calls try it
	Err   string    // words of the last failure; "" if there is none
	Since time.Time // of the first one
	Next  time.Time // when a sick target may be tried again
}

// strange is an error of a launch of no known kind. It may be about that run alone.
type strange struct{ error }

func (e strange) Unwrap() error { return e.error }

// answered reports whether an error shows that the target works: it is about the request.
func answered(err error) bool {
	return err == nil || errors.Is(err, launcher.ErrInvalid) || errors.Is(err, launcher.ErrCapacity) ||
		errors.Is(err, launcher.ErrNotFound) || errors.Is(err, launcher.ErrPending)
}

// begin asks whether a call may be made. tries: the target is sick, and this call tries it.
func (h *health) begin(now time.Time) (tries bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.sick {
		return false, nil
	}
	if h.trying || now.Before(h.next) {
		return false, fmt.Errorf("its calls have failed since %s: %s", clock(h.since), h.last)
	}
	h.trying = true
	return true, nil
}

// clock formats a time of day for readers in any time zone.
func clock(t time.Time) string { return t.UTC().Format(time.TimeOnly + " MST") }

// end records the outcome of a call. A call that its caller gave up says nothing about the target.
func (h *health) end(tries bool, err error, givenUp bool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if tries {
		h.trying = false
	}
	if answered(err) {
		h.answered, h.failures, h.sick, h.last = now, 0, false, ""
		return
	}
	if givenUp {
		return
	}
	if _, ok := errors.AsType[strange](err); !ok {
		if h.failures++; h.failures == 1 {
			h.since = now
		}
		h.last = words(err)
		h.sick = h.sick || h.failures >= sickAfter ||
			errors.Is(err, launcher.ErrDenied) || errors.Is(err, context.DeadlineExceeded)
	}
	pause := min(sickFor, sickFirst<<min(max(0, h.failures-1), 10))
	if after, ok := launcher.RetryAfter(err); ok {
		pause = max(pause, after)
	}
	h.next = now.Add(pause)
}

// launched records the outcome of a launch. A target can answer other calls and still fail all
// launches.
func (h *health) launched(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if answered(err) {
		h.unclear, h.launch = 0, ""
		return
	}
	h.unclear, h.launch = 1, words(err)
	if _, ok := errors.AsType[strange](err); ok {
		h.unclear = someUnclear
	}
}

// takes returns how many launches of unknown outcome the target may have, including those under
// way; -1: as many as it has room for. A target that has not answered since it failed, or for some
// time, gets one: if it hangs, the other runs wait in the queue and take no place there.
func (h *health) takes(now time.Time) (n int, sick bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.sick && (h.trying || now.Before(h.next)):
		return 0, true
	case h.sick, h.failures > 0, now.Sub(h.answered) > fresh && h.unclear == 0:
		return 1, h.sick
	case h.unclear > 0:
		return h.unclear, false
	}
	return -1, false
}

func (h *health) trouble() Trouble {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := Trouble{Sick: h.sick, Err: cmp.Or(h.last, h.launch)}
	if h.failures > 0 {
		t.Since = h.since
	}
	if h.sick {
		t.Next = h.next
	}
	return t
}
