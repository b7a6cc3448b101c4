package storage

import (
	"context"
	"log/slog"
	"testing"
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

// After the clock was set back, what is updated from then on is asked for, and not what will be when the clock is again where it was.
func TestPollAfterTheClockWasSetBack(t *testing.T) {
	p := &polled{}
	f := &Feed{Store: p, Log: slog.New(slog.DiscardHandler), Put: func(...Run) {}, known: map[string]dagster.Status{}, newest: time.Now().Add(time.Hour)}
	if err := f.poll(t.Context(), farOverlap); err != nil {
		t.Fatal(err)
	}
	if ahead := time.Until(p.since); ahead > -farOverlap {
		t.Errorf("updates are asked for from %v after now on, want from before %v ago on", ahead, farOverlap)
	}
}
