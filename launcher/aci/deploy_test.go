package aci_test

import (
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	emulator "github.com/slipway-run/slipway/test/emulator/aci"

	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

// The role in deploy has exactly the permissions that the launcher's calls need.
func TestRole(t *testing.T) {
	testenv.GeneratedFile(t, "../../deploy/azure/role.json", string(aci.Role())+"\n")
}

// The template in deploy can be deployed unchanged.
func TestTemplate(t *testing.T) {
	template, err := os.ReadFile("../../deploy/azure/daemon.json")
	if err != nil {
		t.Fatal(err)
	}
	a := newAzure(t, &emulator.Processes{}, nil)
	url := a.url +
		"/subscriptions/s1234567/resourceGroups/rg/providers/Microsoft.Resources/deployments/d?api-version=2021-04-01"
	body := `{"properties": {"mode": "Incremental", "template": ` + string(template) +
		`, "parameters": {"name": {"value": "mine"}}}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer x")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.Body.Close() != nil || resp.StatusCode != 201 || !slices.Contains(a.Names(), "mine") {
		t.Errorf("PUT = %d %s, %v; groups %v", resp.StatusCode, text, err, a.Names())
	}
}
