package cli

import (
	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/web"
)

func (p *program) daemonCommand() *cobra.Command {
	var observe bool
	cmd := &cobra.Command{
		Use: "daemon", Short: "Launch the queued runs of an instance", Args: cobra.NoArgs,
		Long: `Launches the runs that Dagster queues and watches their workers, until it is stopped.

Stopping it (SIGTERM, Ctrl-C) leaves running workers alone; started again, it finds them.
A second daemon on the same instance stands by and takes over when the first one ends. SIGHUP has
it read dagster.yaml and slipway.yaml again; if anything is wrong with them, nothing changes.

dagster-daemon stays for schedules, sensors and backfills, with its own launching off. slipway adopt
prints the edits of dagster.yaml and slipway.yaml for your instance, also for some code locations
only, and checks them.`,
		Example: "  DAGSTER_HOME=/opt/dagster slipway daemon\n  slipway daemon --home /opt/dagster --log-json\n  slipway daemon --observe",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := p.log()
			if err != nil {
				return err
			}
			err = p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				d := &daemon.Daemon{Instance: in, Store: s, Log: log, Worker: goWorker(), Metrics: web.NewMetrics(Version)}
				if observe {
					return d.Observe(cmd.Context())
				}
				return d.Run(cmd.Context())
			})
			if err != nil && cmd.Context().Err() != nil { // asked to stop while it began, which is no failure
				log.InfoContext(cmd.Context(), "stopped before it led", "interrupted", err)
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&observe, "observe", false, "decide and log, write nothing and launch nothing")
	return cmd
}
