package dispatch

import (
	"context"
	"sync"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

const (
	// roomInterval is how often a target that had no room is asked how much it has.
	roomInterval = 5 * time.Second
	firstPause   = time.Second // before a target that had no room is tried again; doubled with each refusal in a row
	maxPause     = time.Minute
)

// room is how much room a target has, since a launch found none. Before that nothing is known, and
// all launches are tried.
//
// A target that cannot say how much room it has is tried with one run after a pause. Each launch
// that it takes then doubles the number of runs it is tried with.
type room struct {
	mu    sync.Mutex
	known bool
	left  int
	full  string    // words of the last launch that found none
	since time.Time // of the first launch that found none

	// For a target that cannot say how much room it has:
	tried int           // how many runs it is tried with; 0: it can say
	open  bool          // it is tried now
	pause time.Duration // before it is tried
	until time.Time     // end of the pause
}

// free is how many more runs may be claimed for the target, at most n.
func (r *room) free(n int, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known {
		return n
	}
	if r.tried > 0 && !r.open && !now.Before(r.until) {
		r.open, r.left = true, r.tried
	}
	return min(n, r.left)
}

// take counts a run that was claimed for the target.
func (r *room) take() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left--
}

// refused closes the room of a target that cannot say how much it has. after is the pause that the
// target asked for.
func (r *room) refused(after time.Duration, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known && !r.open {
		return // this launch was on its way when another one was refused
	}
	r.known, r.open, r.left, r.tried = true, false, 0, 1
	r.pause = min(max(2*r.pause, firstPause), maxPause)
	r.until = now.Add(max(r.pause, after))
}

// took is called after each launch that was not refused for room. launched: the target has made the
// worker.
func (r *room) took(launched bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.open:
	case !launched:
		r.left = max(r.left, 1)
	case r.tried >= launches:
		r.known, r.open, r.tried, r.pause, r.full = false, false, 0, 0, ""
	default:
		r.tried *= 2
		r.left = r.tried
	}
}

// says records the target's words for a lack of room.
func (r *room) says(why string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full == "" {
		r.since = now
	}
	r.full = why
}

// none returns since when the target has had no room, and in which words; "" if it may have some.
func (r *room) none() (since time.Time, words string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known || r.left > 0 {
		return since, ""
	}
	return r.since, r.full
}

// watchRoom polls the free capacity of a target whose launch found no room, until it has plenty, so
// that no runs are claimed that it could not take. A target that cannot say is tried with few runs.
func (d *Dispatcher) watchRoom(ctx context.Context, t *Target, err error) {
	t.room.says(words(err), time.Now())
	c, ok := launcher.As[launcher.Capacity](t.Launcher)
	if !ok {
		after, _ := launcher.RetryAfter(err)
		t.room.refused(after, time.Now())
		return
	}
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	if t.room.known {
		return
	}
	t.room.known, t.room.left = true, 0
	go func() { // ends with ctx
		for ctx.Err() == nil {
			n, known, err := t.free(ctx, c)
			if err == nil && !known { // it cannot say now
				t.room.mu.Lock()
				t.room.known = false
				t.room.mu.Unlock()
				t.room.refused(0, time.Now())
				return
			}
			t.room.mu.Lock()
			t.room.left, t.room.known = n, err == nil && n < 2*launches
			done := !t.room.known
			if done {
				t.room.full = ""
			}
			t.room.mu.Unlock()
			if n == 0 && !done && d.Full != nil {
				d.Full(t.Name)
			}
			if done || n > 0 {
				d.free()
			}
			if done {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(roomInterval):
			}
		}
	}()
}

// free is how many workers of the default size fit, if the target knows.
func (t *Target) free(ctx context.Context, c launcher.Capacity) (n int, known bool, err error) {
	n, err = Call(ctx, t, func(ctx context.Context) (n int, err error) {
		n, known, err = c.Free(ctx, launcher.Resources{})
		return n, err
	})
	return n, known, err
}
