// Package queue decides which queued runs may be launched now, and claims them.
//
// The decision is a pure function of the queue, the runs in flight and the limits ([Pick]); one loop
// carries it out whenever something has changed. Order and limits are Dagster's (dagster._daemon.run_coordinator,
// 1.13): creation order, then priority; max_concurrent_runs; limits per tag. Unlike
// Dagster, a tag limit is charged only by runs that are let through, so that a run that is held
// back for another reason does not hold back the next ones.
package queue

import (
	"cmp"
	"slices"

	"github.com/slipway-run/slipway/dagster"
)

// Limits of the queue.
type Limits struct {
	MaxConcurrentRuns int // -1: none
	Tags              []TagLimit
}

// TagLimit bounds the runs in flight that share a tag.
type TagLimit struct {
	Key, Value string // Value "" with PerValue false: all runs that have the key
	PerValue   bool   // one bound for each value
	Limit      int
}

// Entry is a queued run with its place in the order of creation.
type Entry struct {
	Run dagster.Run
	Row int64
}

// Pick gives the queued runs that may be launched now, in the order to launch them. Held says of a
// run that it must wait for a reason of its own.
func Pick(queued []Entry, active []dagster.Run, limits Limits, held func(dagster.Run) bool) []dagster.Run {
	free := len(queued)
	if limits.MaxConcurrentRuns >= 0 {
		free = min(free, limits.MaxConcurrentRuns-len(active))
	}
	if free <= 0 {
		return nil
	}
	order := slices.Clone(queued)
	slices.SortStableFunc(order, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.Run.Priority(), a.Run.Priority()), cmp.Compare(a.Row, b.Row))
	})
	tags := newCounter(limits.Tags)
	for _, r := range active {
		tags.add(r)
	}
	var picked []dagster.Run
	for _, e := range order {
		if len(picked) == free {
			break
		}
		if held(e.Run) || tags.full(e.Run) {
			continue
		}
		tags.add(e.Run)
		picked = append(picked, e.Run)
	}
	return picked
}

// counter counts the runs in flight under each tag limit.
type counter struct {
	limits []TagLimit
	counts []map[string]int // per limit, by value; a limit of all values counts under ""
}

func newCounter(limits []TagLimit) *counter {
	c := &counter{limits: limits, counts: make([]map[string]int, len(limits))}
	for i := range c.counts {
		c.counts[i] = map[string]int{}
	}
	return c
}

// bucket is where a run counts under a limit; false if the limit is not about it.
func (l TagLimit) bucket(r dagster.Run) (string, bool) {
	v, ok := r.Tags[l.Key]
	switch {
	case !ok:
		return "", false
	case l.PerValue:
		return v, true
	case l.Value == "":
		return "", true
	}
	return "", v == l.Value
}

func (c *counter) add(r dagster.Run) {
	for i, l := range c.limits {
		if b, ok := l.bucket(r); ok {
			c.counts[i][b]++
		}
	}
}

func (c *counter) full(r dagster.Run) bool {
	for i, l := range c.limits {
		if b, ok := l.bucket(r); ok && c.counts[i][b] >= l.Limit {
			return true
		}
	}
	return false
}
