package k8s

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/slipway-run/slipway/launcher"
)

// jobName returns the name of a worker's Job. A run's first worker and one that resumes have
// Dagster's names. A worker that starts the run again, which Dagster does not do, has an additional
// r.
func jobName(req *launcher.Request) string {
	name := "dagster-run-" + req.ID.RunName()
	switch {
	case req.ID.Attempt == 1:
		return name
	case req.Resume:
		return fmt.Sprintf("%s-%d", name, req.ID.Attempt-1)
	}
	return fmt.Sprintf("%s-r%d", name, req.ID.Attempt)
}

// spec returns the Job of a request, with its namespace. The error is an [launcher.ErrInvalid].
func (l *Launcher) spec(req *launcher.Request) (*batchv1.Job, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	if labelText(req.Instance) != req.Instance {
		return nil,
			fmt.Errorf("%w: the instance's id %q cannot be a label of Kubernetes, by which its workers are found: "+
				"set instance_id in slipway.yaml to at most 63 letters, digits, dots, dashes and underscores",
				launcher.ErrInvalid, req.Instance)
	}
	all, err := l.layers(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", launcher.ErrInvalid, err)
	}
	job, err := l.build(all, req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", launcher.ErrInvalid, err)
	}
	return job, nil
}

// layers lays the run's layers over the launcher's settings, as Dagster does: the run's layers are
// merged first.
func (l *Launcher) layers(req *launcher.Request) (layer, error) {
	run, user := newLayer(), newLayer() // with and without the rules of slipway.yaml
	var tagConfig, tagResources json.RawMessage
	add := func(later layer, err error, trusted bool) error {
		if err != nil {
			return err
		}
		if !trusted {
			var dropped []string
			if later, dropped = l.allowed.filter(later); len(dropped) > 0 {
				l.log.Warn("variables of a code location or of tags are left out: only_allow_user_defined_env_vars "+
					"does not list them", "run", req.ID.Run, "variables", strings.Join(dropped, ", "))
			}
			if user, err = user.over(later); err != nil {
				return err
			}
		}
		run, err = run.over(later)
		return err
	}
	for _, o := range req.Overrides {
		switch o.Source {
		case "tag " + configTag:
			tagConfig = o.JSON
			continue
		case "tag " + resourcesTag:
			tagResources = o.JSON
			continue
		}
		later, err := contextLayer(o, l.env)
		if err := add(later, err, !strings.HasPrefix(o.Source, "container_context.")); err != nil {
			return layer{}, fmt.Errorf("%s: %w", o.Source, err)
		}
	}
	tags, err := tagLayer(tagConfig, tagResources)
	if err := add(tags, err, false); err != nil {
		return layer{}, err
	}
	if err := l.allowed.check(user); err != nil {
		return layer{}, err
	}
	return l.base.over(run)
}

// take removes a member and returns it.
func take[T any](from map[string]any, key string, otherwise T) T {
	v, ok := from[key]
	delete(from, key)
	if t, fits := v.(T); ok && fits {
		return t
	}
	return otherwise
}

// build makes the Job that layers describe.
func (l *Launcher) build(all layer, req *launcher.Request) (*batchv1.Job, error) {
	container, pod := maps.Clone(all.sections[containerConfig]), maps.Clone(all.sections[podSpecConfig])
	podMeta, job := maps.Clone(all.sections[podMetadata]), maps.Clone(all.sections[jobConfig])
	jobMeta, jobSpec := maps.Clone(all.sections[jobMetadata]), maps.Clone(all.sections[jobSpecConfig])

	if image, given := container["image"]; !given || image == nil || image == "" {
		container["image"] = req.Image
		if req.Image == "" {
			container["image"] = l.config.Image
		}
	}
	if container["image"] == "" {
		return nil,
			fmt.Errorf("code location %s names no image, and the launcher's settings have none: set job_image, or "+
				"container_image in the code location", req.Location)
	}
	container["args"] = texts(req.Command)
	if _, ok := container["name"]; !ok {
		container["name"] = "dagster"
	}
	userEnv := take(container, "env", []any(nil))
	labels, err := l.labelsOf(req, userEnv)
	if err != nil {
		return nil, err
	}
	container["env"] = l.environment(req, userEnv)
	if err := requested(container, req.Resources, l.config.GPUResource); err != nil {
		return nil, err
	}
	podLabels, jobLabels := maps.Clone(labels), maps.Clone(labels)
	maps.Copy(podLabels, take(podMeta, "labels", map[string]any(nil)))
	maps.Copy(jobLabels, take(jobMeta, "labels", map[string]any(nil)))
	name := jobName(req)
	podMeta["name"], podMeta["labels"] = name, podLabels
	jobMeta["name"], jobMeta["labels"] = name, jobLabels

	setDefault(pod, "restartPolicy", "Never")
	setDefault(pod, "automountServiceAccountToken", true)
	if req.Grace > 0 {
		setDefault(pod, "terminationGracePeriodSeconds", json.Number(strconv.Itoa(int(req.Grace.Seconds()))))
	}
	if len(req.Nodes) > 0 {
		nodes := maps.Clone(take(pod, "nodeSelector", map[string]any{}))
		maps.Copy(nodes, tableOf(req.Nodes))
		pod["nodeSelector"] = nodes
	}
	pod["containers"] = append([]any{container}, take(pod, "containers", []any(nil))...)
	setDefault(jobSpec, "backoffLimit", json.Number("0"))
	setDefault(jobSpec, "ttlSecondsAfterFinished", json.Number("86400"))
	jobSpec["template"] = map[string]any{"metadata": podMeta, "spec": pod}
	job["apiVersion"], job["kind"], job["metadata"], job["spec"] = "batch/v1", "Job", jobMeta, jobSpec
	delete(job, "status")

	cast, err := modelOf[batchv1.Job]().cast(job, "Job")
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(cast)
	if err != nil {
		return nil, err
	}
	out := &batchv1.Job{}
	if err := json.Unmarshal(text, out); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return nil, fault("Job."+wrong.Field, "the Kubernetes API does not expect a %s here", wrong.Value)
		}
		return nil, fmt.Errorf("the Kubernetes API does not take this Job: %w", err)
	}
	out.Namespace = all.namespace
	l.mark(out, req)
	return out, nil
}

func setDefault(m map[string]any, key string, value any) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

func texts(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

// environment returns the variables that Dagster sets, those of the settings and the run, and those
// that the worker needs from Slipway. If names are equal the last one wins.
func (l *Launcher) environment(req *launcher.Request, user []any) []any {
	variable := func(name, value string) any { return map[string]any{"name": name, "value": value} }
	var first, last []any
	for _, e := range req.Env {
		switch {
		case e.Name == "DAGSTER_RUN_JOB_NAME":
			first = []any{variable(e.Name, e.Value)}
		case e.Secret:
			last = append(last, inSecret(req, e.Name))
		default:
			last = append(last, variable(e.Name, e.Value))
		}
	}
	if l.config.DagsterHome != "" {
		first = append(first, variable("DAGSTER_HOME", l.config.DagsterHome))
	}
	if l.config.PostgresSecret != "" {
		first = append(first, map[string]any{"name": "DAGSTER_PG_PASSWORD", "valueFrom": map[string]any{
			"secretKeyRef": map[string]any{"name": l.config.PostgresSecret, "key": "postgresql-password"},
		}})
	}
	user = slices.Clone(user)
	for i, v := range user {
		m, _ := v.(map[string]any)
		if name, _ := m["name"].(string); l.secretEnv[name] != "" && m["value"] == l.secretEnv[name] {
			user[i] = inSecret(req, name)
		}
	}
	return slices.Concat(first, user, last)
}

// inSecret returns a variable whose value is in the worker's own Secret.
func inSecret(req *launcher.Request, name string) any {
	return map[string]any{"name": name,
		"valueFrom": map[string]any{"secretKeyRef": map[string]any{"name": jobName(req), "key": name}}}
}

// secretOf returns the Secret of a Job, with the values that must not be in the Job itself. It
// returns nil if there is none. The Secret is deleted with the Job.
func (l *Launcher) secretOf(req *launcher.Request, job *batchv1.Job) *corev1.Secret {
	data := map[string]string{}
	for _, e := range job.Spec.Template.Spec.Containers[0].Env {
		if e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil || e.ValueFrom.SecretKeyRef.Name != job.Name {
			continue
		}
		data[e.Name] = l.secretEnv[e.Name]
		for _, own := range req.Env {
			if own.Secret && own.Name == e.Name {
				data[e.Name] = own.Value
			}
		}
	}
	if len(data) == 0 {
		return nil
	}
	immutable := true
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: job.Name, Namespace: job.Namespace,
			Labels: map[string]string{instanceLabel: job.Labels[instanceLabel], runLabel: job.Labels[runLabel]},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: job.Name,
				UID: job.UID}},
		},
		Immutable: &immutable, StringData: data,
	}
}

// requested lays the resources that a rule or a tag asks for over the container's.
func requested(container map[string]any, r launcher.Resources, gpu string) error {
	if r == (launcher.Resources{}) {
		return nil
	}
	resources, err := deep(map[string]any{"requests": map[string]any{}, "limits": map[string]any{}},
		take(container, "resources", map[string]any{}), "resources")
	if err != nil {
		return err
	}
	requests, limits := resources["requests"].(map[string]any), resources["limits"].(map[string]any)
	set := func(name corev1.ResourceName, n int64, q resource.Quantity, limit bool) {
		if n == 0 {
			return
		}
		requests[string(name)] = q.String()
		if _, limited := limits[string(name)]; limit || limited {
			limits[string(name)] = q.String()
		}
	}
	set(corev1.ResourceCPU, r.CPUMillis, *resource.NewMilliQuantity(r.CPUMillis, resource.DecimalSI), false)
	set(corev1.ResourceMemory, r.MemoryBytes, *resource.NewQuantity(r.MemoryBytes, resource.BinarySI), true)
	set(corev1.ResourceEphemeralStorage, r.DiskBytes, *resource.NewQuantity(r.DiskBytes, resource.BinarySI), true)
	if r.GPUs > 0 {
		limits[gpu] = strconv.FormatInt(r.GPUs, 10)
		delete(requests, gpu)
	}
	container["resources"] = resources
	return nil
}

var notInLabel = regexp.MustCompile(`[^a-zA-Z0-9\-_.]`)

// labelText converts a text to a label's value as Dagster does.
func labelText(s string) string {
	if r := []rune(s); len(r) > validation.LabelValueMaxLength {
		s = string(r[:validation.LabelValueMaxLength])
	}
	s = notInLabel.ReplaceAllString(s, "-")
	for _, edge := range []string{"-", "_", "."} {
		s = strings.Trim(s, edge)
	}
	return s
}

// deploymentVar names the deployment of a worker. Dagster makes a label of it.
const deploymentVar = "DAGSTER_CLOUD_DEPLOYMENT_NAME"

// labelsOf returns Dagster's own labels. It leaves out the version if that is unknown.
func (l *Launcher) labelsOf(req *launcher.Request, env []any) (map[string]any, error) {
	out := map[string]any{
		"app.kubernetes.io/name": "dagster", "app.kubernetes.io/instance": "dagster",
		"app.kubernetes.io/part-of": "dagster", "app.kubernetes.io/component": runWorker,
		"dagster/job": labelText(req.Job), dagsterRunLabel: labelText(req.ID.Run),
	}
	if req.DagsterVersion != "" {
		out["app.kubernetes.io/version"] = labelText(req.DagsterVersion)
	}
	if req.Location != "" {
		out["dagster/code-location"] = labelText(req.Location)
	}
	for _, v := range env {
		m, _ := v.(map[string]any)
		if m["name"] != deploymentVar {
			continue
		}
		value, ok := m["value"].(string)
		if !ok {
			return nil, errors.New("env " + deploymentVar + " has no value of its own, which becomes a label")
		}
		out["dagster/deployment-name"] = labelText(value)
		break
	}
	return out, nil
}

const (
	dagsterRunLabel = "dagster/run-id"
	componentLabel  = "app.kubernetes.io/component"
	runWorker       = "run_worker"
	stepWorker      = "step_worker"
)

// mark sets the labels that identify the worker on a Job and its pods. They win over labels of the
// same name.
func (l *Launcher) mark(job *batchv1.Job, req *launcher.Request) {
	ours := map[string]string{runLabel: req.ID.Run, attemptLabel: strconv.Itoa(req.ID.Attempt)}
	if req.Instance != "" {
		ours[instanceLabel] = req.Instance
	}
	maps.Copy(job.Labels, ours)
	maps.Copy(job.Spec.Template.Labels, ours)
	notes := map[string]string{}
	maps.Copy(notes, job.Annotations)
	maps.Copy(notes, req.Labels)
	if secret := l.secretVars(req, job); len(secret) > 0 {
		notes[secretsNote] = strings.Join(secret, ",")
	}
	if len(notes) > 0 {
		job.Annotations = notes
	}
}

// secretVars returns the names of the worker's variables whose values are not shown.
func (l *Launcher) secretVars(req *launcher.Request, job *batchv1.Job) []string {
	hidden := slices.Collect(maps.Keys(l.secretEnv))
	for _, e := range req.Env {
		if e.Secret {
			hidden = append(hidden, e.Name)
		}
	}
	var out []string
	for _, e := range job.Spec.Template.Spec.Containers[0].Env {
		if (launcher.SecretName(e.Name) || slices.Contains(hidden, e.Name)) && !slices.Contains(out, e.Name) {
			out = append(out, e.Name)
		}
	}
	return out
}

// shown returns a Job without the values of secrets.
func shown(job *batchv1.Job) *batchv1.Job {
	job = job.DeepCopy()
	hide(&job.Spec.Template.Spec, job.Annotations[secretsNote])
	job.ManagedFields = nil
	return job
}

func hide(pod *corev1.PodSpec, names string) {
	hidden := strings.Split(names, ",")
	for _, containers := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range containers {
			for j, e := range containers[i].Env {
				if e.Value != "" && (launcher.SecretName(e.Name) || slices.Contains(hidden, e.Name)) {
					containers[i].Env[j].Value = launcher.Redacted
				}
			}
		}
	}
}
