//go:build !windows

// Slipway with only the launchers that chaos uses: process, docker, and two with moods. It is built
// again for each chaos, with all its packages, so clients of clouds would make that slow.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/slipway-run/slipway/cli"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/launcher/process"
)

func main() {
	cli.Child()
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway:", err)
		os.Exit(1)
	}
	kind := process.Kind(filepath.Join(filepath.Dir(self), "slipway-agent"))
	os.Exit(cli.Main(kind, docker.Kind(), moodyKind(kind, "moody", true), moodyKind(kind, "blunt", false)))
}
