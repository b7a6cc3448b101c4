package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	dagsterpb "github.com/slipway-run/slipway/proto/dagster"
)

// stock looks at dagster-daemon. It must not dequeue or monitor runs, which is Slipway's work. It
// must do what Slipway leaves to it, for example schedules.
func (d *doctor) stock(ctx context.Context, st Status, beats []storage.Heartbeat) {
	foreign := func(daemonType string) bool { return time.Since(foreignBeat(beats, daemonType).At) < beatAge }
	file := filepath.Join(d.in.Home, "dagster.yaml")
	park := fmt.Sprintf(
		"set %s.max_concurrent_runs: 0 in the dagster.yaml that dagster-daemon reads, and restart it; slipway adopt "+
			"prints the edits", d.in.QueueSection())
	switch {
	case d.in.Settings.Coexist:
		d.say(LevelWarning, CodeCoexist, "remove it from slipway.yaml when dagster-daemon is parked",
			"coexist: true lets dagster-daemon dequeue and monitor runs as well as Slipway")
	case st.Held != "":
		d.say(LevelError, CodeSecondDequeuer, park, "nothing is launched: %s", st.Held)
	case foreign(queueDaemon) && !d.in.Parks():
		d.unparked(ctx, foreignBeat(beats, queueDaemon), park)
	case !d.in.Parks():
		d.say(LevelWarning, CodeDequeuer, park,
			"%s does not park dagster-daemon's dequeuer: a dagster-daemon that is started launches runs as well as "+
				"Slipway", file)
	case !d.second(ctx, file):
		d.say(LevelOK, CodeDequeuer, "", "dagster-daemon's dequeuer is parked")
	}
	if foreign(monitorDaemon) && !d.in.Settings.Coexist {
		d.say(LevelError, CodeMonitor,
			"set run_monitoring.enabled: false in the dagster.yaml that dagster-daemon reads, and restart it",
			"dagster-daemon monitors runs of this instance, and fails runs whose workers it does not know")
	}
	d.lastSeen(beats)
}

// unparked reports on a running dagster-daemon that our dagster.yaml does not park. It may read
// another file that parks it. So its actions are the proof: a leader records that a dagster-daemon
// has left waiting runs alone.
func (d *doctor) unparked(ctx context.Context, beat storage.Heartbeat, park string) {
	known, err := d.store.Entries(ctx, parkedKey)
	switch {
	case err != nil:
		d.unread("the record of whether dagster-daemon is parked", err)
	case known[parkedKey] == beat.ID:
		d.say(LevelOK, CodeDequeuer, "", "dagster-daemon's dequeuer is parked: it has left waiting runs alone")
	default:
		d.say(LevelError, CodeDequeuer, park+"; older Helm charts drop a lone 0, so look into the file that they made",
			"dagster-daemon may dequeue runs of this instance: it is running, and dagster.yaml does not park it")
	}
}

// lastSeen reports when dagster-daemon wrote its last heartbeat, and whether one of the parts that
// Slipway leaves to it has stopped writing its own.
func (d *doctor) lastSeen(beats []storage.Heartbeat) {
	var last storage.Heartbeat
	stale := ""
	for _, b := range beats {
		if strings.HasPrefix(b.ID, idPrefix) {
			continue
		}
		if b.At.After(last.At) {
			last = b
		}
		if age := time.Since(b.At); age > beatAge &&
			(b.Type == "SENSOR" || b.Type == "SCHEDULER" || b.Type == "BACKFILL") {
			stale = fmt.Sprintf("dagster-daemon's %s was last heard of %s ago", b.Type, ago(age))
		}
	}
	const start = "start dagster-daemon: schedules, sensors, backfills and run retries are its work"
	switch age := time.Since(last.At); {
	case last.At.IsZero():
		d.say(LevelWarning, CodeDagsterDaemon,
			start+"; if it runs, it uses another instance: compare its DAGSTER_HOME and storage with those here",
			"no dagster-daemon has ever written to this storage (DAGSTER_HOME=%s)", d.in.Home)
	case age > beatAge:
		d.say(LevelWarning, CodeDagsterDaemon, start, "dagster-daemon is not running: it was last heard of %s ago",
			ago(age))
	case stale != "":
		d.say(LevelWarning, CodeDagsterDaemon, start, "%s", stale)
	default:
		d.say(LevelOK, CodeDagsterDaemon, "", "dagster-daemon was last heard of %s ago", ago(age))
	}
}

const (
	// secondLook is how long a run that another dequeuer launched counts as evidence. Later,
	// dagster-daemon may have been restarted.
	secondLook = 15 * time.Minute
	// secondDepth is how many of the newest runs are looked at.
	secondDepth = 200
)

// second looks for a run that left the queue without a claim of Slipway's although dagster.yaml
// parks dagster-daemon: then dagster-daemon was not restarted, or it reads another file. Only runs
// that left the queue within secondLook and after the file was changed count. It reports whether it
// has said something: that it found one, or that the storage cannot be read.
func (d *doctor) second(ctx context.Context, file string) bool {
	info, err := os.Stat(file)
	if err != nil {
		return false // there is none, so it parks nothing
	}
	since := time.Now().Add(-secondLook)
	if info.ModTime().After(since) {
		since = info.ModTime()
	}
	runs, err := d.store.Runs(ctx, storage.Filter{Since: since, Newest: secondDepth})
	if err != nil {
		d.unread("the newest runs", err)
		return true
	}
	for _, r := range runs {
		if r.Broken != nil || r.Launch != nil || r.Last != nil || r.Status == dagster.Queued ||
			r.Status == dagster.NotStarted || !d.in.Settings.Queue.Only.Fits(r.Run) {
			continue
		}
		events, err := d.store.Events(ctx, r.ID, dagster.RunEnqueued, dagster.RunStarting)
		if err != nil {
			d.unread("the events of run "+r.ID, err)
			return true
		}
		queued := false
		for _, e := range events {
			if queued = queued || e.Type == dagster.RunEnqueued; queued && e.Type == dagster.RunStarting &&
				e.Time.After(since) {
				d.say(LevelError, CodeSecondDequeuer,
					"restart dagster-daemon, unless you have done so since, and make sure that it reads this "+
						"dagster.yaml",
					"dagster-daemon launches runs as well as Slipway: run %s left the queue at %s without Slipway, "+
						"although %s parks dagster-daemon (changed at %s)",
					r.ID, e.Time.Local().Format(time.DateTime), file, info.ModTime().Format(time.DateTime))
				return true
			}
		}
	}
	return false
}

// terminate checks the endpoint by which Terminate in Dagster's UI reaches Slipway: its settings,
// and whether the daemon that leads answers there.
func (d *doctor) terminate(ctx context.Context, leads bool) {
	a, err := addressOf(d.in)
	if err != nil {
		d.say(LevelError, CodeTerminate, "set terminate in slipway.yaml; until then no daemon starts", "%v", err)
		return
	}
	if a.cert != "" {
		if _, err := tls.LoadX509KeyPair(a.cert, a.key); err != nil {
			d.say(LevelError, CodeTerminate,
				"set terminate.tls_cert and terminate.tls_key in slipway.yaml to the files of the endpoint's "+
					"certificate "+
					"and key", "terminate.tls_cert: %v", err)
			return
		}
	}
	if !leads {
		d.listens(ctx, a)
		return
	}
	target := "unix:" + a.listen
	if a.network != "unix" {
		target = cmp.Or(d.in.Settings.Terminate.Advertise, a.listen)
	}
	creds := insecure.NewCredentials()
	if a.cert != "" {
		creds, err = credentials.NewClientTLSFromFile(a.cert, "")
	}
	if err == nil {
		err = ping(ctx, target, creds)
	}
	if err != nil {
		d.say(LevelWarning, CodeTerminate,
			"see terminate in slipway.yaml; runs are still canceled, but the UI reports failure",
			"the endpoint for Terminate in Dagster's UI does not answer at %s: %v", target, err)
		return
	}
	d.say(LevelOK, CodeTerminate, "", "the endpoint for Terminate in Dagster's UI answers at %s", target)
}

// listens checks whether a daemon that is started here could open the endpoint.
func (d *doctor) listens(ctx context.Context, a address) {
	if a.network == "unix" { // a daemon takes over the socket of an earlier one
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, a.network, a.listen)
	if err == nil {
		err = l.Close()
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		d.say(LevelWarning, CodeTerminate,
			"free that port, or set another one: terminate.listen and terminate.advertise in slipway.yaml",
			"cannot open the endpoint for Terminate in Dagster's UI: another program listens on %s", a.listen)
	case err != nil:
		d.say(LevelWarning, CodeTerminate, "set terminate.listen in slipway.yaml to an address of this machine",
			"cannot open the endpoint for Terminate in Dagster's UI: %v", err)
	}
}

// ping calls Ping of a server of Dagster's protocol. The error of the call has only gRPC's message,
// not its code.
func ping(ctx context.Context, target string, creds credentials.TransportCredentials) error {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	if _, err = dagsterpb.NewDagsterApiClient(conn).Ping(ctx, &dagsterpb.PingRequest{Echo: "doctor"}); err != nil {
		err = errors.New(status.Convert(err).Message())
	}
	return errors.Join(err, conn.Close())
}
