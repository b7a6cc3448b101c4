package instance

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// stockLauncher sets the launchers if slipway.yaml has none, from run_launcher in slipway.yaml or
// dagster.yaml:
//
//   - DefaultRunLauncher becomes processes on this machine and, for locations with their own code
//     server, that code server.
//   - A class that a kind replaces becomes that kind, with the same config.
//   - Any other class is hosted by the Python in run_launcher_python, if that is set.
func (in *Instance) stockLauncher(kinds []*launcher.Kind, file string, doc *yaml.Node, env config.Lookup) error {
	section := config.Values{File: in.file, Path: "run_launcher", Node: path(in.doc, "run_launcher"), Env: env,
		Literal: true}
	if own := in.Settings.RunLauncher; own.Node != nil {
		section = own
	}
	var stock classSection
	if section.Node != nil {
		if err := section.Decode(&stock); err != nil {
			return err
		}
	}
	module, class := stock.Module, stock.Class
	if section.Node == nil || class == "DefaultRunLauncher" {
		in.Settings.Launchers = map[string]launcherSection{"local": {Kind: "process", Grace: defaultGrace,
			Settle: defaultSettle}}
		if slices.ContainsFunc(kinds, func(k *launcher.Kind) bool { return k.Name == "codeserver" }) {
			in.Settings.Launchers["code-server"] = launcherSection{Kind: "codeserver", Grace: defaultGrace,
				Settle: defaultSettle}
			yes := true
			in.implied = []router.Rule{{Name: "DefaultRunLauncher", When: router.When{CodeServer: &yes},
				To: []string{"code-server"}}}
		}
		return nil
	}
	l := launcherSection{Grace: defaultGrace, Settle: defaultSettle, Config: section}
	l.Config.Path, l.Config.Node, l.Config.Literal = "run_launcher.config", config.Child(section.Node, "config"), false
	name := "dagster"
	i := known(kinds, module, class)
	switch {
	case i >= 0:
		l.Kind, name = kinds[i].Name, kinds[i].Name
	case in.Settings.HostPython != "":
		l.Kind = "python"
		l.Config.Node = mapping(l.Config.Node, "module", module, "class", class, "python", in.Settings.HostPython)
	default:
		return section.Problem("",
			"Slipway does not know %s.%s; either write launchers: in %s, which are then used instead, or host the "+
				"class itself: set run_launcher_python in that file to a Python that has the class and Dagster", module,
			class, file)
	}
	in.Settings.Launchers = map[string]launcherSection{name: l}
	if config.Child(doc, "default") == nil {
		in.Settings.Default = name
	}
	return nil
}

// known returns the index of the kind that replaces a class of Dagster or of a guide, or -1.
func known(kinds []*launcher.Kind, module, class string) int {
	return slices.IndexFunc(kinds, func(k *launcher.Kind) bool {
		return slices.ContainsFunc(strings.Fields(k.Stock), func(name string) bool {
			of, stock, _ := strings.Cut(name, ".")
			return stock == class && (of == "*" || strings.HasPrefix(module, "dagster"))
		})
	})
}

// mapping returns a section with pairs of keys and texts, and with conf as its config.
func mapping(conf *yaml.Node, pairs ...string) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	if conf != nil {
		m.Line, m.Column = conf.Line, conf.Column
		m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "config"}, conf)
	}
	for _, p := range pairs {
		m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: p})
	}
	return m
}
