package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
)

// Daemon types of Dagster that do what Slipway does (dagster._daemon.daemon).
const (
	queueDaemon   = "QUEUED_RUN_COORDINATOR"
	monitorDaemon = "MONITORING"
)

// stockLook is how often a heartbeat is looked at while it is not clear whether it is renewed.
const stockLook = 500 * time.Millisecond

// checkStock refuses to work beside a stock daemon that monitors as well; it writes heartbeats only while its monitor is on. A
// dequeuer writes them also while it is parked, so a leader looks at what it does (see rival).
func (d *Daemon) checkStock(ctx context.Context) error {
	if d.Instance.Settings.Coexist {
		return nil
	}
	file := d.Instance.Home + "/dagster.yaml"
	monitor, err := d.beatOf(ctx, monitorDaemon)
	if err != nil {
		return err
	}
	if age := time.Since(monitor.At); age < beatAge {
		d.Log.InfoContext(ctx, "a run monitor of dagster-daemon wrote a heartbeat lately; waiting to see whether it is still on", "ago", age.Round(time.Second), "at_most", (beatAge - age).Round(time.Second))
		for time.Since(monitor.At) < beatAge && ctx.Err() == nil {
			sleep(ctx, stockLook)
			now, err := d.beatOf(ctx, monitorDaemon)
			if err != nil {
				return err
			}
			if now.At.After(monitor.At) {
				return fmt.Errorf("dagster-daemon monitors runs of this instance and would fail workers that it does not know: set enabled: false under run_monitoring in %s and restart dagster-daemon; or set coexist: true in slipway.yaml if you know better", file)
			}
		}
	}
	if !d.Instance.Parks() || d.Instance.MonitorsRun {
		d.Log.WarnContext(ctx, "dagster.yaml does not park dagster-daemon: one that is started will launch or monitor runs besides Slipway; add run_queue: {max_concurrent_runs: 0} and run_monitoring: {enabled: false}", "file", file)
	}
	return nil
}

// parkAdvice tells how to park dagster-daemon.
func (d *Daemon) parkAdvice() string {
	return fmt.Sprintf("Set max_concurrent_runs: 0 under run_queue in the dagster.yaml that dagster-daemon reads (%s/dagster.yaml, or one of its own) and restart dagster-daemon. Slipway's own limit goes into slipway.yaml: queue: {max_concurrent_runs: 10}.", d.Instance.Home)
}

// beatOf reads the heartbeat of a daemon type that is not ours; the zero one if there is none.
func (d *Daemon) beatOf(ctx context.Context, daemonType string) (storage.Heartbeat, error) {
	beats, err := d.Store.Heartbeats(ctx)
	return foreignBeat(beats, daemonType), err
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
