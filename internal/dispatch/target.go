package dispatch

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
)

// Target is a launcher of the instance, or one of the places behind a [launcher.Divider], with the
// limits and the health of the calls to it.
type Target struct {
	worker.Target
	Kind     *launcher.Kind
	Launcher launcher.Launcher
	// the only one on which its workers can be seen, if that is this machine; see [launcher.Local]
	// for the others
	Host  string
	Place string // "" for a launcher

	limit  *rate.Limiter
	budget *budget // of launches
	room   room
	left   atomic.Int32 // calls that go on although their time is over
	health health
	host   host

	mu     sync.Mutex
	used   time.Time // the last time that a run or a worker needed it
	places map[string]*Target
}

const (
	// launches is how many launches of one target go on at once; as many more may wait.
	launches = 16
	// callsPerSecond bounds the calls to one target. It is far above what a machine starts.
	callsPerSecond = 500
	// CallTimeout bounds one call to a target.
	CallTimeout = 30 * time.Second
	// placeKept is how long a place that nothing needs is still listed.
	placeKept = 10 * time.Minute
)

// NewTarget returns a launcher with the limits and the health of its calls.
func NewTarget(t worker.Target, kind *launcher.Kind, l launcher.Launcher) *Target {
	return &Target{
		Target: t, Kind: kind, Launcher: l,
		limit:  rate.NewLimiter(callsPerSecond, callsPerSecond),
		budget: newBudget(rate.Limit(cmp.Or(t.LaunchRate, callsPerSecond))),
	}
}

// String names the target: the launcher, and the place behind it.
func (t *Target) String() string {
	if t.Place == "" {
		return t.Name
	}
	return t.Name + " (" + t.Place + ")"
}

// For returns the target of a run that goes to the launcher t.
func (t *Target) For(r dagster.Run) *Target {
	if d, ok := launcher.As[launcher.Divider](t.Launcher); ok {
		return t.at(d.PlaceOfRun(json.RawMessage(r.Body())))
	}
	return t
}

// Of returns the target of a worker of the launcher t.
func (t *Target) Of(h launcher.Handle) *Target {
	if d, ok := launcher.As[launcher.Divider](t.Launcher); ok {
		return t.at(d.PlaceOf(h))
	}
	return t
}

func (t *Target) at(place string) *Target {
	if place == "" {
		return t
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.places[place]
	if p == nil {
		p = NewTarget(t.Target, t.Kind, t.Launcher)
		p.Place, p.Host = place, t.Host
		if t.places == nil {
			t.places = map[string]*Target{}
		}
		t.places[place] = p
	}
	p.use()
	return p
}

func (t *Target) use() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used = time.Now()
}

func (t *Target) idle() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.used)
}

// Places lists the places behind a launcher that were needed lately.
func (t *Target) Places() []*Target {
	t.mu.Lock()
	places := slices.Collect(maps.Values(t.places))
	t.mu.Unlock()
	places = slices.DeleteFunc(places, func(p *Target) bool { return p.idle() > placeKept })
	slices.SortFunc(places, func(a, b *Target) int { return strings.Compare(a.Place, b.Place) })
	return places
}

// LaunchRate returns how many launches per second the target may be given now. It adapts to the
// target's refusals.
func (t *Target) LaunchRate() float64 { return float64(t.budget.limit.Limit()) }

// Trouble returns what is wrong with the target.
func (t *Target) Trouble() Trouble { return t.health.trouble() }

// Call does one call to the target and keeps rate, deadline and health. Every call of a leader goes
// through it, except Watch and the checks of settings. A sick target gets one call at a time, after
// a pause; other calls fail with [launcher.Unreached]. If the launcher does not return in time, it
// is left to itself and the error is [launcher.ErrTransient].
func Call[T any](ctx context.Context, t *Target, f func(context.Context) (T, error)) (T, error) {
	var none T
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := t.limit.Wait(call); err != nil {
		return none, notAsked(ctx, t, fmt.Errorf("more than %d calls per second are waiting", callsPerSecond))
	}
	if n := t.left.Load(); n >= maxLeft {
		return none, notAsked(ctx, t, fmt.Errorf("%d calls continue although their deadline has passed", n))
	}
	tries, err := t.health.begin(time.Now())
	if err != nil {
		return none, notAsked(ctx, t, err)
	}
	out, err := inTime(call, t, f)
	t.health.end(tries, err, ctx.Err() != nil, time.Now())
	return out, err
}

// skipped is the reason why a call was not made.
type skipped struct{ error }

func (e skipped) Unwrap() error { return e.error }

// notAsked is the error of a call that was not made.
func notAsked(ctx context.Context, t *Target, why error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return launcher.Unreached(skipped{fmt.Errorf("%s was not called: %w", t, why)})
}

const (
	// afterTime is how long a call may take to notice that its time is over.
	afterTime = 2 * time.Second
	// maxLeft is how many calls of one target that did not notice may go on; with so many, it is
	// not asked any more.
	maxLeft = 100
)

// inTime waits for a call no longer than its context lasts, and a moment.
func inTime[T any](ctx context.Context, t *Target, f func(context.Context) (T, error)) (T, error) {
	var none T
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
		go func() { <-done; t.left.Add(-1) }() // ends with the call as well
		return none, fmt.Errorf("%w: the launcher continues a call whose deadline has passed: %w",
			launcher.ErrTransient, ctx.Err())
	}
}

// List returns the workers of a target that match a filter.
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

// words returns the text of an error for people: one line, without the names of our kinds of
// errors.
func words(err error) string {
	text := err.Error()
	for _, kind := range []error{launcher.ErrInvalid, launcher.ErrDenied, launcher.ErrCapacity, launcher.ErrTransient} {
		text = strings.TrimPrefix(strings.ReplaceAll(text, kind.Error()+": ", ""), kind.Error()+"\n")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		text = strings.ReplaceAll(text, context.DeadlineExceeded.Error(),
			fmt.Sprintf("no answer within %s", CallTimeout))
	}
	if text = strings.Join(strings.Fields(text), " "); len(text) > maxWords {
		text = strings.ToValidUTF8(text[:maxWords], "") + "…"
	}
	return text
}

// maxWords bounds the text of an error in a run's log or in the status, in bytes.
const maxWords = 1000
