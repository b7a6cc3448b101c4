package k8s_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
	"github.com/slipway-run/slipway/test/testenv"
)

// against opens a launcher for an API server that the test implements.
func against(t *testing.T, settings map[string]any, server http.HandlerFunc) *k8s.Launcher {
	t.Helper()
	s := httptest.NewServer(server)
	t.Cleanup(s.Close)
	v, err := config.FromMap(settings)
	if err != nil {
		t.Fatal(err)
	}
	l, err := k8s.OpenAt(v, &rest.Config{Host: s.URL,
		ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func request() *launcher.Request {
	return &launcher.Request{ID: launcher.ID{Run: "1e9a2c34-0000-4000-8000-000000000001", Attempt: 1}, Instance: "prod",
		Image: "image:1", Command: []string{"dagster"}, Job: "nightly"}
}

func status(code int, reason, message string) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
		"message": message}
}

// about adds the object of an answer to it, and the cause if there is one.
func about(status map[string]any, name, cause string) map[string]any {
	details := map[string]any{"name": name, "group": "batch", "kind": "jobs"}
	if cause != "" {
		details["causes"] = []any{map[string]any{"reason": cause}}
	}
	status["details"] = details
	return status
}

// The API server's answer to the creation of a Job decides what happens to the run.
func TestLaunchErrors(t *testing.T) {
	for _, c := range []struct {
		name     string
		code     int
		reason   string
		message  string
		settings map[string]any
		override string
		object   string // named by the answer
		reasons  string
		want     error
		cause    launcher.Cause
	}{
		{name: "quota", code: 403, reason: "Forbidden",
			message: `jobs.batch "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: 5, ` +
				`limited: 5`, want: launcher.ErrCapacity, cause: launcher.CauseQuota},
		{name: "no right", code: 403, reason: "Forbidden", message: "User cannot create resource jobs",
			want: launcher.ErrDenied, cause: launcher.CauseAuth},
		{name: "no right in a code location's namespace", code: 403, reason: "Forbidden",
			message: `User cannot create resource "jobs" in the namespace "other"`, override: `{"namespace": "other"}`,
			want: launcher.ErrInvalid},
		{name: "a policy that forbids this Job", code: 403, reason: "Forbidden",
			message: `jobs.batch "x" is forbidden: no`, object: "x", want: launcher.ErrInvalid},
		{name: "a namespace that ends", code: 403, reason: "Forbidden",
			message: `jobs.batch "x" is forbidden: it is being terminated`, object: "x",
			reasons: "NamespaceTerminating", want: launcher.ErrDenied, cause: launcher.CauseAuth},
		{name: "a code location's namespace that ends", code: 403, reason: "Forbidden",
			message: `jobs.batch "x" is forbidden: it is being terminated`, object: "x",
			reasons: "NamespaceTerminating", override: `{"namespace": "other"}`, want: launcher.ErrInvalid},
		{name: "a server that has just started", code: 403, reason: "Forbidden",
			message: `jobs.batch "x" is forbidden: not yet ready to handle request`, object: "x",
			want: launcher.ErrTransient},
		{name: "no token", code: 401, reason: "Unauthorized", message: "Unauthorized", want: launcher.ErrDenied,
			cause: launcher.CauseAuth},
		{name: "a Job that the API refuses", code: 422, reason: "Invalid",
			message: "spec.template.spec.containers[0].image: Required value", want: launcher.ErrInvalid},
		{name: "a policy that refuses it", code: 400, reason: "BadRequest",
			message: `admission webhook "policy.example.com" denied the request: no`, want: launcher.ErrInvalid},
		{name: "a namespace that is not there", code: 404, reason: "NotFound",
			message: `namespaces "default" not found`, want: launcher.ErrDenied},
		{name: "a code location's that is not there", code: 404, reason: "NotFound",
			message: `namespaces "other" not found`, override: `{"namespace": "other"}`, want: launcher.ErrInvalid},
		{name: "a server in trouble", code: 500, reason: "InternalError", message: "etcdserver: leader changed",
			want: launcher.ErrTransient},
		{name: "a server that is slow", code: 504, reason: "Timeout",
			message: "request did not complete within the allotted timeout", want: launcher.ErrTransient},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := against(t, c.settings, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					testenv.Reply(w, 404, status(404, "NotFound", "not found"))
					return
				}
				testenv.Reply(w, c.code, about(status(c.code, c.reason, c.message), c.object, c.reasons))
			})
			req := request()
			if c.override != "" {
				req.Overrides = []launcher.Override{{Source: "container_context.k8s",
					JSON: json.RawMessage(c.override)}}
			}
			_, err := l.Launch(t.Context(), req)
			if !errors.Is(err, c.want) || launcher.CauseOf(err) != c.cause ||
				!strings.Contains(err.Error(), strings.Split(c.message, ":")[0]) {
				t.Errorf("Launch = %v (cause %q), want %v, %q", err, launcher.CauseOf(err), c.want, c.cause)
			}
		})
	}
}

// A Job whose creation had no answer is found by its name. A Job of another owner is left alone.
func TestLostAnswers(t *testing.T) {
	var made map[string]any
	posts := 0
	l := against(t, nil, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && made == nil:
			posts++
			if err := json.NewDecoder(r.Body).Decode(&made); err != nil {
				t.Error(err)
			}
			panic(http.ErrAbortHandler) // the answer is lost
		case r.Method == http.MethodPost:
			posts++
			testenv.Reply(w, 409, status(409, "AlreadyExists", "exists"))
		default:
			testenv.Reply(w, 200, made)
		}
	})
	if _, err := l.Launch(t.Context(), request()); !errors.Is(err, launcher.ErrTransient) {
		t.Errorf("the first Launch = %v, want ErrTransient", err)
	}
	got, err := l.Launch(t.Context(), request())
	if err != nil || got.Handle != "default/dagster-run-1e9a2c34-0000-4000-8000-000000000001" || posts != 2 {
		t.Errorf("the second Launch = %+v, %v after %d creations", got, err, posts)
	}
	odd := request()
	odd.Instance = "no label"
	if _, err := l.Launch(t.Context(), odd); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "instance_id") {
		t.Errorf("Launch for an instance that cannot be a label = %v, want ErrInvalid", err)
	}
	other := request()
	other.Instance = "another"
	if _, err := l.Launch(t.Context(), other); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "left alone") {
		t.Errorf("Launch of another instance's = %v, want ErrInvalid", err)
	}
}

// A creation can be refused although the Job exists: the answer to an earlier one may have been
// lost, and the API server checks rights, policies and quotas before it looks at the name.
func TestRefusedAfterALostAnswer(t *testing.T) {
	for name, refusal := range map[string]map[string]any{
		"the last Job of a quota": about(
			status(403, "Forbidden",
				`jobs.batch "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: 10, limited: 10`),
			"x", ""),
		"rights that were taken away": status(403,
			"Forbidden", `jobs.batch is forbidden: User "slipway" cannot create resource "jobs"`),
		"a policy that begins to refuse": status(400,
			"BadRequest", `admission webhook "policy.example.com" denied the request: no`),
		"a validation that has changed":   status(422, "Invalid", "spec.template: Invalid value"),
		"a token that has expired, maybe": status(401, "Unauthorized", "Unauthorized"),
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex // requests whose answers are lost are not ordered
			var made map[string]any
			answers := true // whether GET is answered
			l := against(t, nil, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case r.Method == http.MethodPost && made == nil:
					if err := json.NewDecoder(r.Body).Decode(&made); err != nil {
						t.Error(err)
					}
					panic(http.ErrAbortHandler) // the answer is lost
				case r.Method == http.MethodPost:
					testenv.Reply(w, refusal["code"].(int), refusal)
				case !answers:
					testenv.Reply(w, 500, status(500, "InternalError", "etcdserver: leader changed"))
				default:
					testenv.Reply(w, 200, made)
				}
			})
			if _, err := l.Launch(t.Context(), request()); !errors.Is(err, launcher.ErrTransient) {
				t.Errorf("the first Launch = %v, want ErrTransient", err)
			}
			answers = false
			_, err := l.Launch(t.Context(), request())
			if !errors.Is(err, launcher.ErrTransient) || errors.Is(err, launcher.ErrCapacity) ||
				errors.Is(err, launcher.ErrDenied) || errors.Is(err, launcher.ErrInvalid) ||
				!strings.Contains(err.Error(), refusal["message"].(string)) {
				t.Errorf("Launch while the Job cannot be read = %v, want ErrTransient alone, with the refusal", err)
			}
			answers = true
			if got, err := l.Launch(t.Context(), request()); err != nil ||
				got.Handle != "default/dagster-run-1e9a2c34-0000-4000-8000-000000000001" {
				t.Errorf("the last Launch = %+v, %v, want the Job that exists", got, err)
			}
		})
	}
}

// A namespace of a code location in which the daemon has no rights affects only its own runs.
func TestForbiddenNamespace(t *testing.T) {
	l := against(t, nil, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/namespaces/other/"):
			testenv.Reply(w, 403, status(403, "Forbidden", `User "slipway" cannot do this in the namespace "other"`))
		case r.URL.Query().Has("sendInitialEvents"):
			testenv.Reply(w, 422, status(422, "Invalid", "this server lists before it watches"))
		case r.URL.Query().Has("watch"):
			testenv.Reply(w, http.StatusOK, []byte{})
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "s"):
			kind := map[string]string{"jobs": "JobList", "pods": "PodList"}[path.Base(r.URL.Path)]
			testenv.Reply(w, 200, map[string]any{"kind": kind,
				"apiVersion": map[string]string{"JobList": "batch/v1", "PodList": "v1"}[kind],
				"metadata":   map[string]any{"resourceVersion": "1"}, "items": []any{}})
		default:
			testenv.Reply(w, 404, status(404, "NotFound", "not found"))
		}
	})
	const name = "dagster-run-1e9a2c34-0000-4000-8000-000000000001"
	got, err := l.HealthOf(t.Context(), []launcher.Handle{"other/" + name, "default/" + name})
	if err != nil || got[0].Status != launcher.Unknown ||
		!strings.Contains(got[0].Message, `in the namespace "other"`) || got[1].Status != launcher.NotFound {
		t.Errorf("HealthOf = %+v, %v, want Unknown and NotFound", got, err)
	}
	for what, call := range map[string]func() error{
		"Terminate": func() error { _, err := l.Terminate(t.Context(), "other/"+name, 0); return err },
		"Remove":    func() error { return l.Remove(t.Context(), "other/"+name) },
	} {
		if err := call(); !errors.Is(err, launcher.ErrInvalid) || errors.Is(err, launcher.ErrDenied) {
			t.Errorf("%s = %v, want an error about this worker", what, err)
		}
	}
	for _, err := range l.List(t.Context(), launcher.Filter{Instance: "prod"}) {
		t.Errorf("List of all yields %v, want the workers of other namespaces", err)
	}
	var missed error
	for _, err := range l.List(t.Context(),
		launcher.Filter{Instance: "prod", Runs: []string{"1e9a2c34-0000-4000-8000-000000000001"}}) {
		missed = err
	}
	if !errors.Is(missed, launcher.ErrDenied) {
		t.Errorf("List of a run = %v, want an error: the run may be in the forbidden namespace", missed)
	}
	for w, err := range l.Watch(t.Context()) {
		if err != nil || !w.Synced {
			t.Errorf("Watch yields %+v, %v, want Synced", w, err)
		}
		break
	}
}

// If the Secret of a worker cannot be created because of this run, the Job is given up. Otherwise
// the Job waits for it.
func TestSecretRefused(t *testing.T) {
	for name, c := range map[string]struct {
		override string
		answer   map[string]any
		want     error
	}{
		"no right in a code location's namespace": {`{"namespace": "other"}`,
			status(403, "Forbidden", "cannot create secrets"), nil},
		"too large": {`{}`, status(422, "Invalid", "Too long"), nil},
		"no right":  {`{}`, status(403, "Forbidden", "cannot create secrets"), launcher.ErrTransient},
		"a quota": {`{}`, about(status(403, "Forbidden", "exceeded quota: count/secrets"), "x", ""),
			launcher.ErrTransient},
	} {
		t.Run(name, func(t *testing.T) {
			patch := ""
			l := against(t, nil, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				if strings.HasSuffix(r.URL.Path, "/secrets") {
					testenv.Reply(w, c.answer["code"].(int), c.answer)
					return
				}
				if r.Method == http.MethodPatch {
					patch = string(body)
				}
				testenv.Reply(w, http.StatusOK, body)
			})
			req := request()
			req.Env = []launcher.Env{{Name: "PASSED", Value: "hunter2", Secret: true}}
			req.Overrides = []launcher.Override{{Source: "container_context.k8s", JSON: json.RawMessage(c.override)}}
			_, err := l.Launch(t.Context(), req)
			if !errors.Is(err, c.want) || (patch == "") != (c.want != nil) || c.want == nil &&
				!strings.Contains(patch, c.answer["message"].(string)) {
				t.Errorf("Launch = %v, patch %s; want %v", err, patch, c.want)
			}
		})
	}
}

// A launch can end between the Job and its Secret, because the daemon dies or the API server fails.
// The next search for the worker creates the Secret; without it the pod would wait in vain.
func TestSecretAfterABrokenLaunch(t *testing.T) {
	var job, secret string
	broken, creates := true, 0
	server := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/secrets") && broken:
			testenv.Reply(w, 500, status(500, "InternalError", "etcdserver: leader changed"))
			return
		case strings.HasSuffix(r.URL.Path, "/secrets") && secret != "":
			testenv.Reply(w, 409, status(409, "AlreadyExists", "exists"))
			return
		case strings.HasSuffix(r.URL.Path, "/secrets"):
			secret = string(body)
		case r.Method == http.MethodPost:
			job = string(body)
			creates++
		case job == "":
			body = []byte(`{"kind": "JobList", "apiVersion": "batch/v1", "items": []}`)
		default:
			if want := "slipway/instance=prod,slipway/run=" + request().ID.Run; r.URL.Query().Get("labelSelector") !=
				want {
				t.Errorf("looks for %q, want %q", r.URL.Query().Get("labelSelector"), want)
			}
			body = fmt.Appendf(nil, `{"kind": "JobList", "apiVersion": "batch/v1", "items": [%s]}`, job)
		}
		testenv.Reply(w, http.StatusOK, body)
	}
	req := request()
	req.Env = []launcher.Env{{Name: "PASSED", Value: "hunter2", Secret: true}}
	first, next := against(t, nil, server), against(t, nil, server)
	if got, found, err := next.Find(t.Context(), req); found || err != nil {
		t.Errorf("Find = %+v, %v, %v before there is a Job", got, found, err)
	}
	if _, err := first.Launch(t.Context(), req); !errors.Is(err, launcher.ErrTransient) {
		t.Errorf("Launch = %v, want an unknown outcome", err)
	}
	if got, found, err := next.Find(t.Context(), req); found || !errors.Is(err, launcher.ErrTransient) {
		t.Errorf("Find = %+v, %v, %v of a Job that still has no Secret", got, found, err)
	}
	broken = false
	for range 2 {
		got, found, err := next.Find(t.Context(), req)
		if !found || err != nil || got.Handle != launcher.Handle("default/dagster-run-"+req.ID.Run) ||
			got.Tags["dagster/image"] != "image:1" {
			t.Errorf("Find = %+v, %v, %v", got, found, err)
		}
	}
	if !strings.Contains(secret, "hunter2") || strings.Contains(job, "hunter2") || creates != 1 {
		t.Errorf("%d Jobs were created; the Secret is %q", creates, secret)
	}
	req.ID.Attempt = 2
	if got, found, err := next.Find(t.Context(), req); found || err != nil {
		t.Errorf("Find = %+v, %v, %v of an attempt that has no Job", got, found, err)
	}
}

// If a server asks for fewer requests, the launcher waits as long as the call may take. Then the
// run waits.
func TestThrottled(t *testing.T) {
	asked := 0
	l := against(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			w.Header().Set("Retry-After", "1")
			testenv.Reply(w, 429, status(429, "TooManyRequests", "please wait"))
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		testenv.Reply(w, 201, body)
	})
	if _, err := l.Launch(t.Context(), request()); err != nil || asked != 2 {
		t.Errorf("Launch = %v after %d requests, want success after 2", err, asked)
	}
}

// A secret value is only in a Secret that the Job owns.
func TestSecretValues(t *testing.T) {
	bodies := map[string]string{}
	l := against(t, nil, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		bodies[r.URL.Path] = string(body)
		var object map[string]any
		if err := json.Unmarshal(body, &object); err != nil {
			t.Error(err)
		}
		object["metadata"].(map[string]any)["uid"] = "the-uid"
		testenv.Reply(w, 201, object)
	})
	req := request()
	req.Env = []launcher.Env{{Name: "PLAIN", Value: "shows"}, {Name: "PASSED", Value: "hunter2", Secret: true}}
	if _, err := l.Launch(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	job, secret := bodies["/apis/batch/v1/namespaces/default/jobs"], bodies["/api/v1/namespaces/default/secrets"]
	if strings.Contains(job, "hunter2") ||
		!strings.Contains(job, `"secretKeyRef":{"name":"dagster-run-`+req.ID.Run+`","key":"PASSED"}`) {
		t.Errorf("the Job is %s", job)
	}
	if !strings.Contains(secret, `"PASSED":"hunter2"`) || !strings.Contains(secret, `"uid":"the-uid"`) ||
		strings.Contains(secret, "shows") {
		t.Errorf("the Secret is %s", secret)
	}
	if shown, err := l.Preview(t.Context(), req); err != nil || strings.Contains(string(shown), "hunter2") {
		t.Errorf("Preview = %s, %v", shown, err)
	}
}

// Settings from which no Job can be made are refused when the launcher is opened. The error names
// the setting.
func TestBadSettings(t *testing.T) {
	for _, c := range []struct {
		settings map[string]any
		setting  string
		says     string
	}{
		{map[string]any{"image_pull_policy": "Sometimes"}, "image_pull_policy", "none of IfNotPresent, Always, Never"},
		{map[string]any{"pod_security": "strict"}, "pod_security", "none, restricted"},
		{map[string]any{"spot": "moon"}, "spot", "gke"},
		{map[string]any{"cpu": "two"}, "cpu", `"two"`},
		{map[string]any{"memory": "1 GB"},
			"memory", `memory: "1 GB" is not a quantity of Kubernetes (for example: 1Gi)`},
		{map[string]any{"resources": map[string]any{"limits": map[string]any{"memory": "4GB"}}},
			"resources", `config.resources.limits.memory: "4GB" is not a quantity of Kubernetes (for example: 4Gi)`},
		{map[string]any{"run_k8s_config": []any{}}, "run_k8s_config", "run_k8s_config: a mapping is expected"},
		{map[string]any{"volume_mounts": []any{map[string]any{"name": "v", "mountpath": "/x"}}},
			"volume_mounts", "config.volume_mounts[0].mountpath: the Kubernetes API has no such field"},
		{map[string]any{"only_allow_user_defined_k8s_config_fields": "all"},
			"only_allow_user_defined_k8s_config_fields", "config_fields: a mapping is expected"},
		{map[string]any{"tolerations": []any{map[string]any{"kee": "x"}}},
			"tolerations", "config.tolerations[0].kee: the Kubernetes API has no such field in Toleration"},
		{map[string]any{"affinity": []any{}}, "affinity", "a mapping is expected"},
		{map[string]any{"job_namespace": "Data_Team"}, "job_namespace", "Data_Team"},
		{map[string]any{"volumes": []any{map[string]any{"emptyDir": map[string]any{}}}}, "volumes", "name is required"},
		{map[string]any{"run_k8s_config": map[string]any{"pod_spec": map[string]any{}}},
			"run_k8s_config", "pod_spec: unknown section"},
		{map[string]any{"run_k8s_config": map[string]any{
			"pod_spec_config": map[string]any{"nodeselector": map[string]any{}}}}, "run_k8s_config", "nodeselector"},
		{map[string]any{"run_k8s_config": map[string]any{"job_spec_config": map[string]any{"backoff_limit": "three"}}},
			"", "backoffLimit: a whole number of at most 32 bits is expected, not \"three\""},
		{map[string]any{"resources": map[string]any{"limit": map[string]any{}}}, "resources", "limits and requests"},
		{map[string]any{"labels": map[string]any{"a": 1}}, "labels", "put it into quotes"},
		{map[string]any{"env_vars": []any{"NOT_THERE"}}, "env_vars", "NOT_THERE is not set"},
		{map[string]any{"only_allow_user_defined_k8s_config_fields": map[string]any{
			"container_config": map[string]any{"imag": true}}}, "only_allow_user_defined_k8s_config_fields", "imag"},
		{map[string]any{"jobnamespace": "x"}, "jobnamespace", "job_namespace"},
	} {
		v, err := config.FromMap(c.settings)
		if err != nil {
			t.Fatal(err)
		}
		v.Path = "launchers.k8s.config"
		_, err = k8s.OpenAt(v, &rest.Config{Host: "http://127.0.0.1:1"})
		if problems := config.Problems(err); len(problems) == 0 ||
			!strings.HasPrefix(problems[0].Setting, strings.TrimSuffix("launchers.k8s.config."+c.setting, ".")) ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q of %s", c.settings, err, c.says, c.setting)
		}
	}
}

// Wrong values of a code location or a tag fail the run. The error names the place, the value, and
// the expected form.
func TestBadOverrides(t *testing.T) {
	l := against(t, nil, http.NotFound)
	for _, c := range []struct{ source, text, says string }{
		{"container_context.k8s", `"x"`, `container_context.k8s: a mapping is expected, not "x"`},
		{"container_context.k8s", `{"resources": {"limits": {"memory": "4GB"}}}`,
			`container_context.k8s: resources.limits.memory: "4GB" is not a quantity of Kubernetes (for example: 4Gi)`},
		{"container_context.k8s",
			`{"run_k8s_config": {"container_config": {"resources": {"requests": {"cpu": "two"}}}}}`,
			`run_k8s_config.container_config.resources.requests.cpu: "two" is not a quantity of Kubernetes (for ` +
				`example: 500m)`},
		{"container_context.k8s", `{"env_vars": [{"a": 1}]}`,
			"container_context.k8s: env_vars[0]: a text is expected, not a mapping"},
		{"tag dagster-k8s/config", `{"container_config": {"resources": {"limits": {"memory": "a lot"}}}}`,
			`tag dagster-k8s/config: container_config.resources.limits.memory: "a lot" is not a quantity of ` +
				`Kubernetes (for example: 512Mi)`},
		{"tag dagster-k8s/config", `{"container_config": {"ports": [{"container_port": 1e99}]}}`,
			"Job.spec.template.spec.containers[0].ports[0].containerPort: a whole number of at most 32 bits is " +
				"expected, not 1e99"},
		{"tag dagster-k8s/config", `{"container_config": {"liveness_probe": {"http_get": {"port": {}}}}}`,
			"livenessProbe.httpGet.port: one value is expected, not a mapping"},
		{"tag dagster-k8s/config", `{"container_config": {"liveness_probe": {"http_get": {"port": 1.5}}}}`,
			"livenessProbe.httpGet.port: a whole number or a text is expected, not 1.5"},
		{"tag dagster-k8s/config", `{"job_metadata": {"creation_timestamp": "today"}}`,
			`Job.metadata.creationTimestamp: "today" is not a time`},
		{"tag dagster-k8s/config", `[]`, "tag dagster-k8s/config: a mapping is expected, not a list"},
		{"tag dagster-k8s/config", `null`, "tag dagster-k8s/config: a mapping is expected, not null"},
		{"tag dagster-k8s/config", `{limits`, "tag dagster-k8s/config: this is not JSON: invalid character 'l'"},
		{"tag dagster-k8s/resource_requirements",
			`null`, "tag dagster-k8s/resource_requirements: a mapping is expected"},
		{"tag dagster-k8s/resource_requirements", `{"limits": {"memory": "4 GB"}}`,
			`tag dagster-k8s/resource_requirements: limits.memory: "4 GB" is not a quantity of Kubernetes (for ` +
				`example: 4Gi)`},
		{"tag dagster-k8s/resource_requirements", `{"limit": {}}`,
			"tag dagster-k8s/resource_requirements: limit is not known; limits and requests are"},
	} {
		req := request()
		req.Overrides = []launcher.Override{{Source: c.source, JSON: json.RawMessage(c.text)}}
		_, err := l.Preview(t.Context(), req)
		if !errors.Is(err, launcher.ErrInvalid) || !strings.Contains(fmt.Sprint(err), c.says) ||
			strings.Contains(fmt.Sprint(err), "json:") || strings.Contains(fmt.Sprint(err), ": :") {
			t.Errorf("%s %s: %v, want %q", c.source, c.text, err, c.says)
		}
	}
}

// The typed settings are translated to the API's fields.
func TestTypedSettings(t *testing.T) {
	l := against(t, map[string]any{
		"cpu": "500m", "memory": "2Gi", "ephemeral_storage": "1Gi", "gpus": 1,
		"node_selector": map[string]any{"pool": "etl"}, "priority_class": "high", "runtime_class": "gvisor",
		"tolerations": []any{map[string]any{"key": "etl", "operator": "Exists"}}, "spot": "gke", "queue_name": "data",
		"pod_security": "restricted", "ttl": "1h",
		"affinity": map[string]any{"node_affinity": map[string]any{}}, "annotations": map[string]any{"a": "b"},
	}, http.NotFound)
	req := request()
	req.Resources = launcher.Resources{MemoryBytes: 4 << 30}
	req.Nodes = map[string]string{"zone": "a"}
	req.Grace = time.Minute
	got, err := l.Preview(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Job struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Suspend                 bool
				TTLSecondsAfterFinished int
				Template                struct {
					Metadata struct{ Annotations map[string]string }
					Spec     map[string]any
				}
			}
		}
	}
	if err := json.Unmarshal(got, &shown); err != nil {
		t.Fatal(err)
	}
	job, pod := shown.Job, shown.Job.Spec.Template.Spec
	container := pod["containers"].([]any)[0].(map[string]any)
	for what, pair := range map[string][2]any{
		"resources": {container["resources"],
			"map[limits:map[ephemeral-storage:1Gi memory:4Gi nvidia.com/gpu:1] requests:map[cpu:500m " +
				"ephemeral-storage:1Gi memory:4Gi]]"},
		"nodes": {pod["nodeSelector"], "map[cloud.google.com/gke-spot:true pool:etl zone:a]"},
		"taints": {pod["tolerations"],
			"[map[key:etl operator:Exists] map[effect:NoSchedule key:cloud.google.com/gke-spot operator:Equal " +
				"value:true]]"},
		"priority": {pod["priorityClassName"], "high"},
		"runtime":  {pod["runtimeClassName"], "gvisor"},
		"grace":    {pod["terminationGracePeriodSeconds"], "60"},
		"security": {pod["securityContext"], "map[runAsNonRoot:true seccompProfile:map[type:RuntimeDefault]]"},
		"the same": {container["securityContext"],
			"map[allowPrivilegeEscalation:false capabilities:map[drop:[ALL]]]"},
		"queue":      {job.Metadata.Labels["kueue.x-k8s.io/queue-name"], "data"},
		"suspended":  {job.Spec.Suspend, "true"},
		"ttl":        {job.Spec.TTLSecondsAfterFinished, "3600"},
		"annotation": {job.Spec.Template.Metadata.Annotations["a"], "b"},
	} {
		if fmt.Sprint(pair[0]) != pair[1] {
			t.Errorf("%s: %v, want %s", what, pair[0], pair[1])
		}
	}
}

// A kubeconfig may name a program that returns the user's token, as those of managed clusters do.
func TestExecCredentials(t *testing.T) {
	var seen atomic.Value
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.Header.Get("Authorization"))
		testenv.Reply(w, http.StatusNotFound, status(404, "NotFound", "not found"))
	}))
	t.Cleanup(api.Close)
	dir := t.TempDir()
	program := filepath.Join(dir, "token")
	const answer = `{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": ` +
		`"from a program"}}`
	err := os.WriteFile(program, []byte("#!/bin/sh\necho '"+answer+"'\n"), 0o700) //nolint:gosec // a program
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: other,
clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}, {name: nowhere, cluster: {server: "http://127.0.0.1:1"}}],
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: %q, interactiveMode: Never}}}],
contexts: [{name: here, context: {cluster: c, user: u}}, {name: other, context: {cluster: nowhere, user: u}}]}`,
		api.URL, program)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := config.FromMap(map[string]any{"load_incluster_config": false, "kubeconfig_file": file, "context": "here"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := k8s.Kind().Open(t.Context(), v, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := launcher.Close(l); err != nil {
			t.Error(err)
		}
	}()
	if running, err := l.Terminate(t.Context(), "dagster/dagster-run-1e9a2c34-0000-4000-8000-000000000001",
		0); running || err != nil {
		t.Errorf("Terminate = %v, %v", running, err)
	}
	if got := seen.Load(); got != "Bearer from a program" {
		t.Errorf("the API server was sent %q", got)
	}
}
