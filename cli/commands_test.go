package cli

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-run/slipway/cli/scaffold"
	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/process"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// built runs the built program on an instance.
func built(t *testing.T, home string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Build(t, "slipway"), append([]string{"--home", home}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The demo without Dagster needs only the program, and its instance can be inspected afterwards.
func TestEmbeddedDemo(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := filepath.Join(t.TempDir(), "demo")
	testenv.WorkersGone(t, home)
	out, err := built(t, home, "demo")
	if err != nil || !strings.Contains(out, "12 runs: 11 succeeded, 1 failed as expected") {
		t.Fatalf("demo = %v\n%s", err, out)
	}
	var runs []struct{ RunID, Job, Status, Handle string }
	if out, err = built(t, home, "runs", "list", "--json"); err != nil ||
		json.Unmarshal([]byte(strings.ReplaceAll(out, "run_id", "runid")), &runs) != nil || len(runs) != 12 {
		t.Fatalf("runs list = %v\n%s", err, out)
	}
	for _, r := range runs {
		if r.Job != "snow_in_july" {
			continue
		}
		if out, err = built(t, home, "runs", "logs", r.RunID); err != nil || out != "no snow in July\n" {
			t.Errorf("runs logs = %v\n%s", err, out)
		}
		if out, err = built(t, home, "runs", "logs", r.RunID, "--json"); err != nil ||
			!strings.Contains(out, `"log": "no snow in July\n"`) {
			t.Errorf("runs logs --json = %v\n%s", err, out)
		}
		if out, err = built(t, home, "launchers", "preview", r.RunID); err != nil ||
			!strings.Contains(out, `"execute_run"`) || !strings.Contains(out, "SLIPWAY_GATE") {
			t.Errorf("launchers preview = %v\n%s", err, out)
		}
	}
	if out, err = built(t, home, "demo"); err != nil { // over the first one's instance
		t.Errorf("a second demo = %v\n%s", err, out)
	}
}

// parked creates an instance without runs and starts a daemon on it.
func parked(t *testing.T, daemon bool, slipwayYAML string) string {
	t.Helper()
	d := storagetest.NewSQLite(t)
	testenv.WorkersGone(t, d.Location)
	for _, q := range []string{"UPDATE runs SET status = 'CANCELED' WHERE status = 'QUEUED'",
		"DELETE FROM daemon_heartbeats"} {
		if err := d.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"dagster.yaml": "run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\n",
		"slipway.yaml": slipwayYAML} {
		if err := os.WriteFile(filepath.Join(d.Location, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if daemon {
		start(t, d.Location)
	}
	return d.Location
}

// A .env file in the current folder names the instance and its storage, and wins over the
// environment.
func TestDotEnvInTheCurrentFolder(t *testing.T) {
	home, dir := parked(t, false, ""), t.TempDir()
	for file, text := range map[string]string{
		filepath.Join(home, "dagster.yaml"): "storage: {sqlite: {base_dir: {env: STORE}}}\n",
		filepath.Join(dir, ".env"): "HOMES='" + filepath.Dir(home) + "'\nexport DAGSTER_HOME=${HOMES}/" +
			filepath.Base(home) + " # the instance\nSTORE=${DAGSTER_HOME}\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), testenv.Build(t, "slipway"), "runs", "list", "--json")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "DAGSTER_HOME=/no/such", "STORE=/no/such")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), `"run_id"`) {
		t.Errorf("runs list = %v\n%s", err, out)
	}
}

// start starts a daemon and returns the file of its log.
func start(t *testing.T, home string, flags ...string) string {
	t.Helper()
	return launch(t, home, flags...).log
}

// daemonProcess is a daemon that a test started.
type daemonProcess struct {
	t   *testing.T
	cmd *exec.Cmd
	log string // file
	end chan struct{}
}

// launch is start for a test that sends signals.
func launch(t *testing.T, home string, flags ...string) *daemonProcess {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	d := &daemonProcess{t: t, log: log.Name(), end: make(chan struct{})}
	d.cmd = exec.Command(testenv.Build(t, "slipway"), append([]string{"daemon", "--home", home}, flags...)...)
	d.cmd.Stderr = log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.end) }() // stop waits for it
	t.Cleanup(func() {
		d.stop()
		_ = log.Close()
	})
	return d
}

// stop stops the daemon as a user would.
func (d *daemonProcess) stop() {
	_ = d.cmd.Process.Signal(os.Interrupt)
	select {
	case <-d.end:
	case <-time.After(time.Minute):
		_ = d.cmd.Process.Kill()
		<-d.end
	}
}

func (d *daemonProcess) output() string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// says waits until the daemon has logged a text that many times.
func (d *daemonProcess) says(times int, text string) {
	d.t.Helper()
	testenv.Eventually(d.t, time.Minute, func() (bool, string) {
		return strings.Count(d.output(), text) >= times,
			fmt.Sprintf("%q is not there %d times:\n%s", text, times, d.output())
	})
}

func enqueued(t *testing.T, home string, args ...string) string {
	t.Helper()
	out, err := built(t, home, append([]string{"runs", "enqueue"}, args...)...)
	if err != nil {
		t.Fatalf("runs enqueue %v = %v\n%s", args, err, out)
	}
	return strings.TrimSpace(out)
}

// status waits until `slipway runs show` prints a status of a run.
func status(t *testing.T, home, run, want string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := built(t, home, "runs", "show", run)
		return err == nil && regexp.MustCompile(`(?m)^status +`+want+`$`).MatchString(out), out
	})
}

func TestTerminate(t *testing.T) {
	home := parked(t, true, "queue: {max_concurrent_runs: 1}\n")
	running := enqueued(t, home, "--", "sleep", "600")
	status(t, home, running, "STARTED")
	waiting := enqueued(t, home, "--", "true")
	if out, err := built(t, home, "runs", "terminate", waiting, running[:8]); err != nil ||
		!strings.Contains(out, waiting+": CANCELED") || !strings.Contains(out, running+": CANCELING") {
		t.Errorf("runs terminate = %v\n%s", err, out)
	}
	status(t, home, running, "CANCELED")
	if out, err := built(t, home, "runs", "terminate", running, "--json"); err == nil ||
		!strings.Contains(out, "is already CANCELED") {
		t.Errorf("runs terminate of a canceled run = %v\n%s", err, out)
	}
}

// Runs that a cluster refuses because of their requests fail at once, with the cluster's message,
// and do not delay other runs.
func TestRefusedRunsHoldUpNobody(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	var mu sync.Mutex
	made := map[string]bool{} // runs
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := func(code int, format string, args ...any) {
			testenv.Reply(w, code, fmt.Appendf(nil, format, args...))
		}
		const status = `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": %d, "reason": %q, ` +
			`"message": %q}`
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		kind := map[string]string{"jobs": `"JobList", "apiVersion": "batch/v1"`,
			"pods": `"PodList", "apiVersion": "v1"`}[path.Base(r.URL.Path)]
		switch {
		case strings.Contains(r.URL.Path, "/namespaces/team-b/"):
			answer(403, status, 403, "Forbidden",
				`User "slipway" cannot create resource "jobs" in the namespace "team-b"`)
		case r.Method == http.MethodPost && kind != "":
			id := regexp.MustCompile("dagster-run-([0-9a-f-]{36})").FindSubmatch(body)[1]
			mu.Lock()
			made[string(id)] = true
			mu.Unlock()
			answer(201,
				`{"kind": "Job", "apiVersion": "batch/v1", "metadata": {"name": "dagster-run-%s", "namespace": `+
					`"default"}, "spec": {"template": {"spec": {"containers": [{"name": "dagster", "image": `+
					`"etl:1"}]}}}}`, id)
		case r.URL.Query().Has("watch"):
			answer(422, status, 422, "Invalid", "nothing is watched here")
		case kind != "":
			answer(200, `{"kind": %s, "metadata": {"resourceVersion": "1"}, "items": []}`, kind)
		default:
			answer(404, status, 404, "NotFound", "not found")
		}
	}))
	t.Cleanup(api.Close)
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(
		`{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: %q}}], users: `+
			`[{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, api.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	home := parked(t, false,
		fmt.Sprintf(
			`launchers:
  k8s: {kind: k8s, config: {load_incluster_config: false, kubeconfig_file: %q, job_image: "etl:1"}}
routes: [{when: {tags: {team: b}}, to: [k8s], set: {config: {namespace: team-b}}}]
default: k8s
`, kubeconfig))
	var refused, good []string
	for range 8 { // more than make a launcher sick
		refused = append(refused, enqueued(t, home, "--tag", "team=b", "--", "true"))
	}
	for range 2 {
		good = append(good, enqueued(t, home, "--", "true"))
	}
	log := start(t, home)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		mu.Lock()
		defer mu.Unlock()
		text, err := os.ReadFile(log)
		return made[good[0]] && made[good[1]],
			fmt.Sprintf("Jobs were made for %v, not for all of %v; %v, log:\n%s", made, good, err, text)
	})
	for _, run := range refused {
		status(t, home, run, "FAILURE")
	}
	text2, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(text2), `cannot create resource \"jobs\" in the namespace \"team-b\"`) ||
		strings.Contains(string(text2), "circuit breaker") {
		t.Errorf("the daemon's log is %v\n%s\nwant the API server's words, and no sick launcher", err, text2)
	}
}

// A run that is canceled while no daemon leads and before a worker is started ends too.
func TestTerminateBeforeTheWorker(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, false, "")
	run := enqueued(t, home, "--", "true")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.BuildFailpoints(t, "slipway"), "daemon", "--home", home)
	cmd.Env = append(os.Environ(), failpoint.Env+"="+string(failpoint.ClaimCommitted))
	if out, err := cmd.CombinedOutput(); err == nil || ctx.Err() != nil {
		t.Fatalf("the daemon lived on: %s", out)
	}
	if out, err := built(t, home, "runs", "terminate", run); err != nil || !strings.Contains(out, "CANCELING") {
		t.Fatalf("runs terminate = %v\n%s", err, out)
	}
	start(t, home)
	status(t, home, run, "CANCELED")
}

// Stopping a daemon is not an error, even before it leads.
func TestStoppedWhileItBegins(t *testing.T) {
	home := parked(t, true, "queue: {max_concurrent_runs: 1}\n")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for _, args := range [][]string{{"daemon"}, {"daemon", "--observe"}} {
		if out, err := interrupted(ctx, home, args...); err != nil {
			t.Errorf("%v, stopped at once = %v, want no error\n%s", args, err, out)
		}
	}
}

// An observer decides but writes nothing.
func TestObserve(t *testing.T) {
	home := parked(t, false, "queue: {max_concurrent_runs: 2}\n")
	before := map[string]string{}
	var runs []string
	for range 3 {
		runs = append(runs, enqueued(t, home, "--", "true"))
	}
	d := storagetest.Open(t, home)
	tables := []string{"kvs", "run_tags", "daemon_heartbeats", "instance_info"}
	count := func(table string) string {
		n, err := d.Text("SELECT count(*) FROM " + table)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, table := range tables {
		before[table] = count(table)
	}
	log := start(t, home, "--observe")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		text, err := os.ReadFile(log)
		return err == nil && strings.Count(string(text), "would launch") == 2, string(text)
	})
	for _, table := range tables {
		if n := count(table); n != before[table] {
			t.Errorf("%s has %s rows, before %s", table, n, before[table])
		}
	}
	for _, r := range runs {
		if s, err := d.Status(r); err != nil || s != "QUEUED" {
			t.Errorf("run %s is %s, %v", r, s, err)
		}
	}
}

func TestAdopt(t *testing.T) {
	for name, c := range map[string]struct {
		dagster, slipway string
		args             []string
		ok               bool
		want             string
	}{
		"nothing is done": {"", "", nil, false,
			"to do: in HOME/dagster.yaml\n\n  run_queue:\n    max_concurrent_runs: 0\n"},
		"the old limit is kept": {"run_queue: {max_concurrent_runs: 25}\n", "", nil, false,
			"queue: {max_concurrent_runs: 25}"},
		"in the section that is there": {"concurrency: {pools: {default_limit: 1}}\n", "", nil, false,
			"  concurrency:\n    runs:\n      max_concurrent_runs: 0\n"},
		"all of it": {"run_queue: {max_concurrent_runs: 0}\n", "queue: {max_concurrent_runs: 5}\n",
			nil, true, "Everything is in place"},
		"the monitor is on": {"run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: true}\n",
			"queue: {max_concurrent_runs: 5}\n", nil, false,
			"to do: in HOME/dagster.yaml\n\n  run_monitoring:\n    enabled: false"},
		"a location, not done": {"", "", []string{"--location", "etl"}, false,
			"tag_concurrency_limits: [{key: dagster/code_location, value: etl, limit: 0}]"},
		"a location, half": {"", "queue: {only: {locations: [etl]}}\n", []string{"--location", "etl"},
			false, "to do: in HOME/dagster.yaml"},
		"a location, all of it": {
			"run_queue: {tag_concurrency_limits: [{key: dagster/code_location, value: etl, limit: 0}]}\n",
			"queue: {only: {locations: [etl]}}\n", []string{"--location", "etl"}, true, "Everything is in place"},
		"as JSON": {"run_queue: {max_concurrent_runs: 0}\n", "queue: {max_concurrent_runs: 5}\n",
			[]string{"--json"}, true, `"adopted": true`},
		"webservers are on this machine": {"storage: {postgres: {postgres_url: 'postgresql://u@h/d'}}\n",
			"terminate: {local_only: true}\n", nil, false,
			"done: in  HOME/slipway.yaml\n\n  terminate: {local_only: true}\n"},
		"webservers are told an address": {"storage: {postgres: {postgres_url: 'postgresql://u@h/d'}}\n",
			"terminate: {advertise: 'slipway:4001'}\n", nil, false, "terminate: {advertise: \"slipway:4001\"}\n"},
	} {
		home := t.TempDir()
		for file, text := range map[string]string{"dagster.yaml": c.dagster, "slipway.yaml": c.slipway} {
			if err := os.WriteFile(filepath.Join(home, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := slipway(t, home, append([]string{"adopt"}, c.args...)...)
		if (err == nil) != c.ok || !strings.Contains(strings.ReplaceAll(out, home, "HOME"), c.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		const back = "slipway drain, stop Slipway, undo the edits, restart dagster-daemon and dagster-webserver"
		if isJSON := slices.Contains(c.args, "--json"); !isJSON && !strings.Contains(out, back) {
			t.Errorf("%s: %q, the only order in which one daemon launches at a time, is not in\n%s", name, back, out)
		}
	}
}

func TestLaunchers(t *testing.T) {
	home := parked(t, false, "launchers: {local: {kind: process}, small: {kind: process, config: {max_workers: 2}}}\n")
	out, err := slipway(t, home, "launchers", "list", "--json")
	var list []struct {
		Name, Kind string
		Abilities  []string
	}
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) != 2 || list[1].Name != "small" ||
		len(list[0].Abilities) < 8 {
		t.Errorf("launchers list = %v\n%s", err, out)
	}
	for _, args := range [][]string{{"launchers", "schema"}, {"launchers", "schema", "process"}} {
		var schema struct{ Properties map[string]any }
		if out, err := slipway(t, home, args...); err != nil || json.Unmarshal([]byte(out), &schema) != nil ||
			len(schema.Properties) < 5 {
			t.Errorf("%v = %v\n%s", args, err, out)
		}
	}
}

// A sample run is routed as a real run would be, and nothing is launched.
func TestPreviewOfASample(t *testing.T) {
	home := parked(t, false, `
launchers:
  local: {kind: process, python: {"*": /bin/sh}}
  far: {kind: docker, allow: {images: ["etl:*"]}, config: {image: "etl:1", env_vars: [TOKEN=hunter2]}}
routes:
- {when: {job: train*, memory: ">=4Gi"}, to: far, set: {env: {THREADS: "8"}}}
`)
	out, err := slipway(t, home, "launchers", "preview", "--job", "train_all", "--location", "ml",
		"--tag", "slipway/memory=8Gi", "--tag", "slipway/image=etl:2")
	for _, want := range []string{`"Image": "etl:2"`, `"Memory": 8589934592`, `"THREADS=8"`,
		`"execute_run"`, `"DAGSTER_RUN_JOB_NAME=train_all"`} {
		if err != nil || !strings.Contains(out, want) || strings.Contains(out, "hunter2") {
			t.Errorf("launchers preview = %v, %q is missing, or a secret there, in\n%s", err, want, out)
		}
	}
	if out, err := slipway(t, home, "launchers", "preview"); err != nil || !strings.Contains(out, `"/bin/sh"`) {
		t.Errorf("launchers preview of any run = %v\n%s", err, out)
	}
	if out, err := slipway(t, home, "launchers", "preview", "1a", "--job", "x"); err == nil ||
		!strings.Contains(err.Error(), "leave out either the flag or the run") {
		t.Errorf("launchers preview of a run with flags = %v\n%s", err, out)
	}
}

// If dagster.yaml may hold a secret, neither the command of a container nor its variables, as they
// are shown, contain it.
func TestPreviewShowsNoSecret(t *testing.T) {
	home := parked(t, false, "launchers: {local: {kind: docker, config: {image: etl}}}\n")
	file := filepath.Join(home, "dagster.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "compute_logs: {module: company.logs, class: Logs, config: {place: TOPSECRET}}\n"...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := slipway(t, home, "launchers", "preview", "--job", "x", "--location", "ml")
	if err != nil || strings.Contains(out, "TOPSECRET") ||
		!strings.Contains(out, `"DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS=[redacted]"`) {
		t.Errorf("launchers preview = %v\n%s", err, out)
	}
}

func TestExplain(t *testing.T) {
	home := parked(t, true, `
launchers: {local: {kind: process}, other: {kind: process}}
routes:
- {name: nightly, when: {job: night*}, to: other}
- name: data
  when: {tags: {team: data}}
  to: [other, local]
  set: {memory: 1Gi, env: {PASSWORD: "${HOME}", MODE: fast}}
`)
	run := enqueued(t, home, "--tag", "team=data", "--tag", "slipway/cpu=500m", "--", "true")
	status(t, home, run, "SUCCESS")
	out, err := built(t, home, "runs", "explain", run)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{
		"launcher other", `route at launch data: tag team "data" matches "data"`, "launchers other, then local",
		`does not match nightly: job "command" matches none of "night*"`,
		"memory 1073741824 data", "env.MODE fast data", "env.PASSWORD [redacted] data", "cpu 500m tag slipway/cpu",
		"stop_grace 30s launchers.other",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("runs explain: %q is missing in\n%s", want, out)
		}
	}
}

// Runs that exceed their time limit end, and so do their workers.
func TestTimes(t *testing.T) {
	testenv.Beside(t, testenv.Leads)
	stuck := filepath.Join(t.TempDir(), "stuck")
	if err := os.WriteFile(stuck, []byte("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	home := parked(t, true, fmt.Sprintf(`
launchers: {local: {kind: process, python: {"*": %q}, stop_grace: 1h}}
monitoring: {start_timeout_seconds: 600, cancel_timeout_seconds: 2}
routes: [{when: {tags: {slow: "yes"}}, to: local, set: {start_timeout: 1s, stop_grace: 200ms}}]
`, stuck))
	long := enqueued(t, home, "--tag", "dagster/max_runtime=1", "--", "sleep", "1000")
	late := enqueued(t, home, "--like", "aaf68b7e", "--tag", "slow=yes")
	stubborn := enqueued(t, home, "--like", "aaf68b7e")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := built(t, home, "runs", "show", stubborn)
		return err == nil && strings.Contains(out, "worker    dagster-run-"), out
	})
	if out, err := built(t, home, "runs", "terminate", stubborn); err != nil {
		t.Fatalf("runs terminate = %v\n%s", err, out)
	}
	for run, want := range map[string][]string{
		long: {"FAILURE", "PIPELINE_CANCELING", "Canceling due to exceeding maximum runtime of 1 seconds.",
			"Exceeded maximum runtime of 1 seconds."},
		late: {"FAILURE", "Its worker is asked to stop",
			"Run timed out due to taking longer than 1 seconds to start."},
		stubborn: {"CANCELED", "The run was canceled: its worker ended"},
	} {
		status(t, home, run, want[0])
		out, err := built(t, home, "runs", "show", run)
		for _, text := range want {
			if err != nil || !strings.Contains(out, text) {
				t.Errorf("runs show = %v, %q is missing in\n%s", err, text, out)
			}
		}
	}
}

// A worker that no run needs is stopped. Ended workers are removed, but their output is kept.
func TestSweep(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, true, "launchers: {local: {kind: process, remove: 1ns}}\n")
	deleted, done := enqueued(t, home, "--", "sleep", "1000"), enqueued(t, home, "--", "echo", "so it was")
	status(t, home, done, "SUCCESS")
	status(t, home, deleted, "STARTED")
	if err := storagetest.Open(t, home).Exec("DELETE FROM runs WHERE run_id = ?", deleted); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) { // the worker of the done run may still be there
		out, err := built(t, home, "sweep", "--dry-run", "--grace", "0s")
		return err == nil && strings.Count(out, "\n") == 2 && strings.Contains(out, "dagster-run-"+deleted+"-1") &&
				strings.Contains(out, "its run is no longer in the storage"),
			fmt.Sprintf("sweep --dry-run = %v\n%s", err, out)
	})
	if out, err := built(t, home, "sweep", "--dry-run"); err != nil || strings.Contains(out, deleted) {
		t.Errorf("sweep --dry-run within the grace = %v\n%s", err, out)
	}
	var swept []sweptView
	out, err := built(t, home, "sweep", "local", "--grace", "0s", "--json")
	if jerr := json.Unmarshal([]byte(out), &swept); err != nil || jerr != nil || len(swept) != 1 ||
		swept[0].Do != "stop" || swept[0].RunID != deleted {
		t.Fatalf("sweep = %v, %v\n%s", err, jerr, out)
	}

	in, err := instance.Load(home, []*launcher.Kind{process.Kind(testenv.Build(t, "slipway-agent"))}, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	targets, err := openTargets(t.Context(), in, "local")
	if err != nil {
		t.Fatal(err)
	}
	defer closing(&err, targets)
	id := launcher.ID{Run: done, Attempt: 1}
	act := daemon.Sweeper(in, "", nil, targets, slog.New(slog.DiscardHandler)).Act
	testenv.Eventually(t, time.Minute, func() (bool, string) { // its supervisor may write yet
		err := act(t.Context(), monitor.Finding{Launcher: "local",
			Worker: launcher.Worker{ID: id, Handle: launcher.Handle(id.String())}})
		return err == nil, fmt.Sprint(err)
	})
	if left, err := filepath.Glob(filepath.Join(home, "slipway/process/local/*/*"+done+"*")); err != nil ||
		len(left) > 0 {
		t.Errorf("the removed worker left %v, %v", left, err)
	}
	if out, err := built(t, home, "runs", "logs", done); err != nil || out != "so it was\n" {
		t.Errorf("runs logs of a worker that was removed = %v\n%s", err, out)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, err := slipway(t, "", "completion", shell); err != nil || !strings.Contains(out, "slipway") ||
			len(out) < 500 {
			t.Errorf("completion %s = %v, %d bytes", shell, err, len(out))
		}
	}
	if out, err := slipway(t, "", "__complete", "runs", ""); err != nil || !strings.Contains(out, "enqueue") ||
		!strings.Contains(out, "terminate") {
		t.Errorf("completion of runs = %v\n%s", err, out)
	}
}

// changed is the process launcher with another Launch or Terminate; nil means the original one.
type changed struct {
	launcher.Launcher
	launch    func(context.Context, *launcher.Request) error
	terminate func() bool
}

func (c *changed) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	if c.launch != nil {
		if err := c.launch(ctx, req); err != nil {
			return launcher.Launched{}, err
		}
	}
	return c.Launcher.Launch(ctx, req)
}

func (c *changed) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	ran, err := c.Launcher.Terminate(ctx, h, grace)
	if c.terminate != nil {
		ran = c.terminate()
	}
	return ran, err
}

func (c *changed) As(ability any) bool {
	return launcher.Provide(ability, c.Launcher, func(string) bool { return true })
}

// kind returns the kind of the process launcher, with these changes.
func (c *changed) kind(t *testing.T) []*launcher.Kind {
	k := process.Kind(testenv.Build(t, "slipway-agent"))
	open := k.Open
	k.Open = func(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
		l, err := open(ctx, v, log)
		return &changed{l, c.launch, c.terminate}, err
	}
	return []*launcher.Kind{k}
}

// A copy of a run has the tags of its user, but none of the tags about the worker of the old run.
func TestCopyHasNoTagsOfTheWorker(t *testing.T) {
	files, err := scaffold.Files("command", scaffold.Launcher{Name: "spool"})
	if err != nil {
		t.Fatal(err)
	}
	home := parked(t, false, `
launchers:
  local: {kind: process}
  batch:
    kind: command
    config:
      launch: [./launch, "{name}", "{instance}", "--", "{command}"]
      health: [./spool, health, "{name}"]
      terminate: [./spool, terminate, "{name}", "{grace}"]
      env: {SPOOL: "`+t.TempDir()+`"}
      promises: {unique: true, strong_read: true, local_files: true, signals_worker: true}
default: batch
`)
	for name, text := range map[string]string{
		"spool": string(files["spool"].Text),
		"launch": "#!/bin/sh\n" + filepath.Join(home, "spool") +
			" launch \"$@\" && echo '{\"tags\": {\"batch/session\": \"7\"}}'\n",
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	tags := func(run string) string {
		t.Helper()
		text, err := storagetest.Open(t, home).Text(
			"SELECT group_concat(key || '=' || value, ' ') FROM run_tags WHERE run_id = ?", run)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	daemon := launch(t, home)
	run := enqueued(t, home, "--tag", "team=a", "--tag", "slipway/cpu=500m", "--", "true")
	status(t, home, run, "SUCCESS")
	if got := tags(run); !strings.Contains(got, "batch/session=7") {
		t.Errorf("the launcher's tag is missing in %s", got)
	}
	daemon.stop() // else it would launch the copy
	copied := tags(enqueued(t, home, "--like", run))
	for text, want := range map[string]bool{"team=a": true, "slipway/cpu=500m": true, "batch/session": false,
		"slipway-put": false} {
		if strings.Contains(copied, text) != want {
			t.Errorf("the copy's tags have %q: %v, want %v; they are %s", text, !want, want, copied)
		}
	}
}

// launchers test tests a launcher of slipway.yaml or a program against the contract, and reports
// what it breaks.
func TestLaunchersTest(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := t.TempDir()
	out, err := built(t, home, "launchers", "test", "local")
	if err != nil || strings.Count(out, "\npass ") < 30 ||
		!strings.Contains(out, " passed, 0 failed, 0 not promised in ") {
		t.Errorf("launchers test local = %v\n%s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(home, "slipway", "process", "local", "*", "*")); err != nil ||
		len(left) > 0 {
		t.Errorf("the kit left %v behind, %v", left, err)
	}
	var report struct {
		Passed, Failed int
		Results        []struct{ Sentence, Outcome, Text string }
	}
	out, err = withKinds(t.Context(), (&changed{terminate: func() bool { return true }}).kind(t), home, "launchers",
		"test", "local", "--json", "--only", "unknown worker")
	if jerr := json.Unmarshal([]byte(out), &report); !errors.Is(err, errContract) || jerr != nil ||
		report.Failed != 1 || len(report.Results) != 2 {
		t.Fatalf("launchers test of one that breaks the contract = %v, %v\n%s", err, jerr, out)
	}
	for _, r := range report.Results {
		if broken := strings.HasPrefix(r.Sentence, "Terminate of an unknown"); broken != (r.Outcome == "failed") ||
			broken && !strings.Contains(r.Text, "want false") {
			t.Errorf("result = %+v", r)
		}
	}
	if out, err = slipway(t, home, "launchers", "test", "unknown"); err == nil ||
		!strings.Contains(err.Error(),
			"there is no launcher \"unknown\" in slipway.yaml; there are code-server, local; to test a program: "+
				"slipway launchers test -- unknown") {
		t.Errorf("launchers test of a name that is none = %v\n%s", err, out)
	}
	if out, err = slipway(t, home, "launchers", "test", "--", "/bin/false"); err == nil ||
		!strings.Contains(err.Error(), "/bin/false") {
		t.Errorf("launchers test of a program that is no launcher = %v\n%s", err, out)
	}
}

// The kit has a quick form, adapts to the size of the target, ends early if nothing else can pass,
// and writes a report that CI systems read.
func TestKitForms(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home, file := t.TempDir(), filepath.Join(t.TempDir(), "kit.xml")
	test := func(c *changed, args ...string) (string, error) {
		t.Helper()
		return withKinds(t.Context(), c.kind(t), home, append([]string{"launchers", "test", "local"}, args...)...)
	}
	written := func() (suite junitSuite) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err == nil {
			err = xml.Unmarshal(text, &suite)
		}
		if err != nil {
			t.Fatal(err)
		}
		return suite
	}
	out, err := test(&changed{}, "--quick", "--report", "junit="+file)
	if got := written(); err != nil || !strings.Contains(out, "12 passed, 0 failed, 0 not promised in ") ||
		got.Tests != 12 || got.Failures+got.Skipped != 0 || len(got.Cases) != 12 || got.Seconds <= 0 {
		t.Errorf("launchers test --quick = %v, %+v\n%s", err, got, out)
	}

	var mu sync.Mutex
	taken := map[launcher.ID]bool{}
	small := &changed{launch: func(_ context.Context, req *launcher.Request) error {
		mu.Lock()
		defer mu.Unlock()
		if taken[req.ID] || len(taken) < 3 {
			taken[req.ID] = true
			return nil
		}
		return fmt.Errorf("%w: 3 of 3 places are taken", launcher.ErrCapacity)
	}}
	if out, err := test(small, "--many", "5", "--only", "many at once starts as many"); err != nil ||
		!strings.Contains(out, "1 passed") || len(taken) != 3 {
		t.Errorf("launchers test --many 5 with room for three = %v, %v were launched\n%s", err, taken, out)
	}
	asked := 0
	pending := &changed{launch: func(context.Context, *launcher.Request) error {
		if asked++; asked == 1 {
			return launcher.Pending(0)
		}
		return nil
	}}
	if out, err := test(pending, "--many", "1", "--only", "many at once starts as many"); err != nil || asked != 2 {
		t.Errorf("launchers test with a target that prepares = %v, Launch was called %d times\n%s", err, asked, out)
	}

	denied := &changed{launch: func(context.Context, *launcher.Request) error {
		return fmt.Errorf("%w: the key has expired", launcher.ErrDenied)
	}}
	out, err = test(denied, "--report", "junit="+file)
	got := written()
	if !errors.Is(err, errContract) || strings.Count(out, "the key has expired") != 1 ||
		!strings.Contains(out, "0 passed, 1 failed, 0 not promised, 34 not run (the first sentence failed") {
		t.Errorf("launchers test of one that starts no worker = %v\n%s", err, out)
	}
	if got.Tests != 35 || got.Failures != 1 || got.Skipped != 34 || got.Cases[0].Failure == nil ||
		!strings.Contains(got.Cases[0].Failure.Text, "the key has expired") {
		t.Errorf("its report is %+v", got)
	}
	for flag, value := range map[string]string{"--report": "html=x", "--many": "0"} {
		if out, err := test(&changed{}, flag, value); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("launchers test %s %s = %v\n%s", flag, value, err, out)
		}
	}
}
