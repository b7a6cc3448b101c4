//go:build !windows

// Slipway launches Dagster runs anywhere.
package main

import (
	"fmt"
	"os"

	"github.com/slipway-run/slipway/cli"
	"github.com/slipway-run/slipway/launcher/all"
)

func main() {
	cli.Child() // before any costly work
	supervisor, err := agentCommand()
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway:", err)
		os.Exit(1)
	}
	os.Exit(cli.Main(all.Kinds(supervisor...)...))
}
