package queue_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/queue"
)

// Explain names every limit that holds a run, and holds back exactly the runs that Pick does if no
// other run is in the queue.
func TestExplain(t *testing.T) {
	tags := []queue.TagLimit{{Key: "team", Value: "x", Limit: 1}, {Key: "db", PerValue: true, Limit: 1},
		{Key: "any", Limit: 2}}
	pools := map[string]queue.Pool{"full": {}, "free": {Slots: 5}}
	for name, c := range map[string]struct {
		run, active string
		max         int
		pools       []string
		want        string
	}{
		"nothing":             {"a", "z", 10, nil, ""},
		"no limit":            {"a", "y z", -1, nil, ""},
		"as many as may be":   {"a", "y z", 2, nil, "max_concurrent_runs is reached: 2 of 2 in flight"},
		"a limit of zero":     {"a", "", 0, nil, "max_concurrent_runs is reached: 0 of 0 in flight"},
		"a tag's value":       {"a:team=x", "z:team=x", 10, nil, "team=x: 1 of 1"},
		"another value":       {"a:team=y", "z:team=x", 10, nil, ""},
		"each value":          {"a:db=legacy", "z:db=legacy", 10, nil, "db=legacy: 1 of 1"},
		"all values of a tag": {"a:any=1", "y:any=2 z:any=3", 10, nil, "any: 2 of 2"},
		"a pool":              {"a", "", 10, []string{"full", "free"}, "pool full has no free slot (limit 0)"},
		"all of it, not the first": {"a:team=x,db=legacy", "z:team=x,db=legacy", 1, []string{"full"},
			"max_concurrent_runs is reached: 1 of 1 in flight; team=x: 1 of 1; db=legacy: 1 of 1; pool full has no " +
				"free slot (limit 0)"},
	} {
		limits := queue.Limits{MaxConcurrentRuns: c.max, Tags: tags, Pools: queue.PoolLimits{Block: true, PerRun: true}}
		run, active := entries(c.run), entries(c.active)
		if c.pools != nil {
			run[0].Run.Pools = &dagster.Pools{All: c.pools}
		}
		place, rules := queue.Explain(run[0].Run.ID, run, active, limits, pools, time.Now())
		var got []string
		for _, r := range rules {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(r.What, "tag_concurrency_limits, "), " in flight"))
		}
		want := strings.ReplaceAll(c.want, " in flight", "")
		for _, r := range rules { // of each limit here, all runs in flight
			var ids []string
			for _, h := range r.Holders {
				ids = append(ids, h.RunID)
			}
			if r.Rule != queue.PoolFull && len(ids) != len(active) || r.Rule == queue.PoolFull && len(ids) > 0 {
				t.Errorf("%s: %s is held by %v, in flight are %q", name, r.What, ids, c.active)
			}
		}
		if place != 1 || strings.Join(got, "; ") != want {
			t.Errorf("%s: Explain = %d, %q, want 1, %q", name, place, got, want)
		}
		if d := queue.Pick(run, active, limits, pools, time.Now(), func(dagster.Run) queue.Reason {
			return ""
		}); len(d.Picked) == 1 != (want == "") {
			t.Errorf("%s: Pick takes %v, Explain says %q", name, d.Picked, got)
		}
	}
	at := time.Unix(1_790_000_000, 0)
	active := entries("x:team=x y:team=x z:team=y")
	active[0].Start, active[0].Run.Job, active[1].Start = at.Add(time.Minute), "late", at
	want := []queue.Holder{{RunID: "y", Since: at}, {RunID: "x", Job: "late", Since: at.Add(time.Minute)}}
	if _, rules := queue.Explain("a", entries("a:team=x"), active, queue.Limits{MaxConcurrentRuns: -1, Tags: tags[:1]},
		nil,
		at); len(rules) != 1 || !slices.Equal(rules[0].Holders, want) {
		t.Errorf("team=x is held by %v, want %v", rules, want)
	}
	all := entries("a b:priority=3 c")
	var places []int
	for _, id := range []string{"a", "b", "c", "gone"} {
		place, _ := queue.Explain(id, all, nil, queue.Limits{MaxConcurrentRuns: -1}, nil, time.Now())
		places = append(places, place)
	}
	if want := []int{2, 1, 3, 0}; !slices.Equal(places, want) {
		t.Errorf("places %v, want %v", places, want)
	}
}
