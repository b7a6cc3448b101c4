package k8s

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/slipway-run/slipway/launcher"
)

// failure is why a worker that has not begun never will. It is stored on the worker's Job when that
// is given up.
type failure struct {
	Cause   launcher.Cause `json:"cause"`
	Message string         `json:"message"`
}

// Health returns the health that a Job and its pods mean for a worker at a time. It is pure. If the
// worker can never begin, given says why, and since when; the worker may be given up if that has
// lasted long enough. For any other worker given is nil.
func Health(job *batchv1.Job, pods []*corev1.Pod, now time.Time) (h launcher.Health, given *failure, since time.Time) {
	pod := newest(pods)
	if pod == nil {
		return jobHealth(job), nil, time.Time{}
	}
	h = launcher.Health{Incarnation: incarnation(pods, pod, mainContainer(job))}
	c := containerStatus(pod, mainContainer(job))
	if c.State.Terminated != nil && !restarts(pod, c) || pod.Status.Phase == corev1.PodFailed ||
		pod.Status.Phase == corev1.PodSucceeded {
		ended(&h, job, pod, c)
		if h.Status == launcher.Failed && !finished(job) && !abandoned(job) && limit(job) > job.Status.Failed &&
			pod.Status.Phase == corev1.PodFailed {
			return launcher.Health{Status: launcher.Starting, Phase: launcher.Accepted, Incarnation: h.Incarnation,
				Message: h.Message + "; the Job's backoffLimit lets it have another pod"}, nil, time.Time{}
		}
		return h, nil, time.Time{}
	}
	if pod.Status.Phase == corev1.PodUnknown {
		h.Status, h.Message = launcher.Unknown, fmt.Sprintf("node %s does not answer", pod.Spec.NodeName)
		return h, nil, time.Time{}
	}
	if pod.DeletionTimestamp != nil && pod.Spec.NodeName != "" && now.Sub(pod.DeletionTimestamp.Time) > overdue {
		h.Status, h.Message = launcher.Unknown,
			fmt.Sprintf("the pod was to end by %s, and node %s has not said that it did%s",
				pod.DeletionTimestamp.UTC().Format(time.RFC3339), pod.Spec.NodeName, inWords(disruption(pod)))
		return h, nil, time.Time{}
	}
	if c.State.Running != nil {
		h.Status, h.Phase, h.Started = launcher.Running, launcher.PhaseStarted, c.State.Running.StartedAt.Time
		return h, nil, time.Time{}
	}
	h.Status = launcher.Starting
	given, since = waits(&h, pod, c)
	return h, given, since
}

// overdue is how long after its deadline a pod may end before its node counts as lost.
const overdue = 30 * time.Second

func mainContainer(job *batchv1.Job) string {
	if c := job.Spec.Template.Spec.Containers; len(c) > 0 {
		return c[0].Name
	}
	return ""
}

// newest returns the pod that a Job made last.
func newest(pods []*corev1.Pod) *corev1.Pod {
	if len(pods) == 0 {
		return nil
	}
	return slices.MaxFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
}

func containerStatus(pod *corev1.Pod, name string) corev1.ContainerStatus {
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name == name {
			return c
		}
	}
	return corev1.ContainerStatus{}
}

// incarnation distinguishes a worker that the cluster has started again from the first one.
func incarnation(pods []*corev1.Pod, pod *corev1.Pod, name string) string {
	restarts := containerStatus(pod, name).RestartCount
	if len(pods) == 1 && restarts == 0 {
		return ""
	}
	return fmt.Sprintf("%s/%d", pod.Name, restarts)
}

// restarts reports whether the node will start an ended container again.
func restarts(pod *corev1.Pod, c corev1.ContainerStatus) bool {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded || pod.DeletionTimestamp != nil {
		return false
	}
	return pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure && c.State.Terminated.ExitCode != 0
}

func condition(job *batchv1.Job, kinds ...batchv1.JobConditionType) *batchv1.JobCondition {
	for i, c := range job.Status.Conditions {
		if slices.Contains(kinds, c.Type) && c.Status == corev1.ConditionTrue {
			return &job.Status.Conditions[i]
		}
	}
	return nil
}

func finished(job *batchv1.Job) bool {
	return condition(job, batchv1.JobComplete, batchv1.JobFailed) != nil
}

func limit(job *batchv1.Job) int32 {
	if job.Spec.BackoffLimit == nil {
		return 6 // the API's default
	}
	return *job.Spec.BackoffLimit
}

// givenUp returns the failure that is stored on a Job that was given up, or nil.
func givenUp(job *batchv1.Job) *failure {
	var d failure
	if text := job.Annotations[givenUpNote]; text == "" || json.Unmarshal([]byte(text), &d) != nil {
		return nil
	}
	return &d
}

// abandoned reports whether Slipway lets a Job have no further pod.
func abandoned(job *batchv1.Job) bool {
	return job.Annotations[stopNote] != "" || givenUp(job) != nil
}

// jobHealth returns the health that a Job without pods means.
func jobHealth(job *batchv1.Job) launcher.Health {
	h := launcher.Health{Status: launcher.Starting, Phase: launcher.Accepted}
	if job.Status.StartTime != nil {
		h.Started = job.Status.StartTime.Time
	}
	terminating := job.Status.Active > 0 || job.Status.Terminating != nil && *job.Status.Terminating > 0
	failed := condition(job, batchv1.JobFailed)
	suspended := condition(job, batchv1.JobSuspended)
	switch d := givenUp(job); {
	case condition(job, batchv1.JobComplete) != nil:
		h.Status, h.Phase = launcher.Succeeded, ""
		if job.Status.CompletionTime != nil {
			h.Ended = job.Status.CompletionTime.Time
		}
		return h
	case abandoned(job) && !terminating && (failed != nil || suspended != nil):
		h.Status, h.Phase, h.Cause, h.Message = launcher.Failed, "", launcher.CauseCanceled, "the worker was stopped"
		if d != nil {
			h.Cause, h.Message = d.Cause, d.Message
		}
		if c := cmp.Or(failed, suspended); c != nil {
			h.Ended = c.LastTransitionTime.Time
		}
		return h
	case failed != nil && !terminating:
		h.Status, h.Phase, h.Cause, h.Ended = launcher.Failed, "", launcher.CauseEvicted, failed.LastTransitionTime.Time
		h.Message = fmt.Sprintf("the Job failed (%s: %s), and its pod is gone", failed.Reason, failed.Message)
		if failed.Reason == batchv1.JobReasonDeadlineExceeded {
			h.Cause = launcher.CauseTimeout
		}
		return h
	case abandoned(job):
		h.Message = "the Job is being stopped"
	case job.Spec.Suspend != nil && *job.Spec.Suspend && job.Labels[queueLabel] != "":
		h.Message = "the Job waits for admission by Kueue, in queue " + job.Labels[queueLabel]
	case job.Spec.Suspend != nil && *job.Spec.Suspend:
		h.Message = "the Job is suspended"
	}
	return h
}

// disruption returns why the cluster itself ended a pod, or "" if it did not.
func disruption(pod *corev1.Pod) (reason, message string) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return c.Reason, c.Message
		}
	}
	return "", ""
}

func inWords(reason, message string) string {
	if reason == "" {
		return ""
	}
	return fmt.Sprintf(" (%s: %s)", reason, message)
}

// disruptions maps the reasons of DisruptionTarget to causes.
var disruptions = map[string]launcher.Cause{
	corev1.PodReasonPreemptionByScheduler: launcher.CausePreempted,
	"DeletionByTaintManager":              launcher.CauseEvicted,
	"EvictionByEvictionAPI":               launcher.CauseEvicted,
	corev1.PodReasonTerminationByKubelet:  launcher.CauseEvicted,
	"DeletionByPodGC":                     launcher.CauseNodeLost,
}

// podReasons maps a failed pod's own reason to a cause.
var podReasons = map[string]launcher.Cause{
	"Evicted": launcher.CauseEvicted, "Preempting": launcher.CausePreempted, "Terminated": launcher.CauseEvicted,
	"Shutdown": launcher.CauseEvicted, "NodeShutdown": launcher.CauseEvicted,
	"NodeLost": launcher.CauseNodeLost, "DeadlineExceeded": launcher.CauseTimeout,
	"UnexpectedAdmissionError": launcher.CauseUnschedulable, "NodeAffinity": launcher.CauseUnschedulable,
	"OutOfcpu": launcher.CauseUnschedulable, "OutOfmemory": launcher.CauseUnschedulable,
	"OutOfpods": launcher.CauseUnschedulable,
}

// ended completes the health of a worker that has ended.
func ended(h *launcher.Health, job *batchv1.Job, pod *corev1.Pod, c corev1.ContainerStatus) {
	if pod.Status.StartTime != nil {
		h.Started = pod.Status.StartTime.Time
	}
	t := c.State.Terminated
	if t != nil {
		exit := int(t.ExitCode)
		h.Exit, h.Started, h.Ended = &exit, t.StartedAt.Time, t.FinishedAt.Time
		if h.Started.Unix() <= 0 { // the container could not be started
			h.Started = h.Ended
		}
	}
	if h.Status = launcher.Succeeded; pod.Status.Phase == corev1.PodSucceeded || t != nil && t.ExitCode == 0 {
		return
	}
	h.Status, h.Cause = launcher.Failed, launcher.CauseExit
	reason, message := disruption(pod)
	switch d := givenUp(job); {
	case d != nil:
		h.Cause, h.Message = d.Cause, d.Message
		return
	case t != nil && t.Reason == "OOMKilled":
		h.Cause, h.Message = launcher.CauseOOM,
			fmt.Sprintf("the container ran out of memory and was killed (exit code %d)", t.ExitCode)
	case job.Annotations[stopNote] != "":
		h.Cause, h.Message = launcher.CauseCanceled, "the worker was stopped"
	case reason != "":
		h.Cause, h.Message = cmp.Or(disruptions[reason], launcher.CauseEvicted), fmt.Sprintf("%s: %s", reason, message)
	case podReasons[pod.Status.Reason] != "":
		h.Cause, h.Message = podReasons[pod.Status.Reason], fmt.Sprintf("%s: %s", pod.Status.Reason, pod.Status.Message)
	case pod.DeletionTimestamp != nil:
		h.Cause, h.Message = launcher.CauseEvicted, "its pod was deleted"
	case t == nil:
		h.Message = strings.TrimSuffix(fmt.Sprintf("the pod failed before its container %s was started: %s", c.Name,
			cmp.Or(initFailure(pod), pod.Status.Message, pod.Status.Reason)), ": ")
	case t.Message != "" && (t.Reason == "StartError" || t.Reason == "ContainerCannotRun"):
		h.Message = fmt.Sprintf("the container could not be started: %s", t.Message)
	default:
		h.Message = fmt.Sprintf("the container ended with exit code %d", t.ExitCode)
		if t.ExitCode > 128 && t.ExitCode < 160 {
			h.Message += fmt.Sprintf(", as after signal %d", t.ExitCode-128)
		}
		if t.Message != "" {
			h.Message += ": " + t.Message
		}
	}
	if t != nil && h.Cause != launcher.CauseExit && h.Cause != launcher.CauseOOM {
		h.Message += fmt.Sprintf("; the container ended with exit code %d", t.ExitCode)
	}
}

// initFailure describes the end of an init container that failed.
func initFailure(pod *corev1.Pod) string {
	for _, c := range pod.Status.InitContainerStatuses {
		if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
			return strings.TrimSuffix(fmt.Sprintf("init container %s ended with exit code %d (%s): %s", c.Name,
				t.ExitCode, t.Reason, t.Message), ": ")
		}
	}
	return ""
}

// waits sets how far the start of a worker has come. It returns what the worker waits for if that
// may never come.
func waits(h *launcher.Health, pod *corev1.Pod, c corev1.ContainerStatus) (*failure, time.Time) {
	h.Phase = launcher.Accepted
	for _, cond := range pod.Status.Conditions {
		if cond.Type != corev1.PodScheduled {
			continue
		}
		if cond.Status != corev1.ConditionTrue {
			h.Message = strings.TrimPrefix(cond.Reason+": "+cond.Message, ": ")
			if cond.Reason == corev1.PodReasonUnschedulable {
				h.Cause = launcher.CauseUnschedulable
			}
			return nil, time.Time{}
		}
		h.Phase = launcher.Scheduled
	}
	since := pod.CreationTimestamp.Time
	if pod.Status.StartTime != nil {
		since = pod.Status.StartTime.Time
	}
	all := slices.Concat(pod.Status.InitContainerStatuses, []corev1.ContainerStatus{c})
	for _, s := range all {
		w := s.State.Waiting
		if w == nil {
			continue
		}
		text := strings.TrimSuffix(fmt.Sprintf("container %s: %s: %s", s.Name, w.Reason, w.Message), ": ")
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName",
			"ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			h.Phase, h.Message, h.Cause = launcher.Pulling, text, launcher.CauseImagePull
			d := &failure{launcher.CauseImagePull, text}
			if hopeless(w.Reason, w.Message) {
				since = time.Time{}
			}
			return d, since
		case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff":
			h.Phase, h.Message = launcher.Pulled, text
			return &failure{launcher.CauseUnknown, text}, since
		}
	}
	return nil, time.Time{}
}

// hopeless reports whether an image will never be available, however often the pull is tried.
func hopeless(reason, message string) bool {
	if reason == "ErrImageNeverPull" || reason == "InvalidImageName" {
		return true
	}
	message = strings.ToLower(message)
	for _, sign := range []string{"not found", "manifest unknown", "access denied",
		"unauthorized", "authentication required", "insufficient_scope", "repository does not exist",
		"no match for platform"} {
		if strings.Contains(message, sign) {
			return true
		}
	}
	return false
}
