// Slipway-agent supervises one worker process of the process launcher. It is started by slipway.
package main

import (
	"os"

	"github.com/slipway-run/slipway/internal/agent"
)

func main() { os.Exit(agent.Main(os.Args[1:])) }
