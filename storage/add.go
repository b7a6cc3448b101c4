package storage

import (
	"context"
	"time"

	"github.com/slipway-run/slipway/dagster"
)

// Adder puts new runs into the queue.
type Adder interface {
	// AddRun creates a run that is QUEUED, with its tags and the event PIPELINE_ENQUEUED, in one transaction where the storage
	// allows it. A run ID that exists is an error.
	AddRun(ctx context.Context, n NewRun) error
}

// NewRun is a run to create.
type NewRun struct {
	Run dagster.Run
	At  time.Time
}

// Columns are what the row of a run repeats of its body.
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
	if r.Remote.Location != "" { // rows that stand in no body
		ch.SetTags[".dagster/repository"] = r.Remote.Repository + "@" + r.Remote.Location
	}
	if r.Pools != nil {
		for _, pool := range r.Pools.All {
			ch.SetTags[".dagster/pool/"+pool] = "true"
		}
	}
	return ch, Columns{Snapshot: r.Snapshot, Partition: r.Tags["dagster/partition"], PartitionSet: r.Tags["dagster/partition_set"]}
}

// Recorder is what a run worker of ours asks of the storage. A worker is no leader: it has no fence, and names the statuses
// and the launch row that it expects.
type Recorder interface {
	// Take lets the worker of an attempt pass its gate: it turns the newest launch row of the run from open to taken, if that row is
	// of this attempt and token, and says whether it did. It says true to one caller at most, ever.
	Take(ctx context.Context, run string, attempt int, token string) (bool, error)
	// Record carries out one transition as [Writer.Move] does, without a fence.
	Record(ctx context.Context, t Transition) (Outcome, error)
}

// PlanTake works out the passing of a gate.
func PlanTake(run string, attempt int, token string, row Row, ours []Tag) (Change, error) {
	r, err := dagster.ParseRun(row.Body)
	if err != nil {
		return Change{}, err
	}
	launch, _ := Ours(run, ours, r.Tags)
	if launch == nil || launch.Attempt != attempt || launch.Token != token || launch.State != Open {
		return Change{}, nil
	}
	was := launch.String()
	launch.State = Taken
	for _, t := range ours {
		if t.Key == LaunchKey && t.Value == was {
			return Change{Outcome: Outcome{Done: true, Status: row.Status}, UpdateTags: []Tag{{ID: t.ID, Key: t.Key, Value: launch.String()}}}, nil
		}
	}
	return Change{}, nil
}
