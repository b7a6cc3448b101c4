package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

// Launch implements [launcher.Launcher]. The cluster gives a name once: a Job of that name that is this run's is the worker.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	job, err := l.spec(req)
	if err != nil {
		return launcher.Launched{}, err
	}
	made, err := l.client.BatchV1().Jobs(job.Namespace).Create(ctx, job, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		made, err = l.ours(ctx, req, job)
	}
	if err != nil {
		return launcher.Launched{}, l.launchError(err, job.Namespace)
	}
	failpoint.Here(failpoint.K8sCreated)
	// The node waits for the Secret, if it is not there yet when the pod is.
	if secret := l.secretOf(req, made); secret != nil && !finished(made) {
		if _, err := l.client.CoreV1().Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return launcher.Launched{}, l.secretError(err)
		}
	}
	l.hub.made(made)
	return launched(made), nil
}

// ours is the Job that has a name already, if it is this request's.
func (l *Launcher) ours(ctx context.Context, req *launcher.Request, job *batchv1.Job) (*batchv1.Job, error) {
	got, err := l.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, label := range []string{instanceLabel, runLabel, attemptLabel} {
		if got.Labels[label] != job.Labels[label] {
			return nil, fmt.Errorf("%w: there is a Job %s/%s that is not of run %s of this instance; it is left alone", launcher.ErrInvalid, job.Namespace, job.Name, req.ID.Run)
		}
	}
	return got, nil
}

func launched(job *batchv1.Job) launcher.Launched {
	return launcher.Launched{
		Handle: launcher.Handle(job.Namespace + "/" + job.Name),
		Tags:   map[string]string{"dagster/image": job.Spec.Template.Spec.Containers[0].Image},
		Notes: []launcher.Note{
			{Text: "[K8sRunLauncher] Creating Kubernetes run worker job", Metadata: [][2]string{
				{"Kubernetes Job name", job.Name}, {"Kubernetes Namespace", job.Namespace}, {"Run ID", job.Labels[runLabel]},
			}},
			{Text: "[K8sRunLauncher] Kubernetes run worker job created"},
		},
	}
}

// secretError is what it means that a Job has no Secret. It is there already: the outcome is not known until it has one.
func (l *Launcher) secretError(err error) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%w: kubernetes: the daemon may not create Secrets, in which a worker gets values that must not show: apply deploy/kubernetes/role.yaml: %w", launcher.ErrTransient, err)
	}
	return fmt.Errorf("%w: kubernetes: %w", launcher.ErrTransient, err)
}

// launchError is what a failed creation means.
func (l *Launcher) launchError(err error, namespace string) error {
	text := err.Error()
	switch {
	case errors.Is(err, launcher.ErrInvalid):
		return err
	case apierrors.IsForbidden(err) && strings.Contains(text, "exceeded quota"):
		return launcher.WithCause(fmt.Errorf("%w: kubernetes: %w", launcher.ErrCapacity, err), launcher.CauseQuota)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err), strings.Contains(text, "denied the request"): // by an admission webhook
		return fmt.Errorf("%w: kubernetes refuses the Job: %w", launcher.ErrInvalid, err)
	case apierrors.IsNotFound(err) && namespace != l.config.Namespace:
		return fmt.Errorf("%w: kubernetes: %w: the code location names this namespace", launcher.ErrInvalid, err)
	}
	return asked(err)
}

// asked is what an error of the API server says of it. Nothing is said of the worker.
func asked(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: kubernetes: %w", launcher.ErrDenied, err)
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
		return launcher.WithCause(fmt.Errorf("%w: kubernetes: %w", launcher.ErrDenied, err), launcher.CauseAuth)
	}
	out := fmt.Errorf("%w: kubernetes: %w", launcher.ErrTransient, err)
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		out = launcher.WithRetryAfter(out, time.Duration(seconds)*time.Second)
	}
	if apierrors.IsTooManyRequests(err) {
		out = launcher.WithCause(out, launcher.CauseThrottled)
	}
	return out
}

// Preview implements [launcher.Previewer].
func (l *Launcher) Preview(_ context.Context, req *launcher.Request) (json.RawMessage, error) {
	job, err := l.spec(req)
	if err != nil {
		return nil, err
	}
	job.APIVersion, job.Kind = "batch/v1", "Job"
	return json.MarshalIndent(map[string]any{"server": l.host, "namespace": job.Namespace, "job": shown(job)}, "", "  ")
}

// Try implements [launcher.Trier] by a dry run: validation, defaults, policies and quotas of the cluster are those of a launch.
func (l *Launcher) Try(ctx context.Context, req *launcher.Request) error {
	job, err := l.spec(req)
	if err != nil {
		return err
	}
	_, err = l.client.BatchV1().Jobs(job.Namespace).Create(ctx, job, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return l.launchError(err, job.Namespace)
	}
	return nil
}
