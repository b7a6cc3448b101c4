//go:build real

package k8s_test

import (
	"fmt"
	"maps"
	"os"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestContract(t *testing.T) {
	settings, image := cluster(t, nil)
	times := 1
	if os.Getenv("SLIPWAY_SOAK") != "" {
		times = 5
	}
	for i := range times {
		t.Run(fmt.Sprintf("time %d", i+1), func(t *testing.T) {
			launchertest.Run(t, launchertest.Target{
				Kind: k8s.Kind(), Timeout: 3 * time.Minute, Image: image, Many: testenv.Crowd(),
				Open: func() (launcher.Launcher, error) { return open(t, settings) },
			})
		})
	}
}

// cluster returns the settings for the tests' cluster.
func cluster(t testing.TB, more map[string]any) (settings map[string]any, image string) {
	t.Helper()
	kubeconfig, image := testenv.Kubernetes(t)
	settings = map[string]any{"load_incluster_config": false, "kubeconfig_file": kubeconfig,
		"image_pull_policy": "Never", "job_image": image, "qps": 200, "burst": 400}
	maps.Copy(settings, more)
	return settings, image
}
