//go:build real

package plugin_test

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/launcher/plugin"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestContractOverTheWireDocker(t *testing.T) {
	image := testenv.DockerImage(t)
	launchertest.Run(t, launchertest.Target{
		Kind: plugin.Kind(), Timeout: 2 * time.Minute, Image: image, Many: testenv.Crowd(), Parallel: true,
		Open: func() (launcher.Launcher, error) {
			return open(t, t.TempDir(), "  {network: none, host: 'unix://"+testenv.DockerSocket()+"'}\n", &logged{},
				"docker")
		},
	})
}
