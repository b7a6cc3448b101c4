package storage

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// Keys of the rows that Slipway adds to Dagster's tables. Those of run_tags begin with .dagster/,
// which Dagster's UI hides.
const (
	RowPrefix = ".dagster/slipway/"
	LaunchKey = RowPrefix + "launch"
	HandleKey = RowPrefix + "handle"
	DeathKey  = RowPrefix + "death"
	BeganKey  = RowPrefix + "began"
	CauseTag  = "slipway/cause"         // for people: why the run's last worker died
	CostTag   = "slipway/cost"          // for people: what its workers have cost
	BillTag   = ".dagster/slipway-bill" // the same for programs, by attempt
	PutTag    = ".dagster/slipway-put"  // names of the tags that launchers have put on the run, as a JSON list
	LeaderKey = "slipway/leader"        // of kvs: epoch and id
	LeaseKey  = "slipway/lease"         // of kvs: when it ends, in µs
)

// FactKeys are the keys of the rows of run_tags that [FactsOf] reads.
var FactKeys = []string{LaunchKey, HandleKey, DeathKey, BeganKey, CauseTag, CostTag, BillTag}

// rowOnly reports whether a tag is kept out of a run's body, since Dagster copies the tags of the
// body to re-executions and retries. Dagster's pages can filter by such a tag and do not list it.
func rowOnly(tag string) bool { return tag == CauseTag || tag == CostTag || tag == BillTag }

// LaunchRow is the fact that a run was claimed: the write that must precede any worker. The
// newest one of a run, by row id, is its current attempt.
type LaunchRow struct {
	Run      string
	Attempt  int
	Instance string
	Launcher string
	Token    string
	Epoch    int64
	At       time.Time
	State    LaunchState
	By       string // of a row that was taken: the nonce of the worker that took it; "" from older workers
}

// LaunchState tells whether the worker of a launch row may still start.
type LaunchState string

// The states of a launch row.
const (
	Open  LaunchState = "open"  // its worker may start
	Taken LaunchState = "taken" // its worker has passed the gate
	Void  LaunchState = "void"  // no worker exists, and none will
)

// String returns the row's value in run_tags.
func (l LaunchRow) String() string {
	state := string(l.State)
	if l.By != "" {
		state += "/" + l.By
	}
	return fmt.Sprintf("%s %d %s %s %s %d %d %s", l.Run, l.Attempt, l.Instance, l.Launcher, l.Token, l.Epoch,
		l.At.UnixMicro(), state)
}

// ParseLaunch parses a launch row. It is valid only if it names the run that has it: tags are
// copied to retries and re-executions, and anyone who may launch a run may set any tag.
func ParseLaunch(run, value string) (LaunchRow, bool) {
	f := strings.Fields(value)
	if len(f) != 8 || f[0] != run {
		return LaunchRow{}, false
	}
	attempt, err1 := strconv.Atoi(f[1])
	epoch, err2 := strconv.ParseInt(f[5], 10, 64)
	at, err3 := strconv.ParseInt(f[6], 10, 64)
	state, by, _ := strings.Cut(f[7], "/")
	l := LaunchRow{
		Run: run, Attempt: attempt, Instance: f[2], Launcher: f[3], Token: f[4], Epoch: epoch,
		At: time.UnixMicro(at).UTC(), State: LaunchState(state), By: by,
	}
	return l, err1 == nil && err2 == nil && err3 == nil && l.String() == value
}

// NewToken returns a launch row's token. It consists of a unique text and, if only one host can see
// the row's worker, of that host.
func NewToken(unique, host string) string {
	if host == "" {
		return unique
	}
	return unique + "@" + host
}

// Host returns the only host that can see the row's worker; "" if every host can.
func (l LaunchRow) Host() string {
	_, host, _ := strings.Cut(l.Token, "@")
	return host
}

// Put adds [PutTag] to the tags that a launcher puts on a run, whose tags so far are had.
func Put(had, tags map[string]string) map[string]string {
	if len(tags) == 0 {
		return nil
	}
	names := append(put(had), slices.Collect(maps.Keys(tags))...)
	slices.Sort(names)
	tags = maps.Clone(tags)
	tags[PutTag] = string(dagster.Encode(slices.Compact(names)))
	return tags
}

// put lists the tags that launchers have put on a run.
func put(tags map[string]string) (names []string) {
	_ = json.Unmarshal([]byte(tags[PutTag]), &names) // a forged one lists nothing
	return names
}

// OfWorkers lists the tags of a run that are facts about its own workers, which no other run has.
func OfWorkers(tags map[string]string) []string { return append(put(tags), CauseTag, CostTag) }

// HandleRow returns the value of the row that holds the handle of a launch row's worker.
func HandleRow(l LaunchRow, handle string) string {
	return fmt.Sprintf("%s %d %s", l.Run, l.Attempt, handle)
}

// ParseHandle parses a handle row of the given launch row.
func ParseHandle(l LaunchRow, value string) (string, bool) {
	handle, ok := strings.CutPrefix(value, fmt.Sprintf("%s %d ", l.Run, l.Attempt))
	return handle, ok && handle != ""
}

// Death is the fact that the worker of an attempt was proved dead before it had finished its run,
// and what was decided then.
type Death struct {
	Attempt  int
	Launcher string
	Cause    string
	Then     string // resume: the next attempt continues where this one ended; else it begins anew
}

// ThenResume is the [Death.Then] after which the next attempt continues the run.
const ThenResume = "resume"

func deathRow(run string, d Death) string {
	return fmt.Sprintf("%s %d %s %s %s", run, d.Attempt, d.Launcher, d.Cause, d.Then)
}

func parseDeath(run, value string) (Death, bool) {
	f := strings.Fields(value)
	if len(f) != 5 || f[0] != run {
		return Death{}, false
	}
	n, err := strconv.Atoi(f[1])
	return Death{Attempt: n, Launcher: f[2], Cause: f[3], Then: f[4]}, err == nil
}

// Facts are the contents of Slipway's rows of run_tags of a run.
type Facts struct {
	Launch *LaunchRow // the current one
	Handle string     // of it; "" if none is written
	Last   *LaunchRow // of a queued run, which has no current one: the last that it had
	Deaths []Death    // of workers of earlier attempts, oldest first
	// when the run was seen to have started, by the database's clock; zero: not written. An attempt
	// that begins anew has none.
	Began time.Time

	Cause, Cost, Bill string // values of the row-only tags; "" for none
}

func beganRow(run string, at time.Time) string { return fmt.Sprintf("%s %d", run, at.UnixMicro()) }

func parseBegan(run, value string) (time.Time, bool) {
	f := strings.Fields(value)
	if len(f) != 2 || f[0] != run {
		return time.Time{}, false
	}
	at, err := strconv.ParseInt(f[1], 10, 64)
	return time.UnixMicro(at).UTC(), err == nil
}

// Shown returns the run's tags, including the tags that are kept out of its body.
func (r Run) Shown() map[string]string {
	tags := map[string]string{}
	maps.Copy(tags, r.Tags)
	for tag, value := range map[string]string{CauseTag: r.Cause, CostTag: r.Cost} {
		delete(tags, tag) // a copy of another run's
		if value != "" {
			tags[tag] = value
		}
	}
	return tags
}

// Resumes reports whether the current attempt continues a run whose worker has died.
func (f Facts) Resumes() bool {
	n := len(f.Deaths)
	return n > 0 && f.Launch != nil && f.Deaths[n-1].Then == ThenResume && f.Deaths[n-1].Attempt == f.Launch.Attempt-1
}

// Tag is one row of run_tags.
type Tag struct {
	ID         int64
	Key, Value string
}

// FactsOf finds the facts of a run as it was read, in the order of the rows' ids.
func FactsOf(r dagster.Run, rows []Tag) Facts {
	f := Ours(r.ID, rows, r.Tags)
	if r.Status == dagster.Queued {
		f.Last, f.Launch, f.Handle, f.Began = f.Launch, nil, "", time.Time{}
	}
	return f
}

// Ours reads Slipway's facts from a run's rows of run_tags, which are in the order of their ids. A
// row whose value is also in the run's body was set by a user, not by a claim.
func Ours(run string, rows []Tag, body map[string]string) (f Facts) {
	for _, r := range rows {
		switch r.Key {
		case CauseTag:
			f.Cause = r.Value
		case CostTag:
			f.Cost = r.Value
		case BillTag:
			f.Bill = r.Value
		}
		if body[r.Key] == r.Value {
			continue
		}
		switch r.Key {
		case LaunchKey:
			if l, ok := ParseLaunch(run, r.Value); ok {
				anew := f.Launch != nil && f.Launch.Token != l.Token
				if f.Launch, f.Handle = &l, ""; anew && !f.Resumes() {
					f.Began = time.Time{}
				}
			}
		case HandleKey:
			if f.Launch == nil {
				continue
			}
			if h, ok := ParseHandle(*f.Launch, r.Value); ok {
				f.Handle = h
			}
		case BeganKey:
			if at, ok := parseBegan(run, r.Value); ok {
				f.Began = at
			}
		case DeathKey:
			if d, ok := parseDeath(run, r.Value); ok {
				f.Deaths = append(f.Deaths, d)
			}
		}
	}
	if f.Launch == nil { // never claimed: copied from another run, or a user's; a claim deletes them
		f.Cause, f.Cost, f.Bill = "", "", ""
	}
	return f
}

// Alien reports whether a row of run_tags with our prefix must be deleted when its run is claimed,
// because it names another run or a user wrote it.
func Alien(run string, r Tag, body map[string]string) bool {
	if !strings.HasPrefix(r.Key, RowPrefix) {
		return false
	}
	return body[r.Key] == r.Value || !strings.HasPrefix(r.Value, run+" ")
}
