package router

import (
	"errors"
	"fmt"
	"strings"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// Tags of a run that say what its worker needs.
const (
	CPUTag    = "slipway/cpu"    // cores, as 2, 0.5 or 500m
	MemoryTag = "slipway/memory" // bytes, as 512Mi, 2Gi or 2G
	GPUTag    = "slipway/gpu"    // a whole number
	DiskTag   = "slipway/disk"   // bytes, as memory
	ImageTag  = "slipway/image"  // where the launcher allows it
)

// Resources reads the tags of a run about its needs. Its error is [launcher.ErrInvalid]; what could be read is given all the same.
func Resources(r dagster.Run) (launcher.Resources, error) {
	var res launcher.Resources
	var errs []error
	for _, n := range []struct {
		tag, example string
		to           *int64
		parse        func(string) (int64, error)
	}{
		{CPUTag, "2 or 500m", &res.CPUMillis, config.ParseMillis}, {MemoryTag, "512Mi or 2G", &res.MemoryBytes, config.ParseBytes},
		{GPUTag, "1", &res.GPUs, whole}, {DiskTag, "20Gi", &res.DiskBytes, config.ParseBytes},
	} {
		text, ok := r.Tags[n.tag]
		if !ok {
			continue
		}
		v, err := n.parse(strings.TrimSpace(text))
		if err != nil || v < 0 {
			errs = append(errs, fmt.Errorf("%w: tag %s=%q of run %s is not an amount (for example: %s)", launcher.ErrInvalid, n.tag, text, r.ID, n.example))
			continue
		}
		*n.to = v
	}
	return res, errors.Join(errs...)
}
