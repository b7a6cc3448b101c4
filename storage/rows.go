package storage

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Keys of the rows that Slipway adds to Dagster's tables. Those of run_tags begin with .dagster/, which Dagster's UI hides.
const (
	RowPrefix = ".dagster/slipway/"
	LaunchKey = RowPrefix + "launch"
	HandleKey = RowPrefix + "handle"
	LeaderKey = "slipway/leader" // of kvs: epoch and id
	LeaseKey  = "slipway/lease"  // of kvs: when it ends, in µs
)

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
}

// LaunchState says what may still come of a launch row.
type LaunchState string

// The states of a launch row.
const (
	Open  LaunchState = "open"  // its worker may start
	Taken LaunchState = "taken" // its worker has passed the gate
	Void  LaunchState = "void"  // nothing exists and nothing will
)

// String is the row's value in run_tags.
func (l LaunchRow) String() string {
	return fmt.Sprintf("%s %d %s %s %s %d %d %s", l.Run, l.Attempt, l.Instance, l.Launcher, l.Token, l.Epoch, l.At.UnixMicro(), l.State)
}

// ParseLaunch reads a launch row. It is one only if it names the run that it stands on: tags are
// copied to retries and re-executions, and anyone who may launch may set any tag.
func ParseLaunch(run, value string) (LaunchRow, bool) {
	f := strings.Fields(value)
	if len(f) != 8 || f[0] != run {
		return LaunchRow{}, false
	}
	attempt, err1 := strconv.Atoi(f[1])
	epoch, err2 := strconv.ParseInt(f[5], 10, 64)
	at, err3 := strconv.ParseInt(f[6], 10, 64)
	l := LaunchRow{
		Run: run, Attempt: attempt, Instance: f[2], Launcher: f[3], Token: f[4], Epoch: epoch,
		At: time.UnixMicro(at).UTC(), State: LaunchState(f[7]),
	}
	return l, err1 == nil && err2 == nil && err3 == nil && l.String() == value
}

// HandleRow is the value of the row that says where a launch row's worker is.
func HandleRow(l LaunchRow, handle string) string {
	return fmt.Sprintf("%s %d %s", l.Run, l.Attempt, handle)
}

// ParseHandle reads a handle row of the given launch row.
func ParseHandle(l LaunchRow, value string) (string, bool) {
	handle, ok := strings.CutPrefix(value, fmt.Sprintf("%s %d ", l.Run, l.Attempt))
	return handle, ok && handle != ""
}

// Tag is one row of run_tags.
type Tag struct {
	ID         int64
	Key, Value string
}

// Ours finds the current launch row and handle of a run among its rows of run_tags, in the order of their
// ids. A row whose text stands in the run's body as well was set by a user, not by a claim.
func Ours(run string, rows []Tag, body map[string]string) (launch *LaunchRow, handle string) {
	for _, r := range rows {
		if body[r.Key] == r.Value {
			continue
		}
		switch r.Key {
		case LaunchKey:
			if l, ok := ParseLaunch(run, r.Value); ok {
				launch, handle = &l, ""
			}
		case HandleKey:
			if launch == nil {
				continue
			}
			if h, ok := ParseHandle(*launch, r.Value); ok {
				handle = h
			}
		}
	}
	return launch, handle
}

// Alien says whether a row of run_tags with our prefix must go when its run is claimed: it names another run,
// or a user wrote it.
func Alien(run string, r Tag, body map[string]string) bool {
	if !strings.HasPrefix(r.Key, RowPrefix) {
		return false
	}
	return body[r.Key] == r.Value || !strings.HasPrefix(r.Value, run+" ")
}
