package storage

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strings"
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

func (p *polled) Heads(_ context.Context, f Filter) ([]Head, error) {
	p.since = f.Since
	return nil, nil
}

// After the clock was set back, what is updated from then on is asked for, and not what will be
// when the clock is again where it was.
func TestPollAfterTheClockWasSetBack(t *testing.T) {
	p := &polled{}
	f := &Feed{Store: p, Log: slog.New(slog.DiscardHandler), Put: func(...Run) {}, known: map[string]Head{},
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

func (s *flooded) Heads(_ context.Context, f Filter) ([]Head, error) {
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

// still is a storage in which nothing changes but one run.
type still struct {
	Store
	heads []Head
	read  []string
}

func (s *still) Heads(context.Context, Filter) ([]Head, error) { return s.heads, nil }

func (s *still) Runs(_ context.Context, f Filter) ([]Run, error) {
	s.read = append(s.read, f.IDs...)
	var runs []Run
	for _, h := range s.heads {
		if slices.Contains(f.IDs, h.ID) {
			runs = append(runs, Run{Run: dagster.Run{ID: h.ID, Status: h.Status}, Updated: h.Updated})
		}
	}
	return runs, nil
}

// A look at many queued runs reads the bodies of the changed ones only. A scan also reads the runs
// in flight. A run that is queued with new tags is passed on.
func TestOnlyWhatHasChangedIsRead(t *testing.T) {
	at := time.Unix(1_790_000_000, 0)
	s := &still{heads: []Head{{"q", dagster.Queued, at}, {"f", dagster.Started, at}, {"p", dagster.Queued, at}}}
	var told []string
	f := &Feed{Store: s, Log: slog.New(slog.DiscardHandler), known: map[string]Head{}, Put: func(runs ...Run) {
		for _, r := range runs {
			told = append(told, r.ID+" "+string(r.Status))
		}
	}}
	near := func(ctx context.Context) error { return f.poll(ctx, nearOverlap) }
	for _, c := range []struct {
		name       string
		change     func()
		look       func(context.Context) error
		read, told string
	}{
		{"the first scan", func() {}, f.scan, "q f p", "q QUEUED f STARTED p QUEUED"},
		{"a poll without a change", func() {}, near, "", ""},
		{"a scan without a change", func() {}, f.scan, "f", "f STARTED"},
		{"new tags", func() { s.heads[0].Updated = at.Add(time.Second) }, near, "q", "q QUEUED"},
		{"an end", func() { s.heads[1].Status = dagster.Success }, near, "f", "f SUCCESS"},
		{"no news of a run that has ended", func() {}, near, "", ""},
		{"a deletion", func() { s.heads = s.heads[:2] }, f.scan, "p", "p "},
	} {
		s.read, told = nil, nil
		c.change()
		err := c.look(t.Context())
		if r, p := strings.Join(s.read, " "), strings.Join(told, " "); err != nil || r != c.read || p != c.told {
			t.Errorf("%s reads %q and passes on %q, %v; want %q and %q", c.name, r, p, err, c.read, c.told)
		}
	}
}
