package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

// Further reasons to wait; package queue has the others.
const (
	noLeader queue.Reason = "no_leader"
	notOurs  queue.Reason = "queue.only"
)

// Wait is where a queued run waits, and why.
type Wait struct {
	Place  int          `json:"place"`          // in the order in which runs leave the queue, from 1
	Queued int          `json:"queued"`         // runs in that order
	Rules  []queue.Rule `json:"rules"`          // all that hold the run back
	Last   string       `json:"last,omitempty"` // the result of its last launch, if there was one
}

// Explain returns why a queued run waits. It reads the storage and the settings, and asks the
// leading daemon if it can be reached. The limits are those of the present settings.
func Explain(ctx context.Context, in *instance.Instance, s storage.Store, r storage.Run) (Wait, error) {
	name, err := Name(ctx, in, s)
	if err != nil {
		return Wait{}, err
	}
	st, _, err := FullStatus(ctx, in, name, s)
	if err != nil {
		return Wait{}, err
	}
	w, active, err := waits(ctx, in, s, r.ID)
	if err != nil {
		return w, err
	}
	hold := func(why queue.Reason, format string, args ...any) {
		w.Rules = append(w.Rules, queue.Rule{Rule: why, What: fmt.Sprintf(format, args...)})
	}
	if st.Leader.Lease != leaseHeld {
		hold(noLeader, "no daemon leads this instance: start slipway daemon")
	}
	if !in.Settings.Queue.Only.Fits(r.Run) {
		hold(notOurs, "queue.only in slipway.yaml leaves this run to dagster-daemon")
	}
	for _, p := range st.Pauses {
		if p.HoldsRun(r.Run) {
			hold(queue.Paused, "%s", paused(p))
		}
	}
	for _, name := range Route(in)(r) {
		for _, p := range st.Pauses {
			if p.HoldsLauncher(name) {
				hold(queue.Paused, "%s", paused(p))
			}
		}
		for _, l := range st.Launchers {
			switch {
			case l.Name != name:
			case l.Sick:
				hold(queue.Sick, "launcher %s is sick: its calls keep failing", name)
			case l.Busy:
				hold(queue.Busy, "launcher %s has no room for another run", name)
				w.Rules[len(w.Rules)-1].Holders = queue.Holders(active, func(e queue.Entry) bool {
					return e.Launcher == name
				})
			}
		}
	}
	w.Last, err = lastLaunch(ctx, s, r)
	return w, err
}

// waits applies the queue's limits. It returns the runs in flight as well.
func waits(ctx context.Context, in *instance.Instance, s storage.Store, run string) (Wait, []queue.Entry, error) {
	q, err := in.QueueLimits()
	if err != nil {
		return Wait{}, nil, err
	}
	runs, err := s.Runs(ctx, storage.Filter{Statuses: dagster.UnfinishedStatuses()})
	if err != nil {
		return Wait{}, nil, err
	}
	var queued, active []queue.Entry
	for _, r := range runs {
		e := queue.Entry{Run: r.Run, Row: r.Row, Start: r.Start}
		if r.Launch != nil {
			e.Launcher = r.Launch.Launcher
		}
		switch {
		case r.Status.Active():
			active = append(active, e)
		case r.Broken == nil && (r.ID == run || q.Only.Fits(r.Run)):
			queued = append(queued, e)
		}
	}
	stored, err := s.Pools(ctx)
	if err != nil {
		return Wait{}, nil, err
	}
	pools := map[string]queue.Pool{}
	for name, p := range stored {
		pools[name] = queue.Pool{Slots: p.Slots, Pending: p.Pending}
	}
	w := Wait{Queued: len(queued), Rules: []queue.Rule{}}
	place, rules := queue.Explain(run, queued, active, limitsOf(q), pools, time.Now())
	w.Place, w.Rules = place, append(w.Rules, rules...)
	return w, active, nil
}

// paused says who paused what until when, and why.
func paused(p queue.Pause) string {
	text := fmt.Sprintf("%s has been paused by %s since %s", p, p.By, p.Since.Local().Format(time.DateTime))
	if !p.Until.IsZero() {
		text += " until " + p.Until.Local().Format(time.DateTime)
	}
	if p.Why != "" {
		text += ": " + p.Why
	}
	return text
}

// lastLaunch returns what the log says of a launch after which the run went back to the queue.
func lastLaunch(ctx context.Context, s storage.Store, r storage.Run) (string, error) {
	if r.Last == nil {
		return "", nil
	}
	events, err := s.Events(ctx, r.ID, dagster.EngineEvent)
	for _, e := range slices.Backward(events) {
		if text, ok := strings.CutPrefix(e.Message, "[Slipway] "); ok && !e.Time.Before(r.Last.At) {
			return fmt.Sprintf("%s (attempt %d, launcher %s): %s", e.Time.Local().Format(time.DateTime), r.Last.Attempt,
				r.Last.Launcher, text), err
		}
	}
	return "", err
}
