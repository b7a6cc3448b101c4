package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	dagsterpb "github.com/slipway-run/slipway/proto/dagster"
)

// Level says how bad a finding is.
type Level string

// The levels.
const (
	Well  Level = "ok"
	Worth Level = "warning" // something will not work, or not for ever
	Bad   Level = "error"   // runs are not launched, or not as they should
)

// Symptom is one thing that the doctor looked at.
type Symptom struct {
	Level Level  `json:"level"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"` // the next step
}

// Clock is an ability of storages that have a clock of their own.
type Clock interface {
	Now(ctx context.Context) (time.Time, error)
}

const (
	maxSkew   = 2 * time.Second
	pingTime  = 3 * time.Second
	longQueue = 10 * time.Minute
)

// Doctor looks for why an instance's runs would not be launched, watched or canceled as they should.
func Doctor(ctx context.Context, in *instance.Instance, s storage.Store, log *slog.Logger) []Symptom {
	var out []Symptom
	say := func(l Level, fix, format string, args ...any) {
		out = append(out, Symptom{l, fmt.Sprintf(format, args...), fix})
	}
	name, err := Name(ctx, in, s)
	if err != nil {
		say(Bad, "look whether the storage of dagster.yaml is the one that your webserver uses, and whether it can be reached from here", "the storage cannot be read: %v", err)
		return out
	}
	st, problem, err := FullStatus(ctx, in, name, s)
	if err != nil {
		say(Bad, "look at the storage's own log", "the storage cannot be read: %v", err)
		return out
	}
	say(Well, "", "dagster.yaml and slipway.yaml in %s can be read; instance %s, storage %s", in.Home, name, st.Storage)
	if r := s.Revision(); !storage.KnowsRevision(r) {
		say(Worth, "ask for a newer Slipway; it works with every column that it uses, as far as can be told", "the storage's schema revision %s is not one that Slipway knows", r)
	}
	if c, ok := s.(Clock); ok {
		asked := time.Now()
		there, err := c.Now(ctx)
		half := time.Since(asked) / 2
		switch skew := there.Sub(asked.Add(half)).Abs(); {
		case err != nil:
			say(Worth, "", "the database's clock cannot be read: %v", err)
		case skew > maxSkew+half:
			say(Worth, "set both by NTP: events of this machine and of workers are ordered by their times", "the database's clock is %s off this machine's", skew.Round(time.Millisecond))
		default:
			say(Well, "", "the database's clock agrees with this machine's")
		}
	}
	out = append(out, stockSymptoms(ctx, in, s)...)
	if st.Leader.Lease != "held" {
		say(Bad, "start slipway daemon", "no daemon leads this instance: nothing is launched")
	} else {
		say(Well, "", "%s leads, epoch %d", st.Leader.ID, st.Leader.Epoch)
		if problem != nil {
			say(Worth, "run slipway doctor where that daemon runs, or see web.listen and web.token in slipway.yaml", "the daemon that leads cannot be asked for its status: %v", problem)
		}
		out = append(out, pingSymptom(ctx, in))
	}
	ill := map[string]bool{}
	for _, l := range st.Launchers {
		switch {
		case l.Sick && l.Place != "":
			say(Bad, "look whether it runs at that address; its runs wait in the queue meanwhile", "launcher %s is sick since %s: %s", l, l.Since.Local().Format(time.DateTime), l.Error)
		case l.Sick:
			say(Bad, "slipway launchers check "+l.Name+"; its runs wait meanwhile", "launcher %s is sick since %s: %s", l, l.Since.Local().Format(time.DateTime), l.Error)
		case l.Error != "":
			say(Worth, "slipway launchers check "+l.Name, "the last launch or call of launcher %s failed: %s", l, l.Error)
		}
		ill[l.Name] = ill[l.Name] || l.Error != ""
	}
	for _, p := range st.Pauses {
		say(Worth, "slipway unpause, with the same flags, if that is not wanted any more", "launches of %s are paused by %s: %s", p, p.By, p.Why)
	}
	out = append(out, queueSymptoms(ctx, s, st)...)
	targets, err := Targets(ctx, in, log)
	if err != nil {
		say(Bad, "see the message", "a launcher cannot be opened: %v", err)
		return out
	}
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		bad := 0
		for _, f := range Check(ctx, in, targets[name]) {
			if !f.OK {
				bad++
				say(Bad, f.Fix, "launcher %s: %s", name, f.What)
			}
		}
		if bad == 0 && !ill[name] {
			say(Well, "", "launcher %s: nothing was found against it", name)
		}
	}
	if err := CloseTargets(targets); err != nil {
		say(Worth, "", "a launcher did not close: %v", err)
	}
	return out
}

// stockSymptoms are those of a dagster-daemon that does the same work, or does not do its own.
func stockSymptoms(ctx context.Context, in *instance.Instance, s storage.Store) []Symptom {
	beats, err := s.Heartbeats(ctx)
	if err != nil {
		return []Symptom{{Bad, fmt.Sprintf("the heartbeats cannot be read: %v", err), ""}}
	}
	var out []Symptom
	foreign := func(daemonType string) bool { return time.Since(foreignBeat(beats, daemonType).At) < beatAge }
	file := in.Home + "/dagster.yaml"
	switch {
	case in.Settings.Coexist:
		out = append(out, Symptom{Worth, "coexist: true lets dagster-daemon dequeue and monitor besides Slipway", "take it out of slipway.yaml once dagster-daemon is parked"})
	case foreign(queueDaemon) && !in.Parks():
		out = append(out, Symptom{Bad, "dagster-daemon dequeues runs of this instance", "set max_concurrent_runs: 0 under run_queue in the dagster.yaml that it reads, and restart it; older Helm charts drop a lone 0: look into the file that they made"})
	case !in.Parks():
		out = append(out, Symptom{Worth, file + " does not park dagster-daemon's dequeuer: one that is started launches runs besides Slipway", "add run_queue: {max_concurrent_runs: 0}; slipway adopt prints it"})
	default:
		out = append(out, Symptom{Well, "dagster-daemon's dequeuer is parked", ""})
	}
	if foreign(monitorDaemon) && !in.Settings.Coexist {
		out = append(out, Symptom{Bad, "dagster-daemon monitors runs of this instance, and fails those whose workers it does not know", "set enabled: false under run_monitoring in the dagster.yaml that it reads, and restart it"})
	}
	for _, b := range beats {
		if age := time.Since(b.At); age > beatAge && (b.Type == "SENSOR" || b.Type == "SCHEDULER" || b.Type == "BACKFILL") {
			out = append(out, Symptom{Worth, fmt.Sprintf("dagster-daemon's %s was last heard of %s ago", b.Type, age.Round(time.Second)), "start dagster-daemon: schedules, sensors, backfills and run retries are its work"})
			break
		}
	}
	return out
}

// pingSymptom asks the endpoint by which Terminate in Dagster's UI reaches Slipway.
func pingSymptom(ctx context.Context, in *instance.Instance) Symptom {
	a, err := addressOf(in)
	if err != nil {
		return Symptom{Bad, err.Error(), "set it"}
	}
	target := "unix:" + a.listen
	if a.network != "unix" {
		target = in.Settings.Terminate.Advertise
		if target == "" {
			target = a.listen
		}
	}
	creds := insecure.NewCredentials()
	if a.cert != "" {
		if creds, err = credentials.NewClientTLSFromFile(a.cert, ""); err != nil {
			return Symptom{Bad, fmt.Sprintf("terminate.tls_cert: %v", err), "name the file of the endpoint's certificate"}
		}
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		_, err = dagsterpb.NewDagsterApiClient(conn).Ping(ctx, &dagsterpb.PingRequest{Echo: "doctor"})
		cancel()
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		return Symptom{Worth, fmt.Sprintf("the endpoint for Terminate in Dagster's UI does not answer at %s: %v", target, err), "see terminate in slipway.yaml; runs are canceled all the same, but the UI reports failure"}
	}
	return Symptom{Well, "the endpoint for Terminate in Dagster's UI answers at " + target, ""}
}

// queueSymptoms are those of runs that wait for long.
func queueSymptoms(ctx context.Context, s storage.Store, st Status) []Symptom {
	runs, err := s.Runs(ctx, storage.Filter{Statuses: []dagster.Status{dagster.Queued}})
	if err != nil {
		return []Symptom{{Bad, fmt.Sprintf("the queue cannot be read: %v", err), ""}}
	}
	long := 0
	for _, r := range runs {
		if time.Since(r.Created) > longQueue {
			long++
		}
	}
	if long == 0 {
		return []Symptom{{Well, fmt.Sprintf("%d runs are queued, none for longer than %s", len(runs), longQueue), ""}}
	}
	return []Symptom{{Worth, fmt.Sprintf("%d of %d queued runs have waited for longer than %s; they wait for %v", long, len(runs), longQueue, st.Waiting), "slipway runs explain RUN says for which launcher; limits stand under queue in slipway.yaml"}}
}
