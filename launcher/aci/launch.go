package aci

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

// launching coalesces concurrent launches of the same worker in this process, because looking and
// writing are two calls.
var launching singleflight.Group

// Launch implements [launcher.Launcher]. It looks for the group in every place where it may be, and
// writes it only if it does not exist. If the answer was lost, it looks again. It tries the places
// one after the other.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	cs, err := l.candidates(req)
	if err != nil {
		return launcher.Launched{}, err
	}
	got, err, _ := launching.Do(l.c.SubscriptionID+"/"+l.c.ResourceGroup+"/"+cs[0].name, func() (any, error) {
		return l.launch(ctx, req, cs)
	})
	if err != nil {
		return launcher.Launched{}, err
	}
	return got.(launcher.Launched), nil //nolint:errcheck,forcetypeassert // the result of launch
}

// Find implements [launcher.Finder].
func (l *Launcher) Find(ctx context.Context, req *launcher.Request) (launcher.Launched, bool, error) {
	cs, err := l.candidates(req)
	if err != nil {
		return launcher.Launched{}, false, err
	}
	return l.find(ctx, req, cs)
}

// find looks for the group of a request.
func (l *Launcher) find(ctx context.Context, req *launcher.Request, cs []candidate) (launcher.Launched, bool, error) {
	for _, c := range cs {
		g, err := l.api.get(ctx, c.name)
		if errors.Is(err, launcher.ErrNotFound) {
			continue
		}
		if err != nil {
			return launcher.Launched{}, false, transient(err)
		}
		if val(g.Tags[instanceTag]) != req.Instance || val(g.Tags[runTag]) != req.ID.Run {
			return launcher.Launched{}, false,
				fmt.Errorf("%w: there is a container group %s that is not of this instance; it is left alone",
					launcher.ErrInvalid, c.name)
		}
		l.workers.found(c.name, g, time.Now())
		return l.launched(c), true, nil
	}
	return launcher.Launched{}, false, nil
}

// transient turns an error of a look into one that tells nothing about the worker: a look that
// Azure finds invalid is a fault of the launcher, not of the run.
func transient(err error) error {
	if errors.Is(err, launcher.ErrInvalid) || errors.Is(err, launcher.ErrCapacity) {
		return fmt.Errorf("%w: %w", launcher.ErrTransient, errors.New(err.Error()))
	}
	return err
}

func (l *Launcher) launched(c candidate) launcher.Launched {
	return launcher.Launched{
		Handle: launcher.Handle(c.name),
		Tags:   map[string]string{"azure/container_group": c.name, "azure/location": c.String()},
		Notes: []launcher.Note{{
			Text: fmt.Sprintf("[AzureContainerInstanceRunLauncher] Launching run in container group %s in %s",
				c.name, c),
			Metadata: [][2]string{{"Resource group", l.c.ResourceGroup},
				{"Image", val(c.group.Properties.Containers[0].Properties.Image)}},
		}},
	}
}

func (l *Launcher) launch(ctx context.Context, req *launcher.Request, cs []candidate) (any, error) {
	got, ok, err := l.find(ctx, req, cs)
	if err != nil || ok {
		return got, err
	}
	if l.workers.ended(cs) { // this process removed the worker; a read may be older
		return nil, fmt.Errorf("%w: container group %s has ended and was removed", launcher.ErrInvalid, cs[0].name)
	}
	var full []string
	var wait time.Duration
	var last error
	later := func(c candidate, err error) {
		after, _ := launcher.RetryAfter(err)
		if full = append(full, c.String()); wait == 0 || after < wait {
			wait = after
		}
		last = err
	}
	for _, c := range cs {
		if err := l.regions.room(ctx, l, c); err != nil {
			later(c, err)
			continue
		}
		failpoint.Here(failpoint.ACIPut)
		switch err := l.put(ctx, req, c); {
		case err == nil:
			l.regions.took(c)
			l.workers.put(c.name, time.Now())
			return l.launched(c), nil
		case errors.Is(err, launcher.ErrCapacity):
			l.regions.refused(c, err)
			later(c, err)
		default:
			return nil, err
		}
	}
	if len(full) > 1 {
		last = fmt.Errorf("%w (nor in %s)", last, strings.Join(full[:len(full)-1], ", "))
	}
	return nil, launcher.WithRetryAfter(last, wait)
}

// looks is when to look for a group after a PUT without an answer.
var looks = []time.Duration{0, 300 * time.Millisecond, 700 * time.Millisecond, 2 * time.Second}

// put writes a group that does not exist.
func (l *Launcher) put(ctx context.Context, req *launcher.Request, c candidate) error {
	err := l.api.put(ctx, c.name, c.group)
	switch {
	case errors.Is(err, errUnclear), errors.Is(err, errBusy):
		for _, after := range looks {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w: azure: %w", launcher.ErrTransient, ctx.Err())
			case <-time.After(after):
			}
			if _, ok, err := l.find(ctx, req, []candidate{c}); ok || errors.Is(err, launcher.ErrInvalid) {
				return err
			}
		}
	case errors.Is(err, errImage), errors.Is(err, errRegistry): // the registry may fail for a moment
		first, again := l.images.LoadOrStore(c.name, time.Now())
		since := time.Since(first.(time.Time)) //nolint:errcheck,forcetypeassert // the stored type
		if !again || errors.Is(err, errRegistry) && since < l.c.PullPatience {
			return launcher.Pending(imagePause,
				launcher.Note{Text: fmt.Sprintf(
					"[AzureContainerInstanceRunLauncher] Azure cannot reach image %s, and is asked again: %v",
					val(c.group.Properties.Containers[0].Properties.Image), err)})
		}
		err = fmt.Errorf("%w: %w", launcher.ErrInvalid, err)
	}
	l.images.Delete(c.name)
	return err
}

// imagePause is the pause between two tries with an image that Azure could not reach.
const imagePause = 5 * time.Second

// quotaAge is the maximum age of cached quotas of a location.
const quotaAge = 15 * time.Second

// room returns nil if a location may accept a group, as far as is known, else a
// [launcher.ErrCapacity].
func (r *regions) room(ctx context.Context, l *Launcher, c candidate) error {
	r.mu.Lock()
	at := r.of(c.location)
	now := time.Now()
	cpu, memory := c.size()
	closed, why, stale := at.closedFor(cpu, memory, now), at.why, now.Sub(at.read) > quotaAge
	if stale {
		at.read = now // only this call reads it
	}
	r.mu.Unlock()
	if closed > 0 {
		return launcher.WithRetryAfter(fmt.Errorf("%w: %s", launcher.ErrCapacity, why), closed)
	}
	if stale {
		if err := r.read(ctx, l, c.location); err != nil {
			l.log.DebugContext(ctx, "aci: quotas are not known", "location", c.location, "err", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.groups < 0 {
		return nil
	}
	cores, name := at.cores, "StandardCores"
	if c.spot {
		cores, name = at.spot, "StandardSpotCores"
	}
	switch {
	case at.groups < 1:
		name = "ContainerGroups"
	case cores >= cpu:
		return nil
	}
	err := fmt.Errorf("%w: quota %s of %s is used up", launcher.ErrCapacity, name, c.location)
	return launcher.WithRetryAfter(launcher.WithCause(err, launcher.CauseQuota), quotaAge)
}

// read reads a location's quotas.
func (r *regions) read(ctx context.Context, l *Launcher, location string) error {
	all, err := l.api.usages(ctx, location)
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.of(location)
	if at.read = time.Now(); err != nil {
		at.groups = -1
		return err
	}
	for _, u := range all {
		if u.Name == nil {
			continue
		}
		left := val(u.Limit) - val(u.CurrentValue)
		switch val(u.Name.Value) {
		case "ContainerGroups":
			at.groups = int(max(0, left))
		case "StandardCores":
			at.cores = float64(left)
		case "StandardSpotCores":
			at.spot = float64(left)
		}
	}
	return nil
}

// took records that a group was accepted.
func (r *regions) took(c candidate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.of(c.location)
	if at.groups > 0 {
		at.groups--
	}
	cpu, _ := c.size()
	if c.spot {
		at.spot -= cpu
	} else {
		at.cores -= cpu
	}
}

// refused records that a location has no room. If a quota was used up, it is read again before the
// next launch there. If capacity was missing, groups of that size and larger ones avoid the
// location for a while. It may still have room for smaller groups.
func (r *regions) refused(c candidate, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.of(c.location)
	after, _ := launcher.RetryAfter(err)
	if launcher.CauseOf(err) == launcher.CauseQuota && after < fraudPause {
		at.read = time.Time{}
		return
	}
	cpu, memory := c.size()
	if after >= fraudPause {
		cpu, memory = 0, 0
	}
	now := time.Now()
	if now.Before(at.closed) {
		cpu, memory = min(cpu, at.cpu), min(memory, at.memory)
	}
	at.closed, at.cpu, at.memory, at.why = now.Add(after), cpu, memory,
		fmt.Sprintf("%s is left alone after: %v", c.location, err)
}

// closedFor returns how long groups of a size avoid the location; 0 if they need not.
func (at *region) closedFor(cpu, memory float64, now time.Time) time.Duration {
	if cpu < at.cpu || memory < at.memory {
		return 0
	}
	return max(0, at.closed.Sub(now))
}

// Free implements [launcher.Capacity].
func (l *Launcher) Free(ctx context.Context, r launcher.Resources) (int, bool, error) {
	want := l.base
	want.resize(r)
	total := 0
	for _, location := range l.base.Locations {
		if err := l.regions.read(ctx, l, location); err != nil {
			return 0, false, err
		}
		l.regions.mu.Lock()
		at := l.regions.of(location)
		groups, cores := at.groups, at.cores
		if l.base.Priority == "spot" {
			cores = at.spot
		}
		if l.base.Priority == "spot_then_regular" {
			cores += at.spot
		}
		if at.closedFor(want.CPU, want.Memory, time.Now()) > 0 {
			groups = 0
		}
		l.regions.mu.Unlock()
		total += max(0, min(groups, int(cores/want.CPU)))
	}
	return total, true, nil
}
