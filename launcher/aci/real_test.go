//go:build real

package aci_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	emulator "github.com/slipway-run/slipway/test/emulator/aci"

	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

// The kit with real containers.
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

// The kit on a real subscription.
func TestRealAzure(t *testing.T) {
	settings := os.Getenv(testenv.AzureEnv)
	if settings == "" {
		testenv.Missing(t, "azure", "set "+testenv.AzureEnv+" to a launcher's settings as JSON, with an image that has sh and a resource group that may be filled; credentials as az login has them")
	}
	var conf map[string]any
	if err := json.Unmarshal([]byte(settings), &conf); err != nil {
		t.Fatalf("%s: %v", testenv.AzureEnv, err)
	}
	image, _ := conf["image"].(string)
	launchertest.Run(t, launchertest.Target{Kind: aci.Kind(), Settings: conf, Timeout: 10 * time.Minute, Image: image})
}
