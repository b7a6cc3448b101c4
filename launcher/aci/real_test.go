//go:build real

package aci_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	emulator "github.com/slipway-run/slipway/test/emulator/aci"

	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

// The kit passes with real containers.
func TestDockerContract(t *testing.T) {
	image := testenv.DockerImage(t)
	times := 1
	if os.Getenv("SLIPWAY_SOAK") != "" {
		times = 10
	}
	for i := range times {
		t.Run(fmt.Sprintf("time %d", i+1), func(t *testing.T) {
			d, err := emulator.NewDocker("none", 0)
			if err != nil {
				t.Fatal(err)
			}
			newAzure(t, d, nil).kit(t, image)
		})
	}
}

// The kit passes on a real subscription.
func TestRealAzure(t *testing.T) {
	settings := os.Getenv(testenv.AzureEnv)
	if settings == "" {
		testenv.Missing(t, "azure", "set "+testenv.AzureEnv+
			" to a launcher's settings as JSON, with an image that has sh and a resource group that may be filled; "+
			"credentials as az login has them")
	}
	var conf map[string]any
	if err := json.Unmarshal([]byte(settings), &conf); err != nil {
		t.Fatalf("%s: %v", testenv.AzureEnv, err)
	}
	image, _ := conf["image"].(string)
	launchertest.Run(t, launchertest.Target{Kind: aci.Kind(), Settings: conf, Timeout: 10 * time.Minute, Image: image})
}

// The kit passes while requests and answers are lost, refused and late at every call, on a seeded
// schedule, if the caller repeats calls as the daemon does.
func TestContractUnderFaults(t *testing.T) {
	t.Parallel()
	a := newAzure(t, &emulator.Processes{}, func(s *emulator.Settings) { s.Timing.StopGrace = stubborn })
	a.Seed(300)
	for _, f := range []emulator.Fault{
		{Action: "drop_before", Probability: 0.03}, {Action: "drop_after", Probability: 0.03},
		{Action: "status", Status: 503, Code: "ServerBusy", Probability: 0.03},
		{Action: "status", Status: 500, Probability: 0.02}, {Action: "bad_json", Probability: 0.02},
		{Action: "transitioning", Operation: "stop", Probability: 0.1},
		{Action: "slow", Delay: 30 * time.Millisecond, Probability: 0.05},
		{Action: "slow_delete", Delay: 100 * time.Millisecond, Probability: 0.1},
	} {
		if err := a.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("kit", func(t *testing.T) { // it ends after all sentences
		launchertest.Run(t, launchertest.Target{
			Kind: aci.Kind(), Timeout: time.Minute, Image: "registry.example.com/etl:1", Many: testenv.Crowd(),
			Parallel: true,
			Open: func() (launcher.Launcher, error) {
				l, err := a.open(t, nil)
				return patient{l}, err
			},
		})
	})
	if n := len(a.Journal()); n < 300 {
		t.Errorf("%d requests", n)
	}
}

// The kit passes with the opposite of every assumption about Azure.
func TestContractFlipped(t *testing.T) {
	t.Parallel()
	newAzure(t, &emulator.Processes{}, func(s *emulator.Settings) {
		s.Switches, s.Timing.StopGrace = emulator.Flipped(), stubborn
	}).kit(t, "")
}
