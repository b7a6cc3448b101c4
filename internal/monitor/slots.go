package monitor

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
)

// slotsInterval is how often it is looked whether ended runs hold places in pools.
const slotsInterval = 5 * time.Second

// pooler is what freeing places asks of the storage.
type pooler interface {
	Holders(ctx context.Context) ([]string, error)
	FreeSlots(ctx context.Context, f storage.Fence, run string) error
	Runs(ctx context.Context, f storage.Filter) ([]storage.Run, error)
}

// Slots frees the places in pools that runs still hold some time after their end: a worker that is
// killed does not do it itself. Its fields are set before Run.
type Slots struct {
	Store pooler
	Fence storage.Fence
	After time.Duration // since a run's end; negative: never
	Log   *slog.Logger

	gone map[string]time.Time // runs that are not in the storage, and since when
}

// Run frees places until ctx ends or the lead is lost ([storage.ErrFenced]).
func (s *Slots) Run(ctx context.Context) error {
	if s.After < 0 {
		return nil
	}
	s.gone = map[string]time.Time{}
	for {
		err := s.free(ctx, time.Now())
		if errors.Is(err, storage.ErrFenced) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "cannot free slots in pools; retrying", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(slotsInterval):
		}
	}
}

func (s *Slots) free(ctx context.Context, now time.Time) error {
	holders, err := s.Store.Holders(ctx)
	if err != nil || len(holders) == 0 {
		return err
	}
	runs, err := s.Store.Runs(ctx, storage.Filter{IDs: holders})
	if err != nil {
		return err
	}
	ended := map[string]time.Time{} // since when; zero: it goes on
	for _, r := range runs {
		var at time.Time
		if r.Status.Finished() {
			at = latest(r.End, r.Updated)
		}
		ended[r.ID] = at
	}
	gone := map[string]time.Time{}
	for _, run := range holders {
		at, ok := ended[run]
		if !ok { // deleted
			if at = s.gone[run]; at.IsZero() {
				at = now
			}
			gone[run] = at
		}
		if at.IsZero() || now.Sub(at) < s.After {
			continue
		}
		if err := s.Store.FreeSlots(ctx, s.Fence, run); err != nil {
			return err
		}
		s.Log.InfoContext(ctx, "freed slots in pools that a run held after its end", "run_id", run, "ended", at)
	}
	s.gone = gone
	return nil
}
