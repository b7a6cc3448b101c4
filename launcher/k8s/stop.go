package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/slipway-run/slipway/launcher"
)

// Terminate implements [launcher.Launcher]. The Job remains, so that no process makes it again. A
// running pod gets a deadline in the past: its node stops it with the pod's grace, and keeps its
// exit code and output. The pod is deleted only if grace is shorter than that. A pod that is not
// running yet is removed by suspending its Job.
func (l *Launcher) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	job, pods, err := l.find(ctx, h, true)
	if errors.Is(err, launcher.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if got, _, _ := Health(job, pods, time.Now()); got.Status.Ended() {
		return false, nil
	}
	pod := newest(pods)
	begun := pod != nil && (pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == corev1.PodUnknown)
	if job.Annotations[stopNote] == "" || !begun && !suspended(job) {
		if err := l.patchJob(ctx, job, map[string]string{stopNote: time.Now().UTC().Format(time.RFC3339)},
			!begun); err != nil {
			return false, err
		}
	}
	if !begun {
		return true, nil
	}
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		if err := l.stopPod(ctx, pod, grace); err != nil {
			return false, err
		}
	}
	return true, nil
}

func suspended(job *batchv1.Job) bool { return job.Spec.Suspend != nil && *job.Spec.Suspend }

func (l *Launcher) stopPod(ctx context.Context, pod *corev1.Pod, grace time.Duration) error {
	has := int64(30)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		has = *pod.Spec.TerminationGracePeriodSeconds
	}
	// With 0 the pod would leave the API before its node has ended it.
	seconds := max(1, int64(math.Ceil(grace.Seconds())))
	var err error
	switch {
	case seconds < has && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds <= seconds:
	case seconds < has:
		err = l.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name,
			metav1.DeleteOptions{GracePeriodSeconds: &seconds, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	case pod.DeletionTimestamp == nil && (pod.Spec.ActiveDeadlineSeconds == nil || *pod.Spec.ActiveDeadlineSeconds > 1):
		_, err = l.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType,
			[]byte(`{"spec":{"activeDeadlineSeconds":1}}`), metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return l.askedIn(pod.Namespace, err)
	}
	return nil
}

// patchJob sets annotations on a Job and forbids it further pods. If suspend is true the Job also
// loses its current pod.
func (l *Launcher) patchJob(ctx context.Context, job *batchv1.Job, notes map[string]string, suspend bool) error {
	spec := map[string]any{"backoffLimit": 0}
	if suspend {
		spec["suspend"] = true
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": job.UID, "annotations": notes},
		"spec": spec})
	if err != nil {
		return err
	}
	_, err = l.client.BatchV1().Jobs(job.Namespace).Patch(ctx, job.Name, types.MergePatchType, patch,
		metav1.PatchOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // another Job has its name now
		return nil
	case apierrors.IsInvalid(err):
		return fmt.Errorf("%w: kubernetes refuses to stop Job %s/%s: %w", launcher.ErrTransient, job.Namespace,
			job.Name, err)
	}
	return l.askedIn(job.Namespace, err)
}

// giveUp ends a Job whose worker can never begin, and stores the reason on it.
func (l *Launcher) giveUp(ctx context.Context, job *batchv1.Job, why *failure) error {
	note, err := json.Marshal(why)
	if err != nil {
		return err
	}
	l.log.WarnContext(ctx, "a worker can never begin and is given up", "job", job.Namespace+"/"+job.Name,
		"cause", why.Cause, "why", why.Message)
	return l.patchJob(ctx, job, map[string]string{givenUpNote: string(note)}, true)
}
