//go:build real

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/testenv"
)

// dockerWorld returns an instance on Postgres with a launcher "docker", whose workers see the files
// of the test. more has further launchers, and routes.
func dockerWorld(t *testing.T, more string) (w *world, instance, image string) {
	t.Helper()
	image = testenv.DockerImage(t)
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	location := testenv.Postgres(t)
	w = newWorld(t, location, "")
	// The workers get it through env_vars.
	w.env = []string{"E2E_PG_URL=" + strings.Replace(location, "postgresql://", "postgresql+psycopg2://", 1)}
	instance = "e2e-" + uuid.NewString()[:8]
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: {env: E2E_PG_URL}}}\n")
	fates := filepath.Join(testenv.Root(t), "test", "fates")
	w.write("slipway.yaml", fmt.Sprintf(`
instance_id: %s
terminate: {local_only: true}
queue: {max_concurrent_runs: 20}
default: docker
launchers:
  local: {kind: process}
  docker:
    kind: docker
    python: {"*": python}
    step_executors: true
    allow: {images: ["*"]}
    config:
      image: %q
      network: host
      pull_timeout: 1s
      env_vars: [E2E_PG_URL]
      mounts: ["%s:%[3]s:ro", "%s:%[4]s", "%s:/var/run/docker.sock"]
%s`, instance, image, fates, w.home, testenv.DockerSocket(), more))
	t.Cleanup(func() {
		docker(t, "sh", "-c", "docker ps -aq --filter label=slipway-instance="+instance+" | xargs -r docker rm -f -v")
	})
	return w, instance, image
}

// docker runs a command on this machine that concerns the engine.
func docker(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.Background(), command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// says returns the text of a run's events, with their metadata and errors.
func (w *world) says(id string) string {
	var b strings.Builder
	for _, e := range w.events(id) {
		fmt.Fprintln(&b, e.Type, e.Message, e.Texts(), e.Error())
	}
	return b.String()
}

// Real workers of Dagster in containers end as they should, and the log of each run says how.
func TestDockerFates(t *testing.T) {
	w, _, image := dockerWorld(t, "")
	address, _ := w.codeServer("containers")
	server := w.serves(webserver.Options{
		Locations: []string{filepath.Join(testenv.Root(t), "test/fates/fates.py")},
		Servers:   map[string]string{"containers": address},
	})
	stock := w.stockDaemon()
	p := w.slipway()
	launch := func(location, job string, tags map[string]string, config map[string]any) string {
		t.Helper()
		id, err := server.Launch(t.Context(), webserver.Job{Location: location, Name: job, Tags: tags, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	good := launch("fates", "light", nil, nil)
	bad := launch("fates", "fails", nil, nil)
	big := launch("containers", "eats", map[string]string{"slipway/memory": "400Mi"}, nil)
	missing := launch("fates", "light", map[string]string{"slipway/image": "127.0.0.1:1/missing/nothing:1"}, nil)
	steps := launch("containers", "in_steps", nil,
		map[string]any{"execution": map[string]any{"config": map[string]any{"image": image}}})
	forever := waitsFor(filepath.Join(w.home, "never"))
	canceled := launch("fates", "waits", nil, forever.Config)
	killed := launch("fates", "waits", nil, forever.Config)
	released := filepath.Join(w.home, "released")
	restarted := launch("fates", "waits", nil, waitsFor(released).Config)
	for _, id := range []string{canceled, killed, restarted} {
		w.status(p, id, dagster.Started)
	}
	w.terminate(server, canceled)
	docker(t, "docker", "kill", "--signal", "KILL", "dagster-run-"+killed+"-1")
	w.ended(3*time.Minute, p, good, bad, big, missing, steps, canceled, killed)
	p.stop() // a worker continues while there is no daemon
	w.write("released", "")
	p = w.slipway()
	w.ended(time.Minute, p, restarted)
	for _, c := range []struct {
		id   string
		want dagster.Status
		says []string
	}{
		{good, dagster.Success, []string{"[DockerRunLauncher] Launching run in a new container", "with image " + image,
			"default: there are no rules"}},
		{bad, dagster.Failure, nil},
		{big, dagster.Failure, []string{"Cause oom", "ran out of memory"}},
		{missing, dagster.Failure, []string{"Cause image_pull", "127.0.0.1:1/missing/nothing:1", "cannot be pulled",
			"[Slipway] Pulling image"}},
		{steps, dagster.Success, []string{"Launching step in Docker container"}},
		{canceled, dagster.Canceled, nil},
		{killed, dagster.Failure, []string{"exit code 137", "Cause exit"}},
		{restarted, dagster.Success, nil},
	} {
		r, said := w.run(c.id), w.says(c.id)
		if r.Status != c.want {
			t.Errorf("%s is %s, want %s:\n%s", r.Job, r.Status, c.want, said)
		}
		starts := 1
		if c.id == missing {
			starts = 0
		}
		if n := w.count(c.id, dagster.RunStart); n != starts {
			t.Errorf("%s has %d events PIPELINE_START, want %d", r.Job, n, starts)
		}
		for _, text := range c.says {
			if !strings.Contains(said, text) {
				t.Errorf("%s: %q is missing in\n%s", r.Job, text, said)
			}
		}
		if c.id != missing && (r.Tags["dagster/image"] != image || r.Tags["docker/container_id"] == "") {
			t.Errorf("%s has tags %v", r.Job, r.Tags)
		}
		if events, err := server.Events(t.Context(), c.id); err != nil || len(events) == 0 {
			t.Errorf("the page of %s: %d events, %v", r.Job, len(events), err)
		}
	}
	if shows := docker(t, "docker", "inspect", "dagster-run-"+good+"-1",
		"--format", "{{json .Args}} {{json .Config.Cmd}}"); strings.Contains(shows, "slipway:slipway") {
		t.Errorf("docker inspect shows the password: %s", shows)
	}
	p.stop()
	noErrors(t, stock)
}

// One instance has three launchers at once: processes, containers and a plug-in, the one in
// examples/spool. Each of 60 runs goes where its rule says and nowhere else, and explain says why.
func TestThreeLaunchers(t *testing.T) {
	const each = 20
	image := testenv.DockerImage(t)
	plugin, spooled := filepath.Join(t.TempDir(), "slipway-spool"), t.TempDir()
	build := exec.Command("go", "build", "-o", plugin, "./cmd/slipway-spool")
	build.Dir = filepath.Join(testenv.Root(t), "examples/spool/go")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	w, _, _ := dockerWorld(t, fmt.Sprintf(`
  batch:
    kind: plugin
    python: {"*": %q}
    config: {command: [%q], pass_env: [E2E_PG_URL], config: {program: %q, folder: %q}}
routes:
- {name: near, when: {tags: {team: near*}}, to: local}
- name: nightly
  when: {cel: 'run.job == "light" && run.tags["team"] == "batch"'}
  to: [batch, local]
  set: {env: {FROM_THE_RULE: "1"}}
- {name: big, when: {location: fates, memory: ">=200Mi"}, to: docker}
`, filepath.Join(testenv.DagsterBin(t), "python"), plugin, filepath.Join(build.Dir, "spool"), spooled))
	server := w.webserver("test/fates/fates.py")
	p := w.slipway()
	kinds := []struct {
		rule, launcher, reason string
		tags                   map[string]string
		there                  func(id string) bool
	}{
		{"near", "local", `tag team "nearby" matches "near*"`, map[string]string{"team": "nearby"},
			func(id string) bool {
				found, err := filepath.Glob(filepath.Join(w.home, "slipway/process/local/workers/dagster-run-"+id+"-1"))
				return err == nil && len(found) == 1
			}},
		{"nightly", "batch", `run.tags["team"] == "batch" is true`, map[string]string{"team": "batch"},
			func(id string) bool {
				found, err := filepath.Glob(filepath.Join(spooled, "dagster-run-"+id+"-1", "exit"))
				return err == nil && len(found) == 1
			}},
		{"big", "docker", "memory", map[string]string{"slipway/memory": "300Mi"}, func(id string) bool {
			return exec.Command("docker", "inspect", "dagster-run-"+id+"-1").Run() == nil
		}},
	}
	var ids []string
	for i := range each * len(kinds) {
		id, err := server.Launch(t.Context(),
			webserver.Job{Location: "fates", Name: "light", Tags: kinds[i%len(kinds)].tags})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	w.ended(8*time.Minute, p, ids...)
	for i, id := range ids {
		k, r := kinds[i%len(kinds)], w.run(id)
		if r.Status != dagster.Success || r.Launch == nil || r.Launch.Launcher != k.launcher ||
			w.count(id, dagster.RunStart) != 1 {
			t.Errorf("run %s is %s by %+v, want SUCCESS by %s:\n%s", id, r.Status, r.Launch, k.launcher, w.says(id))
		}
		for j, other := range kinds {
			if there := other.there(id); there != (j == i%len(kinds)) {
				t.Errorf("run %s, which went to %s, has a worker on %s: %v", id, k.launcher, other.launcher, there)
			}
		}
		if i >= len(kinds) {
			continue
		}
		out, err := w.command("runs", "explain", id, "--json")
		var why struct {
			Launcher, Route, Rule, Reason string
			Fields                        []struct{ Field, Source string }
		}
		if jerr := json.Unmarshal([]byte(out), &why); err != nil || jerr != nil || why.Launcher != k.launcher ||
			why.Rule != k.rule || !strings.Contains(why.Reason, k.reason) ||
			!strings.HasPrefix(why.Route, k.rule+": ") {
			t.Errorf("runs explain of one that went to %s = %v, %v\n%s", k.launcher, err, jerr, out)
		}
	}
	out, err := w.command("launchers", "check", "--from-target", "--image", image)
	if err != nil || strings.Count(out, "a worker there opened the storage") != 3 {
		t.Errorf("launchers check --from-target = %v\n%s", err, out)
	}
	p.stop()
}

// The stock daemon launches runs with Dagster's own DockerRunLauncher, and Slipway adopts them. One
// ends well, one is canceled in the UI, one is killed and fails with its cause, and one in flight
// is handed back to the stock daemon.
func TestDockerTakeOver(t *testing.T) {
	w, _, image := dockerWorld(t, "")
	fates := filepath.Join(testenv.Root(t), "test", "fates")
	config := "storage: {postgres: {postgres_url: {env: E2E_PG_URL}}}\n" + fmt.Sprintf(`
run_launcher:
  module: dagster_docker
  class: DockerRunLauncher
  config: {image: %q, network: host, env_vars: [E2E_PG_URL], container_kwargs: {volumes: ["%s:%[2]s:ro", "%s:%[3]s"]}}
`, image, fates, w.home)
	unparked := config + "run_monitoring: {enabled: false}\ntelemetry: {enabled: false}\n"
	w.write("dagster.yaml", unparked)
	// Its interpreter is that of the image, as in a deployment.
	address, _ := w.codeServer("fates")
	server := w.serves(webserver.Options{Servers: map[string]string{"fates": address}})
	daemon := func() *process {
		return w.stockDaemon()
	}
	stock := daemon()
	ids := map[string]string{}
	for _, name := range []string{"good", "canceled", "killed", "handed back"} {
		id, err := server.Launch(t.Context(),
			webserver.Job{Location: "fates", Name: "waits", Config: waitsFor(filepath.Join(w.home, name)).Config})
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = id
	}
	for _, id := range ids {
		w.status(stock, id, dagster.Started)
	}
	stock.stop()
	w.write("dagster.yaml", parked+config)
	p := w.slipway()
	p.says("adopted a run that another launcher had started")
	for name, id := range ids {
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			r := w.run(id)
			return r.Launch != nil && r.Handle != "",
				fmt.Sprintf("%s was not adopted: %+v %v\n%s", name, r.Launch, r.Tags, p.output())
		})
	}
	w.write("good", "")
	w.terminate(server, ids["canceled"])
	docker(t, "docker", "kill", "--signal", "KILL", w.run(ids["killed"]).Tags["docker/container_id"])
	w.ended(2*time.Minute, p, ids["good"], ids["canceled"], ids["killed"])
	for name, want := range map[string]dagster.Status{"good": dagster.Success, "canceled": dagster.Canceled,
		"killed": dagster.Failure, "handed back": dagster.Started} {
		if got := w.run(ids[name]).Status; got != want {
			t.Errorf("%s is %s, want %s:\n%s", name, got, want, w.says(ids[name]))
		}
	}
	p.stop()
	w.write("dagster.yaml", unparked)
	stock = daemon()
	w.terminate(server, ids["handed back"])
	w.ended(2*time.Minute, stock, ids["handed back"])
	if got := w.run(ids["handed back"]).Status; got != dagster.Canceled {
		t.Errorf("the run that was handed back is %s", got)
	}
	noErrors(t, stock)
}

// Runs with options that the engine refuses fail at once, in the words of the engine. The runs
// behind them are launched as if they did not exist.
func TestDockerBadRunsHoldUpNobody(t *testing.T) {
	kinds := []struct{ kwargs, says string }{
		{"user: nobody2", "nobody2"},
		{`device_requests: [{capabilities: [["gpu"]], count: -1}]`, "could not select device driver"},
		{`sysctls: {kernel.panic: "1"}`, "kernel.panic"},
		{"working_dir: /etc/passwd", "/etc/passwd"},
		{"entrypoint: [/no/such/program]", "/no/such/program"},
	}
	var routes strings.Builder
	for i, k := range kinds {
		fmt.Fprintf(&routes,
			"- {name: bad%d, when: {tags: {bad: %q}}, to: docker, set: {config: {container_kwargs: {%s}}}}\n", i,
			fmt.Sprint(i), k.kwargs)
	}
	w, _, _ := dockerWorld(t, "routes:\n"+routes.String())
	server := w.webserver("test/fates/fates.py")
	launch := func(tags map[string]string) string {
		t.Helper()
		id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light", Tags: tags})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	var bad, good []string
	for i := range 2 * len(kinds) {
		bad = append(bad, launch(map[string]string{"bad": fmt.Sprint(i % len(kinds))}))
	}
	for range 3 {
		good = append(good, launch(nil))
	}
	p := w.slipway()
	w.ended(3*time.Minute, p, append(good, bad...)...)
	for i, id := range bad {
		if r, said := w.run(id), w.says(id); r.Status != dagster.Failure ||
			!strings.Contains(said, kinds[i%len(kinds)].says) {
			t.Errorf("a run with %s is %s, want FAILURE with the engine's words:\n%s", kinds[i%len(kinds)].kwargs,
				r.Status, said)
		}
	}
	for _, id := range good {
		if r := w.run(id); r.Status != dagster.Success {
			t.Errorf("a run behind them is %s, want SUCCESS:\n%s", r.Status, w.says(id))
		}
	}
	if log := p.output(); strings.Contains(log, "asking again for the same worker") {
		t.Errorf("a launch was tried again:\n%s", log)
	}
	p.stop()
}

// The next daemon starts a container that a killed daemon has created but not started.
func TestDockerMadeAndNotStarted(t *testing.T) {
	w, _, _ := dockerWorld(t, "")
	server := w.webserver("test/fates/fates.py")
	id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
	if err != nil {
		t.Fatal(err)
	}
	w.armed(failpoint.DockerCreated).killed()
	p := w.slipway()
	w.ended(2*time.Minute, p, id)
	if r := w.run(id); r.Status != dagster.Success || w.count(id, dagster.RunStart) != 1 ||
		r.Tags["docker/container_id"] == "" {
		t.Errorf("the run is %s with tags %v, want SUCCESS by one worker:\n%s", r.Status, r.Tags, w.says(id))
	}
	p.stop()
}
