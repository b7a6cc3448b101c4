package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/launcher/plugin"
	"github.com/slipway-run/slipway/launcher/process"
	"github.com/slipway-run/slipway/test/testenv"
)

// The test binary also serves as the plug-ins of these tests: "serve KIND …".
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		switch os.Args[2] {
		case "process":
			plugin.Serve(process.Kind(os.Args[3:]...))
		case "docker":
			plugin.Serve(docker.Kind())
		case "odd":
			plugin.Serve(odd())
		case "crash":
			_, _ = os.Stderr.WriteString("no libnomad here\n")
			os.Exit(3)
		}
		return
	}
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

func (l *logged) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// open opens a launcher that the test binary serves. settings are the launcher's own.
func open(t testing.TB, dir, settings string, l *logged, serve ...string) (launcher.Launcher, error) {
	t.Helper()
	var command strings.Builder
	for _, c := range append([]string{os.Args[0], "serve"}, serve...) {
		command.WriteString("- '" + c + "'\n")
	}
	var doc yaml.Node
	text := "command:\n" + command.String() +
		"pass_env: [PLUGIN_PASSED]\nenv: {PLUGIN_TEST: from the settings, GORACE: atexit_sleep_ms=0}\n"
	if settings != "" {
		text += "config:\n" + settings
	}
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	v := config.Values{File: "slipway.yaml", Path: "launchers.x.config", Node: doc.Content[0], Dir: dir,
		Env: os.LookupEnv}
	return plugin.Kind().Open(context.Background(), v, l.log())
}

func must(t testing.TB, l *logged, serve ...string) launcher.Launcher {
	t.Helper()
	got, err := open(t, t.TempDir(), "", l, serve...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := launcher.Close(got); err != nil {
			t.Error(err)
		}
	})
	return got
}

// The contract holds over the wire just as without one.
func TestContractOverTheWire(t *testing.T) {
	agent, dir := testenv.Build(t, "slipway-agent"), t.TempDir()
	launchertest.Run(t, launchertest.Target{
		Kind: plugin.Kind(), Timeout: time.Minute, Many: testenv.Crowd(),
		Open: func() (launcher.Launcher, error) { return open(t, dir, "", &logged{}, "process", agent) },
	})
}

// odd is a kind whose launcher uses every possible answer.
func odd() *launcher.Kind {
	type settings struct {
		Color string `config:"color" default:"red" help:"A color."`
		Deep  struct {
			Number int `config:"number" default:"1" help:"A number."`
		} `config:"deep" help:"Deep."`
		Secret config.Secret `config:"secret" help:"A secret."`
	}
	return &launcher.Kind{
		Name: "odd", Help: "Odd.", Schema: config.Fields(settings{}), Tags: []string{"odd/config"}, Context: "odd",
		Traits: launcher.Traits{Unique: true, Nodes: true, MaxCommand: 7, Keep: time.Hour, LateStart: time.Minute},
		Open: func(_ context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			var s settings
			if err := v.Decode(&s); err != nil {
				return nil, err
			}
			log.Info("it is open", "color", s.Color, "env", os.Getenv("PLUGIN_TEST"),
				"passed", os.Getenv("PLUGIN_PASSED"), "kept", os.Getenv("PLUGIN_KEPT"), "secret", string(s.Secret))
			return oddLauncher{log}, nil
		},
	}
}

type oddLauncher struct{ log *slog.Logger }

func (l oddLauncher) Launch(_ context.Context, req *launcher.Request) (launcher.Launched, error) {
	switch req.Job {
	case "invalid":
		return launcher.Launched{}, launcher.WithCause(launcher.ErrInvalid, launcher.CauseImagePull)
	case "denied":
		return launcher.Launched{}, launcher.ErrDenied
	case "capacity":
		return launcher.Launched{}, launcher.WithRetryAfter(launcher.ErrCapacity, time.Minute)
	case "transient":
		return launcher.Launched{}, launcher.ErrTransient
	case "pending":
		return launcher.Launched{}, launcher.Pending(time.Second,
			launcher.Note{Text: "pulling", Metadata: [][2]string{{"image", "x"}}})
	case "unclear":
		return launcher.Launched{}, errors.New("what was that?")
	case "long":
		return launcher.Launched{Handle: launcher.Handle(strings.Repeat("x", 1000))}, nil
	case "dies":
		l.log.Error("dying")
		p, _ := os.FindProcess(os.Getpid())
		_ = p.Signal(syscall.SIGKILL)
		select {}
	}
	return launcher.Launched{Handle: launcher.Handle(req.Job), Tags: map[string]string{"a": "b"},
		Notes: []launcher.Note{{Text: "launched"}}}, nil
}

func (oddLauncher) Terminate(context.Context, launcher.Handle, time.Duration) (bool, error) {
	return false, launcher.ErrNotFound
}

func (oddLauncher) Health(_ context.Context, h launcher.Handle) (launcher.Health, error) {
	if h == "pid" {
		return launcher.Health{Status: launcher.Running, Message: string(rune(os.Getpid()))}, nil
	}
	zero := 0
	return launcher.Health{Status: launcher.Status(h), Exit: &zero, Cause: launcher.CauseOOM,
		Started: time.Unix(5, 0).UTC(), Usage: launcher.Usage{CPU: time.Second}, Tail: []string{"a", "b"}}, nil
}

func (oddLauncher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		_ = yield(launcher.Worker{Synced: true}, nil) && yield(launcher.Worker{}, launcher.ErrDenied)
	}
}

func (oddLauncher) Logs(context.Context, launcher.Handle, launcher.LogOptions) (io.ReadCloser, error) {
	return nil, launcher.ErrNotFound
}

func (oddLauncher) Check(context.Context) []launcher.Finding {
	return []launcher.Finding{{OK: true, What: "fine"}, {What: "bad", Fix: "mend it"}}
}

func TestDeclarationCrossesTheWire(t *testing.T) {
	t.Setenv("PLUGIN_TEST", "from the daemon")
	t.Setenv("PLUGIN_PASSED", "passed on")
	t.Setenv("PLUGIN_KEPT", "of no concern to the program")
	var out logged
	l := must(t, &out, "odd")
	got, want := launcher.KindOf(plugin.Kind(), l), odd()
	if got.Name != want.Name || got.Traits != want.Traits || got.Context != want.Context ||
		!slices.Equal(got.Tags, want.Tags) {
		t.Errorf("kind = %+v, want %+v", got, want)
	}
	if text, expected := config.Table(got.Schema), config.Table(want.Schema); text != expected {
		t.Errorf("settings:\n%s\nwant:\n%s", text, expected)
	}
	if a := launcher.Abilities(l); strings.Join(a, " ") != "watch logs check" {
		t.Errorf("abilities = %v", a)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		text := out.String()
		for _, want := range []string{`level=INFO msg="it is open"`, `env="from the settings"`, `passed="passed on"`,
			`kept=""`} {
			if !strings.Contains(text, want) {
				return false, want + " did not arrive in the program's log:\n" + text
			}
		}
		return true, ""
	})
}

func TestErrorsCrossTheWire(t *testing.T) {
	l := must(t, &logged{}, "odd")
	for job, want := range map[string]error{
		"invalid": launcher.ErrInvalid, "denied": launcher.ErrDenied, "capacity": launcher.ErrCapacity,
		"transient": launcher.ErrTransient, "pending": launcher.ErrPending,
	} {
		_, err := l.Launch(t.Context(), &launcher.Request{Job: job})
		for _, other := range []error{launcher.ErrInvalid, launcher.ErrDenied, launcher.ErrCapacity,
			launcher.ErrTransient, launcher.ErrPending, launcher.ErrNotFound} {
			if errors.Is(err, other) != (want == other) { //nolint:errorlint // one of these very errors
				t.Errorf("%s: %v; errors.Is(%v) = %v", job, err, other, errors.Is(err, other))
			}
		}
		after, has := launcher.RetryAfter(err)
		switch job {
		case "invalid":
			if launcher.CauseOf(err) != launcher.CauseImagePull {
				t.Errorf("%s: cause = %q", job, launcher.CauseOf(err))
			}
		case "capacity":
			if after != time.Minute {
				t.Errorf("%s: retry after %v", job, after)
			}
		case "pending":
			if n := launcher.Notes(err); len(n) != 1 || n[0].Text != "pulling" ||
				n[0].Metadata[0] != [2]string{"image", "x"} || after != time.Second {
				t.Errorf("%s: notes = %v, after %v", job, n, after)
			}
		default:
			if has {
				t.Errorf("%s: retry after %v", job, after)
			}
		}
	}
	_, err := l.Launch(t.Context(), &launcher.Request{Job: "unclear"})
	if err == nil || err.Error() != "what was that?" || errors.Is(err, launcher.ErrInvalid) ||
		errors.Is(err, launcher.ErrTransient) {
		t.Errorf("an error of no kind: %v", err)
	}
	if _, err := l.Launch(t.Context(), &launcher.Request{Job: "long"}); err == nil ||
		!strings.Contains(err.Error(), "1000 bytes") {
		t.Errorf("a handle that is too long: %v", err)
	}
	got, err := l.Launch(t.Context(), &launcher.Request{Job: "good"})
	if err != nil || got.Handle != "good" || got.Tags["a"] != "b" || got.Notes[0].Text != "launched" {
		t.Errorf("Launch = %+v, %v", got, err)
	}
	if _, err := l.Terminate(t.Context(), "h", time.Second); !errors.Is(err, launcher.ErrNotFound) {
		t.Errorf("Terminate = %v, want ErrNotFound", err)
	}
	h, err := l.Health(t.Context(), "Failed")
	if err != nil || h.Status != launcher.Failed || h.Exit == nil || *h.Exit != 0 || h.Cause != launcher.CauseOOM ||
		!h.Started.Equal(time.Unix(5, 0)) || h.Usage.CPU != time.Second || len(h.Tail) != 2 {
		t.Errorf("Health = %+v, %v", h, err)
	}
	if h, err := l.Health(t.Context(), "Exploded"); err != nil || h.Status != launcher.Unknown ||
		!strings.Contains(h.Message, "Exploded") {
		t.Errorf("Health with a status that there is not = %+v, %v, want Unknown", h, err)
	}
	w, _ := launcher.As[launcher.Watcher](l)
	var seen []string
	for worker, err := range w.Watch(t.Context()) {
		if err != nil {
			seen = append(seen, err.Error())
		} else if worker.Synced {
			seen = append(seen, "synced")
		}
	}
	if len(seen) != 2 || seen[0] != "synced" || !strings.Contains(seen[1], "denied") {
		t.Errorf("Watch yields %v", seen)
	}
	logs, _ := launcher.As[launcher.LogReader](l)
	if _, err := logs.Logs(t.Context(), "h", launcher.LogOptions{}); !errors.Is(err, launcher.ErrNotFound) {
		t.Errorf("Logs = %v, want ErrNotFound", err)
	}
	c, _ := launcher.As[launcher.Checker](l)
	if f := c.Check(t.Context()); len(f) != 2 || !f[0].OK || f[1].Fix != "mend it" {
		t.Errorf("Check = %+v", f)
	}
}

// A program that has died is started again by the next call. The outcome of the call during which
// it died is unknown.
func TestDiedProgramIsStartedAgain(t *testing.T) {
	var out logged
	l := must(t, &out, "odd")
	if _, err := l.Launch(t.Context(), &launcher.Request{Job: "dies"}); !errors.Is(err, launcher.ErrTransient) {
		t.Fatalf("Launch = %v, want ErrTransient", err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		got, err := l.Launch(t.Context(), &launcher.Request{Job: "good"})
		return err == nil && got.Handle == "good", "not started again\n" + out.String()
	})
	if !strings.Contains(out.String(), "level=WARN msg=\"the launcher's program has died and is started again\"") {
		t.Errorf("the log says nothing of it:\n%s", out.String())
	}
}

// Mistakes in the settings of a program's launcher are reported with their place in the file.
func TestSettingsOfAProgram(t *testing.T) {
	for _, c := range []struct{ settings, want string }{
		{"  {colour: blue}\n",
			`slipway.yaml:8:12: launchers.x.config.config.colour: unknown setting; did you mean color?`},
		{"  deep:\n    number: many\n", `slipway.yaml:9:13: launchers.x.config.config.deep.number: `},
		{"  secret: {env: NO_SUCH_VARIABLE}\n", `slipway.yaml:8:11: launchers.x.config.config.secret: `},
	} {
		_, err := open(t, t.TempDir(), c.settings, &logged{}, "odd")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("settings %q: %v, want %q", c.settings, err, c.want)
		}
	}
	_, err := open(t, t.TempDir(), "", &logged{}, "crash")
	if err == nil || !strings.Contains(err.Error(), "no libnomad here") {
		t.Errorf("a program that ends at once: %v, want what it wrote", err)
	}
	_, err = plugin.Open(t.Context(), plugin.Options{Command: []string{"echo", "hello"}, Env: os.Environ(),
		Timeout: time.Minute, Dir: t.TempDir()}, config.Values{}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), `echo: this program is not a plug-in: its first line must be the `+
		`handshake of go-plugin, but was "hello"`) {
		t.Errorf("a program that is not a plug-in: %v", err)
	}
	t.Setenv("SECRET_OF_PROGRAM", "s3cret")
	var out logged
	l, err := open(t, t.TempDir(), "  secret: {env: SECRET_OF_PROGRAM}\n", &out, "odd")
	if err != nil {
		t.Fatal(err)
	}
	if err := launcher.Close(l); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "secret=s3cret") {
		t.Errorf("a secret of the environment did not reach the program:\n%s", out.String())
	}
	if _, err := l.Health(t.Context(), "Running"); err == nil {
		t.Error("a closed launcher answers")
	}
}
