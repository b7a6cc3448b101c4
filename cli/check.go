package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/daemon"
)

type findingView struct {
	Launcher string `json:"launcher"`
	OK       bool   `json:"ok"`
	What     string `json:"what"`
	Fix      string `json:"fix,omitempty"`
}

// errFindings makes the exit code 1.
var errFindings = errors.New("some launcher cannot work as it is set up")

func (p *program) launchersCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check [NAME...]", Short: "Look for what would make launches fail", ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Asks the targets of all launchers, or of those named, what would make launches fail: whether they answer and let us in, whether images
and networks are there, and whether their workers can reach the storage. The exit code is 1 if something is wrong. The daemon does the same
when it starts, and logs what it finds.`,
		Example: "  slipway launchers check\n  slipway launchers check docker --json",
		RunE:    func(cmd *cobra.Command, args []string) error { return p.check(cmd.Context(), args) },
	}
}

func (p *program) check(ctx context.Context, names []string) (err error) {
	in, err := p.instance()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(in.Launchers))
	}
	targets, err := openTargets(ctx, in, names...)
	if err != nil {
		return err
	}
	defer closing(&err, targets)
	views, bad := []findingView{}, false
	for _, name := range names {
		t := targets[name]
		for _, f := range daemon.Check(ctx, in, t) {
			views, bad = append(views, findingView{name, f.OK, f.What, f.Fix}), bad || !f.OK
		}
	}
	if p.json {
		err = p.printJSON(views)
	} else {
		err = p.printFindings(views)
	}
	if bad {
		err = errors.Join(err, errFindings)
	}
	return err
}

func (p *program) printFindings(views []findingView) error {
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	var b strings.Builder
	for _, v := range views {
		state, what := "ok", v.What
		if !v.OK {
			state, what = "WRONG", v.What+": "+v.Fix
		}
		fmt.Fprintf(&b, "%s\t%s\t%s\n", v.Launcher, state, what)
	}
	if _, err := w.Write([]byte(b.String())); err != nil {
		return err
	}
	return w.Flush()
}
