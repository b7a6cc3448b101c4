// Package storage defines how Slipway uses Dagster's shared storage, for SQLite and Postgres alike.
// Package storagetest holds the one suite that both pass.
//
// It rests on the protocol that gives a run exactly one worker. One transaction claims a run: it
// turns the run from QUEUED to STARTING and writes its launch row. Every later change names the
// status that it expects and the epoch of the leader that makes it; losing either race is a normal
// outcome. The tables are Dagster's: Slipway adds rows, never tables, columns or migrations.
package storage

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
)

// ErrFenced means that another leader has taken over: nothing was written, and nothing more may be.
var ErrFenced = errors.New("another daemon has taken the lead of this instance")

// ErrNoNotices means that the storage accepts notices, but they do not arrive.
var ErrNoNotices = errors.New("notices do not arrive")

// Run is a run as stored. Its status is the column's, which wins over the body's.
type Run struct {
	dagster.Run
	Row              int64     // runs.id: the order of creation
	Created, Updated time.Time // by the clock of the program that wrote them
	Start, End       time.Time // zero while there is none
	Facts
	Broken error // the body cannot be read; only ID, Row and Status are set then
}

// QueuedBefore reports whether r is a stale read from before claim. A run that went back to the
// queue after the claim has the claim's row, voided, or a later one. The time of its change alone
// would not tell, because a clock may have been set back.
func (r Run) QueuedBefore(claim LaunchRow) bool {
	since := r.Last != nil && (r.Last.Attempt > claim.Attempt || r.Last.Token == claim.Token && r.Last.State == Void)
	return r.Status == dagster.Queued && r.Updated.Before(claim.At) && !since
}

// Head is the part of a run that tells whether the run has changed: each change of its row sets the
// time, by the clock of the program that made it.
type Head struct {
	ID      string
	Status  dagster.Status
	Updated time.Time
}

// Filter selects runs. The zero value selects all of them.
type Filter struct {
	Statuses []dagster.Status
	IDs      []string
	Since    time.Time // updated at or after it
	Newest   int       // only so many, newest first; 0 is all, oldest first
}

// Fence proves which daemon leads. Claim, Move and the writes of [Pooler] check it in their
// transaction, and fail with [ErrFenced] if it does not hold.
type Fence struct {
	Leader string
	Epoch  int64
}

// Claim asks for a queued run.
type Claim struct {
	Run, Launcher, Instance, Token string
	At                             time.Time
	Tags                           map[string]string // set in run_tags and in the body
}

// Outcome is the result of a Claim or Transition.
type Outcome struct {
	Done   bool           // false: the run was not in an expected status, or has another launch row
	Status dagster.Status // the run's status afterwards; "" if the run is gone, or Busy
	// Busy is only set for a Claim: another program holds a lock on the run's row, so nothing is
	// known, and the claim must be made again.
	Busy   bool
	Launch LaunchRow // the current launch row afterwards; zero if there is none
	// Run is only set for a Claim that is Done: the run as it is after the claim.
	Run *dagster.Run
}

// Transition is one change of a run, in one transaction.
type Transition struct {
	Run    string
	From   []dagster.Status // the statuses it may have now; empty: any
	Launch string           // token that the current launch row must have; "" for any or none
	Handle string           // written as the handle row of that launch row, if not ""
	// Void ends the launch row: no worker exists, and none will. If a worker has passed the gate,
	// it exists: then the transition is refused, unless it has the worker's Death.
	Void bool
	// Events are added in order. The last event that implies a status sets the run's status.
	Events []dagster.Event
	// Logged is an event that the log has already, whose status the run's row does not have yet.
	Logged *dagster.Event
	Tags   map[string]string // set in run_tags and in the body, CauseTag, CostTag and BillTag in run_tags alone
	Death  *Death            // of the worker of the current launch row
	// Began is when the run was seen to have started, by the database's clock; zero: it is not
	// written.
	Began time.Time
	// Next replaces the current launch row with the row of another attempt. The run's status does
	// not change. [Outcome] has the new row.
	Next *Next
}

// Next asks for a further attempt at a run in flight. With an Instance it asks for the first
// attempt at a run that another launcher has launched and whose worker is known: the run is
// adopted, if it has no launch row of ours.
type Next struct {
	Launcher, Token string
	Instance        string
	Epoch           int64
	At              time.Time
}

// Hint is a notice that a run may have changed. An empty Run means: look at everything.
type Hint struct{ Run string }

// Leaser elects a leader, by the database's clock.
type Leaser interface {
	// Lead takes or renews the lease for leader. It returns the fence and true while leader leads.
	// A lease that another leader holds is not an error.
	Lead(ctx context.Context, leader string, ttl time.Duration) (Fence, bool, error)
	// Clock reads the database's clock, which all daemons of an instance share.
	Clock(ctx context.Context) (time.Time, error)
	// Yield ends the lease early, if the fence still holds it.
	Yield(ctx context.Context, f Fence) error
}

// Reader reads runs and their events.
type Reader interface {
	// Runs returns the selected runs, with their current launch and handle rows.
	Runs(ctx context.Context, f Filter) ([]Run, error)
	// Heads returns, for each selected run, the facts that tell whether the run has changed. For
	// many runs it is much cheaper than Runs.
	Heads(ctx context.Context, f Filter) ([]Head, error)
	// Events returns the events of one run in the order they were stored; of all types if none is
	// named.
	Events(ctx context.Context, run string, types ...dagster.EventType) ([]dagster.Event, error)
	// EventsAfter returns the events of one run that were stored after the event with the given id,
	// and the newest id. If after is below zero, it returns only the newest id. Events that wait in
	// an outbox have no id yet and are not included.
	EventsAfter(ctx context.Context, run string, after int64) ([]dagster.Event, int64, error)
	// InstanceID returns the run_storage_id that Dagster gave to the storage. It creates one if
	// there is none yet.
	InstanceID(ctx context.Context) (string, error)
}

// Writer changes runs under a fence.
type Writer interface {
	// Claim turns queued runs to STARTING with a new launch row each, and returns an outcome for
	// each. It is one transaction where the storage allows it: it returns all outcomes, or an error
	// and then the outcome is unknown. The events may wait for Flush, which the caller calls after
	// it has handed the claims on.
	//
	// After an error the caller makes the same call again, with the same tokens, until it gets an
	// answer. A claim that the first call wrote, or still commits, is then reported as done, with
	// the status that the run has now. Nothing is written twice.
	Claim(ctx context.Context, f Fence, claims []Claim) ([]Outcome, error)
	// Move carries out one transition. After an error the caller makes the same call again, with
	// the same transition, as for Claim: token, handle and events must be those of the first call.
	Move(ctx context.Context, f Fence, t Transition) (Outcome, error)
}

// Heart reads and writes the heartbeats of daemons.
type Heart interface {
	Heartbeats(ctx context.Context) ([]Heartbeat, error)
	// Beat writes the heartbeat of a daemon type, unless another id has written one since the given
	// time. It reports whether it wrote.
	Beat(ctx context.Context, h Heartbeat, since time.Time) (bool, error)
}

// Entries reads and writes Slipway's entries of the table kvs.
type Entries interface {
	// Entries returns the entries whose keys begin with a prefix.
	Entries(ctx context.Context, prefix string) (map[string]string, error)
	// SetEntry writes one; an empty value removes it.
	SetEntry(ctx context.Context, key, value string) error
}

// Heartbeat is one row of daemon_heartbeats.
type Heartbeat struct {
	Type, ID string
	At       time.Time
}

// Store is a complete storage. Its methods may be called from many goroutines at once.
type Store interface {
	Leaser
	Reader
	Writer
	Heart
	Pooler
	Recorder
	Adder
	Entries
	// Revision returns the revision of the schema, as alembic names it; "" if the storage has none.
	Revision() string
	// Probe tries the writes of a daemon and rolls them back. It returns everything that would make
	// them fail, as a [Fault] if the remedy is known.
	Probe(ctx context.Context) []error
	// Flush finishes committed writes: the events of claims, and the rest of a write during which a
	// process died. It must be called after taking the lead, before anything else.
	Flush(ctx context.Context, f Fence) error
	// Hints yields first a hint for everything and then one for each change that it notices, until
	// ctx ends. An error means that hints may have been lost; the caller calls Hints again.
	Hints(ctx context.Context) iter.Seq2[Hint, error]
	Close() error
}
