package worker

import (
	"encoding/json"
	"fmt"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// A Layer holds the settings of a worker from one source. Later layers override earlier ones.
type Layer struct {
	Source string // in words, for example: code location etl, routes[0].set, tag slipway/memory
	Set    router.Set
}

// Layers returns the settings of a run's worker, which override the launcher's own settings. An
// error is [launcher.ErrInvalid]: a tag requests something that the launcher does not allow.
func (b *Builder) Layers(r dagster.Run, t Target) ([]Layer, error) {
	layers := []Layer{
		{"launchers." + t.Name, router.Set{Grace: t.Grace}},
		{"code location " + r.Remote.Location, router.Set{Image: r.Code.Image}},
	}
	raw := func(source, settings string) { // an image in raw settings has the rank of their source
		if o, err := dagster.ParseObject(settings); err == nil {
			var image string
			if json.Unmarshal(o["image"], &image) == nil && image != "" {
				layers = append(layers, Layer{source, router.Set{Image: image}})
			}
		}
	}
	if o, err := dagster.ParseObject(string(r.Code.Context)); err == nil && t.Context != "" {
		raw("container_context."+t.Context, string(o[t.Context]))
	}
	if b.Router != nil {
		if d := b.Router.Route(r); d.Index >= 0 {
			layers = append(layers, Layer{d.Rule, d.Set})
			raw(d.Rule, string(d.Set.Config))
		}
	}
	needs, err := router.Resources(r)
	if err != nil {
		return nil, err
	}
	for _, n := range []struct {
		tag       string
		asks, max int64
		set       launcher.Resources
		setting   string
	}{
		{router.CPUTag, needs.CPUMillis, t.Allow.Max.CPUMillis, launcher.Resources{CPUMillis: needs.CPUMillis},
			"max_cpu"},
		{router.MemoryTag, needs.MemoryBytes, t.Allow.Max.MemoryBytes,
			launcher.Resources{MemoryBytes: needs.MemoryBytes}, "max_memory"},
		{router.GPUTag, needs.GPUs, t.Allow.Max.GPUs, launcher.Resources{GPUs: needs.GPUs}, "max_gpu"},
		{router.DiskTag, needs.DiskBytes, t.Allow.Max.DiskBytes, launcher.Resources{DiskBytes: needs.DiskBytes},
			"max_disk"},
	} {
		if n.asks == 0 {
			continue
		}
		if n.max > 0 && n.asks > n.max {
			return nil,
				fmt.Errorf("%w: tag %s=%s of run %s is more than launchers.%s.allow.%s in slipway.yaml allows: raise "+
					"that limit, or launch the run with a smaller amount", launcher.ErrInvalid, n.tag, r.Tags[n.tag],
					r.ID, t.Name, n.setting)
		}
		layers = append(layers, Layer{"tag " + n.tag, router.Set{Resources: n.set}})
	}
	if image, ok := r.Tags[router.ImageTag]; ok {
		if !router.Fits(image, t.Allow.Images) {
			return nil,
				fmt.Errorf("%w: tag %s=%q of run %s is not among launchers.%s.allow.images in slipway.yaml: add it "+
					"there, or launch the run without the tag", launcher.ErrInvalid, router.ImageTag, image, r.ID,
					t.Name)
		}
		layers = append(layers, Layer{"tag " + router.ImageTag, router.Set{Image: image}})
	}
	for _, tag := range t.Tags {
		raw("tag "+tag, r.Tags[tag])
	}
	for _, tag := range t.Denied {
		if _, ok := r.Tags[tag]; ok {
			return nil,
				fmt.Errorf("%w: tag %s of run %s is not among launchers.%s.allow.tags in slipway.yaml: add it there, "+
					"or launch the run without it", launcher.ErrInvalid, tag, r.ID, t.Name)
		}
	}
	return layers, nil
}

// apply applies a layer to a request.
func (l Layer) apply(req *launcher.Request) {
	s := l.Set
	if s.Image != "" {
		req.Image = s.Image
	}
	if s.Grace > 0 {
		req.Grace = s.Grace
	}
	for _, n := range []struct{ to, from *int64 }{
		{&req.Resources.CPUMillis, &s.Resources.CPUMillis}, {&req.Resources.MemoryBytes, &s.Resources.MemoryBytes},
		{&req.Resources.GPUs, &s.Resources.GPUs}, {&req.Resources.DiskBytes, &s.Resources.DiskBytes},
	} {
		if *n.from != 0 {
			*n.to = *n.from
		}
	}
	req.Env = append(req.Env, s.Env...)
	if s.Nodes != nil {
		req.Nodes = s.Nodes
	}
	for k, v := range s.Labels {
		if _, ours := req.Labels[k]; !ours { // the labels that identify the worker cannot be overridden
			req.Labels[k] = v
		}
	}
}
