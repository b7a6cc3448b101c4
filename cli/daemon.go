package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/web"
)

func (p *program) daemonCommand() *cobra.Command {
	var observe bool
	cmd := &cobra.Command{
		Use: "daemon", Short: "Launch the queued runs of an instance", Args: noArgs,
		Long: `Launches the runs that Dagster queues and watches their workers, until it is stopped.

When the daemon is stopped (SIGTERM, Ctrl-C), running workers continue; the next daemon finds them.
A second daemon on the same instance waits, and takes over when the first one ends. On SIGHUP the
daemon reads dagster.yaml and slipway.yaml again; if one of them has an error, nothing changes.

dagster-daemon is still needed for schedules, sensors and backfills, with its own launching turned
off. slipway adopt prints the edits of dagster.yaml and slipway.yaml for your instance, or for some
of its code locations, and checks them.`,
		Example: "  DAGSTER_HOME=/opt/dagster slipway daemon\n  slipway daemon --home /opt/dagster --log-json\n  " +
			"slipway daemon --observe",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.daemon(cmd.Context(), observe)
		},
	}
	cmd.Flags().BoolVar(&observe, "observe", false, "only decide and log: write nothing, launch nothing")
	return cmd
}

func (p *program) daemon(ctx context.Context, observe bool) error {
	in, err := p.instance()
	if err != nil {
		return err
	}
	log, level, err := p.log()
	if err != nil {
		return err
	}
	setLevel := func(in *instance.Instance) {
		if p.logLevel == "" {
			_ = level.UnmarshalText([]byte(in.Settings.LogLevel)) // Load has checked it
		}
	}
	setLevel(in)
	if len(p.dotEnv) > 0 {
		log.InfoContext(ctx, "set environment variables from .env in the current folder", "names", p.dotEnv)
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	d := &daemon.Daemon{
		Instance: in, Log: log, Worker: goWorker(), Metrics: web.NewMetrics(Version), Systemd: daemon.NewSystemd(),
		Reloads: hangups, Load: p.instance,
		Reloaded: setLevel, Open: func(ctx context.Context) (storage.Store, error) { return open(ctx, in) },
	}
	if observe {
		d.Load = nil
		err = d.Observe(ctx)
	} else {
		err = d.Run(ctx)
	}
	if err != nil && ctx.Err() != nil { // a request to stop during the start is not a failure
		log.InfoContext(ctx, "stopped before it led", "interrupted", err)
		return nil
	}
	return withNext(err)
}
