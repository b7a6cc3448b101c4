package k8s_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/client-go/rest"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
	"github.com/slipway-run/slipway/test/testenv"
)

// goldenCase is one configuration and what the real K8sRunLauncher sent for it.
type goldenCase struct {
	Name      string `json:"name"`
	Operation string `json:"operation"`
	Input     struct {
		Launcher struct {
			Config json.RawMessage `json:"config"`
		} `json:"launcher"`
		Env           map[string]string `json:"env"`
		Run           json.RawMessage   `json:"run"`
		InstanceRef   string            `json:"instance_ref"`
		ResumeAttempt int               `json:"resume_attempt"`
	} `json:"input"`
	Output struct {
		Calls    []goldenCall      `json:"calls"`
		Returned json.RawMessage   `json:"returned"`
		Error    *goldenError      `json:"error"`
		Tags     map[string]string `json:"tags_written"`
		Events   []struct {
			Message string `json:"message"`
		} `json:"events"`
	} `json:"output"`
}

type goldenError struct{ Phase, Class, Message string }

type goldenCall struct {
	Request  string          `json:"request"`
	Body     json.RawMessage `json:"body"`
	Response struct {
		Status any             `json:"status"`
		Body   json.RawMessage `json:"body"`
	} `json:"response"`
}

// api answers like an API server that accepts every Job.
type api struct {
	t    testing.TB
	mu   sync.Mutex
	path string
	job  json.RawMessage
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost {
		a.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	a.path, a.job = r.URL.Path, body
	testenv.Reply(w, http.StatusCreated, body)
}

// differs lists the cases in which Slipway differs from Dagster on purpose. docs/launchers/k8s.md
// says why.
var differs = map[string]string{
	"job_name_differs_from_origin":    "the run's own job is named, which the webserver makes the same",
	"service_account_missing":         "not required: the cluster has a default",
	"service_account_null":            "not required: the cluster has a default",
	"instance_config_map_missing":     "not required: it is only handed on to step executors",
	"env_mapping_in_permissive_stays": "a mapping where a text belongs is refused, not printed as Python does",
}

// The same settings, code location and run lead to the same Job, namespace and tags as with the
// real launcher.
func TestGoldenLaunches(t *testing.T) {
	n := 0
	for _, c := range testenv.GoldenLaunches[goldenCase](t, "k8s.json") {
		if c.Operation != "launch" && c.Operation != "resume" || strings.HasPrefix(c.Name, "create_") {
			continue // errors_test.go tests refusals of the API server, where Slipway differs
		}
		n++
		t.Run(c.Name, func(t *testing.T) {
			a := &api{t: t}
			server := httptest.NewServer(a)
			defer server.Close()
			got, err := launchGolden(t, c, server.URL)
			want := c.Output.Error == nil
			if why, ok := differs[c.Name]; ok {
				t.Log("differs on purpose:", why)
				want = err == nil
			}
			if (err == nil) != want {
				t.Fatalf("Launch = %v, the real launcher: %+v", err, c.Output.Error)
			}
			if err != nil || differs[c.Name] != "" {
				return
			}
			if d := testenv.Diff(c.Output.Tags, got.Tags); d != "" {
				t.Errorf("tags (-want +got):\n%s", d)
			}
			var notes, messages []string
			for _, note := range got.Notes {
				notes = append(notes, note.Text)
			}
			for _, e := range c.Output.Events {
				messages = append(messages, e.Message)
			}
			if d := testenv.Diff(messages, notes); d != "" {
				t.Errorf("notes (-want +got):\n%s", d)
			}
			a.compare(c)
		})
	}
	if n < 150 {
		t.Errorf("only %d cases", n)
	}
}

func openGolden(t testing.TB, c goldenCase, address string) (*k8s.Launcher, error) {
	t.Helper()
	n, err := config.Parse("golden", c.Input.Launcher.Config)
	if err != nil {
		t.Fatal(err)
	}
	return k8s.OpenAt(config.Values{File: "golden", Path: "config", Node: n, Literal: true,
		Env: func(name string) (string, bool) {
			v, ok := c.Input.Env[name]
			return v, ok
		}}, &rest.Config{Host: address, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
}

func goldenRequest(t testing.TB, c goldenCase) (*launcher.Request, error) {
	t.Helper()
	run, err := dagster.ParseRun(string(c.Input.Run))
	if err != nil {
		t.Fatal(err)
	}
	n, err := config.Parse("golden", c.Input.Launcher.Config)
	if err != nil {
		t.Fatal(err)
	}
	b := &worker.Builder{Instance: "prod", AllowSecretsInArgv: true} // as Dagster does
	kind := k8s.Kind()
	target := worker.Target{
		Name: "k8s", Traits: kind.Traits, Context: kind.Context, Tags: kind.Tags,
		Ref: json.RawMessage(c.Input.InstanceRef), Gate: worker.GateOff,
		FailsWithRun: kind.FailsWithRun(config.Values{Node: n}),
	}
	return b.Request(run, worker.Attempt{Number: 1 + c.Input.ResumeAttempt, Token: "t", At: time.Unix(0, 0),
		Resume: c.Operation == "resume"}, target)
}

func launchGolden(t testing.TB, c goldenCase, address string) (launcher.Launched, error) {
	t.Helper()
	l, err := openGolden(t, c, address)
	if err != nil {
		return launcher.Launched{}, err
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	req, err := goldenRequest(t, c)
	if err != nil {
		return launcher.Launched{}, err
	}
	return l.Launch(context.Background(), req)
}

// compare compares the sent Job with the recorded one, except for intended differences.
func (a *api) compare(c goldenCase) {
	a.t.Helper()
	i := slices.IndexFunc(c.Output.Calls, func(call goldenCall) bool {
		return strings.HasPrefix(call.Request, "POST ")
	})
	if i < 0 {
		a.t.Fatal("the real launcher made no Job")
	}
	if got := "POST " + a.path; got != c.Output.Calls[i].Request {
		a.t.Errorf("%s, the real launcher: %s", got, c.Output.Calls[i].Request)
	}
	want, got := map[string]any{}, map[string]any{}
	for into, body := range map[*map[string]any]json.RawMessage{&want: c.Output.Calls[i].Body, &got: a.job} {
		var job batchv1.Job // normalizes quantities, and leaves out false values
		err := json.Unmarshal(body, &job)
		job.Status = batchv1.JobStatus{}
		text, err2 := json.Marshal(job)
		if err := errors.Join(err, err2, json.Unmarshal(text, into)); err != nil {
			a.t.Fatal(err)
		}
	}
	at := func(v map[string]any, path ...string) map[string]any {
		for _, key := range path {
			v, _ = v[key].(map[string]any)
		}
		return v
	}
	container := at(want, "spec", "template", "spec")["containers"].([]any)[0].(map[string]any)
	for i, arg := range container["args"].([]any) {
		container["args"].([]any)[i] = strings.Replace(arg.(string), `"<instance_ref>"`, c.Input.InstanceRef, 1)
	}
	delete(at(want, "metadata"), "namespace") // the API accepts only the one in the path
	delete(at(got, "metadata"), "namespace")
	for _, path := range [][]string{{"metadata"}, {"spec", "template", "metadata"}} {
		wantLabels, gotLabels := at(want, path...)["labels"].(map[string]any),
			at(got, path...)["labels"].(map[string]any)
		if wantLabels["app.kubernetes.io/version"] == "1.13.27" { // the version of the worker is not known
			delete(wantLabels, "app.kubernetes.io/version")
		}
		notes, _ := at(got, path...)["annotations"].(map[string]any)
		wantNotes, _ := at(want, path...)["annotations"].(map[string]any)
		for k := range maps.Clone(gotLabels) { // more labels than the real launcher's
			if strings.HasPrefix(k, "slipway/") && wantLabels[k] == nil {
				delete(gotLabels, k)
			}
		}
		for k := range maps.Clone(notes) {
			if wantNotes[k] == nil {
				delete(notes, k)
			}
		}
	}
	if d := testenv.Diff(bare(want), bare(got)); d != "" {
		a.t.Errorf("Job (-want +got):\n%s", d)
	}
}

// bare returns a JSON value without empty members.
func bare(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if b := bare(e); b != nil {
				out[k] = b
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = bare(e)
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case string:
		if v == "" {
			return nil
		}
	}
	return v
}
