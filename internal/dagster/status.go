package dagster

import "slices"

// Status is the status of a run, as in the column runs.status.
type Status string

// The statuses of Dagster 1.13 (dagster._core.storage.dagster_run.DagsterRunStatus).
const (
	Queued     Status = "QUEUED"
	NotStarted Status = "NOT_STARTED"
	Managed    Status = "MANAGED"
	Starting   Status = "STARTING"
	Started    Status = "STARTED"
	Suspended  Status = "SUSPENDED"
	Success    Status = "SUCCESS"
	Failure    Status = "FAILURE"
	Canceling  Status = "CANCELING"
	Canceled   Status = "CANCELED"
)

// Statuses returns all statuses.
func Statuses() []Status {
	return []Status{Queued, NotStarted, Managed, Starting, Started, Suspended, Success, Failure, Canceling, Canceled}
}

// ActiveStatuses returns the statuses that count against limits.
func ActiveStatuses() []Status { return []Status{Starting, Started, Canceling} }

// UnfinishedStatuses returns the statuses of runs that Slipway may still have to act on.
func UnfinishedStatuses() []Status { return []Status{Queued, Starting, Started, Canceling} }

// Active reports whether a run with this status counts against limits.
func (s Status) Active() bool { return slices.Contains(ActiveStatuses(), s) }

// Finished reports whether the status is one of the three final ones.
func (s Status) Finished() bool { return s == Success || s == Failure || s == Canceled }
