package aci

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
)

var (
	validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	validVar  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
)

// check returns what is wrong with a requested group.
func (e *Emulator) check(c call, g arm.ContainerGroup) *answer {
	bad := func(code, format string, args ...any) *answer {
		a := wrong(400, code, format, args...)
		return &a
	}
	p := g.Properties
	switch {
	case !validName.MatchString(c.name):
		return bad("InvalidContainerGroupName",
			"The container group name '%s' is invalid. It must have 1 to 63 lower case letters, digits and '-'.",
			c.name)
	case val(g.Location) == "":
		return bad("LocationRequired", "The location property is required for this definition.")
	case p == nil || len(p.Containers) == 0:
		return bad("InvalidRequestContent", "The containers in the container group '%s' are not specified.", c.name)
	case len(g.Tags) > 50:
		return bad("InvalidTagCount", "A resource may have 50 tags.")
	case val(p.OSType) != arm.OperatingSystemTypesLinux && val(p.OSType) != "linux":
		return bad("InvalidOsType", "The OS type '%s' is invalid here.", val(p.OSType))
	}
	linux := arm.OperatingSystemTypesLinux
	p.OSType = &linux
	for k, v := range g.Tags {
		if len(k) > 512 || len(val(v)) > 256 || strings.ContainsAny(k, `<>%&\?/`) {
			return bad("InvalidTagNameCharacters", "The tag '%s' has a name or a value that is not allowed.", k)
		}
	}
	names := map[string]bool{}
	for _, b := range p.Containers {
		name := val(b.Name)
		r := (*arm.ResourceRequests)(nil)
		if b.Properties != nil && b.Properties.Resources != nil {
			r = b.Properties.Resources.Requests
		}
		switch {
		case !validName.MatchString(name) || names[name]:
			return bad("InvalidContainerName", "The container name '%s' is invalid or not unique.", name)
		case b.Properties == nil || val(b.Properties.Image) == "":
			return bad("InvalidImageName", "The image of container '%s' is not specified.", name)
		case r == nil || r.CPU == nil || r.MemoryInGB == nil:
			return bad("ResourceRequestsNotSpecified", "The resource requests of container '%s' are not specified.",
				name)
		case *r.CPU <= 0 || *r.MemoryInGB <= 0:
			return bad("InvalidResourceRequests",
				"The resource requests of container '%s' are invalid: CPU '%g' and memory '%g' GB must be above 0.",
				name, *r.CPU, *r.MemoryInGB)
		case r.Gpu != nil:
			return bad("GpuNotSupported", "GPU resources are not available in the location '%s'.", val(g.Location))
		}
		names[name] = true
		if a := checkVariables(name, b.Properties.EnvironmentVariables); a != nil {
			return a
		}
		for _, m := range b.Properties.VolumeMounts {
			if !slices.ContainsFunc(p.Volumes, func(v *arm.Volume) bool { return val(v.Name) == val(m.Name) }) {
				return bad("InvalidVolumeMount", "The volume '%s' of container '%s' is not one of the container group.",
					val(m.Name), name)
			}
		}
	}
	for _, b := range p.InitContainers {
		if b.Properties != nil {
			if a := checkVariables(val(b.Name), b.Properties.EnvironmentVariables); a != nil {
				return a
			}
		}
	}
	cores, memory := size(g)
	for _, b := range p.Containers {
		if l := b.Properties.Resources.Limits; l != nil && (val(l.CPU) > cores || val(l.MemoryInGB) > memory) {
			return bad("ContainerLimitGreaterThanContainerGroupTotalRequest",
				"The limits of container '%s' are above the sum of requests of the container group.", val(b.Name))
		}
	}
	for _, v := range p.Volumes {
		n := 0
		for _, is := range []bool{v.AzureFile != nil, v.EmptyDir != nil, v.Secret != nil, v.GitRepo != nil} {
			if is {
				n++
			}
		}
		if n != 1 {
			return bad("InvalidVolume", "The volume '%s' must be of exactly one kind.", val(v.Name))
		}
		if r := v.GitRepo; r != nil && (!e.o.Git || val(r.Repository) == "" ||
			strings.HasPrefix(val(r.Directory), "..") || !filepath.IsLocal(cmp.Or(val(r.Directory), "."))) {
			return bad("InvalidVolume",
				"The volume '%s' has no repository or a folder outside of it, or this emulator was not asked to "+
					"clone any (-git).", val(v.Name))
		}
	}
	if val(p.Priority) == arm.ContainerGroupPrioritySpot {
		switch {
		case p.IPAddress != nil || len(p.SubnetIDs) > 0:
			return bad("SpotPriorityContainerGroupNotSupportedForInboundConnectivity",
				"A spot container group cannot have an IP address or be in a virtual network.")
		case p.SKU != nil && *p.SKU != arm.ContainerGroupSKUStandard:
			return bad("SpotPriorityContainerGroupNotSupportedInSku", "A spot container group must be of SKU Standard.")
		}
	}
	if cores > e.settings.Sizes.CPU || memory > e.settings.Sizes.MemoryGB {
		a := wrong(409, "ServiceUnavailable",
			"The requested resource is not available in the location '%s' at this moment. Please retry with a "+
				"different resource request or in another location. Resource requested: '%g' CPU '%g' GB memory "+
				"'Linux' OS.", val(g.Location), cores, memory)
		return &a
	}
	return nil
}

// checkVariables returns what is wrong with the environment variables of a container.
func checkVariables(container string, variables []*arm.EnvironmentVariable) *answer {
	for _, v := range variables {
		what := ""
		switch {
		case !validVar.MatchString(val(v.Name)):
			what = "has an invalid name"
		case (v.Value == nil) == (v.SecureValue == nil):
			what = "must have either a value or a secureValue"
		default:
			continue
		}
		a := wrong(400, "InvalidContainerEnvironmentVariable", "The environment variable '%s' in container '%s' %s.",
			val(v.Name), container, what)
		return &a
	}
	return nil
}

// overQuota returns which quota a new group would exceed.
func (e *Emulator) overQuota(c call, g arm.ContainerGroup) *answer {
	groups, cores, spot := e.usage(c.sub, place(val(g.Location)))
	want, _ := size(g)
	name, has, limit := "StandardCores", cores, e.settings.Quota.Cores
	if val(g.Properties.Priority) == arm.ContainerGroupPrioritySpot {
		name, has, limit = "StandardSpotCores", spot, e.settings.Quota.SpotCores
	}
	if groups+1 > e.settings.Quota.Groups {
		name, has, limit, want = "ContainerGroups", float64(groups), float64(e.settings.Quota.Groups), 1
	}
	if has+want <= limit {
		return nil
	}
	a := wrong(400, "ContainerGroupQuotaReached",
		"Resource type 'Microsoft.ContainerInstance/containerGroups' container group quota '%s' exceeded in region "+
			"'%s'. Limit: '%g', Usage: '%g' Requested: '%g'.",
		name, place(val(g.Location)), limit, has, want)
	return &a
}

func (e *Emulator) put(r *http.Request, c call, g *group, body []byte) answer {
	var asked arm.ContainerGroup
	if a := decode(body, &asked); a != nil {
		return *a
	}
	if a := e.check(c, asked); a != nil {
		return *a
	}
	s := e.settings.Switches
	if s.CheckImage {
		for _, b := range asked.Properties.Containers {
			if p, ok := e.o.Backend.(*Processes); ok && p.Pull(e.ctx, val(b.Properties.Image), nil) != nil {
				return wrong(400, "InaccessibleImage",
					"The image '%s' in container group '%s' is not accessible. Please check the image and registry "+
						"credential.", val(b.Properties.Image), c.name)
			}
		}
	}
	if g == nil {
		if a := e.overQuota(c, asked); a != nil {
			return *a
		}
		g = &group{sub: c.sub, rg: c.rg, name: c.name}
		e.groups[g.key()] = g
		g.faults = e.strike(c, place(val(asked.Location)), ofGroups)
		e.deploy(g, asked)
		return e.accepted(r, g, 201)
	}
	same := sameBody(g.asked, asked)
	switch {
	case s.IfNoneMatch && r.Header.Get("If-None-Match") == "*":
		return wrong(412, "PreconditionFailed", "The resource exists.")
	case g.location() != place(val(asked.Location)):
		return wrong(409, "InvalidResourceLocation",
			"The resource '%s' already exists in location '%s' in resource group '%s'. A resource with the same name "+
				"cannot be created in location '%s'. Please select a new resource name.", g.name, g.location(), g.rg,
			place(val(asked.Location)))
	case g.busy():
		return wrong(409, "ContainerGroupTransitioning",
			"The container group '%s' is still transitioning, please retry later.", g.name)
	case immutable(g.asked, asked):
		return wrong(400, "InvalidContainerGroupUpdate",
			"The updates on container group '%s' are invalid. If you are going to update the os type, restart "+
				"policy, network profile, CPU, memory or GPU resources for a container group, you must delete it "+
				"first and then create a new one.", g.name)
	case g.finished() && s.RefuseFinished:
		return wrong(409, "ContainerGroupStopped", "The container group '%s' has ended and cannot be updated.", g.name)
	case !g.finished() && same && !s.RestartUnchanged:
		return answer{status: 200, body: e.view(g, true)}
	}
	g.stopping = true
	e.halt(g, e.settings.Timing.StopGrace, func() { // in place
		e.drop(g)
		g.stopping = false
		e.deploy(g, asked)
	})
	return e.accepted(r, g, 200)
}

func sameBody(a, b arm.ContainerGroup) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

func immutable(a, b arm.ContainerGroup) bool {
	ac, am := size(a)
	bc, bm := size(b)
	return ac != bc || am != bm || val(a.Properties.RestartPolicy) != val(b.Properties.RestartPolicy) ||
		val(a.Properties.OSType) != val(b.Properties.OSType)
}

// accepted answers with a group and with how to poll its operation.
func (e *Emulator) accepted(r *http.Request, g *group, status int) answer {
	a := answer{status: status, header: http.Header{}, body: e.view(g, true)}
	kind, header := "operations", "Azure-Asyncoperation"
	switch e.settings.Switches.LRO {
	case "body":
		return a
	case "location":
		kind, header = "operationResults", "Location"
	}
	a.header.Set(header, e.operationURL(r, g, kind))
	return a
}

func (e *Emulator) operationURL(r *http.Request, g *group, kind string) string {
	return base(r) + "/subscriptions/" + g.sub + "/providers/Microsoft.ContainerInstance/locations/" + g.location() +
		"/" + kind + "/" + g.op.id + "?api-version=2018-06-01&t=1&c=emulated"
}

func (e *Emulator) operation(_ *http.Request, c call) answer {
	op := e.ops[c.rest]
	if op == nil {
		return wrong(404, "OperationNotFound", "The operation '%s' was not found.", c.rest)
	}
	out := map[string]any{"id": op.group, "status": op.status, "startTime": op.began.UTC().Format(time.RFC3339Nano),
		"properties": map[string]any{"events": []any{}}}
	if op.failure != nil {
		out["error"] = *op.failure
	}
	return answer{status: 200, body: out}
}

// operationResult answers 202 until the operation has ended, and then with the group.
func (e *Emulator) operationResult(c call) answer {
	op := e.ops[c.rest]
	if op == nil {
		return wrong(404, "OperationNotFound", "The operation '%s' was not found.", c.rest)
	}
	for _, g := range e.groups {
		if g.id() != op.group || g.op != op {
			continue
		}
		if op.status == "InProgress" || g.deleting {
			return answer{status: 202}
		}
		if op.failure != nil {
			return answer{status: 409, body: *op.failure}
		}
		return answer{status: 200, body: e.view(g, true)}
	}
	return answer{status: 204}
}

func (e *Emulator) patch(g *group, body []byte) answer {
	var asked arm.Resource
	if a := decode(body, &asked); a != nil {
		return *a
	}
	tags := map[string]*string{}
	if !e.settings.Switches.ReplaceTags {
		maps.Copy(tags, g.asked.Tags)
	}
	maps.Copy(tags, asked.Tags)
	g.asked.Tags = tags
	e.changed(g)
	return answer{status: 200, body: e.view(g, true)}
}

func (e *Emulator) delete(r *http.Request, g *group) answer {
	was := e.view(g, true)
	a := answer{status: 200, body: was, header: http.Header{}}
	if s := e.settings.Switches.DeleteStatus; s != 0 {
		a.status = s
	}
	if a.status == 202 {
		a.body = nil
		a.header.Set("Location", e.operationURL(r, g, "operationResults"))
	}
	if a.status == 204 {
		a.body = nil
	}
	if g.has("delete_ignored") || g.deleting {
		return a
	}
	g.deleting = true
	delay := e.settings.Timing.Delete
	if f, ok := g.fault("slow_delete"); ok {
		delay = f.Delay
	}
	e.halt(g, e.settings.Timing.StopGrace, func() {
		e.lives.Go(func() {
			pause(e.ctx, delay)
			e.mu.Lock()
			defer e.mu.Unlock()
			e.drop(g)
			delete(e.groups, g.key())
			e.changed(g)
		})
	})
	return a
}

func (e *Emulator) stop(_ call, g *group) answer {
	switch {
	case g.deleting || g.stopping || (g.provisioning == "Pending" || g.provisioning == "Creating") &&
		e.settings.Switches.StopConflict:
		return wrong(409, "ContainerGroupTransitioning",
			"The container group '%s' is still transitioning, please retry later.", g.name)
	case g.finished() || g.has("delete_ignored") || g.provisioning == "Failed":
		return answer{status: 204}
	}
	g.stopping = true
	e.changed(g)
	e.halt(g, e.settings.Timing.StopGrace, func() {
		if g.deleting {
			return
		}
		g.stopping, g.lives, g.state, g.provisioning = false, false, "Stopped", "Succeeded"
		g.op.status = "Succeeded"
		if !e.settings.Switches.KeepStoppedLogs {
			e.drop(g)
		}
		for _, b := range g.boxes {
			b.current, b.previous, b.restarts = nil, nil, 0
			if e.settings.Switches.DropGroupState {
				b.events = nil
			}
		}
	})
	return answer{status: 204}
}

func (e *Emulator) start(r *http.Request, c call, g *group) answer {
	switch {
	case g.busy():
		return wrong(409, "ContainerGroupTransitioning",
			"The container group '%s' is still transitioning, please retry later.", g.name)
	case c.op == "restart" && g.state == "Stopped":
		return e.notRunning(g)
	case c.op == "start" && !g.finished():
		return answer{status: 204}
	}
	g.stopping = true
	asked := g.asked
	e.halt(g, e.settings.Timing.StopGrace, func() {
		e.drop(g)
		g.stopping = false
		e.deploy(g, asked)
	})
	a := answer{status: 202, header: http.Header{}}
	if c.op == "restart" {
		a.status = 204
	}
	a.header.Set("Location", e.operationURL(r, g, "operationResults"))
	return a
}

func (e *Emulator) notRunning(g *group) answer {
	status := 409
	if e.settings.Switches.StoppedBadRequest {
		status = 400
	}
	return wrong(status, "ContainerGroupStopped", "The container group '%s' is stopped.", g.name)
}

// Limits of logs.
const (
	maxLogs      = 4 << 20
	maxEndedLogs = 16 << 10
	maxEndedRows = 1000
)

func (e *Emulator) logs(r *http.Request, c call, g *group, faults []Fault) answer {
	i := slices.IndexFunc(g.boxes, func(b *box) bool { return b.name == c.container })
	if i < 0 {
		return wrong(404, "ContainerNotFound", "The container '%s' was not found in container group '%s'.", c.container,
			g.name)
	}
	b := g.boxes[i]
	if b.c == nil {
		if e.settings.Switches.LogsConflict && g.state == "Pending" {
			return wrong(409, "ContainerGroupDeploymentNotReady", "The container group '%s' is not ready yet.", g.name)
		}
		return wrong(404, "ContainerLogNotAvailable",
			"The logs of container '%s' in container group '%s' are not available.", c.container, g.name)
	}
	q := r.URL.Query()
	tail, _ := strconv.Atoi(q.Get("tail"))
	times, _ := strconv.ParseBool(q.Get("timestamps"))
	ended := val(b.current).State != nil && *b.current.State == "Terminated"
	if ended {
		if tail = min(tail, maxEndedRows); tail <= 0 {
			tail = maxEndedRows
		}
	}
	box := b.c
	e.mu.Unlock() // the engine may take its time
	text, err := box.Logs(r.Context(), tail, times)
	e.mu.Lock()
	if err != nil {
		return wrong(404, "ContainerLogNotAvailable", "The logs of container '%s' are not available: %v.", c.container,
			err)
	}
	limit := maxLogs
	if ended {
		limit = maxEndedLogs
	}
	if slices.ContainsFunc(faults, func(f Fault) bool { return f.Action == "truncate_logs" }) {
		limit = 64
	}
	if len(text) > limit {
		text = text[len(text)-limit:]
	}
	return answer{status: 200, body: arm.Logs{Content: &text}}
}

// Befall does something to a running group: evict, maintenance, oom, kill or vanish.
func (e *Emulator) Befall(sub, rg, name, what string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var g *group
	for _, one := range e.groups {
		if one.name == name && (sub == "" || strings.EqualFold(one.sub, sub)) &&
			(rg == "" || strings.EqualFold(one.rg, rg)) {
			g = one
		}
	}
	if g == nil {
		return problem{Status: 404, Code: "ResourceNotFound", Message: "there is no group " + name}
	}
	if what == "vanish" {
		g.end()
		e.drop(g)
		delete(e.groups, g.key())
		e.changed(g)
		return nil
	}
	hit := false
	for _, b := range g.boxes {
		if b.c == nil || b.init || val(val(b.current).State) != "Running" {
			continue
		}
		hit = true
		switch what {
		case "evict":
			b.moved = &move{code: 7148, wait: e.settings.Timing.Repair}
		case "maintenance":
			b.moved = &move{code: 7147, wait: e.settings.Timing.Backoff}
		case "oom":
			b.oom = true
		case "kill":
		default:
			return problem{Status: 400, Code: "UnknownEvent",
				Message: fmt.Sprintf("nothing is called %q; there are evict, maintenance, oom, kill and vanish", what)}
		}
		c := b.c
		e.lives.Go(func() {
			if err := c.Stop(context.WithoutCancel(e.ctx), 0); err != nil {
				e.o.Log.Warn("a container was not killed", "group", name, "err", err)
			}
		})
	}
	if !hit {
		return problem{Status: 409, Code: "NotRunning", Message: "no container of group " + name + " runs"}
	}
	return nil
}
