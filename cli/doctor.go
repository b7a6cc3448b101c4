package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
)

// errSick is the error of slipway doctor if something must be done.
var errSick = errors.New("something must be done: see the lines marked error")

func (p *program) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Find out why runs are not launched, or not as expected", Args: noArgs,
		Long: `Checks everything that launching depends on:

  - the configuration, as Dagster reads it
  - the storage: its schema, its clock, and whether a daemon could write to it
  - dagster-daemon: whether it does the same work as Slipway, or does not run
  - the Slipway daemon that leads, and whether Terminate in Dagster's UI reaches it
  - pauses, limits, and runs that have waited for long
  - every launcher, as slipway launchers check does
  - what the waiting runs need: a valid request, their code server, their Python

Each finding has a next step and, with --json, a code that never changes. The command changes
nothing. Its exit code is 1 if something must be done.`,
		Example: "  slipway doctor\n  slipway doctor --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := p.examine(cmd)
			if err != nil {
				return err
			}
			bad := false
			for _, s := range found {
				bad = bad || s.Level == daemon.LevelError
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

// examine runs all checks. An error that prevents opening the instance becomes the last finding.
func (p *program) examine(cmd *cobra.Command) ([]daemon.Symptom, error) {
	in, err := p.instance()
	if err != nil {
		return []daemon.Symptom{{Level: daemon.LevelError, Code: daemon.CodeConfiguration, What: err.Error(),
			Fix: "correct the settings that the message names; until then no daemon starts"}}, nil
	}
	var found []daemon.Symptom
	file := filepath.Join(in.Home, "dagster.yaml")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		found = append(found, daemon.Symptom{
			Level: daemon.LevelWarning, Code: daemon.CodeDagsterYAML,
			What: file + " does not exist: Dagster's defaults hold, with SQLite in that folder",
			Fix:  "set DAGSTER_HOME, or --home, to the folder of the dagster.yaml that your webserver uses",
		})
	}
	s, err := open(cmd.Context(), in)
	if err != nil {
		return append(found, daemon.StorageSymptom("the storage cannot be opened", err)), nil
	}
	log := slog.New(slog.DiscardHandler)
	return append(found, daemon.Doctor(cmd.Context(), in, s, log)...), s.Close()
}
