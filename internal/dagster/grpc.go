package dagster

import (
	"encoding/json"
	"fmt"
)

// GRPCInfoTag tells Dagster's DefaultRunLauncher where a run can be canceled.
const GRPCInfoTag = ".dagster/grpc_info"

// GRPCInfo returns the value of [GRPCInfoTag]: a server of api.DagsterApi, at host and port or at a
// unix socket.
func GRPCInfo(host string, port int, socket string, tls bool) string {
	v := map[string]any{"host": host}
	if socket != "" {
		v["socket"] = socket
	} else {
		v["port"] = port
	}
	if tls {
		v["use_ssl"] = true
	}
	return string(Encode(v))
}

// ParseRunRequest returns the run ID of a CancelExecutionRequest or CanCancelExecutionRequest.
func ParseRunRequest(text string) (string, error) {
	o, err := ParseObject(text)
	if err != nil {
		return "", fmt.Errorf("request: %w", err)
	}
	id := o.text("run_id")
	if id == "" {
		return "", fmt.Errorf("request %s: run_id is missing", o.Class())
	}
	return id, nil
}

// CancelExecutionResult returns the reply of CancelExecution; message "" means no message.
func CancelExecutionResult(success bool, message string) string {
	var m any
	if message != "" {
		m = message
	}
	return string(Encode(map[string]any{"__class__": "CancelExecutionResult", "message": m,
		"serializable_error_info": nil, "success": success}))
}

// CanCancelExecutionResult returns the reply of CanCancelExecution.
func CanCancelExecutionResult(can bool) string {
	return string(Encode(map[string]any{"__class__": "CanCancelExecutionResult", "can_cancel": can}))
}

// StartRunArgs returns the request of StartRun: a process of the code server executes the run.
func StartRunArgs(run Run, ref json.RawMessage) string {
	return string(Encode(map[string]any{
		"__class__": "ExecuteExternalPipelineArgs", "instance_ref": ref,
		"pipeline_origin": run.body["external_pipeline_origin"], "pipeline_run_id": run.ID,
	}))
}

// RunRequest returns a CancelExecutionRequest or CanCancelExecutionRequest.
func RunRequest(class, run string) string {
	return string(Encode(map[string]any{"__class__": class, "run_id": run}))
}

// ParseResult reads a StartRunResult or CancelExecutionResult: whether it succeeded, and why not.
func ParseResult(text string) (success bool, message string, err error) {
	o, err := ParseObject(text)
	if err != nil {
		return false, "", fmt.Errorf("reply: %w", err)
	}
	success, _ = o.Value("success").(bool)
	if message = o.text("message"); message == "" {
		if e := o.object("serializable_error_info"); e != nil {
			message = e.text("message")
		}
	}
	return success, message, nil
}

// ParseCanCancel reads a CanCancelExecutionResult.
func ParseCanCancel(text string) (bool, error) {
	o, err := ParseObject(text)
	if err != nil {
		return false, fmt.Errorf("reply: %w", err)
	}
	can, _ := o.Value("can_cancel").(bool)
	return can, nil
}

// ParseCurrentRuns reads a GetCurrentRunsResult.
func ParseCurrentRuns(text string) ([]string, error) {
	o, err := ParseObject(text)
	if err != nil {
		return nil, fmt.Errorf("reply: %w", err)
	}
	list, _ := o.Value("current_runs").([]any)
	runs := make([]string, 0, len(list))
	for _, r := range list {
		if id, ok := r.(string); ok {
			runs = append(runs, id)
		}
	}
	return runs, nil
}
