package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseMillis parses an amount of processors, for example 2, 0.5 or 500m. It returns thousandths of
// a processor.
func ParseMillis(s string) (int64, error) {
	if m, ok := strings.CutSuffix(s, "m"); ok {
		return scaled(m, 1)
	}
	return scaled(s, 1000)
}

// ParseBytes parses an amount of memory as Kubernetes writes it: 512Mi, 2G, or a number of bytes.
func ParseBytes(s string) (int64, error) {
	for i, unit := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			return scaled(n, math.Pow(1024, float64(i+1)))
		}
	}
	for i, unit := range []string{"k", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			return scaled(n, math.Pow(1000, float64(i+1)))
		}
	}
	return scaled(s, 1)
}

func scaled(s string, by float64) (int64, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0,
			fmt.Errorf("%q is not an amount: write a number with or without a unit, such as 2 or 500m (processors), "+
				"512Mi or 2G (memory)", s)
	}
	if math.IsNaN(f) || f*by > math.MaxInt64/2 || f < 0 {
		return 0, fmt.Errorf("%s is negative or too large (for example: 2 or 512Mi)", s)
	}
	return int64(math.Ceil(f * by)), nil
}
