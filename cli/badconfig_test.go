package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/test/storagetest"
)

// Every kind of bad configuration is reported with its file, line, setting and next step, and
// nothing starts.
func TestBadConfiguration(t *testing.T) {
	one := func(name, rest string) string {
		return "launchers: {" + name + ": {" + rest + "}}\ndefault: " + name + "\n"
	}
	d := storagetest.NewSQLite(t)
	for name, c := range map[string]struct{ slipway, dagster, want, next string }{
		"a number that is none": {"queue: {max_concurrent_runs: many}\n",
			"", `slipway.yaml:1:30: queue.max_concurrent_runs: "many" is not an integer`, "write a whole number"},
		"a boolean that is none": {one("a", "kind: process, config: {inherit_env: perhaps}"),
			"", `slipway.yaml:1:54: launchers.a.config.inherit_env: "perhaps" is neither true nor false`,
			"write one of them"},
		"a duration that is none": {one("a", "kind: process, stop_grace: soon"),
			"", `slipway.yaml:1:44: launchers.a.stop_grace: "soon" is not a duration`,
			"write seconds, or a text such as 30s"},
		"an amount that is none": {one("a", "kind: docker, config: {memory: lots}"),
			"", `slipway.yaml:1:48: launchers.a.config.memory: "lots" is not an amount`, "512Mi"},
		"no list": {one("a", "kind: docker, config: {networks: x}"),
			"", "slipway.yaml:1:50: launchers.a.config.networks: a list is expected", "as [a, b]"},
		"no mapping": {"launchers: [local]\n",
			"", "slipway.yaml:1:12: launchers: a mapping is expected", "as {name: value}"},
		"no YAML": {"launchers: {\n",
			"", "slipway.yaml: this is not valid YAML: yaml: line 1: did not find expected node content", "line 1"},
		"an unknown setting": {one("a", "kind: process, confg: {}"),
			"", "slipway.yaml:1:32: launchers.a.confg: unknown setting", "did you mean config?"},
		"an unknown setting of a kind": {one("a", "kind: docker, config: {imag: x}"),
			"", "slipway.yaml:1:40: launchers.a.config.imag: unknown setting", "did you mean image?"},
		"one that is like no other": {"zzzzzz: 1\n", "", "slipway.yaml:1:1: zzzzzz: unknown setting",
			"there are instance_id, former_instance_ids, log_level, default, launchers"},
		"a tag limit's section": {
			"queue: {tag_concurrency_limits: [{key: a, limit: 1, value: {applyLimitPerUniqueVal: true}}]}\n",
			"", "slipway.yaml:1:61: queue.tag_concurrency_limits[0].value.applyLimitPerUniqueVal: unknown setting",
			"did you mean applyLimitPerUniqueValue?"},
		"a class's section": {"run_launcher: {module: m, clas: C}\n",
			"", "slipway.yaml:1:27: run_launcher.clas: unknown setting", "did you mean class?"},
		"log_level": {"log_level: loud\n",
			"", `slipway.yaml:1:12: log_level: "loud" is not one of`, "debug, info, warn or error"},
		"a direct_url beside SQLite": {"storage: {direct_url: 'postgresql://u@h/d'}\n",
			"", "slipway.yaml:1:23: storage.direct_url: the storage in dagster.yaml is SQLite", "leave direct_url out"},
		"a variable that is not set": {one("a", "kind: docker, config: {image: '${NO_SUCH_IMAGE}'}"),
			"", "slipway.yaml:1:47: launchers.a.config.image: environment variable NO_SUCH_IMAGE is not set",
			"set it for this process, or write a default, such as ${NO_SUCH_IMAGE:-value}"},
		"one by {env: NAME}": {"instance_id: {env: NO_SUCH_ID}\n",
			"", "slipway.yaml:1:14: instance_id: environment variable NO_SUCH_ID is not set",
			"set it for this process"},
		"an open ${": {"instance_id: '${HOME'\n",
			"", "slipway.yaml:1:14: instance_id: ${ without }", "write $${ for a literal ${"},
		"a file that cannot be read": {
			one("a", "kind: docker, config: {registry: {url: r, username: u, password: {file: /no/such}}}"),
			"", "slipway.yaml:1:82: launchers.a.config.registry.password: stat /no/such: no such file",
			"needs a file that this process can read"},
		"an env_file that cannot be read": {one("a", "kind: process, config: {env_files: [/no/such]}"),
			"", "slipway.yaml:1:52: launchers.a.config.env_files: open /no/such: no such file", "it has to be there"},
		"a bad image": {one("a", "kind: docker, config: {image: 'Not An Image'}"),
			"", `slipway.yaml:1:47: launchers.a.config.image: "Not An Image" names no image`,
			"write it as registry/name:tag"},
		"network and networks": {one("a", "kind: docker, config: {network: x, networks: [y]}"),
			"", "slipway.yaml:1:49: launchers.a.config.network: set either network or networks", "not both"},
		"a setting that stands elsewhere": {one("a", "kind: docker, config: {container_kwargs: {image: x}}"),
			"", "slipway.yaml:1:66: launchers.a.config.container_kwargs.image: not allowed here",
			"the setting for it is image"},
		"a mount": {one("a", "kind: docker, config: {mounts: [x]}"),
			"", `slipway.yaml:1:48: launchers.a.config.mounts: "x" is not`, "SOURCE:TARGET or SOURCE:TARGET:ro"},
		"an engine's address": {one("a", "kind: docker, config: {host: 'ftp://x'}"),
			"", `slipway.yaml:1:46: launchers.a.config.host: "ftp://x" is not an address of an engine`,
			"unix:///path, tcp://host:port or ssh://user@host"},
		"a limit without a cgroup": {one("a", "kind: process, config: {memory: 1Gi}"),
			"", "slipway.yaml:1:40: launchers.a.config.cgroup: required with cpu and memory", "the name of a cgroup"},
		"a launcher's name twice": {"launchers: {a: {kind: process}, a: {kind: process}}\n",
			"", "slipway.yaml:1:33: a: occurs twice in this mapping", "remove one"},
		"a launcher's name": {"launchers: {a b: {kind: process}}\ndefault: a b\n",
			"", "slipway.yaml:1:18: launchers.a b: the name of a launcher may have only", "letters, digits, - and _"},
		"a launcher without a kind": {one("a", ""), "", "slipway.yaml:1:16: launchers.a.kind: required",
			"a kind of launcher"},
		"a kind that there is not": {one("a", "kind: dokcer"),
			"", `slipway.yaml:1:23: launchers.a.kind: there is no launcher of kind "dokcer"`, "did you mean docker?"},
		"a default that there is not": {"default: gone\n",
			"", `slipway.yaml:1:10: default: there is no launcher named "gone"`, "there are code-server, local"},
		"a rule that names no launcher": {"routes:\n- {to: moon}\n",
			"", `slipway.yaml:2:8: routes[0].to: there is no launcher named "moon"`, "there are code-server, local"},
		"a rule without a launcher": {"routes: [{when: {job: x}}]\n", "", "slipway.yaml:1:10: routes[0].to: ",
			"required: a launcher, or a list of launchers"},
		"a rule's comparison": {"routes: [{to: local, when: {priority: high}}]\n",
			"", `slipway.yaml:1:39: routes[0].when.priority: "high" is not a comparison`, ">="},
		"a rule's expression": {"routes: [{to: local, when: {cel: 'run.job =='}}]\n",
			"", "slipway.yaml:1:34: routes[0].when.cel: this is not a valid CEL expression: ERROR", "Syntax error"},
		"a rule's text that is a section": {"routes: [{to: local, when: {job: {a: b}}}]\n",
			"", "slipway.yaml:1:34: routes[0].when.job: a single value is expected", ""},
		"an amount of a rule": {"routes: [{to: local, set: {cpu: -1, memory: big}}]\n",
			"", "slipway.yaml:1:33: routes[0].set.cpu: -1 is negative or too large",
			`routes[0].set.memory: "big" is not an amount`},
		"an amount that runs may request": {one("a", "kind: process, allow: {max_memory: lots}"),
			"", `slipway.yaml:1:52: launchers.a.allow.max_memory: "lots" is not an amount`, "512Mi"},
		"a file that is a list": {"- a\n", "", "slipway.yaml:1:1: a mapping is expected", "{setting: value}"},
		"tags and a restricted launcher": {
			"launchers: {local: {kind: process, restricted: true}}\nroutes: [{to: local, when: {tags: {a: b}}}]\n",
			"", `slipway.yaml:2:15: routes[0].to: launcher "local" is restricted`, "or remove restricted"},
		"nodes of one that has none": {"routes: [{to: local, set: {nodes: {pool: spot}}}]\n",
			"", `slipway.yaml:1:35: routes[0].set.nodes: launcher "local", of kind process, does not choose nodes`,
			"remove set.nodes"},
		"worker_gate": {one("a", "kind: process, worker_gate: maybe"),
			"", `slipway.yaml:1:45: launchers.a.worker_gate: "maybe" is not one of`, "off, relaunch or on"},
		"remove": {one("a", "kind: process, remove: often"),
			"", `slipway.yaml:1:40: launchers.a.remove: "often" is not one of`, "a duration such as 24h"},
		"instance": {one("a", "kind: process, instance: other"),
			"", "slipway.yaml:1:42: launchers.a.instance: must be inherit, image or", "{dagster_home: /absolute/path}"},
		"step_executors of another target": {one("a", "kind: process, step_executors: true"),
			"", "slipway.yaml:1:48: launchers.a.step_executors: Dagster has no step executors for launchers of kind " +
				"process", "leave it out"},
		"instance_id": {"instance_id: a b\n", "", `slipway.yaml:1:14: instance_id: "a b"`,
			"use 1 to 40 letters, digits, - and _"},
		"charge": {"queue: {charge: free}\n",
			"", `slipway.yaml:1:17: queue.charge: "free" is neither admitted nor dagster`, "write one of them"},
		"advertise": {"terminate: {advertise: nowhere}\n",
			"", `slipway.yaml:1:24: terminate.advertise: "nowhere" is not a host:port`, "for example"},
		"a program that is not there": {one("a", "kind: plugin, config: {command: [no-such-program]}"),
			"", `slipway.yaml:1:49: launchers.a.config.command: exec: "no-such-program"`,
			"install it, or give its path"},
		"a Python that is not there": {
			one("a", "kind: python, config: {module: m, class: C, python: /no/python}"),
			"", "slipway.yaml:1:69: launchers.a.config.python: ", "install it, or give its path"},
		"a placeholder that there is not": {
			one("a", "kind: command, config: {launch: [sh, '{nmae}'], health: [sh], terminate: [sh]}"),
			"", "slipway.yaml:1:49: launchers.a.config.launch: there is no placeholder {nmae} here",
			"only name, run_id"},
		"a placeholder in a script": {
			one("a", "kind: command, config: {launch: [sh, -c, 'x {job}'], health: [sh], terminate: [sh]}"),
			"", "slipway.yaml:1:49: launchers.a.config.launch: a placeholder is an argument by itself", "$SLIPWAY_JOB"},
		"a launcher that Slipway does not know": {"", "run_launcher: {module: m, class: C}\n",
			"dagster.yaml:1:15: run_launcher: Slipway does not know m.C", "set run_launcher_python"},
		"runs that are never queued": {"", "run_coordinator: {module: dagster, class: DefaultRunCoordinator}\n",
			"dagster.yaml:1:43: run_coordinator.class: DefaultRunCoordinator launches runs itself",
			"use QueuedRunCoordinator"},
	} {
		parked := c.dagster
		if !strings.Contains(parked, "run_") {
			parked += "run_queue: {max_concurrent_runs: 0}\n"
		}
		for file, text := range map[string]string{"slipway.yaml": c.slipway, "dagster.yaml": parked} {
			if err := os.WriteFile(filepath.Join(d.Location, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := interrupted(ctx, d.Location, "daemon")
		cancel()
		if err == nil || ctx.Err() == context.DeadlineExceeded ||
			!strings.Contains(err.Error(), filepath.Join(d.Location, "")+"/"+c.want) ||
			!strings.Contains(err.Error(), c.next) {
			t.Errorf("%s: daemon = %v\n%s\nwant %q and %q", name, err, out, c.want, c.next)
		}
		if leader, err := d.Text("SELECT COUNT(*) FROM kvs WHERE key LIKE 'slipway/%'"); err != nil || leader != "0" {
			t.Fatalf("%s: something started: %s rows in kvs, %v", name, leader, err)
		}
	}
}

// All problems of slipway.yaml are reported together and each only once, whether they are found
// when the file is read or when its values are checked.
func TestAllProblemsAtOnce(t *testing.T) {
	home := storagetest.NewSQLite(t).Location
	text := "queeu: {}\nlaunchers: {a: {kind: dokcer}, b: {kind: process, remove: often}}\nmonitoring: " +
		"{launch_attempts: many}\nmaintenance: [{cron: never, for: 2h}]\nweb: {listen: everywhere}\n"
	if err := os.WriteFile(filepath.Join(home, "slipway.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := slipway(t, home, "status")
	if err == nil {
		t.Fatal("the settings are taken")
	}
	for _, want := range []string{
		"slipway.yaml:1:1: queeu: unknown setting; did you mean queue?",
		"slipway.yaml:2:23: launchers.a.kind: there is no launcher of kind \"dokcer\"; did you mean docker?",
		`launchers.b.remove: "often" is not one of`,
		`monitoring.launch_attempts: "many" is not an integer`, `maintenance[0].cron: "never" is not a cron line`,
		`web.listen: "everywhere" is not a host:port`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told:\n%v", want, err)
		}
	}
	if n := strings.Count(err.Error(), "slipway.yaml:"); n != 6 {
		t.Errorf("%d problems are told, want 6:\n%v", n, err)
	}
}
