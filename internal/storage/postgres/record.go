package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/internal/storage"
)

// Take implements [storage.Recorder].
func (s *Store) Take(ctx context.Context, run string, attempt int, token, by string) (bool, error) {
	out, err := s.change(ctx, nil, run, func(row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanTake(run, attempt, token, by, row, ours)
	})
	return out.Done, err
}

// Record implements [storage.Recorder].
func (s *Store) Record(ctx context.Context, t storage.Transition) (storage.Outcome, error) {
	return s.change(ctx, nil, t.Run, func(row storage.Row, ours []storage.Tag) (storage.Change, error) {
		return storage.PlanMove(t, row, ours)
	})
}

// RecordAll implements [storage.Recorder].
func (s *Store) RecordAll(ctx context.Context, ts []storage.Transition) ([]storage.Outcome, error) {
	ids := make([]string, len(ts))
	for i, t := range ts {
		ids[i] = t.Run
	}
	outcomes, err := s.changeAll(ctx, nil, ids, wait,
		func(i int, row storage.Row, ours []storage.Tag) (storage.Change, error) {
			return storage.PlanMove(ts[i], row, ours)
		})
	if err != nil {
		return nil, wrap(err, "runs")
	}
	return outcomes, nil
}

// changeAll plans the changes of several runs under their locks and carries them out. It waits for
// runs that another program has locked, or skips them.
func (s *Store) changeAll(ctx context.Context, f *storage.Fence, runs []string, locked string,
	plan func(i int, row storage.Row, ours []storage.Tag) (storage.Change, error)) ([]storage.Outcome, error) {
	outcomes := make([]storage.Outcome, len(runs))
	err := s.tx(ctx, f, func(tx pgx.Tx) error {
		rows, ours, err := lockRows(ctx, tx, runs, locked)
		if err != nil {
			return err
		}
		b := &pgx.Batch{}
		for i, run := range runs {
			if _, ok := rows[run]; !ok && locked == skip {
				outcomes[i] = storage.Outcome{Busy: true}
				continue
			}
			ch, err := plan(i, rows[run], ours[run])
			if err != nil { // a body that cannot be read is no reason to hold up the others
				outcomes[i] = storage.Outcome{Status: rows[run].Status}
				continue
			}
			outcomes[i] = ch.Outcome
			queue(b, run, ch)
		}
		return tx.SendBatch(ctx, b).Close()
	})
	return outcomes, err
}

// change works out a change of one run under its lock and carries it out.
func (s *Store) change(ctx context.Context, f *storage.Fence, run string,
	plan func(storage.Row, []storage.Tag) (storage.Change, error)) (storage.Outcome, error) {
	var out storage.Outcome
	err := s.tx(ctx, f, func(tx pgx.Tx) error {
		rows, ours, err := lockRows(ctx, tx, []string{run}, wait)
		if err != nil || rows[run].Status == "" {
			return err
		}
		ch, err := plan(rows[run], ours[run])
		if err != nil {
			return err
		}
		out = ch.Outcome
		b := &pgx.Batch{}
		queue(b, run, ch)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return storage.Outcome{}, wrap(err, "run "+run)
	}
	return out, nil
}
