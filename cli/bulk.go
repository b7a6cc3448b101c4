package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
)

// runFilter selects runs by status, job, location and tags.
type runFilter struct {
	statuses, jobs, locations, tags []string
	all, dry                        bool
}

func (f *runFilter) empty() bool {
	return len(f.statuses)+len(f.jobs)+len(f.locations)+len(f.tags) == 0 && !f.all
}

// wants reports whether a run matches every part of the filter that is set.
func (f *runFilter) wants(r dagster.Run) bool {
	part := func(list []string, v string) bool { return len(list) == 0 || slices.Contains(list, v) }
	for _, t := range f.tags {
		key, value, exact := strings.Cut(t, "=")
		if got, ok := r.Tags[key]; !ok || exact && got != value {
			return false
		}
	}
	status := len(f.statuses) == 0 || slices.ContainsFunc(f.statuses, func(s string) bool {
		return strings.EqualFold(s, string(r.Status))
	})
	return status && part(f.jobs, r.Job) && part(f.locations, r.Remote.Location)
}

// flags adds the flags of a filter. done says what happens to the runs.
func (f *runFilter) flags(flags *pflag.FlagSet, done string) {
	flags.StringSliceVar(&f.jobs, "job", nil, "only runs of this job; may be repeated")
	flags.StringSliceVar(&f.locations, "location", nil, "only runs of this code location; may be repeated")
	flags.StringArrayVar(&f.tags, "tag", nil,
		"only runs with this `TAG`, KEY or KEY=VALUE; if repeated, runs with all of them")
	flags.BoolVar(&f.dry, "dry-run", false, "only show which runs would be "+done)
}

// bulk is a change of one run or of many.
type bulk struct {
	plan func(storage.Run) (storage.Transition, error) // an error: the run is left alone
	// for people: "12 runs" and done or would, and "not: 3" of runs that changed meanwhile
	done, would, not string
}

// outcomeView is the outcome for one run.
type outcomeView struct {
	RunID  string         `json:"run_id"`
	Status dagster.Status `json:"status"`
	Error  string         `json:"error,omitempty"`
}

// change changes the runs that are named or, without names, all runs that match a filter.
func (p *program) change(ctx context.Context, s storage.Store, ids []string, f *runFilter, b bulk) error {
	if len(ids) > 0 {
		return p.changeNamed(ctx, s, ids, f.dry, b)
	}
	return p.changeMatching(ctx, s, f, b)
}

// bulkSize is how many runs are changed in one transaction.
const bulkSize = 200

// changeMatching changes the unfinished runs that match a filter.
func (p *program) changeMatching(ctx context.Context, s storage.Store, f *runFilter, b bulk) error {
	runs, err := s.Runs(ctx, storage.Filter{Statuses: dagster.UnfinishedStatuses()})
	if err != nil {
		return err
	}
	counts := map[string]int{}
	views := []outcomeView{}
	var batch []storage.Transition
	flush := func() error {
		out, err := s.RecordAll(ctx, batch)
		for i, o := range out {
			v := outcomeView{RunID: batch[i].Run, Status: o.Status}
			if !o.Done {
				v.Error = fmt.Sprintf("run %s has just become %s; try again", v.RunID, o.Status)
				counts[b.not]++
			} else {
				counts[string(o.Status)]++
			}
			views = append(views, v)
		}
		if !p.json && err == nil && len(runs) > bulkSize {
			_, err = fmt.Fprintf(p.out, "%s done\n", count(len(views), "run"))
		}
		batch = batch[:0]
		return err
	}
	for _, r := range runs {
		if r.Broken != nil || !f.wants(r.Run) {
			continue
		}
		t, err := b.plan(r)
		switch {
		case err != nil:
			counts["left alone"]++
			views = append(views, outcomeView{RunID: r.ID, Status: r.Status, Error: err.Error()})
		case f.dry:
			counts[string(r.Status)]++
			views = append(views, outcomeView{RunID: r.ID, Status: r.Status})
		default:
			batch = append(batch, t)
		}
		if len(batch) == bulkSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(batch) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	if p.json {
		return p.printJSON(views)
	}
	what := b.done
	if f.dry {
		what = b.would
	}
	text := count(len(views)-counts["left alone"]-counts[b.not], "run") + " " + what
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		text += fmt.Sprintf("; %s: %d", k, counts[k])
	}
	_, err = fmt.Fprintln(p.out, text)
	return err
}

// changeNamed changes the runs that are named.
func (p *program) changeNamed(ctx context.Context, s storage.Store, ids []string, dry bool, b bulk) error {
	var views []outcomeView
	var failed int
	for _, id := range ids {
		v, err := changeOne(ctx, s, id, dry, b)
		if err != nil {
			failed++
			v.Error = err.Error()
		}
		views = append(views, v)
		if p.json {
			continue
		}
		text := "run " + v.RunID + ": " + string(v.Status)
		if err != nil {
			text = err.Error()
		}
		if _, err := fmt.Fprintln(p.out, text); err != nil {
			return err
		}
	}
	var err error
	if p.json {
		err = p.printJSON(views)
	}
	if failed > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %s %s", failed, count(len(ids), "run"), b.not))
	}
	return err
}

// changeOne changes one run.
func changeOne(ctx context.Context, s storage.Store, id string, dry bool, b bulk) (outcomeView, error) {
	r, err := find(ctx, s, id)
	if err = errors.Join(err, r.Broken); err != nil {
		return outcomeView{RunID: id}, err
	}
	v := outcomeView{RunID: r.ID, Status: r.Status}
	t, err := b.plan(r)
	if err != nil || dry {
		return v, err
	}
	out, err := s.Record(ctx, t)
	if err == nil && !out.Done {
		err = fmt.Errorf("run %s has just become %s; try again", r.ID, out.Status)
	}
	if out.Status != "" {
		v.Status = out.Status
	}
	return v, err
}
