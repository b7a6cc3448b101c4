// A Slipway that has the launcher built in, beside its own.
package main

import (
	"os"

	spool "example.com/slipway-spool"
	"github.com/slipway-run/slipway/cli"
	"github.com/slipway-run/slipway/launcher/all"
)

func main() { os.Exit(cli.Main(append(all.Kinds(), spool.Kind())...)) }
