package router

import (
	"errors"
	"fmt"
	"strings"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// Tags with which a run requests resources and an image for its worker.
const (
	CPUTag    = "slipway/cpu"    // cores, for example 2, 0.5 or 500m
	MemoryTag = "slipway/memory" // bytes, for example 512Mi, 2Gi or 2G
	GPUTag    = "slipway/gpu"    // an integer
	DiskTag   = "slipway/disk"   // bytes, in the form of memory
	ImageTag  = "slipway/image"  // only if the launcher allows it
)

// Resources parses the tags with which a run requests resources. Its error is
// [launcher.ErrInvalid]; the amounts that could be parsed are returned even then.
func Resources(r dagster.Run) (launcher.Resources, error) {
	var res launcher.Resources
	var errs []error
	for _, n := range []struct {
		tag, example string
		to           *int64
		parse        func(string) (int64, error)
	}{
		{CPUTag, "2 or 500m", &res.CPUMillis, config.ParseMillis},
		{MemoryTag, "512Mi or 2G", &res.MemoryBytes, config.ParseBytes},
		{GPUTag, "1", &res.GPUs, whole}, {DiskTag, "20Gi", &res.DiskBytes, config.ParseBytes},
	} {
		text, ok := r.Tags[n.tag]
		if !ok {
			continue
		}
		v, err := n.parse(strings.TrimSpace(text))
		if err != nil || v < 0 {
			errs = append(errs, fmt.Errorf("%w: tag %s=%q of run %s is not an amount (for example: %s)",
				launcher.ErrInvalid, n.tag, text, r.ID, n.example))
			continue
		}
		*n.to = v
	}
	return res, errors.Join(errs...)
}
