package k8s

import (
	"encoding/json"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/slipway-run/slipway/test/testenv"
)

// The real launcher makes the same text from the same answers of an API server, except for errors,
// which it shows as Python does.
func TestGoldenDebugText(t *testing.T) {
	type goldenCase struct {
		Name, Operation string
		Output          struct {
			Returned json.RawMessage
			Calls    []struct {
				Request  string
				Query    map[string]any
				Response struct {
					Status any
					Body   json.RawMessage
				}
			}
		}
	}
	n := 0
	for _, c := range testenv.GoldenLaunches[goldenCase](t, "k8s.json") {
		var want string
		if c.Operation != "debug" || json.Unmarshal(c.Output.Returned, &want) != nil ||
			strings.Contains(want, "Failure fetching") {
			continue
		}
		n++
		var job *batchv1.Job
		var name string
		var pods corev1.PodList
		var ownEvents []corev1.Event
		logs, events := map[string]map[string]string{}, map[string][]corev1.Event{}
		read := func(body json.RawMessage, into any) {
			if err := json.Unmarshal(body, into); err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
		}
		for _, call := range c.Output.Calls {
			selector, _ := call.Query["labelSelector"].(string)
			field, _ := call.Query["fieldSelector"].(string)
			switch {
			case selector != "":
				name = strings.TrimPrefix(selector, "job-name=")
				read(call.Response.Body, &pods)
			case strings.HasSuffix(call.Request, "/log"):
				pod := strings.Split(call.Request, "/")[6]
				if logs[pod] == nil {
					logs[pod] = map[string]string{}
				}
				var text string
				read(call.Response.Body, &text)
				logs[pod][call.Query["container"].(string)] = text
			case strings.HasSuffix(call.Request, "/events"):
				var list corev1.EventList
				read(call.Response.Body, &list)
				events[strings.TrimPrefix(field, "involvedObject.name=")] = list.Items
			case strings.HasSuffix(call.Request, "/jobs"):
				var list batchv1.JobList
				read(call.Response.Body, &list)
				if len(list.Items) > 0 {
					job = &list.Items[0]
				}
			}
		}
		ownEvents = events[name]
		var debugs []podDebug
		for i := range pods.Items {
			pod := &pods.Items[i]
			d := podDebug{pod: pod, logs: logs[pod.Name], events: events[pod.Name]}
			for _, container := range pod.Spec.Containers {
				if _, read := logs[pod.Name][container.Name]; read != hasLog(containerStatus(pod, container.Name)) &&
					len(logs) > 0 {
					t.Errorf("%s: the log of %s is read %v", c.Name, container.Name, !read)
				}
			}
			debugs = append(debugs, d)
		}
		if len(logs) == 0 { // logs were not asked for, or there are none: only Slipway says so
			want = strings.ReplaceAll(want, "\n\nNo logs for container 'dagster'.", "")
		}
		got := debugText(name, job, ownEvents, debugs)
		if len(logs) == 0 {
			got = strings.ReplaceAll(got, "\n\nNo logs for container 'dagster'.", "")
		}
		if d := testenv.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.Name, d)
		}
	}
	if n < 12 {
		t.Errorf("only %d cases", n)
	}
}

// The part of a Job and its pods that is kept in memory is small, and enough for the worker's
// health.
func TestSlim(t *testing.T) {
	spec := corev1.PodSpec{
		NodeName: "n", RestartPolicy: corev1.RestartPolicyNever,
		Containers: []corev1.Container{{Name: "dagster", Image: "i", Args: []string{strings.Repeat("x", 100_000)},
			Env: []corev1.EnvVar{{Name: "A", Value: "b"}}}, {Name: "side"}},
		Volumes: make([]corev1.Volume, 100),
	}
	job, pod := &batchv1.Job{}, &corev1.Pod{Spec: spec}
	job.Name, job.Spec.Template.Spec = "j", *spec.DeepCopy()
	for _, o := range []any{job, pod} {
		if _, err := slim(o); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(o)
		if err != nil || len(text) > 1000 {
			t.Errorf("%d bytes are kept, %v", len(text), err)
		}
	}
	if mainContainer(job) != "dagster" || job.Name != "j" || pod.Spec.NodeName != "n" ||
		pod.Spec.RestartPolicy != corev1.RestartPolicyNever || len(pod.Spec.Containers) != 2 {
		t.Errorf("kept of the Job: %+v, of the pod: %+v", job, pod)
	}
}
