package docker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

// open makes a launcher with settings in YAML.
func open(t testing.TB, settings string) (launcher.Launcher, error) {
	t.Helper()
	n, err := config.Parse("slipway.yaml", []byte(settings))
	if err != nil {
		t.Fatal(err)
	}
	return docker.Kind().Open(context.Background(), config.Values{File: "slipway.yaml", Path: "launchers.docker.config", Node: n, Env: os.LookupEnv}, slog.New(slog.DiscardHandler))
}

func must(t testing.TB, settings string) launcher.Launcher {
	t.Helper()
	l, err := open(t, settings)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestContract(t *testing.T) {
	image := testenv.DockerImage(t)
	times := 1
	if os.Getenv("SLIPWAY_SOAK") != "" {
		times = 10
	}
	for i := range times {
		t.Run(fmt.Sprintf("time %d", i+1), func(t *testing.T) {
			launchertest.Run(t, launchertest.Target{
				Kind: docker.Kind(), Timeout: 2 * time.Minute, Image: image, Many: testenv.Crowd(), Parallel: true,
				Open: func() (launcher.Launcher, error) { return open(t, "{network: none}") },
			})
		})
	}
}
