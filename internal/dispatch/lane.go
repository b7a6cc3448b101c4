package dispatch

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// lane holds the launches of one target.
type lane struct {
	target *Target
	slots  chan struct{} // launches at once
	open   atomic.Int32  // jobs, except paused ones that certainly have no worker

	mu   sync.Mutex
	told map[waiting]bool // reasons to wait that the logs of runs have already
}

// waiting is a run that waits for a target that is sick, or for room.
type waiting struct {
	run  string
	sick bool
}

// maxTold bounds lane.told.
const maxTold = 100_000

// laneOf returns the lane of a target, made if there is none.
func (d *Dispatcher) laneOf(t *Target) *lane {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lanes[t.String()]
	if l == nil {
		l = &lane{target: t, slots: make(chan struct{}, launches), told: map[waiting]bool{}}
		if t.Place != "" {
			l.slots = make(chan struct{}, 1)
		}
		d.lanes[t.String()] = l
	}
	return l
}

// find returns the lane of a name that [Dispatcher.Target] gave; nil if there is none.
func (d *Dispatcher) find(name string) *lane {
	if t := d.Targets[name]; t != nil {
		return d.laneOf(t)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lanes[name]
}

// Target names the target of a run that goes to a launcher.
func (d *Dispatcher) Target(launcher string, r storage.Run) string {
	t := d.Targets[launcher]
	if t == nil {
		return launcher
	}
	return d.laneOf(t.For(r.Run)).target.String()
}

// Room returns how many more launches a target may be given now, and whether it is sick, so that
// other targets may get its runs.
func (d *Dispatcher) Room(target string) (room int, sick bool) {
	l := d.find(target)
	if l == nil {
		return 0, true
	}
	t, now, open := l.target, time.Now(), int(l.open.Load())
	t.use()
	most, sick := t.health.takes(now)
	switch {
	case sick && t.Place != "", !t.located(): // a ping tries it, not a run
		if most != 0 {
			select {
			case d.pings <- l:
			default: // another one first
			}
		}
		return 0, sick
	case most >= 0 && open >= most:
		return 0, sick
	case !t.budget.open(now):
		return 0, false
	case most >= 0:
		return t.room.free(most-open, now), false
	}
	return t.room.free(max(0, 2*cap(l.slots)-open), now), false
}

// ping asks a sick place whether it answers again, or a target on which host it sees workers.
func (d *Dispatcher) ping(ctx context.Context, l *lane) {
	t, sick := l.target, l.target.Trouble().Sick
	many, ok := launcher.As[launcher.Divider](t.Launcher)
	var err error
	switch {
	case !t.located():
		err = t.Locate(ctx)
	case ok:
		_, err = Call(ctx, t, func(ctx context.Context) (none struct{}, err error) {
			return none, many.Ping(ctx, t.Place)
		})
	default:
		return
	}
	if err != nil {
		return
	}
	if sick {
		d.Log.InfoContext(ctx, "a target answers again", "launcher", t.Name, "target", t.Place)
	}
	d.free()
}

// String names the lane's target in texts for people.
func (l *lane) String() string {
	if l.target.Place == "" {
		return fmt.Sprintf("launcher %q", l.target.Name)
	}
	return fmt.Sprintf("launcher %q at %s", l.target.Name, l.target.Place)
}

// ill is what a run's log says while the run waits for a sick target.
func (l *lane) ill(t Trouble) string {
	return fmt.Sprintf(
		"[Slipway] The run waits in the queue: %s has failed since %s, and is tried again at least every %s: %s",
		l, clock(t.Since), sickFor, t.Err)
}

// noRoom is what a run's log says while the run waits for room.
func (l *lane) noRoom(since time.Time, full string) string {
	return fmt.Sprintf(
		"[Slipway] The run waits in the queue: %s has had no room since %s, and is tried again at least every %s: %s",
		l, clock(since), maxPause, full)
}

// tell reports whether the log of a run still has to say why the run waits. The caller writes it.
func (l *lane) tell(run string, sick bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := waiting{run, sick}
	if l.told[w] {
		return false
	}
	if len(l.told) >= maxTold {
		clear(l.told)
	}
	l.told[w] = true
	return true
}

// forget drops what the lane remembers of a run.
func (l *lane) forget(run string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.told, waiting{run, true})
	delete(l.told, waiting{run, false})
}

// tellAfter is how long a run must have waited for a target before its log says so.
const tellAfter = 5 * time.Second

// waitNote is a text for the log of a queued run.
type waitNote struct {
	run  dagster.Run
	text string
}

// Waits is called for queued runs that wait for a target. If the target is sick or full for some
// time, the run's log says so, once. Waits returns false while it is too early for that, or there
// is too much to write already. It does not block.
func (d *Dispatcher) Waits(r storage.Run, target string) bool {
	l := d.find(target)
	if l == nil {
		return true
	}
	ill := l.target.Trouble()
	since, full := l.target.room.none()
	if ill.Sick {
		since = ill.Since
	}
	if !ill.Sick && full == "" || time.Since(since) < tellAfter {
		return false
	}
	if !l.tell(r.ID, ill.Sick) {
		return true
	}
	text := l.noRoom(since, full)
	if ill.Sick {
		text = l.ill(ill)
	}
	select {
	case d.waits <- waitNote{r.Run, text}:
		return true
	default: // the next call tries again
		l.forget(r.ID)
		return false
	}
}

// note writes the notes of waiting runs.
func (d *Dispatcher) note(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-d.waits:
			d.move(ctx, storage.Transition{
				Run: n.run.ID, From: []dagster.Status{dagster.Queued},
				Events: []dagster.Event{dagster.NewEngineEvent(n.run, time.Now(), n.text, nil, nil)},
			})
		}
	}
}
