// Package queue decides which queued runs may be launched now, and claims them.
//
// The decision does no I/O: it depends on the queue, the runs in flight, the limits and the pools.
// The type index makes it, so that it costs what has changed; the pure function [Pick] specifies
// it. One loop carries it out whenever something has changed. Order and limits are Dagster's
// (dagster._daemon.run_coordinator, 1.13): creation order, then priority; max_concurrent_runs;
// limits per tag; pools. Unlike Dagster, a limit is charged only by runs that are let through, so
// that a run that is held back for another reason does not hold back the next ones; [ChargeDagster]
// is Dagster's own way.
package queue

import (
	"cmp"
	"math/big"
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Limits of the queue.
type Limits struct {
	MaxConcurrentRuns int // -1: none
	Tags              []TagLimit
	Pools             PoolLimits
	Charge            Charge
	Page              int // of [ChargeDagster]: how many queued runs Dagster reads at once; 0 is its default
}

// Charge is which runs count against limits of tags and pools within one decision.
type Charge string

// The ways to charge.
const (
	ChargeAdmitted Charge = "admitted" // the runs that may go
	// the runs that passed the tag limits, even if a pool or a sick launcher holds them back
	ChargeDagster Charge = "dagster"
)

// defaultPage is Dagster's page of queued runs (DAGSTER_RUN_QUEUE_PAGE_SIZE).
const defaultPage = 100

// TagLimit bounds the runs in flight that share a tag.
type TagLimit struct {
	Key, Value string // Value "" with PerValue and Empty false: all runs that have the key
	PerValue   bool   // one bound for each value
	Empty      bool   // the runs whose tag has the value ""
	Limit      int
}

// Entry is a queued run, or one in flight, with its place in the order of creation.
type Entry struct {
	Run   dagster.Run
	Row   int64
	Start time.Time // of one in flight; zero while it has not started
	// Launcher is that of a run in flight; only explanations need it.
	Launcher string
}

// Reason is why a queued run waits.
type Reason string

// The reasons. Those from Paused on come from an operator, a launcher, or another dequeuer.
const (
	Limit    Reason = "max_concurrent_runs"
	TagFull  Reason = "tag_limit"
	PoolFull Reason = "pool"
	Paused   Reason = "paused"
	Backoff  Reason = "backoff" // its launcher had no room for it a moment ago
	Busy     Reason = "launcher_busy"
	Sick     Reason = "launcher_sick"
	Rival    Reason = "dagster_daemon" // it dequeues as well, or may do so
)

// Decision lists the queued runs that may be launched now, in the order to launch them, and how
// many runs wait for which reason. There is no notice when a full pool has places again.
type Decision struct {
	Picked []dagster.Run
	Waits  map[Reason]int
}

// Pick decides. Held returns a further reason for which a run must wait, "" for none. Pools has the
// pools that have a limit.
func Pick(queued, active []Entry, limits Limits, pools map[string]Pool, now time.Time,
	held func(dagster.Run) Reason) Decision {
	d := Decision{Waits: map[Reason]int{}}
	free := len(queued)
	if limits.MaxConcurrentRuns >= 0 {
		free = min(free, limits.MaxConcurrentRuns-len(active))
	}
	if free <= 0 {
		if len(queued) > 0 {
			d.Waits[Limit] = len(queued)
		}
		return d
	}
	if limits.Charge == ChargeDagster {
		d.asDagster(queued, active, limits, pools, now, held, free)
		return d
	}
	tags, inPools := newCounter(limits.Tags, active), newPoolCounter(limits.Pools, pools, active, now)
	for i, e := range byPriority(queued) {
		if len(d.Picked) == free {
			if more := len(queued) - i; more > 0 {
				d.Waits[Limit] += more
			}
			break
		}
		switch {
		case tags.full(e.Run):
			d.Waits[TagFull]++
		case inPools.full(e.Run):
			d.Waits[PoolFull]++
		default:
			if why := held(e.Run); why != "" {
				d.Waits[why]++
				continue
			}
			tags.add(e.Run)
			inPools.add(e.Run)
			d.Picked = append(d.Picked, e.Run)
		}
	}
	return d
}

// asDagster decides page by page, with fresh counts for each, in which a run that is dropped counts
// for tags.
func (d *Decision) asDagster(queued, active []Entry, limits Limits, pools map[string]Pool, now time.Time,
	held func(dagster.Run) Reason, free int) {
	page := limits.Page
	if page == 0 {
		page = defaultPage
	}
	inOrder := slices.SortedStableFunc(slices.Values(queued), func(a, b Entry) int { return cmp.Compare(a.Row, b.Row) })
	var batch []Entry
	for next := range slices.Chunk(inOrder, page) {
		tags, inPools := newCounter(limits.Tags, active), newPoolCounter(limits.Pools, pools, active, now)
		var kept []Entry
		for _, e := range byPriority(append(batch, next...)) {
			if tags.full(e.Run) {
				d.Waits[TagFull]++
				continue
			}
			tags.add(e.Run)
			if inPools.full(e.Run) {
				d.Waits[PoolFull]++
				continue
			}
			inPools.add(e.Run)
			if why := held(e.Run); why != "" {
				d.Waits[why]++
				continue
			}
			kept = append(kept, e)
		}
		batch = kept[:min(free, len(kept))]
		if more := len(kept) - len(batch); more > 0 {
			d.Waits[Limit] += more
		}
	}
	for _, e := range batch {
		d.Picked = append(d.Picked, e.Run)
	}
}

// byPriority orders runs as Dagster launches them.
func byPriority(runs []Entry) []Entry {
	priority := make(map[string]*big.Int, len(runs)) // read once each
	for _, e := range runs {
		priority[e.Run.ID] = e.Run.Priority()
	}
	return slices.SortedStableFunc(slices.Values(runs), func(a, b Entry) int {
		return cmp.Or(priority[b.Run.ID].Cmp(priority[a.Run.ID]), cmp.Compare(a.Row, b.Row))
	})
}

// counter counts the runs in flight under each tag limit.
type counter struct {
	limits []TagLimit
	counts []map[string]int // per limit, by value; a limit of all values counts under ""
}

func newCounter(limits []TagLimit, active []Entry) *counter {
	c := &counter{limits: lastOfEach(limits)}
	for range c.limits {
		c.counts = append(c.counts, map[string]int{})
	}
	for _, e := range active {
		c.add(e.Run)
	}
	return c
}

// lastOfEach drops limits that a later one replaces: of two about the same, the last holds, as in
// Dagster.
func lastOfEach(limits []TagLimit) (last []TagLimit) {
	for i, l := range limits {
		if !slices.ContainsFunc(limits[i+1:], func(o TagLimit) bool {
			return o.Key == l.Key && o.Value == l.Value && o.PerValue == l.PerValue && o.Empty == l.Empty
		}) {
			last = append(last, l)
		}
	}
	return last
}

// bucket is where a run counts under a limit; false if the limit is not about it.
func (l TagLimit) bucket(r dagster.Run) (string, bool) {
	v, ok := r.Tags[l.Key]
	switch {
	case !ok:
		return "", false
	case l.PerValue:
		return v, true
	case l.Value == "" && !l.Empty:
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
