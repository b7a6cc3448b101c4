package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
)

// explanation tells why a run waits or went to its launcher.
type explanation struct {
	RunID string `json:"run_id"`
	// The decision at its launch; empty if the run was not launched.
	Launcher string `json:"launcher,omitempty"`
	Route    string `json:"route,omitempty"`
	// The decision of the present settings. Passed lists the rules that do not match.
	Rule      string       `json:"rule"`
	Reason    string       `json:"reason"`
	Launchers []string     `json:"launchers"`
	Passed    []string     `json:"passed,omitempty"`
	Fields    []fieldLayer `json:"fields,omitempty"`
	Problem   string       `json:"problem,omitempty"`
	Wait      *daemon.Wait `json:"wait,omitempty"` // of a queued run
}

type fieldLayer struct {
	Field  string `json:"field"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

func (p *program) runsExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain RUN",
		Short: "Show why a run waits, why it goes to its launcher, and what set each field of its worker",
		Args:  oneArg,
		Long: `For a queued run, shows its place in the queue and everything that holds it back: limits, pools,
pauses, a launcher that is full or sick.

For every run, shows which rule of routes in slipway.yaml decides and why, which rules do not match,
and what sets each field of its worker: the launcher, the code location, the rule, or a tag of the
run. For a launched run, it also shows what was decided at its launch.`,
		Example: "  slipway runs explain 1a9ccfd4",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				return p.explain(cmd.Context(), in, s, args[0])
			})
		},
	}
}

func (p *program) explain(ctx context.Context, in *instance.Instance, s storage.Store, id string) error {
	r, err := find(ctx, s, id)
	if err != nil {
		return err
	}
	if r.Broken != nil {
		return r.Broken
	}
	d := in.Router.Route(r.Run)
	e := explanation{RunID: r.ID, Rule: d.Rule, Reason: d.Reason, Launchers: d.Launchers, Passed: d.Passed}
	name := d.Launchers[0]
	if r.Launch != nil && r.Launch.State != storage.Void {
		e.Launcher = r.Launch.Launcher
		if in.Launchers[e.Launcher].Kind != nil {
			name = e.Launcher
		}
	}
	if e.Route, err = routeThen(ctx, s, r.ID); err != nil {
		return err
	}
	layers, err := daemon.Builder(in, "", nil).Layers(r.Run, layerTarget(in, name))
	if err != nil {
		e.Problem = err.Error()
	}
	e.Fields = fieldsOf(layers)
	if e.Wait, err = waitOf(ctx, in, s, r); err != nil {
		return err
	}
	if p.json {
		return p.printJSON(e)
	}
	var t table
	t.row("run", e.RunID)
	t.wait(e.Wait)
	t.row("launcher", dash(e.Launcher))
	t.row("route at launch", dash(e.Route))
	t.row("route now", fmt.Sprintf("%s: %s", e.Rule, e.Reason))
	t.row("launchers", strings.Join(e.Launchers, ", then "))
	for _, p := range e.Passed {
		t.row("does not match", p)
	}
	if e.Problem != "" {
		t.row("problem", e.Problem)
	}
	if len(e.Fields) > 0 {
		t.row()
		t.row("FIELD", "VALUE", "SET BY")
	}
	for _, f := range e.Fields {
		t.row(f.Field, f.Value, f.Source)
	}
	return t.print(p.out)
}

// layerTarget returns a target with the fields that Layers reads.
func layerTarget(in *instance.Instance, name string) worker.Target {
	l := in.Launchers[name]
	limit, _ := l.Allow.Max() // checked when the settings were read
	t := worker.Target{Name: name, Grace: l.Grace, Context: l.Kind.Context,
		Allow: worker.Allow{Images: l.Allow.Images, Forbid: l.Allow.Forbid, Max: limit}}
	t.Tags, t.Denied = l.Allow.RawTags(l.Kind)
	return t
}

// routeThen returns the rule and reason that the newest launch of a run wrote into the run's log.
func routeThen(ctx context.Context, s storage.Store, run string) (string, error) {
	events, err := s.Events(ctx, run, dagster.EngineEvent)
	route := ""
	for _, e := range events {
		for _, m := range e.Texts() {
			if m.Label == "Route" {
				route = m.Text
			}
		}
	}
	return route, err
}

// fieldsOf returns the final value of each field, after later layers have replaced earlier ones.
func fieldsOf(layers []worker.Layer) []fieldLayer {
	won := map[string]fieldLayer{}
	for _, l := range layers {
		set := func(field, value string) {
			if value != "" {
				won[field] = fieldLayer{field, value, l.Source}
			}
		}
		amount := func(field string, n int64, unit string) {
			if n != 0 {
				set(field, fmt.Sprint(n)+unit)
			}
		}
		set("image", l.Set.Image)
		amount("cpu", l.Set.Resources.CPUMillis, "m")
		amount("memory", l.Set.Resources.MemoryBytes, "")
		amount("gpu", l.Set.Resources.GPUs, "")
		amount("disk", l.Set.Resources.DiskBytes, "")
		if l.Set.Grace > 0 {
			set("stop_grace", l.Set.Grace.String())
		}
		for _, e := range l.Set.Env {
			set("env."+e.Name, shown(e))
		}
		for k, v := range l.Set.Labels {
			set("labels."+k, v)
		}
		if l.Set.Config != nil {
			set("config", string(l.Set.Config))
		}
	}
	return slices.SortedFunc(maps.Values(won), func(a, b fieldLayer) int { return cmp.Compare(a.Field, b.Field) })
}

func shown(e launcher.Env) string {
	if e.Secret {
		return "[redacted]"
	}
	return e.Value
}
