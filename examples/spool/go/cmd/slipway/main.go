// Slipway with this launcher built in, in addition to its own launchers.
package main

import (
	"os"

	spool "example.com/slipway-spool"
	"github.com/slipway-run/slipway/cli"
	"github.com/slipway-run/slipway/launcher/all"
)

func main() { os.Exit(cli.Main(append(all.Kinds(), spool.Kind())...)) }
