package aci_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	emulator "github.com/slipway-run/slipway/test/emulator/aci"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

// Answers that Azure is known or believed to give have the expected meaning.
func TestHealth(t *testing.T) {
	for file, want := range map[string]launcher.Health{
		"04-get-succeeded.json": {Status: launcher.Succeeded},
		"05-get-failed-oom.json": {Status: launcher.Failed, Cause: launcher.CauseOOM,
			Message: "the container was killed (exit code 137), as when its memory of 4 GB is used up"},
		"06-get-image-pull-failed.json": {Status: launcher.Starting, Phase: launcher.Pulling,
			Message: `Failed to pull image "salesacr.azurecr.io/sales-jobs:none": manifest unknown`},
		"07-get-spot-restarted.json": {Status: launcher.Running, Phase: launcher.PhaseStarted,
			Incarnation: "1 2026-11-20T02:31:02Z",
			Message:     "the platform has started the container again; it had ended with exit code 7148"},
	} {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		var g arm.ContainerGroup
		if err := json.Unmarshal(text, &g); err != nil {
			t.Fatal(err)
		}
		got := aci.Health(&g)
		if got.Status != want.Status || got.Cause != want.Cause || got.Phase != want.Phase ||
			got.Incarnation != want.Incarnation || want.Message != "" && got.Message != want.Message {
			t.Errorf("%s: Health = %+v, want %+v", file, got, want)
		}
	}
}

// everything returns a configuration with all settings.
func everything() map[string]any {
	const identity = "/subscriptions/s/resourceGroups/r/providers/Microsoft.ManagedIdentity/userAssignedIdentities/pull"
	return map[string]any{
		"environment_variables":        map[string]any{"PLAIN": "seen", "TZ": "UTC", "API_TOKEN": "hunter2"},
		"secure_environment_variables": map[string]any{"HIDDEN": "hunter2"},
		"cpu":                          1.5, "memory": 3, "tags": map[string]any{"team": "data", "a/b": "c"},
		"zone": "1", "sku": "Dedicated",
		"identities": []string{"system", identity},
		"registries": []any{map[string]any{"server": "a.azurecr.io", "identity": identity},
			map[string]any{"server": "b.example.com", "username": "u", "password": "hunter2"}},
		"subnet_id": "/subscriptions/s/resourceGroups/r/providers/Microsoft.Network/virtualNetworks/v/subnets/n",
		"dns": map[string]any{"name_servers": []string{"10.0.0.4"}, "search_domains": []string{"a", "b"},
			"options": []string{"ndots:2"}},
		"volumes": []any{
			map[string]any{"name": "share-one", "mount_path": "/data", "share": "s", "storage_account": "acct",
				"storage_account_key": "hunter2", "read_only": true},
			map[string]any{"name": "files", "mount_path": "/secrets", "secret": map[string]any{"f": "hunter2"}},
			map[string]any{"name": "scratch", "mount_path": "/scratch", "empty_dir": true},
			map[string]any{"name": "source", "mount_path": "/src", "git_repository": "https://example.com/r.git", "git_revision": "main"},
		},
		"log_analytics": map[string]any{"workspace_id": "w", "workspace_key": "hunter2"}, "name_prefix": "etl",
	}
}

// The PUT with all settings is as expected, byte for byte. Secrets are only where Azure keeps them
// secret, and never in a preview.
func TestRequest(t *testing.T) {
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			w.Header().Set("x-ms-error-code", "ResourceNotFound")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
		testenv.Reply(w, http.StatusCreated, []byte(`{"properties": {"provisioningState": "Succeeded"}}`))
	}))
	t.Cleanup(server.Close)
	a := &azure{url: server.URL}
	l := a.must(t, everything())
	req := &launcher.Request{
		ID: launcher.ID{Run: "6f2d0c1e-53a4-4f0e-9d3b-0d3f5b1f7a10", Attempt: 1}, Instance: "i", Job: "nightly",
		Location: "sales", Command: []string{"dagster", "api", "execute_run"}, At: time.Unix(1_790_000_000, 0),
		Env:    []launcher.Env{{Name: "ARGS", Value: "hunter2", Secret: true}, {Name: "TZ", Value: "CET"}},
		Labels: map[string]string{"created-by": "slipway", "created-at": "x"},
		Overrides: []launcher.Override{{Source: "container_context.env_vars",
			JSON: json.RawMessage(`["FROM_LOCATION=1"]`)},
			{Source: "container_context.aci",
				JSON: json.RawMessage(`{"memory": 2.5, "environment_variables": {"PLAIN": "of the location"}}`)}},
	}
	if _, err := l.Launch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	var pretty any
	if err := json.Unmarshal(body, &pretty); err != nil {
		t.Fatal(err)
	}
	out, err := json.MarshalIndent(pretty, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	testenv.GeneratedFile(t, "testdata/everything.json", string(out)+"\n")
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, "hunter2") &&
			!slices.ContainsFunc([]string{`"secureValue"`, `"password"`, `"storageAccountKey"`, `"workspaceKey"`},
				func(k string) bool { return strings.Contains(line, k) }) {
			t.Errorf("a secret in %s", line)
		}
	}
	preview, err := l.Preview(t.Context(), req)
	if err != nil || strings.Contains(string(preview), "hunter2") || strings.Contains(string(preview), "aHVudGVyMg") ||
		!strings.Contains(string(preview), "of the location") {
		t.Errorf("Preview = %s, %v", preview, err)
	}
}

// Wrong values of a run or a code location fail the run. The error names the place, the path, and
// the expected value.
func TestOverrides(t *testing.T) {
	l := newAzure(t, &emulator.Processes{}, nil).must(t, nil)
	for text, want := range map[string]string{
		`{"cpus": 2}`:                                "cpus: unknown setting; did you mean cpu?",
		`{"cpu": "many"}`:                            `cpu: "many" is not a number above 0`,
		`{"cpu": "nan"}`:                             `cpu: "nan" is not a number above 0`,
		`{"memory": 0}`:                              `memory: "0" is not a number`,
		`{"cpu": {}}`:                                "cpu: a single value is expected",
		`{"priority": "low"}`:                        `priority: "low" is none of regular, spot`,
		`{"sku": "Gold"}`:                            `sku: "Gold" is none of Standard`,
		`{"locations": "eastus"}`:                    "locations: a list is expected",
		`{"environment_variables": {"a-b": 1}}`:      "environment_variables.a-b: Azure takes letters, digits and _",
		`{"environment_variables": {"A": null}}`:     "environment_variables.A: a text is expected, not null",
		`{"environment_variables": {"A": {"b": 1}}}`: "environment_variables.A: a single value is expected",
		`{"environment_variables": {"A": [1]}}`:      "environment_variables.A: a single value is expected",
		`{"environment_variables": ["A=1"]}`:         "environment_variables: a mapping is expected",
		`{"env_vars": [{"a": 1}]}`:                   "env_vars[0]: a single value is expected",
		`{"tags": {"a": {}}}`:                        "tags.a: a single value is expected",
		`["NAME"]`: "env_vars[0]: environment variable NAME is not set where " +
			"slipway runs",
		`[{}]`: "env_vars[0]: a single value is expected",
		`[]x`:  "this is not one JSON value",
		`{cpu`: "this is not JSON: invalid character 'c'", `"x"`: "a mapping is expected",
	} {
		req := &launcher.Request{ID: launcher.ID{Run: "r", Attempt: 1}, Instance: "i", Command: []string{"true"},
			Overrides: []launcher.Override{{Source: "tag slipway/aci", JSON: []byte(text)}}}
		_, err := l.Launch(context.Background(), req)
		if !errors.Is(err, launcher.ErrInvalid) || !strings.Contains(err.Error(), "tag slipway/aci: "+want) ||
			strings.Contains(err.Error(), "json:") || strings.Count(err.Error(), "slipway/aci") != 1 {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// In layers of overrides a later value replaces an earlier one. A null counts as missing.
func TestOverrideLayers(t *testing.T) {
	t.Setenv("FROM_DAEMON", "hunter2")
	l := newAzure(t, &emulator.Processes{}, nil).must(t,
		map[string]any{"tags": map[string]any{"team": "data", "Slipway-Instance": "x", "floor": "1"},
			"subnet_id": "/subscriptions/s/resourceGroups/r/providers/x"})
	req := &launcher.Request{ID: launcher.ID{Run: "r", Attempt: 1}, Instance: "i", Job: "j", Command: []string{"true"},
		Labels: map[string]string{"room": "2"}, Overrides: []launcher.Override{
			{Source: "container_context.aci",
				JSON: []byte(`{"image": null, "subnet_id": "", "tags": {"team": "etl", "a/b": 1, "slipway/instance": ` +
					`"x", "Dagster-Run-Id": "x", "slipway-end": "{}"}, "environment_variables": {"N": 1.10, "B": ` +
					`true, "S": "\ud83d\ude00 ${HOME}", "D": {"env": "FROM_DAEMON"}}}`)},
			{Source: "routes[0].set", JSON: []byte(`{"cpu": 0.5, "tags": {"floor": "3"}}`)},
			{Source: "tag slipway/aci", JSON: []byte(`["SHARED=1", "FROM_DAEMON"]`)},
		}}
	shown, err := l.Preview(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Body arm.ContainerGroup }
	if err := json.Unmarshal(shown, &got); err != nil {
		t.Fatal(err)
	}
	tags := map[string]string{}
	for k, v := range got.Body.Tags {
		tags[k] = *v
	}
	if d := testenv.Diff(map[string]string{
		"team": "etl", "floor": "3", "room": "2", "a-b": "1", "created-at": "-62135596800", "created-by": "slipway",
		"dagster-job": "j", "dagster-run-id": "r", "slipway-attempt": "1", "slipway-instance": "i",
	}, tags); d != "" {
		t.Errorf("tags (-want +got):\n%s", d)
	}
	p := got.Body.Properties
	c := p.Containers[0].Properties
	vars := map[string]string{}
	for _, v := range c.EnvironmentVariables {
		if v.SecureValue != nil {
			vars[*v.Name] = "secure"
		} else {
			vars[*v.Name] = *v.Value
		}
	}
	if d := testenv.Diff(map[string]string{"N": "1.10", "B": "true", "S": "\U0001F600 ${HOME}", "D": "secure",
		"SHARED": "1", "FROM_DAEMON": "secure"}, vars); d != "" {
		t.Errorf("variables (-want +got):\n%s", d)
	}
	if *c.Image != "registry.example.com/etl:1" || *c.Resources.Requests.CPU != 0.5 || len(p.SubnetIDs) != 0 {
		t.Errorf("image %s, cpu %g, subnets %v", *c.Image, *c.Resources.Requests.CPU, p.SubnetIDs)
	}
}

// Errors about settings that cannot work name the setting.
func TestSettings(t *testing.T) {
	a := newAzure(t, &emulator.Processes{}, nil)
	for want, change := range map[string]map[string]any{
		"settings:1:": {"gpus": 1}, "gpus: Azure retired GPUs in container groups on 2025-07-14": {"gpus": 1},
		`cpu: "lots" is not a number`: {"cpu": "lots"}, `cpu: "nan" is not a number above 0`: {"cpu": "nan"},
		"environment_variables.A: a text is expected, not null": {
			"environment_variables": map[string]any{"A": nil}},
		`memory: "2Gi" is not a number above 0: write gigabytes`:    {"memory": "2Gi"},
		"use https, or, on this machine only, set allow_http: true": {"allow_http": false}, "would send tokens and secrets as they are": {"endpoint": "http://management.example.com"},
		`credential: "mine" is none of`:          {"credential": "mine"},
		"a service principal needs tenant_id":    {"credential": "service_principal"},
		"token: credential: token needs a token": {"token": ""},
		"endpoint: a custom cloud needs":         {"cloud": "custom", "endpoint": ""},
		"subnet_id: a spot group cannot be in a subnet": {"priority": "spot",
			"subnet_id": "/subscriptions/s/resourceGroups/r/providers/x"},
		"volumes[0]: a volume is exactly one of": {
			"volumes": []any{map[string]any{"name": "abcde", "mount_path": "/x"}}},
		"registries[0]: set username and password":       {"registries": []any{map[string]any{"server": "x"}}},
		"name_prefix: \"Dagster\"":                       {"name_prefix": "Dagster"},
		"environment_variables.a-b: Azure takes letters": {"environment_variables": map[string]any{"a-b": "1"}},
		"prices: prices_as_of: the date of the prices": {
			"prices": map[string]any{"eastus": map[string]any{"cpu_hour": 1, "gb_hour": 1}}},
		"identities[0]: \"me\" is neither system": {"identities": []string{"me"}},
		"ca_file: open /no/such":                  {"ca_file": "/no/such"},
	} {
		if _, err := a.open(t, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", change, err, want)
		}
	}
}

// A check reports each problem and how to fix it.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*emulator.Settings)
		more   map[string]any
		fault  *emulator.Fault
		want   string // text of the only finding that is not OK; "" if all are
	}{
		"all is well": {},
		"no such group": {fault: &emulator.Fault{Action: "status", Operation: "list", Status: 404,
			Code: "ResourceGroupNotFound", Message: "Resource group 'data-platform' could not be found."},
			want: "could not be found"},
		"not allowed": {fault: &emulator.Fault{Action: "status", Operation: "list", Status: 403,
			Code: "AuthorizationFailed"}, want: "AuthorizationFailed"},
		"the quota is low": {change: func(s *emulator.Settings) { s.Quota.Cores = 0 }, want: "0 more cores"},
		"too big":          {more: map[string]any{"cpu": 8}, want: "offers groups of up to 4 processors and 16 GB"},
		"no quota readable": {fault: &emulator.Fault{Action: "status", Operation: "usages", Status: 403,
			Code: "AuthorizationFailed"}, want: "quotas of westeurope"},
	} {
		a := newAzure(t, &emulator.Processes{}, c.change)
		if c.fault != nil {
			if err := a.Inject(*c.fault); err != nil {
				t.Fatal(err)
			}
		}
		var bad []launcher.Finding
		for _, f := range a.must(t, c.more).Check(t.Context()) {
			if !f.OK {
				bad = append(bad, f)
			}
		}
		if c.want == "" && len(bad) > 0 || c.want != "" &&
			(len(bad) != 1 || !strings.Contains(bad[0].What, c.want) || bad[0].Fix == "") {
			t.Errorf("%s: %+v, want %q", name, bad, c.want)
		}
	}
}

// The cost of a worker is what Azure bills: from the first pull to the end.
func TestCost(t *testing.T) {
	c := newCase(t, func(s *emulator.Settings) { s.Timing.Start = 300 * time.Millisecond }, map[string]any{
		"cpu": 2, "memory": 4, "prices_as_of": "2026-08-27",
		"prices": map[string]any{"West Europe": map[string]any{"cpu_hour": 3600, "gb_hour": 360}},
	})
	h := c.launch(c.request("sleep 0.5"))
	got := c.ended(h)
	cost, err := c.l.Cost(t.Context(), h)
	took := cost.CPUSeconds / 2
	if ran := got.Ended.Sub(got.Started).Seconds(); err != nil || took < ran || took > ran+2 ||
		cost.GBSeconds != 4*took || cost.Currency != "USD" || cost.AsOf != "2026-08-27" {
		t.Errorf("Cost = %+v, %v, of %v s", cost, err, ran)
	}
	if want := cost.CPUSeconds + cost.GBSeconds/10; cost.Amount < want*0.999 || cost.Amount > want*1.001 {
		t.Errorf("Amount = %v, want %v", cost.Amount, want)
	}
}
