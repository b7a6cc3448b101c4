package storage

import (
	"slices"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/failpoint"
)

// TraceClaims records committed claims, for tests of the protocol. Without the build tag failpoints
// it does nothing.
func TraceClaims(outcomes []Outcome) {
	if !failpoint.Enabled {
		return
	}
	for _, o := range outcomes {
		if o.Done {
			failpoint.Trace(failpoint.StepClaim, o.Launch.Run, o.Launch.Attempt)
		}
	}
}

// TraceMove is [TraceClaims] for a transition. Most transitions are not steps of the protocol.
func TraceMove(t Transition, out Outcome) {
	if !failpoint.Enabled || !out.Done {
		return
	}
	has := func(typ dagster.EventType) bool {
		return slices.ContainsFunc(t.Events, func(e dagster.Event) bool { return e.Type == typ })
	}
	switch {
	case t.Handle != "":
		failpoint.Trace(failpoint.StepHandle, t.Run, out.Launch.Attempt)
	case t.Death != nil && t.Void:
		failpoint.Trace(failpoint.StepAgain, t.Run, out.Launch.Attempt)
	case t.Void && has(dagster.RunEnqueued):
		failpoint.Trace(failpoint.StepRequeue, t.Run, out.Launch.Attempt)
	case has(dagster.RunFailure):
		failpoint.Trace(failpoint.StepEnd, t.Run, out.Launch.Attempt)
	}
}
