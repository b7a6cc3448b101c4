package instance_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
)

// Without launchers in slipway.yaml, run_launcher in dagster.yaml decides which launcher runs go
// to.
func TestStockLauncher(t *testing.T) {
	kinds := []*launcher.Kind{{Name: "process"}, {Name: "codeserver"},
		{Name: "docker", Stock: "dagster_docker.DockerRunLauncher"},
		{Name: "aci", Stock: "*.AzureContainerInstanceRunLauncher"}, {Name: "python"}}
	const guide = "run_launcher: {module: my_package.azure_launcher, class: AzureContainerInstanceRunLauncher, " +
		"config: {resource_group: my-dagster-rg}}\n"
	served := dagster.Run{Remote: dagster.RemoteOrigin{Location: "l", Host: "h", Port: 1}}
	command := dagster.NewCommandRun("1", "etl", json.RawMessage("{}"), nil)
	managed := dagster.Run{Remote: dagster.RemoteOrigin{Location: "l", Managed: true}}
	const docker = "run_launcher: {module: dagster_docker.docker_run_launcher, class: DockerRunLauncher, config: " +
		"{image: '${IMAGE}'}}\n"
	for name, c := range map[string]struct {
		dagster, slipway string
		launchers        string
		served, managed  string
		wrong            string
	}{
		"nothing": {launchers: "code-server local", served: "code-server", managed: "local"},
		"DefaultRunLauncher": {dagster: "run_launcher: {module: dagster, class: DefaultRunLauncher}\n",
			launchers: "code-server local", served: "code-server", managed: "local"},
		"launchers": {slipway: "launchers: {local: {kind: process}}\n", launchers: "local", served: "local",
			managed: "local"},
		"a known class": {dagster: docker, launchers: "docker", served: "docker", managed: "docker"},
		"launchers win": {dagster: docker, slipway: "launchers: {local: {kind: process}}\n", launchers: "local",
			served: "local", managed: "local"},
		"a guide's class": {dagster: guide, launchers: "aci", served: "aci", managed: "aci"},
		"the same, ours":  {dagster: docker, slipway: guide, launchers: "aci", served: "aci", managed: "aci"},
		"by its class": {
			slipway:   "default: a\nlaunchers: {a: {module: m.n, class: AzureContainerInstanceRunLauncher}}\n",
			launchers: "a", served: "a", managed: "a"},
		"kind and class": {slipway: "launchers: {local: {kind: aci, class: C}}\n",
			wrong: "set either kind, or module and class"},
		"a class that Slipway does not know": {slipway: "launchers: {local: {module: m, class: C}}\n",
			wrong: "no kind of launcher replaces m.C; write kind: python to host the class itself"},
		"an unknown class": {dagster: "run_launcher: {module: m, class: C}\n",
			wrong: "dagster.yaml:1:15: run_launcher: Slipway does not know m.C"},
		"a hosted class": {dagster: "run_launcher: {module: m, class: C, config: {a: 1}}\n",
			slipway: "run_launcher_python: /py\n", launchers: "dagster", served: "dagster", managed: "dagster"},
		"a default elsewhere": {dagster: docker, slipway: "default: other\n", wrong: `no launcher named "other"`},
		"a rule": {slipway: "routes: [{when: {code_server: true}, to: local}]\n",
			launchers: "code-server local", served: "local", managed: "local"},
	} {
		in, err := instance.Load(home(t, c.dagster, c.slipway), kinds, noEnv)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%s: Load = %v, want an error with %q", name, err, c.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := strings.Join(slices.Sorted(maps.Keys(in.Launchers)), " ")
		to, other := in.Router.Launchers(served)[0], in.Router.Launchers(managed)[0]
		if third := in.Router.Launchers(command)[0]; third != c.managed {
			t.Errorf("%s: a command job's run goes to %s, want %s", name, third, c.managed)
		}
		if got != c.launchers || to != c.served || other != c.managed {
			t.Errorf("%s: launchers %s, a code server's run goes to %s, another to %s; want %s, %s, %s", name, got, to,
				other, c.launchers, c.served, c.managed)
		}
	}
	in, err := instance.Load(home(t, docker, ""), kinds, func(string) (string, bool) { return "busybox", true })
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Image string `config:"image"`
	}
	if err := in.Launchers["docker"].Config.Decode(&config); err != nil || config.Image != "busybox" {
		t.Errorf("config of the launcher = %+v, %v, want the image from the environment", config, err)
	}
	in, err = instance.Load(home(t, "run_launcher: {module: m, class: C, config: {a: 1}}\n",
		"run_launcher_python: /py\n"), kinds, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := in.Launchers["dagster"].Config.JSON(); err != nil ||
		string(text) != `{"config":{"a":1},"module":"m","class":"C","python":"/py"}` {
		t.Errorf("config of a hosted class = %s, %v", text, err)
	}
}
