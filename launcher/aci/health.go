package aci

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"

	"github.com/slipway-run/slipway/launcher"
)

// The platform ends containers for its maintenance with these exit codes.
const (
	maintenance1 = 7147
	maintenance2 = 7148
)

// containerOf returns the worker's container.
func containerOf(g *arm.ContainerGroup) *arm.ContainerProperties {
	if g.Properties == nil {
		return &arm.ContainerProperties{}
	}
	for _, c := range g.Properties.Containers {
		if val(c.Name) == containerName && c.Properties != nil {
			return c.Properties
		}
	}
	return &arm.ContainerProperties{}
}

// Health returns the health that a group's answer to GET means for its worker.
func Health(g *arm.ContainerGroup) launcher.Health {
	state, provisioning := "", ""
	if p := g.Properties; p != nil {
		provisioning = val(p.ProvisioningState)
		if p.InstanceView != nil {
			state = val(p.InstanceView.State)
		}
	}
	c := containerOf(g)
	view := c.InstanceView
	if view == nil {
		view = &arm.ContainerPropertiesInstanceView{}
	}
	now := view.CurrentState
	if now == nil {
		now = &arm.ContainerState{}
	}
	end, marked := readEnd(g)
	switch val(now.State) { // wins over the group's state, which may be Running for a container that has ended
	case "Terminated":
		switch {
		case marked:
			return end.health()
		case view.PreviousState != nil && val(view.PreviousState.State) == "Terminated":
			// Restarted by the platform; the worker was the first container.
			return ended(g, view.PreviousState, true)
		}
		return ended(g, now, val(view.RestartCount) > 0)
	case "Running":
		h := launcher.Health{Status: launcher.Running, Phase: launcher.PhaseStarted, Started: val(now.StartTime)}
		if view.PreviousState != nil || val(view.RestartCount) > 0 {
			h.Incarnation = incarnation(now, view)
			h.Message = "the platform has started the container again" + previous(view)
		}
		return h
	}
	if marked {
		return end.health()
	}
	if state == "Stopped" {
		return launcher.Health{Status: launcher.Failed, Cause: launcher.CauseCanceled,
			Message: "the container group was stopped"}
	}
	h := launcher.Health{Status: launcher.Starting, Phase: phase(view.Events)}
	detail := val(now.DetailStatus)
	switch {
	case view.PreviousState != nil || val(view.RestartCount) > 0 && happened(view.Events, "Started") != nil:
		h.Incarnation = incarnation(now, view)
		h.Message = "the platform will start the container again" + previous(view)
	case provisioning == "Failed":
		h.Message = "provisioning has failed" + words(g)
	case strings.HasPrefix(detail, "CrashLoopBackOff"), failedStart(view.Events) != nil:
		h.Message = "the container cannot be started"
		if e := failedStart(view.Events); e != nil {
			h.Message += ": " + val(e.Message)
		}
	case pullFailed(view.Events) != nil:
		h.Phase, h.Message = launcher.Pulling, val(pullFailed(view.Events).Message)
	case state == "Running" && val(now.State) == "":
		return launcher.Health{Status: launcher.Running, Phase: launcher.PhaseStarted}
	case state == "Succeeded", state == "Failed", provisioning == "Succeeded" && val(now.State) == "":
		// Without the container's own state the outcome is unknown.
		return launcher.Health{Status: launcher.Unknown,
			Message: strings.TrimSpace("the group is "+state) + ", and nothing is said of its container"}
	case detail != "":
		h.Message = detail
	}
	return h
}

func incarnation(now *arm.ContainerState, view *arm.ContainerPropertiesInstanceView) string {
	return fmt.Sprintf("%d %s", val(view.RestartCount), val(now.StartTime).UTC().Format(time.RFC3339Nano))
}

func previous(view *arm.ContainerPropertiesInstanceView) string {
	if p := view.PreviousState; p != nil && p.ExitCode != nil {
		return fmt.Sprintf("; it had ended with exit code %d", *p.ExitCode)
	}
	return ""
}

// words returns the group's own text about its failure.
func words(g *arm.ContainerGroup) string {
	var all []string
	if v := g.Properties.InstanceView; v != nil {
		for _, e := range v.Events {
			if val(e.Type) == "Warning" || val(e.Name) == "FailedMount" {
				all = append(all, val(e.Message))
			}
		}
	}
	if v := containerOf(g).InstanceView; v != nil {
		for _, e := range v.Events {
			if val(e.Type) == "Warning" {
				all = append(all, val(e.Message))
			}
		}
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, "; ")
}

func happened(events []*arm.Event, name string) *arm.Event {
	i := slices.IndexFunc(events, func(e *arm.Event) bool { return val(e.Name) == name })
	if i < 0 {
		return nil
	}
	return events[i]
}

func pullFailed(events []*arm.Event) *arm.Event {
	i := slices.IndexFunc(events, func(e *arm.Event) bool {
		return val(e.Name) == "Failed" && strings.Contains(val(e.Message), "pull")
	})
	if i < 0 || happened(events, "Pulled") != nil {
		return nil
	}
	return events[i]
}

func failedStart(events []*arm.Event) *arm.Event {
	i := slices.IndexFunc(events, func(e *arm.Event) bool {
		return val(e.Name) == "Failed" && strings.HasPrefix(val(e.Message), "Error:")
	})
	if i < 0 {
		return nil
	}
	return events[i]
}

// phase returns how far a container's start has come.
func phase(events []*arm.Event) launcher.Phase {
	switch {
	case happened(events, "Started") != nil:
		return launcher.PhaseStarted
	case happened(events, "Pulled") != nil:
		return launcher.Pulled
	case happened(events, "Pulling") != nil:
		return launcher.Pulling
	}
	return launcher.Accepted
}

// ended returns the health of a worker whose container has ended, from the container's state.
func ended(g *arm.ContainerGroup, s *arm.ContainerState, restarted bool) launcher.Health {
	// The times are cut to milliseconds, as in the tag that records an end: the same end must read
	// the same from both.
	h := launcher.Health{Started: val(s.StartTime).Truncate(time.Millisecond),
		Ended: val(s.FinishTime).Truncate(time.Millisecond)}
	if h.Ended.Before(h.Started) {
		h.Ended = h.Started
	}
	if s.ExitCode == nil {
		h.Status, h.Cause, h.Message = launcher.Failed, launcher.CauseUnknown,
			"the container has ended; Azure does not say how"
		return h
	}
	code := int(*s.ExitCode)
	h.Exit = &code
	if code == 0 && !restarted {
		h.Status = launcher.Succeeded
		return h
	}
	h.Status, h.Cause, h.Message = launcher.Failed, launcher.CauseExit,
		fmt.Sprintf("the container ended with exit code %d", code)
	detail, _, _ := strings.Cut(val(s.DetailStatus), ":")
	switch {
	case detail == "OOMKilled", code == 137: // only the kernel sends SIGKILL to a worker that was not asked to stop
		memory := 0.0
		if r := containerOf(g).Resources; r != nil && r.Requests != nil {
			memory = val(r.Requests.MemoryInGB)
		}
		h.Cause, h.Message = launcher.CauseOOM,
			fmt.Sprintf("the container was killed (exit code %d), as when its memory of %g GB is used up", code, memory)
	case code == maintenance1, code == maintenance2:
		h.Cause, h.Message = launcher.CauseEvicted,
			fmt.Sprintf("the platform ended the container for its maintenance (exit code %d)", code)
		if val(g.Properties.Priority) == arm.ContainerGroupPrioritySpot {
			h.Cause, h.Message = launcher.CausePreempted,
				fmt.Sprintf("the spot container was evicted (exit code %d)", code)
		}
	case code == 0: // a second start finds that the attempt is taken, and exits
		h.Cause, h.Message = launcher.CauseEvicted,
			"the platform started the container again, and the second worker left at its gate"
		if val(g.Properties.Priority) == arm.ContainerGroupPrioritySpot {
			h.Cause = launcher.CausePreempted
		}
	case code > 128 && code < 160:
		h.Message += fmt.Sprintf(", as after signal %d", code-128)
	}
	return h
}

// end is the record of a worker's end, saved in a tag before the platform forgets it.
type end struct {
	Cause   launcher.Cause `json:"c"`
	Exit    *int           `json:"x,omitempty"`
	Started int64          `json:"s"`
	Ended   int64          `json:"e"`
	Message string         `json:"m"`
}

func endOf(h launcher.Health) end {
	return end{Cause: h.Cause, Exit: h.Exit, Started: h.Started.UnixMilli(), Ended: h.Ended.UnixMilli(),
		Message: cut(h.Message, 120)}
}

func (e end) health() launcher.Health {
	return launcher.Health{
		Status: launcher.Failed, Cause: e.Cause, Exit: e.Exit, Message: e.Message,
		Started: time.UnixMilli(e.Started).UTC(), Ended: time.UnixMilli(e.Ended).UTC(),
	}
}

func readEnd(g *arm.ContainerGroup) (end, bool) {
	var e end
	text, ok := g.Tags[endTag]
	return e, ok && json.Unmarshal([]byte(val(text)), &e) == nil
}
