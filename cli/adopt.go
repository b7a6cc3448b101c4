package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/instance"
)

// errNotAdopted is the error of slipway adopt while an edit is missing.
var errNotAdopted = errors.New(
	"not set up yet: make the edits above, restart dagster-daemon and dagster-webserver, and run slipway adopt again")

func (p *program) adoptCommand() *cobra.Command {
	var locations []string
	cmd := &cobra.Command{
		Use: "adopt", Short: "Print the edits that hand launching over to Slipway, and check them", Args: noArgs,
		Long: `Prints the edits of dagster.yaml and slipway.yaml that make Slipway launch the runs of this instance,
how to undo each edit, and whether it is in the file already. With --location, Slipway launches only the runs of
these code locations, and dagster-daemon continues to launch all others.

The command changes no file. Its exit code is 0 only if everything is in place.`,
		Example: "  slipway adopt\n  slipway adopt --location etl --location reports",
		RunE: func(*cobra.Command, []string) error {
			in, err := p.instance()
			if err != nil {
				return err
			}
			return p.adopt(in, locations)
		},
	}
	cmd.Flags().StringSliceVar(&locations, "location", nil,
		"hand over only the runs of this code location; may be repeated")
	return cmd
}

func (p *program) adopt(in *instance.Instance, locations []string) error {
	edits := in.Handover(instance.Only{Locations: locations})
	ok := true
	for _, e := range edits {
		ok = ok && e.Done
	}
	if p.json {
		if err := p.printJSON(map[string]any{"adopted": ok, "edits": edits}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprint(p.out, adoptText(edits, ok)); err != nil {
		return err
	}
	if !ok {
		return errNotAdopted
	}
	return nil
}

func adoptText(edits []instance.Edit, ok bool) string {
	var b strings.Builder
	for _, e := range edits {
		state := "to do: in"
		if e.Done {
			state = "done: in"
		}
		fmt.Fprintf(&b, "%-9s %s\n\n  %s\n\n         to undo: %s\n\n", state, e.File,
			strings.ReplaceAll(e.Add, "\n", "\n  "), e.Undo)
	}
	b.WriteString("These are the files that dagster-daemon and slipway daemon read on this machine. If your " +
		"dagster-daemon reads another dagster.yaml, edit that one.\n")
	b.WriteString("Restart dagster-daemon and dagster-webserver after an edit of dagster.yaml. To see first what " +
		"Slipway would do: slipway daemon --observe.\n")
	b.WriteString("To go back: slipway drain, stop Slipway, undo the edits, restart dagster-daemon and " +
		"dagster-webserver. In any other order both launch runs.\n")
	if ok {
		b.WriteString("\nEverything is in place: slipway daemon\n")
	}
	return b.String()
}
