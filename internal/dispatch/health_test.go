package dispatch

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

func TestHealth(t *testing.T) {
	plain := errors.New("what")
	for name, c := range map[string]struct {
		calls []error // of the target, all of them at the same time
		asks  []error // of launches
		takes int     // afterwards
		sick  bool
	}{
		"not asked yet": {takes: 1},
		"it answers":    {calls: []error{nil}, asks: []error{nil}, takes: -1},
		"an answer about a request": {calls: []error{launcher.ErrInvalid},
			asks: []error{launcher.ErrInvalid}, takes: -1},
		"a failure": {calls: []error{nil, launcher.ErrTransient}, takes: 1},
		"failures in a row": {calls: []error{plain, plain, plain, plain, plain}, takes: 0,
			sick: true},
		"failures with an answer among them": {calls: []error{plain, plain, plain, plain, nil, plain}, takes: 1},
		"it refuses us":                      {calls: []error{nil, launcher.ErrDenied}, takes: 0, sick: true},
		"it is not reached": {calls: []error{nil, launcher.Unreached(plain)}, takes: 0,
			sick: true},
		"no answer in time": {calls: []error{nil, context.DeadlineExceeded}, takes: 0,
			sick: true},
		"well again": {calls: []error{launcher.ErrDenied, nil}, takes: -1},
		"it answers, but launches nothing": {calls: []error{nil}, asks: []error{launcher.ErrTransient},
			takes: 1},
		"launches that fail in words of their own": {calls: []error{nil, strange{plain}, strange{plain}, strange{plain},
			strange{plain}, strange{plain}}, asks: []error{strange{plain}}, takes: someUnclear},
		"a launch again": {calls: []error{nil}, asks: []error{launcher.ErrTransient, nil},
			takes: -1},
	} {
		t.Run(name, func(t *testing.T) {
			var h health
			now := time.Now()
			for _, err := range c.calls {
				h.end(false, err, false, now)
			}
			for _, err := range c.asks {
				h.launched(err)
			}
			if n, sick := h.takes(now); n != c.takes || sick != c.sick {
				t.Errorf("takes = %d, %v, want %d, %v", n, sick, c.takes, c.sick)
			}
		})
	}
}

// A sick target gets one call at a time, with growing pauses, and is sick until one is answered.
func TestSickTargetIsTried(t *testing.T) {
	var h health
	now := time.Now()
	h.end(false, launcher.Unreached(errors.New("refused")), false, now)
	for _, pause := range []time.Duration{sickFirst, 2 * sickFirst, 4 * sickFirst, 8 * sickFirst, sickFor, sickFor} {
		if _, err := h.begin(now.Add(pause - time.Millisecond)); err == nil {
			t.Fatalf("it may be asked before %v", pause)
		}
		now = now.Add(pause)
		tries, err := h.begin(now)
		if err != nil || !tries {
			t.Fatalf("after %v: %v, %v, want a trial", pause, tries, err)
		}
		if _, err := h.begin(now); err == nil {
			t.Fatal("two trials at once")
		}
		if ill := h.trouble(); !ill.Sick || ill.Err != "refused" {
			t.Errorf("while it is tried it is %+v, want it to be sick", ill)
		}
		h.end(tries, launcher.Unreached(errors.New("refused")), false, now)
	}
	now = now.Add(sickFor)
	tries, err := h.begin(now)
	h.end(tries, err, false, now)
	if ill := h.trouble(); ill != (Trouble{}) {
		t.Errorf("after an answer it is %+v", ill)
	}
}

// A target that cannot say how much room it has is tried with one run after a pause, and with more
// and more while it takes them.
func TestRoomOfATargetThatCannotSay(t *testing.T) {
	var r room
	now := time.Now()
	free := func(want int) {
		t.Helper()
		if got := r.free(100, now); got != want {
			t.Errorf("free = %d, want %d", got, want)
		}
	}
	free(100)
	for range 20 {
		r.refused(0, now) // all that were on their way
	}
	free(0)
	for _, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		now = now.Add(pause*time.Second - 1)
		free(0)
		now = now.Add(1)
		free(1)
		r.take()
		free(0)
		r.refused(0, now)
	}
	now = now.Add(maxPause)
	free(1)
	r.take()
	r.took(false) // neither taken nor refused
	free(1)
	for _, n := range []int{2, 4, 8, 16, 100} {
		r.take()
		r.took(true)
		free(n)
	}
}

func TestWords(t *testing.T) {
	for want, err := range map[string]error{
		"key expired":               errors.Join(launcher.ErrTransient, errors.New("key\nexpired")),
		"docker: no":                errors.Join(launcher.ErrDenied, errors.New("docker: no")),
		"no answer within 30s":      context.DeadlineExceeded,
		"azure: QuotaExceeded: no.": errors.Join(launcher.ErrCapacity, errors.New("azure: QuotaExceeded:  no.")),
	} {
		if got := words(err); got != want {
			t.Errorf("words = %q, want %q", got, want)
		}
	}
}
