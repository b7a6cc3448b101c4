package queue

import (
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// PoolLimits are the rules by which pools hold back runs. With the zero value they hold back none.
type PoolLimits struct {
	Block bool // runs whose pools are full wait in the queue
	// a run takes one place in each of its pools; else each step takes its own, and only first
	// steps hold it back
	PerRun bool
	Buffer int // how many more runs than there are places may go
}

// Pool is a pool that has a limit.
type Pool struct {
	Slots   int // places, taken or not
	Pending int // steps that have a place or wait for one
}

// newlyStarted is how long the first steps of a started run count as not yet in their pools
// (DAGSTER_OP_CONCURRENCY_KEYS_ALLOTTED_FOR_STARTED_RUN_SECONDS).
const newlyStarted = 5 * time.Second

// poolCounter counts what is taken of each pool.
type poolCounter struct {
	limits PoolLimits
	pools  map[string]Pool
	taken  map[string]int // by runs in flight that are not yet seen in the pools, and by runs that may go
}

func newPoolCounter(limits PoolLimits, pools map[string]Pool, active []Entry, now time.Time) *poolCounter {
	c := &poolCounter{limits: limits, pools: pools, taken: map[string]int{}}
	for _, e := range active {
		fresh := e.Run.Status == dagster.Starting || e.Run.Status == dagster.Started && now.Sub(e.Start) < newlyStarted
		if limits.PerRun || fresh {
			c.add(e.Run)
		}
	}
	return c
}

func (c *poolCounter) add(r dagster.Run) {
	switch {
	case r.Pools == nil:
	case c.limits.PerRun:
		for _, pool := range r.Pools.All {
			c.taken[pool]++
		}
	default:
		for pool, n := range r.Pools.Root {
			c.taken[pool] += n
		}
	}
}

// full reports whether a run must wait: for any of its pools, or, if steps take the places, because
// every one of its first steps would have to wait.
func (c *poolCounter) full(r dagster.Run) bool {
	if !c.limits.Block || r.Pools == nil {
		return false
	}
	if c.limits.PerRun {
		return slices.ContainsFunc(r.Pools.All, c.none)
	}
	for pool := range r.Pools.Root {
		if !c.none(pool) {
			return false
		}
	}
	return !r.Pools.Unconstrained
}

// none reports whether a pool has no place for a further run.
func (c *poolCounter) none(pool string) bool {
	p, limited := c.pools[pool]
	free := p.Slots - c.taken[pool] + c.limits.Buffer
	if !c.limits.PerRun {
		free -= p.Pending
	}
	return limited && free <= 0
}

// names are the pools that matter for a run.
func (l PoolLimits) names(r dagster.Run) []string {
	if r.Pools == nil || !l.Block {
		return nil
	}
	if l.PerRun {
		return r.Pools.All
	}
	var names []string
	for pool := range r.Pools.Root {
		names = append(names, pool)
	}
	return names
}
