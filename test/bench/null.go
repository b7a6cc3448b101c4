package main

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// null is a launcher that only records when it was called. Its runs stay STARTING.
type null struct {
	mu    sync.Mutex
	asked map[string]time.Time // by run
	calls chan struct{}        // one value for each call
}

func newNull() *null { return &null{asked: map[string]time.Time{}, calls: make(chan struct{}, 1<<16)} }

func (n *null) kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "null", Help: "Does nothing.", Traits: launcher.Traits{Unique: true, StrongRead: true},
		Open: func(context.Context, config.Values, *slog.Logger) (launcher.Launcher, error) { return n, nil },
	}
}

// Launch implements [launcher.Launcher].
func (n *null) Launch(_ context.Context, req *launcher.Request) (launcher.Launched, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, again := n.asked[req.ID.Run]; again {
		return launcher.Launched{}, fmt.Errorf("run %s was launched twice", req.ID.Run)
	}
	n.asked[req.ID.Run] = time.Now()
	n.calls <- struct{}{}
	return launcher.Launched{Handle: launcher.Handle(req.ID.String())}, nil
}

// at returns when a run was launched.
func (n *null) at(run string) (time.Time, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.asked[run]
	return t, ok
}

// wait waits until count launches were requested.
func (n *null) wait(ctx context.Context, count int) error {
	for range count {
		select {
		case <-n.calls:
		case <-ctx.Done():
			return fmt.Errorf("not all runs were launched: %w", ctx.Err())
		}
	}
	return nil
}

// Terminate implements [launcher.Launcher].
func (n *null) Terminate(context.Context, launcher.Handle, time.Duration) (bool, error) {
	return false, nil
}

// Health implements [launcher.Launcher].
func (n *null) Health(context.Context, launcher.Handle) (launcher.Health, error) {
	return launcher.Health{Status: launcher.Starting}, nil
}

// List implements [launcher.Lister].
func (n *null) List(context.Context, launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(func(launcher.Worker, error) bool) {}
}
