package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
)

// Unwatched counts runs in flight that Slipway has launched but that no daemon with these settings
// watches: no daemon stops their workers, or ends the runs when their workers die.
type Unwatched struct {
	Setting string `json:"setting"` // instance_id or launchers
	// the instance's name at their launch, or the launcher that slipway.yaml no longer has
	Name string `json:"name"`
	Runs int    `json:"runs"`
}

// String describes the problem.
func (u Unwatched) String() string {
	if u.Setting == "launchers" {
		return fmt.Sprintf(
			"%d runs in flight are on launcher %q, which slipway.yaml does not have: no daemon watches or stops them",
			u.Runs, u.Name)
	}
	return fmt.Sprintf("%d runs in flight were launched while the instance was named %q: no daemon watches or stops "+
		"them", u.Runs, u.Name)
}

// Fix returns the next step.
func (u Unwatched) Fix() string {
	if u.Setting == "launchers" {
		return fmt.Sprintf(
			"put the launcher %q back until they have ended; slipway drain --launcher %[1]s waits for that, before "+
				"you remove it again", u.Name)
	}
	return fmt.Sprintf(
		"set instance_id: %s in slipway.yaml until they have ended; slipway drain waits for that, before you change it",
		u.Name)
}

// unwatched counts the runs that are not watched, by setting and name.
func unwatched(in *instance.Instance, name string, runs []storage.Run) []Unwatched {
	counts := map[Unwatched]int{}
	for _, r := range runs {
		switch l := r.Launch; {
		case l == nil || l.State == storage.Void || !r.Status.Active():
		case l.Instance != name:
			counts[Unwatched{Setting: "instance_id", Name: l.Instance}]++
		default:
			if _, ok := in.Launchers[l.Launcher]; !ok {
				counts[Unwatched{Setting: "launchers", Name: l.Launcher}]++
			}
		}
	}
	var out []Unwatched
	for u, n := range counts {
		u.Runs = n
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b Unwatched) int {
		return cmp.Or(strings.Compare(a.Setting, b.Setting), strings.Compare(a.Name, b.Name))
	})
	return out
}

// checkName refuses to start under another name than that of runs in flight, unless slipway.yaml
// lists the former name.
func (d *Daemon) checkName(ctx context.Context) error {
	runs, err := d.Store.Runs(ctx, storage.Filter{Statuses: dagster.ActiveStatuses()})
	if err != nil {
		return err
	}
	for _, u := range unwatched(d.Instance, d.name, runs) {
		if u.Setting == "instance_id" && !slices.Contains(d.Instance.Settings.FormerIDs, u.Name) {
			return storage.Setting(d.Instance.Problem(
				"instance_id", "the name is now %q, but %s; %s; or set former_instance_ids: [%s] to leave them alone",
				d.name, u, u.Fix(), u.Name))
		}
	}
	return nil
}

// unwatchedAgain is how often a leader repeats which runs are not watched.
const unwatchedAgain = time.Minute

// warnUnwatched logs which of the runs in flight are not watched, again and again until there are
// none. Only a leader with these settings launches, so no further ones come.
func (d *Daemon) warnUnwatched(ctx context.Context, inFlight []storage.Run) {
	for ctx.Err() == nil {
		inFlight = slices.DeleteFunc(slices.Clone(inFlight), func(r storage.Run) bool {
			return len(unwatched(d.Instance, d.name, []storage.Run{r})) == 0
		})
		if len(inFlight) == 0 {
			return
		}
		var ids []string
		for _, r := range inFlight {
			ids = append(ids, r.ID)
		}
		for _, u := range unwatched(d.Instance, d.name, inFlight) {
			d.Log.WarnContext(ctx, u.String(), "fix", u.Fix())
		}
		sleep(ctx, unwatchedAgain)
		if now, err := d.Store.Runs(ctx, storage.Filter{IDs: ids}); err == nil {
			inFlight = now
		}
	}
}
