package k8s

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// Dagster's names of the sections of raw settings.
const (
	containerConfig = "container_config"
	podMetadata     = "pod_template_spec_metadata"
	podSpecConfig   = "pod_spec_config"
	jobConfig       = "job_config"
	jobMetadata     = "job_metadata"
	jobSpecConfig   = "job_spec_config"
	mergeBehavior   = "merge_behavior"
)

// sectionModels returns what each section may contain.
func sectionModels() map[string]*model {
	return map[string]*model{
		containerConfig: modelOf[corev1.Container](),
		podMetadata:     modelOf[metav1.ObjectMeta](),
		podSpecConfig:   modelOf[corev1.PodSpec](),
		jobConfig:       modelOf[batchv1.Job](),
		jobMetadata:     modelOf[metav1.ObjectMeta](),
		jobSpecConfig:   modelOf[batchv1.JobSpec](),
	}
}

// layer is the part of a Job that one source sets: the launcher's settings, a code location, a
// rule, a run's tags.
type layer struct {
	sections  map[string]map[string]any // by name; trees with the API's names
	shallow   bool
	namespace string
}

func newLayer() layer {
	l := layer{sections: map[string]map[string]any{}}
	for name := range sectionModels() {
		l.sections[name] = map[string]any{}
	}
	return l
}

// over lays a later layer over l, in the way that the later one asks for: either key by key of each
// section, or recursively, with lists appended. The result asks for the same way as the later
// layer.
func (l layer) over(later layer) (layer, error) {
	out := newLayer()
	out.shallow = later.shallow
	if out.namespace = later.namespace; out.namespace == "" {
		out.namespace = l.namespace
	}
	var errs []error
	for name := range out.sections {
		if later.shallow {
			maps.Copy(out.sections[name], l.sections[name])
			maps.Copy(out.sections[name], later.sections[name])
			continue
		}
		merged, err := deep(l.sections[name], later.sections[name], name)
		out.sections[name] = merged
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// deep lays one tree over another. Values that are mappings in both are merged recursively. Values
// that are lists in both are appended without duplicates, except for the lists command and args.
// Neither tree is changed.
func deep(onto, from map[string]any, path string) (map[string]any, error) {
	out := maps.Clone(onto)
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(from)) {
		value, at := from[key], below(path, key)
		old, there := out[key]
		if !there {
			out[key] = value
			continue
		}
		switch v := value.(type) {
		case []any:
			if key == "command" || key == "args" {
				out[key] = v
				continue
			}
			before, ok := old.([]any)
			if !ok {
				errs = append(errs, fmt.Errorf("%s: a list is laid over %s", at, word(old)))
				continue
			}
			out[key] = unique(slices.Concat(before, v))
		case map[string]any:
			before, ok := old.(map[string]any)
			if !ok {
				errs = append(errs, fmt.Errorf("%s: a mapping is laid over %s", at, word(old)))
				continue
			}
			merged, err := deep(before, v, at)
			out[key] = merged
			errs = append(errs, err)
		default:
			out[key] = v
		}
	}
	return out, errors.Join(errs...)
}

// unique keeps the first of equal items.
func unique(items []any) []any {
	seen := map[string]bool{}
	out := make([]any, 0, len(items))
	for _, item := range items {
		key, err := json.Marshal(item) // with the keys of mappings in order
		if err != nil || seen[string(key)] {
			continue
		}
		seen[string(key)] = true
		out = append(out, item)
	}
	return out
}

// tree parses JSON.
func tree(raw json.RawMessage) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("this is not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("this is not one JSON value: something follows it")
	}
	return v, nil
}

func mappingOf(v any, path string) (map[string]any, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fault(path, "a mapping is expected, not %s", word(v))
	}
	return m, nil
}

// rawLayer reads raw sections.
func rawLayer(v any, path string, behaviour bool) (layer, error) {
	out := newLayer()
	members, err := mappingOf(v, path)
	if err != nil {
		return out, err
	}
	var errs []error
	known := sectionModels()
	for _, key := range slices.Sorted(maps.Keys(members)) {
		at := below(path, key)
		if key == mergeBehavior && behaviour {
			switch members[key] {
			case "SHALLOW":
				out.shallow = true
			case "DEEP":
			default:
				errs = append(errs, fmt.Errorf("%s: DEEP or SHALLOW is expected, not %s", at, word(members[key])))
			}
			continue
		}
		m, ok := known[key]
		if !ok {
			errs = append(errs, fmt.Errorf("%s: unknown section; %s are known", at,
				strings.Join(slices.Sorted(maps.Keys(known)), ", ")))
			continue
		}
		section, err := m.normal(members[key], at)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out.sections[key] = section.(map[string]any)
	}
	return out, errors.Join(errs...)
}

// named are the settings with their own names that the launcher and code locations share.
type named struct {
	imagePullPolicy, serviceAccount, scheduler string
	imagePullSecrets, volumes, volumeMounts    []any
	envConfigMaps, envSecrets, envVars         []string
	env                                        []any
	labels, resources, securityContext         map[string]any
}

// layer translates them to sections.
func (n named) layer(env config.Lookup) (layer, error) {
	out := newLayer()
	container, pod := map[string]any{}, map[string]any{}
	text := func(into map[string]any, key, value string) {
		if value != "" {
			into[key] = value
		}
	}
	items := func(into map[string]any, key string, value []any) {
		if len(value) > 0 {
			into[key] = value
		}
	}
	tables := func(into map[string]any, key string, value map[string]any) {
		if len(value) > 0 {
			into[key] = value
		}
	}
	text(container, "imagePullPolicy", n.imagePullPolicy)
	text(pod, "serviceAccountName", n.serviceAccount)
	text(pod, "schedulerName", n.scheduler)
	items(pod, "imagePullSecrets", n.imagePullSecrets)
	items(pod, "volumes", n.volumes)
	items(container, "volumeMounts", n.volumeMounts)
	tables(container, "resources", n.resources)
	tables(container, "securityContext", n.securityContext)
	var from []any
	for _, name := range n.envConfigMaps {
		from = append(from, map[string]any{"configMapRef": map[string]any{"name": name}})
	}
	for _, name := range n.envSecrets {
		from = append(from, map[string]any{"secretRef": map[string]any{"name": name}})
	}
	items(container, "envFrom", from)
	var vars []any
	for _, v := range n.envVars {
		name, value, given := strings.Cut(v, "=")
		if !given {
			var ok bool
			if env != nil {
				value, ok = env(name)
			}
			if !ok {
				return out, fmt.Errorf("env_vars: environment variable %s is not set where slipway runs", name)
			}
		}
		vars = append(vars, map[string]any{"name": name, "value": value})
	}
	items(container, "env", append(vars, n.env...))
	var errs []error
	for section, members := range map[string]map[string]any{containerConfig: container, podSpecConfig: pod} {
		normal, err := sectionModels()[section].normal(members, "")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out.sections[section] = normal.(map[string]any)
	}
	if len(n.labels) > 0 {
		out.sections[podMetadata] = map[string]any{"labels": n.labels}
		out.sections[jobMetadata] = map[string]any{"labels": n.labels}
	}
	return out, errors.Join(errs...)
}

// reader reads members of a code location's section. Their texts may be {"env": NAME}.
type reader struct {
	env  config.Lookup
	errs []error
}

func (r *reader) fail(key, format string, args ...any) {
	r.errs = append(r.errs, fault(key, format, args...))
}

func (r *reader) text(key string, v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case map[string]any:
		if name, ok := v["env"].(string); ok && len(v) == 1 {
			if r.env != nil {
				if value, ok := r.env(name); ok {
					return value
				}
			}
			r.fail(key, "environment variable %s is not set where slipway runs", name)
			return ""
		}
	}
	r.fail(key, "a text is expected, not %s", word(v))
	return ""
}

func (r *reader) list(key string, v any) []any {
	if v == nil {
		return nil
	}
	items, ok := v.([]any)
	if !ok {
		r.fail(key, "a list is expected, not %s", word(v))
	}
	return items
}

func (r *reader) texts(key string, v any) []string {
	var out []string
	for i, item := range r.list(key, v) {
		out = append(out, r.text(fmt.Sprintf("%s[%d]", key, i), item))
	}
	return out
}

func (r *reader) table(key string, v any, only ...string) map[string]any {
	if v == nil {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		r.fail(key, "a mapping is expected, not %s", word(v))
	}
	for k := range m {
		if len(only) > 0 && !slices.Contains(only, k) {
			r.fail(key, "%s is not known; %s are", k, strings.Join(only, " and "))
		}
	}
	return m
}

// objects reads mappings that must have a name. Texts of the keys in sources may be {"env": NAME}.
func (r *reader) objects(key string, v any, only bool, sources ...string) []any {
	var out []any
	for i, item := range r.list(key, v) {
		at := fmt.Sprintf("%s[%d]", key, i)
		m, ok := item.(map[string]any)
		if !ok {
			r.fail(at, "a mapping is expected, not %s", word(item))
			continue
		}
		if m["name"] == nil {
			r.fail(at, "name is required")
		}
		m = maps.Clone(m)
		for k, value := range m {
			if only && k != "name" {
				r.fail(at, "%s is not known; name is", k)
			}
			if _, from := value.(map[string]any); from && slices.Contains(sources, k) {
				m[k] = r.text(at+"."+k, value)
			}
		}
		out = append(out, m)
	}
	return out
}

// set reads one of the settings that launcher and code locations share. It returns false for any
// other key.
func (n *named) set(r *reader, key string, v any) bool {
	switch key {
	case "image_pull_policy":
		n.imagePullPolicy = r.text(key, v)
	case "service_account_name":
		n.serviceAccount = r.text(key, v)
	case "scheduler_name":
		n.scheduler = r.text(key, v)
	case "image_pull_secrets":
		n.imagePullSecrets = r.objects(key, v, true, "name")
	case "volumes":
		n.volumes = r.objects(key, v, false)
	case "volume_mounts":
		n.volumeMounts = r.objects(key, v, false, "name", "mount_path", "mount_propagation", "read_only", "sub_path",
			"sub_path_expr")
	case "env_config_maps":
		n.envConfigMaps = r.texts(key, v)
	case "env_secrets":
		n.envSecrets = r.texts(key, v)
	case "env_vars":
		n.envVars = r.texts(key, v)
	case "labels":
		n.labels = r.table(key, v)
	case "resources":
		n.resources = r.table(key, v, "limits", "requests")
	case "security_context":
		n.securityContext = r.table(key, v)
	default:
		return false
	}
	return true
}

// contextLayer reads container_context.k8s, or the list env_vars that all launchers share.
func contextLayer(o launcher.Override, env config.Lookup) (layer, error) {
	v, err := tree(o.JSON)
	if err != nil {
		return layer{}, err
	}
	r := &reader{env: env}
	var n named
	raw := newLayer()
	if _, shared := v.([]any); shared {
		n.envVars = r.texts("env_vars", v)
	} else {
		members, err := mappingOf(v, "")
		if err != nil {
			return layer{}, err
		}
		for _, key := range slices.Sorted(maps.Keys(members)) {
			value := members[key]
			if n.set(r, key, value) {
				continue
			}
			switch key {
			case "namespace":
				raw.namespace = r.text(key, value)
			case "env":
				n.env = r.objects(key, value, false)
			case "run_k8s_config":
				namespace := raw.namespace
				if raw, err = rawLayer(value, key, true); err != nil {
					r.errs = append(r.errs, err)
				}
				raw.namespace = namespace
			case "server_k8s_config", "server_replica_count": // for code servers, not for runs
			default:
				r.fail(key, "unknown setting")
			}
		}
	}
	top, err := n.layer(env)
	if err := errors.Join(append(r.errs, err)...); err != nil {
		return layer{}, err
	}
	return top.over(raw)
}

// Dagster's tags of runs with raw settings.
const (
	configTag    = "dagster-k8s/config"
	resourcesTag = "dagster-k8s/resource_requirements" // older
)

// tagLayer reads the run's tags. The layer counts even if there are no tags, because it asks for
// deep merging.
func tagLayer(config, resources json.RawMessage) (layer, error) {
	out := newLayer()
	if config != nil {
		v, err := tree(config)
		if err == nil {
			out, err = rawLayer(v, "", true)
		}
		if err != nil {
			return out, fmt.Errorf("tag %s: %w", configTag, err)
		}
	}
	if resources != nil {
		v, err := tree(resources)
		if err == nil {
			r := &reader{}
			if r.table("", v, "limits", "requests"); len(r.errs) == 0 {
				v, err = modelOf[corev1.ResourceRequirements]().normal(v, "")
			}
			err = errors.Join(append(r.errs, err)...)
			out.sections[containerConfig]["resources"] = v
		}
		if err != nil {
			return out, fmt.Errorf("tag %s: %w", resourcesTag, err)
		}
	}
	return out, nil
}

// allowed lists what code locations and tags may set. nil lists allow everything.
type allowed struct {
	fields map[string]map[string]bool // by section, with the API's names
	spaces bool                       // whether the namespace may be set
	env    []string
}

// readAllowed reads only_allow_user_defined_k8s_config_fields. It returns an error for fields that
// the API does not have. The real launcher finds them only at the first launch.
func readAllowed(v any, env config.Lookup) (map[string]map[string]bool, bool, error) {
	members, err := mappingOf(v, "")
	if err != nil {
		return nil, false, err
	}
	out, spaces := map[string]map[string]bool{}, false
	known := sectionModels()
	var errs []error
	for _, section := range slices.Sorted(maps.Keys(members)) {
		if section == "namespace" {
			b, ok := members[section].(bool)
			if !ok { // from the environment
				r := &reader{env: env}
				b, ok = strings.EqualFold(r.text(section, members[section]), "true"), len(r.errs) == 0
			}
			if spaces = b; !ok {
				errs = append(errs, fmt.Errorf("%s: true or false is expected", section))
			}
			continue
		}
		m := known[section]
		if m == nil || section == jobConfig {
			errs = append(errs, fmt.Errorf("%s: unknown section", section))
			continue
		}
		fields, err := mappingOf(members[section], section)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[section] = map[string]bool{}
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			name, ok := m.known(key)
			yes, isBool := fields[key].(bool)
			switch {
			case !ok:
				errs = append(errs, fmt.Errorf("%s.%s: the Kubernetes API has no such field", section, key))
			case !isBool:
				errs = append(errs, fmt.Errorf("%s.%s: true or false is expected", section, key))
			}
			out[section][name] = yes
		}
	}
	return out, spaces, errors.Join(errs...)
}

// check returns an error that names the parts of a layer that are not allowed.
func (a allowed) check(l layer) error {
	if a.fields == nil {
		return nil
	}
	var bad []string
	for _, section := range slices.Sorted(maps.Keys(l.sections)) {
		for _, key := range slices.Sorted(maps.Keys(l.sections[section])) {
			if !a.fields[section][key] {
				bad = append(bad, section+"."+key)
			}
		}
	}
	if l.namespace != "" && !a.spaces {
		bad = append(bad, "namespace")
	}
	if len(bad) > 0 {
		return fmt.Errorf(
			"the code location or the run's tags set %s, which only_allow_user_defined_k8s_config_fields does not "+
				"allow", strings.Join(bad, ", "))
	}
	return nil
}

// filter drops the variables that are not allowed, and returns their names.
func (a allowed) filter(l layer) (layer, []string) {
	vars, ok := l.sections[containerConfig]["env"].([]any)
	if a.env == nil || !ok {
		return l, nil
	}
	kept, dropped := []any{}, []string{}
	for _, v := range vars {
		m, _ := v.(map[string]any)
		name, _ := m["name"].(string)
		if slices.Contains(a.env, name) {
			kept = append(kept, v)
		} else {
			dropped = append(dropped, name)
		}
	}
	l.sections = maps.Clone(l.sections)
	l.sections[containerConfig] = maps.Clone(l.sections[containerConfig])
	l.sections[containerConfig]["env"] = kept
	return l, dropped
}
