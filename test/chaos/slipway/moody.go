//go:build !windows

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// moodsEnv names the environment variable with a file. While the file exists, calls to moody
// launchers go wrong at random.
const moodsEnv = "SLIPWAY_TEST_MOODS"

// moody is a launcher whose calls may be lost on the way there or back, hang, or be refused.
type moody struct {
	launcher.Launcher
	file   string
	proves bool     // it can list its workers
	born   sync.Map // when it accepted a launch, by handle
}

// moodyKind returns a kind of launcher with moods. One that proves nothing cannot list workers and
// promises nothing about its answers. Launchers by commands are like that by default.
func moodyKind(of *launcher.Kind, name string, proves bool) *launcher.Kind {
	kind := *of
	kind.Name, kind.Help = name, "For chaos."
	kind.Traits.StrongRead = proves
	kind.Open = func(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
		l, err := of.Open(ctx, v, log)
		return &moody{Launcher: l, file: os.Getenv(moodsEnv), proves: proves}, err
	}
	return &kind
}

// As returns the abilities of the wrapped launcher.
func (m *moody) As(ability any) bool {
	switch to := ability.(type) {
	case *launcher.Lister:
		l, ok := m.Launcher.(launcher.Lister)
		*to = l
		return ok && m.proves
	case *launcher.Watcher:
		l, ok := m.Launcher.(launcher.Watcher)
		*to = l
		return ok && m.proves
	case *launcher.Remover:
		l, ok := m.Launcher.(launcher.Remover)
		*to = l
		return ok
	case *launcher.Local:
		l, ok := m.Launcher.(launcher.Local)
		*to = l
		return ok
	}
	return false
}

var errMood = errors.New("moody")

// hang is how long a call may hang.
const hang = 4 * time.Second

// late is how long a target that proves nothing may deny that it knows a worker which it accepted.
const late = 2 * time.Second

// mood decides how a call goes. before is an error if the call is not made at all, after is an
// error if its answer is lost.
func (m *moody) mood(ctx context.Context, one int) (before, after error) {
	if _, err := os.Stat(m.file); m.file == "" || err != nil || rand.IntN(one) > 0 {
		return nil, nil
	}
	switch rand.IntN(3) {
	case 0:
		return fmt.Errorf("%w: no answer", errMood), nil
	case 1:
		return nil, fmt.Errorf("%w: the answer was lost", errMood)
	}
	select {
	case <-ctx.Done():
	case <-time.After(hang):
	}
	return fmt.Errorf("%w: no answer for %s", errMood, hang), nil
}

// Launch implements [launcher.Launcher].
func (m *moody) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	if _, err := os.Stat(m.file); err == nil && m.file != "" {
		switch rand.IntN(12) {
		case 0: // a target checks its capacity before the name, as it does with a quota
			return launcher.Launched{}, fmt.Errorf("%w: moody", launcher.ErrCapacity)
		case 1:
			return launcher.Launched{}, fmt.Errorf("%w: moody", launcher.ErrDenied)
		}
	}
	before, after := m.mood(ctx, 4)
	if before != nil {
		return launcher.Launched{}, before
	}
	got, err := m.Launcher.Launch(ctx, req)
	m.born.LoadOrStore(got.Handle, time.Now())
	if after != nil {
		return launcher.Launched{}, errors.Join(after, err)
	}
	return got, err
}

// Terminate implements [launcher.Launcher].
func (m *moody) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	before, after := m.mood(ctx, 3)
	if before != nil {
		return false, before
	}
	was, err := m.Launcher.Terminate(ctx, h, grace)
	return was, errors.Join(after, err)
}

// Health implements [launcher.Launcher].
func (m *moody) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	before, after := m.mood(ctx, 8)
	if before != nil || after != nil {
		return launcher.Health{}, errors.Join(before, after)
	}
	if born, ok := m.born.Load(h); ok && !m.proves && rand.IntN(2) == 0 && time.Since(born.(time.Time)) < late {
		return launcher.Health{Status: launcher.NotFound}, nil
	}
	return m.Launcher.Health(ctx, h)
}
