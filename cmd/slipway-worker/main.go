//go:build !windows

// Slipway-worker executes command jobs. It is a run worker without Python: a static binary that
// needs nothing else in its image.
package main

import (
	"os"

	"github.com/slipway-run/slipway/internal/execute"
)

func main() { os.Exit(execute.Main(os.Args[1:])) }
