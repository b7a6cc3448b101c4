package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the generated manifests")

const (
	chart     = "../../../deploy/helm/slipway"
	manifests = "../../../deploy/kubernetes/slipway.yaml"
)

// objects decodes rendered documents, each strictly, by kind and name.
func objects(t *testing.T, rendered string) map[string]any {
	t.Helper()
	out := map[string]any{}
	for doc := range strings.SplitSeq(rendered, "---\n") {
		var head struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if head.Kind == "" { // a comment, or nothing
			continue
		}
		into := map[string]any{
			"Deployment": &appsv1.Deployment{}, "ConfigMap": &corev1.ConfigMap{}, "Secret": &corev1.Secret{},
			"Service": &corev1.Service{}, "ServiceAccount": &corev1.ServiceAccount{},
			"Role": &rbacv1.Role{}, "RoleBinding": &rbacv1.RoleBinding{},
			"PodDisruptionBudget": &policyv1.PodDisruptionBudget{}, "NetworkPolicy": &networkingv1.NetworkPolicy{},
			"ServiceMonitor": &map[string]any{},
		}[head.Kind]
		if into == nil {
			t.Fatalf("an object of kind %q:\n%s", head.Kind, doc)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
			t.Errorf("%s %s: %v\n%s", head.Kind, head.Metadata.Name, err, doc)
		}
		key := strings.TrimSuffix(head.Kind+" "+head.Metadata.Name+" "+head.Metadata.Namespace, " ")
		if out[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		out[key] = into
	}
	return out
}

// The plain manifests are the chart with its defaults, except the token, which a person creates.
func TestManifests(t *testing.T) {
	got, err := render(chart, map[string]any{"web": map[string]any{"tokenSecret": "slipway-token"}}, "slipway",
		"dagster")
	if err != nil {
		t.Fatal(err)
	}
	got = "# Slipway beside Dagster's own chart, made from deploy/helm/slipway. First, with a token of your own:\n" +
		"#   kubectl -n dagster create secret generic slipway-token --from-literal=token=$(openssl rand -hex 16)\n" +
		got
	if *update {
		if err := os.WriteFile(manifests, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if old, err := os.ReadFile(manifests); err != nil || string(old) != got {
		t.Errorf("%s is out of date (%v); run the tests of test/testbeds/helm with -update", manifests, err)
	}
	objects(t, got)
}

func TestDefaults(t *testing.T) {
	rendered, err := render(chart, nil, "slipway", "dagster")
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, rendered)
	for _, key := range []string{"ConfigMap slipway", "Deployment slipway", "Secret slipway-token", "Service slipway",
		"ServiceAccount slipway", "Role slipway dagster", "RoleBinding slipway dagster",
		"PodDisruptionBudget slipway"} {
		if all[key] == nil {
			t.Errorf("%s is not there", key)
		}
	}
	if len(all) != 8 {
		t.Errorf("%d objects, want 8", len(all))
	}
	d := all["Deployment slipway"].(*appsv1.Deployment)
	c := d.Spec.Template.Spec.Containers[0]
	if *d.Spec.Replicas != 2 || !*d.Spec.Template.Spec.SecurityContext.RunAsNonRoot ||
		!*c.SecurityContext.ReadOnlyRootFilesystem || c.Args[0] != "daemon" {
		t.Errorf("the deployment is %+v", d.Spec)
	}
	if text := all["ConfigMap slipway"].(*corev1.ConfigMap).Data["slipway.yaml"]; text !=
		"web:\n  listen: 0.0.0.0:9870\n  token:\n    env: SLIPWAY_TOKEN\n" {
		t.Errorf("slipway.yaml is %q", text)
	}
	var role rbacv1.Role
	text, err := os.ReadFile("../../../deploy/kubernetes/role.yaml")
	if err == nil {
		err = yaml.UnmarshalStrict(text, &role)
	}
	if got := all["Role slipway dagster"].(*rbacv1.Role).Rules; err != nil || len(got) == 0 ||
		fmt.Sprint(got) != fmt.Sprint(role.Rules) {
		t.Errorf("the role is %v, want that of deploy/kubernetes/role.yaml: %v, %v", got, role.Rules, err)
	}
}

func TestEverything(t *testing.T) {
	values := map[string]any{}
	err := yaml.Unmarshal([]byte(`
dagster: {instanceConfigMap: prod-instance, postgresqlSecret: "", home: /dagster}
slipway: {queue: {max_concurrent_runs: 100}, web: {listen: "0.0.0.0:9000"}}
image: {repository: registry.example.com/slipway, tag: v1, pullPolicy: Always}
imagePullSecrets: [{name: registry}]
replicas: 3
namespaces: [team-a, team-b, prod]
serviceAccount: {name: launcher, annotations: {a: b}}
web: {port: 9000, tokenSecret: mine}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
networkPolicy: {enabled: true, ingressFrom: [{namespaceSelector: {}}], egress: [{ports: [{port: 443}]}]}
env: [{name: A, value: b}]
envFrom: [{secretRef: {name: more}}]
volumes: [{name: v, emptyDir: {}}]
volumeMounts: [{name: v, mountPath: /v}]
podAnnotations: {c: d}
podLabels: {e: f}
nodeSelector: {pool: system}
tolerations: [{key: system, operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: high
hostNetwork: true
`), &values)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := render(chart, values, "prod", "prod")
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, rendered)
	for _, key := range []string{"Role prod-slipway team-a", "RoleBinding prod-slipway team-b",
		"Role prod-slipway prod", "ServiceMonitor prod-slipway", "NetworkPolicy prod-slipway",
		"ServiceAccount launcher"} {
		if all[key] == nil {
			t.Errorf("%s is not there", key)
		}
	}
	d := all["Deployment prod-slipway"].(*appsv1.Deployment).Spec.Template
	got := []string{d.Labels["e"], d.Annotations["c"], d.Spec.ImagePullSecrets[0].Name, d.Spec.Tolerations[0].Key,
		d.Spec.PriorityClassName, d.Spec.Containers[0].EnvFrom[0].SecretRef.Name}
	if !slices.Equal(got, []string{"f", "d", "registry", "system", "high", "more"}) || !d.Spec.HostNetwork {
		t.Errorf("the deployment has %q", got)
	}
	if text := all["ConfigMap prod-slipway"].(*corev1.ConfigMap).Data["slipway.yaml"]; !strings.Contains(text,
		"max_concurrent_runs: 100") || !strings.Contains(text, "listen: 0.0.0.0:9000") {
		t.Errorf("slipway.yaml is %q", text)
	}
}

// Values that make no sense are refused before anything is made of them.
func TestSchema(t *testing.T) {
	for _, text := range []string{"replicas: 0", "replica: 2", "image: {pullPolicy: Sometimes}",
		"dagster: {home: relative}", "dagster: {instanceConfigMap: ''}", "namespaces: [Not_A_Name]",
		"web: {port: 70000}", "slipway: text"} {
		values := map[string]any{}
		if err := yaml.Unmarshal([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		if _, err := render(chart, values, "slipway", "dagster"); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
