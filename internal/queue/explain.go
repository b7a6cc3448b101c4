package queue

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Rule is one rule that holds a queued run back, and the runs that hold the places of a limit, the
// oldest first.
type Rule struct {
	Rule    Reason   `json:"rule"`
	What    string   `json:"what"`
	Holders []Holder `json:"holders,omitempty"`
}

// Hold is one rule, and the queued runs that it holds back.
type Hold struct {
	Rule    Reason   `json:"rule"`
	What    string   `json:"what"`
	Runs    int      `json:"runs"`
	Holders []Holder `json:"holders,omitempty"`
}

// Holder is a run in flight that holds a place.
type Holder struct {
	RunID string    `json:"run_id"`
	Job   string    `json:"job"`
	Since time.Time `json:"since,omitzero"` // when it started; zero while it has not
}

// Holders are the runs in flight of which a predicate holds: first the ones that have not started,
// then the oldest.
func Holders(active []Entry, holds func(Entry) bool) []Holder {
	var out []Holder
	for _, e := range active {
		if holds(e) {
			out = append(out, Holder{e.Run.ID, e.Run.Job, e.Start})
		}
	}
	slices.SortFunc(out, func(a, b Holder) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.RunID, b.RunID))
	})
	return out
}

// Explain returns a run's place in the order in which runs leave the queue, from 1 (0 if the run is
// not queued), and every limit that holds it back. [Pick] stops at the first limit; Explain does
// not, so that a user does not wait for one limit only to meet the next.
func Explain(run string, queued, active []Entry, limits Limits, pools map[string]Pool,
	now time.Time) (place int, rules []Rule) {
	order := byPriority(queued)
	i := slices.IndexFunc(order, func(e Entry) bool { return e.Run.ID == run })
	if i < 0 {
		return 0, nil
	}
	r := order[i].Run
	hold := func(why Reason, holds func(Entry) bool, format string, args ...any) {
		rules = append(rules, Rule{why, fmt.Sprintf(format, args...), Holders(active, holds)})
	}
	every := func(Entry) bool { return true }
	if limits.MaxConcurrentRuns >= 0 && len(active) >= limits.MaxConcurrentRuns {
		hold(Limit, every, "max_concurrent_runs is reached: %d of %d in flight", len(active), limits.MaxConcurrentRuns)
	}
	tags := newCounter(limits.Tags, active)
	for n, l := range tags.limits {
		if bucket, ok := l.bucket(r); ok && tags.counts[n][bucket] >= l.Limit {
			hold(TagFull, func(e Entry) bool { b, ok := l.bucket(e.Run); return ok && b == bucket },
				"tag_concurrency_limits, %s: %d of %d in flight", l.about(r), tags.counts[n][bucket], l.Limit)
		}
	}
	if inPools := newPoolCounter(limits.Pools, pools, active, now); inPools.full(r) {
		for _, pool := range limits.Pools.names(r) {
			if inPools.none(pool) {
				uses := func(e Entry) bool { return e.Run.Pools != nil && slices.Contains(e.Run.Pools.All, pool) }
				hold(PoolFull, uses, "pool %s has no free slot (limit %d)", pool, pools[pool].Slots)
			}
		}
	}
	return i + 1, rules
}

// about names the tag that a limit counts for a run.
func (l TagLimit) about(r dagster.Run) string {
	if l.Value == "" && !l.PerValue {
		return l.Key
	}
	return l.Key + "=" + r.Tags[l.Key]
}
