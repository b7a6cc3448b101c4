//go:build !windows

// Slipway-worker executes command jobs: a run worker without Python, a static binary that fits an empty image.
package main

import (
	"os"

	"github.com/slipway-run/slipway/internal/execute"
)

func main() { os.Exit(execute.Main(os.Args[1:])) }
