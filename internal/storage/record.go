package storage

import (
	"context"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Recorder is what a run worker of ours asks of the storage. A worker is no leader: it has no
// fence, and names the statuses and the launch row that it expects.
type Recorder interface {
	// Take lets the worker of an attempt pass its gate: it turns the newest launch row of the run
	// from open to taken, if that row is of this attempt and token, and reports whether it is taken
	// by this worker. by is a nonce of the worker, which the row keeps: after an error the worker
	// asks again, and learns whether the first call was carried out. Only one worker, ever, gets
	// true.
	Take(ctx context.Context, run string, attempt int, token, by string) (bool, error)
	// Record carries out one transition as [Writer.Move] does, without a fence.
	Record(ctx context.Context, t Transition) (Outcome, error)
	// RecordAll carries out transitions of several runs in one transaction, each as Record does;
	// those that are refused hold up no other.
	RecordAll(ctx context.Context, ts []Transition) ([]Outcome, error)
}

// PlanTake plans the passing of a gate.
func PlanTake(run string, attempt int, token, by string, row Row, ours []Tag) (Change, error) {
	r, err := dagster.ParseRun(row.Body)
	if err != nil {
		return Change{}, err
	}
	launch := Ours(run, ours, r.Tags).Launch
	if launch == nil || launch.Attempt != attempt || launch.Token != token {
		return Change{}, nil
	}
	if launch.State != Open {
		return Change{Outcome: Outcome{Done: launch.State == Taken && launch.By == by && by != "", Status: row.Status}},
			nil
	}
	was := launch.String()
	launch.State, launch.By = Taken, by
	for _, t := range ours {
		if t.Key == LaunchKey && t.Value == was {
			return Change{Outcome: Outcome{Done: true, Status: row.Status},
				UpdateTags: []Tag{{ID: t.ID, Key: t.Key, Value: launch.String()}}}, nil
		}
	}
	return Change{}, nil
}
