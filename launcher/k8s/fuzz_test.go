package k8s

import (
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// Whatever a run's tag or a code location's section contains, the request becomes a Job or is
// invalid.
func FuzzRawConfig(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"container_config": {"env": [{"name": "A", "value": 1e400}]}}`,
		`{"pod_spec_config": {"containers": [null]}}`,
		`{"container_config": {"resources": {"limits": {"cpu": "1"}, "requests": null}}, "merge_behavior": "SHALLOW"}`,
		`{"pod_spec_config": {"nodeSelector": {"a": 1.5}, "tolerations": [{"key": "a"}, {"key": "a"}]}, ` +
			`"job_spec_config": {"backoff_limit": "3"}}`,
		`{"pod_template_spec_metadata": {"labels": {"a": true}, "annotations": {}}, "job_metadata": {"labels": null}}`,
		`{"container_config": {"livenessProbe": {"httpGet": {"port": "http"}}, "lifecycle": {"preStop": {"exec": ` +
			`{"command": ["x"]}}}}}`,
		`{"container_config": {"image": {}, "name": [], "args": "x"}}`, `{"job_config": {"spec": {"template": {}}}}`,
		`{"container_config": {"env": [{"name": "DAGSTER_CLOUD_DEPLOYMENT_NAME"}]}}`,
	} {
		f.Add(seed, `{"env_vars": ["A=1"], "labels": {"x": "y"}, "run_k8s_config": {"container_config": {"env": []}}}`)
		f.Add(`{}`, seed)
	}
	v, err := config.FromMap(map[string]any{
		"load_incluster_config": false, "job_image": "image:1", "cpu": "1", "node_selector": map[string]any{"a": "b"},
		"labels": map[string]any{"l": "1"},
		"run_k8s_config": map[string]any{
			"pod_spec_config": map[string]any{"tolerations": []any{map[string]any{"key": "k"}}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	l, err := open(v, &rest.Config{Host: "http://127.0.0.1:1"}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, tag, section string) {
		req := &launcher.Request{
			ID: launcher.ID{Run: "r", Attempt: 1}, Instance: "i", Command: []string{"dagster"}, Job: "j",
			Resources: launcher.Resources{MemoryBytes: 1 << 20, GPUs: 1},
			Overrides: []launcher.Override{{Source: "container_context.k8s", JSON: json.RawMessage(section)},
				{Source: "tag " + configTag, JSON: json.RawMessage(tag)}},
		}
		job, err := l.spec(req)
		if err != nil {
			if !errors.Is(err, launcher.ErrInvalid) {
				t.Errorf("%q, %q: %v, want ErrInvalid", tag, section, err)
			}
			return
		}
		c := job.Spec.Template.Spec.Containers
		if len(c) == 0 || len(c[0].Args) != 1 || job.Labels[instanceLabel] != "i" || job.Namespace == "" {
			t.Errorf("%q, %q: %+v is not this worker's", tag, section, job)
		}
	})
}
