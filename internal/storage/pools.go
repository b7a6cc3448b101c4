package storage

import "context"

// Pooler reads the pools that bound how many steps run at once, and keeps their default limit.
type Pooler interface {
	// Pools gives all pools that have a limit, by name.
	Pools(ctx context.Context) (map[string]Pool, error)
	// DefaultPools gives those of the named pools that have a limit, after it has brought the limit
	// of each that has none of its own, or the default one, to the given default; nil takes it
	// away. It writes only what differs.
	DefaultPools(ctx context.Context, f Fence, names []string, limit *int) (map[string]Pool, error)
	// Holders gives the runs whose steps have a place in a pool or wait for one.
	Holders(ctx context.Context) ([]string, error)
	// FreeSlots takes from a run all its places and gives each to the step that waits for it
	// longest at the highest priority.
	FreeSlots(ctx context.Context, f Fence, run string) error
}

// Pool is a pool with a limit.
type Pool struct {
	Limit   int
	Default bool // the limit is the instance's default
	Slots   int  // places, taken or not; those that go away once they are free are not among them
	Taken   int  // by steps that run
	Pending int  // steps that have a place or wait for one
}

// Stale names the pools among names whose limit is not what the default says.
func Stale(pools map[string]Pool, names []string, limit *int) []string {
	var stale []string
	for _, name := range names {
		p, ok := pools[name]
		switch {
		case !ok && limit != nil, ok && p.Default && (limit == nil || p.Limit != *limit):
			stale = append(stale, name)
		}
	}
	return stale
}

// Among are the pools of some names.
func Among(pools map[string]Pool, names []string) map[string]Pool {
	out := map[string]Pool{}
	for _, name := range names {
		if p, ok := pools[name]; ok {
			out[name] = p
		}
	}
	return out
}
