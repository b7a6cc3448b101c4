package k8s

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipway-run/slipway/launcher"
)

// A Permission is a permission that the launcher needs from the API server.
type Permission struct {
	Group, Resource string
	Verbs           []string
	Optional        string // what does not work without it
}

// Permissions returns all permissions that the launcher needs in each namespace of its workers.
func Permissions() []Permission {
	return []Permission{
		{Group: "batch", Resource: "jobs", Verbs: []string{"create", "delete", "get", "list", "patch", "watch"}},
		{Group: "", Resource: "pods", Verbs: []string{"delete", "list", "patch", "watch"}},
		{Group: "", Resource: "pods/log", Verbs: []string{"get"}, Optional: "the output of workers cannot be read"},
		{Group: "", Resource: "secrets", Verbs: []string{"create"},
			Optional: "workers that get a secret value cannot be launched"},
		{Group: "", Resource: "events", Verbs: []string{"list"}, Optional: "why a worker starts slowly cannot be told"},
	}
}

// Check implements [launcher.Checker].
func (l *Launcher) Check(ctx context.Context) []launcher.Finding {
	version, err := l.client.Discovery().ServerVersion()
	if err != nil {
		return []launcher.Finding{{What: fmt.Sprintf("the API server at %s does not answer: %v", l.host, err),
			Fix: "look at load_incluster_config, kubeconfig_file and context, and whether the network lets the " +
				"daemon reach it"}}
	}
	out := []launcher.Finding{{OK: true, What: fmt.Sprintf("Kubernetes %s at %s", version.GitVersion, l.host)}}
	for _, namespace := range l.informers.namespaces() {
		out = append(out, l.checkRights(ctx, namespace)...)
	}
	return append(out, l.checkJob(ctx)...)
}

// checkRights asks the API server what the daemon may do.
func (l *Launcher) checkRights(ctx context.Context, namespace string) []launcher.Finding {
	var lacking, optional []string
	for _, p := range Permissions() {
		resource, sub, _ := strings.Cut(p.Resource, "/")
		for _, verb := range p.Verbs {
			review, err := l.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
				&authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{
					ResourceAttributes: &authv1.ResourceAttributes{Namespace: namespace, Group: p.Group,
						Resource:    resource,
						Subresource: sub, Verb: verb},
				}}, metav1.CreateOptions{})
			if err != nil {
				return []launcher.Finding{{What: fmt.Sprintf("what the daemon may do in namespace %s: %v", namespace,
					err), Fix: "look at the token or certificate in kubeconfig_file, or the daemon's service account"}}
			}
			if review.Status.Allowed {
				continue
			}
			if p.Optional != "" {
				optional = append(optional, p.Optional)
			} else {
				lacking = append(lacking, verb+" "+p.Resource)
			}
		}
	}
	where := "namespace " + namespace
	if namespace == metav1.NamespaceAll {
		where = "all namespaces"
	}
	f := launcher.Finding{OK: len(lacking) == 0, What: "the daemon may do in " + where + " what it needs"}
	if len(lacking) > 0 {
		f.What = fmt.Sprintf("in %s the daemon may not: %s", where, strings.Join(lacking, ", "))
		f.Fix = "apply deploy/kubernetes/role.yaml there and bind it to the daemon's service account"
	}
	out := []launcher.Finding{f}
	for _, what := range slices.Compact(optional) {
		out = append(out, launcher.Finding{OK: true,
			What: fmt.Sprintf("in %s %s; deploy/kubernetes/role.yaml allows it", where, what)})
	}
	return out
}

// checkJob lets the API server check a Job such as a run would get, without creating it.
func (l *Launcher) checkJob(ctx context.Context) []launcher.Finding {
	image := l.config.Image
	if image == "" {
		image = "slipway.invalid/check:1"
	}
	job, err := l.build(l.base, &launcher.Request{
		ID: launcher.ID{Run: "slipway-check", Attempt: 1}, Image: image,
		Command: []string{"dagster", "api", "execute_run"}, Instance: "check", Job: "check", Location: "check",
	})
	if err != nil {
		return []launcher.Finding{{What: "no Job can be made: " + err.Error(), Fix: "correct the settings"}}
	}
	var out []launcher.Finding
	if _, err = l.client.BatchV1().Jobs(job.Namespace).Create(ctx, job,
		metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		out = append(out, launcher.Finding{
			What: fmt.Sprintf("the API server does not take a Job with these settings: %v", err),
			Fix:  "correct what it names; slipway launchers preview shows the Job"})
	} else {
		out = append(out, launcher.Finding{OK: true,
			What: fmt.Sprintf("the API server takes a Job with these settings in namespace %s (dry run)",
				job.Namespace)})
	}
	return append(out, l.checkNames(ctx, job.Namespace, &job.Spec.Template.Spec)...)
}

// checkNames looks for the objects that pods refer to, as far as the daemon may read them.
func (l *Launcher) checkNames(ctx context.Context, namespace string, pod *corev1.PodSpec) []launcher.Finding {
	var out []launcher.Finding
	look := func(kind, name string, get func(ctx context.Context, name string, o metav1.GetOptions) error) {
		if err := get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			out = append(out, launcher.Finding{What: fmt.Sprintf("there is no %s %s in namespace %s", kind, name,
				namespace), Fix: "create it, or correct its name in the settings"})
		}
	}
	core := l.client.CoreV1()
	if name := pod.ServiceAccountName; name != "" {
		look("service account", name, func(ctx context.Context, name string, o metav1.GetOptions) error {
			_, err := core.ServiceAccounts(namespace).Get(ctx, name, o)
			return err
		})
	}
	for _, v := range pod.Volumes {
		if v.PersistentVolumeClaim != nil {
			look("persistent volume claim", v.PersistentVolumeClaim.ClaimName,
				func(ctx context.Context, name string, o metav1.GetOptions) error {
					_, err := core.PersistentVolumeClaims(namespace).Get(ctx, name, o)
					return err
				})
		}
		if v.ConfigMap != nil && (v.ConfigMap.Optional == nil || !*v.ConfigMap.Optional) {
			look("config map", v.ConfigMap.Name, func(ctx context.Context, name string, o metav1.GetOptions) error {
				_, err := core.ConfigMaps(namespace).Get(ctx, name, o)
				return err
			})
		}
	}
	return out
}
