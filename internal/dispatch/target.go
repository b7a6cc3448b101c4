package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
)

// Target is a launcher of the instance with what guards the calls to it.
type Target struct {
	worker.Target
	Kind     *launcher.Kind
	Launcher launcher.Launcher
	Host     string // the only one on which its workers can be seen; "" if they can be seen from everywhere

	limit   *rate.Limiter
	budget  *budget // of launches
	room    room
	left    atomic.Int32 // calls that go on although their time is over
	breaker *gobreaker.CircuitBreaker[any]
}

const (
	// launches is how many launches of one target go on at once; as many more may wait.
	launches = 16
	// callsPerSecond bounds the calls to one target. It is far above what a machine starts.
	callsPerSecond = 500
	// CallTimeout bounds one call to a target.
	CallTimeout = 30 * time.Second
	// sickAfter is how many calls in a row must fail for a target to be sick.
	sickAfter = 5
	// sickFor is how long a sick target is left alone before one call tries it.
	sickFor = 10 * time.Second
)

// NewTarget puts the guards around a launcher.
func NewTarget(t worker.Target, kind *launcher.Kind, l launcher.Launcher) *Target {
	return &Target{
		Target: t, Kind: kind, Launcher: l,
		limit: rate.NewLimiter(callsPerSecond, callsPerSecond), budget: newBudget(rate.Limit(cmp.Or(t.LaunchRate, callsPerSecond))),
		breaker: gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
			Name: t.Name, Timeout: sickFor,
			ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= sickAfter },
			IsSuccessful: answered,
		}),
	}
}

// answered says whether an error shows that the target works: it said something of the request, not of itself.
func answered(err error) bool {
	return err == nil || errors.Is(err, launcher.ErrInvalid) || errors.Is(err, launcher.ErrCapacity) ||
		errors.Is(err, launcher.ErrNotFound) || errors.Is(err, launcher.ErrPending) || errors.Is(err, context.Canceled)
}

// LaunchRate is how many launches per second the target takes now, as far as its refusals have taught.
func (t *Target) LaunchRate() float64 { return float64(t.budget.limit.Limit()) }

// Sick says whether the target's calls failed so often that it is left alone for now.
func (t *Target) Sick() bool { return t.breaker.State() == gobreaker.StateOpen }

// Call does one call to the target: the one place where rate, deadline and breaker are. A sick target is not
// asked; the error is [launcher.ErrTransient] then, and also if the launcher goes on although its time is over: then it is left to itself.
func Call[T any](ctx context.Context, t *Target, f func(context.Context) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := t.limit.Wait(ctx); err != nil {
		return none, errors.Join(launcher.ErrTransient, err)
	}
	out, err := t.breaker.Execute(func() (any, error) { return inTime(ctx, t, f) })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		err = errors.Join(launcher.ErrTransient, err)
	}
	got, _ := out.(T)
	return got, err
}

const (
	// afterTime is how long a call may take to notice that its time is over.
	afterTime = 2 * time.Second
	// maxLeft is how many calls of one target that did not notice may go on; with so many, it is not asked any more.
	maxLeft = 100
)

// inTime waits for a call no longer than its context lasts, and a moment.
func inTime[T any](ctx context.Context, t *Target, f func(context.Context) (T, error)) (T, error) {
	var none T
	if n := t.left.Load(); n >= maxLeft {
		return none, fmt.Errorf("%w: %d calls go on although their time is over", launcher.ErrTransient, n)
	}
	type answer struct {
		out T
		err error
	}
	done := make(chan answer, 1)
	go func() { // ends with the call, however long that takes
		out, err := f(ctx)
		done <- answer{out, err}
	}()
	select {
	case a := <-done:
		return a.out, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-done:
		return a.out, a.err
	case <-time.After(afterTime):
		t.left.Add(1)
		go func() { <-done; t.left.Add(-1) }() // likewise
		return none, fmt.Errorf("%w: the launcher goes on with a call whose time is over: %w", launcher.ErrTransient, ctx.Err())
	}
}

// List gives the workers of a target that fit a filter.
func List(ctx context.Context, t *Target, lister launcher.Lister, f launcher.Filter) ([]launcher.Worker, error) {
	return Call(ctx, t, func(ctx context.Context) (all []launcher.Worker, err error) {
		for w, err := range lister.List(ctx, f) {
			if err != nil {
				return nil, err
			}
			all = append(all, w)
		}
		return all, nil
	})
}
