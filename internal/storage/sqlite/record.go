package sqlite

import (
	"context"
	"database/sql"

	"github.com/slipway-run/slipway/internal/storage"
)

// change plans a change of one run under the write lock and carries it out, except its events,
// which go to the outbox.
func (s *Store) change(ctx context.Context, f *storage.Fence, run string,
	plan func(storage.Row, []storage.Tag) (storage.Change, error)) (storage.Outcome, error) {
	var out storage.Outcome
	err := s.tx(ctx, f, func(tx *sql.Tx) error {
		row, ours, err := s.row(ctx, tx, run)
		if err != nil || row.Status == "" {
			return err
		}
		ch, err := plan(row, ours)
		if err != nil {
			return err
		}
		out = ch.Outcome
		return s.apply(ctx, tx, run, ch)
	})
	if err != nil {
		return storage.Outcome{}, err
	}
	return out, nil
}

// Take implements [storage.Recorder].
func (s *Store) Take(ctx context.Context, run string, attempt int, token, by string) (bool, error) {
	out, err := s.change(ctx, nil, run, func(row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanTake(run, attempt, token, by, row, ours)
	})
	return out.Done, err
}

// Record implements [storage.Recorder]. Events that change nothing but the log go straight to the
// run's shard, as Dagster's do.
func (s *Store) Record(ctx context.Context, t storage.Transition) (storage.Outcome, error) {
	if t.Logged == nil && len(t.From)+len(t.Tags)+len(t.Handle) == 0 && !t.Void && t.Launch == "" {
		plain := true
		var texts []string
		for _, e := range t.Events {
			plain = plain && e.Type.Status() == ""
			texts = append(texts, e.JSON())
		}
		if plain {
			_, err := s.storeAll(ctx, []string{t.Run}, map[string][]string{t.Run: texts}, patient)
			return storage.Outcome{Done: true}, err
		}
	}
	out, err := s.change(ctx, nil, t.Run, func(row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanMove(t, row, ours)
	})
	if err != nil {
		return out, err
	}
	s.deliver(ctx, t.Run, patient)
	return out, nil
}

// RecordAll implements [storage.Recorder].
func (s *Store) RecordAll(ctx context.Context, ts []storage.Transition) ([]storage.Outcome, error) {
	ids := make([]string, len(ts))
	for i, t := range ts {
		ids[i] = t.Run
	}
	outcomes, err := s.changeAll(ctx, nil, ids,
		func(i int, row storage.Row, ours []storage.Tag) (storage.Change, error) {
			return storage.PlanMove(ts[i], row, ours)
		})
	if err != nil {
		return nil, err
	}
	_ = s.drain(ctx, outboxPrefix, brief) // as in deliver
	return outcomes, nil
}

// changeAll plans the changes of several runs under the write lock and carries them out, except
// their events, which go to the outbox.
func (s *Store) changeAll(ctx context.Context, f *storage.Fence, runs []string,
	plan func(i int, row storage.Row, ours []storage.Tag) (storage.Change, error)) ([]storage.Outcome, error) {
	outcomes := make([]storage.Outcome, len(runs))
	err := s.tx(ctx, f, func(tx *sql.Tx) error {
		for i, run := range runs {
			row, ours, err := s.row(ctx, tx, run)
			if err != nil {
				return err
			}
			ch, err := plan(i, row, ours)
			if err != nil { // a body that cannot be read is no reason to hold up the others
				outcomes[i] = storage.Outcome{Status: row.Status}
				continue
			}
			outcomes[i] = ch.Outcome
			if err := s.apply(ctx, tx, run, ch); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return outcomes, nil
}
