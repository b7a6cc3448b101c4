package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
)

// troubleAgain is how often a failure that repeats is logged again.
const troubleAgain = time.Minute

// trouble logs a failure that repeats: when it begins or changes, then once a minute with a count, and its end.
type trouble struct {
	log   *slog.Logger
	what  string // the message
	since time.Time
	said  time.Time
	text  string // of the error, without digits: ports and times differ each time
	tries int
}

// met records a failure.
func (t *trouble) met(ctx context.Context, err error) {
	now := time.Now()
	text := strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
	if t.tries++; t.tries == 1 {
		t.since = now
	}
	if text == t.text && now.Sub(t.said) < troubleAgain {
		return
	}
	t.said, t.text = now, text
	t.log.WarnContext(ctx, t.what+"; trying again", "err", err, "tries", t.tries, "for", now.Sub(t.since).Round(time.Second))
}

// over records a success.
func (t *trouble) over(ctx context.Context) {
	if t.tries > 0 {
		t.log.InfoContext(ctx, t.what+": that is over", "tries", t.tries, "after", time.Since(t.since).Round(time.Second))
	}
	*t = trouble{log: t.log, what: t.what}
}

// startRetry is the time between two tries of what a start needs of the storage.
const startRetry = time.Second

// wait tries what a start needs of the storage until it succeeds, as a daemon that runs already waits for its storage. It
// gives up with ctx, and on a fault of the settings, which time does not mend.
func (d *Daemon) wait(ctx context.Context, try func(context.Context) error) error {
	away := trouble{log: d.Log, what: "the storage cannot be used yet"}
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

// checkWritable looks whether the storage takes writes.
func (d *Daemon) checkWritable(ctx context.Context) error {
	if w, ok := d.Store.(writable); ok {
		return w.Writable(ctx)
	}
	return nil
}
