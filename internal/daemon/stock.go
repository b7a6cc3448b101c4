package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
)

// Daemon types of Dagster that do what Slipway does (dagster._daemon.daemon).
const (
	queueDaemon   = "QUEUED_RUN_COORDINATOR"
	monitorDaemon = "MONITORING"
)

// stockLook is how often a heartbeat is looked at while it is not clear whether it is renewed.
const stockLook = 500 * time.Millisecond

// checkStock refuses to work beside a stock daemon that monitors as well; it writes heartbeats only
// while its monitor is on. A dequeuer writes them also while it is parked, so a leader looks at
// what it does (see rival).
func (d *Daemon) checkStock(ctx context.Context) error {
	if d.Instance.Settings.Coexist {
		return nil
	}
	park, unmonitor := d.Instance.Park()
	monitor, err := d.beatOf(ctx, monitorDaemon)
	if err != nil {
		return err
	}
	if age := time.Since(monitor.At); age < beatAge {
		d.Log.InfoContext(ctx,
			"dagster-daemon's run monitor wrote a heartbeat recently; waiting to see whether it is still running",
			"ago", age.Round(time.Second), "at_most", (beatAge - age).Round(time.Second))
		for time.Since(monitor.At) < beatAge && ctx.Err() == nil {
			sleep(ctx, stockLook)
			now, err := d.beatOf(ctx, monitorDaemon)
			if err != nil {
				return err
			}
			if now.At.After(monitor.At) {
				return fmt.Errorf(
					"dagster-daemon monitors runs of this instance and would fail runs whose workers it does not "+
						"know: %s, then restart dagster-daemon and dagster-webserver; or set coexist: true in "+
						"slipway.yaml if both are to work on this instance", unmonitor)
			}
		}
	}
	for _, e := range []instance.Edit{park, unmonitor} {
		if !e.Done {
			d.Log.WarnContext(ctx,
				"dagster.yaml does not park dagster-daemon: a dagster-daemon that is started will launch or monitor "+
					"runs as well as Slipway", "fix", e.String())
		}
	}
	return nil
}

// parkAdvice explains how to park dagster-daemon.
func (d *Daemon) parkAdvice() string {
	park, _ := d.Instance.Park()
	text := "To park it, " + park.String() +
		", or in a dagster.yaml of its own, then restart dagster-daemon and dagster-webserver"
	if d.Instance.Settings.Queue.MaxConcurrentRuns == nil {
		text += "; for Slipway's own limit, " + d.Instance.Limit().String()
	}
	return text + "; slipway adopt prints these edits."
}

// beatOf reads the heartbeat of a daemon type that is not ours; the zero one if there is none.
func (d *Daemon) beatOf(ctx context.Context, daemonType string) (beat storage.Heartbeat, err error) {
	err = d.wait(ctx, func(ctx context.Context) error {
		beats, err := d.Store.Heartbeats(ctx)
		beat = foreignBeat(beats, daemonType)
		return err
	})
	return beat, err
}

// foreignBeat is the heartbeat of a daemon type that is not ours; the zero one if there is none.
func foreignBeat(beats []storage.Heartbeat, daemonType string) storage.Heartbeat {
	i := slices.IndexFunc(beats, func(b storage.Heartbeat) bool {
		return b.Type == daemonType && !strings.HasPrefix(b.ID, idPrefix)
	})
	if i < 0 {
		return storage.Heartbeat{}
	}
	return beats[i]
}
