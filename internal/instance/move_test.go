package instance_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/testenv"
)

// snippet returns the YAML after a mark in a page.
func snippet(t *testing.T, page, mark string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "<!-- "+mark+" -->\n")
	_, rest, ok2 := strings.Cut(rest, "```yaml\n")
	text, _, ok3 := strings.Cut(rest, "```")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("the page has no snippet %s", mark)
	}
	lines := strings.Split(strings.TrimRight(text, " \n"), "\n")
	indent := len(lines[0]) - len(strings.TrimLeft(lines[0], " "))
	for i, line := range lines {
		lines[i] = line[min(indent, len(line)):]
	}
	return strings.Join(lines, "\n") + "\n"
}

// The edits for Dagster's own chart park its daemon: Slipway may run beside the resulting
// dagster.yaml, with the launcher that it names. A result that has lost the 0 does not count as
// parked.
func TestMoveFromK8sRunLauncher(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs/launchers/k8s.md"))
	if err != nil {
		t.Fatal(err)
	}
	rendered := snippet(t, string(text), "rendered-dagster-yaml") + "storage: {postgres: {postgres_url: {env: PG}}}\n"
	var values struct {
		DagsterDaemon struct {
			RunCoordinator struct {
				Type   string
				Config struct {
					CustomRunCoordinator struct {
						Module, Class string
						Config        map[string]int
					} `yaml:"customRunCoordinator"`
				}
			} `yaml:"runCoordinator"`
			RunMonitoring struct{ Enabled *bool } `yaml:"runMonitoring"`
		} `yaml:"dagsterDaemon"`
	}
	if err := yaml.Unmarshal([]byte(snippet(t, string(text), "values-of-dagsters-chart")), &values); err != nil {
		t.Fatal(err)
	}
	c := values.DagsterDaemon.RunCoordinator
	if n, ok := c.Config.CustomRunCoordinator.Config["max_concurrent_runs"]; c.Type != "CustomRunCoordinator" ||
		c.Config.CustomRunCoordinator.Class != "QueuedRunCoordinator" || !ok || n != 0 ||
		values.DagsterDaemon.RunMonitoring.Enabled == nil || *values.DagsterDaemon.RunMonitoring.Enabled {
		t.Errorf("the values are %+v", values)
	}
	env := func(string) (string, bool) { return "postgresql://h/d", true }
	in, err := instance.Load(home(t, rendered, "queue: {max_concurrent_runs: 25}\n"), all.Kinds(), env)
	if err != nil {
		t.Fatal(err)
	}
	l := in.Launchers["k8s"]
	if !in.Parked || in.MonitorsRun || !in.StockTerminates() || l.Kind == nil || l.Kind.Name != "k8s" ||
		in.Settings.Default != "k8s" || *in.Settings.Queue.MaxConcurrentRuns != 25 {
		t.Errorf("parked %v, stock monitoring %v, launchers %v", in.Parked, in.MonitorsRun, in.Launchers)
	}
	lost := strings.Replace(rendered, "  config:\n    max_concurrent_runs: 0\n", "", 1)
	if in, err = instance.Load(home(t, lost, ""), all.Kinds(), env); err != nil || lost == rendered || in.Parked {
		t.Errorf("without the 0 it is parked %v, %v", in.Parked, err)
	}
	for _, class := range []string{"K8sRunLauncher", "CeleryK8sRunLauncher"} {
		in, err := instance.Load(home(t, strings.Replace(rendered, "class: K8sRunLauncher", "class: "+class, 1), ""),
			all.Kinds(), env)
		if err != nil || in.Launchers["k8s"].Kind == nil {
			t.Errorf("%s is not taken over: %v", class, err)
		}
	}
}
