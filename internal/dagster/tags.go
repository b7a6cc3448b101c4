package dagster

// Tags that have a meaning in Dagster.
const (
	PriorityTag      = "dagster/priority"
	CodeLocationTag  = "dagster/code_location"
	PartitionTag     = "dagster/partition"
	FailureReasonTag = "dagster/failure_reason"
	MaxRuntimeTag    = "dagster/max_runtime" // seconds

	maxRuntimeSecondsTag = "dagster/max_runtime_seconds" // read where there is no MaxRuntimeTag
)

// RunFailureReason is why a run failed, as in the tag dagster/failure_reason.
type RunFailureReason string

// The reasons that Slipway writes. Dagster 1.13 has more.
const (
	UnexpectedTermination RunFailureReason = "UNEXPECTED_TERMINATION"
	StartTimeout          RunFailureReason = "START_TIMEOUT"
	StepFailureReason     RunFailureReason = "STEP_FAILURE"
	InitializationFailure RunFailureReason = "JOB_INITIALIZATION_FAILURE"
)
