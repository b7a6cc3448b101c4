// Package all lists the launchers that come with Slipway.
package all

import (
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/launcher/codeserver"
	"github.com/slipway-run/slipway/launcher/command"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/launcher/k8s"
	"github.com/slipway-run/slipway/launcher/plugin"
	"github.com/slipway-run/slipway/launcher/process"
	"github.com/slipway-run/slipway/launcher/python"
)

// Kinds returns all kinds of launchers. agent is the command of the process launcher's supervisor;
// without it, this program itself is the supervisor.
func Kinds(agent ...string) []*launcher.Kind {
	return []*launcher.Kind{process.Kind(agent...), codeserver.Kind(), docker.Kind(), k8s.Kind(), aci.Kind(),
		command.Kind(), plugin.Kind(), python.Kind()}
}
