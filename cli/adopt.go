package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
)

// errNotAdopted ends slipway adopt while an edit is missing.
var errNotAdopted = errors.New("not set up yet: make the edits above, restart dagster-daemon, and ask again")

func (p *program) adoptCommand() *cobra.Command {
	var locations []string
	cmd := &cobra.Command{
		Use: "adopt", Short: "Print the edits that hand launching over to Slipway, and check them", Args: cobra.NoArgs,
		Long: `Prints the edits of dagster.yaml and slipway.yaml by which Slipway launches the runs of this instance, or of
some code locations only while dagster-daemon goes on with the others; how to undo them; and
whether they are made. It changes no file. The exit code is 0 only if everything is in place.`,
		Example: "  slipway adopt\n  slipway adopt --location etl --location reports",
		RunE: func(*cobra.Command, []string) error {
			in, err := p.instance()
			if err != nil {
				return err
			}
			return p.adopt(in, locations)
		},
	}
	cmd.Flags().StringSliceVar(&locations, "location", nil, "only runs of this code location; may be repeated")
	return cmd
}

// edit is one thing that has to stand in a file.
type edit struct {
	File string `json:"file"`
	Add  string `json:"add"`
	Undo string `json:"undo"`
	Done bool   `json:"done"`
}

func (p *program) adopt(in *instance.Instance, locations []string) error {
	edits := edits(in, locations)
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

func edits(in *instance.Instance, locations []string) []edit {
	dagsterYAML, slipwayYAML := filepath.Join(in.Home, "dagster.yaml"), filepath.Join(in.Home, "slipway.yaml")
	only := in.Settings.Queue.Only
	var list []edit
	if len(locations) == 0 {
		list = append(list,
			edit{dagsterYAML, nested(in.QueueSection(), "max_concurrent_runs: 0"), "remove the line, or put your old limit back", in.Parked},
			edit{slipwayYAML, fmt.Sprintf("queue: {max_concurrent_runs: %d}", limitOf(in)), "nothing: only Slipway reads this file", in.Settings.Queue.MaxConcurrentRuns != nil && only.Empty()})
	} else {
		var limits []string
		parked, named := true, true
		for _, l := range locations {
			limits = append(limits, fmt.Sprintf("  - {key: %s, value: %s, limit: 0}", dagster.CodeLocationTag, l))
			parked = parked && has(in.StockQueue.TagLimits, l)
			named = named && slices.Contains(only.Locations, l)
		}
		list = append(list,
			edit{dagsterYAML, nested(in.QueueSection(), "tag_concurrency_limits:\n"+strings.Join(limits, "\n")), "remove these limits", parked || in.Parked},
			edit{slipwayYAML, "queue:\n  only: {locations: [" + strings.Join(locations, ", ") + "]}", "nothing: only Slipway reads this file", named && len(only.Locations) == len(locations)})
	}
	if t := in.Settings.Terminate; in.Storage.URL != "" && !in.StockTerminates() {
		add, done := "terminate: {advertise: \"HOST:4001\"}   # where webservers reach slipway daemon; or {local_only: true}", true
		switch {
		case t.Advertise != "":
			add = fmt.Sprintf("terminate: {advertise: %q}", t.Advertise)
		case t.Listen != "":
			add = fmt.Sprintf("terminate: {listen: %q}", t.Listen)
		case t.LocalOnly:
			add = "terminate: {local_only: true}"
		default:
			done = false
		}
		list = append(list, edit{slipwayYAML, add, "nothing: only Slipway reads this file", done})
	}
	return append(list, edit{dagsterYAML, "run_monitoring: {enabled: false}", "remove the line, or set it to true again", !in.MonitorsRun})
}

// nested is a text below dotted keys.
func nested(keys, text string) string {
	for _, key := range slices.Backward(strings.Split(keys, ".")) {
		text = key + ":\n  " + strings.ReplaceAll(text, "\n", "\n  ")
	}
	return text
}

// limitOf is the limit that the stock queue has now, to go on with.
func limitOf(in *instance.Instance) int {
	q, err := in.QueueLimits()
	if err != nil {
		return in.StockQueue.MaxConcurrentRuns
	}
	return q.MaxConcurrentRuns
}

// has says whether a limit of 0 keeps the stock dequeuer from a location.
func has(limits []instance.TagLimit, location string) bool {
	return slices.Contains(limits, instance.TagLimit{Key: dagster.CodeLocationTag, Value: location})
}

func adoptText(edits []edit, ok bool) string {
	var b strings.Builder
	for _, e := range edits {
		state := "to do: in"
		if e.Done {
			state = "done: in"
		}
		fmt.Fprintf(&b, "%-9s %s\n\n  %s\n\n         to undo: %s\n\n", state, e.File, strings.ReplaceAll(e.Add, "\n", "\n  "), e.Undo)
	}
	b.WriteString("These are the files that dagster-daemon and slipway daemon read here. If the daemon reads another dagster.yaml, edit that one.\n")
	b.WriteString("Look first with: slipway daemon --observe. Going back: undo, restart dagster-daemon, stop Slipway; runs in flight finish.\n")
	if ok {
		b.WriteString("\nEverything is in place: slipway daemon\n")
	}
	return b.String()
}
