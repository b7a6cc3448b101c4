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

// checkStock refuses to work beside a stock daemon that dequeues or monitors as well. A parked dequeuer writes
// heartbeats too, so that alone is no sign of one; a monitor writes them only while it is on.
func (d *Daemon) checkStock(ctx context.Context) error {
	if d.Instance.Settings.Coexist {
		return nil
	}
	file := d.Instance.Home + "/dagster.yaml"
	queue, err := d.beatOf(ctx, queueDaemon)
	if err != nil {
		return err
	}
	if age := time.Since(queue.At); age < beatAge && !d.Instance.Parks() {
		return fmt.Errorf("dagster-daemon dequeues runs of this instance (heartbeat %s ago) and would race with Slipway: set max_concurrent_runs: 0 under run_queue in %s and restart dagster-daemon; Slipway's own limit goes into slipway.yaml: queue: {max_concurrent_runs: 10}; or set coexist: true there if you know better", age.Round(time.Second), file)
	}
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
