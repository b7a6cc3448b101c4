package aci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	"github.com/slipway-run/slipway/launcher"
)

// operation is a kind of call and the permission that it needs.
type operation struct {
	name, permission string
	write            bool // counts against the service's limits of creates and deletes
}

// These are all calls that the launcher makes. The role in the docs consists of their permissions.
var (
	opGet          = operation{"get", "Microsoft.ContainerInstance/containerGroups/read", false}
	opList         = operation{"list", "Microsoft.ContainerInstance/containerGroups/read", false}
	opPut          = operation{"put", "Microsoft.ContainerInstance/containerGroups/write", true}
	opPatch        = operation{"patch", "Microsoft.ContainerInstance/containerGroups/write", true}
	opDelete       = operation{"delete", "Microsoft.ContainerInstance/containerGroups/delete", true}
	opStop         = operation{"stop", "Microsoft.ContainerInstance/containerGroups/stop/action", false}
	opLogs         = operation{"logs", "Microsoft.ContainerInstance/containerGroups/containers/logs/read", false}
	opUsages       = operation{"usages", "Microsoft.ContainerInstance/locations/usages/read", false}
	opCapabilities = operation{"capabilities", "Microsoft.ContainerInstance/locations/capabilities/read", false}
	opPermissions  = operation{"permissions", "Microsoft.Authorization/permissions/read", false}
)

// operations returns all operations.
func operations() []operation {
	return []operation{opGet, opList, opPut, opPatch, opDelete, opStop, opLogs, opUsages, opCapabilities, opPermissions}
}

// api calls the service through the SDK's clients.
type api struct {
	groups     *arm.ContainerGroupsClient
	containers *arm.ContainersClient
	locations  *arm.LocationClient
	raw        *azarm.Client
	credential azcore.TokenCredential
	scope      string
	http       *http.Client
	rg, sub    string
	pace       pace
}

// pace is what the service has said about the allowed rate of requests.
type pace struct {
	mu     sync.Mutex
	writes time.Time // do not write before; reads is the same for reads
	reads  time.Time
	left   int // remaining reads by the last answer; -1 if unknown
}

// connect returns the clients. It sends nothing.
func connect(c Config) (*api, error) {
	conf := cloud.AzurePublic
	switch c.Cloud {
	case "government":
		conf = cloud.AzureGovernment
	case "china":
		conf = cloud.AzureChina
	case "custom":
		if c.Endpoint == "" {
			return nil, &settingError{"endpoint",
				errors.New("a custom cloud needs the address of its Azure Resource Manager")}
		}
	}
	options := policy.ClientOptions{
		Cloud: conf, Retry: policy.RetryOptions{MaxRetries: 2, RetryDelay: 200 * time.Millisecond,
			MaxRetryDelay: 2 * time.Second},
		Telemetry: policy.TelemetryOptions{ApplicationID: "slipway"},
	}
	a := &api{rg: c.ResourceGroup, sub: c.SubscriptionID, pace: pace{left: -1}}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, &settingError{"endpoint", fmt.Errorf("%q is not an address such as https://management.example.com", c.Endpoint)}
		}
		if u.Scheme == "http" {
			ip := net.ParseIP(u.Hostname())
			if here := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback(); !c.AllowHTTP || !here {
				return nil, &settingError{"endpoint",
					fmt.Errorf("%s would send tokens and secrets as they are: use https, or, on this machine only, "+
						"set allow_http: true", c.Endpoint)}
			}
			options.InsecureAllowCredentialWithHTTP = true
		}
		audience := c.Audience
		if audience == "" {
			audience = c.Endpoint
		}
		options.Cloud = cloud.Configuration{
			ActiveDirectoryAuthorityHost: c.Authority,
			Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
				cloud.ResourceManager: {Endpoint: c.Endpoint, Audience: audience}},
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck,forcetypeassert // from net/http
	transport.MaxIdleConnsPerHost = 32
	if c.CAFile != "" {
		text, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, &settingError{"ca_file", err}
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(text) {
			return nil, &settingError{"ca_file", fmt.Errorf("%s has no certificate", c.CAFile)}
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	a.http = &http.Client{Transport: transport}
	options.Transport = a.http
	var err error
	if a.credential, err = credential(c, options); err != nil {
		return nil, err
	}
	a.scope = options.Cloud.Services[cloud.ResourceManager].Audience + "/.default"
	options.PerRetryPolicies = []policy.Policy{&a.pace}
	o := &azarm.ClientOptions{ClientOptions: options, DisableRPRegistration: c.Endpoint != ""}
	var errs [4]error
	a.groups, errs[0] = arm.NewContainerGroupsClient(c.SubscriptionID, a.credential, o)
	a.containers, errs[1] = arm.NewContainersClient(c.SubscriptionID, a.credential, o)
	a.locations, errs[2] = arm.NewLocationClient(c.SubscriptionID, a.credential, o)
	a.raw, errs[3] = azarm.NewClient("github.com/slipway-run/slipway", "v1.0.0", a.credential, o)
	return a, errors.Join(errs[:]...)
}

// credential returns the credential of the settings.
func credential(c Config, options policy.ClientOptions) (azcore.TokenCredential, error) {
	options.InsecureAllowCredentialWithHTTP = false // tokens come only over https
	switch c.Credential {
	case "managed_identity":
		o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
		if c.ClientID != "" {
			o.ID = azidentity.ClientID(c.ClientID)
		}
		return azidentity.NewManagedIdentityCredential(o)
	case "workload_identity":
		return azidentity.NewWorkloadIdentityCredential(
			&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: options, ClientID: c.ClientID,
				TenantID: c.Tenant})
	case "service_principal":
		if c.Tenant == "" || c.ClientID == "" || (c.Secret == "") == (c.Cert == "") {
			return nil,
				errors.New("a service principal needs tenant_id, client_id, and client_secret or client_certificate")
		}
		if c.Cert == "" {
			return azidentity.NewClientSecretCredential(c.Tenant, c.ClientID, string(c.Secret),
				&azidentity.ClientSecretCredentialOptions{ClientOptions: options})
		}
		text, err := os.ReadFile(c.Cert)
		if err != nil {
			return nil, &settingError{"client_certificate", err}
		}
		certs, key, err := azidentity.ParseCertificates(text, nil)
		if err != nil {
			return nil, &settingError{"client_certificate", err}
		}
		return azidentity.NewClientCertificateCredential(c.Tenant, c.ClientID, certs, key,
			&azidentity.ClientCertificateCredentialOptions{ClientOptions: options})
	case "cli":
		return azidentity.NewAzureCLICredential(&azidentity.AzureCLICredentialOptions{TenantID: c.Tenant})
	case "token":
		if c.Token == "" || c.Endpoint == "" {
			return nil, &settingError{"token",
				errors.New("credential: token needs a token, and an endpoint other than Azure's own, where tokens " +
					"end within the hour")}
		}
		return staticToken(c.Token), nil
	}
	return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: options,
		TenantID: c.Tenant})
}

type staticToken string

func (t staticToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(t), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// Do implements policy.Policy. It reads the limits from the answers.
func (p *pace) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if resp == nil {
		return resp, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	write := req.Raw().Method != http.MethodGet
	h := resp.Header
	if n, e := strconv.Atoi(h.Get("x-ms-ratelimit-remaining-subscription-reads")); e == nil {
		p.left = n
	}
	wait := time.Duration(0)
	if resp.StatusCode == http.StatusTooManyRequests {
		wait = max(time.Second, seconds(h.Get("Retry-After")))
	}
	for name, window := range map[string]time.Duration{"pt5m": 15 * time.Second, "pt1h": time.Minute} {
		if n, e := strconv.Atoi(h.Get("x-ms-ratelimit-remaining-subscription-resource-requests-" + name)); e == nil &&
			n == 0 && write {
			wait = max(wait, window) // the last request of the window is used
		}
	}
	at := &p.reads
	if write {
		at = &p.writes
	}
	if until := time.Now().Add(wait); wait > 0 && until.After(*at) {
		*at = until
	}
	return resp, err
}

func seconds(s string) time.Duration {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// wait returns how long the service wants no writes, or no reads.
func (p *pace) wait(write bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if write {
		return time.Until(p.writes)
	}
	return time.Until(p.reads)
}

// fewReads is the number of remaining reads below which the launcher looks less often.
const fewReads = 1000

// stretch returns the factor by which pauses between looks grow.
func (p *pace) stretch() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left >= 0 && p.left < fewReads {
		return 4
	}
	return 1
}

// begin refuses a call during a pause that the service asked for.
func (a *api) begin(op operation) error {
	left := a.pace.wait(op.write)
	if left <= 0 {
		return nil
	}
	err := fmt.Errorf("%w: %s: Azure asked for no further requests for %s", launcher.ErrTransient, op.name,
		left.Round(time.Second))
	return launcher.WithRetryAfter(launcher.WithCause(err, launcher.CauseThrottled), left)
}

// once makes the SDK send a call only once. The caller looks up the outcome of a write whose answer
// was lost.
func once(ctx context.Context) context.Context {
	return policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1})
}

func (a *api) get(ctx context.Context, name string) (*arm.ContainerGroup, error) {
	if err := a.begin(opGet); err != nil {
		return nil, err
	}
	got, err := a.groups.Get(ctx, a.rg, name, nil)
	if err != nil {
		return nil, classify(err)
	}
	return &got.ContainerGroup, nil
}

// put returns when the request is accepted. Provisioning continues after that.
func (a *api) put(ctx context.Context, name string, g arm.ContainerGroup) error {
	if err := a.begin(opPut); err != nil {
		return err
	}
	_, err := a.groups.BeginCreateOrUpdate(once(ctx), a.rg, name, g, nil)
	var r *azcore.ResponseError
	if errors.As(err, &r) && r.ErrorCode == "ResourceNotFound" {
		// Something that the group names is missing, for example its subnet.
		return fmt.Errorf("%w: azure: %s: %s", launcher.ErrInvalid, r.ErrorCode, message(r))
	}
	return classify(err)
}

func (a *api) patch(ctx context.Context, name string, tags map[string]*string) error {
	if err := a.begin(opPatch); err != nil {
		return err
	}
	_, err := a.groups.Update(once(ctx), a.rg, name, arm.Resource{Tags: tags}, nil)
	return classify(err)
}

func (a *api) delete(ctx context.Context, name string) error {
	if err := a.begin(opDelete); err != nil {
		return err
	}
	_, err := a.groups.BeginDelete(once(ctx), a.rg, name, nil)
	return classify(err)
}

func (a *api) stop(ctx context.Context, name string) error {
	if err := a.begin(opStop); err != nil {
		return err
	}
	_, err := a.groups.Stop(once(ctx), a.rg, name, nil)
	return classify(err)
}

func (a *api) list(ctx context.Context) ([]*arm.ContainerGroup, error) {
	if err := a.begin(opList); err != nil {
		return nil, err
	}
	var all []*arm.ContainerGroup
	for p := a.groups.NewListByResourceGroupPager(a.rg, nil); p.More(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, classify(err)
		}
		all = append(all, page.Value...)
	}
	return all, nil
}

// logs reads the output of the worker's container: at most the last 4 MB while it runs, and 16 KB
// or 1,000 lines after that.
func (a *api) logs(ctx context.Context, name string, tail int) (string, error) {
	if err := a.begin(opLogs); err != nil {
		return "", err
	}
	o := &arm.ContainersClientListLogsOptions{}
	if tail > 0 {
		n := int32(tail) //nolint:gosec // some lines
		o.Tail = &n
	}
	got, err := a.containers.ListLogs(ctx, a.rg, name, containerName, o)
	if err != nil {
		return "", classify(err)
	}
	return val(got.Content), nil
}

func (a *api) usages(ctx context.Context, location string) ([]*arm.Usage, error) {
	if err := a.begin(opUsages); err != nil {
		return nil, err
	}
	var all []*arm.Usage
	for p := a.locations.NewListUsagePager(location, nil); p.More(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, classify(err)
		}
		all = append(all, page.Value...)
	}
	return all, nil
}

func (a *api) capabilities(ctx context.Context, location string) ([]*arm.Capabilities, error) {
	if err := a.begin(opCapabilities); err != nil {
		return nil, err
	}
	var all []*arm.Capabilities
	for p := a.locations.NewListCapabilitiesPager(location, nil); p.More(); {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, classify(err)
		}
		all = append(all, page.Value...)
	}
	return all, nil
}

// permission is what one role assignment allows.
type permission struct {
	Actions    []string `json:"actions"`
	NotActions []string `json:"notActions"`
}

// permissions returns the permissions of the credential in the resource group.
func (a *api) permissions(ctx context.Context) ([]permission, error) {
	if err := a.begin(opPermissions); err != nil {
		return nil, err
	}
	at := runtime.JoinPaths(a.raw.Endpoint(), "subscriptions", url.PathEscape(a.sub),
		"resourceGroups", url.PathEscape(a.rg), "providers/Microsoft.Authorization/permissions")
	req, err := runtime.NewRequest(ctx, http.MethodGet, at)
	if err != nil {
		return nil, err
	}
	req.Raw().URL.RawQuery = "api-version=2022-04-01"
	resp, err := a.raw.Pipeline().Do(req)
	if err != nil {
		return nil, classify(err)
	}
	if !runtime.HasStatusCode(resp, http.StatusOK) {
		return nil, classify(runtime.NewResponseError(resp))
	}
	var got struct{ Value []permission }
	return got.Value, runtime.UnmarshalAsJSON(resp, &got)
}
