package aci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	azfake "github.com/Azure/azure-sdk-for-go/sdk/azcore/fake"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2/fake"
	"github.com/coder/websocket"

	"github.com/slipway-run/slipway/test/emulator/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

const (
	sub   = "11111111-2222-3333-4444-555555555555"
	rg    = "data-platform"
	place = "westeurope"
)

type world struct {
	*testing.T
	e      *aci.Emulator
	url    string
	client *arm.ContainerGroupsClient
	boxes  *arm.ContainersClient
	places *arm.LocationClient
	token  string
	dir    string
}

type token string

func (t token) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(t), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func options(url string) *azarm.ClientOptions {
	return &azarm.ClientOptions{DisableRPRegistration: true, ClientOptions: azcore.ClientOptions{
		Cloud:                           cloud.Configuration{Services: map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: url, Audience: "https://emulator.invalid"}}},
		InsecureAllowCredentialWithHTTP: true, Retry: policy.RetryOptions{MaxRetries: -1},
	}}
}

func newWorld(t *testing.T, change func(*aci.Settings)) *world {
	t.Helper()
	s, err := aci.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	s.Timing.StopGrace = time.Second
	if change != nil {
		change(&s)
	}
	return open(t, aci.Options{Backend: &aci.Processes{}, State: t.TempDir(), Settings: s, Token: "secret"})
}

func open(t *testing.T, o aci.Options) *world {
	t.Helper()
	e, err := aci.New(o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(e)
	t.Cleanup(func() {
		server.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{T: t, e: e, url: server.URL, token: o.Token, dir: o.State}
	opts := options(server.URL)
	var errs [3]error
	w.client, errs[0] = arm.NewContainerGroupsClient(sub, token(o.Token), opts)
	w.boxes, errs[1] = arm.NewContainersClient(sub, token(o.Token), opts)
	w.places, errs[2] = arm.NewLocationClient(sub, token(o.Token), opts)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return w
}

func group(script string) arm.ContainerGroup {
	return arm.ContainerGroup{Location: to.Ptr("West Europe"), Tags: map[string]*string{"a": to.Ptr("1")},
		Properties: &arm.ContainerGroupPropertiesProperties{
			OSType: to.Ptr(arm.OperatingSystemTypesLinux), RestartPolicy: to.Ptr(arm.ContainerGroupRestartPolicyNever),
			Containers: []*arm.Container{{Name: to.Ptr("run"), Properties: &arm.ContainerProperties{
				Image: to.Ptr("etl:1"), Command: to.SliceOfPtrs("sh", "-c", script),
				EnvironmentVariables: []*arm.EnvironmentVariable{{Name: to.Ptr("PLAIN"), Value: to.Ptr("seen")},
					{Name: to.Ptr("PASSWORD"), SecureValue: to.Ptr("hunter2")}},
				Resources: &arm.ResourceRequirements{Requests: &arm.ResourceRequests{CPU: to.Ptr(1.0),
					MemoryInGB: to.Ptr(1.5)}},
			}}},
		}}
}

func (w *world) put(name string,
	g arm.ContainerGroup) *runtime.Poller[arm.ContainerGroupsClientCreateOrUpdateResponse] {
	w.Helper()
	p, err := w.client.BeginCreateOrUpdate(w.Context(), rg, name, g, nil)
	if err != nil {
		w.Fatalf("PUT %s: %v", name, err)
	}
	return p
}

func (w *world) get(name string) *arm.ContainerGroup {
	w.Helper()
	got, err := w.client.Get(w.Context(), rg, name, nil)
	if err != nil {
		w.Fatalf("GET %s: %v", name, err)
	}
	return &got.ContainerGroup
}

// state waits until a group has a state.
func (w *world) state(name, want string) *arm.ContainerGroup {
	w.Helper()
	var g *arm.ContainerGroup
	testenv.Eventually(w, 20*time.Second, func() (bool, string) {
		g = w.get(name)
		return *g.Properties.InstanceView.State == want,
			fmt.Sprintf("%s is %s, want %s", name, *g.Properties.InstanceView.State, want)
	})
	return g
}

func (w *world) gone(name string) {
	w.Helper()
	testenv.Eventually(w, 20*time.Second, func() (bool, string) {
		_, err := w.client.Get(w.Context(), rg, name, nil)
		return code(err) == "ResourceNotFound", fmt.Sprint(err)
	})
}

func code(err error) string {
	var r *azcore.ResponseError
	if errors.As(err, &r) {
		return fmt.Sprint(r.ErrorCode)
	}
	return fmt.Sprint(err)
}

const fast = 20 * time.Millisecond

// Every style of long-running operation works with the pollers of the SDK.
func TestOperations(t *testing.T) {
	for _, style := range []string{"", "body", "location"} {
		for _, status := range []int{0, 202, 204} {
			t.Run(fmt.Sprintf("%s %d", style, status), func(t *testing.T) {
				w := newWorld(t, func(s *aci.Settings) {
					s.Switches.LRO, s.Switches.DeleteStatus, s.Timing.Start = style, status, 100*time.Millisecond
				})
				got, err := w.put("one", group("sleep 1000")).PollUntilDone(t.Context(),
					&runtime.PollUntilDoneOptions{Frequency: fast})
				if err != nil || *got.Properties.ProvisioningState != "Succeeded" ||
					*got.Properties.InstanceView.State != "Running" {
					t.Fatalf("PUT ended as %+v, %v", got.Properties, err)
				}
				if _, err := w.client.Stop(t.Context(), rg, "one", nil); err != nil {
					t.Fatal(err)
				}
				w.state("one", "Stopped")
				start, err := w.client.BeginStart(t.Context(), rg, "one", nil)
				if err == nil {
					_, err = start.PollUntilDone(t.Context(), &runtime.PollUntilDoneOptions{Frequency: fast})
				}
				if err != nil {
					t.Fatalf("start: %v", err)
				}
				w.state("one", "Running")
				restart, err := w.client.BeginRestart(t.Context(), rg, "one", nil)
				if err == nil {
					_, err = restart.PollUntilDone(t.Context(), &runtime.PollUntilDoneOptions{Frequency: fast})
				}
				if err != nil {
					t.Fatalf("restart: %v", err)
				}
				w.state("one", "Running")
				del, err := w.client.BeginDelete(t.Context(), rg, "one", nil)
				if err == nil {
					_, err = del.PollUntilDone(t.Context(), &runtime.PollUntilDoneOptions{Frequency: fast})
				}
				if err != nil {
					t.Fatalf("DELETE: %v", err)
				}
				w.gone("one")
				if again, err := w.client.BeginDelete(t.Context(), rg, "one", nil); err != nil || !again.Done() {
					t.Errorf("DELETE of one that is gone: %v", err)
				}
			})
		}
	}
}

// If the provisioning of a group fails, its operation fails with the code of the service.
func TestFailedOperation(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.e.Inject(aci.Fault{Action: "provision_failed", Code: "ServiceUnavailable"}); err != nil {
		t.Fatal(err)
	}
	_, err := w.put("one", group("true")).PollUntilDone(t.Context(), &runtime.PollUntilDoneOptions{Frequency: fast})
	if code(err) != "ServiceUnavailable" {
		t.Errorf("the poller ended with %v", err)
	}
	if p := *w.get("one").Properties.ProvisioningState; p != "Failed" {
		t.Errorf("provisioningState %s", p)
	}
}

// Answers have no secrets and nothing that the models of the SDK do not know. The container did get
// the secrets.
func TestAnswers(t *testing.T) {
	w := newWorld(t, nil)
	g := group("echo $PLAIN $PASSWORD; exit 3")
	g.Properties.ImageRegistryCredentials = []*arm.ImageRegistryCredential{{Server: to.Ptr("r"), Username: to.Ptr("u"),
		Password: to.Ptr("hunter2")}}
	g.Properties.Volumes = []*arm.Volume{
		{Name: to.Ptr("secrets"), Secret: map[string]*string{"f": to.Ptr("aHVudGVyMg==")}},
		{Name: to.Ptr("share"), AzureFile: &arm.AzureFileVolume{ShareName: to.Ptr("s"), StorageAccountName: to.Ptr("a"),
			StorageAccountKey: to.Ptr("hunter2")}},
	}
	g.Properties.Diagnostics = &arm.ContainerGroupDiagnostics{LogAnalytics: &arm.LogAnalytics{WorkspaceID: to.Ptr("w"),
		WorkspaceKey: to.Ptr("hunter2")}}
	g.Identity = &arm.ContainerGroupIdentity{Type: to.Ptr(arm.ResourceIdentityTypeSystemAssigned)}
	w.put("one", g)
	got := w.state("one", "Failed")
	if s := got.Properties.Containers[0].Properties.InstanceView.CurrentState; *s.State != "Terminated" ||
		*s.ExitCode != 3 || *s.DetailStatus != "Error" || s.StartTime == nil || s.FinishTime == nil {
		t.Errorf("current state %+v", s)
	}
	log, err := w.boxes.ListLogs(t.Context(), rg, "one", "run", nil)
	if err != nil || *log.Content != "seen hunter2\n" {
		t.Errorf("log %v, %v", log.Content, err)
	}
	base := "/subscriptions/" + sub
	for path, into := range map[string]func() any{
		base + "/resourceGroups/" + rg + "/providers/Microsoft.ContainerInstance/containerGroups/one": func() any {
			return &arm.ContainerGroup{}
		},
		base + "/resourcegroups/" + rg + "/providers/Microsoft.ContainerInstance/containerGroups": func() any {
			return &arm.ContainerGroupListResult{}
		},
		base + "/providers/Microsoft.ContainerInstance/containerGroups": func() any {
			return &arm.ContainerGroupListResult{}
		},
		base + "/providers/Microsoft.ContainerInstance/locations/westeurope/usages": func() any {
			return &arm.UsageListResult{}
		},
		base + "/providers/Microsoft.ContainerInstance/locations/westeurope/capabilities": func() any {
			return &arm.CapabilitiesListResult{}
		},
		base + "/providers/Microsoft.ContainerInstance/locations/westeurope/cachedImages": func() any {
			return &arm.CachedImagesListResult{}
		},
	} {
		status, body := w.raw("GET", path+"?api-version=2023-05-01", "")
		if status != 200 || strings.Contains(body, "hunter2") || strings.Contains(body, "aHVudGVyMg") {
			t.Errorf("%s: %d %s", path, status, body)
		}
		v := into()
		if err := json.Unmarshal([]byte(body), v); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		again, err := json.Marshal(v)
		if err != nil || !sameJSON(t, body, string(again)) {
			t.Errorf("%s: the SDK's models lose something:\n%s\n%s", path, body, again)
		}
	}
	files, err := filepath.Glob(filepath.Join(w.dir, "groups", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	if text, err := os.ReadFile(files[0]); err != nil || bytes.Contains(text, []byte("hunter2")) {
		t.Errorf("%s has a secret: %s, %v", files[0], text, err)
	}
	if text := fmt.Sprintf("%+v", w.e.Journal()); strings.Contains(text, "hunter2") {
		t.Errorf("the journal has a secret: %s", text)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

func (w *world) raw(method, path, body string) (int, string) {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		w.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// Invalid requests are refused with the codes of the service.
func TestRefusals(t *testing.T) {
	w := newWorld(t, func(s *aci.Settings) { s.Quota = aci.Quota{Groups: 3, Cores: 2, SpotCores: 0} })
	w.put("there", group("sleep 1000"))
	w.state("there", "Running")
	for want, change := range map[string]func(*arm.ContainerGroup, *string){
		"InvalidContainerGroupName": func(_ *arm.ContainerGroup, n *string) { *n = "Not_A_Name" },
		"LocationRequired":          func(g *arm.ContainerGroup, _ *string) { g.Location = nil },
		"InvalidOsType": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.OSType = to.Ptr(arm.OperatingSystemTypesWindows)
		},
		"ResourceRequestsNotSpecified": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.Resources = &arm.ResourceRequirements{}
		},
		"InvalidContainerEnvironmentVariable": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.EnvironmentVariables[0].Name = to.Ptr("a-b")
		},
		"InvalidContainerEnvironmentVariable with neither": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.EnvironmentVariables[0].Value = nil
		},
		"InvalidContainerEnvironmentVariable with both": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.EnvironmentVariables[0].SecureValue = to.Ptr("x")
		},
		"InvalidContainerEnvironmentVariable of an init container": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.InitContainers = []*arm.InitContainerDefinition{{Name: to.Ptr("first"),
				Properties: &arm.InitContainerPropertiesDefinition{
					Image: to.Ptr("etl:1"), EnvironmentVariables: []*arm.EnvironmentVariable{{Name: to.Ptr("A")}},
				}}}
		},
		"InvalidResourceRequests": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.Resources.Requests.CPU = to.Ptr(0.0)
		},
		"InvalidResourceRequests of memory": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.Resources.Requests.MemoryInGB = to.Ptr(-1.0)
		},
		"InvalidVolume": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Volumes = []*arm.Volume{{Name: to.Ptr("vvvvv")}}
		},
		"InvalidTagNameCharacters": func(g *arm.ContainerGroup, _ *string) {
			g.Tags = map[string]*string{"a/b": to.Ptr("1")}
		},
		"ServiceUnavailable": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.Resources.Requests.CPU = to.Ptr(5.0)
		},
		"ContainerLimitGreaterThanContainerGroupTotalRequest": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.Resources.Limits = &arm.ResourceLimits{CPU: to.Ptr(9.0)}
		},
		"SpotPriorityContainerGroupNotSupportedInSku": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Priority, g.Properties.SKU = to.Ptr(arm.ContainerGroupPrioritySpot),
				to.Ptr(arm.ContainerGroupSKUDedicated)
		},
		"ContainerGroupQuotaReached": func(g *arm.ContainerGroup, _ *string) {
			g.Properties.Containers[0].Properties.Resources.Requests.CPU = to.Ptr(2.0)
		},
		"InvalidContainerGroupUpdate": func(g *arm.ContainerGroup, n *string) {
			*n, g.Properties.RestartPolicy = "there", to.Ptr(arm.ContainerGroupRestartPolicyAlways)
		},
		"InvalidResourceLocation": func(g *arm.ContainerGroup, n *string) {
			*n, g.Location = "there", to.Ptr("eastus")
		},
	} {
		g, name := group("true"), "new"
		change(&g, &name)
		want, _, _ := strings.Cut(want, " ")
		if _, err := w.client.BeginCreateOrUpdate(t.Context(), rg, name, g, nil); code(err) != want {
			t.Errorf("%s: %v", want, err)
		}
	}
	g := group("true")
	g.Properties.Priority = to.Ptr(arm.ContainerGroupPrioritySpot)
	if _, err := w.client.BeginCreateOrUpdate(t.Context(), rg, "spot", g, nil); code(err) !=
		"ContainerGroupQuotaReached" {
		t.Errorf("a spot group: %v", err)
	}
	const provider = "/subscriptions/s/providers/Microsoft.ContainerInstance/"
	for want, path := range map[string]string{
		"MissingApiVersionParameter": provider + "containerGroups",
		"InvalidApiVersionParameter": provider + "containerGroups?api-version=2017-01-01",
		"InvalidResourceType":        provider + "containerTeams?api-version=2023-05-01",
	} {
		if _, body := w.raw("GET", path, ""); !strings.Contains(body, want) {
			t.Errorf("%s: %s", path, body)
		}
	}
	w.token = "another"
	if status, body := w.raw("GET",
		"/subscriptions/s/providers/Microsoft.ContainerInstance/containerGroups?api-version=2023-05-01", ""); status !=
		401 || !strings.Contains(body, "AuthenticationFailed") {
		t.Errorf("a wrong token: %d %s", status, body)
	}
}

// What a second PUT with the same name does.
func TestUpdates(t *testing.T) {
	for _, flipped := range []bool{false, true} {
		t.Run(fmt.Sprint("flipped ", flipped), func(t *testing.T) {
			w := newWorld(t, func(s *aci.Settings) {
				if s.Timing.StopGrace = 50 * time.Millisecond; flipped {
					s.Switches = aci.Flipped()
				}
			})
			w.put("one", group("sleep 1000"))
			w.state("one", "Running")
			w.put("one", group("sleep 1000"))
			w.deployed("one", map[bool]int{false: 1, true: 2}[flipped])
			w.state("one", "Running")
			w.put("one", group("sleep 2000"))
			w.deployed("one", map[bool]int{false: 2, true: 3}[flipped])
			w.put("two", group("exit 0"))
			w.state("two", "Succeeded")
			_, err := w.client.BeginCreateOrUpdate(t.Context(), rg, "two", group("exit 0"), nil)
			if flipped != (err != nil) {
				t.Errorf("PUT on a finished group: %v", err)
			}
			w.deployed("two", map[bool]int{false: 2, true: 1}[flipped])
			testenv.Eventually(t, 10*time.Second, func() (bool, string) {
				_, err := w.client.Update(t.Context(), rg,
					"two", arm.Resource{Tags: map[string]*string{"b": to.Ptr("2")}}, nil)
				return err == nil, fmt.Sprint(err)
			})
			if n := len(w.get("two").Tags); n != map[bool]int{false: 2, true: 1}[flipped] {
				t.Errorf("after PATCH there are %d tags", n)
			}
		})
	}
}

func (w *world) deployed(name string, want int) {
	w.Helper()
	testenv.Eventually(w, 10*time.Second, func() (bool, string) {
		n := w.e.Deployed(name)
		return n == want, fmt.Sprintf("%s was deployed %d times, want %d", name, n, want)
	})
}

// Restart policies, and what the platform does to running groups.
func TestRestarts(t *testing.T) {
	w := newWorld(t, func(s *aci.Settings) { s.Timing.Backoff = 50 * time.Millisecond })
	g := group("exit 1")
	g.Properties.RestartPolicy = to.Ptr(arm.ContainerGroupRestartPolicyOnFailure)
	w.put("onfailure", g)
	testenv.Eventually(t, 10*time.Second, func() (bool, string) {
		v := w.get("onfailure").Properties.Containers[0].Properties.InstanceView
		return v != nil && v.RestartCount != nil && *v.RestartCount >= 2 && *v.PreviousState.ExitCode == 1, "restarted"
	})
	for what, want := range map[string]int32{"evict": 7148, "maintenance": 7147} {
		w.put(what, group("sleep 1000"))
		w.state(what, "Running")
		if err := w.e.Befall("", "", what, what); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 10*time.Second, func() (bool, string) {
			v := w.get(what).Properties.Containers[0].Properties.InstanceView
			return v.PreviousState != nil && *v.PreviousState.ExitCode == want && *v.CurrentState.State == "Running",
				fmt.Sprintf("%+v", v.CurrentState)
		})
	}
	w.put("oom", group("sleep 1000"))
	w.state("oom", "Running")
	if status, body := w.raw("POST", "/_emulator/groups/oom/oom", ""); status != 200 {
		t.Fatal(body)
	}
	if s := w.state("oom", "Failed").Properties.Containers[0].Properties.InstanceView.CurrentState; *s.ExitCode != 137 {
		t.Errorf("exit code %d", *s.ExitCode)
	}
}

// Lists come in pages, without instance views.
func TestPages(t *testing.T) {
	w := newWorld(t, nil)
	const n = 230
	for i := range n {
		w.put(fmt.Sprintf("g%03d", i), group("exit 0"))
	}
	seen, pages := map[string]bool{}, 0
	for p := w.client.NewListByResourceGroupPager(rg, nil); p.More(); pages++ {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range page.Value {
			seen[*g.Name] = true
			if g.Properties.InstanceView != nil || g.Properties.Containers[0].Properties.InstanceView != nil {
				t.Errorf("%s has an instance view", *g.Name)
			}
		}
	}
	if len(seen) != n || pages != 3 {
		t.Errorf("%d groups in %d pages", len(seen), pages)
	}
	for p := w.places.NewListUsagePager(place, nil); p.More(); {
		page, err := p.NextPage(t.Context())
		if err != nil || *page.Value[0].CurrentValue != n {
			t.Errorf("usages %+v, %v", page.Value, err)
		}
	}
}

// Logs have the limits of the service. A web socket can run a command in a container.
func TestLogsAndExec(t *testing.T) {
	w := newWorld(t, nil)
	w.put("loud", group("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"))
	w.state("loud", "Succeeded")
	log, err := w.boxes.ListLogs(t.Context(), rg, "loud", "run", nil)
	if err != nil || len(*log.Content) > 16<<10 || strings.Count(*log.Content, "\n") > 1000 ||
		!strings.HasSuffix(*log.Content, "line 2999\n") {
		t.Errorf("%d bytes, %v", len(*log.Content), err)
	}
	log, err = w.boxes.ListLogs(t.Context(), rg, "loud",
		"run", &arm.ContainersClientListLogsOptions{Tail: to.Ptr[int32](1), Timestamps: to.Ptr(true)})
	if err != nil {
		t.Fatal(err)
	}
	at, rest, _ := strings.Cut(*log.Content, " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || rest != "line 2999\n" {
		t.Errorf("with times: %q, %v", *log.Content, err)
	}
	if _, err := w.boxes.ExecuteCommand(t.Context(), rg, "loud",
		"run", arm.ContainerExecRequest{Command: to.Ptr("true")}, nil); code(err) != "ContainerGroupStopped" {
		t.Errorf("exec in a container that has ended: %v", err)
	}
	w.put("live", group("sleep 1000"))
	w.state("live", "Running")
	got, err := w.boxes.ExecuteCommand(t.Context(), rg, "live", "run", arm.ContainerExecRequest{Command: to.Ptr("cat")},
		nil)
	if err != nil {
		t.Fatal(err)
	}
	ws, resp, err := websocket.Dial(t.Context(), *got.WebSocketURI, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		_ = resp.Body.Close() // of the upgrade
	}
	defer func() { _ = ws.CloseNow() }()
	for _, text := range []string{*got.Password, "hello\n"} {
		if err := ws.Write(t.Context(), websocket.MessageBinary, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if _, text, err := ws.Read(t.Context()); err != nil || string(text) != "hello\n" {
		t.Errorf("cat answers %q, %v", text, err)
	}
}

// Requests are counted against the limits, and answers report what is left.
func TestThrottling(t *testing.T) {
	w := newWorld(t, func(s *aci.Settings) { s.Limits = aci.Limits{Writes5m: 2} })
	var resp *http.Response
	ctx := policy.WithCaptureResponse(t.Context(), &resp)
	if _, err := w.client.BeginCreateOrUpdate(ctx, rg, "one", group("true"), nil); err != nil {
		t.Fatal(err)
	}
	if left := resp.Header.Get("x-ms-ratelimit-remaining-subscription-resource-requests-pt5m"); left != "1" {
		t.Errorf("%s writes are left", left)
	}
	w.put("two", group("true"))
	_, err := w.client.BeginCreateOrUpdate(ctx, rg, "three", group("true"), nil)
	if code(err) != "ResourceRequestsThrottled" || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the third: %v, Retry-After %q", err, resp.Header.Get("Retry-After"))
	}
}

// An emulator that is started again has the groups of the earlier one.
func TestState(t *testing.T) {
	s, err := aci.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	o := aci.Options{Backend: &aci.Processes{}, State: t.TempDir(), Settings: s, Token: "secret"}
	w := open(t, o)
	w.put("ended", group("exit 4"))
	w.put("live", group("sleep 1000"))
	w.state("ended", "Failed")
	w.state("live", "Running")
	if err := w.e.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, o)
	if s := w.get("ended").Properties.Containers[0].Properties.InstanceView.CurrentState; *s.ExitCode != 4 {
		t.Errorf("ended has exit code %d", *s.ExitCode)
	}
	w.state("live", "Failed") // its process ended with the emulator
	if del, err := w.client.BeginDelete(t.Context(), rg, "ended", nil); err != nil || !del.Done() {
		t.Error(err)
	}
	w.gone("ended")
}

// If the emulator may clone, the repository of a git volume is cloned at its revision. Otherwise it
// is refused.
func TestGitVolume(t *testing.T) {
	repo := t.TempDir()
	sh := exec.CommandContext(t.Context(), "sh",
		"-ec", `git init -q . && git config user.email a@example.com && git config user.name a
		echo first >file && git add . && git commit -qm 1 && git tag old && echo second >file && git commit -qam 2`)
	sh.Dir = repo
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := aci.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	o := aci.Options{Backend: &aci.Processes{}, State: t.TempDir(), Settings: s, Token: "secret", Git: true}
	w := open(t, o)
	// A process has no mounts, so the command reads the volume in the folder of the emulator.
	g := group("cat " + o.State + "/volumes/*code/here/file; cat " + o.State + "/volumes/*latest/*/file; exit 3")
	g.Properties.Volumes = []*arm.Volume{
		{Name: to.Ptr("code"), GitRepo: &arm.GitRepoVolume{Repository: to.Ptr("file://" + repo),
			Revision: to.Ptr("old"), Directory: to.Ptr("here")}},
		{Name: to.Ptr("latest"), GitRepo: &arm.GitRepoVolume{Repository: to.Ptr("file://" + repo)}},
	}
	g.Properties.Containers[0].Properties.VolumeMounts = []*arm.VolumeMount{{Name: to.Ptr("code"),
		MountPath: to.Ptr("/code")}, {Name: to.Ptr("latest"), MountPath: to.Ptr("/latest")}}
	w.put("one", g)
	w.state("one", "Failed")
	if log, err := w.boxes.ListLogs(t.Context(), rg, "one", "run", nil); err != nil ||
		*log.Content != "first\nsecond\n" {
		t.Errorf("log %v, %v", log.Content, err)
	}
	refused := func(w *world, folder string) {
		t.Helper()
		g.Properties.Volumes[0].GitRepo.Directory = &folder
		var r *azcore.ResponseError
		if _, err := w.client.BeginCreateOrUpdate(t.Context(), rg, "two", g, nil); !errors.As(err, &r) ||
			r.StatusCode != 400 || r.ErrorCode != "InvalidVolume" {
			t.Errorf("PUT with a repository in %s = %v", folder, err)
		}
	}
	refused(w, "../outside")
	refused(newWorld(t, nil), "here") // it was not allowed to clone
}

// recorder records the requests that the SDK sends to the vendor's own fake.
type recorder struct {
	next policy.Transporter
	seen []*http.Request
}

func (r *recorder) Do(req *http.Request) (*http.Response, error) {
	r.seen = append(r.seen, req)
	return r.next.Do(req)
}

// The emulator knows every request that the SDK can make and that the vendor's fake accepts.
func TestRoutes(t *testing.T) {
	w := newWorld(t, nil)
	// Without handlers it matches the route and then answers with an error.
	r := &recorder{next: fake.NewServerFactoryTransport(&fake.ServerFactory{})}
	o := &azarm.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: r,
		Retry: policy.RetryOptions{MaxRetries: -1}}}
	f, err := arm.NewClientFactory(sub, &azfake.TokenCredential{}, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, groups, boxes, places := t.Context(), f.NewContainerGroupsClient(), f.NewContainersClient(),
		f.NewLocationClient()
	calls := []func() error{
		func() error { _, err := groups.BeginCreateOrUpdate(ctx, rg, "g", group("true"), nil); return err },
		func() error { _, err := groups.Get(ctx, rg, "g", nil); return err },
		func() error { _, err := groups.NewListPager(nil).NextPage(ctx); return err },
		func() error { _, err := groups.NewListByResourceGroupPager(rg, nil).NextPage(ctx); return err },
		func() error { _, err := groups.Update(ctx, rg, "g", arm.Resource{}, nil); return err },
		func() error { _, err := groups.Stop(ctx, rg, "g", nil); return err },
		func() error { _, err := groups.BeginStart(ctx, rg, "g", nil); return err },
		func() error { _, err := groups.BeginRestart(ctx, rg, "g", nil); return err },
		func() error { _, err := groups.GetOutboundNetworkDependenciesEndpoints(ctx, rg, "g", nil); return err },
		func() error { _, err := groups.BeginDelete(ctx, rg, "g", nil); return err },
		func() error { _, err := boxes.ListLogs(ctx, rg, "g", "run", nil); return err },
		func() error {
			_, err := boxes.ExecuteCommand(ctx, rg, "g", "run", arm.ContainerExecRequest{}, nil)
			return err
		},
		func() error { _, err := boxes.Attach(ctx, rg, "g", "run", nil); return err },
		func() error { _, err := places.NewListUsagePager(place, nil).NextPage(ctx); return err },
		func() error { _, err := places.NewListCapabilitiesPager(place, nil).NextPage(ctx); return err },
		func() error { _, err := places.NewListCachedImagesPager(place, nil).NextPage(ctx); return err },
		func() error { _, err := f.NewOperationsClient().NewListPager(nil).NextPage(ctx); return err },
		func() error {
			_, err := f.NewSubnetServiceAssociationLinkClient().BeginDelete(ctx, rg, "v", "s", nil)
			return err
		},
	}
	for i, call := range calls {
		if err := call(); err == nil || !strings.Contains(err.Error(), "not implemented") {
			t.Errorf("call %d: the fake says %v", i, err)
		}
	}
	if len(r.seen) != len(calls) {
		t.Fatalf("%d requests of %d calls", len(r.seen), len(calls))
	}
	for _, req := range r.seen {
		status, body := w.raw(req.Method, req.URL.RequestURI(), "{}")
		if strings.Contains(body, "InvalidResourceType") || status == 401 || status >= 500 {
			t.Errorf("%s %s: %d %s", req.Method, req.URL.Path, status, body)
		}
	}
}
