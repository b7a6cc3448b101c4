//go:build real

package python_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/plugin"
	"github.com/slipway-run/slipway/launcher/python"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestMain(m *testing.M) {
	code := m.Run()
	plugin.Cleanup()
	testenv.Cleanup()
	os.Exit(code)
}

// logged is a log that tests can read.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// host is an instance made by real Dagster, and a class that is hosted for it.
type host struct {
	t     *testing.T
	d     *storagetest.Dagster
	asked string // file with the calls that the class got
	log   logged
	dir   string
	env   []string // further variables of the class's Python, as YAML
}

func newHost(t *testing.T) *host {
	t.Helper()
	testenv.DagsterBin(t)
	return &host{t: t, d: storagetest.NewSQLite(t), asked: filepath.Join(t.TempDir(), "asked"), dir: t.TempDir()}
}

// open hosts a class of testdata. Its config is YAML.
func (h *host) open(module, class, settings string) (launcher.Launcher, error) {
	h.t.Helper()
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		h.t.Fatal(err)
	}
	text := fmt.Sprintf("module: %s\nclass: %s\npython: %s\npath: [%q, %q]\nenv: {THE_LOG: %q%s}\nconfig: %s\n", module,
		class,
		filepath.Join(testenv.DagsterBin(h.t), "python"), testdata,
		filepath.Join(testenv.Root(h.t), ".venvs/launchers"), h.asked,
		strings.Join(append([]string{""}, h.env...), ", "), settings)
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		h.t.Fatalf("%v in\n%s", err, text)
	}
	v := config.Values{File: "slipway.yaml", Path: "launchers.x.config", Node: doc.Content[0], Dir: h.dir,
		Env: func(name string) (string, bool) {
			if name == "DAGSTER_HOME" {
				return h.d.Location, true
			}
			return os.LookupEnv(name)
		}}
	return python.Kind().Open(context.Background(), v,
		slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
}

// recorder hosts the class that records its calls.
func (h *host) recorder(settings string) launcher.Launcher {
	h.t.Helper()
	return h.class("Recorder", settings)
}

// class hosts one of the classes that record their calls.
func (h *host) class(name, settings string) launcher.Launcher {
	h.t.Helper()
	return h.hosts("launchers", name, "{log: {env: THE_LOG}"+settings+"}")
}

// hosts calls open, and closes the launcher when the test ends.
func (h *host) hosts(module, class, settings string) launcher.Launcher {
	h.t.Helper()
	l, err := h.open(module, class, settings)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := launcher.Close(l); err != nil {
			h.t.Error(err)
		}
	})
	return l
}

// was returns the calls that the class has got so far.
func (h *host) was(asked string) (all []map[string]any) {
	h.t.Helper()
	text, err := os.ReadFile(h.asked)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			h.t.Fatal(err)
		}
		if m["asked"] == asked {
			all = append(all, m)
		}
	}
	return all
}

// starting returns a request for a run that is being launched.
func (h *host) starting(n int) *launcher.Request {
	h.t.Helper()
	id, err := h.d.Text("SELECT run_id FROM runs ORDER BY id LIMIT 1 OFFSET ?", n)
	if err == nil {
		err = h.d.Exec("UPDATE runs SET status = 'STARTING' WHERE run_id = ?", id)
	}
	if err != nil || id == "" {
		h.t.Fatalf("no run: %v", err)
	}
	return &launcher.Request{ID: launcher.ID{Run: id, Attempt: 1}, Token: "t", Instance: "test", At: time.Now(),
		Run: json.RawMessage("{}"), InstanceRef: json.RawMessage("{}")}
}

// begunLongAgo makes it look as if launch_run had been called for a run before the start timeout
// passed.
func (h *host) begunLongAgo(req *launcher.Request) {
	h.t.Helper()
	body, err := h.d.Text("SELECT run_body FROM runs WHERE run_id = ?", req.ID.Run)
	if err != nil {
		h.t.Fatal(err)
	}
	at := strings.Index(body, "1 begun ")
	if at < 0 {
		h.t.Fatalf("launch_run was not called for %s: %s", req.ID.Run, body)
	}
	body = body[:at] + "1 begun 1" + body[at+strings.IndexByte(body[at:], '"'):]
	if err := errors.Join(
		h.d.Exec("UPDATE run_tags SET value = '1 begun 1' WHERE key LIKE '%launch_run' AND run_id = ?", req.ID.Run),
		h.d.Exec("UPDATE runs SET run_body = ? WHERE run_id = ?", body, req.ID.Run),
	); err != nil {
		h.t.Fatal(err)
	}
}

// absent fails the test unless the launcher says that a request has no worker, so that a canceled
// run may end.
func absent(t *testing.T, l launcher.Launcher, req *launcher.Request) {
	t.Helper()
	finder, _ := launcher.As[launcher.Finder](l)
	if got, found, err := finder.Find(t.Context(), req); found || err != nil {
		t.Errorf("Find = %+v, %v, %v, want nothing", got, found, err)
	}
}

func health(t *testing.T, l launcher.Launcher, h launcher.Handle) launcher.Health {
	t.Helper()
	got, err := l.Health(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// A class gets once what Dagster gives it, and its answers are translated to the contract's.
func TestHostedClass(t *testing.T) {
	h := newHost(t)
	l := h.recorder("")
	req := h.starting(0)
	finder, _ := launcher.As[launcher.Finder](l)
	if _, found, err := finder.Find(t.Context(), req); found || err != nil {
		t.Errorf("Find before the launch = %v, %v", found, err)
	}
	got, err := l.Launch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Launch(t.Context(), req); err != nil || again.Handle != got.Handle {
		t.Errorf("second Launch = %+v, %v", again, err)
	}
	other := h.recorder("") // as after a restart
	if again, err := other.Launch(t.Context(), req); err != nil || again.Handle != got.Handle {
		t.Errorf("Launch after reopening = %+v, %v", again, err)
	}
	asked := h.was("launch")
	if len(asked) != 1 || asked[0]["run"] != req.ID.Run || asked[0]["status"] != "STARTING" ||
		asked[0]["instance"] != h.d.Location || asked[0]["launcher"] != "Recorder" || asked[0]["python"] == "" {
		t.Fatalf("launch_run was asked %v", asked)
	}
	if log := h.log.String(); !strings.Contains(log, "launching "+req.ID.Run) ||
		!strings.Contains(log, "hosting launchers.Recorder with Dagster 1.") {
		t.Errorf("the log lacks what the class printed:\n%s", log)
	}
	if got := health(t, l, got.Handle); got.Status != launcher.Running || got.Message != "as told" ||
		got.Incarnation != "w1" {
		t.Errorf("Health = %+v", got)
	}
	describer, _ := launcher.As[launcher.Describer](l)
	if text, err := describer.Describe(t.Context(), got.Handle, true); err != nil ||
		string(text) != `{"debug_info": "run `+req.ID.Run+`, logs True"}` {
		t.Errorf("Describe = %s, %v", text, err)
	}
	guided := h.class("Guided", "")
	describer, _ = launcher.As[launcher.Describer](guided)
	if text, err := describer.Describe(t.Context(), got.Handle, true); err != nil ||
		string(text) != `{"container_state": "Failed", "events": [{"reason": "Pulled"}]}` {
		t.Errorf("Describe of a class with the guide's signature = %s, %v", text, err)
	}
	if ran, err := l.Terminate(t.Context(), got.Handle, 0); err != nil || !ran || len(h.was("terminate")) != 1 {
		t.Errorf("Terminate = %v, %v, the class was asked %v", ran, err, h.was("terminate"))
	}
	if err := h.d.Exec("UPDATE runs SET status = 'FAILURE' WHERE run_id = ?", req.ID.Run); err != nil {
		t.Fatal(err)
	}
	if got := health(t, l, got.Handle); got.Status != launcher.Failed {
		t.Errorf("Health of a run that failed = %+v", got)
	}
	if ran, err := l.Terminate(t.Context(), got.Handle, 0); err != nil || ran || len(h.was("terminate")) != 1 {
		t.Errorf("Terminate of a run that has ended = %v, %v", ran, err)
	}
	unknown := launcher.Handle(launcher.ID{Run: "11111111-1111-1111-1111-111111111111", Attempt: 1}.String())
	if got := health(t, l, unknown); got.Status != launcher.NotFound {
		t.Errorf("Health of an unknown run = %+v", got)
	}
	resume := h.starting(0)
	resume.ID.Attempt, resume.Resume = 2, true
	if _, err := l.Launch(t.Context(), resume); err != nil || len(h.was("resume")) != 1 ||
		h.was("resume")[0]["attempt"] != 1.0 {
		t.Errorf("resume = %v, the class was asked %v", err, h.was("resume"))
	}
	if err := launcher.Close(other); err != nil || len(h.was("dispose")) != 1 {
		t.Errorf("Close = %v, the class was asked %v", err, h.was("dispose"))
	}
}

// What a class reports about its workers is passed on. If it cannot tell, the worker is Starting
// until the run has started, so that the start timeout applies, and Unknown from then on.
func TestHealthOfAClass(t *testing.T) {
	h := newHost(t)
	n := 0
	for status, want := range map[string]launcher.Status{"SUCCESS": launcher.Succeeded, "NOT_FOUND": launcher.NotFound,
		"UNKNOWN": launcher.Starting, "FAILED": launcher.Failed, `""`: launcher.Starting} {
		l := h.recorder(", status: " + status)
		req := h.starting(n)
		got, err := l.Launch(t.Context(), req)
		if n++; err != nil {
			t.Fatal(err)
		}
		if got := health(t, l, got.Handle); got.Status != want {
			t.Errorf("%s: Health = %+v, want %s", status, got, want)
		}
		if err := h.d.Exec("UPDATE runs SET status = 'STARTED' WHERE run_id = ?", req.ID.Run); err != nil {
			t.Fatal(err)
		}
		if want == launcher.Starting {
			want = launcher.Unknown
		}
		if got := health(t, l, got.Handle); got.Status != want {
			t.Errorf("%s of a run that has started: Health = %+v, want %s", status, got, want)
		}
	}
}

// Each way in which launch_run can fail has its consequence, and it is never called a second time.
func TestLaunchThatFails(t *testing.T) {
	h := newHost(t)
	for n, c := range []struct {
		fails string
		kind  error
		text  string
	}{
		{"user", launcher.ErrInvalid, "Recorder could not launch the run: ValueError: no such queue"},
		{"workspace", launcher.ErrInvalid, "asks for the workspace"},
		{"connection", launcher.ErrTransient, "ConnectionResetError: the scheduler hung up"},
		{"dies", launcher.ErrTransient, ""},
	} {
		// A class without health checks: the fate of the worker stays unknown.
		l, req := h.recorder(", fails: "+c.fails+", status: ''"), h.starting(n)
		_, err := l.Launch(t.Context(), req)
		if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: Launch = %v, want %v with %q", c.fails, err, c.kind, c.text)
		}
		if errors.Is(c.kind, launcher.ErrInvalid) {
			continue
		}
		testenv.Eventually(t, time.Minute, func() (bool, string) { // a program that died is started again
			_, err := l.Launch(t.Context(), req)
			return errors.Is(err, launcher.ErrTransient) &&
					strings.Contains(err.Error(), "it is not known how it ended"),
				fmt.Sprintf("%s: Launch of an unknown outcome = %v", c.fails, err)
		})
		h.begunLongAgo(req)
		if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) ||
			!strings.Contains(fmt.Sprint(err), "not called a second time") {
			t.Errorf("%s: Launch long after = %v", c.fails, err)
		}
		if err := h.d.Exec("UPDATE runs SET status = 'STARTED' WHERE run_id = ?", req.ID.Run); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Launch(t.Context(), req); err != nil {
			t.Errorf("%s: Launch when the worker has reported itself = %v", c.fails, err)
		}
	}
	if n := len(h.was("launch")); n != 4 {
		t.Errorf("launch_run was called %d times for 4 runs", n)
	}
}

// If nothing was sent, launch_run is called again, and no caller has to wait for a worker. Each
// failure is logged in one line, and its traceback once.
func TestNothingWasSent(t *testing.T) {
	h := newHost(t)
	for n, fails := range []string{"refused", "name", "socket", "retried"} {
		l, req := h.recorder(", fails: "+fails+", status: ''"), h.starting(n)
		for range 2 {
			_, err := l.Launch(t.Context(), req)
			if text := fmt.Sprint(err); !errors.Is(err, launcher.ErrTransient) || strings.Contains(text, "\n") ||
				len(text) > 1200 {
				t.Errorf("%s: Launch = %v", fails, err)
			}
		}
		calls := 0
		for _, m := range h.was("launch") {
			if m["run"] == req.ID.Run {
				calls++
			}
		}
		if fails == "retried" { // the first request may have been accepted
			if calls != 1 {
				t.Errorf("%s: launch_run was called %d times", fails, calls)
			}
			h.begunLongAgo(req)
		} else if calls != 2 {
			t.Errorf("%s: launch_run was called %d times, want once for each Launch", fails, calls)
		}
		absent(t, l, req)
	}
	seen := 0
	for line := range strings.Lines(h.log.String()) {
		if strings.Contains(line, "Traceback") {
			seen++
			if !strings.Contains(line, "level=DEBUG") {
				t.Errorf("a traceback in the log: %s", line)
			}
		}
	}
	if seen == 0 || seen > 4 {
		t.Errorf("%d lines with a traceback, want one for each failure", seen)
	}
}

// A service that cannot be asked about workers does not stop a run from ending.
func TestServiceIsDown(t *testing.T) {
	h := newHost(t)
	l, req := h.class("Unwell", ", fails: connection"), h.starting(0)
	for range 2 {
		if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrTransient) {
			t.Errorf("Launch = %v", err)
		}
	}
	h.begunLongAgo(req)
	absent(t, l, req)
	if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(fmt.Sprint(err), "no worker has reported itself within 180 s") {
		t.Errorf("Launch long after = %v", err)
	}
}

// Many concurrent launches of one run get one worker, however long launch_run takes.
func TestSlowLaunch(t *testing.T) {
	h := newHost(t)
	l, req := h.recorder(", fails: slow"), h.starting(0)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := l.Launch(t.Context(), req); err != nil {
				t.Errorf("Launch = %v", err)
			}
		})
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return len(h.was("launch")) > 0, "launch_run was not called"
	})
	short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := l.Launch(short, req); !errors.Is(err, launcher.ErrTransient) ||
		!strings.Contains(err.Error(), "launch_run of Recorder has not returned yet") {
		t.Errorf("Launch with little time = %v", err)
	}
	finder, _ := launcher.As[launcher.Finder](l)
	if _, found, err := finder.Find(t.Context(), req); found || !errors.Is(err, launcher.ErrTransient) {
		t.Errorf("Find while launch_run goes on = %v, %v", found, err)
	}
	if err := os.WriteFile(h.asked+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := len(h.was("launch")); n != 1 {
		t.Errorf("launch_run was called %d times", n)
	}
}

// Problems of the settings are reported with their place.
func TestHostedSettings(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct{ module, class, config, want string }{
		{"launchers", "Recorder", "{log: x, slots: many}", "slipway.yaml:6:"},
		{"launchers", "Recorder", "{log: x, slots: many}", "launchers.x.config.config.slots: "},
		{"launchers", "Recorder", "{}", `Missing required config entry "log"`},
		{"launchers", "Recorder", "{log: x, colour: red}", `Received unexpected config entry "colour"`},
		{"launchers", "Refuses", "{log: x}",
			"launchers.x.config.config: Refuses refuses its config: RuntimeError: the licence has ended"},
		{"launchers", "Missing", "{}", "slipway.yaml:2:8: launchers.x.config.class: launchers has no Missing"},
		{"launchers", "NotALauncher", "{}", "launchers.NotALauncher is not a dagster RunLauncher"},
		{"no_such_module", "X",
			"{}", "slipway.yaml:1:9: launchers.x.config.module: cannot be imported by this Python: No module named " +
				"'no_such_module'"},
	} {
		l, err := h.open(c.module, c.class, c.config)
		if err == nil {
			t.Errorf("%+v: no error", c)
			_ = launcher.Close(l)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: Open = %v", c, err)
		}
	}
	v := config.Values{File: "slipway.yaml", Path: "launchers.x.config", Dir: h.dir, Env: os.LookupEnv}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte("{module: m, class: C, python: /no/such/python}"), &doc); err != nil {
		t.Fatal(err)
	}
	v.Node = doc.Content[0]
	if _, err := python.Kind().Open(t.Context(), v, slog.New(slog.DiscardHandler)); err == nil ||
		!strings.Contains(err.Error(), "slipway.yaml:1:31: launchers.x.config.python: ") {
		t.Errorf("Open with a Python that is not there = %v", err)
	}
}
