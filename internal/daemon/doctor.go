package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
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
	Code  Code   `json:"code"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"` // the next step
}

// StorageSymptom is the finding of an error of the storage. Its code and its next step come from
// the error where that is a [storage.Fault].
func StorageSymptom(what string, err error) Symptom {
	s := Symptom{Bad, CodeStorage, what + ": " + err.Error(),
		"look at the storage's own log, and whether your webserver can open it"}
	if f := (*storage.Fault)(nil); errors.As(err, &f) {
		s.Code, s.Fix = Code(f.Code), f.Fix
	}
	return s
}

const (
	maxSkew   = 2 * time.Second
	pingTime  = 3 * time.Second
	probeTime = 10 * time.Second
	longQueue = 10 * time.Minute
)

// doctor collects findings.
type doctor struct {
	in    *instance.Instance
	store storage.Store
	name  string // of the instance
	found []Symptom
}

func (d *doctor) say(l Level, code Code, fix, format string, args ...any) {
	d.found = append(d.found, Symptom{l, code, fmt.Sprintf(format, args...), fix})
}

// unread adds the finding that a part of the storage cannot be read.
func (d *doctor) unread(what string, err error) {
	d.found = append(d.found, StorageSymptom(what+" cannot be read", err))
}

// Doctor looks for why an instance's runs would not be launched, watched or canceled as they
// should.
func Doctor(ctx context.Context, in *instance.Instance, s storage.Store, log *slog.Logger) []Symptom {
	d := &doctor{in: in, store: s}
	var err error
	if d.name, err = Name(ctx, in, s); err != nil {
		d.unread("the storage", err)
		return d.found
	}
	st, problem, err := FullStatus(ctx, in, d.name, s)
	if err != nil {
		d.unread("the storage", err)
		return d.found
	}
	d.say(Well, CodeConfiguration, "", "dagster.yaml and slipway.yaml in %s can be read; instance %s, storage %s",
		in.Home, d.name, st.Storage)
	if r := s.Revision(); !storage.KnowsRevision(r) {
		d.say(Worth, CodeRevision,
			"ask for a newer Slipway; it works with every column that it uses, as far as can be told",
			"the storage's schema revision %s is not one that Slipway knows", r)
	}
	for _, p := range in.Unknown {
		d.say(Worth, CodeDagsterYAML, "correct it, unless your Dagster is newer than this Slipway and knows it",
			"a setting of dagster.yaml is ignored: %v", p)
	}
	for _, u := range st.Unwatched {
		d.say(Bad, CodeUnwatched, u.Fix(), "%s", u)
	}
	d.probe(ctx)
	d.clock(ctx)
	beats, err := s.Heartbeats(ctx)
	if err != nil {
		d.unread("the heartbeats", err)
	} else {
		d.stock(ctx, st, beats)
	}
	d.leader(st, problem, beats)
	d.terminate(ctx, st.Leader.Lease == leaseHeld)
	for _, p := range st.Pauses {
		d.say(Worth, CodePause, "slipway unpause, with the same flags, if that is not wanted any more",
			"launches of %s are paused by %s: %s", p, p.By, cmp.Or(p.Why, "no reason was given"))
	}
	d.queue(ctx, st)
	d.launchers(ctx, st, log)
	return d.found
}

// probe tries the writes of a daemon.
func (d *doctor) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	faults := d.store.Probe(ctx)
	for _, err := range faults {
		d.found = append(d.found, StorageSymptom("a daemon could not do its work", err))
	}
	if len(faults) == 0 {
		d.say(Well, CodeStorage, "", "the storage can be written to")
	}
}

// clock compares the database's clock with ours.
func (d *doctor) clock(ctx context.Context) {
	if d.in.Storage.URL == "" { // of SQLite it is ours
		return
	}
	asked := time.Now()
	there, err := d.store.Clock(ctx)
	half := time.Since(asked) / 2
	switch skew := there.Sub(asked.Add(half)).Abs(); {
	case err != nil:
		d.unread("the database's clock", err)
	case skew > maxSkew+half:
		d.say(Worth, CodeClock, "set both by NTP: events of this machine and of workers are ordered by their times",
			"the database's clock is %s off this machine's", skew.Round(time.Millisecond))
	default:
		d.say(Well, CodeClock, "", "the database's clock agrees with this machine's")
	}
}

// leader looks for a daemon that leads.
func (d *doctor) leader(st Status, problem error, beats []storage.Heartbeat) {
	if st.Leader.Lease != leaseHeld {
		fix := "start slipway daemon"
		if age := time.Since(foreignBeat(beats, monitorDaemon).At); age < beatAge && !d.in.Settings.Coexist {
			fix += fmt.Sprintf(
				"; one that was started waits until dagster-daemon's run monitor, last heard of %s ago, has been "+
					"silent for %s", ago(age), beatAge)
		}
		d.say(Bad, CodeLeader, fix, "no daemon leads this instance: nothing is launched")
		return
	}
	d.say(Well, CodeLeader, "", "%s leads, epoch %d", st.Leader.ID, st.Leader.Epoch)
	if st.Elsewhere > 0 {
		d.say(Bad, CodeElsewhere,
			"start a daemon on that host, or with the same Docker engine (host, DOCKER_HOST), and stop this one; or "+
				"end the runs by force in Dagster's UI",
			"%s in flight with a worker on another host or Docker engine, which the daemon that leads cannot see",
			runsAre(st.Elsewhere))
	}
	if problem != nil {
		d.say(Worth, CodeStatus,
			"run slipway doctor where that daemon runs, or see web.listen and web.token in slipway.yaml",
			"the daemon that leads cannot be asked for its status: %v", problem)
	}
}

// launchers looks at each launcher, and at what the runs that wait need of it.
func (d *doctor) launchers(ctx context.Context, st Status, log *slog.Logger) {
	ill := map[string]bool{}
	for _, l := range st.Launchers {
		switch {
		case l.Sick && l.Place != "":
			d.say(Bad, CodeLauncherSick, "look whether it runs at that address; its runs wait in the queue meanwhile",
				"launcher %s is sick since %s: %s", l, l.Since.Local().Format(time.DateTime), l.Error)
		case l.Sick:
			d.say(Bad, CodeLauncherSick, "slipway launchers check "+l.Name+"; its runs wait meanwhile",
				"launcher %s is sick since %s: %s", l, l.Since.Local().Format(time.DateTime), l.Error)
		case l.Error != "":
			d.say(Worth, CodeLauncherSick, "slipway launchers check "+l.Name,
				"the last launch or call of launcher %s failed: %s", l, l.Error)
		}
		ill[l.Name] = ill[l.Name] || l.Error != ""
	}
	targets, err := Targets(ctx, d.in, log)
	if err != nil {
		d.say(Bad, CodeLauncherConfig, "correct the setting that is named; no daemon starts before",
			"a launcher cannot be opened: %v", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		bad := 0
		for _, f := range Check(ctx, d.in, targets[name]) {
			if !f.OK {
				bad++
				d.say(Bad, CodeLauncher, f.Fix, "launcher %s: %s", name, f.What)
			}
		}
		if bad == 0 && !ill[name] {
			d.say(Well, CodeLauncher, "", "launcher %s: nothing was found against it", name)
		}
	}
	d.needs(ctx, targets)
	if err := CloseTargets(targets); err != nil {
		d.say(Worth, CodeLauncher, "", "a launcher did not close: %v", err)
	}
}

// queue looks at the limits and for runs that wait for long.
func (d *doctor) queue(ctx context.Context, st Status) {
	limits, err := d.in.QueueLimits()
	switch {
	case err != nil:
		d.say(Bad, CodeConfiguration, "correct that setting; no daemon starts before", "%v", err)
	case limits.MaxConcurrentRuns == 0:
		d.say(Bad, CodeLimit,
			"set queue.max_concurrent_runs in slipway.yaml to the number of runs that may be in flight; to hold "+
				"launches back for a time there is slipway pause",
			"queue.max_concurrent_runs is 0: no run is launched")
	}
	runs, err := d.store.Runs(ctx, storage.Filter{Statuses: []dagster.Status{dagster.Queued}})
	if err != nil {
		d.unread("the queue", err)
		return
	}
	long := 0
	for _, r := range runs {
		if time.Since(r.Created) > longQueue {
			long++
		}
	}
	if long == 0 {
		d.say(Well, CodeQueue, "", "%s queued, none for longer than %s", runsAre(len(runs)), longQueue)
		return
	}
	what := fmt.Sprintf("%d of %d queued runs have waited for longer than %s", long, len(runs), longQueue)
	if reasons := waitingFor(st.Waiting); reasons != "" {
		what += "; they wait for " + reasons
	}
	d.say(Worth, CodeQueue,
		"slipway runs explain RUN says what holds a run; limits are set under queue in slipway.yaml", "%s", what)
}

// waitingFor lists reasons with the number of runs that each holds.
func waitingFor(reasons map[string]int) string {
	var out []string
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		if reasons[r] > 0 {
			out = append(out, fmt.Sprintf("%s (%d)", r, reasons[r]))
		}
	}
	return strings.Join(out, ", ")
}

// runsAre is a number of runs, with the verb.
func runsAre(n int) string {
	if n == 1 {
		return "1 run is"
	}
	return fmt.Sprintf("%d runs are", n)
}

// ago is a duration in whole seconds, or in days where it is long.
func ago(age time.Duration) string {
	if age > 48*time.Hour {
		return fmt.Sprintf("%d days", int(age.Hours()/24))
	}
	return age.Round(time.Second).String()
}
