package router_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

func run(tags ...string) dagster.Run {
	r := dagster.Run{ID: "r", Job: "nightly",
		Remote: dagster.RemoteOrigin{Location: "etl", Repository: "__repository__"},
		Assets: []string{"raw/orders", "users"}, Tags: map[string]string{}}
	for _, t := range tags {
		k, v, _ := strings.Cut(t, "=")
		r.Tags[k] = v
	}
	return r
}

var known = map[string]router.Launcher{"local": {}, "spot": {}, "vault": {Restricted: true}}

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		name string
		when router.When
		run  dagster.Run
		want bool
		why  string
	}{
		{"nothing", router.When{}, run(), true, "no condition"},
		{"location", router.When{Location: []string{"et*"}}, run(), true, `location "etl" matches "et*"`},
		{"another location", router.When{Location: []string{"et", "?tl?"}}, run(), false,
			`"etl" matches none of "et", "?tl?"`},
		{"repository", router.When{Repository: []string{"__*"}}, run(), true, ""},
		{"job of a list", router.When{Job: []string{"hourly", "nightl?"}}, run(), true, ""},
		{"asset", router.When{Assets: []string{"raw/*"}}, run(), true, "raw/orders"},
		{"another asset", router.When{Assets: []string{"raw"}}, run(), false, ""},
		{"partition", router.When{Partition: []string{"2026-*"}}, run("dagster/partition=2026-11-24"), true, ""},
		{"no partition", router.When{Partition: []string{"*"}}, run(), false, "the run has no partition"},
		{"tag", router.When{Tags: map[string][]string{"team": {"data*"}}}, run("team=data-eng"), true, ""},
		{"no tag", router.When{Tags: map[string][]string{"team": {"*"}}}, run(), false, "no tag team"},
		{"all of several", router.When{Job: []string{"nightly"}, Tags: map[string][]string{"team": {"x"}}},
			run("team=y"), false, ""},
		{"priority", router.When{Priority: ">=5"}, run("dagster/priority=5"), true, ""},
		{"priority as Python's int", router.When{Priority: "=5"}, run("dagster/priority= +5 "), true, ""},
		{"a priority that is not an integer is 0", router.When{Priority: "=0"}, run("dagster/priority=high"), true, ""},
		{"a priority beyond int64", router.When{Priority: ">5", CEL: "run.priority > 5"},
			run("dagster/priority=99999999999999999999"), true, ""},
		{"no priority is 0", router.When{Priority: "<1"}, run(), true, ""},
		{"memory", router.When{Memory: "> 8Gi"}, run("slipway/memory=16Gi"), true, ""},
		{"no memory", router.When{Memory: "<8Gi"}, run(), false, "does not set its memory"},
		{"cpu", router.When{CPU: "<=500m"}, run("slipway/cpu=0.5"), true, ""},
		{"gpu", router.When{GPU: ">=1"}, run("slipway/gpu=2"), true, ""},
		{"gpu exactly", router.When{GPU: "1"}, run("slipway/gpu=2"), false, ""},
		{"cel", router.When{CEL: `run.job.startsWith("night") && run.assets.exists(a, a == "users")`}, run(), true,
			"is true"},
		{"cel of a tag", router.When{CEL: `run.tags["team"] == "data"`}, run("team=data"), true, ""},
		{"cel of a tag that is missing", router.When{CEL: `run.tags["team"] == "data"`}, run(), false, "no such key"},
		{"cel with amounts", router.When{CEL: `run.cpu >= 1.5 && run.memory > 1000 && run.priority == 3`},
			run("slipway/cpu=2", "slipway/memory=1Gi", "dagster/priority=3"), true, ""},
		{"cel that costs too much",
			router.When{CEL: `[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, [1,2,3,4,5,6,7,8,9].all(c, ` +
				`[1,2,3,4,5,6,7,8,9].all(d, [1,2,3,4,5,6,7,8,9].all(e, a+b+c+d+e > 0)))))`}, run(), false, "cost"},
	} {
		r, err := router.New([]router.Rule{{When: c.when, To: []string{"spot"}}}, []string{"local"}, known)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		d := r.Route(c.run)
		why := d.Reason + strings.Join(d.Passed, "")
		if (d.Index == 0) != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%s: %+v, want that it fits: %v, because %q", c.name, d, c.want, c.why)
		}
	}
}

func TestTheFirstRuleThatFits(t *testing.T) {
	r, err := router.New([]router.Rule{
		{When: router.When{Job: []string{"hourly"}}, To: []string{"spot"}},
		{Name: "big", When: router.When{Memory: ">1Gi"}, To: []string{"spot", "local"}, ByTag: true,
			Set: router.Set{Image: "big:1"}},
		{To: []string{"vault"}},
	}, []string{"local"}, known)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		run  dagster.Run
		rule string
		to   []string
	}{
		{run(), "routes[2]", []string{"vault"}},
		{run("slipway/memory=2Gi"), "big", []string{"spot", "local"}},
		{run("slipway/memory=2Gi", "slipway/launcher=local"), "big", []string{"local"}},
		{run("slipway/memory=2Gi", "slipway/launcher=vault"), "big", []string{"spot", "local"}},
		{run("slipway/launcher=local"), "routes[2]", []string{"vault"}}, // not where the rule does not allow it
	} {
		d := r.Route(c.run)
		if d.Rule != c.rule || !slices.Equal(d.Launchers, c.to) || len(d.Passed) != d.Index {
			t.Errorf("%v: %+v, want %s to %v", c.run.Tags, d, c.rule, c.to)
		}
		if (d.Rule == "big") != (d.Set.Image == "big:1") {
			t.Errorf("%v: sets %+v", c.run.Tags, d.Set)
		}
	}
	none, err := router.New(nil, []string{"local"}, known)
	if d := none.Route(run()); err != nil || d.Rule != "default" || d.Launchers[0] != "local" {
		t.Errorf("without rules: %+v, %v", d, err)
	}
}

func TestRulesThatCannotWork(t *testing.T) {
	for want, rule := range map[string]router.Rule{
		"routes[0].to: required: a launcher":              {},
		`routes[0].to: there is no launcher named "moon"`: {To: []string{"moon"}},
		`routes[0].to: launcher "vault" is restricted`: {To: []string{"vault"},
			When: router.When{Tags: map[string][]string{"a": {"b"}}}},
		`launcher "vault" is restricted: rules`: {To: []string{"vault"},
			When: router.When{Partition: []string{"x"}}},
		`"vault" is restricted: rules with allow_tag`: {To: []string{"vault"}, ByTag: true},
		`is restricted: rules with allow_tag or with conditions on tags`: {To: []string{"vault"},
			When: router.When{CEL: "run.tags.size() > 0"}},
		`routes[0].when.priority: "high" is not a comparison`: {To: []string{"spot"},
			When: router.When{Priority: "high"}},
		`routes[0].when.memory: ">=lots" is not a comparison`: {To: []string{"spot"},
			When: router.When{Memory: ">=lots"}},
		`routes[0].when.cel`: {To: []string{"spot"},
			When: router.When{CEL: "run.job =="}},
		"routes[0].when.cel: the expression is a int, not a bool": {To: []string{"spot"},
			When: router.When{CEL: "1 + 1"}},
		"routes[0].when.cel: this is not a valid CEL expression: ERROR: <input>:1:1: undeclared refer": {
			To: []string{"spot"}, When: router.When{CEL: "job == 'x'"}},
	} {
		_, err := router.New([]router.Rule{rule}, []string{"local"}, known)
		var p *router.Problem
		if !errors.As(err, &p) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%+v: %v, want %q", rule, err, want)
		}
	}
}

func TestResources(t *testing.T) {
	for tags, want := range map[string]string{
		"": "{0 0 0 0}", "slipway/cpu=2": "{2000 0 0 0}", "slipway/cpu=0.5": "{500 0 0 0}",
		"slipway/cpu=250m slipway/memory=512Mi slipway/gpu=1": "{250 536870912 1 0}",
		"slipway/memory=2G": "{0 2000000000 0 0}", "slipway/disk=1Ki": "{0 0 0 1024}",
		"slipway/cpu=lots": `tag slipway/cpu="lots"`, "slipway/memory=-1": `tag slipway/memory="-1"`,
		"slipway/gpu=0.5": `tag slipway/gpu="0.5"`,
	} {
		res, err := router.Resources(run(strings.Fields(tags)...))
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(res)
		} else if !errors.Is(err, launcher.ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", tags, err)
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: resources %s, want %s", tags, got, want)
		}
	}
}
