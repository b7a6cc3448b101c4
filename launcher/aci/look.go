package aci

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"maps"
	"strings"
	"sync"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
	"golang.org/x/sync/errgroup"

	"github.com/slipway-run/slipway/launcher"
)

// worker is what this process knows about one group in addition to the service's current answer.
// Other processes work without it.
type worker struct {
	health  launcher.Health
	group   *arm.ContainerGroup // the last answer
	seen    time.Time           // time of that answer; zero: none yet, or no longer reliable
	written time.Time           // by a PUT of this process
	since   time.Time           // when this process first knew of it
	first   time.Time           // first start of the container
	stopped time.Time           // when it was first asked to stop
	asked   time.Time           // when it was last asked to stop
	deleted time.Time           // when its deletion was requested
	removed bool                // removed after its end
	death   *launcher.Health    // the health to report once the group is gone
	tail    []string            // last lines, saved before they were lost
	looking sync.Mutex          // serializes looks
}

// workers are the groups that this process deals with.
type workers struct {
	mu    sync.Mutex
	known map[string]*worker
	poll  time.Duration
	wake  chan struct{} // signals that there is a new group to look at
}

func (w *workers) init(poll time.Duration) {
	w.known, w.poll, w.wake = map[string]*worker{}, max(poll, 10*time.Millisecond), make(chan struct{}, 1)
}

func (w *workers) of(name string) *worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.known[name]
	if k == nil {
		k = &worker{since: time.Now()}
		w.known[name] = k
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return k
}

// put records that a group was written.
func (w *workers) put(name string, at time.Time) {
	k := w.of(name)
	w.mu.Lock()
	defer w.mu.Unlock()
	k.written, k.seen = at, time.Time{}
}

// found records a group as it was read.
func (w *workers) found(name string, g *arm.ContainerGroup, at time.Time) {
	k := w.of(name)
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.After(k.seen) {
		k.group = g
	}
}

// ended reports whether this process has removed one of some groups after its end.
func (w *workers) ended(cs []candidate) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range cs {
		if k := w.known[c.name]; k != nil && (k.removed || !k.deleted.IsZero()) {
			return true
		}
	}
	return false
}

// keepKnown is how long a removed worker is remembered, so that an older read is not believed.
const keepKnown = 10 * time.Minute

// prune forgets workers that are long gone.
func (w *workers) prune(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.known, func(_ string, k *worker) bool {
		gone := k.removed || k.health.Status == launcher.NotFound
		return gone && now.Sub(k.since) > keepKnown && now.Sub(k.deleted) > keepKnown && now.Sub(k.seen) > keepKnown
	})
}

// interval returns the pause between looks at a worker of some age.
func (w *workers) interval(age time.Duration, by time.Duration) time.Duration {
	switch {
	case age > 10*time.Minute:
		return 6 * w.poll * by
	case age > time.Minute:
		return 3 * w.poll * by
	}
	return w.poll * by
}

// stale is how long after a PUT a read may still miss the group.
const stale = time.Minute

// look returns a worker's health. It returns the known health if that is recent enough and fresh is
// false, else it sends one GET.
func (l *Launcher) look(ctx context.Context, name string, fresh bool) (launcher.Health, error) {
	w := l.workers.of(name)
	w.looking.Lock()
	defer w.looking.Unlock()
	now := time.Now()
	l.workers.mu.Lock()
	health, seen := w.health, w.seen
	every := l.workers.interval(now.Sub(w.since), l.api.pace.stretch())
	if health.Status.Ended() && w.death == nil {
		every = 10 * every // an end is final, even if the platform starts the container again
	}
	removed := w.removed
	l.workers.mu.Unlock()
	if removed {
		return launcher.Health{Status: launcher.NotFound, Message: "the container group has ended and was removed"}, nil
	}
	if !fresh && !seen.IsZero() && now.Sub(seen) < every {
		return health, nil
	}
	g, err := l.api.get(ctx, name)
	if err != nil && !errors.Is(err, launcher.ErrNotFound) {
		return launcher.Health{}, transient(err)
	}
	return l.took(ctx, name, w, g)
}

// took handles the answer to a GET and does what the answer requires. g is nil if the group does
// not exist.
func (l *Launcher) took(ctx context.Context, name string, w *worker, g *arm.ContainerGroup) (launcher.Health, error) {
	h, next := l.note(w, g, time.Now())
	switch next {
	case finishIt:
		return l.finish(ctx, name, w, g, h), nil
	case stopIt:
		if err := l.api.stop(ctx, name); err != nil && !errors.Is(err, errBusy) {
			l.log.WarnContext(ctx, "aci: a container group goes on although it was asked to stop; it will be again",
				"group", name, "err", err)
			l.workers.mu.Lock()
			w.asked = w.asked.Add(-tryAgain) // by the next look
			l.workers.mu.Unlock()
		}
	case readIt:
		h.Tail = l.lines(ctx, name, tailLines)
		l.workers.mu.Lock()
		defer l.workers.mu.Unlock()
		w.tail, w.health.Tail = h.Tail, h.Tail
	}
	return h, nil
}

// next is the action that an answer requires.
type next int

const (
	nothing  next = iota
	finishIt      // it can never succeed, and still runs
	stopIt        // it was asked to stop, and still runs
	readIt        // read its last lines before they are lost
)

// note records an answer.
func (l *Launcher) note(w *worker, g *arm.ContainerGroup, now time.Time) (launcher.Health, next) {
	l.workers.mu.Lock()
	defer l.workers.mu.Unlock()
	w.seen = now
	if g == nil {
		switch {
		case w.death != nil:
			w.health = *w.death
		case !w.written.IsZero() && now.Sub(w.written) < stale && w.deleted.IsZero() && w.group == nil:
			w.health = launcher.Health{Status: launcher.Starting, Phase: launcher.Accepted,
				Message: "accepted, and not visible yet"}
		default:
			w.health = launcher.Health{Status: launcher.NotFound, Message: "there is no such container group"}
		}
		return w.health, nothing
	}
	w.group = g
	h := w.moved(g, Health(g))
	if h.Status == launcher.Failed {
		h.Tail = w.tail
		if !w.stopped.IsZero() {
			h.Cause = launcher.CauseCanceled
		}
	}
	w.health = h
	if w.death == nil && w.stopped.IsZero() && w.deleted.IsZero() {
		w.death = l.deathOf(g, h, w)
	}
	switch {
	case w.death != nil && !h.Status.Ended():
		return h, finishIt
	case h.Status == launcher.Running && !w.asked.IsZero() && now.Sub(w.asked) > tryAgain:
		w.asked = now
		return h, stopIt
	case h.Status == launcher.Failed && w.tail == nil && w.deleted.IsZero():
		return h, readIt
	}
	return h, nothing
}

// moved recognizes a container that the platform has started again, if only its start time shows
// this.
func (w *worker) moved(g *arm.ContainerGroup, h launcher.Health) launcher.Health {
	start := h.Started
	if w.first.IsZero() && h.Status == launcher.Running {
		w.first = start
	}
	if w.first.IsZero() || h.Incarnation != "" || !start.After(w.first) {
		return h
	}
	if h.Status.Ended() {
		return ended(g, &arm.ContainerState{StartTime: &start, FinishTime: &h.Ended, ExitCode: new(int32)}, true)
	}
	h.Incarnation, h.Message = start.UTC().Format(time.RFC3339Nano), "the platform has started the container again"
	return h
}

// tailLines is the number of last lines in the health of an ended worker.
const tailLines = 20

// deathOf returns the final health of a worker that will never run, or that the platform has
// started again. It returns nil for any other worker.
func (l *Launcher) deathOf(g *arm.ContainerGroup, h launcher.Health, w *worker) *launcher.Health {
	dead := launcher.Health{Status: launcher.Failed, Ended: time.Now(), Message: h.Message}
	view := containerOf(g).InstanceView
	if h.Incarnation != "" { // whatever runs now, the worker is dead; the gate stops a second one
		state := (*arm.ContainerState)(nil)
		if view != nil {
			state = view.PreviousState
		}
		if state == nil {
			finish := time.Now().UTC()
			state = &arm.ContainerState{StartTime: &w.first, FinishTime: &finish, ExitCode: new(int32)}
		}
		dead = ended(g, state, true)
		return &dead
	}
	if h.Status != launcher.Starting || g.Properties == nil {
		return nil
	}
	var events []*arm.Event
	if view != nil {
		events = view.Events
	}
	pull, start := pullFailed(events), failedStart(events)
	switch {
	case start != nil:
		dead.Cause = launcher.CauseExit
	case pull != nil && (final(val(pull.Message)) ||
		val(pull.LastTimestamp).Sub(val(pull.FirstTimestamp)) > l.c.PullPatience):
		dead.Cause = launcher.CauseImagePull
	case val(g.Properties.ProvisioningState) == "Failed":
		dead.Cause = launcher.CauseUnschedulable
		if pull != nil {
			dead.Cause = launcher.CauseImagePull
		}
		if strings.Contains(h.Message, "quota") {
			dead.Cause = launcher.CauseQuota
		}
	default:
		return nil
	}
	return &dead
}

// final reports whether a registry's text means that its answer will not change.
func final(text string) bool {
	for _, sign := range []string{"manifest unknown", "not found", "access denied",
		"unauthorized", "authentication required", "denied:", "no matching manifest", "invalid reference"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// tryAgain is the pause after which a stop or a deletion without effect is requested again.
const tryAgain = 10 * time.Second

// finish ends the group of a worker that can never succeed. If the platform has started it again,
// finish records how the worker ended and stops the group. If it never ran, finish deletes the
// group, because it may still start. Until that is done the worker counts as alive.
func (l *Launcher) finish(ctx context.Context, name string, w *worker, g *arm.ContainerGroup,
	h launcher.Health) launcher.Health {
	l.workers.mu.Lock()
	last := w.deleted
	if w.stopped.After(last) {
		last = w.stopped
	}
	due := time.Since(last) > tryAgain
	death := *w.death
	l.workers.mu.Unlock()
	if due {
		lines := l.lines(ctx, name, tailLines)
		var err error
		if h.Incarnation != "" {
			err = l.markEnd(ctx, name, g, death)
			if err == nil {
				err = l.api.stop(ctx, name)
			}
		} else {
			err = l.api.delete(ctx, name)
		}
		l.workers.mu.Lock()
		if len(lines) > 0 {
			w.tail = lines
			w.death.Tail = lines
		}
		if err == nil || errors.Is(err, errBusy) {
			if h.Incarnation == "" {
				w.deleted = time.Now()
			} else {
				w.seen = time.Time{}
			}
		}
		l.workers.mu.Unlock()
		if err != nil {
			l.log.WarnContext(ctx, "aci: a container group that is of no use was not ended; it will be", "group", name,
				"err", err)
		}
	}
	h.Message = cut("being ended: "+h.Message, 1000)
	return h
}

// markEnd records in a group's tags how its worker ended.
func (l *Launcher) markEnd(ctx context.Context, name string, g *arm.ContainerGroup, h launcher.Health) error {
	if _, ok := g.Tags[endTag]; ok {
		return nil
	}
	text, err := json.Marshal(endOf(h))
	if err != nil {
		return err
	}
	tags := maps.Clone(g.Tags)
	s := string(text)
	tags[endTag] = &s
	return l.api.patch(ctx, name, tags)
}

// Health implements [launcher.Launcher].
func (l *Launcher) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	name, err := l.name(h)
	if err != nil {
		return launcher.Health{Status: launcher.NotFound, Message: err.Error()}, nil //nolint:nilerr // it is the answer
	}
	return l.look(ctx, name, false)
}

// HealthOf implements [launcher.Batcher]. It sends one GET for each group, because a list does not
// contain the state of groups.
func (l *Launcher) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	return launcher.HealthOfEach(ctx, l, hs, atOnce)
}

// atOnce is the number of groups that are read at the same time.
const atOnce = 8

// List implements [launcher.Lister].
func (l *Launcher) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		if f.Runs != nil && len(f.Runs) == 0 {
			return
		}
		groups, err := l.api.list(ctx)
		if err != nil {
			yield(launcher.Worker{}, transient(err))
			return
		}
		var found []launcher.Worker
		for _, g := range groups {
			if w, ok := l.workerOf(g); ok && (f.Instance == "" || w.Instance == f.Instance) && f.Wants(w.ID.Run) {
				found = append(found, w)
			}
		}
		eg, look := errgroup.WithContext(ctx)
		eg.SetLimit(atOnce)
		for i, w := range found {
			eg.Go(func() (err error) {
				found[i].Health, err = l.look(look, string(w.Handle), false)
				return err
			})
		}
		if err := eg.Wait(); err != nil {
			yield(launcher.Worker{}, err)
			return
		}
		for _, w := range found {
			if w.Health.Status != launcher.NotFound && !yield(w, nil) { // else it was removed in between
				return
			}
		}
	}
}

// relist is how often Watch looks for groups that other processes have made.
const relist = time.Minute

// Watch implements [launcher.Watcher]. Azure reports no changes by itself, so Watch looks at each
// group when its next look is due.
func (l *Launcher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		ids := map[string]launcher.Worker{}
		told := map[string]launcher.Health{}
		report := func(w launcher.Worker) bool {
			last, ok := told[string(w.Handle)]
			if ok && last.Status == w.Health.Status && last.Phase == w.Health.Phase &&
				last.Incarnation == w.Health.Incarnation && last.Message == w.Health.Message {
				return true
			}
			told[string(w.Handle)] = w.Health
			return yield(w, nil)
		}
		listed := func() bool {
			for w, err := range l.List(ctx, launcher.Filter{}) {
				if err != nil {
					if ctx.Err() == nil {
						yield(launcher.Worker{}, err)
					}
					return false
				}
				ids[string(w.Handle)] = w
				if !report(w) {
					return false
				}
			}
			return true
		}
		if !listed() || !yield(launcher.Worker{Synced: true}, nil) {
			return
		}
		last := time.Now()
		for {
			next := min(l.workers.poll, time.Second)
			select {
			case <-ctx.Done():
				return
			case <-l.workers.wake:
			case <-time.After(next):
			}
			if time.Since(last) > relist {
				if !listed() {
					return
				}
				last = time.Now()
				l.workers.prune(last)
			}
			for _, name := range l.workers.names() {
				h, err := l.look(ctx, name, false)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					l.log.DebugContext(ctx, "aci: a container group could not be looked at; it will be", "group", name,
						"err", err)
					continue
				}
				w, ok := ids[name]
				if !ok {
					if w, ok = l.known(name); !ok {
						continue // nothing is known about it yet
					}
					ids[name] = w
				}
				w.Health = h
				if !report(w) {
					return
				}
			}
			maps.DeleteFunc(told, func(name string, _ launcher.Health) bool { return !l.workers.has(name) })
		}
	}
}

func (w *workers) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]string, 0, len(w.known))
	for name, k := range w.known {
		if !k.removed && (k.death != nil || !k.health.Status.Ended()) {
			out = append(out, name)
		}
	}
	return out
}

func (w *workers) has(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known[name] != nil
}

// known returns the worker of a group as it was last read.
func (l *Launcher) known(name string) (launcher.Worker, bool) {
	l.workers.mu.Lock()
	defer l.workers.mu.Unlock()
	k := l.workers.known[name]
	if k == nil || k.group == nil {
		return launcher.Worker{}, false
	}
	return l.workerOf(k.group)
}
