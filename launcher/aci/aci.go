// Package aci launches run workers as container groups of Azure Container Instances.
//
// Azure treats a second PUT of the same name as an update, which runs a finished worker again. So
// the launcher looks before it writes, and never overwrites an existing group.
// docs/launchers/aci.md describes, with sources, how the service behaves.
package aci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// Config holds the settings of the aci launcher.
type Config struct {
	ResourceGroup  string                   `config:"resource_group" required:"true" help:"Resource group of the container groups."`
	SubscriptionID string                   `config:"subscription_id" required:"true" help:"Subscription."`
	Image          string                   `config:"image" help:"Image of workers whose code location does not name one."`
	CPU            string                   `config:"cpu" default:"1.0" help:"Processors of one worker. A run's tag slipway/cpu wins."`
	Memory         string                   `config:"memory" default:"1.0" help:"Memory of one worker in GB. A run's tag slipway/memory wins."`
	Env            map[string]config.Text   `config:"environment_variables" help:"Environment of workers. A value is sent as secureValue if it comes from ${NAME}, {env: NAME} or {file: PATH}, or if its name contains PASSWORD, SECRET, TOKEN or KEY."`
	SecureEnv      map[string]config.Secret `config:"secure_environment_variables" help:"Environment of workers that is always sent as secureValue."`

	Location   string            `config:"location" default:"eastus" help:"Region of the groups, for example westeurope."`
	Locations  []string          `config:"locations" help:"Further regions. They are used in this order when the earlier ones have no quota or capacity left."`
	Priority   string            `config:"priority" default:"regular" help:"regular, spot, or spot_then_regular. The last one uses regular if spot has no room, and for every attempt after the first."`
	SKU        string            `config:"sku" default:"Standard" help:"Standard, Dedicated or Confidential."`
	GPUs       int               `config:"gpus" default:"0" help:"No longer available: Azure retired GPUs in container groups on 2025-07-14."`
	Zone       string            `config:"zone" help:"Availability zone. Not together with spot."`
	NamePrefix string            `config:"name_prefix" default:"dagster-run" help:"Beginning of the names of groups: at most 14 lower case letters, digits and -."`
	Tags       map[string]string `config:"tags" help:"Further tags of groups."`

	Cloud      string        `config:"cloud" default:"public" help:"public, government, china, or custom. custom needs endpoint, audience and authority_host."`
	Endpoint   string        `config:"endpoint" help:"Address of Azure Resource Manager in a custom cloud, or of an emulator."`
	Audience   string        `config:"audience" help:"Audience of the tokens for that endpoint. Default: the endpoint."`
	Authority  string        `config:"authority_host" help:"Address of Microsoft Entra in that cloud."`
	AllowHTTP  bool          `config:"allow_http" default:"false" help:"Allow an endpoint with http, on this machine only."`
	CAFile     string        `config:"ca_file" help:"File with the certificate of the authority that signed the endpoint's certificate."`
	Tenant     string        `config:"tenant_id" help:"Tenant. Default: the credential's own."`
	Credential string        `config:"credential" default:"default" help:"default (the chain of Azure's SDK), managed_identity, workload_identity, service_principal, cli, or token."`
	ClientID   string        `config:"client_id" help:"Client ID of a user-assigned managed identity, a workload identity or a service principal."`
	Secret     config.Secret `config:"client_secret" help:"Secret of a service principal."`
	Cert       string        `config:"client_certificate" help:"File with a service principal's certificate and key, instead of client_secret."`
	Token      config.Secret `config:"token" help:"A bearer token for credential: token, for example for an emulator."`

	Identities   []string         `config:"identities" help:"Identities of groups: resource IDs of user-assigned identities, or system."`
	Registries   []registry       `config:"registries" help:"Logins for pulling images."`
	Subnet       string           `config:"subnet_id" help:"Resource ID of a delegated subnet for the groups."`
	DNS          *dns             `config:"dns" help:"Name servers of groups in a subnet."`
	Volumes      []volume         `config:"volumes" help:"Volumes of workers."`
	LogAnalytics *analytics       `config:"log_analytics" help:"Workspace to which Azure sends the output of workers."`
	Poll         time.Duration    `config:"poll" default:"5s" help:"How often to look at a worker in its first minute. From the second minute on the pause is three times as long, from the eleventh six times."`
	PullPatience time.Duration    `config:"pull_patience" default:"2m" help:"How long pulls of an image may keep failing before the launcher gives up. A final refusal by the registry counts at once."`
	Prices       map[string]price `config:"prices" help:"Prices by location, for the cost of runs. Default: those of eastus as published on 2026-08-27."`
	Currency     string           `config:"currency" default:"USD" help:"Currency of the prices."`
	PricesAsOf   string           `config:"prices_as_of" help:"Date of the prices. It is shown beside each cost."`
}

type registry struct {
	Server   string        `config:"server" required:"true" help:"Host name, for example myregistry.azurecr.io."`
	Username string        `config:"username" help:"User name."`
	Password config.Secret `config:"password" help:"Password."`
	Identity string        `config:"identity" help:"Resource ID of a user-assigned identity that may pull, instead of user name and password."`
}

type dns struct {
	Servers []string `config:"name_servers" required:"true" help:"Addresses."`
	Search  []string `config:"search_domains" help:"Search domains."`
	Options []string `config:"options" help:"Options, for example ndots:2."`
}

type volume struct {
	Name     string                   `config:"name" required:"true" help:"Name of the volume."`
	Mount    string                   `config:"mount_path" required:"true" help:"Folder in the container."`
	ReadOnly bool                     `config:"read_only" default:"false" help:"Make the volume read-only."`
	Share    string                   `config:"share" help:"Azure file share."`
	Account  string                   `config:"storage_account" help:"Storage account of the share."`
	Key      config.Secret            `config:"storage_account_key" help:"Key of the storage account."`
	Secret   map[string]config.Secret `config:"secret" help:"Files with secret contents."`
	Empty    bool                     `config:"empty_dir" default:"false" help:"An empty folder that is deleted with the group."`
	Git      string                   `config:"git_repository" help:"A repository to clone."`
	Revision string                   `config:"git_revision" help:"Revision of the repository."`
	Folder   string                   `config:"git_directory" help:"Folder of the volume to clone into."`
}

type analytics struct {
	Workspace string        `config:"workspace_id" required:"true" help:"ID of the workspace."`
	Key       config.Secret `config:"workspace_key" required:"true" help:"Key of the workspace."`
	Type      string        `config:"log_type" default:"ContainerInsights" help:"ContainerInsights or ContainerInstanceLogs."`
}

// Launcher launches container groups. It is safe for use by many goroutines.
type Launcher struct {
	c       Config
	api     *api
	base    layer
	prices  map[string]rates
	env     config.Lookup
	log     *slog.Logger
	workers workers
	regions regions
	images  sync.Map // when a PUT first said that a group's image is inaccessible, by the group's name
}

var (
	_ launcher.Launcher  = (*Launcher)(nil)
	_ launcher.Lister    = (*Launcher)(nil)
	_ launcher.Watcher   = (*Launcher)(nil)
	_ launcher.Batcher   = (*Launcher)(nil)
	_ launcher.Remover   = (*Launcher)(nil)
	_ launcher.LogReader = (*Launcher)(nil)
	_ launcher.Describer = (*Launcher)(nil)
	_ launcher.Previewer = (*Launcher)(nil)
	_ launcher.Checker   = (*Launcher)(nil)
	_ launcher.Capacity  = (*Launcher)(nil)
	_ launcher.Finder    = (*Launcher)(nil)
	_ launcher.Meter     = (*Launcher)(nil)
)

// lateStart is how long after a PUT without an answer a group may still appear.
const lateStart = time.Minute

// Kind declares the aci launcher.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "aci", Help: "Run workers as container groups of Azure Container Instances.",
		Schema: config.Fields(Config{}), Context: "aci", Tags: []string{"slipway/aci"}, Remove: "10m",
		// MaxCommand is the limit of the container's operating system. Azure documents no limit of
		// its own.
		Traits: launcher.Traits{Restarts: true, Gate: true, MaxCommand: launcher.MaxArgument, LateStart: lateStart},
		Stock:  "*.AzureContainerInstanceRunLauncher",
		Open: func(_ context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			return open(v, log)
		},
	}
}

// These are the valid values of the settings priority and sku.
var (
	priorities = []string{"regular", "spot", "spot_then_regular"}
	skus       = []string{"Standard", "Dedicated", "Confidential"}
)

var (
	prefixPattern   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,12}[a-z0-9])?$`)
	resourcePattern = regexp.MustCompile(`(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/`)
)

func open(v config.Values, log *slog.Logger) (*Launcher, error) {
	var c Config
	if err := v.Decode(&c); err != nil {
		return nil, err
	}
	var errs []error
	bad := func(setting, format string, args ...any) { errs = append(errs, v.Problem(setting, format, args...)) }
	one := func(setting, value string, of ...string) {
		if !slices.Contains(of, value) {
			bad(setting, "%q is none of %s", value, strings.Join(of, ", "))
		}
	}
	one("priority", c.Priority, priorities...)
	one("sku", c.SKU, skus...)
	one("cloud", c.Cloud, "public", "government", "china", "custom")
	one("credential", c.Credential, "default", "managed_identity", "workload_identity", "service_principal", "cli",
		"token")
	l := &Launcher{c: c, env: v.Env, log: log}
	var err error
	if l.base.CPU, err = positive(c.CPU); err != nil {
		bad("cpu", "%v", err)
	}
	if l.base.Memory, err = positive(c.Memory); err != nil {
		bad("memory", "%v: write gigabytes (for example: 1.5)", err)
	}
	if c.GPUs != 0 {
		bad("gpus", "Azure retired GPUs in container groups on 2025-07-14: leave it out, and route runs that need "+
			"one to another launcher")
	}
	if !prefixPattern.MatchString(c.NamePrefix) {
		bad("name_prefix", "%q: 1 to 14 lower case letters, digits and - are expected, - not first or last",
			c.NamePrefix)
	}
	for i, id := range c.Identities {
		if id != "system" && !resourcePattern.MatchString(id) {
			bad(fmt.Sprintf("identities[%d]", i),
				"%q is neither system nor the resource ID of an identity, /subscriptions/…/userAssignedIdentities/NAME",
				id)
		}
	}
	if c.Subnet != "" && !resourcePattern.MatchString(c.Subnet) {
		bad("subnet_id", "%q is not the resource ID of a subnet, /subscriptions/…/virtualNetworks/NAME/subnets/NAME",
			c.Subnet)
	}
	if strings.HasPrefix(c.Priority, "spot") {
		switch {
		case c.Subnet != "":
			bad("subnet_id", "a spot group cannot be in a subnet: leave it out, or set priority: regular")
		case c.SKU != "Standard":
			bad("sku", "a spot group is of SKU Standard only")
		case c.Zone != "":
			bad("zone", "a spot group has no zone")
		}
	}
	for i, r := range c.Registries {
		if (r.Identity == "") == (r.Username == "") {
			bad(fmt.Sprintf("registries[%d]", i), "set username and password, or identity")
		}
	}
	l.base.Locations = unique(c.Location, c.Locations)
	l.base.Priority, l.base.Image, l.base.SKU, l.base.Subnet, l.base.Tags = c.Priority, c.Image, c.SKU, c.Subnet, c.Tags
	for name, value := range c.Env {
		l.base.env = append(l.base.env, launcher.Env{Name: name, Value: value.Value, Secret: value.Secret})
	}
	for name, value := range c.SecureEnv {
		l.base.env = append(l.base.env, launcher.Env{Name: name, Value: string(value), Secret: true})
	}
	slices.SortFunc(l.base.env, func(a, b launcher.Env) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range l.base.env {
		if !validVariable.MatchString(e.Name) {
			bad("environment_variables."+e.Name,
				"Azure takes letters, digits and _ in the names of variables, at most 63, no digit first")
		}
	}
	for i, vol := range c.Volumes {
		if _, err := vol.azure(); err != nil {
			bad(fmt.Sprintf("volumes[%d]", i), "%v", err)
		}
	}
	if l.prices, err = priceTable(c); err != nil {
		bad("prices", "%v", err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if l.api, err = connect(c); err != nil {
		var s *settingError
		if errors.As(err, &s) {
			return nil, v.Problem(s.setting, "%v", s.err)
		}
		return nil, v.Problem("credential", "%v", err)
	}
	l.workers.init(c.Poll)
	return l, nil
}

type settingError struct {
	setting string
	err     error
}

func (e *settingError) Error() string { return e.setting + ": " + e.err.Error() }

func unique(first string, more []string) []string {
	var out []string
	for _, place := range append([]string{first}, more...) {
		if place = plain(place); place != "" && !slices.Contains(out, place) {
			out = append(out, place)
		}
	}
	return out
}

// plain returns a location's name in the form that the API answers: eastus for East US.
func plain(place string) string { return strings.ToLower(strings.ReplaceAll(place, " ", "")) }

func positive(s string) (float64, error) {
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(f > 0 && f <= 1e6) { // also refuses NaN
		return 0, fmt.Errorf("%q is not a number above 0", s)
	}
	return f, nil
}

// Close closes idle connections.
func (l *Launcher) Close() error {
	l.api.http.CloseIdleConnections()
	return nil
}

// val returns the value that a pointer of the SDK points to, or the zero value.
func val[T any](p *T) T {
	var none T
	if p == nil {
		return none
	}
	return *p
}

// Tags of groups. Guides for Dagster on Azure use the first four.
const (
	runTag      = "dagster-run-id"
	jobTag      = "dagster-job"
	byTag       = "created-by"
	atTag       = "created-at"
	instanceTag = "slipway-instance"
	attemptTag  = "slipway-attempt"
	endTag      = "slipway-end" // how the worker ended, if the platform would forget it
)

// workerOf returns the worker that a group's tags name, and false if it is not one of Slipway's.
func (l *Launcher) workerOf(g *arm.ContainerGroup) (launcher.Worker, bool) {
	attempt, err := strconv.Atoi(val(g.Tags[attemptTag]))
	w := launcher.Worker{ID: launcher.ID{Run: val(g.Tags[runTag]), Attempt: attempt},
		Instance: val(g.Tags[instanceTag]), Handle: launcher.Handle(val(g.Name))}
	return w, err == nil && w.Instance != "" && w.ID.Check() == nil &&
		strings.HasPrefix(string(w.Handle), l.prefix(w.ID))
}

// prefix returns the beginning of the names of all groups that may be the worker of an ID. The key
// of the worker's place follows.
func (l *Launcher) prefix(id launcher.ID) string {
	return fmt.Sprintf("%s-%s-%d-", l.c.NamePrefix, id.Run, id.Attempt)
}

var handlePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// name returns the name of the group of a handle.
func (l *Launcher) name(h launcher.Handle) (string, error) {
	if s := string(h); handlePattern.MatchString(s) && strings.HasPrefix(s, l.c.NamePrefix+"-") {
		return s, nil
	}
	return "", fmt.Errorf("%w: %q is not a handle of this launcher", launcher.ErrNotFound, h)
}

// regions caches what is known about locations.
type regions struct {
	mu    sync.Mutex
	known map[string]*region
}

type region struct {
	closed      time.Time // until then it has no capacity for groups of at least cpu and memory
	cpu, memory float64
	why         string
	read        time.Time // when its quotas were read
	groups      int       // number of groups that may still be made; -1 if unknown
	cores       float64
	spot        float64
}

// of returns what is known about a location. The caller holds mu.
func (r *regions) of(location string) *region {
	if r.known == nil {
		r.known = map[string]*region{}
	}
	if r.known[location] == nil {
		r.known[location] = &region{groups: -1}
	}
	return r.known[location]
}

// tagsOf returns the tags of a worker's group within Azure's rules. Characters that Azure does not
// accept in users' tags are replaced. The launcher's own tags, which identify its groups, win over
// them. Azure treats names that differ only in case as equal.
func tagsOf(req *launcher.Request, more map[string]string) map[string]*string {
	ours := map[string]string{
		runTag: req.ID.Run, jobTag: req.Job, byTag: cmp.Or(req.Labels[byTag], "slipway"),
		atTag:       strconv.FormatInt(req.At.Unix(), 10),
		instanceTag: req.Instance, attemptTag: strconv.Itoa(req.ID.Attempt),
	}
	out, names := map[string]*string{}, map[string]string{} // by their lower-case form
	set := func(name, value string) {
		name = strings.Map(func(r rune) rune {
			if strings.ContainsRune(`<>%&\?/`, r) || r < ' ' {
				return '-'
			}
			return r
		}, name)
		name, value = cut(name, 512), cut(value, 256)
		delete(out, names[strings.ToLower(name)])
		names[strings.ToLower(name)] = name
		out[name] = &value
	}
	for _, tags := range []map[string]string{more, req.Labels, ours} {
		for _, name := range sortedKeys(tags) { // in a fixed order, so that equal requests get equal tags
			set(name, tags[name])
		}
	}
	delete(out, names[endTag]) // only the launcher sets it, later
	return out
}

func cut(s string, n int) string {
	for len(s) > n {
		r := []rune(s)
		s = string(r[:len(r)-1])
	}
	return s
}
