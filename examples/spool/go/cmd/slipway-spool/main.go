// The launcher as a plug-in: a separate program, which Slipway starts.
package main

import (
	spool "example.com/slipway-spool"
	"github.com/slipway-run/slipway/launcher/plugin"
)

func main() { plugin.Serve(spool.Kind()) }
