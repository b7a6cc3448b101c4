package k8s_test

import (
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
)

// Each state of a Job and its pods has its meaning for a worker. The states were taken from a
// cluster of version 1.36.
func TestHealth(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	const scheduled = `conditions: [{type: PodScheduled, status: "True"}]`
	for _, c := range []struct {
		name, job string
		pods      []string
		status    launcher.Status
		phase     launcher.Phase
		cause     launcher.Cause
		says      string
		exit      int // -1 means none
		given     launcher.Cause
		atOnce    bool
	}{
		{name: "a Job without a pod", status: launcher.Starting, phase: launcher.Accepted, exit: -1},
		{name: "held by Kueue", job: "metadata: {labels: {kueue.x-k8s.io/queue-name: data}}\nspec: {suspend: true}",
			status: launcher.Starting, phase: launcher.Accepted, says: "waits for admission by Kueue, in queue data",
			exit: -1},
		{name: "suspended by a user", job: "spec: {suspend: true}", status: launcher.Starting,
			phase: launcher.Accepted, says: "suspended", exit: -1},
		{
			name: "stopped before it had a pod",
			job: "metadata: {annotations: {slipway/stopped: x}}\nspec: {suspend: true}\nstatus: {conditions: " +
				"[{type: Suspended, status: \"True\"}]}",
			status: launcher.Failed, cause: launcher.CauseCanceled, exit: -1,
		},
		{name: "being stopped",
			job:    "metadata: {annotations: {slipway/stopped: x}}\nspec: {suspend: true}\nstatus: {terminating: 1}",
			status: launcher.Starting, phase: launcher.Accepted, says: "is being stopped", exit: -1},
		{
			name: "given up",
			job: "metadata: {annotations: {slipway/doomed: '{\"cause\": \"image_pull\", \"message\": \"no such " +
				"image\"}'}}\nstatus: {conditions: [{type: Suspended, status: \"True\"}]}",
			status: launcher.Failed, cause: launcher.CauseImagePull, says: "no such image", exit: -1,
		},
		{name: "complete, its pod removed", job: "status: {conditions: [{type: Complete, status: \"True\"}]}",
			status: launcher.Succeeded, exit: -1},
		{
			name: "failed, its pod removed",
			job: "status: {conditions: [{type: Failed, status: \"True\", reason: BackoffLimitExceeded, message: " +
				"m}]}",
			status: launcher.Failed, cause: launcher.CauseEvicted, says: "its pod is gone", exit: -1,
		},
		{
			name:   "past its deadline",
			job:    "status: {conditions: [{type: Failed, status: \"True\", reason: DeadlineExceeded}]}",
			status: launcher.Failed, cause: launcher.CauseTimeout, exit: -1,
		},
		{name: "about to fail", job: "status: {terminating: 1, conditions: [{type: FailureTarget, status: \"True\"}]}",
			status: launcher.Starting, phase: launcher.Accepted, exit: -1},
		{
			name: "no node fits",
			pods: []string{`status: {phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: ` +
				`Unschedulable, message: "0/3 nodes are available"}]}`},
			status: launcher.Starting, phase: launcher.Accepted, cause: launcher.CauseUnschedulable,
			says: "Unschedulable: 0/3 nodes are available", exit: -1,
		},
		{name: "being created", pods: []string{"status: {phase: Pending, " + scheduled +
			", containerStatuses: [{name: dagster, state: {waiting: {reason: ContainerCreating}}}]}"},
			status: launcher.Starting, phase: launcher.Scheduled, exit: -1},
		{
			name: "an image that is not there",
			pods: []string{"status: {phase: Pending, " + scheduled +
				`, containerStatuses: [{name: dagster, state: {waiting: {reason: ErrImagePull, message: "x: not ` +
				`found"}}}]}`},
			status: launcher.Starting, phase: launcher.Pulling, cause: launcher.CauseImagePull,
			says: "ErrImagePull: x: not found", exit: -1, given: launcher.CauseImagePull, atOnce: true,
		},
		{
			name: "a registry that does not answer",
			pods: []string{"status: {phase: Pending, " + scheduled +
				`, containerStatuses: [{name: dagster, state: {waiting: {reason: ImagePullBackOff, message: "i/o ` +
				`timeout"}}}]}`},
			status: launcher.Starting, phase: launcher.Pulling, cause: launcher.CauseImagePull, exit: -1,
			given: launcher.CauseImagePull,
		},
		{
			name: "a secret that is not there",
			pods: []string{"status: {phase: Pending, " + scheduled +
				`, containerStatuses: [{name: dagster, state: {waiting: {reason: CreateContainerConfigError, ` +
				`message: 'secret "s" not found'}}}]}`},
			status: launcher.Starting, phase: launcher.Pulled, says: `secret "s" not found`, exit: -1,
			given: launcher.CauseUnknown,
		},
		{
			name: "the image of an init container",
			pods: []string{"status: {phase: Pending, " + scheduled +
				`, initContainerStatuses: [{name: init, state: {waiting: {reason: ErrImageNeverPull}}}]}`},
			status: launcher.Starting, phase: launcher.Pulling, cause: launcher.CauseImagePull, says: "container init",
			exit: -1, given: launcher.CauseImagePull, atOnce: true,
		},
		{name: "running",
			pods: []string{"status: {phase: Running, containerStatuses: [{name: dagster, state: {running: " +
				"{startedAt: 2026-11-26T11:00:00Z}}}]}"}, status: launcher.Running, phase: launcher.PhaseStarted,
			exit: -1},
		{
			name: "ended, a sidecar still running",
			pods: []string{
				"status: {phase: Running, containerStatuses: [{name: proxy, state: {running: {}}}, {name: dagster, " +
					"state: {terminated: {exitCode: 0}}}]}"},
			status: launcher.Succeeded, exit: 0,
		},
		{name: "out of memory",
			pods: []string{"status: {phase: Failed, containerStatuses: [{name: dagster, state: {terminated: " +
				"{exitCode: 137, reason: OOMKilled}}}]}"}, status: launcher.Failed, cause: launcher.CauseOOM,
			exit: 137},
		{name: "killed",
			pods: []string{"status: {phase: Failed, containerStatuses: [{name: dagster, state: {terminated: " +
				"{exitCode: 137, reason: Error}}}]}"}, status: launcher.Failed, cause: launcher.CauseExit,
			says: "signal 9", exit: 137},
		{
			name: "stopped by us", job: "metadata: {annotations: {slipway/stopped: x}}",
			pods: []string{"status: {phase: Failed, reason: DeadlineExceeded, containerStatuses: [{name: dagster, " +
				"state: {terminated: {exitCode: 143}}}]}"},
			status: launcher.Failed, cause: launcher.CauseCanceled, exit: 143,
		},
		{name: "past the pod's own deadline",
			pods: []string{"status: {phase: Failed, reason: DeadlineExceeded, message: m, containerStatuses: [{name: " +
				"dagster, state: {terminated: {exitCode: 143}}}]}"}, status: launcher.Failed,
			cause: launcher.CauseTimeout, exit: 143},
		{name: "evicted by its node",
			pods:   []string{`status: {phase: Failed, reason: Evicted, message: "low on memory"}`},
			status: launcher.Failed, cause: launcher.CauseEvicted, says: "low on memory", exit: -1},
		{
			name: "preempted",
			pods: []string{
				"status: {phase: Failed, conditions: [{type: DisruptionTarget, status: \"True\", reason: " +
					"PreemptionByScheduler, message: m}], containerStatuses: [{name: dagster, state: {terminated: " +
					"{exitCode: 143}}}]}"},
			status: launcher.Failed, cause: launcher.CausePreempted, says: "PreemptionByScheduler", exit: 143,
		},
		{
			name: "its node is gone",
			pods: []string{
				"status: {phase: Failed, conditions: [{type: DisruptionTarget, status: \"True\", reason: " +
					"DeletionByPodGC, message: m}]}"},
			status: launcher.Failed, cause: launcher.CauseNodeLost, exit: -1,
		},
		{
			name: "its node is silent",
			pods: []string{
				"metadata: {deletionTimestamp: 2026-11-26T11:58:00Z}\nspec: {nodeName: n1}\nstatus: {phase: Running, " +
					"containerStatuses: [{name: dagster, state: {running: {}}}]}"},
			status: launcher.Unknown, says: "n1", exit: -1,
		},
		{
			name: "being deleted",
			pods: []string{
				"metadata: {deletionTimestamp: 2026-11-26T11:59:55Z}\nspec: {nodeName: n1}\nstatus: {phase: Running, " +
					"containerStatuses: [{name: dagster, state: {running: {}}}]}"},
			status: launcher.Running, phase: launcher.PhaseStarted, exit: -1,
		},
		{
			name: "an init container failed",
			pods: []string{
				"status: {phase: Failed, initContainerStatuses: [{name: init, state: {terminated: {exitCode: 3, " +
					"reason: Error}}}]}"},
			status: launcher.Failed, cause: launcher.CauseExit, says: "init container init ended with exit code 3",
			exit: -1,
		},
		{
			name: "a program that is not there",
			pods: []string{
				`status: {phase: Failed, containerStatuses: [{name: dagster, state: {terminated: {exitCode: 128, ` +
					`reason: StartError, message: "exec: no such file"}}}]}`},
			status: launcher.Failed, cause: launcher.CauseExit, says: "exec: no such file", exit: 128,
		},
		{
			name: "the Job may make another pod", job: "spec: {backoffLimit: 2}",
			pods: []string{
				"status: {phase: Failed, containerStatuses: [{name: dagster, state: {terminated: {exitCode: 1}}}]}"},
			status: launcher.Starting, phase: launcher.Accepted, says: "another pod", exit: -1,
		},
		{
			name: "the Job has made another pod", job: "spec: {backoffLimit: 2}", pods: []string{
				"metadata: {name: a, creationTimestamp: 2026-11-26T10:00:00Z}\nstatus: {phase: Failed}",
				"metadata: {name: b, creationTimestamp: 2026-11-26T11:00:00Z}\nstatus: {phase: Running, " +
					"containerStatuses: [{name: dagster, state: {running: {}}}]}",
			},
			status: launcher.Running, phase: launcher.PhaseStarted, exit: -1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := &batchv1.Job{}
			if err := yaml.Unmarshal([]byte(c.job), job); err != nil {
				t.Fatal(err)
			}
			if job.Spec.BackoffLimit == nil {
				job.Spec.BackoffLimit = new(int32)
			}
			job.Spec.Template.Spec.Containers = []corev1.Container{{Name: "dagster"}, {Name: "proxy"}}
			var pods []*corev1.Pod
			for _, text := range c.pods {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
					CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}}
				if err := yaml.Unmarshal([]byte(text), pod); err != nil {
					t.Fatal(err)
				}
				pods = append(pods, pod)
			}
			got, given, since := k8s.Health(job, pods, now)
			if got.Status != c.status || got.Phase != c.phase || got.Cause != c.cause ||
				!strings.Contains(got.Message, c.says) {
				t.Errorf("Health = %+v, want %s %s %s %q", got, c.status, c.phase, c.cause, c.says)
			}
			if c.exit < 0 && got.Exit != nil || c.exit >= 0 && (got.Exit == nil || *got.Exit != c.exit) {
				t.Errorf("exit code %v, want %d", got.Exit, c.exit)
			}
			if (given == nil) != (c.given == "") || given != nil &&
				(given.Cause != c.given || since.IsZero() != c.atOnce) {
				t.Errorf("given up: %+v since %v, want %q, at once %v", given, since, c.given, c.atOnce)
			}
			if (got.Incarnation != "") != (len(pods) > 1) {
				t.Errorf("incarnation %q of %d pods", got.Incarnation, len(pods))
			}
		})
	}
}
