package aci

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
)

// Emulator is the service. It is an http.Handler that can serve many requests at once.
type Emulator struct {
	o     Options
	ctx   context.Context //nolint:containedctx // of the groups' lives
	end   context.CancelFunc
	lives sync.WaitGroup

	mu       sync.Mutex
	settings Settings
	groups   map[string]*group
	gone     map[string][]snapshot // of deleted groups, for stale reads
	ops      map[string]*operation
	rules    []*rule
	random   *mrand.Rand
	journal  []Request
	writes   map[string][]time.Time // by subscription
	reads    map[string][]time.Time
	execs    map[string]session
	ids      int
}

// Request is a request in the journal.
type Request struct {
	At        time.Time `json:"at"`
	Method    string    `json:"method"`
	Operation string    `json:"operation"`
	Path      string    `json:"path"`
	Group     string    `json:"group,omitempty"`
	Body      string    `json:"body,omitempty"` // hash of the body
	Status    int       `json:"status"`         // 0: the connection was broken
	Code      string    `json:"code,omitempty"`
	Faults    []string  `json:"faults,omitempty"`
}

// New makes an emulator with the groups that its state folder has.
func New(o Options) (*Emulator, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return nil, err
	}
	e := &Emulator{
		o: o, settings: o.Settings, groups: map[string]*group{}, gone: map[string][]snapshot{},
		ops: map[string]*operation{}, writes: map[string][]time.Time{},
		reads: map[string][]time.Time{}, execs: map[string]session{},
		random: mrand.New(mrand.NewPCG(1, 0)), //nolint:gosec // faults are not secret
	}
	e.ctx, e.end = context.WithCancel(context.Background())
	return e, e.load()
}

// Close ends the work of the emulator. Containers keep running, processes end.
func (e *Emulator) Close() error {
	e.end()
	e.lives.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.o.Backend.(*Processes); !ok {
		return nil
	}
	var errs []error
	for _, g := range e.groups {
		for _, b := range g.boxes {
			if b.c != nil {
				errs = append(errs, b.c.Remove(context.Background()))
			}
		}
	}
	return errors.Join(errs...)
}

// Settings returns the current settings.
func (e *Emulator) Settings() Settings {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.settings
}

// Set changes the settings. Groups that are being created keep their timing.
func (e *Emulator) Set(s Settings) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settings = s
}

// Journal returns the requests so far.
func (e *Emulator) Journal() []Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.journal)
}

// Forget empties the journal.
func (e *Emulator) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.journal = nil
}

func (e *Emulator) nextID() string {
	e.ids++
	return fmt.Sprintf("%d-%s", e.ids, rand.Text()[:12])
}

// call is a parsed request to the service.
type call struct {
	op                             string
	sub, rg, name, container, rest string
	location                       string
}

// understand parses a path.
func understand(method, urlPath string) (call, bool) {
	s := strings.Split(strings.Trim(urlPath, "/"), "/")
	low := strings.Split(strings.ToLower(strings.Trim(urlPath, "/")), "/")
	at := func(words ...string) bool {
		if len(low) < len(words) {
			return false
		}
		for i, w := range words {
			if w != "*" && low[i] != w {
				return false
			}
		}
		return true
	}
	const provider = "microsoft.containerinstance"
	is := func(m string, n int) bool { return method == m && len(s) == n }
	switch {
	case at("providers", provider, "operations") && is("GET", 3):
		return call{op: "operations"}, true
	case at("subscriptions", "*", "providers", provider, "containergroups") && is("GET", 5):
		return call{op: "list", sub: s[1]}, true
	case at("subscriptions", "*", "providers", provider, "locations", "*", "*"):
		c := call{op: low[6], sub: s[1], location: place(s[5])}
		known := map[string]int{"usages": 7, "capabilities": 7, "cachedimages": 7, "operations": 8,
			"operationresults": 8}
		if len(s) == 8 {
			c.rest = s[7]
		}
		return c, is("GET", known[low[6]])
	case at("subscriptions", "*", "providers", provider) && is("GET", 4),
		at("subscriptions", "*", "providers", provider, "register") && is("POST", 5):
		return call{op: "registration", sub: s[1]}, true
	case at("subscriptions", "*", "resourcegroups", "*") && (is("GET", 4) || is("HEAD", 4)):
		return call{op: "resourcegroup", sub: s[1], rg: s[3]}, true
	case at("subscriptions", "*", "resourcegroups", "*", "providers", "microsoft.authorization", "permissions") &&
		is("GET", 7):
		return call{op: "permissions", sub: s[1], rg: s[3]}, true
	case at("subscriptions", "*", "resourcegroups", "*", "providers", "microsoft.resources", "deployments", "*") &&
		is("PUT", 8):
		return call{op: "deployment", sub: s[1], rg: s[3], name: s[7]}, true
	case at("subscriptions", "*", "resourcegroups", "*", "providers", "microsoft.network", "virtualnetworks", "*",
		"subnets", "*", "providers", provider, "serviceassociationlinks", "default") && is("DELETE", 14):
		return call{op: "unlink", sub: s[1], rg: s[3]}, true
	case !at("subscriptions", "*", "resourcegroups", "*", "providers", provider, "containergroups"):
		return call{}, false
	}
	c := call{sub: s[1], rg: s[3]}
	if len(s) > 7 {
		c.name = s[7]
	}
	verbs := map[string]string{"PUT": "put", "GET": "get", "PATCH": "patch", "DELETE": "delete"}
	posts := map[string]string{"start": "start", "stop": "stop", "restart": "restart"}
	switch {
	case is("GET", 7):
		c.op = "list"
	case len(s) == 8:
		c.op = verbs[method]
	case is("POST", 9):
		c.op = posts[low[8]]
	case is("GET", 9) && low[8] == "outboundnetworkdependenciesendpoints":
		c.op = "outbound"
	case len(s) == 11 && low[8] == "containers":
		c.container = s[9]
		c.op = map[string]string{"GET logs": "logs", "POST exec": "exec", "POST attach": "attach"}[method+" "+low[10]]
	}
	return c, c.op != ""
}

// answer is the response to a request.
type answer struct {
	status int
	header http.Header
	body   any // nil: none
}

const firstVersion = "2018-10-01"

// ServeHTTP implements http.Handler.
func (e *Emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/_emulator/") {
		e.admin(w, r)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		return // the client has gone
	}
	c, known := understand(r.Method, r.URL.Path)
	entry := Request{At: time.Now(), Method: r.Method, Operation: c.op, Path: r.URL.Path, Group: c.name}
	if len(body) > 0 {
		sum := sha256.Sum256(body)
		entry.Body = hex.EncodeToString(sum[:8])
	}
	e.mu.Lock()
	location := c.location
	if g := e.groups[groupKey(c.sub, c.rg, c.name)]; g != nil {
		location = g.location()
	} else if c.op == "put" {
		var asked struct{ Location string }
		_ = json.Unmarshal(body, &asked) // the handler reports errors
		location = place(asked.Location)
	}
	faults := e.strike(c, location, ofRequests)
	e.mu.Unlock()
	var slow time.Duration
	for _, f := range faults {
		entry.Faults = append(entry.Faults, f.Action)
		if f.Action == "slow" {
			slow += f.Delay
		}
	}
	if !pause(r.Context(), slow) {
		return
	}
	a := e.refused(r, c, known, location, faults)
	drop := slices.Contains(entry.Faults, "drop_before")
	if a == nil && !drop {
		got := e.serve(r, c, body, faults)
		a = &got
		drop = slices.Contains(entry.Faults, "drop_after")
	}
	if drop {
		e.note(entry)
		panic(http.ErrAbortHandler) // the connection breaks
	}
	if p, ok := a.body.(problem); ok {
		entry.Code = p.Code
	}
	entry.Status = a.status
	e.note(entry)
	e.write(w, c, *a, slices.Contains(entry.Faults, "bad_json"))
}

func (e *Emulator) note(r Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.journal = append(e.journal, r); len(e.journal) > maxJournal {
		e.journal = slices.Clone(e.journal[maxJournal/2:])
	}
}

func (e *Emulator) write(w http.ResponseWriter, c call, a answer, cut bool) {
	h := w.Header()
	for k, v := range a.header {
		h[k] = v
	}
	var text []byte
	switch b := a.body.(type) {
	case nil:
	case problem:
		text = b.body()
		h.Set("x-ms-error-code", b.Code)
		if b.RetryAfter > 0 {
			h.Set("Retry-After", strconv.Itoa(b.RetryAfter))
		}
	default:
		var err error
		if text, err = json.Marshal(b); err != nil {
			e.o.Log.Error("an answer has no JSON", "err", err)
		}
	}
	h.Set("x-ms-request-id", cmp.Or(c.location, "westeurope")+":"+rand.Text())
	h.Set("x-ms-correlation-request-id", rand.Text())
	if text != nil {
		h.Set("Content-Type", "application/json; charset=utf-8")
	}
	w.WriteHeader(a.status)
	if cut {
		text = text[:len(text)/2]
	}
	_, _ = w.Write(text) // the client may have gone
}

// refused checks a request before it is examined further, and applies faults. It returns the
// refusal, or nil.
func (e *Emulator) refused(r *http.Request, c call, known bool, location string, faults []Fault) *answer {
	wrong := func(status int, code, message string) *answer {
		return &answer{status: status, header: http.Header{}, body: problem{Code: code, Message: message}}
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	version := r.URL.Query().Get("api-version")
	switch {
	case !ok || token == "" || e.o.Token != "" && token != e.o.Token:
		a := wrong(401, "AuthenticationFailed",
			"Authentication failed. The 'Authorization' header is missing or its token is not valid.")
		a.header.Set("WWW-Authenticate", `Bearer authorization_uri="https://login.microsoftonline.com/common", error="invalid_token"`)
		return a
	case !known:
		return wrong(404, "InvalidResourceType",
			"The resource type could not be found in the namespace 'Microsoft.ContainerInstance' for "+r.Method+" "+
				r.URL.Path+".")
	case version == "":
		return wrong(400, "MissingApiVersionParameter",
			"The api-version query parameter (?api-version=) is required for all requests.")
	case (version < firstVersion || len(version) < len(firstVersion)) && c.op != "operations" &&
		c.op != "operationresults" && c.op != "resourcegroup" && c.op != "permissions" && c.op != "deployment":
		return wrong(400, "InvalidApiVersionParameter", "The api-version '"+version+"' is invalid.")
	}
	for _, f := range faults {
		size := fmt.Sprintf("in the location '%s'", location)
		switch f.Action {
		case "quota":
			return wrong(400, "ContainerGroupQuotaReached",
				fmt.Sprintf("Resource type 'Microsoft.ContainerInstance/containerGroups' container group quota "+
					"'StandardCores' exceeded in region '%s'. Limit: '100', Usage: '100' Requested: '1'.", location))
		case "capacity":
			return wrong(409, "ServiceUnavailable",
				"The requested resource is not available "+size+
					" at this moment. Please retry with a different resource request or in another location.")
		case "fraud":
			return wrong(409, "ServiceUnavailable",
				fmt.Sprintf("Resource type 'Microsoft.ContainerInstance/containerGroups' container group quota "+
					"'ContainerGroups' exceeded in region '%s'. Limit: '0', Usage: '0' Requested: '1'.", location))
		case "inaccessible_image":
			return wrong(400, "InaccessibleImage", "The image in container group '"+c.name+
				"' is not accessible. Please check the image and registry credential.")
		case "registry_error":
			return wrong(409, "RegistryErrorResponse",
				"An error response is received from the docker registry 'index.docker.io'. Please retry later.")
		case "transitioning":
			return wrong(409, "ContainerGroupTransitioning",
				"The container group '"+c.name+"' is still transitioning, please retry later.")
		case "throttle":
			return e.throttled(c, max(1, f.RetryAfter))
		case "status":
			a := wrong(f.Status, cmp.Or(f.Code, http.StatusText(f.Status)), cmp.Or(f.Message, "asked for by a fault"))
			return a
		}
	}
	if c.op == "list" || c.op == "get" || c.op == "put" || c.op == "delete" {
		return e.limited(c)
	}
	return nil
}

func (e *Emulator) throttled(c call, seconds int) *answer {
	code := "ResourceRequestsThrottled"
	if e.Settings().Switches.ThrottleTooMany {
		code = "TooManyRequests"
	}
	return &answer{status: 429, body: problem{Code: code, RetryAfter: seconds, Message: fmt.Sprintf(
		"Number of requests for action 'Microsoft.ContainerInstance/containerGroups/%s' exceeded the limit for time "+
			"interval '00:05:00'. Please try again after '%d' seconds.", c.op, seconds)}}
}

// limited counts a request. It refuses the request if there were too many.
func (e *Emulator) limited(c call) *answer {
	e.mu.Lock()
	l, now := e.settings.Limits, time.Now()
	counts, over := e.reads, []struct {
		limit int
		in    time.Duration
	}{{l.Reads1h, time.Hour}}
	if c.op == "put" || c.op == "delete" {
		counts = e.writes
		over[0].limit = l.Writes1h
		over = append(over, struct {
			limit int
			in    time.Duration
		}{l.Writes5m, 5 * time.Minute})
	}
	list := counts[c.sub]
	for len(list) > 0 && now.Sub(list[0]) > time.Hour {
		list = list[1:]
	}
	wait := time.Duration(0)
	for _, o := range over {
		if o.limit == 0 {
			continue
		}
		i := len(list) - o.limit // this request must be out of the window first
		if i >= 0 && now.Sub(list[i]) < o.in {
			wait = max(wait, o.in-now.Sub(list[i]))
		}
	}
	if wait == 0 {
		list = append(list, now)
	}
	counts[c.sub] = list
	e.mu.Unlock()
	if wait > 0 {
		return e.throttled(c, int(wait.Seconds())+1)
	}
	return nil
}

// remaining returns the headers with how many more requests are allowed.
func (e *Emulator) remaining(c call) http.Header {
	l, h, now := e.settings.Limits, http.Header{}, time.Now()
	left := func(list []time.Time, limit, unlimited int, in time.Duration) string {
		if limit == 0 {
			return strconv.Itoa(unlimited)
		}
		n := 0
		for _, t := range list {
			if now.Sub(t) < in {
				n++
			}
		}
		return strconv.Itoa(max(0, limit-n))
	}
	if c.op == "put" || c.op == "delete" {
		h.Set("x-ms-ratelimit-remaining-subscription-resource-requests-pt5m",
			left(e.writes[c.sub], l.Writes5m, 1499, 5*time.Minute))
		h.Set("x-ms-ratelimit-remaining-subscription-resource-requests-pt1h",
			left(e.writes[c.sub], l.Writes1h, 14999, time.Hour))
		h.Set("x-ms-ratelimit-remaining-subscription-writes", "799")
		return h
	}
	h.Set("x-ms-ratelimit-remaining-subscription-reads", left(e.reads[c.sub], l.Reads1h, 16499, time.Hour))
	return h
}

func wrong(status int, code, format string, args ...any) answer {
	return answer{status: status, body: problem{Code: code, Message: fmt.Sprintf(format, args...)}}
}

func notFound(c call) answer {
	return wrong(404, "ResourceNotFound",
		"The Resource 'Microsoft.ContainerInstance/containerGroups/%s' under resource group '%s' was not found.",
		c.name, c.rg)
}

// serve executes a request.
func (e *Emulator) serve(r *http.Request, c call, body []byte, faults []Fault) answer {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.groups[groupKey(c.sub, c.rg, c.name)]
	var a answer
	switch c.op {
	case "operations":
		a = answer{status: 200, body: map[string]any{"value": []any{}}}
		if c.sub != "" {
			a = e.operation(r, c)
		}
	case "operationresults":
		a = e.operationResult(c)
	case "usages":
		a = answer{status: 200, body: map[string]any{"value": e.usages(c)}}
	case "capabilities":
		a = answer{status: 200, body: map[string]any{"value": e.capabilities(c)}}
	case "cachedimages":
		a = answer{status: 200,
			body: map[string]any{"value": []any{map[string]any{"osType": "Linux",
				"image": "mcr.microsoft.com/azuredocs/aci-helloworld:latest"}}}}
	case "registration":
		a = answer{status: 200, body: map[string]any{"namespace": "Microsoft.ContainerInstance",
			"registrationState": "Registered"}}
	case "resourcegroup":
		a = answer{status: 200, body: map[string]any{"id": "/subscriptions/" + c.sub + "/resourceGroups/" + c.rg,
			"name": c.rg, "location": "westeurope", "properties": map[string]any{"provisioningState": "Succeeded"}}}
	case "permissions":
		a = answer{status: 200,
			body: map[string]any{"value": []any{map[string]any{"actions": []string{"*"}, "notActions": []string{}}}}}
	case "deployment":
		a = e.deployTemplate(r, c, body)
	case "unlink":
		a = answer{status: 204}
	case "list":
		a = e.list(r, c, faults)
	case "put":
		a = e.put(r, c, g, body)
	case "get":
		a = e.get(c, g, faults)
	default:
		if g == nil {
			if c.op == "delete" {
				a = answer{status: 204}
				break
			}
			a = notFound(c)
			break
		}
		switch c.op {
		case "patch":
			a = e.patch(g, body)
		case "delete":
			a = e.delete(r, g)
		case "stop":
			a = e.stop(c, g)
		case "start", "restart":
			a = e.start(r, c, g)
		case "outbound":
			a = answer{status: 200, body: []string{}}
		case "logs":
			a = e.logs(r, c, g, faults)
		case "exec", "attach":
			a = e.exec(r, c, g, body)
		}
	}
	h := e.remaining(c)
	for k, v := range a.header {
		h[k] = v
	}
	a.header = h
	return a
}

// seen returns a group as a read shows it, which may be stale.
func (e *Emulator) seen(key string, faults []Fault) *arm.ContainerGroup {
	history := e.gone[key]
	if g := e.groups[key]; g != nil {
		history = g.history
	}
	at := time.Now()
	for _, f := range faults {
		if f.Action == "stale_read" {
			at = at.Add(-f.Delay)
		}
	}
	for i := len(history) - 1; i >= 0; i-- {
		if !history[i].at.After(at) {
			return history[i].view
		}
	}
	return nil
}

func (e *Emulator) get(c call, g *group, faults []Fault) answer {
	v := e.seen(groupKey(c.sub, c.rg, c.name), faults)
	if v == nil {
		return notFound(c)
	}
	for _, f := range faults {
		switch f.Action {
		case "group_says_running":
			v = edited(v, func(p *arm.ContainerGroupPropertiesProperties) {
				running := "Running"
				p.InstanceView = &arm.ContainerGroupPropertiesInstanceView{State: &running}
			})
		case "no_instance_view":
			v = listed(v)
		}
	}
	return answer{status: 200, body: v}
}

func edited(v *arm.ContainerGroup, f func(*arm.ContainerGroupPropertiesProperties)) *arm.ContainerGroup {
	out, p := *v, *v.Properties
	out.Properties = &p
	f(&p)
	return &out
}

// listed returns a group as lists show it.
func listed(v *arm.ContainerGroup) *arm.ContainerGroup {
	return edited(v, func(p *arm.ContainerGroupPropertiesProperties) {
		p.InstanceView = nil
		p.Containers = slices.Clone(p.Containers)
		for i, c := range p.Containers {
			props := *c.Properties
			props.InstanceView = nil
			p.Containers[i] = &arm.Container{Name: c.Name, Properties: &props}
		}
	})
}

// pageSize is how many groups a page of a list has.
const pageSize = 100

func (e *Emulator) list(r *http.Request, c call, faults []Fault) answer {
	keys := map[string]bool{}
	for k := range e.groups {
		keys[k] = true
	}
	for k := range e.gone {
		keys[k] = true
	}
	var names []string
	for k := range keys {
		if fits, _ := path.Match(cmp.Or(groupKey(c.sub, cmp.Or(c.rg, "*"), "*"), ""), k); fits &&
			e.seen(k, faults) != nil {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	q := r.URL.Query()
	size, skip := pageSize, 0
	if n, err := strconv.Atoi(q.Get("pageSize")); err == nil && n > 0 {
		size = n
	}
	if n, err := strconv.Atoi(q.Get("$skiptoken")); err == nil && n > 0 {
		skip = min(n, len(names))
	}
	out := arm.ContainerGroupListResult{Value: []*arm.ContainerGroup{}}
	for _, k := range names[skip:min(skip+size, len(names))] {
		out.Value = append(out.Value, listed(e.seen(k, faults)))
	}
	if skip+size < len(names) {
		q.Set("$skiptoken", strconv.Itoa(skip+size))
		next := base(r) + r.URL.Path + "?" + q.Encode()
		out.NextLink = &next
	}
	return answer{status: 200, body: out}
}

// base returns the address that the request was sent to.
func base(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// usage returns the totals of a subscription in a location.
func (e *Emulator) usage(sub, location string) (groups int, cores, spot float64) {
	for _, g := range e.groups {
		if !strings.EqualFold(g.sub, sub) || g.location() != location {
			continue
		}
		groups++
		if g.finished() && !g.stopping && !e.settings.Switches.EndedCountCores {
			continue
		}
		c, _ := g.size()
		if g.spot() {
			spot += c
		} else {
			cores += c
		}
	}
	return groups, cores, spot
}

func (e *Emulator) usages(c call) []*arm.Usage {
	groups, cores, spot := e.usage(c.sub, c.location)
	q := e.settings.Quota
	var out []*arm.Usage
	for _, u := range []struct {
		name, text string
		has, limit float64
	}{{"ContainerGroups", "Container Groups", float64(groups), float64(q.Groups)},
		{"StandardCores", "Standard Cores", cores, q.Cores},
		{"StandardSpotCores", "Standard Spot Cores", spot, q.SpotCores}} {
		id, unit := "/subscriptions/"+c.sub+"/providers/Microsoft.ContainerInstance/locations/"+c.location+"/usages/"+
			u.name, "Count"
		has, limit := int32(u.has+0.999), int32(u.limit)
		out = append(out, &arm.Usage{ID: &id, Unit: &unit, CurrentValue: &has, Limit: &limit,
			Name: &arm.UsageName{Value: &u.name, LocalizedValue: &u.text}})
	}
	return out
}

func (e *Emulator) capabilities(c call) []*arm.Capabilities {
	var out []*arm.Capabilities
	for _, ip := range []string{"Public", "Private"} {
		kind, os, gpu := "containerGroups", "Linux", "None"
		cpu, memory, none := float32(e.settings.Sizes.CPU), float32(e.settings.Sizes.MemoryGB), float32(0)
		out = append(out, &arm.Capabilities{
			ResourceType: &kind, OSType: &os, Location: &c.location, IPAddressType: &ip, Gpu: &gpu,
			Capabilities: &arm.CapabilitiesCapabilities{MaxCPU: &cpu, MaxMemoryInGB: &memory, MaxGpuCount: &none},
		})
	}
	return out
}

// keepGone is how long stale reads may still show a deleted group.
const keepGone = time.Minute

// maxJournal is how many requests the journal holds.
const maxJournal = 200_000

// maxOperations is how many operations are remembered.
const maxOperations = 20_000

// changed records how a group looks from now on, and also saves it. The mutex is held.
func (e *Emulator) changed(g *group) {
	v := e.view(g, true)
	if e.groups[g.key()] != g {
		e.gone[g.key()] = append(g.history, snapshot{at: time.Now()})
		for k, h := range e.gone {
			if time.Since(h[len(h)-1].at) > keepGone {
				delete(e.gone, k)
			}
		}
		e.erase(g)
		return
	}
	g.history = append(g.history, snapshot{time.Now(), v})
	if n := len(g.history); n > 100 {
		g.history = slices.Clone(g.history[n-50:])
	}
	e.save(g)
}

var _ http.Handler = (*Emulator)(nil)

func decode(body []byte, into any) *answer {
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(into); err != nil {
		a := wrong(400, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%v'.",
			err)
		return &a
	}
	return nil
}
