package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// seldomAfter is the least time between two logs of the same warning.
const seldomAfter = time.Minute

// seldom is a log handler that passes a repeated warning on at most once a minute. The attribute
// "times" then counts the warning itself and the repeats that were dropped since the last one.
// Without this handler, a call that fails twice a second, such as the lease on a read-only
// database, would bury everything else.
type seldom struct {
	slog.Handler
	with string // attributes and groups of this logger
	all  *warnings
}

// warnings are the warnings that were passed on lately. A logger and all loggers that derive from
// it share them.
type warnings struct {
	mu   sync.Mutex
	last map[string]*warning
}

type warning struct {
	at   time.Time // when it was passed on
	more int       // how many repeats were dropped since then
}

func newSeldom(h slog.Handler) slog.Handler {
	return seldom{Handler: h, all: &warnings{last: map[string]*warning{}}}
}

// Handle implements [slog.Handler].
func (h seldom) Handle(ctx context.Context, r slog.Record) error {
	if r.Level != slog.LevelWarn {
		return h.Handler.Handle(ctx, r)
	}
	key := h.with + r.Message
	r.Attrs(func(a slog.Attr) bool {
		switch a.Value.Kind() { // times differ each time; with any other difference it is another warning
		case slog.KindDuration, slog.KindTime:
		default:
			text := a.String()
			if a.Key == "err" {
				text = strings.Map(withoutDigits, text) // ports and times in it differ each time
			}
			key += " " + text
		}
		return true
	})
	pass, times := h.all.count(key, r.Time)
	if !pass {
		return nil
	}
	if times > 1 {
		r.AddAttrs(slog.Int("times", times))
	}
	return h.Handler.Handle(ctx, r)
}

func withoutDigits(r rune) rune {
	if '0' <= r && r <= '9' {
		return -1
	}
	return r
}

// count records a warning. It reports whether to pass it on, and how many warnings that one stands
// for: itself, and the repeats that were dropped.
func (w *warnings) count(key string, now time.Time) (pass bool, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.last[key]
	if old != nil && now.Sub(old.at) < seldomAfter {
		old.more++
		return false, 0
	}
	for k, o := range w.last { // forget warnings that have stopped
		if now.Sub(o.at) > 2*seldomAfter {
			delete(w.last, k)
		}
	}
	w.last[key] = &warning{at: now}
	if old == nil {
		return true, 1
	}
	return true, old.more + 1
}

// WithAttrs implements [slog.Handler].
func (h seldom) WithAttrs(attrs []slog.Attr) slog.Handler {
	return seldom{h.Handler.WithAttrs(attrs), h.with + fmt.Sprint(attrs), h.all}
}

// WithGroup implements [slog.Handler].
func (h seldom) WithGroup(name string) slog.Handler {
	return seldom{h.Handler.WithGroup(name), h.with + name + ".", h.all}
}
