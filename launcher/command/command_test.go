package command_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/command"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

// spool is the example of the docs, with a spool folder for this test alone.
func spool(t *testing.T) launchertest.Target {
	t.Helper()
	if _, err := exec.LookPath("flock"); err != nil {
		testenv.Missing(t, "flock", "the example needs util-linux")
	}
	t.Setenv("SPOOL", t.TempDir())
	file := filepath.Join(testenv.Root(t), "examples/spool/command/slipway.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := config.Parse(file, text)
	if err != nil {
		t.Fatal(err)
	}
	v := config.Values{File: file, Path: "launchers.spool.config",
		Node: config.Child(config.Child(config.Child(doc, "launchers"), "spool"), "config"), Dir: t.TempDir(),
		Env: os.LookupEnv}
	return launchertest.Target{
		Kind: command.Kind(), Timeout: time.Minute, Many: testenv.Crowd(),
		Open: func() (launcher.Launcher, error) {
			return command.Kind().Open(context.Background(), v, slog.New(slog.DiscardHandler))
		},
	}
}

// The example of the docs, a shell script, passes the kit.
func TestContract(t *testing.T) { launchertest.Run(t, spool(t)) }

func open(t *testing.T, settings string) (launcher.Launcher, error) {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(settings), &doc); err != nil {
		t.Fatalf("%v in\n%s", err, settings)
	}
	v := config.Values{File: "slipway.yaml", Path: "launchers.x.config", Node: doc.Content[0], Dir: t.TempDir(),
		Env: os.LookupEnv}
	return command.Kind().Open(t.Context(), v, slog.New(slog.DiscardHandler))
}

func must(t *testing.T, settings string) launcher.Launcher {
	t.Helper()
	l, err := open(t, settings)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func request() *launcher.Request {
	return &launcher.Request{
		ID: launcher.ID{Run: "11111111-2222-3333-4444-555555555555", Attempt: 2}, Token: "t", Instance: "prod",
		Command: []string{"dagster", "api", "execute run"}, At: time.Now(),
		Env:    []launcher.Env{{Name: "A", Value: "1"}, {Name: "B", Value: "hunter2", Secret: true}},
		Labels: map[string]string{"x": "y"}, Nodes: map[string]string{"pool": "spot"}, Job: "etl",
		Resources: launcher.Resources{CPUMillis: 1500, MemoryBytes: 1 << 30},
	}
}

const others = "health: [sh, -c, 'exit 66']\nterminate: [sh, -c, 'exit 66']\n"

// A command gets its values as arguments, environment and JSON. What has no value is left out.
func TestPlaceholders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "asked")
	l := must(t, others+`launch: [sh, -c, '{{ printf "%s|" "$@"; echo; cat; echo; echo "$B $SLIPWAY_RUN_ID $OWN"; }} >`+
		file+`; echo "{{\"tags\": {{\"job\": \"7\"}}, \"notes\": [\"queued as 7\"]}}"', sh,
  "--name={name}", "--cpus={cpus}", "--gpus={gpus}", "--setenv={env}", "--label={label}", "--node={node}",
  "{{literal}}", "--", "{command}"]
env: {OWN: mine}
`)
	got, err := l.Launch(t.Context(), request())
	if err != nil || got.Handle != "dagster-run-11111111-2222-3333-4444-555555555555-2" || got.Tags["job"] != "7" ||
		len(got.Notes) != 1 || got.Notes[0].Text != "queued as 7" {
		t.Fatalf("Launch = %+v, %v", got, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	args, rest, _ := strings.Cut(string(text), "\n")
	stdin, env, _ := strings.Cut(rest, "\n")
	if want :=
		"--name=dagster-run-11111111-2222-3333-4444-555555555555-2|--cpus=1.5|--setenv=A|--setenv=B|--label=x=y|" +
			"--node=pool=spot|{literal}|--|dagster|api|execute run|"; args != want {
		t.Errorf("arguments = %s\nwant        %s", args, want)
	}
	if env != "hunter2 11111111-2222-3333-4444-555555555555 mine\n" {
		t.Errorf("environment = %s", env)
	}
	var in struct {
		Name    string
		Command []string
		Env     map[string]string
	}
	if err := json.Unmarshal([]byte(stdin), &in); err != nil || in.Env["B"] != "hunter2" || len(in.Command) != 3 ||
		in.Name == "" {
		t.Errorf("standard input = %s, %v", stdin, err)
	}
	previewer, _ := launcher.As[launcher.Previewer](l)
	if shown, err := previewer.Preview(t.Context(), request()); err != nil ||
		strings.Contains(string(shown), "hunter2") || !strings.Contains(string(shown), "--cpus=1.5") {
		t.Errorf("Preview = %s, %v", shown, err)
	}
}

// A value is never taken for an option or for more than one line, and commands do not get the
// daemon's environment.
func TestValuesDoNoHarm(t *testing.T) {
	t.Setenv("A_PASSWORD", "hunter2")
	file := filepath.Join(t.TempDir(), "asked")
	script := `launch: [sh, -c, 'echo "$A_PASSWORD|$HOME|$*|$SLIPWAY_LOCATION" >` + file + `', sh, `
	for args, want := range map[string]string{
		`"{location}"]`:       "cannot be the value of {location}",
		`"--at={location}"]`:  "",
		`"--", "{location}"]`: "",
	} {
		req := request()
		req.Location = "--privileged"
		if _, err := must(t, others+script+args).Launch(t.Context(), req); want == "" && err != nil || want != "" &&
			(!errors.Is(err, launcher.ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: Launch = %v, want %q", args, err, want)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(text), "|"+os.Getenv("HOME")+"|") ||
		!strings.HasSuffix(string(text), "|--privileged\n") {
		t.Errorf("the command saw %q, %v", text, err)
	}
	req := request()
	req.Job = "two\nlines"
	if _, err := must(t, others+script+`"{job}"]`).Launch(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) {
		t.Errorf("Launch of a job with a line break = %v", err)
	}
}

// Exit codes say what kind of failure occurred.
func TestExitCodes(t *testing.T) {
	for code, want := range map[int]error{
		64: launcher.ErrInvalid, 65: launcher.ErrInvalid, 66: launcher.ErrNotFound, 69: launcher.ErrTransient,
		73: launcher.ErrCapacity, 75: launcher.ErrTransient, 77: launcher.ErrDenied, 1: nil,
	} {
		l := must(t, others+fmt.Sprintf(
			`launch: [sh, -c, 'echo the queue is closed >&2; echo "{{\"retry_after\": \"30s\", \"cause\": `+
				`\"quota\"}}"; exit %d']`, code))
		_, err := l.Launch(t.Context(), request())
		if err == nil || !strings.Contains(err.Error(), "launch: the queue is closed") {
			t.Errorf("%d: Launch = %v", code, err)
		}
		for _, kind := range []error{launcher.ErrInvalid, launcher.ErrNotFound, launcher.ErrTransient,
			launcher.ErrCapacity, launcher.ErrDenied} {
			if errors.Is(err, kind) != errors.Is(want, kind) {
				t.Errorf("%d: Launch = %v, want %v", code, err, want)
			}
		}
		if after, _ := launcher.RetryAfter(err); want != nil &&
			(after != 30*time.Second || launcher.CauseOf(err) != launcher.CauseQuota) {
			t.Errorf("%d: after %v, cause %s", code, after, launcher.CauseOf(err))
		}
	}
}

// The output of commands is read strictly. A command that hangs is killed together with the
// processes it started.
func TestBadCommands(t *testing.T) {
	for health, want := range map[string]string{
		`echo "{{\"status\": \"Fine\"}}"`: `the status "Fine" is none of`,
		`echo "{{\"state\": \"Running\"}}"`: `health wrote what cannot be read: json: unknown field ` +
			`"state"`,
		`echo Running`: "health wrote what cannot be read",
		`echo "{{\"status\": \"Running\"}}"; echo "{{}}"`: "more than one JSON value",
		`true`:   `the status "" is none of`,
		`exit 3`: "health: exit status 3",
		`echo "{{\"status\": \"Failed\", \"exit\": \"one\"}}"`: "cannot unmarshal string",
	} {
		l := must(t, "launch: ['true']\nterminate: ['true']\nhealth: [sh, -c, '"+health+"']\n")
		if _, err := l.Health(t.Context(), launcher.Handle(request().ID.String())); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: Health = %v, want %q", health, err, want)
		}
	}
	pid := filepath.Join(t.TempDir(), "pid")
	l := must(t, "launch: ['true']\nterminate: ['true']\nhealth: [sh, -c, 'sleep 1000 & echo $! >"+pid+
		"; wait']\ntimeout: 300ms\n")
	if _, err := l.Health(t.Context(), launcher.Handle(request().ID.String())); !errors.Is(err,
		launcher.ErrTransient) || !strings.Contains(err.Error(), "did not end within 300ms") {
		t.Errorf("Health of a command that hangs = %v", err)
	}
	child, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z "),
			"what the command started still runs: " + string(stat)
	})
	if got, err := l.Health(t.Context(), "a job of another user"); err != nil || got.Status != launcher.NotFound {
		t.Errorf("Health of a foreign handle = %+v, %v", got, err)
	}
}

// Health is asked before launch, so that an existing worker is not launched again.
func TestLooksFirst(t *testing.T) {
	l := must(t, "launch: ['false']\nterminate: ['true']\nhealth: [echo, '{{\"status\": \"Succeeded\"}}']\n")
	if got, err := l.Launch(t.Context(), request()); err != nil || string(got.Handle) != request().ID.String() {
		t.Errorf("Launch of a worker that there is = %+v, %v", got, err)
	}
	l = must(t, "launch: ['true']\nterminate: ['true']\nhealth: [echo, '{{\"status\": \"Unknown\"}}']\n")
	if _, err := l.Launch(t.Context(), request()); !errors.Is(err, launcher.ErrTransient) {
		t.Errorf("Launch of a worker of which health cannot tell = %v", err)
	}
}

func TestSettings(t *testing.T) {
	for settings, want := range map[string]string{
		"launch: ['true']\nhealth: ['true']\n": "launchers.x.config.terminate: required",
		others + "launch: []\n": "slipway.yaml:3:9: launchers.x.config.launch: a " +
			"command is needed",
		others + "launch: [sh, '{nmae}']\n": "slipway.yaml:3:9: launchers.x.config.launch: there " +
			"is no placeholder {nmae} here, only name, run_id",
		others + "launch: [sh, '--cmd={command}']\n": "{command} is an argument by itself",
		others + "launch: [sh, -c, 'run {job}']\n": "a placeholder is an argument by itself, or ends " +
			"one that begins with plain text, as --name={name}; a script has it as an argument or as $SLIPWAY_JOB",
		others + "launch: [sh, '{name}.log']\n": "a placeholder is an argument by itself",
		others + "launch: ['true']\nlogs: [cat, '{image}']\n": "launchers.x.config.logs: there is no placeholder " +
			"{image} here",
		others + "launch: [no-such-program-here]\n": `launchers.x.config.launch: exec: ` +
			`"no-such-program-here": executable file not found`,
		others + "launch: [./gone]\n":                           "launchers.x.config.launch: ",
		others + "launch: ['true']\npromises: {strong: true}\n": "launchers.x.config.promises.strong: unknown setting",
		others + "launch: echo {name}\n":                        "launchers.x.config.launch: ",
	} {
		if _, err := open(t, settings); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", settings, err, want)
		}
	}
}

// Logs arrive as they are written, and closing them ends the command.
func TestFollow(t *testing.T) {
	l := must(t,
		"launch: ['true']\nterminate: ['true']\nhealth: [echo, '{{\"status\": \"Running\"}}']\nlogs: [sh, -c, 'echo "+
			"first; if $1; then sleep 1000; fi; echo last', sh, '{follow}']\n")
	reader, _ := launcher.As[launcher.LogReader](l)
	h := launcher.Handle(request().ID.String())
	rc, err := reader.Logs(t.Context(), h, launcher.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(io.LimitReader(rc, 6)); err != nil || string(text) != "first\n" {
		t.Errorf("the log begins with %q, %v", text, err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if rc, err = reader.Logs(t.Context(), h, launcher.LogOptions{}); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(rc); err != nil || string(text) != "first\nlast\n" {
		t.Errorf("the log is %q, %v", text, err)
	}
}
