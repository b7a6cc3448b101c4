package dagster

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ExecuteRunArgs is the argument of `dagster api execute_run`: which run, from which instance.
type ExecuteRunArgs struct {
	InstanceRef json.RawMessage // nil: the worker reads dagster.yaml in its own DAGSTER_HOME
	Origin      json.RawMessage // the run's PipelinePythonOrigin
	RunID       string
	// SetExitCodeOnFailure makes the worker exit with 1 when its run fails. Without it a worker
	// exits with 0, however its run ended.
	SetExitCodeOnFailure bool
	// Resume turns them into the ResumeRunArgs of `dagster api resume_run`, which continues a run
	// whose worker died.
	Resume bool
}

// ParseExecuteRunArgs decodes the argument of `dagster api execute_run` or resume_run.
func ParseExecuteRunArgs(text string) (ExecuteRunArgs, error) {
	o, err := ParseObject(text)
	if err != nil {
		return ExecuteRunArgs{}, fmt.Errorf("arguments: %w", err)
	}
	a := ExecuteRunArgs{RunID: o.text("pipeline_run_id"), Origin: o["pipeline_origin"],
		Resume: o.Class() == "ResumeRunArgs"}
	a.SetExitCodeOnFailure, _ = o.Value("set_exit_code_on_failure").(bool)
	if ref := o["instance_ref"]; string(ref) != "null" {
		a.InstanceRef = ref
	}
	if a.RunID == "" {
		return ExecuteRunArgs{}, fmt.Errorf("arguments: pipeline_run_id is missing")
	}
	return a, nil
}

// JSON returns the text of the argument.
func (a ExecuteRunArgs) JSON() string {
	ref := json.RawMessage("null")
	if a.InstanceRef != nil {
		ref = a.InstanceRef
	}
	var exit any
	if a.SetExitCodeOnFailure {
		exit = true
	}
	class := "ExecuteRunArgs"
	if a.Resume {
		class = "ResumeRunArgs"
	}
	return string(Encode(map[string]any{
		"__class__": class, "instance_ref": ref, "pipeline_origin": a.Origin,
		"pipeline_run_id": a.RunID, "set_exit_code_on_failure": exit,
	}))
}

// CompressedArgsEnv is the variable from which `dagster api execute_run` of Dagster 1.12 and newer
// reads its arguments, in the form that [Compress] returns, if the command line has none.
const CompressedArgsEnv = "DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS"

// Decompress is the inverse of [Compress].
func Decompress(text string) (string, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", fmt.Errorf("dagster: decompress: %w", err)
	}
	r, err := zlib.NewReader(bytes.NewReader(raw))
	if err != nil {
		return "", fmt.Errorf("dagster: decompress: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxArguments))
	if err = errors.Join(err, r.Close()); err != nil {
		return "", fmt.Errorf("dagster: decompress: %w", err)
	}
	return string(out), nil
}

// maxArguments is the most bytes that Decompress returns.
const maxArguments = 64 << 20

// Compress returns text in the form that Dagster's --compressed-input-json accepts: zlib, then
// base64.
func Compress(text string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, err := w.Write([]byte(text))
	if err2 := w.Close(); err != nil || err2 != nil { // a bytes.Buffer does not fail
		panic(fmt.Sprint("dagster: compress: ", err, err2))
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}
