package k8s

import (
	"context"
	"encoding/json"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// steps returns the part of the instance's launcher that dagster_k8s's k8s_job_executor reads: the
// settings that its steps share with runs.
func steps(v config.Values) (launcher.Class, error) {
	c, err := decode(v)
	if err != nil {
		return launcher.Class{}, err
	}
	out := launcher.Class{Module: "dagster_k8s", Name: "K8sRunLauncher", Config: map[string]any{
		"job_namespace": c.Namespace, "dagster_home": c.DagsterHome, "image_pull_policy": c.ImagePullPolicy,
		"load_incluster_config": true,
		"service_account_name":  c.ServiceAccount, "instance_config_map": c.ConfigMap,
	}}
	if c.ServiceAccount == "" { // it must be a text
		out.Config["service_account_name"] = "default"
	}
	for key, value := range map[string]string{"job_image": c.Image, "postgres_password_secret": c.PostgresSecret,
		"scheduler_name": c.Scheduler} {
		if value != "" {
			out.Config[key] = value
		}
	}
	lists := map[string][]any{}
	for _, s := range c.ImagePullSecrets {
		lists["image_pull_secrets"] = append(lists["image_pull_secrets"], map[string]any{"name": s.Name})
	}
	for _, name := range c.EnvConfigMaps {
		lists["env_config_maps"] = append(lists["env_config_maps"], name)
	}
	for _, name := range c.EnvSecrets {
		lists["env_secrets"] = append(lists["env_secrets"], name)
	}
	for _, e := range c.EnvVars { // NAME alone is looked up where a step is started: in the worker, which has it
		if !e.Secret {
			lists["env_vars"] = append(lists["env_vars"], e.Value)
		}
	}
	if c.AllowEnv != nil {
		lists["only_allow_user_defined_env_vars"] = texts(*c.AllowEnv)
	}
	for key, list := range lists {
		if list != nil {
			out.Config[key] = list
		}
	}
	for key, value := range map[string]config.Values{
		"volume_mounts": c.VolumeMounts, "volumes": c.Volumes, "labels": c.Labels, "resources": c.Resources,
		"security_context": c.SecurityContext,
		"run_k8s_config":   c.RunConfig, "only_allow_user_defined_k8s_config_fields": c.AllowFields,
	} {
		if value.Node == nil {
			continue
		}
		raw, err := value.JSON()
		if err != nil {
			return launcher.Class{}, err
		}
		var tree any
		if err := json.Unmarshal(raw, &tree); err != nil {
			return launcher.Class{}, err
		}
		out.Config[key] = tree
	}
	return out, nil
}

// followSteps makes the run's Job the owner of each step's Job, once. So the cluster removes the
// steps' Jobs with the run's Job.
func (set *informerSet) followSteps(ctx context.Context, s *space) {
	own := func(o any) {
		step, ok := o.(*batchv1.Job)
		if !ok || len(step.OwnerReferences) > 0 || finished(step) {
			return
		}
		run := set.runJob(s, step)
		if run == nil {
			return
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": step.UID,
			"ownerReferences": []metav1.OwnerReference{
				{APIVersion: "batch/v1", Kind: "Job", Name: run.Name, UID: run.UID},
			}}})
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err = set.l.client.BatchV1().Jobs(step.Namespace).Patch(ctx, step.Name, types.MergePatchType, patch,
			metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
			set.l.log.WarnContext(ctx, "a step's Job has no owner: it will not go with its run",
				"job", step.Namespace+"/"+step.Name, "err", err)
		}
	}
	if _, err := s.steps.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: own, UpdateFunc: func(_, o any) {
		own(o)
	}}); err != nil {
		set.l.log.ErrorContext(ctx, "kubernetes: the steps' Jobs cannot be watched", "err", err)
	}
}

// runJob returns the newest Job of this launcher for the run of a step, in the step's namespace.
func (set *informerSet) runJob(s *space, step *batchv1.Job) *batchv1.Job {
	var found *batchv1.Job
	for _, o := range s.jobs.GetStore().List() {
		job, ok := o.(*batchv1.Job)
		if ok && job.Namespace == step.Namespace && job.Labels[runLabel] == step.Labels[dagsterRunLabel] &&
			(found == nil || found.CreationTimestamp.Before(&job.CreationTimestamp)) {
			found = job
		}
	}
	return found
}
