package instance

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// stockLauncher makes the launchers of a slipway.yaml that names none, from dagster.yaml's run_launcher: in place of DefaultRunLauncher, processes
// of this machine and, for locations that have one, their own code server; in place of a launcher that a kind knows, that kind with the
// same config; any other class is hosted by Python, if slipway.yaml says by which.
func (in *Instance) stockLauncher(kinds []*launcher.Kind, file string, doc *yaml.Node, env config.Lookup) error {
	section := config.Values{File: in.file, Path: "run_launcher", Node: path(in.doc, "run_launcher"), Env: env, Literal: true}
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
		in.Settings.Launchers = map[string]launcherSection{"local": {Kind: "process", Grace: defaultGrace, Settle: defaultSettle}}
		if slices.ContainsFunc(kinds, func(k *launcher.Kind) bool { return k.Name == "codeserver" }) {
			in.Settings.Launchers["code-server"] = launcherSection{Kind: "codeserver", Grace: defaultGrace, Settle: defaultSettle}
			yes := true
			in.implied = []router.Rule{{Name: "DefaultRunLauncher", When: router.When{CodeServer: &yes}, To: []string{"code-server"}}}
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
		return section.Problem("", "Slipway does not know %s.%s; either write launchers: in %s, which are then used instead, or host the class itself: set run_launcher_python in that file to a Python that has the class and Dagster", module, class, file)
	}
	in.Settings.Launchers = map[string]launcherSection{name: l}
	if config.Child(doc, "default") == nil {
		in.Settings.Default = name
	}
	return nil
}

// known is the kind that stands for a class of Dagster, or of a guide; -1 if none does.
func known(kinds []*launcher.Kind, module, class string) int {
	return slices.IndexFunc(kinds, func(k *launcher.Kind) bool {
		return slices.ContainsFunc(strings.Fields(k.Stock), func(name string) bool {
			of, stock, _ := strings.Cut(name, ".")
			return stock == class && (of == "*" || strings.HasPrefix(module, "dagster"))
		})
	})
}

// mapping makes a section of some texts and, as config, what there is already.
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
