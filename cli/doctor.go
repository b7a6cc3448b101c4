package cli

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
)

// errSick ends slipway doctor where something must be done.
var errSick = errors.New("something must be done: see the lines marked error")

func (p *program) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Find out why runs are not launched, or not as they should", Args: cobra.NoArgs,
		Long: `Looks at everything that launching depends on: the configuration as Dagster reads it, the storage, its schema and its clock, a dagster-daemon that does the same work, the daemon that
leads, the way by which Terminate in Dagster's UI reaches it, pauses, runs that wait for long, and the checks of every launcher. Each finding comes with its next step. It changes nothing. The exit code is
1 if something must be done.`,
		Example: "  slipway doctor\n  slipway doctor --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := p.examine(cmd)
			if err != nil {
				return err
			}
			bad := false
			for _, s := range found {
				bad = bad || s.Level == daemon.Bad
			}
			if p.json {
				err = p.printJSON(found)
			} else {
				for _, s := range found {
					text := fmt.Sprintf("%-8s %s\n", s.Level, s.What)
					if s.Fix != "" {
						text += fmt.Sprintf("%-8s next: %s\n", "", s.Fix)
					}
					_, werr := fmt.Fprint(p.out, text)
					err = errors.Join(err, werr)
				}
			}
			if bad {
				err = errors.Join(err, errSick)
			}
			return err
		},
	}
}

// examine asks the doctor. What keeps the instance from being opened is its first finding.
func (p *program) examine(cmd *cobra.Command) ([]daemon.Symptom, error) {
	in, err := p.instance()
	if err != nil {
		return []daemon.Symptom{{Level: daemon.Bad, What: err.Error(), Fix: "mend the settings that are named; nothing can start before"}}, nil
	}
	s, err := open(cmd.Context(), in)
	if err != nil {
		return []daemon.Symptom{{Level: daemon.Bad, What: "the storage cannot be opened: " + err.Error(), Fix: "see whether your webserver can open it; if it can, compare its dagster.yaml and environment with these here"}}, nil
	}
	log := slog.New(slog.DiscardHandler)
	return daemon.Doctor(cmd.Context(), in, s, log), s.Close()
}
