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

// Level is how bad a finding is.
type Level string

// The levels.
const (
	LevelOK      Level = "ok"
	LevelWarning Level = "warning" // something does not work, or will stop working
	LevelError   Level = "error"   // runs are not launched, or not as they should be
)

// Symptom is one finding of the doctor.
type Symptom struct {
	Level Level  `json:"level"`
	Code  Code   `json:"code"`
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"` // the next step
}

// StorageSymptom returns the finding for an error of the storage. If the error is a
// [storage.Fault], the finding has its code and its next step.
func StorageSymptom(what string, err error) Symptom {
	s := Symptom{LevelError, CodeStorage, what + ": " + err.Error(),
		"look into the storage's own log, and check whether your webserver can open the storage"}
	if wrong := (*storage.SettingError)(nil); errors.As(err, &wrong) {
		s.Fix = "correct the setting that the message names; until then no daemon starts"
	}
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

// Doctor looks for reasons why an instance's runs would not be launched, watched or canceled as
// they should be.
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
	d.say(LevelOK, CodeConfiguration, "", "dagster.yaml and slipway.yaml in %s can be read; instance %s, storage %s",
		in.Home, d.name, st.Storage)
	if r := s.Revision(); !storage.KnowsRevision(r) {
		d.say(LevelWarning, CodeRevision,
			"ask for a newer Slipway; this one found every column that it uses, so it probably works",
			"the storage's schema revision %s is not one that Slipway knows", r)
	}
	for _, p := range in.Unknown {
		d.say(LevelWarning, CodeDagsterYAML, "correct it, unless your Dagster is newer than this Slipway and knows it",
			"a setting of dagster.yaml is ignored: %v", p)
	}
	for _, u := range st.Unwatched {
		d.say(LevelError, CodeUnwatched, u.Fix(), "%s", u)
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
		d.say(LevelWarning, CodePause, "to end the pause: slipway unpause, with the same flags",
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
		d.found = append(d.found, StorageSymptom("a daemon could not work with this storage", err))
	}
	if len(faults) == 0 {
		d.say(LevelOK, CodeStorage, "", "the storage accepts writes")
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
		d.say(LevelWarning, CodeClock, "set both by NTP, because events of this machine and of workers are ordered "+
			"by time",
			"the database's clock is %s off this machine's", skew.Round(time.Millisecond))
	default:
		d.say(LevelOK, CodeClock, "", "the database's clock agrees with this machine's")
	}
}

// leader looks for a daemon that leads.
func (d *doctor) leader(st Status, problem error, beats []storage.Heartbeat) {
	if st.Leader.Lease != leaseHeld {
		fix := "start slipway daemon"
		if age := time.Since(foreignBeat(beats, monitorDaemon).At); age < beatAge && !d.in.Settings.Coexist {
			fix += fmt.Sprintf(
				"; if it was just started, it waits until dagster-daemon's run monitor has written no heartbeat for "+
					"%s (the last one: %s ago)", beatAge, ago(age))
		}
		d.say(LevelError, CodeLeader, fix, "no daemon leads this instance: nothing is launched")
		return
	}
	d.say(LevelOK, CodeLeader, "", "%s leads, epoch %d", st.Leader.ID, st.Leader.Epoch)
	if st.Elsewhere > 0 {
		d.say(LevelError, CodeElsewhere,
			"start a daemon on that host, or with the same Docker engine (host, DOCKER_HOST), and stop this one; or "+
				"end the runs by force in Dagster's UI",
			"%s in flight with a worker on another host or Docker engine, which the leading daemon cannot see",
			runsAre(st.Elsewhere))
	}
	if problem != nil {
		d.say(LevelWarning, CodeStatus,
			"run slipway doctor where that daemon runs, or see web.listen and web.token in slipway.yaml",
			"cannot ask the leading daemon for its status: %v", problem)
	}
}

// launchers looks at each launcher, and at what the runs that wait need of it.
func (d *doctor) launchers(ctx context.Context, st Status, log *slog.Logger) {
	ill := map[string]bool{}
	for _, l := range st.Launchers {
		switch {
		case l.Sick && l.Place != "":
			d.say(LevelError, CodeLauncherSick, "check that it runs at that address; until then its runs wait in the "+
				"queue",
				"launcher %s has been sick since %s: %s", l, l.Since.Local().Format(time.DateTime), l.Error)
		case l.Sick:
			d.say(LevelError, CodeLauncherSick, "slipway launchers check "+l.Name+"; until it works, its runs wait",
				"launcher %s has been sick since %s: %s", l, l.Since.Local().Format(time.DateTime), l.Error)
		case l.Error != "":
			d.say(LevelWarning, CodeLauncherSick, "slipway launchers check "+l.Name,
				"the last launch or call of launcher %s failed: %s", l, l.Error)
		}
		ill[l.Name] = ill[l.Name] || l.Error != ""
	}
	targets, err := Targets(ctx, d.in, log)
	if err != nil {
		d.say(LevelError, CodeLauncherConfig, "correct the setting that the message names; until then no daemon starts",
			"a launcher cannot be opened: %v", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		bad := 0
		for _, f := range Check(ctx, d.in, targets[name]) {
			if !f.OK {
				bad++
				d.say(LevelError, CodeLauncher, f.Fix, "launcher %s: %s", name, f.What)
			}
		}
		if bad == 0 && !ill[name] {
			d.say(LevelOK, CodeLauncher, "", "launcher %s: no problem found", name)
		}
	}
	d.needs(ctx, targets)
	if err := CloseTargets(targets); err != nil {
		d.say(LevelWarning, CodeLauncher, "", "cannot close a launcher: %v", err)
	}
}

// queue looks at the limits and for runs that wait for long.
func (d *doctor) queue(ctx context.Context, st Status) {
	limits, err := d.in.QueueLimits()
	switch {
	case err != nil:
		d.say(LevelError, CodeConfiguration, "correct that setting; until then no daemon starts", "%v", err)
	case limits.MaxConcurrentRuns == 0:
		d.say(LevelError, CodeLimit,
			"set queue.max_concurrent_runs in slipway.yaml to the number of runs that may be in flight; to stop "+
				"launches for a time, use slipway pause",
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
		d.say(LevelOK, CodeQueue, "", "%s queued, none for longer than %s", runsAre(len(runs)), longQueue)
		return
	}
	what := fmt.Sprintf("%d of %d queued runs have waited for longer than %s", long, len(runs), longQueue)
	if reasons := waitingFor(st.Waiting); reasons != "" {
		what += "; they wait for " + reasons
	}
	d.say(LevelWarning, CodeQueue,
		"slipway runs explain RUN shows what holds a run back; limits are set under queue in slipway.yaml", "%s", what)
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
