package storage

import (
	"context"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Adder puts new runs into the queue.
type Adder interface {
	// AddRun creates a run that is QUEUED, with its tags and the event PIPELINE_ENQUEUED, in one
	// transaction where the storage allows it. A run ID that exists is an error.
	AddRun(ctx context.Context, n NewRun) error
}

// NewRun is a run to create.
type NewRun struct {
	Run dagster.Run
	At  time.Time
}

// Columns are the values of a run's body that its row repeats.
type Columns struct{ Snapshot, Partition, PartitionSet string }

// PlanAdd works out a new run.
func PlanAdd(n NewRun) (Change, Columns) {
	r := n.Run
	r.Status = dagster.Queued
	ch := Change{
		Outcome: Outcome{Done: true, Status: dagster.Queued}, Status: dagster.Queued, Body: r.Body(), Updated: n.At,
		Events: []dagster.Event{dagster.NewRunEnqueued(r, n.At)}, SetTags: map[string]string{},
	}
	for k, v := range r.Tags {
		ch.SetTags[k] = v
	}
	if r.Remote.Location != "" { // rows that are not in the body
		ch.SetTags[".dagster/repository"] = r.Remote.Repository + "@" + r.Remote.Location
	}
	if r.Pools != nil {
		for _, pool := range r.Pools.All {
			ch.SetTags[".dagster/pool/"+pool] = "true"
		}
	}
	return ch, Columns{Snapshot: r.Snapshot, Partition: r.Tags["dagster/partition"],
		PartitionSet: r.Tags["dagster/partition_set"]}
}
