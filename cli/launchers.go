package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
)

func (p *program) launchersCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "launchers", Short: "Inspect, test and write launchers",
		Long: `Inspects, tests and writes launchers. A launcher starts the workers of runs on one target, for example
this machine, a Docker engine or a Kubernetes cluster. slipway.yaml names the launchers of an instance
under launchers.`}
	cmd.AddCommand(p.launchersCheckCommand(), p.launchersListCommand(), p.launchersNewCommand(),
		p.launchersSchemaCommand(), p.launchersPreviewCommand(), p.launchersTestCommand())
	return cmd
}

// openTargets opens launchers for a command that only queries them. The caller closes them.
func openTargets(ctx context.Context, in *instance.Instance, names ...string) (map[string]*dispatch.Target, error) {
	some := *in
	some.Launchers = map[string]instance.Launcher{}
	for _, name := range names {
		l, ok := in.Launchers[name]
		if !ok {
			return nil, noLauncher(in, name)
		}
		some.Launchers[name] = l
	}
	return daemon.Targets(ctx, &some, slog.New(slog.DiscardHandler))
}

func noLauncher(in *instance.Instance, name string) error {
	return fmt.Errorf("there is no launcher %q in slipway.yaml%s", name,
		config.Suggest(name, slices.Sorted(maps.Keys(in.Launchers))))
}

// closing closes launchers at the end of a command and joins any failure to *err.
func closing(err *error, targets map[string]*dispatch.Target) {
	*err = errors.Join(*err, daemon.CloseTargets(targets))
}

type launcherView struct {
	Name      string          `json:"name"`
	Kind      string          `json:"kind"`
	Default   bool            `json:"default"`
	Help      string          `json:"help"`
	Abilities []string        `json:"abilities"`
	Traits    launcher.Traits `json:"traits"`
}

func (p *program) launchersListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the launchers of slipway.yaml and what they can do", Args: noArgs,
		Long: `Lists the launchers of slipway.yaml, and the ones that Slipway adds. DEFAULT marks the launcher of the
runs that no route matches. ABILITIES are what a launcher can do beyond launch, health and
terminate; docs/writing-a-launcher.md describes them.`,
		Example: "  slipway launchers list --json",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			in, err := p.instance()
			if err != nil {
				return err
			}
			names := slices.Sorted(maps.Keys(in.Launchers))
			targets, err := openTargets(cmd.Context(), in, names...)
			if err != nil {
				return err
			}
			defer closing(&err, targets)
			views := []launcherView{}
			for _, name := range names {
				l, t := in.Launchers[name], targets[name]
				views = append(views, launcherView{name, l.Kind.Name, name == in.Settings.Default, t.Kind.Help,
					launcher.Abilities(t.Launcher), t.Kind.Traits})
			}
			if p.json {
				return p.printJSON(views)
			}
			var t table
			t.row("LAUNCHER", "KIND", "DEFAULT", "ABILITIES")
			for _, v := range views {
				t.row(v.Name, v.Kind, v.Default, v.Abilities)
			}
			return t.print(p.out)
		},
	}
}

func (p *program) launchersSchemaCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "schema [KIND]", Short: "Print the settings of a kind of launcher, or of slipway.yaml, as JSON schema",
		Args: upToOneArg,
		Long: `Prints the settings of a kind of launcher as JSON schema. Without KIND, prints the schema of
slipway.yaml with all kinds. With --launcher, prints the config of a launcher in slipway.yaml that is
a separate program (a plug-in).`,
		Example: "  slipway launchers schema process\n  slipway launchers schema >slipway.schema.json\n  slipway " +
			"launchers schema --launcher mine",
		RunE: func(cmd *cobra.Command, args []string) error {
			fields, err := p.settings(cmd.Context(), args, name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.out, "%s\n", config.Schema(fields))
			return err
		},
	}
	cmd.Flags().StringVar(&name, "launcher", "", "print the settings that the program of this launcher declares")
	return cmd
}

// settings returns the settings that the program of launcher name declares, those of the kind in
// args, or, without both, those of slipway.yaml.
func (p *program) settings(ctx context.Context, args []string, name string) (fields []config.Field, err error) {
	if name != "" {
		in, err := p.instance()
		if err != nil {
			return nil, err
		}
		targets, err := openTargets(ctx, in, name)
		if err != nil {
			return nil, err
		}
		defer closing(&err, targets)
		return targets[name].Kind.Schema, nil
	}
	if len(args) == 0 {
		return instance.Fields(p.kinds), nil
	}
	var names []string
	for _, k := range p.kinds {
		if k.Name == args[0] {
			return k.Schema, nil
		}
		names = append(names, k.Name)
	}
	return nil, fmt.Errorf("there is no launcher of kind %q%s", args[0], config.Suggest(args[0], names))
}

// sample holds the flags that describe a sample run.
type sample struct {
	job, location, image string
	tags                 map[string]string
}

func (p *program) launchersPreviewCommand() *cobra.Command {
	var name string
	var made sample
	var server bool
	cmd := &cobra.Command{
		Use: "preview [RUN]", Short: "Show what launching a run would send to its target", Args: upToOneArg,
		Long: `Shows what launching a run would send to its target, with secrets redacted. Nothing is sent, except
with --server: then the target checks the request without creating anything, if it can (k8s).

Without RUN, the flags describe a sample run, as if from a code location with the entry point
dagster.`,
		Example: "  slipway launchers preview 1a9ccfd4\n  slipway launchers preview 1a9ccfd4 --launcher spot\n  " +
			"slipway launchers preview --job train --location ml --tag slipway/memory=8Gi",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				r := storage.Run{Run: dagster.NewSampleRun("00000000-0000-4000-8000-000000000000", made.job,
					made.location, made.image, made.tags)}
				if len(args) > 0 {
					for _, flag := range []string{"job", "location", "image", "tag"} {
						if cmd.Flags().Changed(flag) {
							return fmt.Errorf("--%s describes a sample run: leave out either the flag or the run", flag)
						}
					}
					var err error
					if r, err = find(cmd.Context(), s, args[0]); err != nil {
						return err
					}
				}
				return p.preview(cmd.Context(), in, s, r, name, server)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "launcher", "", "launcher to ask (default: the launcher that the run is routed to)")
	f.BoolVar(&server, "server", false, "also let the target check the request (a dry run)")
	f.StringVar(&made.job, "job", "sample", "job of the sample run")
	f.StringVar(&made.location, "location", "sample", "code location of the sample run")
	f.StringVar(&made.image, "image", "", "image of the sample run's code location")
	f.StringToStringVar(&made.tags, "tag", nil, "tag of the sample run, `KEY=VALUE`; may be repeated")
	return cmd
}

func (p *program) preview(ctx context.Context, in *instance.Instance, s storage.Store, r storage.Run, name string,
	server bool) (err error) {
	if r.Broken != nil {
		return r.Broken
	}
	if name == "" {
		name = in.Router.Route(r.Run).Launchers[0]
	}
	targets, err := openTargets(ctx, in, name)
	if err != nil {
		return err
	}
	defer closing(&err, targets)
	t := targets[name]
	previewer, ok := launcher.As[launcher.Previewer](t.Launcher)
	if !ok {
		return fmt.Errorf("launcher %s: launchers of kind %s cannot show what they would send", name, t.Kind.Name)
	}
	instance, err := daemon.Name(ctx, in, s)
	if err != nil {
		return err
	}
	attempt := worker.Attempt{Number: 1, Token: "preview", At: time.Now()}
	if r.Launch != nil {
		attempt.Number = r.Launch.Attempt
	}
	req, err := daemon.Builder(in, instance, goWorker()).Request(r.Run, attempt, t.Target)
	if err != nil {
		return err
	}
	if server {
		trier, ok := launcher.As[launcher.Trier](t.Launcher)
		if !ok {
			return fmt.Errorf("launchers of kind %s cannot check a request without launching it: leave out --server",
				t.Kind.Name)
		}
		if err := trier.Try(ctx, req); err != nil {
			return err
		}
	}
	spec, err := previewer.Preview(ctx, req)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(spec, &v); err != nil {
		return err
	}
	return p.printJSON(v)
}

// goWorker returns the command of the Go run worker: this program itself.
func goWorker() []string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return []string{self, "worker"}
}
