package instance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

var kinds = []*launcher.Kind{{Name: "process"}}

func noEnv(string) (string, bool) { return "", false }

// home creates a DAGSTER_HOME with the given dagster.yaml and slipway.yaml; "" means no file.
func home(t *testing.T, dagsterYAML, slipwayYAML string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"dagster.yaml": dagsterYAML, "slipway.yaml": slipwayYAML} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The InstanceRef equals, byte for byte, the one that Dagster made from the same dagster.yaml.
func TestRefEqualsDagsters(t *testing.T) {
	for _, golden := range testenv.Golden(t) {
		for _, storage := range []string{"sqlite", "postgres"} {
			read := func(name string) string {
				text, err := os.ReadFile(filepath.Join(golden, storage, name))
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			args, err := dagster.ParseObject(read("args/execute.raw.json"))
			if err != nil {
				t.Fatal(err)
			}
			pretty, err := dagster.Normalize(read("instance_ref.pretty.json"))
			if err != nil || pretty != string(args["instance_ref"]) {
				t.Errorf("%s/%s: the two golden refs differ: %v", golden, storage, err)
			}
			ref, err := dagster.ParseInstanceRef(pretty)
			if err != nil {
				t.Fatal(err)
			}
			artifacts, _ := ref.Part("local_artifact_storage")
			// the home that it was made in
			was := strings.TrimSpace(strings.TrimPrefix(artifacts.ConfigYAML, "base_dir: "))
			dir := home(t, read("dagster.yaml"), "")
			in, err := instance.Load(dir, kinds, func(string) (string, bool) {
				return "postgresql+psycopg2://u:p@h/d", true
			})
			if err != nil {
				t.Fatal(err)
			}
			if d := testenv.Diff(strings.ReplaceAll(string(in.Ref()), dir, was), pretty); d != "" {
				t.Errorf("%s/%s: Ref() (-got +want):\n%s", golden, storage, d)
			}
		}
	}
}

func TestWorkerRefKeepsASecondWorkerHarmless(t *testing.T) {
	in, err := instance.Load(home(t,
		"run_monitoring: {enabled: false, max_resume_run_attempts: 3, start_timeout_seconds: 9}\n", ""), kinds, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	ref := string(in.WorkerRef())
	want := `"run_monitoring": {"enabled": true, "max_resume_run_attempts": 0, "start_timeout_seconds": 9}`
	if !strings.Contains(ref, want) {
		t.Errorf("WorkerRef() = %s\nwant it to contain %s", ref, want)
	}
	if strings.Contains(string(in.Ref()), `"enabled": true`) {
		t.Error("WorkerRef changed the instance's own ref")
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct{ dagster, slipway, want string }{
		"bad type deep down": {"run_monitoring: {start_timeout_seconds: soon}\n",
			"", "dagster.yaml:1:41: run_monitoring.start_timeout_seconds: \"soon\" is not an integer"},
		"two at once": {"nux: {enabled: x}\ntelemetry: {enabled: maybe}\n",
			"", "dagster.yaml:2:22: telemetry.enabled"},
		"class without name": {"run_launcher: {module: x}\n", "", "run_launcher.class: required"},
		"queue twice": {"run_queue: {}\nrun_coordinator: {module: a, class: QueuedRunCoordinator}\n",
			"", "Dagster accepts only one"},
		"limits in two forms": {"run_queue: {max_concurrent_runs: 0}\nconcurrency: {runs: {max_concurrent_runs: 5}}\n",
			"", "write all limits under concurrency"},
		"pools in two forms": {"concurrency: {pools: {}, default_op_concurrency_limit: 3}\n",
			"", "not allowed beside pools"},
		"granularity": {"concurrency: {pools: {granularity: step}}\n", "", "neither run nor op"},
		"pool limit":  {"concurrency: {pools: {default_limit: 5000}}\n", "", "not between 0 and 1000"},
		"dagster plus": {"instance_class: {module: dagster_cloud.instance, class: DagsterCloudAgentInstance}\n",
			"", "Dagster+"},
		"auth provider": {
			"storage: {postgres: {postgres_db: {username: a, hostname: b, db_name: c}, auth_provider: {azure_wif: " +
				"{scope: s}}}}\n", "", "Slipway cannot log in with azure_wif yet"},
		"mysql": {"storage: {mysql: {}}\n", "", "storage.mysql: Slipway supports"},
		"legacy storage": {"run_storage: {module: a, class: b}\n",
			"", "run_storage: Slipway reads only the storage: section"},
		"default coordinator": {"run_coordinator: {module: dagster, class: DefaultRunCoordinator}\n",
			"", "leaves nothing QUEUED"},
		"unset variable": {"storage: {postgres: {postgres_url: {env: PG}}}\n",
			"", "environment variable PG is not set"},
		"both urls": {
			"storage: {postgres: {postgres_url: x, postgres_db: {username: a, hostname: b, db_name: c}}}\n",
			"", "exactly one of"},
		"unknown setting": {"", "quue: {}\n", "slipway.yaml:1:1: quue: unknown setting; did you mean queue?"},
		"unknown kind": {"", "launchers: {local: {kind: ecs}}\n",
			`slipway.yaml:1:27: launchers.local.kind: there is no launcher of kind "ecs"`},
		"unknown default": {"", "default: gone\n", `slipway.yaml:1:10: default: there is no launcher named "gone"`},
		"limit below -1":  {"run_queue: {max_concurrent_runs: -2}\n", "", "run_queue.max_concurrent_runs: must be"},
		"launcher of a rule": {"", "routes:\n- {to: moon}\n",
			`slipway.yaml:2:8: routes[0].to: there is no launcher named "moon"`},
		"no launcher": {"", "routes: [{when: {job: x}}]\n", "routes[0].to: required: a launcher"},
		"second rule": {"", "routes:\n- {to: local}\n- {to: local, when: {priority: high}}\n",
			`slipway.yaml:3:32: routes[1].when.priority: "high" is not a comparison`},
		"cel": {"", "routes: [{to: local, when: {cel: 'run.job =='}}]\n",
			"slipway.yaml:1:34: routes[0].when.cel: this is not a valid CEL expression: ERROR"},
		"restricted": {"",
			"launchers: {local: {kind: process, restricted: true}}\nroutes: [{to: local, when: {tags: {a: b}}}]\n",
			`launcher "local" is restricted`},
		"condition": {"", "routes: [{to: local, when: {locaton: x}}]\n",
			"routes[0].when.locaton: unknown setting; did you mean location?"},
		"list of lists":    {"", "routes: [{to: local, when: {job: [[x]]}}]\n", "a single value is expected"},
		"amount of a rule": {"", "routes: [{to: local, set: {memory: lots}}]\n", "routes[0].set.memory"},
		"allowed amount": {"", "launchers: {local: {kind: process, allow: {max_memory: lots}}}\n",
			"slipway.yaml:1:56: launchers.local.allow.max_memory"},
		"key twice": {"nux: {}\nnux: {}\n", "", "dagster.yaml:2:1: nux: occurs twice"},
	} {
		_, err := instance.Load(home(t, c.dagster, c.slipway), kinds, noEnv)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Load = %v, want %q in it", name, err, c.want)
		}
	}
}

// Every key of Dagster 1.13's dagster.yaml is accepted. With a custom instance class, unknown keys
// are accepted too.
func TestLoadTakesEveryKey(t *testing.T) {
	class := "{module: m, class: C, config: {x: {env: Y}}}"
	text := "local_artifact_storage: " + class + "\ncompute_logs: " + class + "\nscheduler: " + class +
		"\nrun_launcher: " + class + "\ndefs_state_storage: " + class + `
secrets: {custom: ` + class + `}
telemetry: {enabled: no}
nux: {enabled: false}
python_logs:
  managed_python_loggers: [a]
  python_log_level: INFO
  dagster_handler_config: {handlers: {h: {class: x}}, formatters: {}, filters: {}}
run_monitoring:
  enabled: false
  start_timeout_seconds: 1
  cancel_timeout_seconds: 2
  max_runtime_seconds: 3
  max_resume_run_attempts: 0
  poll_interval_seconds: 5
  cancellation_thread_poll_interval_seconds: 6
  free_slots_after_run_end_seconds: 7
run_retries: {enabled: true, max_retries: 2, retry_on_asset_or_op_failure: false}
code_servers: {local_startup_timeout: 1, reload_timeout: 2, wait_for_local_processes_on_shutdown: true}
retention:
  schedule: {purge_after_days: 3}
  sensor: {purge_after_days: {skipped: 1, success: 2, failure: 3, started: 4}}
  auto_materialize: {purge_after_days: 1}
backfills: {use_threads: true, num_workers: 1, num_submit_workers: 2}
sensors: {use_threads: true, num_workers: 1, num_submit_workers: 2}
schedules: {use_threads: true, num_workers: 1, num_submit_workers: 2}
auto_materialize:
  enabled: {env: Y}
  minimum_interval_seconds: 3
  run_tags: {a: b}
  respect_materialization_data_versions: true
  max_tick_retries: 1
  use_sensors: true
  use_threads: true
  num_workers: 2
freshness: {enabled: true}
run_queue:
  max_concurrent_runs: {env: N}
  dequeue_interval_seconds: 1
  dequeue_use_threads: true
  dequeue_num_workers: 4
  max_user_code_failure_retries: 1
  user_code_failure_retry_delay: 2
  block_op_concurrency_limited_runs: {enabled: true, op_concurrency_slot_buffer: 1}
  tag_concurrency_limits: [{key: a, limit: 1, value: {applyLimitPerUniqueValue: true}}]
`
	env := func(name string) (string, bool) { return map[string]string{"Y": "true", "N": "3"}[name], true }
	in, err := instance.Load(home(t, text, "launchers: {local: {kind: process}}\n"), kinds, env)
	if err != nil {
		t.Fatal(err)
	}
	if q := in.StockQueue; q.MaxConcurrentRuns != 3 || len(q.TagLimits) != 1 || !q.BlockPools || q.PoolBuffer != 1 {
		t.Errorf("StockQueue = %+v", q)
	}
	if _, err := instance.Load(home(t, "instance_class: {module: m, class: C}\nmy_own: {key: 1}\n", ""), kinds,
		env); err != nil {
		t.Errorf("an instance class with a key of its own: %v", err)
	}
}

// Settings of a newer Dagster in dagster.yaml are ignored, reported, and passed on to workers.
func TestLoadIgnoresANewerDagster(t *testing.T) {
	yaml := "run_monitoring: {enabled: false, soon: 1}\nnewest: {enabled: true}\nrun_coordinator: {module: dagster, " +
		"class: QueuedRunCoordinator, config: {max_concurrent_runs: 3, fairness: 1}}\n" +
		"storage: {postgres: {postgres_url: 'postgresql://h/d', pool_size: 3}}\n"
	in, err := instance.Load(home(t, yaml, ""), kinds, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range in.Unknown {
		got = append(got, p.Setting)
	}
	slices.Sort(got)
	if fmt.Sprint(got) != "[newest run_coordinator.config.fairness run_monitoring.soon storage.postgres.pool_size]" ||
		in.StockQueue.MaxConcurrentRuns != 3 {
		t.Errorf("Unknown = %v, limit %d", got, in.StockQueue.MaxConcurrentRuns)
	}
	if ref := string(in.WorkerRef()); !strings.Contains(ref, `"newest": {"enabled": true}`) ||
		!strings.Contains(ref, `"soon": 1`) {
		t.Errorf("WorkerRef() = %s", ref)
	}
}

// A section of dagster.yaml that is copied into slipway.yaml is accepted with every key, and has
// the same meaning there.
func TestSectionsCanBeCopied(t *testing.T) {
	const monitoring = "{enabled: true, start_timeout_seconds: 1, cancel_timeout_seconds: 2, max_runtime_seconds: 3, " +
		"max_resume_run_attempts: 4, poll_interval_seconds: 5, cancellation_thread_poll_interval_seconds: 6, " +
		"free_slots_after_run_end_seconds: 7}"
	const queue = "{max_concurrent_runs: 3, dequeue_interval_seconds: 1, dequeue_use_threads: true, " +
		"dequeue_num_workers: 4, max_user_code_failure_retries: 1, user_code_failure_retry_delay: 2, " +
		"block_op_concurrency_limited_runs: {enabled: false, op_concurrency_slot_buffer: 1}, tag_concurrency_limits: " +
		"[{key: a, limit: 1, value: b}]}"
	stock, err := instance.Load(home(t, "run_queue: "+queue+"\nrun_monitoring: "+monitoring+"\n", ""), kinds, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := instance.Load(home(t, "", "queue: "+queue+"\nmonitoring: "+monitoring+"\n"), kinds, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := stock.QueueLimits()
	got, err := ours.QueueLimits()
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || got.BlockPools || got.PoolBuffer != 1 {
		t.Errorf("QueueLimits = %+v, %v, want %+v", got, err, want)
	}
	if ours.Timeouts() != stock.Timeouts() ||
		ours.Timeouts() != (instance.Timeouts{Start: 1, Cancel: 2, MaxRuntime: 3}) || ours.Deaths().Resumes != 4 ||
		ours.Deaths().FreeSlots != 7*time.Second {
		t.Errorf("Timeouts = %+v, Deaths = %+v", ours.Timeouts(), ours.Deaths())
	}
}

// The forms of a tag limit's value, and of other settings that are a text or a section, are decoded
// like every setting.
func TestTextsAndSections(t *testing.T) {
	env := func(name string) (string, bool) {
		return map[string]string{"TEAM": "etl", "HOME_THERE": "/there", "CLASS": "DefaultRunLauncher"}[name],
			name != "GONE"
	}
	for value, want := range map[string]instance.TagLimit{
		"etl":                                {Value: "etl"},
		"{env: TEAM}":                        {Value: "etl"},
		"'${TEAM}'":                          {Value: "etl"},
		"''":                                 {Empty: true},
		"'${EMPTY}'":                         {Empty: true},
		"null":                               {},
		"7":                                  {Value: "7"},
		"{applyLimitPerUniqueValue: true}":   {PerValue: true},
		"{applyLimitPerUniqueValue: 'true'}": {PerValue: true},
		"{applyLimitPerUniqueValue: '${PER:-on}'}": {PerValue: true},
		"{applyLimitPerUniqueValue: false}":        {},
	} {
		in, err := instance.Load(home(t, "", "queue: {tag_concurrency_limits: [{key: team, limit: 1, value: "+value+
			"}]}\n"), kinds, func(name string) (string, bool) {
			if name == "PER" {
				return "", false
			}
			return env(name)
		})
		if err != nil {
			t.Errorf("value: %s: %v", value, err)
			continue
		}
		want.Key, want.Limit = "team", 1
		if q, err := in.QueueLimits(); err != nil || len(q.TagLimits) != 1 || q.TagLimits[0] != want {
			t.Errorf("value: %s: limits %+v, %v, want %+v", value, q.TagLimits, err, want)
		}
	}
	for yaml, want := range map[string]string{
		"queue: {tag_concurrency_limits: [{key: a, limit: 1, value: {applyLimitPerUniqueVal: " +
			"true}}]}\n": "slipway.yaml:1:61: queue.tag_concurrency_limits[0].value.applyLimitPerUniqueVal: unknown " +
			"setting; did you mean applyLimitPerUniqueValue?",
		"queue: {tag_concurrency_limits: [{key: a, limit: 1, value: {applyLimitPerUniqueValue: " +
			"often}}]}\n": `"often" is neither true nor false`,
		"queue: {tag_concurrency_limits: [{key: a, limit: 1, value: " +
			"{}}]}\n": "applyLimitPerUniqueValue: required",
		"queue: {tag_concurrency_limits: [{key: a, limit: 1, value: " +
			"[b]}]}\n": "a single value is expected",
		"queue: {tag_concurrency_limits: [{key: a, limit: 1, value: {env: " +
			"GONE}}]}\n": "environment variable GONE is not set",
		"launchers: {local: {kind: process, instance: {dagster_hom: " +
			"/x}}}\n": "launchers.local.instance.dagster_hom: unknown setting; did you mean dagster_home?",
		"launchers: {local: {kind: process, instance: " +
			"'${GONE}'}}\n": "environment variable GONE is not set",
		"run_launcher: {module: m, class: " +
			"'${GONE}'}\n": "run_launcher.class: environment variable GONE is not set",
		"run_launcher: {module: m, class: C, cofnig: " +
			"{}}\n": "run_launcher.cofnig: unknown setting; did you mean config?",
		"run_launcher: {module: " +
			"m}\n": "run_launcher.class: required",
	} {
		if _, err := instance.Load(home(t, "", yaml), kinds, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%sLoad = %v, want %q", yaml, err, want)
		}
	}
	in, err := instance.Load(home(t,
		"", "launchers: {a: {kind: process, instance: {dagster_home: '${HOME_THERE}'}}, b: {kind: process, instance: "+
			"'${MODE:-image}'}}\ndefault: a\n"), kinds, func(name string) (string, bool) {
		v, _ := env(name)
		return v, v != ""
	})
	if err != nil || in.Launchers["a"].Ref.Home != "/there" || !in.Launchers["b"].Ref.Image {
		t.Errorf("instance: %+v, %v", in.Launchers, err)
	}
	if _, err := instance.Load(home(t, "", "run_launcher: {module: dagster, class: '${CLASS}'}\n"), kinds, env); err !=
		nil {
		t.Errorf("a class by a variable: %v", err)
	}
}

// Slipway's own address replaces a provider that it cannot use to log in. Workers get the settings
// of dagster.yaml.
func TestDirectURLInsteadOfAuthProvider(t *testing.T) {
	yaml := "storage: {postgres: {postgres_db: {username: a, hostname: b, db_name: c}, auth_provider: {aws_wif: " +
		"{region: r}}}}\n"
	in, err := instance.Load(home(t, yaml, "storage: {direct_url: 'postgresql://u:p@h/d'}\n"), kinds, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if ref := string(in.Ref()); !strings.Contains(ref, "aws_wif") || in.RefHasSecret() {
		t.Errorf("Ref() = %s", ref)
	}
}

func TestRefOfALauncher(t *testing.T) {
	yaml := "launchers: {local: {kind: process}, image: {kind: process, instance: image}, there: {kind: process, " +
		"instance: {dagster_home: /opt/home}}}\n"
	dir := home(t, "storage: {postgres: {postgres_url: {env: PG}}}\n", yaml)
	in, err := instance.Load(dir, kinds, func(string) (string, bool) { return "postgresql://h/d", true })
	if err != nil {
		t.Fatal(err)
	}
	if ref := in.WorkerRefFor(in.Launchers["local"]); string(ref) != string(in.WorkerRef()) {
		t.Errorf("inherit gives %s", ref)
	}
	if ref := in.WorkerRefFor(in.Launchers["image"]); ref != nil {
		t.Errorf("image gives %s", ref)
	}
	if ref := string(in.WorkerRefFor(in.Launchers["there"])); strings.Contains(ref, dir) ||
		!strings.Contains(ref, "base_dir: /opt/home/storage") || !strings.Contains(ref, "env: PG") {
		t.Errorf("dagster_home gives %s", ref)
	}
	steps := launcher.Class{Module: "dagster_docker", Name: "DockerRunLauncher",
		Config: map[string]any{"networks": []any{"n"}}}
	with := in.Launchers["local"]
	with.Steps = &steps
	if ref := string(in.WorkerRefFor(with)); !strings.Contains(ref,
		`"class_name": "DockerRunLauncher", "config_yaml": "networks:\n- n\n"`) ||
		strings.Contains(string(in.WorkerRef()), "dagster_docker") {
		t.Errorf("step_executors gives %s", ref)
	}
	if _, err := instance.Load(home(t, "", "launchers: {local: {kind: process, step_executors: true}}\n"), kinds,
		noEnv); err == nil || !strings.Contains(err.Error(), "launchers.local.step_executors") {
		t.Errorf("step_executors of a kind without: %v", err)
	}
	if _, err := instance.Load(home(t, "", "launchers: {local: {kind: process, instance: {dagster_home: here}}}\n"),
		kinds, noEnv); err == nil || !strings.Contains(err.Error(),
		"slipway.yaml:1:46: launchers.local.instance: must be") {
		t.Errorf("a relative path: %v", err)
	}
}

func TestOnlySelects(t *testing.T) {
	in, err := instance.Load(home(t, "", "queue: {only: {locations: [etl], tags: {team: data, any: ''}}}\n"), kinds,
		noEnv)
	if err != nil {
		t.Fatal(err)
	}
	q, err := in.QueueLimits()
	if err != nil || q.Only.Empty() {
		t.Fatalf("QueueLimits = %+v, %v", q, err)
	}
	for name, c := range map[string]struct {
		location string
		tags     map[string]string
		want     bool
	}{
		"fits":             {"etl", map[string]string{"team": "data", "any": "x"}, true},
		"another location": {"web", map[string]string{"team": "data", "any": "x"}, false},
		"another value":    {"etl", map[string]string{"team": "web", "any": "x"}, false},
		"a tag is missing": {"etl", map[string]string{"team": "data"}, false},
	} {
		if got := q.Only.Fits(dagster.Run{Remote: dagster.RemoteOrigin{Location: c.location}, Tags: c.tags}); got !=
			c.want {
			t.Errorf("%s: Fits = %v", name, got)
		}
	}
}

func TestQueueLimitsComeKeyByKey(t *testing.T) {
	for name, c := range map[string]struct {
		dagster, slipway string
		want             int
		parked           bool
	}{
		"nothing said":     {"", "", 10, false},
		"run_queue":        {"run_queue: {max_concurrent_runs: 4}\n", "", 4, false},
		"concurrency.runs": {"concurrency: {runs: {max_concurrent_runs: 5}}\n", "", 5, false},
		"run_coordinator": {
			"run_coordinator: {module: dagster.core.run_coordinator, class: QueuedRunCoordinator, config: " +
				"{max_concurrent_runs: 6}}\n", "", 6, false},
		"0 parks and is no limit": {"run_queue: {max_concurrent_runs: 0}\n", "", 10, true},
		"slipway.yaml wins": {"run_queue: {max_concurrent_runs: 0}\n", "queue: {max_concurrent_runs: 2}\n", 2,
			true},
		"slipway.yaml's 0 is a limit": {"", "queue: {max_concurrent_runs: 0}\n", 0, false},
		"no limit":                    {"", "queue: {max_concurrent_runs: -1}\n", -1, false},
		"another key leaves it alone": {"run_queue: {max_concurrent_runs: 4}\n",
			"queue: {tag_concurrency_limits: [{key: a, limit: 1}]}\n", 4, false},
	} {
		in, err := instance.Load(home(t, c.dagster, c.slipway), kinds, noEnv)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		q, err := in.QueueLimits()
		if err != nil || q.MaxConcurrentRuns != c.want || in.Parked != c.parked {
			t.Errorf("%s: limit %d, parked %v, %v; want %d, %v", name, q.MaxConcurrentRuns, in.Parked, err, c.want,
				c.parked)
		}
	}
}

func TestPostgresURL(t *testing.T) {
	for name, c := range map[string]struct{ yaml, want string }{
		"driver suffix": {"postgres_url: postgresql+psycopg2://u:p@h/d", "postgresql+psycopg2://u:p@h/d"},
		"parts": {
			"postgres_db: {username: u, password: 'p@/x', hostname: h, db_name: d, params: {options: -c " +
				"search_path=x, keepalives: 1}}",
			"postgresql://u:p%40/x@h:5432/d?keepalives=1&options=-c%20search_path%3Dx"},
		"literal ${}": {"postgres_url: 'postgresql://${U}@h/d'", "postgresql://${U}@h/d"},
	} {
		in, err := instance.Load(home(t, "storage: {postgres: {"+c.yaml+"}}\n", ""), kinds, noEnv)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := string(in.Storage.URL); got != c.want {
			t.Errorf("%s: URL = %s, want %s", name, got, c.want)
		}
	}
}
