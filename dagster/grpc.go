package dagster

import (
	"fmt"
)

// GRPCInfoTag tells Dagster's DefaultRunLauncher where a run can be canceled.
const GRPCInfoTag = ".dagster/grpc_info"

// GRPCInfo is the value of [GRPCInfoTag]: a server of api.DagsterApi, at host and port or at a unix socket.
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

// ParseRunRequest reads the run ID of a CancelExecutionRequest or CanCancelExecutionRequest.
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

// CancelExecutionResult is the reply of CancelExecution; message "" is none.
func CancelExecutionResult(success bool, message string) string {
	var m any
	if message != "" {
		m = message
	}
	return string(Encode(map[string]any{"__class__": "CancelExecutionResult", "message": m, "serializable_error_info": nil, "success": success}))
}

// CanCancelExecutionResult is the reply of CanCancelExecution.
func CanCancelExecutionResult(can bool) string {
	return string(Encode(map[string]any{"__class__": "CanCancelExecutionResult", "can_cancel": can}))
}
