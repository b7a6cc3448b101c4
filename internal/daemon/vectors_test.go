package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// vector is one case of queue_vectors.json: what the real queue of Dagster decided.
type vector struct {
	Config   map[string]any
	PageSize int `json:"page_size"`
	Runs     []struct {
		Status            dagster.Status
		Tags              map[string]string
		RunOpConcurrency  json.RawMessage `json:"run_op_concurrency"`
		StartedSecondsAgo *float64        `json:"started_seconds_ago"`
	}
	PoolLimits   map[string]int `json:"pool_limits"`
	ClaimsBefore []struct {
		Pool, Step string
		Run        int
	} `json:"claims_before"`
	Launched []int
}

func TestDecisionsOfTheRealQueue(t *testing.T) {
	for _, dir := range testenv.Golden(t) {
		text, err := os.ReadFile(filepath.Join(dir, "queue_vectors.json"))
		if err != nil {
			t.Fatal(err)
		}
		var vectors []vector
		if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) < 100 {
			t.Fatalf("%d vectors, %v", len(vectors), err)
		}
		for i, v := range vectors {
			if got := v.decide(t); !slices.Equal(got, v.Launched) {
				t.Errorf("%s case %d: launched %v, Dagster %v; config %v", dir, i, got, v.Launched, v.Config)
			}
		}
	}
}

// decide loads the case's configuration as a dagster.yaml and picks.
func (v vector) decide(t *testing.T) []int {
	t.Helper()
	home := t.TempDir()
	text, err := yaml.Marshal(v.Config)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"dagster.yaml": text,
		"slipway.yaml": []byte("queue: {charge: dagster}\nlaunchers: {}\n")} {
		if err := os.WriteFile(filepath.Join(home, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in, err := instance.Load(home, []*launcher.Kind{{Name: "process"}}, func(string) (string, bool) {
		return "", false
	})
	if err != nil {
		t.Fatal(err)
	}
	limits := limitsOf(in.StockQueue)
	limits.Charge, limits.Page = queue.ChargeDagster, v.PageSize
	now := time.Now()
	var queued, active []queue.Entry
	for i, r := range v.Runs {
		body := fmt.Sprintf(
			`{"run_id": "%d", "run_op_concurrency": %s, "status": {"__enum__": "PipelineRunStatus.%s"}}`, i,
			pools(t, r.RunOpConcurrency), r.Status)
		run, err := dagster.ParseRun(body)
		if err != nil {
			t.Fatal(err)
		}
		run.Tags = r.Tags
		e := queue.Entry{Run: run, Row: int64(i)}
		if r.StartedSecondsAgo != nil {
			e.Start = now.Add(-time.Duration(*r.StartedSecondsAgo * float64(time.Second)))
		}
		switch {
		case r.Status == dagster.Queued:
			queued = append(queued, e)
		case r.Status.Active():
			active = append(active, e)
		}
	}
	known := map[string]queue.Pool{}
	for name, limit := range v.PoolLimits {
		steps := map[string]bool{}
		for _, c := range v.ClaimsBefore {
			if c.Pool == name {
				steps[fmt.Sprint(c.Run, c.Step)] = true
			}
		}
		known[name] = queue.Pool{Slots: limit, Pending: len(steps)}
	}
	picked := queue.Pick(queued, active, limits, known, now, func(dagster.Run) queue.Reason { return "" }).Picked
	launched := []int{}
	for _, r := range picked {
		var i int
		if _, err := fmt.Sscan(r.ID, &i); err != nil {
			t.Fatal(err)
		}
		launched = append(launched, i)
	}
	return launched
}

// pools gives the case's short form the spelling of a run's body.
func pools(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var p *struct {
		Root map[string]int `json:"root_key_counts"`
		All  []string       `json:"all_pools"`
		Free bool           `json:"has_unconstrained_root_nodes"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if p == nil {
		return "null"
	}
	return string(dagster.Encode(dagster.Pools{All: p.All, Root: p.Root, Unconstrained: p.Free}.Value()))
}
