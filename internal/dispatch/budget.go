package dispatch

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/slipway-run/slipway/launcher"
)

const (
	// slowest is how few launches per second a budget goes down to.
	slowest rate.Limit = 0.2
	// faster is what a launch that the target took adds to the rate, as a part of it.
	faster = 1.05
)

// budget is a token bucket for the launches of one target that learns from it: each refusal for the
// rate halves it, and keeps it closed for as long as the target said; each launch that is taken
// raises it a little, up to what it was.
type budget struct {
	most  rate.Limit
	limit *rate.Limiter

	mu     sync.Mutex
	closed time.Time // until then
}

func newBudget(most rate.Limit) *budget {
	return &budget{most: most, limit: rate.NewLimiter(most, max(1, int(most)))}
}

// throttled reports whether a target refused a call because of the rate of calls, and for how long
// it wants no further ones.
func throttled(err error) (time.Duration, bool) {
	after, ok := launcher.RetryAfter(err)
	return after, err != nil && (ok && !errors.Is(err, launcher.ErrCapacity) && !errors.Is(err, launcher.ErrPending) ||
		launcher.CauseOf(err) == launcher.CauseThrottled)
}

// learn adjusts the budget to the outcome of a launch.
func (b *budget) learn(err error, now time.Time) {
	after, slow := throttled(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case slow:
		b.limit.SetLimitAt(now, max(slowest, b.limit.Limit()/2))
		if until := now.Add(after); until.After(b.closed) {
			b.closed = until
		}
	case err == nil && b.limit.Limit() < b.most:
		b.limit.SetLimitAt(now, min(b.most, b.limit.Limit()*faster))
	}
}

// open reports whether a launch may be requested now, by what the target has said so far.
func (b *budget) open(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !now.Before(b.closed)
}
