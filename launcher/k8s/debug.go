package k8s

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// debugLines is the number of last lines of each container in debug information, as in Dagster.
const debugLines = 25

// podDebug is the debug information about a pod.
type podDebug struct {
	pod    *corev1.Pod
	logs   map[string]string // by container; only logs that were read
	errs   map[string]error  // by container; only logs that could not be read
	events []corev1.Event
	err    error // of reading the events
}

// debugText returns a worker's debug information in the words of Dagster's K8sRunLauncher. job is
// nil if there is none. events are those of the Job.
func debugText(name string, job *batchv1.Job, events []corev1.Event, pods []podDebug) string {
	if len(pods) == 0 {
		return fmt.Sprintf(
			"\n\nDebug information for job %s:\n\n%s\n\nFor more information about the failure, try running `kubectl "+
				"describe job %s` in your cluster.", name, jobText(name, job, events), name)
	}
	var texts []string
	for _, p := range pods {
		texts = append(texts, p.text())
	}
	first := pods[0].pod.Name
	return strings.Join(texts, "\n") +
		fmt.Sprintf("\nFor more information about the failure, try running `kubectl describe pod %s`, `kubectl logs "+
			"%s`, or `kubectl describe job %s` in your cluster.", first, first, name)
}

func jobText(name string, job *batchv1.Job, events []corev1.Event) string {
	if job == nil {
		return "Could not find job " + name
	}
	count := func(n int32) string {
		if n == 0 {
			return "None"
		}
		return fmt.Sprint(n)
	}
	var b strings.Builder
	b.WriteString("Job status:")
	if job.Status.StartTime != nil {
		fmt.Fprintf(&b, "\n - start_time: %s", job.Status.StartTime.UTC().Format("2006-01-02T15:04:05-07:00"))
	}
	fmt.Fprintf(&b, "\n - active=%s\n - succeeded=%s\n - failed=%s", count(job.Status.Active),
		count(job.Status.Succeeded), count(job.Status.Failed))
	for _, e := range events {
		fmt.Fprintf(&b, "\n\n%s: %s", e.Reason, e.Message)
	}
	return b.String()
}

func (p podDebug) text() string {
	parts := []string{fmt.Sprintf("Debug information for pod %s:", p.pod.Name), p.status()}
	for _, c := range p.pod.Spec.Containers {
		log := strings.TrimRight(p.logs[c.Name], "\n")
		switch {
		case p.errs[c.Name] != nil:
			parts = append(parts, fmt.Sprintf("Failure fetching pod logs for container '%s': %v", c.Name,
				p.errs[c.Name]))
		case log == "":
			parts = append(parts, fmt.Sprintf("No logs for container '%s'.", c.Name))
		default:
			if strings.Contains(log, "exec format error") {
				parts = append(parts,
					fmt.Sprintf("Logs for container '%s' contained `exec format error`, which usually means that "+
						"your Docker image was built using the wrong architecture.\nTry rebuilding your docker image "+
						"with the `--platform linux/amd64` flag set.", c.Name))
			}
			parts = append(parts, fmt.Sprintf("Last %d log lines for container '%s':\n%s", debugLines, c.Name, log))
		}
	}
	return strings.Join(append(parts, p.warnings()), "\n\n")
}

func (p podDebug) status() string {
	if p.pod.Status.Phase == "" {
		return "Could not determine pod status."
	}
	lines := []string{strings.TrimSuffix(fmt.Sprintf("Pod status: %s: %s", p.pod.Status.Phase, p.pod.Status.Message),
		": ")}
	for _, c := range p.pod.Status.ContainerStatuses {
		lines = append(lines, fmt.Sprintf("Container '%s' status: %s", c.Name, containerText(c)))
	}
	return strings.Join(lines, "\n")
}

func containerText(c corev1.ContainerStatus) string {
	join := func(parts ...string) string {
		out := parts[0]
		for _, p := range parts[1:] {
			if p != "" {
				out += ": " + p
			}
		}
		return out
	}
	switch s := c.State; {
	case s.Running != nil && c.Ready:
		return "Ready"
	case s.Running != nil:
		return "Running but not ready"
	case s.Terminated != nil:
		return join(fmt.Sprintf("Terminated with exit code %d", s.Terminated.ExitCode), s.Terminated.Reason,
			s.Terminated.Message)
	case s.Waiting != nil:
		return join("Waiting", s.Waiting.Reason, s.Waiting.Message)
	}
	return "Unknown"
}

// hasLog reports whether a container has started at least once.
func hasLog(c corev1.ContainerStatus) bool {
	return c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
}

func (p podDebug) warnings() string {
	if p.err != nil {
		return fmt.Sprintf("Failure fetching pod events: %v", p.err)
	}
	var lines []string
	for _, e := range p.events {
		if e.Type != corev1.EventTypeWarning {
			continue
		}
		line := fmt.Sprintf("%s: %s", e.Reason, e.Message)
		if e.Count > 1 {
			line += fmt.Sprintf(" (x%d)", e.Count)
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return "No warning events for pod."
	}
	return "Warning events for pod:\n" + strings.Join(lines, "\n")
}

// when returns the time at which an event was last seen.
func when(e corev1.Event) time.Time {
	return cmp.Or(e.LastTimestamp.Time, e.EventTime.Time, e.CreationTimestamp.Time)
}
