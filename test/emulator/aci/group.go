package aci

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
)

// group is one container group. The emulator's mutex guards it.
type group struct {
	sub, rg, name string // as first requested
	asked         arm.ContainerGroup
	at            time.Time
	provisioning  string
	state         string // of the instance view
	failure       *problem
	events        []*arm.Event
	boxes         []*box
	op            *operation
	deploy        int // how often it was deployed
	stopping      bool
	deleting      bool
	lives         bool
	faults        []Fault // faults of its life
	end           context.CancelFunc
	done          chan struct{} // closed when its life has ended
	history       []snapshot
}

// box is one container of a group.
type box struct {
	name     string
	asked    *arm.ContainerProperties
	init     bool
	restarts int32
	current  *arm.ContainerState
	previous *arm.ContainerState
	events   []*arm.Event
	c        Container
	moved    *move // set if it must be started elsewhere
	oom      bool
	again    int // restarts by the switch or the fault restart_on_failure
}

// move is an eviction or a maintenance.
type move struct {
	code int32
	wait time.Duration
}

// snapshot is a group as it was seen since at. A nil view means that the group did not exist.
type snapshot struct {
	at   time.Time
	view *arm.ContainerGroup
}

// operation is a long-running operation.
type operation struct {
	id, group string
	began     time.Time
	status    string
	failure   *problem
}

func (g *group) key() string { return groupKey(g.sub, g.rg, g.name) }

func groupKey(sub, rg, name string) string { return strings.ToLower(sub + "/" + rg + "/" + name) }

func (g *group) id() string {
	return "/subscriptions/" + g.sub + "/resourceGroups/" + g.rg +
		"/providers/Microsoft.ContainerInstance/containerGroups/" + g.name
}

func (g *group) location() string { return place(val(g.asked.Location)) }

// place returns the plain form of the name of a location: westeurope for West Europe.
func place(s string) string { return strings.ToLower(strings.ReplaceAll(s, " ", "")) }

func val[T any](p *T) T {
	var none T
	if p == nil {
		return none
	}
	return *p
}

func (g *group) spot() bool {
	return val(g.asked.Properties.Priority) == arm.ContainerGroupPrioritySpot
}

// size returns the sums of what the containers request.
func (g *group) size() (cores, memory float64) { return size(g.asked) }

func size(g arm.ContainerGroup) (cores, memory float64) {
	for _, c := range g.Properties.Containers {
		cores += val(c.Properties.Resources.Requests.CPU)
		memory += val(c.Properties.Resources.Requests.MemoryInGB)
	}
	return cores, memory
}

func (g *group) finished() bool {
	return g.state == "Succeeded" || g.state == "Failed" || g.state == "Stopped"
}

// busy reports whether an operation is in progress.
func (g *group) busy() bool {
	return g.provisioning == "Pending" || g.provisioning == "Creating" || g.provisioning == "Repairing" || g.stopping ||
		g.deleting
}

func (g *group) fault(action string) (Fault, bool) {
	i := slices.IndexFunc(g.faults, func(f Fault) bool { return f.Action == action })
	if i < 0 {
		return Fault{}, false
	}
	return g.faults[i], true
}

// event records an event. If there is one with the same name and text, it is counted instead.
func event(list *[]*arm.Event, name, kind, message string) {
	now := time.Now().UTC().Truncate(time.Second)
	for _, e := range *list {
		if *e.Name == name && *e.Message == message {
			*e.Count++
			e.LastTimestamp = &now
			return
		}
	}
	first := now
	*list = append(*list, &arm.Event{Count: to.Ptr[int32](1), FirstTimestamp: &first, LastTimestamp: &now, Name: &name,
		Message: &message, Type: &kind})
}

// deploy starts the life of a group. The mutex is held.
func (e *Emulator) deploy(g *group, asked arm.ContainerGroup) {
	g.asked, g.at = asked, time.Now()
	g.deploy++
	g.provisioning, g.state, g.failure, g.events = "Pending", "Pending", nil, nil
	g.boxes = nil
	for _, c := range asked.Properties.InitContainers {
		g.boxes = append(g.boxes, &box{name: val(c.Name), init: true, asked: &arm.ContainerProperties{
			Image: c.Properties.Image, Command: c.Properties.Command,
			EnvironmentVariables: c.Properties.EnvironmentVariables, VolumeMounts: c.Properties.VolumeMounts,
		}})
	}
	for _, c := range asked.Properties.Containers {
		g.boxes = append(g.boxes, &box{name: val(c.Name), asked: c.Properties})
	}
	if len(e.ops) > maxOperations {
		maps.DeleteFunc(e.ops, func(_ string, op *operation) bool { return op.status != "InProgress" })
	}
	g.op = &operation{id: e.nextID(), group: g.id(), began: time.Now(), status: "InProgress"}
	e.ops[g.op.id] = g.op
	e.begin(g, e.live)
}

// begin starts what a group does by itself, until the group's end function is called.
func (e *Emulator) begin(g *group, life func(context.Context, *group)) {
	ctx, cancel := context.WithCancel(e.ctx)
	g.end, g.done, g.lives = cancel, make(chan struct{}), true
	done := g.done
	e.lives.Go(func() {
		defer close(done)
		defer cancel()
		life(ctx, g)
	})
	e.changed(g)
}

// change changes a group under the mutex and records that. It does nothing if the life of the group
// has ended.
func (e *Emulator) change(ctx context.Context, g *group, f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	f()
	e.changed(g)
	return true
}

func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// live is the life of a deployed group.
func (e *Emulator) live(ctx context.Context, g *group) {
	t := e.Settings().Timing
	e.mu.Lock()
	boxes := g.boxes
	stuck, isStuck := g.fault("stuck_pending")
	late, isLate := g.fault("provision_failed")
	e.mu.Unlock()
	if isStuck && !pause(ctx, orEver(stuck.Delay)) || !pause(ctx, t.Accept) {
		return
	}
	if isLate { // it may start later all the same
		p := problem{Code: cmp.Or(late.Code, "ServiceUnavailable"),
			Message: cmp.Or(late.Message,
				fmt.Sprintf("The requested resource is not available in the location '%s' at this moment. Please "+
					"retry with a different resource request or in another location.", g.location()))}
		e.change(ctx, g, func() { e.provisioningFailed(g, p) })
		if !pause(ctx, orEver(late.Delay)) {
			return
		}
	} else if !e.change(ctx, g, func() { g.provisioning = "Creating" }) {
		return
	}
	timer := time.AfterFunc(t.Provisioning, func() {
		e.change(ctx, g, func() {
			if g.provisioning == "Creating" {
				e.provisioningFailed(g, problem{Code: "ContainerGroupDeploymentTimeout",
					Message: "The container group provisioning has timed out."})
			}
		})
	})
	defer timer.Stop()
	for _, b := range boxes {
		if !e.pull(ctx, g, b) {
			return
		}
	}
	if !pause(ctx, t.Start) {
		return
	}
	for _, b := range boxes {
		if b.init && !e.run(ctx, g, b, nil) {
			return
		}
	}
	e.runAll(ctx, g, boxes)
}

// runAll runs the containers of a group until all have ended.
func (e *Emulator) runAll(ctx context.Context, g *group, boxes []*box) {
	ended := make(chan struct{}, len(boxes))
	n := 0
	for _, b := range boxes {
		if b.init {
			continue
		}
		n++
		go func() {
			e.run(ctx, g, b, func() {
				for _, other := range boxes {
					if !other.init && other.current == nil {
						return
					}
				}
				g.state, g.provisioning, g.op.status = "Running", "Succeeded", "Succeeded"
			})
			ended <- struct{}{}
		}()
	}
	for range n {
		<-ended
	}
	e.change(ctx, g, func() {
		g.lives = false
		g.state = "Succeeded"
		for _, b := range boxes {
			if !b.init && val(b.current.ExitCode) != 0 {
				g.state = "Failed"
			}
		}
	})
}

func orEver(d time.Duration) time.Duration {
	if d == 0 {
		return 1 << 62
	}
	return d
}

func (e *Emulator) provisioningFailed(g *group, p problem) {
	g.provisioning, g.op.status, g.op.failure = "Failed", "Failed", &p
	event(&g.events, p.Code, "Warning", p.Message)
}

// pull tries to pull an image until it is there.
func (e *Emulator) pull(ctx context.Context, g *group, b *box) bool {
	image, t := val(b.asked.Image), e.Settings().Timing
	if !e.change(ctx, g, func() {
		b.current = &arm.ContainerState{State: to.Ptr("Waiting"), DetailStatus: to.Ptr("")}
	}) {
		return false
	}
	for first := true; ; first = false {
		e.change(ctx, g, func() { event(&b.events, "Pulling", "Normal", fmt.Sprintf("pulling image %q", image)) })
		var err error
		if f, ok := g.fault("image_pull"); ok && (f.Delay == 0 || time.Since(g.at) < f.Delay) {
			err = fmt.Errorf("%w: %s", ErrNoImage, cmp.Or(f.Message, "manifest unknown"))
		} else {
			err = e.o.Backend.Pull(ctx, image, g.login(image))
		}
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			ok := pause(ctx, t.Pull) && e.change(ctx, g, func() {
				event(&b.events, "Pulled", "Normal", fmt.Sprintf("Successfully pulled image %q", image))
				b.current = nil // it counts as started when it has a state again
			})
			return ok
		}
		e.change(ctx, g, func() {
			event(&b.events, "Failed", "Warning", fmt.Sprintf("Failed to pull image %q: %v", image, err))
			if !first {
				event(&b.events, "BackOff", "Normal", fmt.Sprintf("Back-off pulling image %q", image))
			}
		})
		if !pause(ctx, t.Backoff) {
			return false
		}
	}
}

func (g *group) login(image string) *Login {
	for _, c := range g.asked.Properties.ImageRegistryCredentials {
		if c.Password != nil && strings.HasPrefix(image, val(c.Server)+"/") {
			return &Login{val(c.Server), val(c.Username), val(c.Password)}
		}
	}
	return nil
}

// run runs a container until it has ended and is not started again. It returns false if the life of
// the group has ended. started is called under the mutex when the container runs.
func (e *Emulator) run(ctx context.Context, g *group, b *box, started func()) bool {
	t := e.Settings().Timing
	c := b.c // a container that an earlier emulator started
	for {
		if c == nil {
			spec, err := e.spec(ctx, g, b)
			if err == nil {
				c, err = e.o.Backend.Start(context.WithoutCancel(ctx), spec)
			}
			if err != nil {
				e.change(ctx, g, func() {
					event(&b.events, "Failed", "Warning",
						fmt.Sprintf("Error: Failed to start container %s, Error response: to create containerd task: "+
							"%v", b.name, err))
					if b.current != nil {
						b.restarts++
					}
					b.current = &arm.ContainerState{State: to.Ptr("Waiting"),
						DetailStatus: to.Ptr("CrashLoopBackOff: Back-off restarting failed")}
				})
				if !pause(ctx, t.Backoff) {
					return false
				}
				continue
			}
			now := time.Now().UTC()
			alive := e.change(ctx, g, func() {
				b.c = c
				event(&b.events, "Started", "Normal", "Started container")
				b.current = &arm.ContainerState{State: to.Ptr("Running"), StartTime: &now, DetailStatus: to.Ptr("")}
				if started != nil {
					started()
				}
			})
			if !alive { // stopped in the meantime
				_ = c.Remove(context.WithoutCancel(ctx))
				return false
			}
		}
		exit, err := c.Wait(ctx)
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			exit = Exit{Code: 255, Started: time.Now(), Finished: time.Now()}
			e.o.Log.Warn("a container was lost", "group", g.name, "container", b.name, "err", err)
		}
		again := false
		var wait time.Duration
		alive := e.change(ctx, g, func() {
			code := int32(exit.Code)
			if b.moved != nil {
				code = b.moved.code
			}
			detail := map[bool]string{true: "Completed", false: "Error"}[code == 0]
			if (exit.OOM || b.oom) && e.settings.Switches.DetailOOM {
				detail = "OOMKilled"
			}
			b.oom = false
			start, finish := val(b.current.StartTime), exit.Finished.UTC()
			if finish.Before(start) {
				finish = start
			}
			ended := &arm.ContainerState{State: to.Ptr("Terminated"), StartTime: &start, FinishTime: &finish,
				ExitCode: &code, DetailStatus: &detail}
			again, wait = e.startsAgain(g, b, code)
			if !again {
				b.current = ended
				return
			}
			b.restarts++
			b.previous = ended
			b.current = &arm.ContainerState{State: to.Ptr("Waiting"), DetailStatus: to.Ptr("")}
			if b.moved != nil {
				event(&b.events, "Killing", "Normal", "Killing container with id "+b.name)
				g.provisioning = "Repairing"
				if e.settings.Switches.ForgetRestarts {
					b.restarts, b.previous = 0, nil
				}
				if e.settings.Switches.SkipPrevious {
					b.previous = nil
				}
			}
			c, b.moved = nil, nil // its log can be read until the next one starts
		})
		if !alive {
			return false
		}
		if !again {
			return true
		}
		if !pause(ctx, wait) {
			return false
		}
	}
}

// startsAgain reports whether a container that ended is started again, and after what time. The
// mutex is held.
func (e *Emulator) startsAgain(g *group, b *box, code int32) (bool, time.Duration) {
	if b.moved != nil {
		return true, b.moved.wait
	}
	if b.init {
		return false, 0
	}
	policy := arm.ContainerGroupRestartPolicyAlways
	if p := g.asked.Properties.RestartPolicy; p != nil {
		policy = *p
	}
	switch {
	case policy == arm.ContainerGroupRestartPolicyAlways, policy == arm.ContainerGroupRestartPolicyOnFailure &&
		code != 0:
		return true, e.settings.Timing.Backoff
	case code != 0 && b.again == 0 && (e.settings.Switches.RestartOnFailure || g.has("restart_on_failure")):
		b.again++
		return true, e.settings.Timing.Backoff
	}
	return false, 0
}

func (g *group) has(action string) bool {
	_, ok := g.fault(action)
	return ok
}

var notInName = regexp.MustCompile(`[^a-zA-Z0-9_.-]`)

func (e *Emulator) boxKey(g *group, name string) string {
	return notInName.ReplaceAllString(strings.ToLower("aci-"+g.sub[:min(8, len(g.sub))]+"-"+g.rg+"-"+g.name+"-"+name),
		"-")
}

// spec returns the description of a container for the backend.
func (e *Emulator) spec(ctx context.Context, g *group, b *box) (Spec, error) {
	s := Spec{Key: e.boxKey(g, b.name), Image: val(b.asked.Image)}
	for _, c := range b.asked.Command {
		s.Command = append(s.Command, val(c))
	}
	for _, v := range b.asked.EnvironmentVariables {
		value := val(v.Value)
		if v.SecureValue != nil {
			value = *v.SecureValue
		}
		s.Env = append(s.Env, val(v.Name)+"="+value)
	}
	if r := b.asked.Resources; r != nil {
		s.CPU, s.MemoryGB = val(r.Requests.CPU), val(r.Requests.MemoryInGB)
		if r.Limits != nil {
			s.CPU, s.MemoryGB = max(s.CPU, val(r.Limits.CPU)), max(s.MemoryGB, val(r.Limits.MemoryInGB))
		}
	}
	if first := g.boxes[slices.IndexFunc(g.boxes, func(b *box) bool { return !b.init })]; !b.init && first != b {
		s.With = e.boxKey(g, first.name)
	}
	for _, m := range b.asked.VolumeMounts {
		i := slices.IndexFunc(g.asked.Properties.Volumes, func(v *arm.Volume) bool {
			return val(v.Name) == val(m.Name)
		})
		if i < 0 {
			return s, fmt.Errorf("volume %s is not one of the group's", val(m.Name))
		}
		folder, err := e.volume(ctx, g, g.asked.Properties.Volumes[i])
		if err != nil {
			return s, err
		}
		s.Mounts = append(s.Mounts, Mount{Source: folder, Target: val(m.MountPath), ReadOnly: val(m.ReadOnly)})
	}
	return s, nil
}

// volume makes the folder of a volume.
func (e *Emulator) volume(ctx context.Context, g *group, v *arm.Volume) (string, error) {
	folder := filepath.Join(e.o.State, "volumes", e.boxKey(g, val(v.Name)))
	if f := v.AzureFile; f != nil {
		if e.o.Files == "" {
			return "", fmt.Errorf("share %s of storage account %s: the emulator was given no folder for file shares",
				val(f.ShareName), val(f.StorageAccountName))
		}
		folder = filepath.Join(e.o.Files, filepath.Base(val(f.StorageAccountName)), filepath.Base(val(f.ShareName)))
		folder, err := filepath.EvalSymlinks(folder)
		if err != nil {
			return "", fmt.Errorf("share %s of storage account %s cannot be mounted: %w", val(f.ShareName),
				val(f.StorageAccountName), err)
		}
		return folder, nil
	}
	if err := os.MkdirAll(folder, 0o777); err != nil { //nolint:gosec // any user of the container may write
		return "", err
	}
	for name, text := range v.Secret {
		value, err := base64.StdEncoding.DecodeString(val(text))
		if err != nil {
			return "", fmt.Errorf("secret volume %s: file %s: %w", val(v.Name), name, err)
		}
		err = os.WriteFile(filepath.Join(folder, filepath.Base(name)), value, 0o444) //nolint:gosec // as above
		if err != nil {
			return "", err
		}
	}
	if v.GitRepo != nil {
		return folder, clone(ctx, folder, v.GitRepo)
	}
	return folder, nil
}

// clone clones a repository into a volume, unless it is already there: into the requested folder,
// or else into one with the name of the repository.
func clone(ctx context.Context, folder string, r *arm.GitRepoVolume) error {
	name := strings.TrimSuffix(path.Base(strings.TrimRight(val(r.Repository), "/")), ".git")
	into := filepath.Join(folder, cmp.Or(val(r.Directory), name))
	if _, err := os.Stat(filepath.Join(into, ".git")); err == nil {
		return nil
	}
	git := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "git", args...) //nolint:gosec // the caller may run containers here anyway
		cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, bytes.TrimSpace(out))
		}
		return nil
	}
	fresh := folder + ".clone"
	defer func() { _ = os.RemoveAll(fresh) }() // of a clone that failed; it is tried again
	err := errors.Join(os.RemoveAll(fresh), git("clone", "-q", "--", val(r.Repository), fresh))
	if err == nil && val(r.Revision) != "" {
		err = git("-C", fresh, "checkout", "-q", "--detach", val(r.Revision), "--")
	}
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(into), 0o777), os.Rename(fresh, into)) //nolint:gosec // as in volume
}

// halt ends the life of a group and stops its containers, in the background. When all have ended,
// it calls then under the mutex. The caller holds the mutex.
func (e *Emulator) halt(g *group, grace time.Duration, then func()) {
	g.end()
	done := g.done
	boxes := slices.Clone(g.boxes)
	e.lives.Go(func() {
		<-done
		ctx := context.WithoutCancel(e.ctx)
		var stopping sync.WaitGroup
		e.mu.Lock() // another halt of the group may drop the containers in the meantime
		for _, b := range boxes {
			if c := b.c; c != nil {
				stopping.Go(func() {
					if err := c.Stop(ctx, grace); err != nil {
						e.o.Log.Warn("a container was not stopped", "group", g.name, "container", b.name, "err", err)
					}
				})
			}
		}
		e.mu.Unlock()
		stopping.Wait()
		e.mu.Lock()
		defer e.mu.Unlock()
		then()
		e.changed(g)
	})
}

// drop removes the containers of a group and its files on disk.
func (e *Emulator) drop(g *group) {
	for _, b := range g.boxes {
		if b.c != nil {
			if err := b.c.Remove(context.WithoutCancel(e.ctx)); err != nil {
				e.o.Log.Warn("a container was not removed", "group", g.name, "container", b.name, "err", err)
			}
		}
		b.c = nil
	}
	for _, v := range g.asked.Properties.Volumes {
		if v.AzureFile == nil {
			// Files that remain are made again.
			_ = os.RemoveAll(filepath.Join(e.o.State, "volumes", e.boxKey(g, val(v.Name))))
		}
	}
}

// view returns a group as a GET shows it: without secrets, and with the instance view only if
// whole.
func (e *Emulator) view(g *group, whole bool) *arm.ContainerGroup {
	p := *g.asked.Properties
	out := &arm.ContainerGroup{
		ID: to.Ptr(g.id()), Name: to.Ptr(g.name), Type: to.Ptr("Microsoft.ContainerInstance/containerGroups"),
		Location: to.Ptr(g.location()), Tags: g.asked.Tags,
		Zones: g.asked.Zones, Identity: identity(g.asked.Identity), Properties: &p,
	}
	p.ProvisioningState = to.Ptr(g.provisioning)
	if p.SKU == nil {
		p.SKU = to.Ptr(arm.ContainerGroupSKUStandard)
	}
	if p.RestartPolicy == nil {
		p.RestartPolicy = to.Ptr(arm.ContainerGroupRestartPolicyAlways)
	}
	p.ImageRegistryCredentials = nil
	for _, c := range g.asked.Properties.ImageRegistryCredentials {
		c := *c
		c.Password = nil
		p.ImageRegistryCredentials = append(p.ImageRegistryCredentials, &c)
	}
	p.Volumes = nil
	for _, v := range g.asked.Properties.Volumes {
		v := *v
		if v.Secret != nil {
			v.Secret = map[string]*string{}
		}
		if v.AzureFile != nil {
			f := *v.AzureFile
			f.StorageAccountKey = nil
			v.AzureFile = &f
		}
		p.Volumes = append(p.Volumes, &v)
	}
	if d := p.Diagnostics; d != nil && d.LogAnalytics != nil {
		l := *d.LogAnalytics
		l.WorkspaceKey = nil
		p.Diagnostics = &arm.ContainerGroupDiagnostics{LogAnalytics: &l}
	}
	p.InitContainers = []*arm.InitContainerDefinition{}
	for _, c := range g.asked.Properties.InitContainers {
		props := *c.Properties
		props.EnvironmentVariables = plainEnv(props.EnvironmentVariables)
		p.InitContainers = append(p.InitContainers, &arm.InitContainerDefinition{Name: c.Name, Properties: &props})
	}
	p.Containers = nil
	for _, c := range g.asked.Properties.Containers {
		props := *c.Properties
		props.EnvironmentVariables = plainEnv(props.EnvironmentVariables)
		if props.Ports == nil {
			props.Ports = []*arm.ContainerPort{}
		}
		i := slices.IndexFunc(g.boxes, func(b *box) bool { return !b.init && b.name == val(c.Name) })
		if b := g.boxes[i]; whole && (b.current != nil || len(b.events) > 0) {
			props.InstanceView = &arm.ContainerPropertiesInstanceView{RestartCount: to.Ptr(b.restarts),
				CurrentState: state(b.current), PreviousState: state(b.previous), Events: slices.Clone(b.events)}
			for i, ev := range props.InstanceView.Events {
				ev := *ev
				ev.Count = to.Ptr(val(ev.Count))
				props.InstanceView.Events[i] = &ev
			}
		}
		p.Containers = append(p.Containers, &arm.Container{Name: c.Name, Properties: &props})
	}
	if whole {
		p.InstanceView = &arm.ContainerGroupPropertiesInstanceView{State: to.Ptr(g.state),
			Events: slices.Clone(g.events)}
		if p.InstanceView.Events == nil {
			p.InstanceView.Events = []*arm.Event{}
		}
	}
	return out
}

func state(s *arm.ContainerState) *arm.ContainerState {
	if s == nil {
		return nil
	}
	c := *s
	return &c
}

func plainEnv(vars []*arm.EnvironmentVariable) []*arm.EnvironmentVariable {
	out := []*arm.EnvironmentVariable{}
	for _, v := range vars {
		if v.SecureValue != nil {
			v = &arm.EnvironmentVariable{Name: v.Name}
		}
		out = append(out, v)
	}
	return out
}

// identity returns an identity with invented principals.
func identity(i *arm.ContainerGroupIdentity) *arm.ContainerGroupIdentity {
	if i == nil {
		return nil
	}
	out := *i
	if i.Type != nil && strings.Contains(string(*i.Type), "System") {
		out.PrincipalID, out.TenantID = to.Ptr("00000000-0000-0000-0000-0000000000aa"),
			to.Ptr("00000000-0000-0000-0000-0000000000bb")
	}
	out.UserAssignedIdentities = nil
	for id := range i.UserAssignedIdentities {
		if out.UserAssignedIdentities == nil {
			out.UserAssignedIdentities = map[string]*arm.UserAssignedIdentities{}
		}
		out.UserAssignedIdentities[id] = &arm.UserAssignedIdentities{
			ClientID:    to.Ptr("00000000-0000-0000-0000-0000000000cc"),
			PrincipalID: to.Ptr("00000000-0000-0000-0000-0000000000dd")}
	}
	return &out
}
