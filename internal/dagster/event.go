package dagster

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
)

// EventType is a DagsterEvent's type as it is stored, with the old PIPELINE_ names.
type EventType string

// The types that change a run's status, and further types that Slipway reads or writes.
const (
	RunEnqueued  EventType = "PIPELINE_ENQUEUED"
	RunStarting  EventType = "PIPELINE_STARTING"
	RunStart     EventType = "PIPELINE_START"
	RunSuccess   EventType = "PIPELINE_SUCCESS"
	RunFailure   EventType = "PIPELINE_FAILURE"
	RunCanceling EventType = "PIPELINE_CANCELING"
	RunCanceled  EventType = "PIPELINE_CANCELED"
	RunSuspended EventType = "RUN_SUSPENDED"
	RunResumed   EventType = "RUN_RESUMED"
	EngineEvent  EventType = "ENGINE_EVENT"

	StepStart      EventType = "STEP_START"
	StepSuccess    EventType = "STEP_SUCCESS"
	StepFailure    EventType = "STEP_FAILURE"
	StepUpForRetry EventType = "STEP_UP_FOR_RETRY"
	StepRestarted  EventType = "STEP_RESTARTED"
	LogsCaptured   EventType = "LOGS_CAPTURED"
)

// StatusEventTypes returns the types that change a run's status.
func StatusEventTypes() []EventType {
	return []EventType{RunEnqueued, RunStarting, RunStart, RunSuccess, RunFailure, RunCanceling, RunCanceled,
		RunSuspended, RunResumed}
}

// Status returns the status that an event of this type gives its run; "" if it changes none.
func (t EventType) Status() Status {
	switch t {
	case RunEnqueued:
		return Queued
	case RunStarting:
		return Starting
	case RunStart, RunResumed:
		return Started
	case RunSuccess:
		return Success
	case RunFailure:
		return Failure
	case RunCanceling:
		return Canceling
	case RunCanceled:
		return Canceled
	case RunSuspended:
		return Suspended
	}
	return ""
}

// Levels of events: Python's logging levels.
const (
	LevelDebug = 10
	LevelInfo  = 20
	LevelError = 40
)

// MarkedFailed is Dagster's own text (dagster._core.instance.DagsterInstance).
const MarkedFailed = "This run has been marked as failed from outside the execution context."

// Event is one entry of a run's event log: an EventLogEntry and the DagsterEvent in it.
type Event struct {
	RunID, Job string
	Type       EventType // "" for a plain log message
	Message    string    // of the DagsterEvent
	Level      int
	Time       time.Time       // microseconds
	StepKey    string          // "" for an event of the whole run
	Data       json.RawMessage // event_specific_data; nil is null
	// PID and Inside are only set in events that a run worker writes, not in parsed ones.
	PID    int
	Inside bool // written by the worker: the entry has the message as well

	entry, event Object
}

// Error returns the error in the event's data, or of the entry itself; nil if there is none.
func (e Event) Error() *ErrorInfo {
	data, _ := ParseObject(string(e.Data)) // none, or of a type without errors
	for _, o := range []Object{data.object("error"), e.entry.object("error_info")} {
		if o != nil {
			info := errorInfoOf(o)
			return &info
		}
	}
	return nil
}

// ParseEvent decodes the text of event_logs.event.
func ParseEvent(text string) (Event, error) {
	entry, err := ParseObject(text)
	if err != nil {
		return Event{}, fmt.Errorf("event: %w", err)
	}
	event := entry.object("dagster_event")
	stamp, _ := entry.Value("timestamp").(json.Number)
	seconds, err := strconv.ParseFloat(string(stamp), 64)
	if err != nil {
		return Event{}, fmt.Errorf("event: timestamp %q is not a number", string(stamp))
	}
	level, _ := entry.Value("level").(json.Number)
	n, err := strconv.Atoi(string(level))
	if err != nil {
		return Event{}, fmt.Errorf("event: level %q is not a number", string(level))
	}
	e := Event{
		RunID: entry.text("run_id"), Job: entry.text("pipeline_name"),
		Type: EventType(event.text("event_type_value")), Message: event.text("message"),
		Level: n, Time: FromUnix(seconds), StepKey: event.text("step_key"),
		entry: entry, event: event,
	}
	if e.Message == "" {
		e.Message = entry.text("user_message")
	}
	if e.StepKey == "" {
		e.StepKey = entry.text("step_key")
	}
	if d := event["event_specific_data"]; d != nil && string(d) != "null" {
		e.Data = d
	}
	return e, nil
}

// JSON returns the text to store. For a parsed event this is the text that was read. An event that
// was made here gets the full set of keys that Dagster 1.13 writes for an event from outside the
// run.
func (e Event) JSON() string {
	if e.entry != nil {
		return e.entry.JSON()
	}
	data, message := json.RawMessage("null"), any(nil)
	if e.Data != nil {
		data = e.Data
	}
	if e.Message != "" {
		message = e.Message
	}
	entry := map[string]any{
		"__class__": "EventLogEntry", "dagster_event": nil,
		"error_info": nil, "level": e.Level, "message": "", "pipeline_name": e.Job,
		"run_id": e.RunID, "step_key": nil, "timestamp": ToUnix(e.Time), "user_message": "",
	}
	if e.Inside {
		entry["user_message"] = e.Message
	}
	if e.StepKey != "" {
		entry["step_key"] = e.StepKey
	}
	if e.Type == "" {
		return string(Encode(entry))
	}
	event := map[string]any{
		"__class__": "DagsterEvent", "event_specific_data": data, "event_type_value": string(e.Type),
		"logging_tags": map[string]any{}, "message": message, "pid": nil, "pipeline_name": e.Job,
		"solid_handle": nil, "step_handle": nil, "step_key": nil, "step_kind_value": nil,
	}
	if e.PID > 0 {
		event["pid"] = e.PID
	}
	if e.StepKey != "" {
		handle := map[string]any{"__class__": "SolidHandle", "name": e.StepKey, "parent": nil}
		event["solid_handle"], event["step_key"], event["step_kind_value"] = handle, e.StepKey, "COMPUTE"
		event["step_handle"] = map[string]any{"__class__": "StepHandle", "key": e.StepKey, "solid_handle": handle}
		event["logging_tags"] = map[string]any{
			"job_name": e.Job, "op_name": e.StepKey, "resource_fn_name": "None", "resource_name": "None",
			"run_id": e.RunID, "step_key": e.StepKey,
		}
	}
	entry["dagster_event"] = event
	return string(Encode(entry))
}

// NewEvent returns an event of a run as Dagster's instance would report it from outside the run.
func NewEvent(r Run, t EventType, at time.Time, message string) Event {
	level := LevelInfo
	if t == RunFailure || t == RunCanceled {
		level = LevelError
	}
	return Event{RunID: r.ID, Job: r.Job, Type: t, Message: message, Level: level, Time: at.Truncate(time.Microsecond)}
}

// NewEngineEvent returns an ENGINE_EVENT with text metadata. If err is not nil, the event shows it
// as its error, and its level is error.
func NewEngineEvent(r Run, at time.Time, message string, metadata []Metadata, err error) Event {
	e := NewEvent(r, EngineEvent, at, message)
	if err != nil {
		e.Level = LevelError
	}
	entries := []any{}
	for _, m := range metadata {
		entries = append(entries, map[string]any{
			"__class__": "EventMetadataEntry", "description": nil, "label": m.Label,
			"entry_data": map[string]any{"__class__": "TextMetadataEntryData", "text": m.Text},
		})
	}
	e.Data = Encode(map[string]any{
		"__class__": "EngineEventData", "error": errorValue(err), "marker_end": nil, "marker_start": nil,
		"metadata_entries": entries,
	})
	return e
}

// Metadata is one labelled text on an engine event.
type Metadata struct{ Label, Text string }

// Texts returns the texts among the metadata of an engine event.
func (e Event) Texts() []Metadata {
	var data struct {
		Entries []struct {
			Label string `json:"label"`
			Data  struct {
				Text string `json:"text"`
			} `json:"entry_data"`
		} `json:"metadata_entries"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return nil // of an event that has none
	}
	var out []Metadata
	for _, m := range data.Entries {
		if m.Data.Text != "" {
			out = append(out, Metadata{m.Label, m.Data.Text})
		}
	}
	return out
}

// NewRunFailure returns a PIPELINE_FAILURE with a reason. Dagster also keeps the reason in the tag
// dagster/failure_reason.
func NewRunFailure(r Run, at time.Time, message string, reason RunFailureReason, err error) Event {
	e := NewEvent(r, RunFailure, at, message)
	e.Data = Encode(map[string]any{
		"__class__": "PipelineFailureData", "error": errorValue(err), "first_step_failure_event": nil,
		"failure_reason": Object{"__enum__": Encode("RunFailureReason." + string(reason))},
	})
	return e
}

// NewRunEnqueued returns a PIPELINE_ENQUEUED as QueuedRunCoordinator writes it.
func NewRunEnqueued(r Run, at time.Time) Event {
	e := NewEvent(r, RunEnqueued, at, "")
	if r.Remote.Location == "" {
		return e
	}
	var partition any
	if p, ok := r.Tags["dagster/partition"]; ok {
		partition = p
	}
	e.Data = Encode(map[string]any{
		"__class__": "RunEnqueuedData", "code_location_name": r.Remote.Location,
		"partition_key": partition, "repository_name": r.Remote.Repository,
	})
	return e
}

// ToUnix returns a time as the float of seconds that Python's datetime.timestamp returns for the
// same microsecond.
func ToUnix(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// FromUnix returns the microsecond that Python's datetime.fromtimestamp returns for a float of
// seconds, in UTC.
func FromUnix(seconds float64) time.Time {
	whole, fraction := math.Modf(seconds) // the product seconds*1e6 would round a second time
	return time.UnixMicro(int64(whole)*1e6 + int64(math.RoundToEven(fraction*1e6))).UTC()
}
