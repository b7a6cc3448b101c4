//go:build !windows

// Slipway with the two launchers that chaos uses. It is built anew for each chaos, all its packages included, which clients of clouds would make long.
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
