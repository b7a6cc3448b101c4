package queue_test

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/queue"
)

func TestPauses(t *testing.T) {
	at := time.Unix(1795337531, 0).UTC()
	r := dagster.Run{Job: "daily", Tags: map[string]string{"team": "a=b"}}
	r.Remote.Location = "etl"
	for _, c := range []struct {
		scope queue.Scope
		value string
		holds bool
	}{
		{queue.OfInstance, "", true}, {queue.OfLocation, "etl", true}, {queue.OfLocation, "other", false},
		{queue.OfJob, "daily", true}, {queue.OfJob, "dail", false},
		{queue.OfTag, "team=a=b", true}, {queue.OfTag, "team=a", false}, {queue.OfTag, "none=", false},
		{queue.OfLauncher, "daily", false},
	} {
		p := queue.Pause{Scope: c.scope, Value: c.value, By: "ann", Why: "because", Since: at, Until: at.Add(time.Hour)}
		if got := p.HoldsRun(r); got != c.holds {
			t.Errorf("%s: HoldsRun = %v, want %v", p, got, c.holds)
		}
		got, bad := queue.ParsePauses(map[string]string{p.Key(): p.Text()})
		if len(bad) > 0 || len(got) != 1 || got[0] != p {
			t.Errorf("ParsePauses = %v, %v, want %v", got, bad, p)
		}
		if p.Over(at) || !p.Over(p.Until) {
			t.Errorf("%s is not over at its end, or before", p)
		}
	}
	if p := (queue.Pause{Scope: queue.OfLauncher, Value: "local"}); !p.HoldsLauncher("local") ||
		p.HoldsLauncher("other") || p.Over(at) {
		t.Errorf("%s", p)
	}
	good := queue.Pause{Scope: queue.OfJob, Value: "x"}
	got, bad := queue.ParsePauses(map[string]string{queue.PausePrefix + "job/y": good.Text(),
		queue.PausePrefix + "job/z": "{", good.Key(): good.Text()})
	if len(got) != 1 || len(bad) != 2 {
		t.Errorf("ParsePauses = %v, %v, want one, and two that cannot be read", got, bad)
	}
}
