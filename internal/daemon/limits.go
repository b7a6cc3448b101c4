package daemon

import (
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
)

// limitsOf are the queue's limits as the settings give them.
func limitsOf(q instance.Queue) queue.Limits {
	limits := queue.Limits{
		MaxConcurrentRuns: q.MaxConcurrentRuns, Charge: queue.Charge(q.Charge),
		Pools: queue.PoolLimits{Block: q.BlockPools, PerRun: q.PoolsPerRun, Buffer: q.PoolBuffer},
	}
	for _, t := range q.TagLimits {
		limits.Tags = append(limits.Tags, queue.TagLimit(t))
	}
	return limits
}
