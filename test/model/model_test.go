package model_test

import (
	"strings"
	"testing"

	"github.com/slipway-run/slipway/test/model"
)

// Two daemons, three leads, crashes and lost answers at every step. No attempt has two workers past
// their gate, and no two workers are past their gates at once. No run is lost, no foreign run is
// touched. Without a gate, a target that can hold two workers with the same name breaks these
// rules: the model shows how.
func TestEveryState(t *testing.T) {
	explore(t, map[string]world{
		"unique names, gate":                 {model.Rules{Unique: true, Gate: true, Removes: true}, ""},
		"unique names, no gate":              {model.Rules{Unique: true, Removes: true}, ""},
		"names that can be doubled, gate":    {model.Rules{Gate: true, Removes: true}, ""},
		"names that can be doubled, no gate": {model.Rules{Removes: true}, "workers"},
		"a foreign run":                      {model.Rules{Unique: true, Gate: true, Foreign: true}, ""},
	})
}

// world is a set of rules and the rule that they break.
type world struct {
	rules  model.Rules
	broken string
}

// explore visits every state of some worlds.
func explore(t *testing.T, worlds map[string]world) {
	t.Helper()
	for name, c := range worlds {
		t.Run(name, func(t *testing.T) {
			c.rules.Daemons, c.rules.Epochs = 2, 3
			got := model.Explore(c.rules)
			t.Logf("%d states", got.States)
			switch {
			case c.broken == "" && got.Broken != "":
				t.Errorf("%s, after %v", got.Broken, got.Trace)
			case c.broken != "" && !strings.Contains(got.Broken, c.broken):
				t.Errorf("nothing is broken: the model is too kind")
			case c.rules.Blind:
				if got.Lost == nil {
					t.Error("every run ends: the model is too kind")
				}
			case got.Lost != nil:
				t.Errorf("from %+v the run can never end; it came there by %v", *got.Lost, got.Trace)
			}
			if c.broken != "" {
				t.Logf("%s: %v", got.Broken, got.Trace)
			}
		})
	}
}

func TestReplay(t *testing.T) {
	rules := model.Rules{Daemons: 2, Epochs: 3, Unique: true, Gate: true, Removes: true}
	step := func(what string, daemon, attempt int) model.Step {
		return model.Step{What: what, Daemon: daemon, Attempt: attempt}
	}
	good := []model.Step{step("claim", 0, 1), step("launch", 0, 1), step("launch", 1, 1), step("launched", 1, 1),
		step("handle", 1, 1), step("again", 1, 1), step("claim", 0, 2), step("launch", 0, 2), step("launched", 0, 2),
		step("handle", 0, 2), step("end", 0, 2)}
	if n, ok := model.Replay(rules, good); !ok {
		t.Fatalf("refused at %v", good[n])
	}
	for i := range len(good) - 1 {
		swapped := append([]model.Step{}, good...)
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
		n, ok := model.Replay(rules, swapped)
		// Requests of two daemons may come in either order.
		if free := good[i].What == "launch" && good[i+1].What == "launch"; ok != free {
			t.Errorf("with %v and %v swapped: taken %v, as far as step %d", good[i], good[i+1], ok, n)
		}
	}
}

// A run is put back while it certainly has no worker, and not while a request may still arrive.
func TestReplayOfRequeues(t *testing.T) {
	rules := model.Rules{Daemons: 2, Epochs: 3, Unique: true}
	for text, fits := range map[string]bool{
		"1 claim r 1\n1 requeue r 1\n1 claim r 2\n1 launch r 2\n1 launched r 2\n":                             true,
		"1 claim r 1\n1 launch r 1\n1 launch r 1\n1 requeue r 1\n1 claim r 2\n":                               true,
		"1 claim r 1\n1 launch r 1\n1 launched r 1\n1 requeue r 1\n1 claim r 2\n":                             false,
		"1 claim r 1\n1 launch r 1\n1 requeue r 1\n1 launched r 1\n":                                          false,
		"1 claim r 1\n1 launch r 1\n2 launch r 1\n2 requeue r 1\n2 claim r 2\n1 launched r 1\n1 launch r 1\n": false,
	} {
		traces, err := model.Traces(text)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := model.Replay(rules, traces["r"].Steps); ok != fits {
			t.Errorf("%q: the model takes it: %v, as far as step %d; want %v", text, ok, n, fits)
		}
	}
}

// A daemon that was stopped after a commit records it late. The record is moved before the steps
// that followed the commit, except if the same daemon recorded a step in between.
func TestLateRecords(t *testing.T) {
	for _, c := range []struct {
		text string
		want string
		fits bool
	}{
		{"1 launch r 1\n1 launched r 1\n1 handle r 1\n2 claim r 1\n2 launch r 1\n2 launched r 1\n",
			"claim launch launched handle launch launched", true},
		{"1 claim r 1\n1 launch r 1\n1 launched r 1\n2 launch r 1\n2 launched r 1\n2 handle r 1\n2 claim r 2\n1 " +
			"again r 1\n2 launch r 2\n", "claim launch launched launch launched handle again claim launch", true},
		{"1 launch r 1\n1 claim r 1\n1 launched r 1\n", "launch claim launched", false},
	} {
		traces, err := model.Traces(c.text)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range traces["r"].Steps {
			got = append(got, s.What)
		}
		rules, ok := traces["r"].Rules()
		if !ok || strings.Join(got, " ") != c.want {
			t.Errorf("%q is read as %q, %v, want %q", c.text, got, ok, c.want)
		}
		if n, fits := model.Replay(rules, traces["r"].Steps); fits != c.fits {
			t.Errorf("%q: the model takes it: %v, as far as step %d; want %v", c.text, fits, n, c.fits)
		}
	}
}
