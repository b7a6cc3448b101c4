//go:build real

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// engine is a fake Docker engine. It keeps containers, but runs nothing in them.
type engine struct {
	t      *testing.T
	id     string
	server *httptest.Server
	died   chan string // names of containers, for clients that follow the events

	mu         sync.Mutex
	away       bool
	containers map[string]*engineContainer // by name
}

type engineContainer struct {
	labels map[string]string
	exit   int // -1 while it runs
}

func newEngine(t *testing.T, id string) *engine {
	t.Helper()
	e := &engine{t: t, id: id, died: make(chan string, 10), containers: map[string]*engineContainer{}}
	e.server = httptest.NewServer(e)
	t.Cleanup(e.server.Close)
	return e
}

// settings returns the settings of an instance whose launcher uses the engine.
func (e *engine) settings() string {
	return fmt.Sprintf(`default: docker
launchers: {docker: {kind: docker, settle: 2s, config: {host: "tcp://%s", image: image}}}
queue: {max_concurrent_runs: 10}
web: {listen: '127.0.0.1:0'}
crash_loop: {deaths: 0}
terminate: {local_only: true}
monitoring: {deaths: [{causes: [unknown], do: again, started: again}]}
`, e.server.Listener.Addr())
}

func (e *engine) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *engine) names() (names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name := range e.containers {
		names = append(names, name)
	}
	return names
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if strings.HasPrefix(parts[0], "v1.") {
		parts = parts[1:]
	}
	path := strings.Join(parts, "/")
	e.mu.Lock()
	status, body := e.answer(path, r)
	e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	write := func(body any) {
		// the client may have left
		_ = errors.Join(json.NewEncoder(w).Encode(body), http.NewResponseController(w).Flush())
	}
	if body != nil {
		write(body)
	}
	for path == "events" && status == http.StatusOK {
		select {
		case <-r.Context().Done():
			return
		case name := <-e.died:
			e.mu.Lock()
			event := events.Message{Type: events.ContainerEventType, Action: events.ActionDie,
				Actor: events.Actor{ID: name, Attributes: maps.Clone(e.containers[name].labels)}}
			e.mu.Unlock()
			event.Actor.Attributes["name"] = name
			write(event)
		}
	}
}

func (e *engine) answer(path string, r *http.Request) (status int, body any) {
	name, what, _ := strings.Cut(strings.TrimPrefix(path, "containers/"), "/")
	switch {
	case e.away:
		return http.StatusServiceUnavailable, map[string]string{"message": "the engine is starting"}
	case path == "_ping", path == "version":
		return http.StatusOK, map[string]string{}
	case path == "events":
		return http.StatusOK, nil
	case path == "info":
		return http.StatusOK, map[string]any{"ID": e.id, "SystemTime": time.Now().Format(time.RFC3339Nano)}
	case path == "containers/json":
		list := []map[string]any{}
		for name, c := range e.containers {
			state := "running"
			if c.exit >= 0 {
				state = "exited"
			}
			list = append(list, map[string]any{"Id": name, "Names": []string{"/" + name}, "Labels": c.labels,
				"State": state})
		}
		return http.StatusOK, list
	case path == "containers/create":
		var spec struct{ Labels map[string]string }
		if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
			e.t.Error(err)
		}
		name = r.URL.Query().Get("name")
		e.containers[name] = &engineContainer{labels: spec.Labels, exit: -1}
		return http.StatusCreated, map[string]any{"Id": name}
	case e.containers[name] == nil:
		return http.StatusNotFound, map[string]string{"message": "No such container: " + name}
	case what == "start":
		return http.StatusNoContent, nil
	case what == "stop", what == "kill":
		e.containers[name].exit = 143
		e.died <- name
		return http.StatusNoContent, nil
	}
	c := e.containers[name]
	state := map[string]any{"Status": "running", "StartedAt": time.Now().Format(time.RFC3339Nano)}
	if c.exit >= 0 {
		state = map[string]any{"Status": "exited", "ExitCode": c.exit,
			"FinishedAt": time.Now().Format(time.RFC3339Nano)}
	}
	return http.StatusOK, map[string]any{"Id": name, "Name": "/" + name, "State": state,
		"Config": map[string]any{"Labels": c.labels}}
}

// Two daemons on two hosts, each with its own Docker engine. The engine of the second daemon is
// down when that starts. When the engine answers, it does not know the worker of the first daemon.
// The run is left alone: it does not fail and gets no second worker. A daemon that reaches the
// first engine by another address continues with the run.
func TestTwoEngines(t *testing.T) {
	testenv.Beside(t, testenv.Leads)
	d := storagetest.NewPostgres(t)
	a, b := lightWorld(t, d), lightWorld(t, d)
	here, there := newEngine(t, "HERE:1"), newEngine(t, "THERE:2")
	a.write("slipway.yaml", here.settings())
	b.write("slipway.yaml", there.settings())
	first := a.slipway()
	first.says("msg=leading")
	id := enqueueGo(t, d, 1, "true")[0]
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return a.run(id).Handle != "", "not launched:\n" + first.output()
	})
	if host := a.run(id).Launch.Host(); host != here.id {
		t.Errorf("the launch row names %q, want the engine %q", host, here.id)
	}
	first.killOne()
	there.set(func() { there.away = true })
	second := b.slipway()
	second.says("msg=leading")
	second.says("the engine is starting")
	there.set(func() { there.away = false })
	second.says("a worker cannot be seen from this host")
	if err := d.Event(dagster.NewEvent(a.run(id).Run, dagster.RunCanceling, time.Now(), "")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) { // longer than the settle time
		return strings.Contains(a.story(id), "could not be asked to stop"),
			"the run's log does not say why it goes on:\n" + second.output()
	})
	other := enqueueGo(t, d, 1, "true")[0]
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return b.run(other).Handle != "", "not launched:\n" + second.output()
	})
	if r := a.run(id); r.Status != dagster.Canceling || r.Launch.Attempt != 1 || len(there.names()) != 1 ||
		!strings.Contains(there.names()[0], other) {
		t.Errorf("the run is %s, attempt %d; the second engine has %q:\n%s", r.Status, r.Launch.Attempt, there.names(),
			a.story(id))
	}
	if out, err := b.command("status"); err != nil || !strings.Contains(out, "1 workers that the leader cannot see") {
		t.Errorf("status: %v\n%s", err, out)
	}
	second.stop()
	a.write("slipway.yaml", strings.Replace(here.settings(), "127.0.0.1", "localhost", 1))
	third := a.slipway()
	a.ended(time.Minute, third, id)
	third.stop()
	if r := a.run(id); r.Status != dagster.Canceled || r.Launch.Attempt != 1 {
		t.Errorf("the run is %s, attempt %d:\n%s", r.Status, r.Launch.Attempt, a.story(id))
	}
}
