//go:build real

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// Launchers that others wrote for Dagster launch, watch and stop real runs without changes: the
// DockerRunLauncher of dagster-docker, and dagster-multihost-launcher.
func TestHostedDockerLaunchers(t *testing.T) {
	image := testenv.DockerImage(t)
	others := filepath.Join(testenv.Root(t), ".venvs/launchers")
	if _, err := os.Stat(filepath.Join(others, ".complete")); err != nil {
		testenv.Missing(t, "docker", "the launchers of others are not installed: hack/launchers")
	}
	python := filepath.Join(testenv.DagsterBin(t), "python")
	mark := filepath.Base(t.TempDir()) + fmt.Sprint(time.Now().UnixNano())
	w, _, _ := dockerWorld(t, fmt.Sprintf(`
  hosted:
    kind: python
    config:
      module: dagster_docker
      class: DockerRunLauncher
      python: %[1]s
      pass_env: [DOCKER_HOST]
      config:
        image: %[2]q
        env_vars: [E2E_PG_URL]
        container_kwargs: {network_mode: host, labels: {slipway-e2e: %[5]q}, volumes: ["%[3]s:%[3]s:ro", "HOME:HOME"]}
  many:
    kind: python
    config:
      module: dagster_multihost_launcher
      class: MultiHostDockerRunLauncher
      python: %[1]s
      path: [%[4]q]
      pass_env: [DOCKER_HOST]
      config:
        docker_hosts:
          - host_name: here
            location_names: [fates]
            network: host
            env_vars: [E2E_PG_URL]
            container_kwargs: {labels: {slipway-e2e: %[5]q}, volumes: ["%[3]s:%[3]s:ro", "HOME:HOME"]}
routes:
  - when: {tags: {to: many}}
    to: many
  - to: hosted
`, python, image, filepath.Join(testenv.Root(t), "test/fates"), others, mark))
	text, err := os.ReadFile(filepath.Join(w.home, "slipway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("slipway.yaml", strings.ReplaceAll(string(text), "HOME:HOME", w.home+":"+w.home))
	t.Cleanup(func() {
		docker(t, "sh", "-c", "docker ps -aq --filter label=slipway-e2e="+mark+" | xargs -r docker rm -f -v")
	})
	fates, _ := w.codeServer("fates")
	containers, _ := w.codeServer("containers")
	server := w.serves(webserver.Options{
		Servers: map[string]string{"fates": fates, "containers": containers},
	})
	p := w.slipway()
	launch := func(location, job string, tags map[string]string, config map[string]any) string {
		t.Helper()
		id, err := server.Launch(t.Context(), webserver.Job{Location: location, Name: job, Tags: tags, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	many := map[string]string{"to": "many", "dagster/image": image}
	forever, released := waitsFor(filepath.Join(w.home, "never")).Config, filepath.Join(w.home, "released")
	good, bad := launch("fates", "light", nil, nil), launch("fates", "fails", nil, nil)
	canceled, killed := launch("fates", "waits", nil, forever), launch("fates", "waits", nil, forever)
	restarted := launch("fates", "waits", nil, waitsFor(released).Config)
	manyGood, manyCanceled := launch("fates", "light", many, nil), launch("fates", "waits", many, forever)
	nowhere := launch("containers", "in_steps", many,
		map[string]any{"execution": map[string]any{"config": map[string]any{"image": image}}})
	for _, id := range []string{canceled, killed, restarted, manyCanceled} {
		w.status(p, id, dagster.Started)
	}
	for _, id := range []string{canceled, manyCanceled} {
		w.terminate(server, id)
	}
	docker(t, "docker", "kill", "--signal", "KILL", w.run(killed).Tags["docker/container_id"])
	w.ended(3*time.Minute, p, good, bad, canceled, killed, manyGood, manyCanceled, nowhere)
	p.stop()
	p = w.slipway()
	w.write("released", "")
	w.ended(time.Minute, p, restarted)
	for _, c := range []struct {
		id   string
		want dagster.Status
		says string
	}{
		{good, dagster.Success, "[DockerRunLauncher] Launching run in a new container"},
		{bad, dagster.Failure, "[DockerRunLauncher] Launching run in a new container"},
		{canceled, dagster.Canceled, "[DockerRunLauncher]"},
		{killed, dagster.Failure, "Container status is exited."},
		{restarted, dagster.Success, "[DockerRunLauncher]"},
		{manyGood, dagster.Success, "here"},
		{manyCanceled, dagster.Canceled, "here"},
		{nowhere, dagster.Failure, "asks for the workspace"},
	} {
		r, said := w.run(c.id), w.says(c.id)
		if r.Status != c.want || !strings.Contains(said, c.says) {
			t.Errorf("%s is %s, want %s, and %q in:\n%s", r.Job, r.Status, c.want, c.says, said)
		}
		starts := 1
		if c.id == nowhere {
			starts = 0
		}
		if n := w.count(c.id, dagster.RunStart); n != starts {
			t.Errorf("%s has %d events PIPELINE_START, want %d", r.Job, n, starts)
		}
	}
}
