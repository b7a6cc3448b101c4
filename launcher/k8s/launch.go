package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/failpoint"
)

// Launch implements [launcher.Launcher]. The cluster accepts a name only once: if a Job of that
// name belongs to this run, it is the worker.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	job, err := l.spec(req)
	if err != nil {
		return launcher.Launched{}, err
	}
	made, err := l.client.BatchV1().Jobs(job.Namespace).Create(ctx, job, metav1.CreateOptions{})
	if err != nil {
		made, err = l.existing(ctx, req, job, err)
	}
	if err != nil {
		return launcher.Launched{}, err
	}
	failpoint.Here(failpoint.K8sCreated)
	return l.complete(ctx, req, made)
}

// Find implements [launcher.Finder]. It completes an unfinished launch: the daemon may have died,
// or the API server may have failed, between the Job and its Secret.
func (l *Launcher) Find(ctx context.Context, req *launcher.Request) (launcher.Launched, bool, error) {
	selector := fmt.Sprintf("%s=%s,%s=%s", instanceLabel, labelText(req.Instance), runLabel, req.ID.Run)
	for _, namespace := range l.informers.namespaces() {
		jobs, err := l.client.BatchV1().Jobs(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return launcher.Launched{}, false, asked(err)
		}
		for i := range jobs.Items {
			if w, ok := workerOf(&jobs.Items[i]); ok && w.ID == req.ID {
				found, err := l.complete(ctx, req, &jobs.Items[i])
				return found, err == nil, err
			}
		}
	}
	return launcher.Launched{}, false, nil
}

// complete creates the Secret of a Job, if the Job refers to one. The pod can exist first: its node
// waits for the Secret.
func (l *Launcher) complete(ctx context.Context, req *launcher.Request, job *batchv1.Job) (launcher.Launched, error) {
	if secret := l.secretOf(req, job); secret != nil && !finished(job) {
		if _, err := l.client.CoreV1().Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err !=
			nil && !apierrors.IsAlreadyExists(err) {
			if err := l.withoutSecret(ctx, job, err); err != nil {
				return launcher.Launched{}, err
			}
		}
	}
	l.informers.made(job)
	return launched(job), nil
}

// existing returns the Job of a request whose creation the API server has refused, if it exists.
// Otherwise it returns the meaning of the refusal. The Job can exist because the answer to an
// earlier creation may have been lost, and the API server checks rights, policies and quotas before
// it looks at the name.
func (l *Launcher) existing(ctx context.Context, req *launcher.Request, job *batchv1.Job,
	refusal error) (*batchv1.Job, error) {
	refused := l.launchError(refusal, job.Namespace)
	if !final(refused) && !apierrors.IsAlreadyExists(refusal) {
		return nil, refused
	}
	got, err := l.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return nil, refused // a daemon that may not read Jobs there has not created one
	case err != nil:
		return nil,
			fmt.Errorf("%w: kubernetes: cannot see whether Job %s/%s exists (%w) after its creation was refused: %w",
				launcher.ErrTransient, job.Namespace, job.Name, err, refusal)
	}
	for _, label := range []string{instanceLabel, runLabel, attemptLabel} {
		if got.Labels[label] != job.Labels[label] {
			return nil, fmt.Errorf("%w: there is a Job %s/%s that is not of run %s of this instance; it is left alone",
				launcher.ErrInvalid, job.Namespace, job.Name, req.ID.Run)
		}
	}
	return got, nil
}

// final reports whether an error proves that a worker does not exist and will not.
func final(err error) bool {
	return errors.Is(err, launcher.ErrCapacity) || errors.Is(err, launcher.ErrDenied) ||
		errors.Is(err, launcher.ErrInvalid)
}

func launched(job *batchv1.Job) launcher.Launched {
	return launcher.Launched{
		Handle: launcher.Handle(job.Namespace + "/" + job.Name),
		Tags:   map[string]string{"dagster/image": job.Spec.Template.Spec.Containers[0].Image},
		Notes: []launcher.Note{
			{Text: "[K8sRunLauncher] Creating Kubernetes run worker job", Metadata: [][2]string{
				{"Kubernetes Job name", job.Name}, {"Kubernetes Namespace", job.Namespace},
				{"Run ID", job.Labels[runLabel]},
			}},
			{Text: "[K8sRunLauncher] Kubernetes run worker job created"},
		},
	}
}

// withoutSecret handles a Job whose Secret could not be created. If the reason is this Job, it is
// given up, and its run fails with the API server's text. Otherwise the outcome of the launch is
// unknown until the Job has its Secret.
func (l *Launcher) withoutSecret(ctx context.Context, job *batchv1.Job, err error) error {
	text := fmt.Sprintf("the Secret with the worker's secret values cannot be created: %v", err)
	if apierrors.IsForbidden(err) {
		text += "; apply deploy/kubernetes/role.yaml in namespace " + job.Namespace
	}
	if errors.Is(l.launchError(err, job.Namespace), launcher.ErrInvalid) {
		failed := l.giveUp(ctx, job, &failure{launcher.CauseAuth, text})
		if failed == nil {
			return nil
		}
		text += fmt.Sprintf("; the Job cannot be stopped: %v", failed)
	}
	return fmt.Errorf("%w: kubernetes: %s", launcher.ErrTransient, text)
}

// launchError returns the meaning of a failed creation in a namespace. A refusal concerns this one
// Job and fails its run, unless every Job would meet it.
func (l *Launcher) launchError(err error, namespace string) error {
	text := err.Error()
	elsewhere := namespace != l.config.Namespace // a code location or a rule names it, so other runs do not meet this
	switch {
	case apierrors.IsForbidden(err) && strings.Contains(text, "exceeded quota"):
		return launcher.WithCause(fmt.Errorf("%w: kubernetes: %w", launcher.ErrCapacity, err), launcher.CauseQuota)
	case apierrors.IsForbidden(err) && (strings.Contains(text, "not yet ready to handle request") ||
		strings.Contains(text, "status unknown for quota")):
		// A server or a quota that has just been created.
		return fmt.Errorf("%w: kubernetes: %w", launcher.ErrTransient, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err),
		strings.Contains(text, "denied the request"):
		// The last: by an admission webhook.
		return fmt.Errorf("%w: kubernetes refuses the Job: %w", launcher.ErrInvalid, err)
	case apierrors.IsNotFound(err) && elsewhere, apierrors.IsForbidden(err) && elsewhere:
		return fmt.Errorf(
			"%w: kubernetes: %w; the run's code location or rule names namespace %s: create it and apply "+
				"deploy/kubernetes/role.yaml there, or take namespace out", launcher.ErrInvalid, err, namespace)
	case apierrors.IsForbidden(err) && objectName(err) != "" &&
		!apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return fmt.Errorf("%w: kubernetes refuses the Job: %w", launcher.ErrInvalid, err)
	}
	return asked(err)
}

// objectName returns the name of the object that an answer of the API server is about. It is empty
// if the daemon may create no Job at all.
func objectName(err error) string {
	var s apierrors.APIStatus
	if !errors.As(err, &s) || s.Status().Details == nil {
		return ""
	}
	return s.Status().Details.Name
}

// asked returns the meaning of an API server's error for the server. It tells nothing about the
// worker.
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

// foreign reports whether only a code location or a rule names a namespace, and not the launcher's
// settings.
func (l *Launcher) foreign(namespace string) bool {
	return namespace != l.config.Namespace && namespace != metav1.NamespaceAll &&
		!slices.Contains(l.config.Namespaces, namespace)
}

// askedIn returns the meaning of an error of a call about one worker in a namespace. If the daemon
// has no rights in a namespace that a code location or a rule names, that concerns this worker, not
// the launcher.
func (l *Launcher) askedIn(namespace string, err error) error {
	if apierrors.IsForbidden(err) && l.foreign(namespace) {
		return launcher.WithCause(fmt.Errorf("%w: kubernetes: %w", launcher.ErrInvalid, err), launcher.CauseAuth)
	}
	return asked(err)
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

// Try implements [launcher.Trier] with a dry run. The cluster applies the validation, defaults,
// policies and quotas of a launch.
func (l *Launcher) Try(ctx context.Context, req *launcher.Request) error {
	job, err := l.spec(req)
	if err != nil {
		return err
	}
	_, err = l.client.BatchV1().Jobs(job.Namespace).Create(ctx, job,
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return l.launchError(err, job.Namespace)
	}
	return nil
}
