package storage

import "context"

// Pooler reads the pools that bound how many steps run at once, and keeps their default limit.
type Pooler interface {
	// Pools returns all pools that have a limit, by name.
	Pools(ctx context.Context) (map[string]Pool, error)
	// DefaultPools returns the named pools that have a limit. Before, it gives the default limit to
	// each named pool without a limit of its own; if limit is nil, it removes the default instead.
	// It writes only differences.
	DefaultPools(ctx context.Context, f Fence, names []string, limit *int) (map[string]Pool, error)
	// Holders returns the runs whose steps have a place in a pool or wait for one.
	Holders(ctx context.Context) ([]string, error)
	// FreeSlots takes all its places from a run and gives each to a waiting step: the one with the
	// highest priority, of these the one that has waited longest.
	FreeSlots(ctx context.Context, f Fence, run string) error
}

// Pool is a pool with a limit.
type Pool struct {
	Limit   int
	Default bool // the limit is the instance's default
	Slots   int  // places, taken or not, without places that are removed as soon as they are free
	Taken   int  // places of steps that run
	Pending int  // steps that have a place or wait for one
}

// Stale returns the pools among names whose limit differs from what the default requires.
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

// Among returns the pools with the given names.
func Among(pools map[string]Pool, names []string) map[string]Pool {
	out := map[string]Pool{}
	for _, name := range names {
		if p, ok := pools[name]; ok {
			out[name] = p
		}
	}
	return out
}
