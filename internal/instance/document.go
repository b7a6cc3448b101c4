package instance

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
)

// document is dagster.yaml (dagster._core.instance.config.dagster_instance_config_schema, 1.13). It
// declares also the sections that Slipway does not use, so that a mistake in them is reported here
// and not by a worker.
type document struct {
	Storage         config.Values  `config:"storage"`
	RunStorage      config.Values  `config:"run_storage"`
	EventStorage    config.Values  `config:"event_log_storage"`
	ScheduleStorage config.Values  `config:"schedule_storage"`
	Artifacts       *classSection  `config:"local_artifact_storage"`
	ComputeLogs     *classSection  `config:"compute_logs"`
	Scheduler       *classSection  `config:"scheduler"`
	RunCoordinator  *classSection  `config:"run_coordinator"`
	RunQueue        *runQueue      `config:"run_queue"`
	RunLauncher     *classSection  `config:"run_launcher"`
	Telemetry       enabledSection `config:"telemetry"`
	Nux             enabledSection `config:"nux"`
	InstanceClass   *classSection  `config:"instance_class"`
	PythonLogs      struct {
		Managed []string `config:"managed_python_loggers"`
		Level   string   `config:"python_log_level"`
		Handler struct {
			Handlers   config.Values `config:"handlers"`
			Formatters config.Values `config:"formatters"`
			Filters    config.Values `config:"filters"`
		} `config:"dagster_handler_config"`
	} `config:"python_logs"`
	RunMonitoring RunMonitoring `config:"run_monitoring"`
	RunRetries    struct {
		Enabled bool `config:"enabled"`
		Max     int  `config:"max_retries"`
		OnOp    bool `config:"retry_on_asset_or_op_failure" default:"true"`
	} `config:"run_retries"`
	CodeServers struct {
		Startup int  `config:"local_startup_timeout"`
		Reload  int  `config:"reload_timeout"`
		Wait    bool `config:"wait_for_local_processes_on_shutdown"`
	} `config:"code_servers"`
	Secrets struct {
		Custom *classSection `config:"custom"`
	} `config:"secrets"`
	DefsState *classSection `config:"defs_state_storage"`
	Retention struct {
		Schedule        purge `config:"schedule"`
		Sensor          purge `config:"sensor"`
		AutoMaterialize purge `config:"auto_materialize"`
	} `config:"retention"`
	Backfills       threads `config:"backfills"`
	Sensors         threads `config:"sensors"`
	Schedules       threads `config:"schedules"`
	AutoMaterialize struct {
		Enabled    bool          `config:"enabled"`
		Interval   int           `config:"minimum_interval_seconds"`
		RunTags    config.Values `config:"run_tags"`
		Respect    bool          `config:"respect_materialization_data_versions"`
		MaxRetries int           `config:"max_tick_retries"`
		UseSensors bool          `config:"use_sensors"`
		UseThreads bool          `config:"use_threads"`
		NumWorkers int           `config:"num_workers"`
	} `config:"auto_materialize"`
	Freshness struct {
		Enabled bool `config:"enabled"`
	} `config:"freshness"`
	Concurrency *concurrency `config:"concurrency"`
}

type classSection struct {
	Module string        `config:"module" required:"true"`
	Class  string        `config:"class" required:"true"`
	Config config.Values `config:"config"`
}

type enabledSection struct {
	Enabled bool `config:"enabled"`
}

type purge struct {
	After config.Values `config:"purge_after_days"`
}

type threads struct {
	Use    bool `config:"use_threads"`
	Num    int  `config:"num_workers"`
	Submit int  `config:"num_submit_workers"`
}

// RunMonitoring is the section run_monitoring of dagster.yaml, in seconds. nil means not set.
type RunMonitoring struct {
	Enabled           bool `config:"enabled" help:"Has no effect here: Slipway always watches its runs."`
	StartTimeout      *int `config:"start_timeout_seconds" help:"How long a worker may take to start its run, from the moment the target accepts the worker. Then the worker is stopped and the run fails. 0: no limit; default: 180."`
	CancelTimeout     *int `config:"cancel_timeout_seconds" help:"How long a worker may take to end after its run is canceled. Then the worker is killed and the run is CANCELED. 0: no limit; default: 180."`
	MaxRuntime        *int `config:"max_runtime_seconds" help:"How long a run may take. Then its worker is stopped and the run fails. The tag dagster/max_runtime of a run overrides it. Default: 0, no limit."`
	MaxResumeAttempts *int `config:"max_resume_run_attempts" help:"How many times another worker may resume a started run whose worker has died; default: 0."`
	PollInterval      *int `config:"poll_interval_seconds" help:"Has no effect: Slipway does not poll."`
	CancelPoll        *int `config:"cancellation_thread_poll_interval_seconds" help:"Has no effect here: workers read it from dagster.yaml."`
	FreeSlotsAfter    *int `config:"free_slots_after_run_end_seconds" help:"How long after its end a run may still hold slots in pools; then they are freed. -1: never; default: 300."`
}

// runQueue is the section run_queue, and QueuedRunCoordinator's config.
type runQueue struct {
	limitsSection
	DequeueInterval   *int        `config:"dequeue_interval_seconds" help:"Has no effect: Slipway does not poll."`
	UseThreads        *bool       `config:"dequeue_use_threads" help:"Has no effect: Slipway launches many runs at once."`
	NumWorkers        *int        `config:"dequeue_num_workers" help:"Has no effect: launch_rate limits the launches of each launcher."`
	MaxUserCodeRetry  *int        `config:"max_user_code_failure_retries" help:"Has no effect: the error of the launcher decides whether a launch is retried."`
	UserCodeRetryWait *int        `config:"user_code_failure_retry_delay" help:"Has no effect, for the same reason."`
	BlockPools        *blockPools `config:"block_op_concurrency_limited_runs" help:"Whether and when runs wait in the queue because their pools are full."`
}

type blockPools struct {
	Enabled *bool `config:"enabled" help:"Runs whose pools are full wait in the queue; default: true."`
	Buffer  *int  `config:"op_concurrency_slot_buffer" help:"How many more runs than slots of a pool may be launched; default: 0."`
}

type limitsSection struct {
	MaxConcurrentRuns *int               `config:"max_concurrent_runs" help:"Maximum number of runs in flight. -1: no limit; 0: nothing is launched."`
	TagLimits         *[]tagLimitSection `config:"tag_concurrency_limits" help:"Limits per tag, as in dagster.yaml."`
}

type tagLimitSection struct {
	Key   string        `config:"key" required:"true" help:"Key of the tag."`
	Value config.Values `config:"value" help:"Value of the tag, which may be empty; or {applyLimitPerUniqueValue: true} for a separate limit per value. Without it, the limit is for all values together."`
	Limit int           `config:"limit" required:"true" help:"Maximum number of runs in flight."`
}

// decode returns the limit. If value is absent or null, the limit is for all values together.
func (t tagLimitSection) decode() (TagLimit, error) {
	limit := TagLimit{Key: t.Key, Limit: t.Limit}
	if config.Tree(t.Value.Node) == nil {
		return limit, nil
	}
	var section struct {
		PerValue bool `config:"applyLimitPerUniqueValue" required:"true" help:"true for a limit of each value"`
	}
	isText, err := t.Value.Either(&limit.Value, &section)
	limit.PerValue, limit.Empty = section.PerValue, isText && limit.Value == ""
	return limit, err
}

type concurrency struct {
	Pools *struct {
		Default     *int   `config:"default_limit"`
		Granularity string `config:"granularity"`
		Buffer      *int   `config:"op_granularity_run_buffer"`
	} `config:"pools"`
	Runs *limitsSection `config:"runs"`
	Old  *int           `config:"default_op_concurrency_limit"`
}

// dagsterYAML returns a section of dagster.yaml. A key that Slipway does not know must belong to a
// newer Dagster, because every Dagster refuses keys that it does not know. Such a key is ignored,
// with a warning.
func (in *Instance) dagsterYAML(path string, n *yaml.Node, env config.Lookup) config.Values {
	return config.Values{File: in.file, Path: path, Node: n, Env: env, Literal: true, Unknown: func(p *config.Problem) {
		// some sections are decoded twice
		if !slices.ContainsFunc(in.Unknown, func(o *config.Problem) bool { return *o == *p }) {
			in.Unknown = append(in.Unknown, p)
		}
	}}
}

// decode reads and checks dagster.yaml as Dagster does.
func (in *Instance) decode(doc *yaml.Node, env config.Lookup) (document, error) {
	var d document
	known := doc
	if custom := config.Child(doc, "instance_class"); custom != nil { // may add keys of its own
		var names []string
		for _, f := range config.Fields(d) {
			names = append(names, f.Name)
		}
		known = only(doc, names...)
	}
	if err := in.dagsterYAML("", known, env).Decode(&d); err != nil {
		return d, err
	}
	fail := func(setting, format string, args ...any) error {
		return problem(in.file, path(doc, setting), setting, format, args...)
	}
	switch {
	case d.RunQueue != nil && d.RunCoordinator != nil:
		return d, fail("run_queue", "run_coordinator is set too, and Dagster accepts only one of the two: remove one")
	case d.Storage.Node != nil && (d.RunStorage.Node != nil || d.EventStorage.Node != nil ||
		d.ScheduleStorage.Node != nil):
		return d,
			fail("storage", "run_storage, event_log_storage and schedule_storage are not allowed beside it: remove "+
				"them")
	}
	return d, errors.Join(in.checkConcurrency(doc, d))
}

// maxPoolLimit returns the highest limit of a pool that Dagster accepts.
func maxPoolLimit() int {
	if n, err := strconv.Atoi(os.Getenv("DAGSTER_MAX_GLOBAL_OP_CONCURRENCY_LIMIT")); err == nil {
		return n
	}
	return 1000
}

func (in *Instance) checkConcurrency(doc *yaml.Node, d document) error {
	c := d.Concurrency
	if c == nil {
		return nil
	}
	fail := func(setting string, text string) error {
		return problem(in.file, path(doc, "concurrency"), "concurrency."+setting, "%s", text)
	}
	limit := c.Old
	if c.Pools != nil {
		if c.Old != nil {
			return fail("default_op_concurrency_limit",
				"not allowed beside pools; write pools: {default_limit: …} instead")
		}
		limit = c.Pools.Default
		if g := c.Pools.Granularity; g != "" && g != "run" && g != "op" {
			return fail("pools.granularity", fmt.Sprintf("%q is neither run nor op: write one of them", g))
		}
	}
	if limit != nil && (*limit < 0 || *limit > maxPoolLimit()) {
		return fail("pools.default_limit", fmt.Sprintf("%d is not between 0 and %d", *limit, maxPoolLimit()))
	}
	q, section := d.RunQueue, "run_queue"
	if d.RunCoordinator != nil && d.RunCoordinator.Class == queuedCoordinator {
		section = "run_coordinator.config"
		q = &runQueue{}
		if err := d.RunCoordinator.Config.Decode(q); err != nil {
			return err
		}
	}
	if (c.Pools != nil || c.Runs != nil) && q != nil &&
		(q.MaxConcurrentRuns != nil || q.TagLimits != nil || q.BlockPools != nil && q.BlockPools.Buffer != nil) {
		return fail("runs", "Dagster refuses limits in "+section+
			" if concurrency has pools or runs: write all limits under concurrency")
	}
	return nil
}

const queuedCoordinator = "QueuedRunCoordinator"
