package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/worker"
)

// Target is a launcher of the instance with what guards the calls to it.
type Target struct {
	worker.Target
	Kind     *launcher.Kind
	Launcher launcher.Launcher

	limit   *rate.Limiter
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
		limit: rate.NewLimiter(callsPerSecond, callsPerSecond),
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

// Sick says whether the target's calls failed so often that it is left alone for now.
func (t *Target) Sick() bool { return t.breaker.State() == gobreaker.StateOpen }

// Call does one call to the target: the one place where rate, deadline and breaker are. A sick target is not
// asked; the error is [launcher.ErrTransient] then.
func (t *Target) Call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := t.limit.Wait(ctx); err != nil {
		return errors.Join(launcher.ErrTransient, err)
	}
	_, err := t.breaker.Execute(func() (any, error) { return nil, f(ctx) })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return errors.Join(launcher.ErrTransient, err)
	}
	return err
}
