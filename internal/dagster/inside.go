package dagster

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Events as a run worker writes them about its run and steps (dagster._core.events, 1.13).

// Inside creates the events of one run in the form that its worker writes.
type Inside struct {
	Run Run
	PID int
	Now func() time.Time
}

// NewInside returns an Inside for this process.
func NewInside(r Run) Inside { return Inside{Run: r, PID: os.Getpid(), Now: time.Now} }

func (i Inside) event(t EventType, step string, level int, data any, format string, args ...any) Event {
	e := Event{
		RunID: i.Run.ID, Job: i.Run.Job, Type: t, Message: fmt.Sprintf(format, args...), Level: level,
		Time: i.Now().Truncate(time.Microsecond), StepKey: step, PID: i.PID, Inside: true,
	}
	if data != nil {
		e.Data = Encode(data)
	}
	return e
}

// Engine returns an ENGINE_EVENT. If err is not nil, the event shows it as its error.
func (i Inside) Engine(message string, err error) Event {
	level := LevelInfo
	if err != nil {
		level = LevelError
	}
	return i.event(EngineEvent, "", level, map[string]any{
		"__class__": "EngineEventData", "error": errorValue(err), "marker_end": nil, "marker_start": nil,
		"metadata_entries": []any{map[string]any{
			"__class__": "EventMetadataEntry", "description": nil, "label": "pid",
			"entry_data": map[string]any{"__class__": "TextMetadataEntryData", "text": fmt.Sprint(i.PID)},
		}},
	}, "%s", message)
}

// Log returns a line of a step's log. The level is a logging level of Python.
func (i Inside) Log(step string, level int, message string) Event {
	return i.event("", step, level, nil, "%s", message)
}

// Start returns the run's PIPELINE_START.
func (i Inside) Start() Event {
	return i.event(RunStart, "", LevelDebug, nil, "Started execution of run for %q.", i.Run.Job)
}

// Success returns the end of a run that succeeded.
func (i Inside) Success() Event {
	return i.event(RunSuccess, "", LevelDebug, nil, "Finished execution of run for %q.", i.Run.Job)
}

// Canceled returns the end of a run that was interrupted.
func (i Inside) Canceled() Event {
	return i.event(RunCanceled, "", LevelError, map[string]any{"__class__": "PipelineCanceledData", "error": nil},
		"Execution of run for %q canceled.", i.Run.Job)
}

// Failure returns the end of a run that failed. If a step failed, first is the first such failure.
func (i Inside) Failure(message string, reason RunFailureReason, first *Event, err error) Event {
	data := map[string]any{
		"__class__": "PipelineFailureData", "error": errorValue(err), "first_step_failure_event": nil,
		"failure_reason": Object{"__enum__": Encode("RunFailureReason." + string(reason))},
	}
	if first != nil {
		entry, perr := ParseObject(first.JSON())
		if perr == nil { // it was encoded just now
			data["first_step_failure_event"] = entry["dagster_event"]
		}
	}
	return i.event(RunFailure, "", LevelError, data, "%s", message)
}

// StepStart returns the start of a step's attempt. Attempts count from 1.
func (i Inside) StepStart(step string, attempt int) Event {
	if attempt > 1 {
		return i.event(StepRestarted, step, LevelDebug, nil, "Started re-execution (attempt # %d) of step %q.", attempt,
			step)
	}
	return i.event(StepStart, step, LevelDebug, nil, "Started execution of step %q.", step)
}

// StepSuccess returns the end of a step that succeeded.
func (i Inside) StepSuccess(step string, took time.Duration) Event {
	ms := float64(took.Microseconds()) / 1000
	return i.event(StepSuccess, step, LevelDebug, map[string]any{"__class__": "StepSuccessData", "duration_ms": ms},
		"Finished execution of step %q in %dms.", step, took.Milliseconds())
}

// StepFailure returns the end of a step that failed.
func (i Inside) StepFailure(step string, err error) Event {
	return i.event(StepFailure, step, LevelError, map[string]any{
		"__class__": "StepFailureData", "error": errorValue(err),
		"error_source": Object{"__enum__": json.RawMessage(`"ErrorSource.USER_CODE_ERROR"`)}, "user_failure_data": nil,
	}, "Execution of step %q failed.", step)
}

// StepUpForRetry returns the end of a step's attempt that will be repeated.
func (i Inside) StepUpForRetry(step string, wait time.Duration, err error) Event {
	var seconds any
	if wait > 0 {
		seconds = wait.Seconds()
	}
	return i.event(StepUpForRetry, step, LevelDebug,
		map[string]any{"__class__": "StepRetryData", "error": errorValue(err), "seconds_to_wait": seconds},
		"Execution of step %q failed and has requested a retry.", step)
}

// LogsCaptured returns the event that records the key under which the output of steps is captured.
func (i Inside) LogsCaptured(key string, steps ...string) Event {
	return i.event(LogsCaptured, "", LevelDebug, map[string]any{
		"__class__": "ComputeLogsCaptureData", "external_stderr_url": nil, "external_stdout_url": nil,
		"external_url": nil,
		"log_key":      key, "shell_cmd": nil, "step_keys": steps,
	}, "Capturing logs for process (pid: %d).", i.PID)
}
