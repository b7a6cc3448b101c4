// Package cli is Slipway's command line. It can be imported, so that a program with additional
// launchers needs only one line: cli.Main(kinds...).
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/agent"
	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/execute"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/launcher"
)

// Version is the released version. A build from source says devel.
const Version = "0.1.0-devel"

// Child runs the roles for which this program starts itself, and then exits: the supervisor of a
// worker, a run worker, or, as the first process of a container, the process that reaps orphans. In
// any other process it returns at once. Main calls Child first. A program that does costly work
// before Main should call Child before that work.
func Child() {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "agent":
		os.Exit(agent.Main(os.Args[2:]))
	case os.Getpid() == 1: // this process becomes the parent of orphaned workers
		os.Exit(agent.Init(os.Args))
	case len(os.Args) > 1 && os.Args[1] == "worker":
		os.Exit(execute.Main(os.Args[2:]))
	}
}

// Main runs the command line with the given kinds of launchers and returns the exit code: 0, 1
// after an error, which it has printed, or 2 if its flags or arguments are wrong. This is the
// whole main function of a Slipway with custom launchers:
//
//	func main() { os.Exit(cli.Main(append(all.Kinds(), Kind())...)) }
func Main(kinds ...*launcher.Kind) int {
	Child()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	p := &program{kinds: kinds, out: os.Stdout, err: os.Stderr, env: os.LookupEnv}
	err := p.command().ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipway:", err)
	}
	return exitCode(err)
}

// usageError is a wrong request, such as a flag with an impossible value. Its exit code is 2, so
// that scripts can tell it from a failure.
type usageError struct{ error }

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		return 2
	}
	return 1
}

// count returns a number of things, such as "1 run" or "2 runs".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// program holds what all commands share.
type program struct {
	kinds    []*launcher.Kind
	out, err io.Writer
	env      func(string) (string, bool)

	home     string
	logLevel string
	logJSON  bool
	json     bool
	dotEnv   []string // names of the variables that were set from .env
}

func (p *program) command() *cobra.Command {
	root := &cobra.Command{
		Use: "slipway", Short: "Launch Dagster runs anywhere",
		Long: `Slipway reads the runs that Dagster has queued from Dagster's own storage. It starts a run worker
for each and watches it to its end. Dagster's UI, daemon and Python code stay as they are.

Slipway needs the DAGSTER_HOME that your webserver uses. Its own settings are in slipway.yaml in
that folder, beside dagster.yaml.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = checkFlags
	flags := root.PersistentFlags()
	flags.StringVar(&p.home, "home", "", "folder of the instance (default: $DAGSTER_HOME)")
	flags.StringVar(&p.logLevel, "log-level", "", "debug, info, warn or error (default: log_level in slipway.yaml)")
	flags.BoolVar(&p.logJSON, "log-json", false, "log as JSON")
	flags.BoolVar(&p.json, "json", false, "print results as JSON")
	root.AddCommand(
		p.adoptCommand(), p.daemonCommand(), p.demoCommand(), p.doctorCommand(), p.drainCommand(), p.launchersCommand(),
		p.pauseCommand(), p.runsCommand(),
		p.queueCommand(), p.statusCommand(), p.sweepCommand(), p.unpauseCommand(), p.versionCommand(),
	)
	return root
}

// log returns a logger and its level, which starts as --log-level, or info without that flag.
func (p *program) log() (*slog.Logger, *slog.LevelVar, error) {
	level := &slog.LevelVar{}
	if err := level.UnmarshalText([]byte(p.logLevel)); p.logLevel != "" && err != nil {
		return nil, nil, fmt.Errorf("--log-level %s: must be debug, info, warn or error", p.logLevel)
	}
	o := &slog.HandlerOptions{Level: level}
	if p.logJSON {
		o.ReplaceAttr = durations
		return slog.New(slog.NewJSONHandler(p.err, o)), level, nil
	}
	return slog.New(slog.NewTextHandler(p.err, o)), level, nil
}

// durations writes durations in JSON logs with their unit, as text logs do, instead of nanoseconds.
func durations(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// instance loads the instance in --home or DAGSTER_HOME. Like Dagster's commands, it first reads
// .env in the current folder.
func (p *program) instance() (*instance.Instance, error) {
	var err error
	if p.dotEnv, err = config.LoadDotEnv(); err != nil {
		return nil, err
	}
	env := p.env
	if p.home != "" {
		home, err := filepath.Abs(p.home)
		if err != nil {
			return nil, err
		}
		env = func(name string) (string, bool) {
			if name == "DAGSTER_HOME" {
				return home, true
			}
			return p.env(name)
		}
	}
	home, err := instance.Home(env)
	if err != nil {
		if p.home != "" { // name what the user wrote
			err = errors.New(strings.Replace(err.Error(), "DAGSTER_HOME=", "--home ", 1))
		}
		return nil, err
	}
	return instance.Load(home, p.kinds, env)
}

// open opens the instance's storage. The caller closes it.
func open(ctx context.Context, in *instance.Instance) (storage.Store, error) {
	if url := in.Settings.StorageURL.DirectURL; url != "" {
		s, err := postgres.Open(ctx, url)
		err = atSetting(err, filepath.Join(in.Home, "slipway.yaml")+": storage.direct_url")
		if f := (*storage.Fault)(nil); errors.As(err, &f) {
			f.Fix = strings.ReplaceAll(f.Fix, "storage.postgres in dagster.yaml", "storage.direct_url in slipway.yaml")
		}
		if err == nil {
			err = sameInstance(ctx, in, s)
		}
		if err != nil && s != nil {
			return nil, errors.Join(err, s.Close())
		}
		return s, err
	}
	if in.Storage.URL != "" {
		s, err := postgres.Open(ctx, in.Storage.URL)
		return s, atSetting(err, filepath.Join(in.Home, "dagster.yaml")+": storage.postgres")
	}
	return sqlite.Open(ctx, in.Storage.BaseDir)
}

// atSetting adds the place of the storage's address to an error of that address.
func atSetting(err error, setting string) error {
	if wrong := (*storage.SettingError)(nil); errors.As(err, &wrong) {
		return storage.Setting(fmt.Errorf("%s: %w", setting, err))
	}
	return err
}

// sameInstance returns an error if direct_url leads to another instance than the address in
// dagster.yaml. It returns nil if that address cannot be used from here, as with an auth_provider.
func sameInstance(ctx context.Context, in *instance.Instance, s storage.Store) error {
	theirs, err := postgres.InstanceIDAt(ctx, in.Storage.URL)
	if err != nil || theirs == "" {
		return nil
	}
	ours, err := s.InstanceID(ctx)
	if err == nil && ours != theirs {
		problem := in.Problem("storage.direct_url",
			"it leads to another instance: run_storage_id is %s there and %s in the storage of dagster.yaml; write "+
				"the address of the same database", ours, theirs)
		err = storage.Setting(&storage.Fault{Code: string(daemon.CodeOtherInstance),
			Fix: "set it to the same server and database that dagster.yaml names, without the pooler", Err: problem})
	}
	return err
}

// withStore runs f with the instance's storage.
func (p *program) withStore(ctx context.Context, f func(*instance.Instance, storage.Store) error) error {
	in, err := p.instance()
	if err != nil {
		return err
	}
	s, err := open(ctx, in)
	if err != nil {
		return withNext(err)
	}
	return withNext(errors.Join(f(in, s), s.Close()))
}

// withNext adds the next step to an error of the storage, if the storage knows one.
func withNext(err error) error {
	if f := (*storage.Fault)(nil); errors.As(err, &f) && f.Fix != "" {
		return fmt.Errorf("%w\nnext: %s", err, f.Fix)
	}
	return err
}

func (p *program) printJSON(v any) error {
	e := json.NewEncoder(p.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": Version, "go": runtime.Version(),
				"platform": runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v["revision"] = s.Value
					}
				}
			}
			if p.json {
				return p.printJSON(v)
			}
			_, err := fmt.Fprintf(p.out, "slipway %s (%s, %s)\n", v["version"], v["go"], v["platform"])
			return err
		},
	}
}
