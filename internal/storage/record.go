package storage

import (
	"context"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Recorder is what Slipway's own run worker needs of the storage. A worker is not a leader: it has
// no fence, and names the statuses and the launch row that it expects.
type Recorder interface {
	// Take lets the worker of an attempt pass its gate. If the run's newest launch row has this
	// attempt and token, Take turns it from open to taken. It reports whether this worker has taken
	// it. The row keeps by, a nonce of the worker: after an error the worker asks again, and learns
	// whether the first call was carried out. Only one worker ever gets true.
	Take(ctx context.Context, run string, attempt int, token, by string) (bool, error)
	// Record carries out one transition as [Writer.Move] does, without a fence.
	Record(ctx context.Context, t Transition) (Outcome, error)
	// RecordAll carries out transitions of several runs in one transaction, each as Record does. A
	// refused one does not stop the others.
	RecordAll(ctx context.Context, ts []Transition) ([]Outcome, error)
}

// PlanTake plans a call of [Recorder.Take].
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
