package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
)

// trouble logs a failure that repeats, and its end. The daemon's logger drops most of the repeats.
type trouble struct {
	log   *slog.Logger
	what  string    // the message
	since time.Time // when it began; monotonic
}

// met records a failure.
func (t *trouble) met(ctx context.Context, err error) {
	if t.since.IsZero() {
		t.since = time.Now()
	}
	facts := []any{"err", err, "for", time.Since(t.since).Round(time.Second)}
	if f := (*storage.Fault)(nil); errors.As(err, &f) && f.Fix != "" {
		facts = append(facts, "next", f.Fix)
	}
	t.log.WarnContext(ctx, t.what+"; retrying", facts...)
}

// over records a success.
func (t *trouble) over(ctx context.Context) {
	if !t.since.IsZero() {
		t.log.InfoContext(ctx, t.what+": this problem has ended", "after", time.Since(t.since).Round(time.Second))
	}
	t.since = time.Time{}
}

// startRetry is the time between two tries of what a start needs of the storage.
const startRetry = time.Second

// wait repeats try, which a start needs of the storage, until it succeeds. A running daemon waits
// for its storage too. wait gives up if ctx ends, and on a [storage.SettingError], because waiting
// does not correct a setting.
func (d *Daemon) wait(ctx context.Context, try func(context.Context) error) error {
	away := trouble{log: d.Log, what: "cannot use the storage yet"}
	for {
		err := try(ctx)
		var setting *storage.SettingError
		switch {
		case err == nil:
			away.over(ctx)
			return nil
		case errors.As(err, &setting):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		away.met(ctx, err)
		d.Systemd.Status("waiting for the storage: %v", err)
		sleep(ctx, startRetry)
	}
}

// writable is an ability of storages that can tell whether they may be written to.
type writable interface {
	Writable(ctx context.Context) error
}

// checkWritable returns an error if the storage can tell that it takes no writes.
func (d *Daemon) checkWritable(ctx context.Context) error {
	if w, ok := d.Store.(writable); ok {
		return w.Writable(ctx)
	}
	return nil
}
