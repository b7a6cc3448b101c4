package worker

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// Tags of a run that say what its worker needs.
const (
	CPUTag    = "slipway/cpu"    // cores, as 2, 0.5 or 500m
	MemoryTag = "slipway/memory" // bytes, as 512Mi, 2Gi or 2G
	GPUTag    = "slipway/gpu"    // a whole number
)

// resources reads the tags of a run about its needs.
func resources(r dagster.Run) (launcher.Resources, error) {
	var res launcher.Resources
	for tag, read := range map[string]func(string) error{
		CPUTag:    func(s string) (err error) { res.CPUMillis, err = config.ParseMillis(s); return err },
		MemoryTag: func(s string) (err error) { res.MemoryBytes, err = config.ParseBytes(s); return err },
		GPUTag:    func(s string) (err error) { res.GPUs, err = strconv.ParseInt(s, 10, 32); return err },
	} {
		text, ok := r.Tags[tag]
		if !ok {
			continue
		}
		if err := read(strings.TrimSpace(text)); err != nil || res.CPUMillis < 0 || res.MemoryBytes < 0 || res.GPUs < 0 {
			return res, fmt.Errorf("%w: tag %s=%q of run %s: expected is an amount such as %s", launcher.ErrInvalid, tag, text, r.ID, map[string]string{CPUTag: "2 or 500m", MemoryTag: "512Mi or 2G", GPUTag: "1"}[tag])
		}
	}
	return res, nil
}
