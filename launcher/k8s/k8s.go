// Package k8s launches run workers as Jobs of a Kubernetes cluster.
//
// Its settings include those of Dagster's K8sRunLauncher, and it makes the same Jobs from them. The
// name of a Job is derived from run and attempt, and the cluster accepts a name only once. A Job
// stays after its end until it is removed. A Job that was stopped is failed or suspended, not
// deleted, so that no process makes it again.
//
// The launcher watches the cluster instead of polling it. It answers questions about a worker from
// the data of the watches, as long as that is complete.
package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// Config holds the settings of the k8s launcher: first those of K8sRunLauncher, then Slipway's own.
type Config struct {
	Namespace        string        `config:"job_namespace" default:"default" help:"Namespace of Jobs. A code location's own namespace wins."`
	Image            string        `config:"job_image" help:"Image of workers whose code location does not name one."`
	ImagePullPolicy  string        `config:"image_pull_policy" default:"IfNotPresent" help:"When nodes pull the image: IfNotPresent, Always or Never."`
	ImagePullSecrets []nameConfig  `config:"image_pull_secrets" help:"Secrets with logins of registries."`
	ServiceAccount   string        `config:"service_account_name" help:"Service account of workers. Default: the namespace's own."`
	ConfigMap        string        `config:"instance_config_map" help:"Name of the config map with dagster.yaml. Dagster's own step executor passes it on; the setting volumes mounts it."`
	PostgresSecret   string        `config:"postgres_password_secret" help:"Secret whose key postgresql-password becomes the workers' DAGSTER_PG_PASSWORD."`
	DagsterHome      string        `config:"dagster_home" default:"/opt/dagster/dagster_home" help:"DAGSTER_HOME of workers."`
	InCluster        bool          `config:"load_incluster_config" default:"true" help:"Use the service account of the pod that the daemon runs in. If false, use kubeconfig_file."`
	Kubeconfig       string        `config:"kubeconfig_file" help:"File that describes how to reach the cluster. Default: KUBECONFIG, else ~/.kube/config."`
	CA               string        `config:"k8s_api_ssl_ca_cert_file" help:"File with the certificate authorities of the API server. It replaces the configured ones."`
	EnvConfigMaps    []string      `config:"env_config_maps" help:"Config maps whose entries become environment variables."`
	EnvSecrets       []string      `config:"env_secrets" help:"Secrets whose entries become environment variables."`
	EnvVars          []config.Text `config:"env_vars" help:"Environment of workers: NAME=value, or NAME for the daemon's value."`
	VolumeMounts     config.Values `config:"volume_mounts" help:"Where volumes are mounted, in the form of the API."`
	Volumes          config.Values `config:"volumes" help:"Volumes of pods, in the form of the API."`
	Labels           config.Values `config:"labels" help:"Further labels of Jobs and pods."`
	Resources        config.Values `config:"resources" help:"limits and requests of a worker, in the form of the API."`
	Scheduler        string        `config:"scheduler_name" help:"Scheduler of pods."`
	SecurityContext  config.Values `config:"security_context" help:"Security context of the worker's container, in the form of the API."`
	RunConfig        config.Values `config:"run_k8s_config" help:"Raw sections: container_config, pod_spec_config, pod_template_spec_metadata, job_config, job_metadata, job_spec_config."`
	FailPod          bool          `config:"fail_pod_on_run_failure" default:"false" help:"Pods of failed runs end with an error."`
	AllowFields      config.Values `config:"only_allow_user_defined_k8s_config_fields" help:"Fields, by section, that code locations and tags may set. Default: all."`
	AllowEnv         *[]string     `config:"only_allow_user_defined_env_vars" help:"Variables that code locations and tags may set; others are dropped. Default: all."`
	Broker           config.Values `config:"broker" help:"For CeleryK8sRunLauncher; has no effect."`
	Backend          config.Values `config:"backend" help:"For CeleryK8sRunLauncher; has no effect."`
	Include          config.Values `config:"include" help:"For CeleryK8sRunLauncher; has no effect."`
	ConfigSource     config.Values `config:"config_source" help:"For CeleryK8sRunLauncher; has no effect."`
	Retries          config.Values `config:"retries" help:"For CeleryK8sRunLauncher; has no effect."`

	Context    string        `config:"context" help:"Context of the kubeconfig. Default: its current one."`
	Namespaces []string      `config:"namespaces" help:"Further namespaces in which to look for workers: the ones that code locations name. \"*\" means all."`
	QPS        int           `config:"qps" default:"50" help:"Maximum requests per second to the API server."`
	Burst      int           `config:"burst" default:"100" help:"Maximum requests at once above qps."`
	Patience   time.Duration `config:"patience" default:"2m" help:"How long pulls of a worker's image may fail, or a secret or config map that it needs may be missing, before the worker counts as dead. A failure that is final counts at once."`
	OwnSteps   bool          `config:"own_step_jobs" default:"true" help:"Make the run's Job the owner of the Jobs of k8s_job_executor's steps, so that they are deleted with it."`
	TTL        time.Duration `config:"ttl" help:"How long the cluster keeps a Job after its end, independently of Slipway. Default: a day, as in Dagster."`

	CPU           string            `config:"cpu" help:"Processors that a worker requests, for example 2 or 500m. A run's tag slipway/cpu wins."`
	Memory        string            `config:"memory" help:"Memory that a worker requests, for example 512Mi. It is also the limit. A run's tag slipway/memory wins."`
	Disk          string            `config:"ephemeral_storage" help:"Local disk that a worker requests. It is also the limit. A run's tag slipway/disk wins."`
	GPUs          int               `config:"gpus" default:"0" help:"GPUs of a worker. A run's tag slipway/gpu wins."`
	GPUResource   string            `config:"gpu_resource" default:"nvidia.com/gpu" help:"Name of the GPU resource in the cluster."`
	NodeSelector  map[string]string `config:"node_selector" help:"Labels that a worker's node must have."`
	Tolerations   config.Values     `config:"tolerations" help:"Taints that workers tolerate, in the form of the API."`
	Affinity      config.Values     `config:"affinity" help:"Affinity of pods, in the form of the API."`
	Topology      config.Values     `config:"topology_spread_constraints" help:"How workers are spread, in the form of the API."`
	PriorityClass string            `config:"priority_class" help:"Priority class of pods."`
	RuntimeClass  string            `config:"runtime_class" help:"Runtime class of pods."`
	Annotations   map[string]string `config:"annotations" help:"Annotations of pods."`
	Spot          string            `config:"spot" help:"Run on spot nodes of gke, aks, eks or karpenter: sets the node_selector and tolerations that these need."`
	Queue         string            `config:"queue_name" help:"Kueue's local queue. Jobs wait, suspended, until Kueue admits them."`
	PodSecurity   string            `config:"pod_security" default:"none" help:"none leaves the security context to the image and the settings, as K8sRunLauncher does. restricted is the Kubernetes level of that name."`
}

type nameConfig struct {
	Name string `config:"name" required:"true" help:"Name of the secret."`
}

// Launcher launches Jobs. It is safe for use by many goroutines.
type Launcher struct {
	client    kubernetes.Interface
	host      string
	config    Config
	base      layer
	allowed   allowed
	env       config.Lookup
	secretEnv map[string]string // variables of the settings whose values are not shown
	log       *slog.Logger
	informers *informerSet
}

var (
	_ launcher.Launcher  = (*Launcher)(nil)
	_ launcher.Finder    = (*Launcher)(nil)
	_ launcher.Lister    = (*Launcher)(nil)
	_ launcher.Watcher   = (*Launcher)(nil)
	_ launcher.Batcher   = (*Launcher)(nil)
	_ launcher.Remover   = (*Launcher)(nil)
	_ launcher.LogReader = (*Launcher)(nil)
	_ launcher.Describer = (*Launcher)(nil)
	_ launcher.Previewer = (*Launcher)(nil)
	_ launcher.Trier     = (*Launcher)(nil)
	_ launcher.Checker   = (*Launcher)(nil)
	_ launcher.Adopter   = (*Launcher)(nil)
)

// Kind declares the k8s launcher.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "k8s", Help: "Run workers as Jobs of a Kubernetes cluster.",
		Schema: config.Fields(Config{}), Context: "k8s", Tags: []string{configTag, resourcesTag}, StockTags: true,
		Traits: launcher.Traits{Unique: true, StrongRead: true, SignalsWorker: true, Gate: true, Nodes: true,
			MaxCommand: launcher.MaxArgument, Keep: 10 * time.Minute},
		Stock: "dagster_k8s.K8sRunLauncher dagster_celery_k8s.CeleryK8sRunLauncher",
		Steps: steps,
		FailsWithRun: func(v config.Values) bool {
			c, err := decode(v)
			return err == nil && c.FailPod // Open has reported the error
		},
		Open: func(_ context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			return open(v, nil, log)
		},
	}
}

// Labels and annotations of Jobs and pods. Dagster's are in labelsOf.
const (
	instanceLabel = "slipway/instance"
	runLabel      = "slipway/run"
	attemptLabel  = "slipway/attempt"
	secretsNote   = "slipway/secret-env" // names of variables whose values are not shown
	stopNote      = "slipway/stopped"    // when the Job was stopped
	givenUpNote   = "slipway/doomed"     // why the worker can never begin, as JSON
)

// userAgent names Slipway in the API server's audit log.
const userAgent = "slipway"

func open(v config.Values, access *rest.Config, log *slog.Logger) (*Launcher, error) {
	c, err := decode(v)
	if err != nil {
		return nil, err
	}
	l := &Launcher{config: c, env: v.Env, secretEnv: map[string]string{}, log: log}
	if access == nil {
		if access, err = c.access(v); err != nil {
			return nil, err
		}
	}
	logging.Do(func() { klog.SetSlogLogger(slog.New(lower{log.Handler()})) })
	access = rest.CopyConfig(access)
	access.QPS, access.Burst, access.UserAgent = float32(c.QPS), c.Burst, userAgent
	l.host, l.informers = access.Host, newInformerSet(l)
	access.Wrap(func(next http.RoundTripper) http.RoundTripper { return &listener{next, l.informers} })
	if l.client, err = kubernetes.NewForConfig(access); err != nil {
		return nil, v.Problem("kubeconfig_file", "%v", err)
	}
	if err := l.read(v); err != nil {
		return nil, err
	}
	return l, nil
}

// logging sends the Kubernetes client's log, for the whole process, to the log of the launcher that
// is opened first.
var logging sync.Once

// lower lowers the level of messages that interest only the client's authors.
type lower struct{ slog.Handler }

func (h lower) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, h.level(level))
}

func (h lower) Handle(ctx context.Context, r slog.Record) error {
	r.Level = h.level(r.Level)
	return h.Handler.Handle(ctx, r)
}

func (h lower) WithAttrs(a []slog.Attr) slog.Handler { return lower{h.Handler.WithAttrs(a)} }
func (h lower) WithGroup(name string) slog.Handler   { return lower{h.Handler.WithGroup(name)} }

func (lower) level(level slog.Level) slog.Level {
	if level <= slog.LevelInfo {
		return slog.LevelDebug
	}
	return level
}

// decode reads the settings. A null that Dagster accepts counts as a missing setting.
func decode(v config.Values) (Config, error) {
	var c Config
	if n := v.Node; n != nil && n.Kind == yaml.MappingNode {
		bare := *n
		bare.Content = nil
		for i := 0; i+1 < len(n.Content); i += 2 {
			if value := n.Content[i+1]; value.Kind != yaml.ScalarNode || config.Scalar(value) != nil {
				bare.Content = append(bare.Content, n.Content[i], value)
			}
		}
		v.Node = &bare
	}
	err := v.Decode(&c)
	return c, err
}

// read makes the settings the layer below all others, and checks it.
func (l *Launcher) read(v config.Values) error {
	c := l.config
	for setting, value := range map[string]string{"image_pull_policy": c.ImagePullPolicy, "pod_security": c.PodSecurity,
		"spot": c.Spot} {
		choices := map[string][]string{
			"image_pull_policy": {"", "IfNotPresent", "Always", "Never"}, "pod_security": {"none", "restricted"},
			"spot": {"", "gke", "aks", "eks", "karpenter"},
		}[setting]
		if !slices.Contains(choices, value) {
			return v.Problem(setting, "%q is none of %s", value, strings.Trim(strings.Join(choices, ", "), ", "))
		}
	}
	for _, e := range c.EnvVars {
		if name, value, _ := strings.Cut(e.Value, "="); e.Secret {
			l.secretEnv[name] = value
		}
	}
	for setting, value := range map[string]config.Values{
		"broker": c.Broker, "backend": c.Backend, "include": c.Include, "config_source": c.ConfigSource,
		"retries": c.Retries,
	} {
		if value.Node != nil {
			l.log.Warn("a setting of CeleryK8sRunLauncher has no effect here: Slipway starts run workers, and "+
				"Celery's executor reads its own settings from the run's config", "setting", setting)
		}
	}
	top, err := c.named(v)
	if err != nil {
		return err
	}
	raw := newLayer()
	if c.RunConfig.Node != nil {
		value, err := section(c.RunConfig)
		if err != nil {
			return err
		}
		if raw, err = rawLayer(value, "", false); err != nil {
			return v.Problem("run_k8s_config", "%v", err)
		}
	}
	typed, err := c.typed(v)
	if err != nil {
		return err
	}
	if top, err = typed.over(top); err == nil {
		l.base, err = top.over(raw)
	}
	if err != nil {
		return v.Problem("run_k8s_config", "%v", err)
	}
	l.base.namespace = c.Namespace
	if problems := validation.IsDNS1123Label(c.Namespace); len(problems) > 0 {
		return v.Problem("job_namespace", "%q: %s", c.Namespace, strings.Join(problems, "; "))
	}
	if c.AllowEnv != nil {
		if l.allowed.env = *c.AllowEnv; l.allowed.env == nil {
			l.allowed.env = []string{}
		}
	}
	if c.AllowFields.Node != nil {
		value, err := section(c.AllowFields)
		if err != nil {
			return err
		}
		if l.allowed.fields, l.allowed.spaces, err = readAllowed(value, v.Env); err != nil {
			return v.Problem("only_allow_user_defined_k8s_config_fields", "%v", err)
		}
	}
	if _, err := l.build(l.base, &launcher.Request{ID: launcher.ID{Run: "check", Attempt: 1}, Image: "check",
		Command: []string{"check"}}); err != nil {
		return v.Problem("", "these settings make no Job: %v", err)
	}
	return nil
}

// section returns a raw section as a tree.
func section(v config.Values) (any, error) {
	raw, err := v.JSON()
	if err != nil {
		return nil, err
	}
	return tree(raw)
}

// named returns the settings that code locations have too.
func (c Config) named(v config.Values) (layer, error) {
	n := named{
		imagePullPolicy: c.ImagePullPolicy, serviceAccount: c.ServiceAccount, scheduler: c.Scheduler,
		envConfigMaps: c.EnvConfigMaps, envSecrets: c.EnvSecrets,
	}
	for _, s := range c.ImagePullSecrets {
		n.imagePullSecrets = append(n.imagePullSecrets, map[string]any{"name": s.Name})
	}
	for _, raw := range []struct {
		setting string
		value   config.Values
	}{
		{"volume_mounts", c.VolumeMounts}, {"volumes", c.Volumes}, {"labels", c.Labels}, {"resources", c.Resources},
		{"security_context", c.SecurityContext},
	} {
		value, err := section(raw.value)
		if err != nil {
			return layer{}, err
		}
		r := &reader{env: v.Env}
		if n.set(r, raw.setting, value); len(r.errs) > 0 {
			return layer{}, problems(v, raw.setting, errors.Join(r.errs...))
		}
		one := named{}
		one.set(&reader{env: v.Env}, raw.setting, value)
		if _, err := one.layer(v.Env); err != nil {
			return layer{}, problems(v, raw.setting, err)
		}
	}
	for name, value := range n.labels {
		if _, ok := value.(string); !ok {
			return layer{}, v.Problem("labels."+name, "a text is expected, not %s: put it into quotes", word(value))
		}
	}
	for _, e := range c.EnvVars { // with the daemon's current values
		n.envVars = append(n.envVars, e.Value)
	}
	out, err := n.layer(v.Env)
	if err != nil {
		return out, v.Problem("env_vars", "%v", strings.TrimPrefix(err.Error(), "env_vars: "))
	}
	return out, nil
}

// problems returns the faults of a raw setting, each with its own place. Each path in err begins
// with the name of the setting, or with the API's name for it.
func problems(v config.Values, setting string, err error) error {
	if all, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // what it joins itself
		var errs []error
		for _, one := range all.Unwrap() {
			errs = append(errs, problems(v, setting, one))
		}
		return errors.Join(errs...)
	}
	path, text, _ := strings.Cut(err.Error(), ": ")
	if i := strings.IndexAny(path, ".["); i > 0 {
		setting += path[i:]
	}
	return v.Problem(setting, "%s", text)
}

// typed returns Slipway's own settings about pods.
func (c Config) typed(v config.Values) (layer, error) {
	out := newLayer()
	container, pod, podMeta, job, jobMeta := out.sections[containerConfig], out.sections[podSpecConfig],
		out.sections[podMetadata], out.sections[jobSpecConfig], out.sections[jobMetadata]
	requests, limits := map[string]any{}, map[string]any{}
	for _, q := range []struct {
		setting, value string
		name           corev1.ResourceName
		limit          bool
	}{{"cpu", c.CPU, corev1.ResourceCPU, false}, {"memory", c.Memory, corev1.ResourceMemory, true},
		{"ephemeral_storage", c.Disk, corev1.ResourceEphemeralStorage, true}} {
		if q.value == "" {
			continue
		}
		if err := checkQuantity(q.value, q.setting); err != nil {
			return out, v.Problem(q.setting, "%v", err)
		}
		requests[string(q.name)] = q.value
		if q.limit {
			limits[string(q.name)] = q.value
		}
	}
	if c.GPUs > 0 {
		limits[c.GPUResource] = fmt.Sprint(c.GPUs)
	}
	if len(requests)+len(limits) > 0 {
		container["resources"] = map[string]any{"requests": requests, "limits": limits}
	}
	for _, raw := range []struct {
		setting, key string
		value        config.Values
	}{{"tolerations", "tolerations", c.Tolerations}, {"affinity", "affinity", c.Affinity},
		{"topology_spread_constraints", "topologySpreadConstraints", c.Topology}} {
		if raw.value.Node == nil {
			continue
		}
		value, err := section(raw.value)
		if err != nil {
			return out, err
		}
		if value, err = modelOf[corev1.PodSpec]().fields[raw.key].normal(value, raw.setting); err != nil {
			return out, problems(v, raw.setting, err)
		}
		pod[raw.key] = value
	}
	text := func(into map[string]any, key, value string) {
		if value != "" {
			into[key] = value
		}
	}
	text(pod, "priorityClassName", c.PriorityClass)
	text(pod, "runtimeClassName", c.RuntimeClass)
	if nodes := tableOf(c.NodeSelector); len(nodes) > 0 {
		pod["nodeSelector"] = nodes
	}
	if notes := tableOf(c.Annotations); len(notes) > 0 {
		podMeta["annotations"] = notes
	}
	if s, ok := spots[c.Spot]; ok {
		selector, _ := pod["nodeSelector"].(map[string]any)
		if selector == nil {
			selector = map[string]any{}
		}
		selector[s[0]] = s[1]
		pod["nodeSelector"] = selector
		before, _ := pod["tolerations"].([]any)
		pod["tolerations"] = append(before,
			map[string]any{"key": s[0], "operator": "Equal", "value": s[1], "effect": "NoSchedule"})
	}
	if c.Queue != "" {
		jobMeta["labels"] = map[string]any{queueLabel: c.Queue}
		job["suspend"] = true
	}
	if c.TTL > 0 {
		job["ttlSecondsAfterFinished"] = json.Number(fmt.Sprint(int64(c.TTL.Seconds())))
	}
	if c.PodSecurity == "restricted" {
		pod["securityContext"] = map[string]any{"runAsNonRoot": true,
			"seccompProfile": map[string]any{"type": "RuntimeDefault"}}
		container["securityContext"] = map[string]any{"allowPrivilegeEscalation": false,
			"capabilities": map[string]any{"drop": []any{"ALL"}}}
	}
	return out, nil
}

// queueLabel is the label with the name of a Job's Kueue queue.
const queueLabel = "kueue.x-k8s.io/queue-name"

// spots are the labels of spot nodes. If the nodes have a taint, it equals the label.
var spots = map[string][2]string{
	"gke":       {"cloud.google.com/gke-spot", "true"},
	"aks":       {"kubernetes.azure.com/scalesetpriority", "spot"},
	"eks":       {"eks.amazonaws.com/capacityType", "SPOT"},
	"karpenter": {"karpenter.sh/capacity-type", "spot"},
}

func tableOf(m map[string]string) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// access returns how to reach the cluster.
func (c Config) access(v config.Values) (*rest.Config, error) {
	given := config.Child(v.Node, "load_incluster_config") != nil
	var out *rest.Config
	var err error
	switch {
	case c.InCluster && given && c.Kubeconfig != "":
		return nil, v.Problem("kubeconfig_file",
			"load_incluster_config is true: set it to false to use a kubeconfig, or leave kubeconfig_file out")
	case c.InCluster && c.Kubeconfig == "" && (given || inCluster(v.Env)):
		if out, err = rest.InClusterConfig(); err != nil {
			return nil, v.Problem("load_incluster_config",
				"the daemon does not run in a pod of a cluster (%v); set it to false to use kubeconfig_file, "+
					"KUBECONFIG or ~/.kube/config", err)
		}
	default:
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		if v.Env != nil {
			if files, ok := v.Env(clientcmd.RecommendedConfigPathEnvVar); ok {
				rules.Precedence = strings.Split(files, string(os.PathListSeparator))
			}
		}
		rules.ExplicitPath = c.Kubeconfig
		out, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
			&clientcmd.ConfigOverrides{CurrentContext: c.Context}).ClientConfig()
		if clientcmd.IsEmptyConfig(err) { // its advice does not apply here
			err = errors.New("no Kubernetes configuration was found")
		}
		if err != nil {
			return nil, v.Problem("kubeconfig_file",
				"%v; set it to a file that leads to the cluster, and context to one of its contexts", err)
		}
	}
	if c.CA != "" {
		out.CAFile, out.CAData = c.CA, nil
	}
	return out, nil
}

func inCluster(env config.Lookup) bool {
	if env == nil {
		env = os.LookupEnv
	}
	host, _ := env("KUBERNETES_SERVICE_HOST")
	return host != ""
}

// Close ends the watches.
func (l *Launcher) Close() error {
	l.informers.close()
	return nil
}
