//go:build real

package python_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// service is a fake of the services that launchers from PyPI use: the HTTP APIs of a Docker swarm,
// of Nomad and of Kubernetes, as far as these launchers use them, at one address. It can be down,
// or accept connections and never answer.
type service struct {
	t    *testing.T
	addr string
	http *http.Server

	mu      sync.Mutex
	hangs   chan struct{} // closed when it answers again; nil: it answers
	workers []*worker
}

// worker is the service's record of a worker.
type worker struct {
	id, text      string // text is what it was made with
	done, deleted bool
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{t: t, addr: "127.0.0.1:0"}
	s.up()
	t.Cleanup(func() {
		s.answers()
		s.down()
	})
	return s
}

// up makes the service listen at its old address.
func (s *service) up() {
	s.t.Helper()
	var l net.Listener
	testenv.Eventually(s.t, time.Minute, func() (bool, string) {
		var err error
		l, err = new(net.ListenConfig).Listen(s.t.Context(), "tcp", s.addr)
		return err == nil, fmt.Sprint(err)
	})
	s.addr = l.Addr().String()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.http.Serve(l) }() // ends with down
}

// down makes the service refuse connections.
func (s *service) down() {
	if err := s.http.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *service) hang() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs = make(chan struct{})
}

func (s *service) answers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hangs != nil {
		close(s.hangs)
	}
	s.hangs = nil
}

// of returns the workers of a run.
func (s *service) of(run string) (all []worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if strings.Contains(w.text, run) {
			all = append(all, *w)
		}
	}
	return all
}

// end makes the newest worker end with success.
func (s *service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workers[len(s.workers)-1].done = true
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	hangs := s.hangs
	s.mu.Unlock()
	if hangs != nil {
		<-hangs
		return
	}
	var body map[string]any
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			s.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
	}
	code, answer := s.answer(r, body)
	testenv.Reply(w, code, answer)
}

// answer handles one request. A worker is named in the path or in the filter of a list.
func (s *service) answer(r *http.Request, body map[string]any) (int, any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, _ := json.Marshal(body)
	at, query := r.URL.Path, r.URL.Query().Get("filters")
	var one *worker
	for _, w := range s.workers {
		if !w.deleted && (strings.Contains(at, w.id) || strings.Contains(query, w.id)) {
			one = w
		}
	}
	add := func(id string) *worker {
		if payload, ok := body["Payload"].(string); ok { // of Nomad, in base64
			text = append(text, decoded(s.t, payload)...)
		}
		s.workers = append(s.workers, &worker{id: id, text: string(text)})
		return s.workers[len(s.workers)-1]
	}
	n := len(s.workers) + 1
	switch {
	case r.Method == http.MethodDelete && one != nil:
		one.deleted = true
		return http.StatusOK, map[string]any{}
	// Docker
	case strings.HasSuffix(at, "/version"):
		return http.StatusOK, map[string]any{"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "25.0.0"}
	case strings.HasSuffix(at, "/services/create"):
		return http.StatusCreated, map[string]any{"ID": add(fmt.Sprintf("service%d", n)).id}
	case strings.HasSuffix(at, "/services"):
		return http.StatusOK, []any{} // asked for only where the service is not known
	case strings.Contains(at, "/services/") && one != nil:
		return http.StatusOK, map[string]any{"ID": one.id, "CreatedAt": "2026-11-27T10:00:00Z"}
	case strings.HasSuffix(at, "/tasks") && one != nil:
		return http.StatusOK, []any{map[string]any{"UpdatedAt": "2026-11-27T10:00:00Z",
			"Status": map[string]any{"State": one.state("running", "complete")}}}
	// Nomad
	case strings.HasSuffix(at, "/dispatch"):
		return http.StatusOK, map[string]any{"DispatchedJobID": add(fmt.Sprintf("dagster/dispatch-%d", n)).id}
	case strings.HasSuffix(at, "/allocations") && one != nil:
		return http.StatusOK, []any{map[string]any{"ID": "a1",
			"TaskStates": map[string]any{"run": map[string]any{"State": one.state("running", "dead"),
				"Failed": false}}}}
	// Kubernetes
	case strings.HasSuffix(at, "/jobs") && r.Method == http.MethodPost:
		meta := body["metadata"].(map[string]any) //nolint:errcheck,forcetypeassert // as Kubernetes has it
		add(fmt.Sprint(meta["name"]))
		return http.StatusCreated, body
	case strings.Contains(at, "/jobs/") && one != nil:
		return http.StatusOK, map[string]any{"metadata": map[string]any{"name": path.Base(path.Dir(at))},
			"status": map[string]any{one.state("active", "succeeded"): 1}}
	case r.Method == http.MethodGet && slices.Contains([]string{"jobs", "pods", "events"}, path.Base(at)):
		return http.StatusOK, map[string]any{"items": []any{}}
	}
	return http.StatusNotFound, map[string]any{"message": "there is no such thing"}
}

func decoded(t *testing.T, payload string) []byte {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(payload)
	if err != nil {
		t.Error(err)
	}
	return text
}

func (w *worker) state(running, done string) string {
	if w.done {
		return done
	}
	return running
}

// Unchanged RunLauncher classes from PyPI launch, watch and stop workers. Every run gets an end,
// even while the service is down or accepts connections and never answers.
func TestClassesOfPyPI(t *testing.T) {
	others(t)
	type class struct {
		module, class, settings string          // with the service's address, or the file that has it
		tag                     string          // that the class puts on the run
		blind                   launcher.Status // of a worker while the service is down; "": it cannot be asked
	}
	classes := []class{
		{"dagster_docker_swarm", "SwarmRunLauncher", `{image: "etl:1", cleanup_interval: 0}`, "swarm/service_id", ""},
		{"dagster_nomad", "NomadRunLauncher", `{docker_image: "etl:1", job_id: dagster, url: "http://ADDRESS"}`, "nomad_dispatched_job_id", launcher.NotFound},
		{"dagster_k8s", "K8sRunLauncher",
			`{job_image: "etl:1", instance_config_map: dagster, service_account_name: dagster, ` +
				`load_incluster_config: false, kubeconfig_file: "FILE"}`, "dagster/image", launcher.Starting},
	}
	page, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs/launchers/python.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, named := range regexp.MustCompile(`module: (\w+)\n +class: (\w+)\n`).FindAllSubmatch(page, -1) {
		if !slices.ContainsFunc(classes, func(c class) bool {
			return c.module == string(named[1]) && c.class == string(named[2])
		}) {
			t.Errorf("docs/launchers/python.md names %s of %s, which is not among the classes that this test runs",
				named[2], named[1])
		}
	}
	for _, c := range classes {
		t.Run(c.class, func(t *testing.T) {
			if _, err := os.Stat(filepath.Join(testenv.Root(t), ".venvs/launchers", c.module)); err != nil {
				t.Skipf("this Python is too old for %s", c.module)
			}
			t.Parallel()
			s, h := newService(t), newHost(t)
			file := filepath.Join(t.TempDir(), "kubeconfig")
			kubeconfig := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": "http://` + s.addr + `"}}],` +
				` "users": [{"name": "u", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", ` +
				`"user": "u"}}]}`
			if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
				t.Fatal(err)
			}
			h.env = []string{"DOCKER_HOST: 'tcp://" + s.addr + "'"}
			l := h.hosts(c.module, c.class, strings.NewReplacer("ADDRESS", s.addr, "FILE", file).Replace(c.settings))
			launch := func(req *launcher.Request) launcher.Handle {
				t.Helper()
				got, err := l.Launch(t.Context(), req)
				if err != nil || got.Tags[c.tag] == "" {
					t.Fatalf("Launch = %+v, %v, want the tag %s\n%s", got, err, c.tag, h.log.String())
				}
				if again, err := l.Launch(t.Context(), req); err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
					t.Errorf("second Launch = %+v, %v, the first %+v", again, err, got)
				}
				if n := len(s.of(req.ID.Run)); n != 1 {
					t.Errorf("%d workers, want one", n)
				}
				return got.Handle
			}

			// The service is up.
			stopped := h.starting(0)
			handle := launch(stopped)
			if got := health(t, l, handle); got.Status != launcher.Running {
				t.Errorf("Health = %v", got)
			}
			if ran, err := l.Terminate(t.Context(), handle, 0); err != nil || !ran || !s.of(stopped.ID.Run)[0].deleted {
				t.Errorf("Terminate = %v, %v", ran, err)
			}
			describer, _ := launcher.As[launcher.Describer](l)
			if text, err := describer.Describe(t.Context(), handle, false); err != nil ||
				!strings.Contains(string(text), "debug_info") {
				t.Errorf("Describe = %s, %v", text, err)
			}
			handle = launch(h.starting(1))

			// It is down: nothing was sent, so the run is launched when it is back, or ends at once
			// if it is canceled.
			s.down()
			req := h.starting(2)
			// K8sRunLauncher itself tries for half a minute
			testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
				_, err := l.Launch(t.Context(), req)
				if !errors.Is(err, launcher.ErrTransient) || strings.Contains(err.Error(), "\n") {
					t.Errorf("Launch while the service is down = %v", err)
				}
				return strings.Contains(fmt.Sprint(err), "nothing was sent"),
					fmt.Sprintf("Launch while the service is down = %v", err)
			})
			absent(t, l, req)
			if got, err := l.Health(t.Context(), handle); got.Status != c.blind || (err == nil) != (c.blind != "") {
				t.Errorf("Health while the service is down = %v, %v, want %q", got, err, c.blind)
			}
			s.up()
			handle = launch(req)
			s.end()
			if got := health(t, l, handle); got.Status != launcher.Succeeded {
				t.Errorf("Health = %v, want Succeeded", got)
			}

			// It hangs: calls end in time, and so does the wait for a worker.
			s.hang()
			req = h.starting(3)
			short := func() context.Context {
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				t.Cleanup(cancel)
				return ctx
			}
			if _, err := l.Launch(short(), req); !errors.Is(err, launcher.ErrTransient) {
				t.Errorf("Launch while the service hangs = %v", err)
			}
			h.begunLongAgo(req)
			if _, err := l.Launch(short(), req); !errors.Is(err, launcher.ErrInvalid) ||
				!strings.Contains(err.Error(), "within 180 s") {
				t.Errorf("Launch long after = %v", err)
			}
			absent(t, l, req)
			s.answers()
			if n := len(s.of(req.ID.Run)); n > 1 {
				t.Errorf("%d workers, want one at most", n)
			}
			for line := range strings.Lines(h.log.String()) {
				if strings.Contains(line, "Traceback") && !strings.Contains(line, "level=DEBUG") {
					t.Errorf("a traceback in the log: %s", line)
				}
			}
		})
	}
}

// A class that connects to its service when it is made does not stop the daemon from starting while
// the service is down.
func TestClassThatConnectsWhenItIsMade(t *testing.T) {
	others(t)
	s, h := newService(t), newHost(t)
	s.down()
	l := h.hosts("dagster_multihost_launcher", "MultiHostDockerRunLauncher",
		`{docker_hosts: [{host_name: far, docker_url: "tcp://`+s.addr+`", location_names: [far]}]}`)
	checker, _ := launcher.As[launcher.Checker](l)
	if got := checker.Check(t.Context()); len(got) != 1 || got[0].OK ||
		!strings.Contains(got[0].What, "cannot reach its service") {
		t.Errorf("Check while the service is down = %+v", got)
	}
	req := h.starting(0)
	if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrTransient) ||
		!strings.Contains(err.Error(), "nothing was sent") {
		t.Errorf("Launch while the service is down = %v", err)
	}
	absent(t, l, req)
	s.up()
	if got := checker.Check(t.Context()); len(got) != 1 || !got[0].OK {
		t.Errorf("Check = %+v", got)
	}
	// of a location that it has no host for
	if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "asks for the workspace") {
		t.Errorf("Launch = %v", err)
	}
}

// others skips the test unless the packages are installed that hack/launchers installs.
func others(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(testenv.Root(t), ".venvs/launchers/.complete")); err != nil {
		testenv.Missing(t, "dagster", "the launchers of others are not installed: hack/launchers")
	}
}
