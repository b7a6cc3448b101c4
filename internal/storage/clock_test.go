package storage

import (
	"context"
	"iter"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// polled is a storage that notes from when on it was asked for what was updated.
type polled struct {
	Store
	since time.Time
}

func (p *polled) Runs(_ context.Context, f Filter) ([]Run, error) {
	p.since = f.Since
	return nil, nil
}

// After the clock was set back, what is updated from then on is asked for, and not what will be
// when the clock is again where it was.
func TestPollAfterTheClockWasSetBack(t *testing.T) {
	p := &polled{}
	f := &Feed{Store: p, Log: slog.New(slog.DiscardHandler), Put: func(...Run) {}, known: map[string]dagster.Status{},
		newest: time.Now().Add(time.Hour)}
	if err := f.poll(t.Context(), farOverlap); err != nil {
		t.Fatal(err)
	}
	if ahead := time.Until(p.since); ahead > -farOverlap {
		t.Errorf("updates are asked for from %v after now on, want from before %v ago on", ahead, farOverlap)
	}
}

// flooded is a storage that gives very many hints while it answers the first poll.
type flooded struct {
	Store
	given chan struct{}
	polls atomic.Int32
}

func (s *flooded) Hints(ctx context.Context) iter.Seq2[Hint, error] {
	return func(yield func(Hint, error) bool) {
		for range 1000 {
			yield(Hint{}, nil)
		}
		close(s.given)
		<-ctx.Done()
	}
}

func (s *flooded) Runs(_ context.Context, f Filter) ([]Run, error) {
	if !f.Since.IsZero() {
		s.polls.Add(1)
		<-s.given
	}
	return nil, nil
}

// However many hints about everything wait, one poll answers them.
func TestHintsAboutEverythingAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flooded{given: make(chan struct{})}
		f := &Feed{Store: s, Log: slog.New(slog.DiscardHandler), Put: func(...Run) {}, newest: time.Now()}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := s.polls.Load(); n == 0 || n > 2 {
			t.Errorf("%d polls for 1,000 hints, want at most 2", n)
		}
	})
}
