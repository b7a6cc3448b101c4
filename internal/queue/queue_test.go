package queue_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/queue"
)

// entries makes runs from "a b:priority=3,team=x c".
func entries(text string) []queue.Entry {
	var out []queue.Entry
	for i, word := range strings.Fields(text) {
		id, tags, _ := strings.Cut(word, ":")
		r := dagster.Run{ID: id, Tags: map[string]string{}}
		for tag := range strings.SplitSeq(tags, ",") {
			if k, v, ok := strings.Cut(tag, "="); ok {
				r.Tags[strings.Replace(k, "priority", dagster.PriorityTag, 1)] = v
			}
		}
		out = append(out, queue.Entry{Run: r, Row: int64(i + 1)})
	}
	return out
}

func ids(runs []dagster.Run) string {
	var out []string
	for _, r := range runs {
		out = append(out, r.ID)
	}
	return strings.Join(out, " ")
}

func TestPick(t *testing.T) {
	team := []queue.TagLimit{{Key: "team", Value: "x", Limit: 1}}
	each := []queue.TagLimit{{Key: "team", PerValue: true, Limit: 1}}
	any := []queue.TagLimit{{Key: "team", Limit: 2}}
	for name, c := range map[string]struct {
		queued, active string
		max            int
		tags           []queue.TagLimit
		held           string
		want           string
	}{
		"first in, first out":         {"a b c", "", 10, nil, "", "a b c"},
		"no more than fit":            {"a b c", "", 2, nil, "", "a b"},
		"runs in flight count":        {"a b c", "x y", 3, nil, "", "a"},
		"more in flight than allowed": {"a", "x y", 1, nil, "", ""},
		"no limit":                    {"a b c", "x y", -1, nil, "", "a b c"},
		"zero launches nothing":       {"a", "", 0, nil, "", ""},
		"priority first, then order": {"a b:priority=1 c:priority=5 d:priority=1", "", 3, nil,
			"", "c b d"},
		"a priority below zero is last": {"a:priority=-1 b:priority=x c", "", 10, nil, "", "b c a"},
		"priorities beyond int64": {
			"a:priority=18446744073709551616 b:priority=-18446744073709551616 c:priority=36893488147419103232 d",
			"", 10, nil, "", "c a d b"},
		"the empty value is limited": {"a:team= b:team= c:team=x d", "", 10,
			[]queue.TagLimit{{Key: "team", Empty: true, Limit: 1}}, "", "a c d"},
		"a tag's value is limited":                {"a:team=x b:team=x c:team=y", "", 10, team, "", "a c"},
		"runs in flight count for tags":           {"a:team=x b:team=y", "z:team=x", 10, team, "", "b"},
		"each value has its own":                  {"a:team=x b:team=y c:team=x d", "", 10, each, "", "a b d"},
		"any value counts":                        {"a:team=x b:team=y c:team=z d", "", 10, any, "", "a b d"},
		"a held run does not charge its tag":      {"a:team=x b:team=x", "", 10, team, "a", "b"},
		"a held run leaves its place to the next": {"a b c", "", 1, nil, "a", "b"},
		"a limit of zero keeps its runs for ever": {"a:team=x b", "", 10, []queue.TagLimit{{Key: "team", Limit: 0}}, "",
			"b"},
	} {
		d := queue.Pick(entries(c.queued), entries(c.active), queue.Limits{MaxConcurrentRuns: c.max, Tags: c.tags}, nil,
			time.Now(), func(r dagster.Run) queue.Reason {
				if slices.Contains(strings.Fields(c.held), r.ID) {
					return queue.Paused
				}
				return ""
			})
		if ids(d.Picked) != c.want {
			t.Errorf("%s: Pick = %q, want %q", name, ids(d.Picked), c.want)
		}
		waiting := 0
		for _, n := range d.Waits {
			waiting += n
		}
		if all := len(strings.Fields(c.queued)); waiting+len(d.Picked) != all {
			t.Errorf("%s: %d picked and %v waiting of %d: each has its reason", name, len(d.Picked), d.Waits, all)
		}
	}
}
