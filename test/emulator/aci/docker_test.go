//go:build real

package aci_test

import (
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	"github.com/slipway-run/slipway/test/emulator/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

// With Docker, the containers keep running while there is no emulator.
func TestDockerState(t *testing.T) {
	image := testenv.DockerImage(t)
	d, err := aci.NewDocker("none", 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := aci.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	o := aci.Options{Backend: d, State: t.TempDir(), Settings: s, Token: "secret"}
	w := open(t, o)
	g := group("cat /secrets/f; echo; echo $PASSWORD; sleep 2; exit 6")
	c := g.Properties.Containers[0].Properties
	c.Image = &image
	g.Properties.Volumes = []*arm.Volume{{Name: to.Ptr("secrets"),
		Secret: map[string]*string{"f": to.Ptr("aHVudGVyMw==")}}, {Name: to.Ptr("scratch"), EmptyDir: map[string]any{}}}
	c.VolumeMounts = []*arm.VolumeMount{{Name: to.Ptr("secrets"), MountPath: to.Ptr("/secrets"),
		ReadOnly: to.Ptr(true)}, {Name: to.Ptr("scratch"), MountPath: to.Ptr("/scratch")}}
	w.put("live", g)
	w.state("live", "Running")
	if err := w.e.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, o)
	got := w.state("live", "Failed")
	if s := got.Properties.Containers[0].Properties.InstanceView.CurrentState; *s.ExitCode != 6 {
		t.Errorf("exit code %d", *s.ExitCode)
	}
	if log, err := w.boxes.ListLogs(t.Context(), rg, "live", "run", nil); err != nil ||
		*log.Content != "hunter3\nhunter2\n" {
		t.Errorf("log %v, %v", log.Content, err)
	}
	if _, err := w.client.BeginDelete(t.Context(), rg, "live", nil); err != nil {
		t.Fatal(err)
	}
	w.gone("live")
}
