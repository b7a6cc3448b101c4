package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/test/testenv"
)

// goldenCase is one configuration and what the real DockerRunLauncher sent for it.
type goldenCase struct {
	Name      string `json:"name"`
	Operation string `json:"operation"`
	Input     struct {
		Launcher struct {
			Config json.RawMessage `json:"config"`
		} `json:"launcher"`
		Env         map[string]string `json:"env"`
		Run         json.RawMessage   `json:"run"`
		InstanceRef string            `json:"instance_ref"`
	} `json:"input"`
	Output struct {
		Calls    []goldenCall      `json:"calls"`
		Returned json.RawMessage   `json:"returned"`
		Error    *json.RawMessage  `json:"error"`
		Tags     map[string]string `json:"tags_written"`
		Events   []struct {
			Message string `json:"message"`
		} `json:"events"`
	} `json:"output"`
}

type goldenCall struct {
	Request  string            `json:"request"`
	Query    map[string]string `json:"query"`
	Body     json.RawMessage   `json:"body"`
	Response struct {
		Status int             `json:"status"`
		Body   json.RawMessage `json:"body"`
	} `json:"response"`
}

// engine answers like a Docker engine that has the images and networks of a case, and records the
// requests.
type engine struct {
	t     *testing.T
	c     goldenCase
	mu    sync.Mutex
	made  map[string]any // the container, from its create call
	calls []goldenCall
}

const madeID = "a42d519714d616e9411dbceec4b52808bd6b1ee53e6f6497a281d655357d8b71"

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.Header().Set("Api-Version", "1.41")
	path := r.URL.Path
	if i := strings.Index(path[1:], "/"); strings.HasPrefix(path, "/v1.") && i > 0 {
		path = path[i+1:]
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		e.t.Error(err)
	}
	call := goldenCall{Request: r.Method + " " + path, Body: body, Query: map[string]string{}}
	for k := range r.URL.Query() {
		call.Query[k] = r.URL.Query().Get(k)
	}
	answer := func(status int, body any) { testenv.Reply(w, status, body) }
	missing := map[string]string{"message": "no such thing"}
	if path == "/_ping" {
		return
	}
	e.calls = append(e.calls, call)
	switch {
	case call.Request == "POST /containers/create":
		if e.recorded("POST /containers/create", http.StatusNotFound) && e.count("POST /images/create") == 0 {
			answer(http.StatusNotFound, map[string]string{"message": "No such image: x"})
			return
		}
		if err := json.Unmarshal(body, &e.made); err != nil {
			e.t.Error(err)
		}
		answer(http.StatusCreated, map[string]any{"Id": madeID, "Warnings": []string{}})
	case strings.HasSuffix(path, "/json") && e.made == nil:
		answer(http.StatusNotFound, missing)
	case strings.HasSuffix(path, "/json"):
		answer(http.StatusOK, map[string]any{"Id": madeID, "Name": "/x", "State": map[string]any{"Status": "created"},
			"Config": map[string]any{"Labels": e.made["Labels"]}})
	case call.Request == "POST /images/create":
		for _, c := range e.c.Output.Calls {
			if c.Request == call.Request && c.Response.Status >= 400 {
				answer(c.Response.Status, c.Response.Body)
				return
			}
		}
		answer(http.StatusOK, map[string]string{"status": "done"})
	case strings.HasSuffix(path, "/connect"):
		if e.recorded("GET /networks/"+strings.Split(path, "/")[2], http.StatusNotFound) {
			answer(http.StatusNotFound, map[string]string{"message": "network not found"})
			return
		}
		answer(http.StatusOK, nil)
	default: // start
		for _, c := range e.c.Output.Calls {
			if strings.HasSuffix(c.Request, "/start") && c.Response.Status >= 400 {
				answer(c.Response.Status, c.Response.Body)
				return
			}
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (e *engine) recorded(request string, status int) bool {
	return slices.ContainsFunc(e.c.Output.Calls, func(c goldenCall) bool {
		return c.Request == request && c.Response.Status == status
	})
}

func (e *engine) count(request string) (n int) {
	for _, c := range e.calls {
		if c.Request == request {
			n++
		}
	}
	return n
}

// differs lists the cases in which Slipway differs from Dagster on purpose.
// docs/launchers/docker.md says why.
var differs = map[string]string{
	"kwargs_env_mapping_is_not_expanded": "refused, as the engine would",
	"registry_login_fails":               "the login is part of the pull, and the image is there",
	"image_pull_fails":                   "tried again until pull_timeout",
	"create_conflict":                    "the container of that name is looked at: it may be this run's",
}

// The same settings, code location and run lead to the same create call, networks and tags as with
// the real launcher.
func TestGoldenLaunches(t *testing.T) {
	n := 0
	for _, c := range testenv.GoldenLaunches[goldenCase](t, "docker.json") {
		if c.Operation != "launch" && c.Operation != "resume" {
			continue
		}
		n++
		t.Run(c.Name, func(t *testing.T) {
			e := &engine{t: t, c: c}
			server := httptest.NewServer(e)
			defer server.Close()
			got, err := e.launch(server.URL)
			want := c.Output.Error == nil
			if why, ok := differs[c.Name]; ok {
				t.Log("differs on purpose:", why)
				want = err == nil
			}
			if (err == nil) != want {
				t.Fatalf("Launch = %v, the real launcher: error %v", err, c.Output.Error != nil)
			}
			if err != nil || differs[c.Name] != "" {
				return
			}
			if d := testenv.Diff(c.Output.Tags, got.Tags); d != "" {
				t.Errorf("tags (-want +got):\n%s", d)
			}
			if len(c.Output.Events) == 0 || len(got.Notes) != 1 ||
				got.Notes[0].Text != c.Output.Events[len(c.Output.Events)-1].Message {
				t.Errorf("notes = %v, the real launcher wrote %v", got.Notes, c.Output.Events)
			}
			e.compare()
		})
	}
	if n < 100 {
		t.Errorf("only %d cases", n)
	}
}

func (e *engine) launch(address string) (launcher.Launched, error) {
	l, err := e.open(address)
	if err != nil {
		return launcher.Launched{}, err
	}
	run, err := dagster.ParseRun(string(e.c.Input.Run))
	if err != nil {
		e.t.Fatal(err)
	}
	b := &worker.Builder{Instance: "prod", AllowSecretsInArgv: true} // as Dagster does
	target := worker.Target{Name: "docker", Traits: docker.Kind().Traits, Context: docker.Kind().Context,
		Ref: json.RawMessage(e.c.Input.InstanceRef), Gate: worker.GateOff}
	req, err := b.Request(run, worker.Attempt{Number: 1, Token: "t", At: time.Unix(0, 0),
		Resume: e.c.Operation == "resume"}, target)
	if err != nil {
		return launcher.Launched{}, err
	}
	for {
		got, err := l.Launch(context.Background(), req)
		if !errors.Is(err, launcher.ErrPending) || differs[e.c.Name] != "" {
			return got, err
		}
	}
}

func (e *engine) open(address string) (launcher.Launcher, error) {
	n, err := config.Parse("golden", e.c.Input.Launcher.Config)
	if err != nil {
		e.t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		e.t.Fatal(err)
	}
	return docker.Kind().Open(context.Background(),
		config.Values{File: "golden", Path: "config", Node: n, Literal: true, Env: func(name string) (string, bool) {
			if name == "DOCKER_HOST" {
				return "tcp://" + u.Host, true
			}
			v, ok := e.c.Input.Env[name]
			return v, ok
		}}, slog.New(slog.DiscardHandler))
}

// compare compares the sent requests with the recorded ones.
func (e *engine) compare() {
	e.t.Helper()
	pick := func(calls []goldenCall) (create map[string]any, networks []string, last string) {
		for _, c := range calls {
			switch {
			case c.Request == "POST /containers/create":
				create = map[string]any{}
				if err := json.Unmarshal(c.Body, &create); err != nil {
					e.t.Fatal(err)
				}
				if p := c.Query["platform"]; p != "" {
					create["platform"] = p
				}
			case strings.HasSuffix(c.Request, "/connect"):
				networks = append(networks, strings.TrimPrefix(strings.Split(c.Request, "/")[2], "id-of-"))
			}
			last = c.Request
		}
		return create, networks, last
	}
	wantCreate, want, wantLast := pick(e.c.Output.Calls)
	gotCreate, got, gotLast := pick(e.calls)
	if d := testenv.Diff(want, got); d != "" {
		e.t.Errorf("networks joined (-want +got):\n%s", d)
	}
	if !strings.HasSuffix(wantLast, "/start") || !strings.HasSuffix(gotLast, "/start") {
		e.t.Errorf("the last call was %s, of the real launcher %s", gotLast, wantLast)
	}
	e.agree(wantCreate, gotCreate)
}

// agree compares two create calls, except for intended differences.
func (e *engine) agree(want, got map[string]any) {
	e.t.Helper()
	for i, arg := range want["Cmd"].([]any) {
		want["Cmd"].([]any)[i] = strings.Replace(arg.(string), `"<instance_ref>"`, e.c.Input.InstanceRef, 1)
	}
	wantHost, wantLabels, gotLabels := want["HostConfig"].(map[string]any), want["Labels"].(map[string]any),
		got["Labels"].(map[string]any)
	delete(want, "NetworkingConfig")           // names the network again, in a form that the engine ignores
	delete(wantHost, "AutoRemove")             // the end must be known first; then Slipway removes it
	if mac := want["MacAddress"]; mac != nil { // the engine has it there since API 1.44
		delete(want, "MacAddress")
		endpoints := got["NetworkingConfig"].(map[string]any)["EndpointsConfig"].(map[string]any)
		if e := endpoints["default"].(map[string]any); e["MacAddress"] != mac {
			want["MacAddress"] = mac
		}
	}
	delete(got, "NetworkingConfig")
	gotHost := got["HostConfig"].(map[string]any)
	delete(gotHost, "ConsoleSize") // [0, 0]
	for _, list := range []string{"CapAdd", "CapDrop"} {
		caps, _ := gotHost[list].([]any)
		for i, c := range caps { // the official client spells them out
			caps[i] = strings.TrimPrefix(c.(string), "CAP_")
		}
	}
	for k := range maps.Clone(gotLabels) { // more labels than the real launcher's
		if wantLabels[k] == nil {
			delete(gotLabels, k)
		}
	}
	if d := testenv.Diff(bare(want), bare(got)); d != "" {
		e.t.Errorf("create (-want +got):\n%s", d)
	}
}

// bare returns a JSON value without empty members.
func bare(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			// An exposed port or a volume is a key without a value.
			if k == "ExposedPorts" || k == "Volumes" {
				if m, ok := e.(map[string]any); ok && len(m) > 0 {
					out[k] = slices.Sorted(maps.Keys(m))
				}
				continue
			}
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
			if out[i] = bare(e); out[i] == nil {
				out[i] = fmt.Sprint(e)
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case string:
		if v == "" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	}
	return v
}

// Slipway reports what each state of a container means. The real launcher reports some states as
// FAILED that need not be failures.
func TestGoldenHealth(t *testing.T) {
	n := 0
	for _, c := range testenv.GoldenLaunches[goldenCase](t, "docker.json") {
		var returned struct {
			Status string `json:"status"`
		}
		if c.Operation != "health" || json.Unmarshal(c.Output.Returned, &returned) != nil || len(c.Output.Calls) == 0 {
			continue
		}
		last := c.Output.Calls[len(c.Output.Calls)-1]
		var found struct {
			State container.State
		}
		if last.Response.Status != http.StatusOK || json.Unmarshal(last.Response.Body, &found) != nil {
			continue // gone, or an error: the kit and the tests with a real engine cover these
		}
		n++
		want := map[string]launcher.Status{"RUNNING": launcher.Running, "FAILED": launcher.Failed}[returned.Status]
		switch s := found.State; {
		case s.Status == container.StateExited && s.ExitCode == 0:
			want = launcher.Succeeded
		case s.Status == container.StateCreated:
			want = launcher.Starting
		case s.Status == container.StatePaused, s.Status == container.StateRestarting:
			want = launcher.Running
		case s.Status == container.StateRemoving, s.Status == container.StateDead:
			want = launcher.Unknown
		}
		if got := docker.Health(&found.State); got.Status != want {
			t.Errorf("%s: Health(%+v) = %+v, want %s", c.Name, found.State, got, want)
		}
	}
	if n < 8 {
		t.Errorf("only %d cases", n)
	}
}

// A container is out of memory only if the kernel killed the worker itself.
func TestHealthOfEndedContainers(t *testing.T) {
	for _, c := range []struct {
		state container.State
		want  launcher.Cause
	}{
		{container.State{Status: "exited", ExitCode: 137, OOMKilled: true}, launcher.CauseOOM},
		{container.State{Status: "exited", ExitCode: 1, OOMKilled: true}, launcher.CauseExit},
		{container.State{Status: "exited", ExitCode: 137}, launcher.CauseExit},
		{container.State{Status: "exited", ExitCode: 0, OOMKilled: true}, ""},
	} {
		if got := docker.Health(&c.state); got.Cause != c.want || *got.Exit != c.state.ExitCode {
			t.Errorf("Health(%+v) = %+v, want cause %q", c.state, got, c.want)
		}
	}
}
