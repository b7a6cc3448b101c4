package instance_test

import (
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/instance"
)

// The edits name the section of this file in which Dagster accepts limits, and the present limit.
func TestHandoverNamesTheSection(t *testing.T) {
	const coordinator = "run_coordinator: {module: dagster, class: QueuedRunCoordinator, config: " +
		"{max_concurrent_runs: 6}}\n"
	for name, c := range map[string]struct{ dagster, slipway, park, limit string }{
		"nothing": {"", "", "write max_concurrent_runs: 0 under run_queue in HOME/dagster.yaml",
			"write queue: {max_concurrent_runs: 10} in HOME/slipway.yaml"},
		"run_coordinator": {coordinator,
			"", "write max_concurrent_runs: 0 under run_coordinator.config in HOME/dagster.yaml",
			"write queue: {max_concurrent_runs: 6} in HOME/slipway.yaml"},
		"concurrency": {"concurrency: {runs: {max_concurrent_runs: 4}}\n",
			"", "write max_concurrent_runs: 0 under concurrency.runs in HOME/dagster.yaml",
			"write queue: {max_concurrent_runs: 4} in HOME/slipway.yaml"},
		"some locations": {coordinator, "queue: {only: {locations: [etl], tags: {team: a, any: ''}}}\n",
			"write tag_concurrency_limits: [{key: dagster/code_location, value: etl, limit: 0}, {key: any, limit: " +
				"0}, {key: team, value: a, limit: 0}] under run_coordinator.config in HOME/dagster.yaml",
			"write queue: {max_concurrent_runs: 6} in HOME/slipway.yaml"},
	} {
		dir := home(t, c.dagster, c.slipway)
		in, err := instance.Load(dir, kinds, noEnv)
		if err != nil {
			t.Fatal(err)
		}
		park, monitor := in.Park()
		for got, want := range map[string]string{park.String(): c.park, in.Limit().String(): c.limit,
			monitor.String(): "write enabled: false under run_monitoring in HOME/dagster.yaml"} {
			if got = strings.ReplaceAll(got, dir, "HOME"); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if park.Done || !monitor.Done {
			t.Errorf("%s: parked %v, monitor off %v", name, park.Done, monitor.Done)
		}
	}
}
