package instance

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
)

// settingsKeys are the sections that an InstanceRef has as plain settings, if they are not empty.
var settingsKeys = []string{
	"telemetry", "python_logs", "run_monitoring", "run_retries", "code_servers", "retention", "backfills", "sensors",
	"schedules", "nux", "auto_materialize", "concurrency", "freshness",
}

// Ref returns the InstanceRef that Dagster itself would give to a worker of this instance.
func (in *Instance) Ref() json.RawMessage { return dagster.Encode(in.ref(in.settings())) }

// WorkerRef returns the InstanceRef that Slipway gives to its workers. It is [Instance.Ref] with
// two changes. run_monitoring.enabled is true, so that a second worker of a run in flight leaves
// the run alone instead of failing it. max_resume_run_attempts is 0 if the launcher class in the
// ref cannot resume runs, because the worker would refuse to load the instance with any other
// value.
func (in *Instance) WorkerRef() json.RawMessage {
	settings := in.settings()
	monitoring := map[string]any{}
	if m, ok := settings["run_monitoring"].(map[string]any); ok {
		monitoring = maps.Clone(m)
	}
	monitoring["enabled"] = true
	if n, ok := monitoring["max_resume_run_attempts"]; ok && n != int64(0) && !in.resumes() {
		monitoring["max_resume_run_attempts"] = int64(0)
	}
	settings["run_monitoring"] = monitoring
	return dagster.Encode(in.ref(settings))
}

// WorkerRefFor returns [Instance.WorkerRef] for the workers of a launcher, or nil if they have
// their own dagster.yaml.
func (in *Instance) WorkerRefFor(l Launcher) json.RawMessage {
	m := l.Ref
	if l.Steps != nil {
		with := *in
		with.tree = maps.Clone(in.tree)
		if with.tree == nil {
			with.tree = map[string]any{}
		}
		with.tree["run_launcher"] = map[string]any{"module": l.Steps.Module, "class": l.Steps.Name,
			"config": l.Steps.Config}
		in = &with
	}
	switch {
	case m.Image:
		return nil
	case m.Home == "":
		return in.WorkerRef()
	}
	there := *in
	there.Home = m.Home
	there.tree, _ = moved(in.tree, in.Home, m.Home).(map[string]any)
	return there.WorkerRef()
}

// moved returns a copy of tree in which paths below the folder from are below to.
func moved(tree any, from, to string) any {
	switch v := tree.(type) {
	case map[string]any:
		m := map[string]any{}
		for k, e := range v {
			m[k] = moved(e, from, to)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = moved(e, from, to)
		}
		return list
	case string:
		if rest, ok := strings.CutPrefix(v, from); ok && (rest == "" || rest[0] == '/') {
			return to + rest
		}
	}
	return tree
}

// resumes reports whether the launcher class of dagster.yaml can resume runs.
func (in *Instance) resumes() bool {
	l, _ := in.tree["run_launcher"].(map[string]any)
	switch l["class"] {
	case "DockerRunLauncher", "K8sRunLauncher", "EcsRunLauncher":
		return true
	}
	return false
}

// StockTerminates reports whether webservers can cancel runs without asking the daemon. They can if
// the launcher class of dagster.yaml finds a run's worker by the run's ID, on a cluster that
// webservers reach too.
func (in *Instance) StockTerminates() bool {
	l, _ := in.tree["run_launcher"].(map[string]any)
	return l["class"] == "K8sRunLauncher"
}

func (in *Instance) settings() map[string]any {
	settings := map[string]any{}
	keys := slices.Clone(settingsKeys)
	for _, p := range in.Unknown { // sections of a newer Dagster, whose workers read them
		keys = append(keys, p.Setting)
	}
	for _, k := range keys {
		if v := in.tree[k]; !empty(v) {
			settings[k] = v
		}
	}
	return settings
}

// empty reports whether Python would treat v as false.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	case string:
		return v == ""
	case bool:
		return !v
	case int64:
		return v == 0
	}
	return false
}

func (in *Instance) ref(settings map[string]any) map[string]any {
	base := func(dir string) map[string]any { return map[string]any{"base_dir": dir} }
	ref := map[string]any{
		"__class__": "InstanceRef",
		"local_artifact_storage_data": in.class("local_artifact_storage", "dagster.core.storage.root",
			"LocalArtifactStorage", base(in.Home)),
		"compute_logs_data": in.class("compute_logs", "dagster.core.storage.local_compute_log_manager",
			"LocalComputeLogManager", base(filepath.Join(in.Home, "storage"))),
		"scheduler_data": in.class("scheduler", "dagster.core.scheduler", "DagsterDaemonScheduler", nil),
		"run_coordinator_data": in.class("run_coordinator", "dagster.core.run_coordinator",
			"QueuedRunCoordinator", nil),
		"run_launcher_data":          in.class("run_launcher", "dagster", "DefaultRunLauncher", nil),
		"defs_state_storage_data":    in.class("defs_state_storage", "", "", nil),
		"secrets_loader_data":        nil,
		"custom_instance_class_data": nil,
		"settings":                   settings,
	}
	if q, ok := in.tree["run_queue"].(map[string]any); ok && len(q) > 0 {
		ref["run_coordinator_data"] = classData("dagster.core.run_coordinator", "QueuedRunCoordinator", q)
	}
	if s, ok := in.tree["secrets"].(map[string]any); ok {
		if c, ok := s["custom"].(map[string]any); ok {
			ref["secrets_loader_data"] = userClass(c)
		}
	}
	maps.Copy(ref, in.storageRef())
	return ref
}

func (in *Instance) storageRef() map[string]any {
	st, _ := in.tree["storage"].(map[string]any)
	if pg, ok := st["postgres"].(map[string]any); ok {
		class := func(name string) any { return classData("dagster_postgres", name, pg) }
		return map[string]any{
			"storage_data": class("DagsterPostgresStorage"), "run_storage_data": class("PostgresRunStorage"),
			"event_storage_data":    class("PostgresEventLogStorage"),
			"schedule_storage_data": class("PostgresScheduleStorage"),
		}
	}
	var dir any = in.Home
	if sq, ok := st["sqlite"].(map[string]any); ok {
		dir = sq["base_dir"]
	}
	ref := map[string]any{
		"storage_data": classData("dagster.core.storage.sqlite_storage", "DagsterSqliteStorage",
			map[string]any{"base_dir": dir}),
		"run_storage_data": nil, "event_storage_data": nil, "schedule_storage_data": nil,
	}
	if text, ok := dir.(string); ok { // {env: NAME} has no form for the three storages of old versions
		at := func(sub ...string) map[string]any {
			return map[string]any{"base_dir": filepath.Join(append([]string{text}, sub...)...)}
		}
		runs, events := at("history"), at("history", "runs")
		runs["base_dir"], events["base_dir"] = runs["base_dir"].(string)+"/", events["base_dir"].(string)+"/"
		ref["run_storage_data"] = classData("dagster.core.storage.runs", "SqliteRunStorage", runs)
		ref["event_storage_data"] = classData("dagster.core.storage.event_log", "SqliteEventLogStorage", events)
		ref["schedule_storage_data"] = classData("dagster.core.storage.schedules", "SqliteScheduleStorage",
			at("schedules"))
	}
	return ref
}

// class returns the class that dagster.yaml has under key, else Dagster's default, or nil if there
// is no default class.
func (in *Instance) class(key, module, class string, defaults map[string]any) any {
	if c, ok := in.tree[key].(map[string]any); ok && len(c) > 0 {
		return userClass(c)
	}
	if class == "" {
		return nil
	}
	return classData(module, class, defaults)
}

func userClass(c map[string]any) any {
	module, _ := c["module"].(string)
	class, _ := c["class"].(string)
	conf, _ := c["config"].(map[string]any)
	return classData(module, class, conf)
}

// classData returns a ConfigurableClassData. Dagster stores its own modules under their public
// names.
func classData(module, class string, conf map[string]any) any {
	if rest, ok := strings.CutPrefix(module, "dagster._core"); ok {
		module = "dagster.core" + rest
	}
	if conf == nil {
		conf = map[string]any{}
	}
	return map[string]any{
		"__class__": "ConfigurableClassData", "class_name": class, "module_name": module,
		"config_yaml": config.Dump(conf),
	}
}

// StorageOf returns the storage of an InstanceRef, which a worker gets in its arguments.
func StorageOf(ref dagster.InstanceRef, env config.Lookup) (Storage, error) {
	part, _ := ref.Part("storage")
	n, err := config.Parse("InstanceRef", []byte(part.ConfigYAML))
	if err != nil {
		return Storage{}, err
	}
	in := &Instance{file: "InstanceRef"}
	switch part.Class {
	case "DagsterPostgresStorage":
		err = in.postgres(n, env)
	case "DagsterSqliteStorage":
		in.Storage.BaseDir, err = baseDir(n, "storage", env)
	default:
		err = fmt.Errorf("storage class %s.%s is not supported: slipway-worker needs Dagster's SQLite or Postgres "+
			"storage", part.Module, part.Class)
	}
	return in.Storage, err
}

// ComputeLogsOf returns the folder in which the local compute log manager of an InstanceRef keeps
// the output of steps, or "" if the ref has another compute log manager.
func ComputeLogsOf(ref dagster.InstanceRef, env config.Lookup) (string, error) {
	part, ok := ref.Part("compute_logs")
	if !ok || part.Class != "LocalComputeLogManager" {
		return "", nil
	}
	n, err := config.Parse("InstanceRef", []byte(part.ConfigYAML))
	if err != nil {
		return "", err
	}
	return baseDir(n, "compute_logs", env)
}

func baseDir(n *yaml.Node, path string, env config.Lookup) (string, error) {
	var s struct {
		BaseDir string        `config:"base_dir" required:"true"`
		Poll    config.Values `config:"polling_timeout"`
	}
	in := Instance{file: "InstanceRef"}
	err := in.dagsterYAML(path, n, env).Decode(&s)
	return s.BaseDir, err
}
