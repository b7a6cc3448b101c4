package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

type findingView struct {
	Launcher string `json:"launcher"`
	OK       bool   `json:"ok"`
	What     string `json:"what"`
	Fix      string `json:"fix,omitempty"`
}

// errFindings makes the exit code 1 if a finding is wrong.
var errFindings = errors.New("a launcher cannot work with its present settings: see the findings")

// canaryTime is how long a worker that opens the storage may take, including the pull of its image.
const canaryTime = 5 * time.Minute

func (p *program) launchersCheckCommand() *cobra.Command {
	canary, from := daemon.Canary{Worker: goWorker()}, ""
	cmd := &cobra.Command{
		Use: "check [NAME...]", Short: "Find what would make launches fail", ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Asks the target of every launcher, or of the named launchers, what would make launches fail: whether
the target answers and accepts our credentials, whether images and networks exist, and whether
workers can reach the storage. With --from-target, a worker on each target opens the storage.

The exit code is 1 if something is wrong. The daemon runs the same checks when it starts, and logs
their results.`,
		Example: "  slipway launchers check\n  slipway launchers check docker --from-target --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if from != "" && from != "auto" && from != "go" && from != "python" {
				return fmt.Errorf("--from-target=%s: must be go or python", from)
			}
			return p.check(cmd.Context(), args, canary, from)
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from-target",
		"", "on each target, start a worker that opens the storage: python (with the Python of its image) or go "+
			"(with slipway-worker); auto is go where workers see the daemon's files, else python")
	f.Lookup("from-target").NoOptDefVal = "auto"
	f.StringVar(&canary.Image, "image", "", "image of that worker (default: the launcher's image)")
	f.StringVar(&canary.Location, "location",
		"", "code location whose Python that worker uses, if launchers.NAME.python has several")
	f.DurationVar(&canary.Within, "timeout", canaryTime, "how long that worker may take")
	least(f, "timeout", "1s")
	return cmd
}

func (p *program) check(ctx context.Context, names []string, canary daemon.Canary, from string) (err error) {
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
	if from != "" {
		if err := p.withStore(ctx, func(_ *instance.Instance, s storage.Store) (err error) {
			canary.Instance, err = daemon.Name(ctx, in, s)
			return err
		}); err != nil {
			return err
		}
	}
	for _, name := range names {
		t := targets[name]
		var seen []launcher.Finding
		if from != "" {
			canary.Python = from == "python" || from == "auto" && !t.Traits.LocalFiles
			seen = append(seen, canary.Send(ctx, in, t))
		}
		for _, f := range daemon.Check(ctx, in, t, seen...) {
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
	var t table
	for _, v := range views {
		state, what := "ok", v.What
		if !v.OK {
			state, what = "WRONG", v.What+"; next: "+v.Fix
		}
		t.row(v.Launcher, state, what)
	}
	return t.print(p.out)
}
