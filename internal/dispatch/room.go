package dispatch

import (
	"context"
	"sync"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

// roomInterval is how often a target that had no room is asked how much it has.
const roomInterval = 5 * time.Second

// room is what is known of a target's room since a launch found none. Until a launch does, nothing is known and everything is tried.
type room struct {
	mu    sync.Mutex
	known bool
	left  int
}

// free is how many more runs may be claimed for the target, at most n.
func (r *room) free(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known {
		return n
	}
	return min(n, r.left)
}

// take notes that one was.
func (r *room) take() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left--
}

// watchRoom asks a target, of which a launch said that it has no room, how much it has, until there is plenty, so that runs are not claimed in vain. A target that
// cannot say is tried.
func (d *Dispatcher) watchRoom(ctx context.Context, t *Target) {
	c, ok := launcher.As[launcher.Capacity](t.Launcher)
	if !ok {
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
			t.room.mu.Lock()
			t.room.left, t.room.known = n, known && err == nil && n < 2*launches
			done := !t.room.known
			t.room.mu.Unlock()
			if n == 0 && !done && d.Full != nil {
				d.Full(t.Name)
			}
			if done || n > 0 {
				select {
				case d.freed <- struct{}{}:
				default:
				}
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
