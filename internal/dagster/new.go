package dagster

import (
	"encoding/json"
	"maps"
	"strings"
)

// GoWorker is the entry point of runs whose worker is slipway-worker, not Dagster's Python.
const GoWorker = "slipway-worker"

// CommandLocation is the name of the code location of these runs. No code server serves it.
const CommandLocation = "slipway"

// NewCommandRun returns a run of a command job, whose steps are in its config.
func NewCommandRun(id, job string, config json.RawMessage, tags map[string]string) Run {
	return newRun(id, job, CommandLocation, "", GoWorker, "slipway", config, tags)
}

// NewSampleRun returns a sample run in the form that webservers create, to show how such a run
// would be launched. No code location has its job.
func NewSampleRun(id, job, location, image string, tags map[string]string) Run {
	return newRun(id, job, location, image, "dagster", "sample", json.RawMessage("{}"), tags)
}

func newRun(id, job, location, image, entryPoint, module string, config json.RawMessage, tags map[string]string) Run {
	tags = maps.Clone(tags)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[CodeLocationTag] = location
	var containerImage any
	if image != "" {
		containerImage = image
	}
	executable := entryPoint
	if entryPoint == "dagster" {
		executable = "python"
	}
	body := Encode(map[string]any{
		"__class__": "PipelineRun", "asset_check_selection": nil, "asset_selection": nil,
		"execution_plan_snapshot_id": nil,
		"external_pipeline_origin": map[string]any{
			"__class__": "ExternalPipelineOrigin", "pipeline_name": job,
			"external_repository_origin": map[string]any{
				"__class__": "ExternalRepositoryOrigin", "repository_name": "__repository__",
				"repository_location_origin": map[string]any{
					"__class__": "GrpcServerRepositoryLocationOrigin", "host": "localhost", "location_name": location,
					"port": 1, "socket": nil,
				},
			},
		},
		"has_repository_load_data": false, "mode": nil, "parent_run_id": nil, "partitions_subset": nil,
		"pipeline_code_origin": map[string]any{
			"__class__": "PipelinePythonOrigin", "pipeline_name": job,
			"repository_origin": map[string]any{
				"__class__": "RepositoryPythonOrigin", "container_context": map[string]any{},
				"container_image": containerImage,
				"entry_point":     []string{entryPoint}, "executable_path": executable,
				"code_pointer": map[string]any{"__class__": "ModuleCodePointer", "fn_name": "command_job",
					"module": module, "working_directory": nil},
			},
		},
		"pipeline_name": job, "pipeline_snapshot_id": nil, "root_run_id": nil, "run_config": config, "run_id": id,
		"run_op_concurrency": nil,
		"solid_selection":    nil, "solids_to_execute": nil,
		"status":               Object{"__enum__": json.RawMessage(`"PipelineRunStatus.NOT_STARTED"`)},
		"step_keys_to_execute": nil, "tags": tags,
	})
	r, err := ParseRun(string(body))
	if err != nil { // impossible: the text was encoded above
		panic(err)
	}
	return r
}

// notCopied are the tags that belong to one run only, which Dagster leaves out of re-executions,
// and the tags of retries.
var notCopied = []string{
	FailureReasonTag, "dagster/will_retry", "dagster/retry_number", "dagster/auto_retry_run_id", "dagster/did_retry",
	"dagster/parent_run_id", "dagster/root_run_id",
	"dagster/resume_retry", "dagster/backfill", "dagster/schedule_name", "dagster/sensor_name", "dagster/tick",
	"dagster/run_key",
	"docker/container_id", "dagster/image", "ecs/task_arn", "ecs/cluster",
}

// Copy returns a new run with the same job, config and selection, and the tags that do not belong
// to the old run only.
func (r Run) Copy(id string) (Run, error) {
	tags := maps.Clone(r.Tags)
	maps.DeleteFunc(tags, func(k, _ string) bool { return strings.HasPrefix(k, ".dagster/") })
	for _, k := range notCopied {
		delete(tags, k)
	}
	body := r.body.with(map[string]any{
		"run_id": id, "root_run_id": nil, "parent_run_id": nil, "tags": tags,
		"status": Object{"__enum__": json.RawMessage(`"PipelineRunStatus.NOT_STARTED"`)},
	})
	return ParseRun(body.JSON())
}
