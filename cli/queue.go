package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

func (p *program) queueCommand() *cobra.Command {
	return &cobra.Command{
		Use: "queue", Short: "Show what the queued runs wait for, the worst first", Args: noArgs,
		Long: `Groups the queued runs by what holds them back (a limit, a pool, a pause, a launcher) and shows how
many runs each holds back, and which runs in flight hold its places. It asks the leading daemon,
which keeps the queue in memory, so it is quick however many runs wait.

slipway runs explain RUN shows everything that holds one run back.`,
		Example: "  slipway queue\n  slipway queue --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				name, err := daemon.Name(cmd.Context(), in, s)
				if err != nil {
					return err
				}
				holds, err := daemon.AskHolds(cmd.Context(), in, name, s)
				if err != nil {
					return err
				}
				if p.json {
					return p.printJSON(holds)
				}
				return p.showHolds(holds)
			})
		},
	}
}

func (p *program) showHolds(holds []queue.Hold) error {
	var t table
	t.row("RUNS", "WAIT FOR", "", "HELD BY")
	for _, h := range holds {
		var ids []string
		for _, holder := range h.Holders[:min(len(h.Holders), shownHolders)] {
			ids = append(ids, holder.RunID)
		}
		by := strings.Join(ids, ", ")
		if more := len(h.Holders) - len(ids); more > 0 {
			by += " and " + count(more, "more run")
		}
		t.row(strconv.Itoa(h.Runs), string(h.Rule), cell(h.What), dash(by))
	}
	if len(holds) == 0 {
		t.row("0", "nothing holds a run back")
	}
	return t.print(p.out)
}
