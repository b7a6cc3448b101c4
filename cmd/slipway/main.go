//go:build !windows

// Slipway launches Dagster runs anywhere.
package main

import (
	"fmt"
	"os"

	"github.com/slipway-run/slipway/agent"
	"github.com/slipway-run/slipway/cli"
	"github.com/slipway-run/slipway/launcher/all"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "agent" { // before anything that costs time
		os.Exit(agent.Main(os.Args[2:]))
	}
	if os.Getpid() == 1 { // in a container: orphans of workers become ours
		os.Exit(agent.Init(os.Args))
	}
	supervisor, err := agentCommand()
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway:", err)
		os.Exit(1)
	}
	os.Exit(cli.Main(all.Kinds(supervisor)...))
}
