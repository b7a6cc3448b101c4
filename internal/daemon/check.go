package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
)

// checkTimeout bounds the checks of one target.
const checkTimeout = 20 * time.Second

// Check looks for reasons why launches on a target would fail. The findings of a worker that was
// sent there, if any, come last, and win over what the settings suggest.
func Check(ctx context.Context, in *instance.Instance, t *dispatch.Target,
	seen ...launcher.Finding) []launcher.Finding {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var out []launcher.Finding
	if c, ok := launcher.As[launcher.Checker](t.Launcher); ok {
		out = c.Check(ctx)
	}
	if t.Traits.LocalFiles || t.Traits.OwnCommand {
		return append(out, seen...)
	}
	opened := slices.ContainsFunc(seen, func(f launcher.Finding) bool { return f.OK })
	if in.Storage.URL == "" && !opened {
		out = append(out, launcher.Finding{
			What: fmt.Sprintf("the storage is SQLite in %s, which workers elsewhere cannot open", in.Storage.BaseDir),
			Fix:  "use Postgres: storage: {postgres: …} in dagster.yaml",
		})
	}
	return append(out, seen...)
}

// checkTargets logs what is wrong with the targets.
func (d *Daemon) checkTargets(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(d.targets)) {
		for _, f := range Check(ctx, d.Instance, d.targets[name]) {
			if !f.OK && ctx.Err() == nil {
				d.Log.WarnContext(ctx, "a launcher cannot work with its settings", "launcher", name, "finding", f.What,
					"fix", f.Fix)
			}
		}
	}
}
