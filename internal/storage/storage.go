// Package storage is what Slipway asks of Dagster's shared storage, for SQLite and Postgres
// alike. Package storagetest holds the one suite that both pass.
//
// It rests on the protocol that makes a run exactly one worker: a run is claimed in the same
// transaction that turns it from QUEUED to STARTING and writes its launch row; every later
// change names the status it expects and the epoch of the leader that makes it, and losing
// either race is a normal outcome. The tables are Dagster's: rows are added, never tables,
// columns or migrations.
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

// ErrDeaf means that the storage's notices do not arrive, although it takes them.
var ErrDeaf = errors.New("notices do not arrive")

// Run is a run as stored. Its status is that of the column, which wins over the body's.
type Run struct {
	dagster.Run
	Row              int64     // runs.id: the order of creation
	Created, Updated time.Time // by the clock of whoever wrote them
	Start, End       time.Time // zero while there is none
	Facts
	Broken error // the body cannot be read; only ID, Row and Status are set then
}

// QueuedBefore says whether r was read in the queue before a claim of it. One that went back to the
// queue since has the claim's row, voided, or a later one: the time of its change alone says
// nothing where a clock was set back.
func (r Run) QueuedBefore(claim LaunchRow) bool {
	since := r.Last != nil && (r.Last.Attempt > claim.Attempt || r.Last.Token == claim.Token && r.Last.State == Void)
	return r.Status == dagster.Queued && r.Updated.Before(claim.At) && !since
}

// Head is what tells whether a run has changed: each change of its row sets the time, by the clock
// of whoever made it.
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

// Fence proves who leads. Every writing transaction checks it first and fails with [ErrFenced].
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

// Outcome is what became of a Claim or Transition.
type Outcome struct {
	Done   bool           // false: the run was not in an expected status, or its launch row is another
	Status dagster.Status // of the run, after it; "" if the run is gone, or Busy
	// of a Claim: somebody holds the run's row, and nothing is known; the claim has to be made
	// again
	Busy   bool
	Launch LaunchRow // the current one, after what is Done; zero if there is none
	// of a Claim that is Done: the run, as it is after the claim
	Run *dagster.Run
}

// Transition is one change of a run, in one transaction.
type Transition struct {
	Run    string
	From   []dagster.Status // the statuses it may have now; empty: any
	Launch string           // token that the current launch row must have; "" for any or none
	Handle string           // written as the handle row of that launch row, if not ""
	// Void ends the launch row: nothing exists and nothing will. A worker that has passed its gate
	// exists: without its Death the transition is refused.
	Void bool
	// Events are added in order. The last of them that gives a status sets the run's.
	Events []dagster.Event
	// Stands is an event that the log holds already, whose status the run's row lacks.
	Stands *dagster.Event
	Tags   map[string]string // set in run_tags and in the body, CauseTag, CostTag and BillTag in run_tags alone
	Death  *Death            // of the worker of the current launch row
	// Began is when the run was seen to have started, by the database's clock; zero: it is not
	// written.
	Began time.Time
	// Next replaces the current launch row by that of another attempt, while the run's status
	// stays. [Outcome] has the row.
	Next *Next
}

// Next asks for a further attempt at a run in flight; with an Instance, for the first one at a run
// that somebody else has launched and whose worker is known: it is adopted, if it has no launch row
// of ours.
type Next struct {
	Launcher, Token string
	Instance        string
	Epoch           int64
	At              time.Time
}

// Hint says that a run may have changed. An empty Run means: look at everything.
type Hint struct{ Run string }

// Leaser is the part that elects a leader, on the database's clock.
type Leaser interface {
	// Lead takes or renews the lease for leader. It gives the fence and true while leader leads; a
	// lease that another leader holds is no error.
	Lead(ctx context.Context, leader string, ttl time.Duration) (Fence, bool, error)
	// Clock reads the database's clock, which all daemons of an instance share.
	Clock(ctx context.Context) (time.Time, error)
	// Yield ends the lease early, if the fence still holds it.
	Yield(ctx context.Context, f Fence) error
}

// Reader reads runs and their events.
type Reader interface {
	// Runs gives the selected runs, with their current launch and handle rows.
	Runs(ctx context.Context, f Filter) ([]Run, error)
	// Heads gives of the selected runs what tells whether they have changed. Of very many runs it is
	// much cheaper than Runs.
	Heads(ctx context.Context, f Filter) ([]Head, error)
	// Events gives the events of one run in the order they were stored, all types if none is named.
	Events(ctx context.Context, run string, types ...dagster.EventType) ([]dagster.Event, error)
	// EventsAfter gives the events of one run that were stored after the one with the given id, and
	// the id of the newest. Below zero it gives the newest id alone. Events that wait in an outbox
	// have no id yet and are not among them.
	EventsAfter(ctx context.Context, run string, after int64) ([]dagster.Event, int64, error)
	// InstanceID is the run_storage_id that Dagster gave to the storage, made if there is none yet.
	InstanceID(ctx context.Context) (string, error)
}

// Writer changes runs under a fence.
type Writer interface {
	// Claim turns queued runs to STARTING with a new launch row each, and says which of them it
	// got. It is one transaction where the storage allows it: all outcomes, or an error and an
	// unknown outcome. The events may wait for Flush, which the caller calls once it has handed the
	// claims on.
	//
	// After an error the caller makes the same call again, with the same tokens, until it has an
	// answer. What the first call wrote, or still commits, is done then, with the status that the
	// run has now; nothing is written twice.
	Claim(ctx context.Context, f Fence, claims []Claim) ([]Outcome, error)
	// Move carries out one transition. After an error the caller makes the same call again, with
	// the same transition, as for Claim: token, handle and events must be those of the first call.
	Move(ctx context.Context, f Fence, t Transition) (Outcome, error)
}

// Heart reads and writes the heartbeats of daemons.
type Heart interface {
	Heartbeats(ctx context.Context) ([]Heartbeat, error)
	// Beat writes the heartbeat of a daemon type, unless another id has written one since the given
	// time.
	Beat(ctx context.Context, h Heartbeat, since time.Time) (bool, error)
}

// Entries are texts of ours in the table kvs.
type Entries interface {
	// Entries gives those whose keys begin with a prefix.
	Entries(ctx context.Context, prefix string) (map[string]string, error)
	// SetEntry writes one; an empty value takes it away.
	SetEntry(ctx context.Context, key, value string) error
}

// Heartbeat is one row of daemon_heartbeats.
type Heartbeat struct {
	Type, ID string
	At       time.Time
}

// Store is the whole of it. Its methods may be called from many goroutines at once.
type Store interface {
	Leaser
	Reader
	Writer
	Heart
	Pooler
	Recorder
	Adder
	Entries
	// Revision is the schema's, as alembic names it; "" if the storage says none.
	Revision() string
	// Probe tries the writes of a daemon, keeps nothing of them, and returns everything that would
	// make them fail, a [Fault] where the remedy is known.
	Probe(ctx context.Context) []error
	// Flush writes what committed writes have left to be written: of claims, and of a process that
	// died in the middle of a write. It must be called after taking the lead, before anything else.
	Flush(ctx context.Context, f Fence) error
	// Hints yields a hint for each change it hears of, first one for everything, until ctx ends. An
	// error means that hints may have been lost; the caller starts again.
	Hints(ctx context.Context) iter.Seq2[Hint, error]
	Close() error
}
