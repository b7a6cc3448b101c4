package aci

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// containerName is the name of the worker's container in its group.
const containerName = "run"

// A layer is the settings of the launcher, a code location, a rule or a run. Later layers are laid
// over earlier ones.
type layer struct {
	Image       string
	CPU, Memory float64
	Locations   []string
	Priority    string
	SKU         string
	Subnet      string
	Tags        map[string]string
	env         []launcher.Env
}

// overrides is a layer as a code location, a rule or a run writes it. A null value counts as
// missing.
type overrides struct {
	Image     *string                `config:"image"`
	CPU       *string                `config:"cpu"`
	Memory    *string                `config:"memory"`
	Location  *string                `config:"location"`
	Locations []string               `config:"locations"`
	Priority  *string                `config:"priority"`
	SKU       *string                `config:"sku"`
	Subnet    *string                `config:"subnet_id"`
	Tags      map[string]string      `config:"tags"`
	Env       map[string]config.Text `config:"environment_variables"`
	EnvVars   []config.Text          `config:"env_vars"`
}

// decode reads the JSON of an override. The error of each fault has the path of the value.
func decode(o launcher.Override, env config.Lookup) (overrides, error) {
	var out overrides
	var tree any
	d := json.NewDecoder(bytes.NewReader(o.JSON))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return out, fmt.Errorf("%s: this is not JSON: %w", o.Source, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return out, fmt.Errorf("%s: this is not one JSON value: something follows it", o.Source)
	}
	members := map[string]any{}
	switch v := tree.(type) {
	case nil:
	case map[string]any:
		members = v
	case []any: // env_vars, which all launchers share
		members["env_vars"] = v
	default:
		return out, fmt.Errorf(`%s: a mapping is expected (for example: {"cpu": 2})`, o.Source)
	}
	v, err := config.FromMap(members)
	if err != nil {
		return out, fmt.Errorf("%s: %w", o.Source, err)
	}
	v.File, v.Env, v.Literal = o.Source, env, true
	err = v.Decode(&out)
	for _, p := range config.Problems(err) {
		p.Line = 0 // the JSON is a single line
	}
	return out, err
}

// over lays an override over l.
func (l layer) over(o launcher.Override, env config.Lookup) (layer, error) {
	later, err := decode(o, env)
	if err != nil {
		return l, err
	}
	bad := func(format string, args ...any) (layer, error) {
		return l, fmt.Errorf(o.Source+": "+format, args...)
	}
	for _, text := range []struct{ to, from *string }{{&l.Image, later.Image}, {&l.Priority, later.Priority},
		{&l.SKU, later.SKU}, {&l.Subnet, later.Subnet}} {
		if text.from != nil {
			*text.to = *text.from
		}
	}
	for _, number := range []struct {
		name string
		to   *float64
		from *string
	}{{"cpu", &l.CPU, later.CPU}, {"memory", &l.Memory, later.Memory}} {
		if number.from == nil {
			continue
		}
		if *number.to, err = positive(*number.from); err != nil {
			return bad("%s: %w", number.name, err)
		}
	}
	if places := unique(val(later.Location), later.Locations); len(places) > 0 {
		l.Locations = places
	}
	if !slices.Contains(priorities, l.Priority) {
		return bad("priority: %q is none of %s", l.Priority, strings.Join(priorities, ", "))
	}
	if !slices.Contains(skus, l.SKU) {
		return bad("sku: %q is none of %s", l.SKU, strings.Join(skus, ", "))
	}
	tags := map[string]string{}
	maps.Copy(tags, l.Tags)
	maps.Copy(tags, later.Tags)
	l.Tags = tags
	l.env = slices.Clone(l.env)
	for _, name := range sortedKeys(later.Env) {
		if !validVariable.MatchString(name) {
			return bad("environment_variables.%s: Azure takes letters, digits and _ in names, at most 63, no digit "+
				"first", name)
		}
		l.env = append(l.env, launcher.Env{Name: name, Value: later.Env[name].Value, Secret: later.Env[name].Secret})
	}
	for i, text := range later.EnvVars {
		name, value, given := strings.Cut(text.Value, "=")
		if !given {
			ok := false
			if env != nil {
				value, ok = env(name)
			}
			if !ok {
				return bad("env_vars[%d]: environment variable %s is not set where slipway runs", i, name)
			}
		}
		l.env = append(l.env, launcher.Env{Name: name, Value: value, Secret: !given || text.Secret})
	}
	return l, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// place is where a group may be made.
type place struct {
	location string
	spot     bool
}

// key returns the part of a group's name that depends on its place, because a name must not be made
// in two regions.
func (p place) key() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %v", p.location, p.spot))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:4]
}

func (p place) String() string {
	if p.spot {
		return p.location + " (spot)"
	}
	return p.location
}

// candidate is a group that may become the worker of a request.
type candidate struct {
	place
	name  string
	group arm.ContainerGroup
}

// size returns the size that the group requests.
func (c candidate) size() (cpu, memory float64) {
	r := c.group.Properties.Containers[0].Properties.Resources.Requests
	return val(r.CPU), val(r.MemoryInGB)
}

var (
	validVariable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
)

// candidates returns the groups that a request may become, in the order in which they are tried.
// Equal requests give the same groups, byte for byte.
func (l *Launcher) candidates(req *launcher.Request) ([]candidate, error) {
	invalid := func(format string, args ...any) ([]candidate, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{launcher.ErrInvalid}, args...)...)
	}
	if err := req.Check(); err != nil {
		return nil, err
	}
	if req.ID.RunName() != req.ID.Run {
		return invalid("run ID %q cannot be in the name of a container group, which has lower-case letters, digits "+
			"and dashes", req.ID.Run)
	}
	all := l.base
	var err error
	for _, o := range req.Overrides {
		if all, err = all.over(o, l.env); err != nil {
			return invalid("%w", err)
		}
	}
	all.Image = cmp.Or(req.Image, all.Image)
	if all.Image == "" {
		return invalid("code location %s names no image, and the launcher's settings have none: set image, or "+
			"container_image in the code location", req.Location)
	}
	all.resize(req.Resources)
	if req.Resources.GPUs != 0 {
		return invalid("the run asks for %d GPUs: Azure retired them in container groups on 2025-07-14",
			req.Resources.GPUs)
	}
	vars, err := environment(all.env, req.Env)
	if err != nil {
		return invalid("%w", err)
	}
	var out []candidate
	for _, p := range all.places(req.ID.Attempt) {
		c := candidate{place: p, name: l.prefix(req.ID) + p.key()}
		if !handlePattern.MatchString(c.name) || len(c.name) > 63 {
			return invalid("%q is not a name for a container group", c.name)
		}
		if c.group, err = l.group(req, all, p, vars); err != nil {
			return invalid("%w", err)
		}
		out = append(out, c)
	}
	return out, nil
}

// resize sets the size that a rule or a run's tags ask for.
func (l *layer) resize(r launcher.Resources) {
	if r.CPUMillis > 0 {
		l.CPU = float64(r.CPUMillis) / 1000
	}
	if r.MemoryBytes > 0 {
		l.Memory = math.Ceil(float64(r.MemoryBytes)/(1<<30)*10) / 10 // Azure counts tenths
	}
}

// places returns the places where the worker of an attempt may run.
func (l layer) places(attempt int) []place {
	var out []place
	add := func(spot bool) {
		for _, at := range l.Locations {
			out = append(out, place{at, spot})
		}
	}
	switch {
	case l.Priority == "spot":
		add(true)
	case l.Priority == "spot_then_regular" && attempt == 1:
		add(true)
		add(false)
	default:
		add(false)
	}
	return out
}

// environment returns a worker's variables. If names are equal the last one wins. Secrets are never
// in a plain value.
func environment(base, more []launcher.Env) ([]*arm.EnvironmentVariable, error) {
	var names []string
	last := map[string]launcher.Env{}
	for _, e := range slices.Concat(base, more) {
		if !validVariable.MatchString(e.Name) {
			return nil,
				fmt.Errorf("environment variable %q: Azure takes letters, digits and _ in names, at most 63, no "+
					"digit first", e.Name)
		}
		was, ok := last[e.Name]
		if !ok {
			names = append(names, e.Name)
		}
		e.Secret = e.Secret || was.Secret || launcher.SecretName(e.Name)
		last[e.Name] = e
	}
	out := []*arm.EnvironmentVariable{}
	for _, name := range names {
		e := last[name]
		if e.Secret {
			out = append(out, &arm.EnvironmentVariable{Name: &name, SecureValue: &e.Value})
		} else {
			out = append(out, &arm.EnvironmentVariable{Name: &name, Value: &e.Value})
		}
	}
	return out, nil
}

// group returns the body of the PUT.
func (l *Launcher) group(req *launcher.Request, all layer, at place,
	vars []*arm.EnvironmentVariable) (arm.ContainerGroup, error) {
	name, sku := containerName, arm.ContainerGroupSKU(all.SKU)
	c := &arm.ContainerProperties{
		Image: &all.Image, Command: to.SliceOfPtrs(req.Command...), EnvironmentVariables: vars,
		Resources: &arm.ResourceRequirements{Requests: &arm.ResourceRequests{CPU: &all.CPU, MemoryInGB: &all.Memory}},
	}
	p := &arm.ContainerGroupPropertiesProperties{
		OSType: to.Ptr(arm.OperatingSystemTypesLinux), RestartPolicy: to.Ptr(arm.ContainerGroupRestartPolicyNever),
		SKU:        &sku,
		Containers: []*arm.Container{{Name: &name, Properties: c}},
	}
	g := arm.ContainerGroup{Location: to.Ptr(at.location), Tags: tagsOf(req, all.Tags), Properties: p}
	if at.spot {
		p.Priority = to.Ptr(arm.ContainerGroupPrioritySpot)
	}
	if l.c.Zone != "" {
		g.Zones = []*string{&l.c.Zone}
	}
	for _, id := range l.c.Identities {
		if g.Identity == nil {
			g.Identity = &arm.ContainerGroupIdentity{Type: to.Ptr(arm.ResourceIdentityTypeUserAssigned)}
		}
		if id == "system" {
			g.Identity.Type = to.Ptr(arm.ResourceIdentityTypeSystemAssigned)
			continue
		}
		if g.Identity.UserAssignedIdentities == nil {
			g.Identity.UserAssignedIdentities = map[string]*arm.UserAssignedIdentities{}
		}
		g.Identity.UserAssignedIdentities[id] = &arm.UserAssignedIdentities{}
	}
	if g.Identity != nil && len(g.Identity.UserAssignedIdentities) > 0 &&
		*g.Identity.Type == arm.ResourceIdentityTypeSystemAssigned {
		g.Identity.Type = to.Ptr(arm.ResourceIdentityTypeSystemAssignedUserAssigned)
	}
	for _, r := range l.c.Registries {
		login := &arm.ImageRegistryCredential{Server: &r.Server}
		if r.Identity != "" {
			login.Identity = &r.Identity
		} else {
			login.Username, login.Password = &r.Username, to.Ptr(string(r.Password))
		}
		p.ImageRegistryCredentials = append(p.ImageRegistryCredentials, login)
	}
	if all.Subnet != "" {
		p.SubnetIDs = []*arm.ContainerGroupSubnetID{{ID: &all.Subnet}}
	}
	if d := l.c.DNS; d != nil {
		p.DNSConfig = &arm.DNSConfiguration{NameServers: to.SliceOfPtrs(d.Servers...)}
		if len(d.Search) > 0 {
			p.DNSConfig.SearchDomains = to.Ptr(strings.Join(d.Search, " "))
		}
		if len(d.Options) > 0 {
			p.DNSConfig.Options = to.Ptr(strings.Join(d.Options, " "))
		}
	}
	for _, v := range l.c.Volumes {
		vol, err := v.azure()
		if err != nil {
			return g, err
		}
		p.Volumes = append(p.Volumes, vol)
		c.VolumeMounts = append(c.VolumeMounts,
			&arm.VolumeMount{Name: &v.Name, MountPath: &v.Mount, ReadOnly: &v.ReadOnly})
	}
	if a := l.c.LogAnalytics; a != nil {
		p.Diagnostics = &arm.ContainerGroupDiagnostics{LogAnalytics: &arm.LogAnalytics{
			WorkspaceID: &a.Workspace, WorkspaceKey: to.Ptr(string(a.Key)),
			LogType: to.Ptr(arm.LogAnalyticsLogType(a.Type)),
		}}
	}
	return g, nil
}

var volumeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{3,61}[a-z0-9])$`)

// azure returns a volume in the form of the API.
func (v volume) azure() (*arm.Volume, error) {
	out := &arm.Volume{Name: &v.Name}
	if !volumeName.MatchString(v.Name) || strings.Contains(v.Name, "--") {
		return nil,
			fmt.Errorf("name %q: 5 to 63 lower case letters, digits and - are expected, - not first, last or twice",
				v.Name)
	}
	if !strings.HasPrefix(v.Mount, "/") || strings.Contains(v.Mount, ":") {
		return nil, fmt.Errorf("mount_path %q: the path of a folder in the container, without a colon, is expected",
			v.Mount)
	}
	n := 0
	if v.Share != "" {
		n++
		if v.Account == "" || v.Key == "" {
			return nil, errors.New("share needs storage_account and storage_account_key")
		}
		out.AzureFile = &arm.AzureFileVolume{ShareName: &v.Share, StorageAccountName: &v.Account,
			StorageAccountKey: to.Ptr(string(v.Key)), ReadOnly: &v.ReadOnly}
	}
	if v.Empty {
		n++
		out.EmptyDir = map[string]any{}
	}
	if len(v.Secret) > 0 {
		n++
		out.Secret = map[string]*string{}
		for file, text := range v.Secret {
			out.Secret[file] = to.Ptr(base64.StdEncoding.EncodeToString([]byte(text)))
		}
	}
	if v.Git != "" {
		n++
		out.GitRepo = &arm.GitRepoVolume{Repository: &v.Git}
		if v.Revision != "" {
			out.GitRepo.Revision = &v.Revision
		}
		if v.Folder != "" {
			out.GitRepo.Directory = &v.Folder
		}
	}
	if n != 1 {
		return nil, errors.New("a volume is exactly one of share, secret, empty_dir and git_repository")
	}
	return out, nil
}

// Preview implements [launcher.Previewer]. It shows the group that is tried first.
func (l *Launcher) Preview(_ context.Context, req *launcher.Request) (json.RawMessage, error) {
	cs, err := l.candidates(req)
	if err != nil {
		return nil, err
	}
	places := []string{}
	for _, c := range cs {
		places = append(places, c.String())
	}
	return json.MarshalIndent(map[string]any{
		"url": "PUT /subscriptions/" + l.c.SubscriptionID + "/resourceGroups/" + l.c.ResourceGroup +
			"/providers/Microsoft.ContainerInstance/containerGroups/" + cs[0].name,
		"places": places, "body": hidden(cs[0].group),
	}, "", "  ")
}

// hidden returns a group without secrets. It may change g, which no other code uses.
func hidden(g arm.ContainerGroup) arm.ContainerGroup {
	text := launcher.Redacted
	p := *g.Properties
	g.Properties = &p
	p.Containers = slices.Clone(p.Containers)
	for i, c := range p.Containers {
		props := *c.Properties
		props.EnvironmentVariables = slices.Clone(props.EnvironmentVariables)
		for j, v := range props.EnvironmentVariables {
			if v.SecureValue != nil || v.Value == nil {
				props.EnvironmentVariables[j] = &arm.EnvironmentVariable{Name: v.Name, SecureValue: &text}
			}
		}
		p.Containers[i] = &arm.Container{Name: c.Name, Properties: &props}
	}
	p.ImageRegistryCredentials = slices.Clone(p.ImageRegistryCredentials)
	for i, r := range p.ImageRegistryCredentials {
		if r.Password != nil {
			p.ImageRegistryCredentials[i] = &arm.ImageRegistryCredential{Server: r.Server, Username: r.Username,
				Password: &text}
		}
	}
	p.Volumes = slices.Clone(p.Volumes)
	for i, v := range p.Volumes {
		v := *v
		if v.AzureFile != nil {
			f := *v.AzureFile
			f.StorageAccountKey = &text
			v.AzureFile = &f
		}
		files := map[string]*string{}
		for name := range v.Secret {
			files[name] = &text
		}
		if v.Secret != nil {
			v.Secret = files
		}
		p.Volumes[i] = &v
	}
	if p.Diagnostics != nil && p.Diagnostics.LogAnalytics != nil {
		a := *p.Diagnostics.LogAnalytics
		a.WorkspaceKey = &text
		p.Diagnostics = &arm.ContainerGroupDiagnostics{LogAnalytics: &a}
	}
	return g
}
