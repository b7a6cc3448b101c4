//go:build real

package docker_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

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
