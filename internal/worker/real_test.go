//go:build real

package worker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/test/testenv"
)

// Each release of Dagster gets its arguments, for a run and for a resumed run, although its command
// line has none of them: it looks for the run, which does not exist.
func TestEveryReleaseGetsItsArguments(t *testing.T) {
	bins := testenv.Releases(t)
	bins["newest"] = testenv.DagsterBin(t)
	for version, bin := range bins {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			storage := map[string]any{"__class__": "ConfigurableClassData",
				"module_name": "dagster.core.storage.sqlite_storage", "class_name": "DagsterSqliteStorage",
				"config_yaml": "base_dir: " + home + "\n"}
			ref := map[string]any{"__class__": "InstanceRef", "storage_data": storage, "settings": map[string]any{}}
			for name, class := range map[string]string{
				"local_artifact_storage_data": "dagster.core.storage.root LocalArtifactStorage",
				"compute_logs_data":           "dagster.core.storage.local_compute_log_manager LocalComputeLogManager",
				"scheduler_data":              "dagster.core.scheduler DagsterDaemonScheduler",
				"run_coordinator_data":        "dagster.core.run_coordinator QueuedRunCoordinator",
				"run_launcher_data":           "dagster DefaultRunLauncher",
			} {
				module, class, _ := strings.Cut(class, " ")
				conf := "{}\n"
				if strings.HasPrefix(class, "Local") {
					conf = "base_dir: " + home + "\n"
				}
				ref[name] = map[string]any{"__class__": "ConfigurableClassData", "module_name": module,
					"class_name": class, "config_yaml": conf}
			}
			for _, name := range []string{"run_storage_data", "event_storage_data", "schedule_storage_data"} {
				ref[name] = nil
			}
			python := filepath.Join(bin, "python")
			pointer := map[string]any{"__class__": "FileCodePointer", "fn_name": "defs", "python_file": "/defs.py",
				"working_directory": home}
			r := originOf(t, python, pointer)
			target := local
			target.Ref = dagster.Encode(ref)
			target.Traits.MaxCommand = 0
			for _, resume := range []bool{false, true} {
				req, err := (&worker.Builder{Files: &worker.Machine{}}).Request(r,
					worker.Attempt{Number: 1, Token: "t", Resume: resume}, target)
				if err != nil {
					t.Fatal(err)
				}
				line := strings.Join(req.Command, " ")
				cmd := exec.Command(req.Command[0], req.Command[1:]...)
				cmd.Dir, cmd.Env = req.Dir, append(os.Environ(), "DAGSTER_DISABLE_TELEMETRY=1")
				for _, e := range req.Env {
					cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
				}
				out, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(out), "'0a' not found") ||
					strings.Contains(line, "InstanceRef") {
					t.Errorf("%s = %v\n%s", line, err, out)
				}
			}
		})
	}
}

// originOf returns a run whose code origin Dagster itself can read.
func originOf(t *testing.T, python string, pointer map[string]any) dagster.Run {
	t.Helper()
	repository := map[string]any{
		"__class__": "RepositoryPythonOrigin", "code_pointer": pointer, "container_context": map[string]any{},
		"container_image": nil,
		"entry_point":     []string{"dagster"}, "executable_path": python,
	}
	body := dagster.Encode(map[string]any{
		"run_id": "0a", "pipeline_name": "job", "tags": map[string]any{},
		"pipeline_code_origin": map[string]any{"__class__": "PipelinePythonOrigin", "pipeline_name": "job",
			"repository_origin": repository},
	})
	r, err := dagster.ParseRun(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}
