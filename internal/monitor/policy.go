package monitor

import (
	"fmt"
	"slices"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// Then is what happens to a run whose worker is proved dead before it finished the run.
type Then string

// The values of Then.
const (
	ThenFail   Then = "fail"
	ThenAgain  Then = "again"            // back to the queue, for another worker that begins anew
	ThenNext   Then = "next"             // the same, but on the next launcher of its route
	ThenResume Then = storage.ThenResume // another worker continues where this one ended
)

// Rule is what happens to runs whose worker died of certain causes.
type Rule struct {
	Causes  []launcher.Cause // none: all of them
	Do      Then             // while the run had not started
	Started Then             // when it had
}

// Policy decides about the runs of workers that are proved dead.
type Policy struct {
	Rules    []Rule                     // the first that has the cause decides; without one the run fails
	Workers  int                        // how many workers a run may have in all, not counting resumes
	Resumes  int                        // how many times it may be resumed
	Ladder   []int64                    // memory of workers that replace one that ran out of memory; rising
	Route    func(dagster.Run) []string // launchers of a run, the first choice first
	Resumers map[string]bool            // launchers whose workers can resume runs
}

// Decide returns what happens to a run whose worker died. If that differs from what the rule says,
// it also returns the reason.
func (p *Policy) Decide(r storage.Run, cause launcher.Cause, started bool) (Then, string) {
	if p == nil {
		return ThenFail, ""
	}
	then := ThenFail
	for _, rule := range p.Rules {
		if len(rule.Causes) == 0 || slices.Contains(rule.Causes, cause) {
			if then = rule.Do; started {
				then = rule.Started
			}
			break
		}
	}
	resumes := 0
	for _, d := range r.Deaths {
		if d.Then == storage.ThenResume {
			resumes++
		}
	}
	switch {
	case then == ThenResume && !p.Resumers[r.Launch.Launcher]:
		return ThenFail, fmt.Sprintf("launcher %q cannot resume runs", r.Launch.Launcher)
	case then == ThenResume && resumes >= p.Resumes:
		return ThenFail, fmt.Sprintf("it has surpassed the configured maximum attempts to resume the run: %d",
			p.Resumes)
	case (then == ThenAgain || then == ThenNext) && len(r.Deaths)-resumes+1 >= p.Workers:
		return ThenFail, fmt.Sprintf("it has had %d workers, as many as monitoring.launch_attempts allows", p.Workers)
	case then == ThenNext && len(Left(p.Route(r.Run), r.Deaths, r.Launch.Launcher)) == 0:
		return ThenFail, "its route has no further launcher"
	case cause == launcher.CauseOOM && then != ThenFail && len(p.Ladder) > 0 && ooms(r.Deaths) >= len(p.Ladder):
		return ThenFail, "it has had the most memory that monitoring.memory gives"
	}
	return then, ""
}

func ooms(deaths []storage.Death) (n int) {
	for _, d := range deaths {
		if d.Cause == string(launcher.CauseOOM) {
			n++
		}
	}
	return n
}

// Memory returns the memory of a run's next worker. It is at least base, and rises by the ladder
// with each earlier worker that ran out of memory.
func Memory(ladder []int64, base int64, deaths []storage.Death) int64 {
	return max(base, rung(ladder, base, ooms(deaths)))
}

// rung is the n-th step of a ladder that is higher than base; the last one if there are less, 0 if
// there is none or n is 0.
func rung(ladder []int64, base int64, n int) int64 {
	var last int64
	for _, bytes := range ladder {
		if bytes > base && n > 0 {
			last = bytes
			n--
		}
	}
	return last
}

// Left returns the launchers of a route without the launchers that the run had to leave for the
// next one, and without those in also.
func Left(route []string, deaths []storage.Death, also ...string) []string {
	var left []string
	for _, name := range route {
		gone := slices.Contains(also, name) ||
			slices.ContainsFunc(deaths, func(d storage.Death) bool {
				return d.Then == string(ThenNext) && d.Launcher == name
			})
		if !gone {
			left = append(left, name)
		}
	}
	return left
}
