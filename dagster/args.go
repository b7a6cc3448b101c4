package dagster

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// ExecuteRunArgs is what `dagster api execute_run` takes: which run, from which instance.
type ExecuteRunArgs struct {
	InstanceRef json.RawMessage // nil: the worker reads dagster.yaml in its own DAGSTER_HOME
	Origin      json.RawMessage // the run's PipelinePythonOrigin
	RunID       string
	// SetExitCodeOnFailure makes the worker exit with 1 when its run fails. Without it a worker exits
	// with 0 whatever became of its run.
	SetExitCodeOnFailure bool
}

// JSON is the text of the argument.
func (a ExecuteRunArgs) JSON() string {
	ref := json.RawMessage("null")
	if a.InstanceRef != nil {
		ref = a.InstanceRef
	}
	var exit any
	if a.SetExitCodeOnFailure {
		exit = true
	}
	return string(Encode(map[string]any{
		"__class__": "ExecuteRunArgs", "instance_ref": ref, "pipeline_origin": a.Origin,
		"pipeline_run_id": a.RunID, "set_exit_code_on_failure": exit,
	}))
}

// CompressedArgsEnv is the variable from which `dagster api execute_run` of Dagster 1.12 and newer reads its
// arguments in the form that [Compress] gives, when it has none on the command line.
const CompressedArgsEnv = "DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS"

// Compress is text in the form that Dagster's --compressed-input-json takes: zlib, then base64.
func Compress(text string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, err := w.Write([]byte(text))
	if err2 := w.Close(); err != nil || err2 != nil { // a bytes.Buffer does not fail
		panic(fmt.Sprint("dagster: compress: ", err, err2))
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}
