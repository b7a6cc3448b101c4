// Package launchertest is the conformance kit for launchers: the sentences of package launcher as
// tests, for launchers of this module and of others.
//
//	func TestContract(t *testing.T) {
//		launchertest.Run(t, launchertest.Target{
//			Kind: Kind(), Settings: map[string]any{"queue": "tests"}, Timeout: time.Minute,
//		})
//	}
//
// The kit starts real workers, which are small shell scripts. So the target must be able to run sh.
package launchertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// TB is the part of testing.TB that the kit uses.
type TB interface {
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Skip(args ...any)
	Cleanup(f func())
	TempDir() string
}

// Target is a launcher under test.
type Target struct {
	Kind *launcher.Kind // nil if the launcher itself declares its kind
	// Settings are the launcher's own. The kit opens the launcher with them several times, as other
	// processes would. All workers must stay alive.
	Settings map[string]any
	// Open opens the launcher. It replaces Settings.
	Open    func() (launcher.Launcher, error)
	Image   string        // an image that has sh, if the target needs one
	Timeout time.Duration // for one worker to start and end
	Only    string        // only the sentences that contain this text; with go test use -run
	Many    int           // workers started at once by one sentence; 0 means 100. A lack of room is no failure
	Quick   bool          // only the basic sentences, on which all others depend, with one or two workers each
	// Parallel makes [Run] test the sentences in parallel, as many at once as go test's -parallel
	// allows. It is for targets whose workers take long to start.
	Parallel bool
}

// sentence is one sentence of the contract, with its test.
type sentence struct {
	text string
	test func(*kit)
	core bool // part of the quick form
}

var sentences = []sentence{
	{"Launch starts the command with its environment", (*kit).launchRuns, true},
	{"Launch returns without waiting for the worker", (*kit).launchReturns, false},
	{"Launch twice starts one worker", (*kit).launchTwice, true},
	{"Launch after reopening starts no second worker", (*kit).launchReopened, true},
	{"Launch after the end starts nothing", (*kit).launchEnded, true},
	{"Launch of one ID from many at once starts one worker", (*kit).launchSame, false},
	{"Launch of many at once starts as many", (*kit).launchMany, false},
	{"Launch with a context that ended can be repeated", (*kit).launchCancelled, false},
	{"Launch refuses what can never work as invalid", (*kit).launchInvalid, true},
	{"Launch of another attempt is another worker", (*kit).launchAttempts, false},
	{"A command that cannot be started is told", (*kit).launchNoProgram, false},
	{"Terminate stops before it kills", (*kit).terminateGrace, false},
	{"Terminate kills what does not stop", (*kit).terminateStubborn, true},
	{"Terminate without grace kills at once", (*kit).terminateNow, false},
	{"Terminate returns without waiting", (*kit).terminateReturns, false},
	{"Terminate may be repeated, and shortened", (*kit).terminateTwice, false},
	{"Terminate of an ended worker is false", (*kit).terminateEnded, true},
	{"Terminate of an unknown worker is false", (*kit).terminateUnknown, true},
	{"Terminate right after Launch leaves nothing running", (*kit).terminateEarly, false},
	{"A stopped worker is not started again", (*kit).terminateRelaunch, false},
	{"Health tells success, failure and exit code", (*kit).healthEnds, true},
	{"Health of an unknown worker is NotFound", (*kit).healthUnknown, true},
	{"Health is the same after reopening", (*kit).healthReopened, false},
	{"Health of a worker that killed itself is Failed", (*kit).healthKilled, false},
	{"List finds the workers of its instance only", (*kit).listInstance, true},
	{"List finds the workers of given runs", (*kit).listRuns, false},
	{"Watch yields what there is, Synced, then changes", (*kit).watch, false},
	{"HealthOf answers in order", (*kit).batch, false},
	{"Remove forgets an ended worker and leaves a live one", (*kit).remove, true},
	{"Logs are what the worker wrote", (*kit).logs, false},
	{"Describe and Preview show no secret", (*kit).secrets, false},
	{"Handles are short and stay the same", (*kit).handles, false},
	{"Labels stand on the worker", (*kit).labels, false},
	{"A context that ended ends Watch and Logs", (*kit).contexts, false},
	{"A handle of another launcher does no harm", (*kit).foreignHandle, false},
}

// Run runs the kit. It reports a sentence that the kind's traits rule out as not promised. If the
// first sentence fails, the others are not run: none can hold for a launcher that starts no worker.
func Run(t *testing.T, target Target) {
	if target.Open == nil {
		target.Open = opener(t, target.Kind, target.Settings)
	}
	for _, s := range target.sentences() {
		ok := t.Run(s.text, func(t *testing.T) {
			if target.Parallel && !s.first() {
				t.Parallel()
			}
			s.run(t, target)
		})
		if s.first() && !ok {
			t.Fatal(notRun)
		}
	}
}

// notRun explains why a sentence was not tested.
const notRun = "the first sentence failed, so no other was tried"

// first reports whether no other sentence can hold without this one.
func (s sentence) first() bool { return s.text == sentences[0].text }

// sentences returns the sentences that the target selects.
func (t Target) sentences() []sentence {
	return slices.DeleteFunc(slices.Clone(sentences), func(s sentence) bool {
		return t.Quick && !s.core || !strings.Contains(s.text, t.Only)
	})
}

// opener returns a function that opens a launcher with the given settings, each time as another
// process would.
func opener(t TB, kind *launcher.Kind, settings map[string]any) func() (launcher.Launcher, error) {
	t.Helper()
	v, err := config.FromMap(settings)
	if err != nil {
		t.Fatalf("Settings: %v", err)
	}
	v.Dir = t.TempDir()
	return func() (launcher.Launcher, error) {
		return kind.Open(context.Background(), v, slog.New(slog.DiscardHandler))
	}
}

func (s sentence) run(t TB, target Target) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*target.Timeout)
	t.Cleanup(cancel)
	k := &kit{TB: t, target: target, ctx: ctx, instance: "kit-" + uuid.NewString()[:8]}
	k.l = k.open()
	if k.kind = launcher.KindOf(target.Kind, k.l); k.kind == nil {
		k.Fatalf("Target.Kind is not set, and the launcher does not declare its kind")
	}
	s.test(k)
}

// open opens the launcher, and closes it when the test ends.
func (k *kit) open() launcher.Launcher {
	k.Helper()
	l, err := k.target.Open()
	if err != nil {
		k.Fatalf("Open: %v", err)
	}
	k.Cleanup(func() {
		if err := launcher.Close(l); err != nil {
			k.Errorf("Close: %v", err)
		}
	})
	return l
}

type kit struct {
	TB
	target   Target
	kind     *launcher.Kind
	ctx      context.Context //nolint:containedctx // a kit is made for one test
	l        launcher.Launcher
	instance string
}

// request returns the request for a worker of a new run. The worker writes "started" and then runs
// a script.
func (k *kit) request(script string) *launcher.Request {
	k.Helper()
	if k.kind.Traits.OwnCommand {
		k.Skip("not promised: the launcher makes the worker's command itself, so the kit's script cannot be its worker")
	}
	return &launcher.Request{
		ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Token: "token", Instance: k.instance, Image: k.target.Image,
		Command: []string{"sh", "-c", "echo started\n" + script}, At: time.Now(), Job: "kit", Location: "kit",
		Env: []launcher.Env{{Name: "KIT_VALUE", Value: "a value"},
			{Name: "KIT_SECRET", Value: "hunter2", Secret: true}},
	}
}

func (k *kit) launch(req *launcher.Request) launcher.Handle {
	k.Helper()
	h, err := k.ask(req)
	if err != nil {
		k.Fatalf("Launch(%s) = %v", req.ID, err)
	}
	return h
}

// ask launches a worker, repeating the call while the target prepares what the worker needs. It
// stops the worker after the test.
func (k *kit) ask(req *launcher.Request) (launcher.Handle, error) {
	l := k.l
	got, err := l.Launch(k.ctx, req)
	for errors.Is(err, launcher.ErrPending) && k.ctx.Err() == nil { // an image is being pulled
		time.Sleep(100 * time.Millisecond)
		got, err = l.Launch(k.ctx, req)
	}
	if err == nil {
		k.leaveNothing(l, got.Handle)
	}
	return got.Handle, err
}

// leaveNothing stops and removes a worker after the test.
func (k *kit) leaveNothing(l launcher.Launcher, h launcher.Handle) {
	k.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), k.target.Timeout)
		defer cancel()
		if _, err := l.Terminate(ctx, h, 0); err != nil {
			k.Errorf("Terminate(%s) after the test: %v", h, err)
		}
		for health, err := l.Health(ctx, h); err == nil && health.Status.Alive(); health, err = l.Health(ctx, h) {
			time.Sleep(5 * time.Millisecond)
		}
		if r, ok := launcher.As[launcher.Remover](l); ok {
			k.forget(ctx, r, h)
		}
	})
}

// forget removes an ended worker. It retries, because the process that recorded the worker's end
// may take a moment to exit.
func (k *kit) forget(ctx context.Context, r launcher.Remover, h launcher.Handle) {
	k.Helper()
	deadline := time.Now().Add(k.target.Timeout)
	for err := r.Remove(ctx, h); err != nil; err = r.Remove(ctx, h) {
		if time.Now().After(deadline) {
			k.Errorf("Remove(%s), which has ended, = %v", h, err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (k *kit) health(h launcher.Handle) launcher.Health {
	k.Helper()
	got, err := k.l.Health(k.ctx, h)
	if err != nil {
		k.Fatalf("Health(%s) = %v", h, err)
	}
	return got
}

// until waits until a worker's health satisfies ok.
func (k *kit) until(h launcher.Handle, what string, ok func(launcher.Health) bool) launcher.Health {
	k.Helper()
	deadline := time.Now().Add(k.target.Timeout)
	for {
		got := k.health(h)
		if ok(got) {
			return got
		}
		if time.Now().After(deadline) {
			k.Fatalf("Health(%s) = %+v, never %s", h, got, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (k *kit) ended(h launcher.Handle) launcher.Health {
	k.Helper()
	return k.until(h, "ended", func(h launcher.Health) bool { return h.Status.Ended() })
}

// log returns the output of a worker. If the launcher has no logs the sentence ends as not
// promised.
func (k *kit) log(h launcher.Handle) string {
	k.Helper()
	r, ok := launcher.As[launcher.LogReader](k.l)
	if !ok {
		k.Skip("not promised: the launcher reads no logs, by which this sentence is told")
	}
	rc, err := r.Logs(k.ctx, h, launcher.LogOptions{})
	if errors.Is(err, launcher.ErrNotFound) {
		return ""
	}
	if err != nil {
		k.Fatalf("Logs(%s) = %v", h, err)
	}
	text, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		k.Fatalf("Logs(%s): %v", h, err)
	}
	return string(text)
}

// says waits until a worker has written a text.
func (k *kit) says(h launcher.Handle, text string) {
	k.Helper()
	deadline := time.Now().Add(k.target.Timeout)
	for !strings.Contains(k.log(h), text) {
		if time.Now().After(deadline) {
			k.Fatalf("%s never wrote %q: %s", h, text, k.log(h))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// started fails the test unless exactly n workers with this name have started.
func (k *kit) started(h launcher.Handle, n int) {
	k.Helper()
	if got := strings.Count(k.log(h), "started\n"); got != n {
		k.Errorf("%s was started %d times, want %d; its log:\n%s", h, got, n, k.log(h))
	}
}

const forever = "while :; do sleep 0.1; done"

func (k *kit) launchRuns() {
	req := k.request(`echo "value: $KIT_VALUE"; pwd`)
	if k.kind.Traits.LocalFiles {
		req.Dir = k.TempDir()
	}
	h := k.launch(req)
	if got := k.ended(h); got.Status != launcher.Succeeded {
		k.Errorf("Health = %+v, want Succeeded", got)
	}
	if log := k.log(h); !strings.Contains(log, "value: a value\n") || !strings.Contains(log, req.Dir) {
		k.Errorf("the worker wrote %q, want KIT_VALUE and %q in it", log, req.Dir)
	}
	k.started(h, 1)
}

func (k *kit) launchReturns() {
	h := k.launch(k.request(forever))
	if got := k.health(h); !got.Status.Alive() {
		k.Errorf("Health = %+v, want a live worker", got)
	}
	k.until(h, "Running", func(h launcher.Health) bool { return h.Status == launcher.Running })
}

func (k *kit) launchTwice() {
	req := k.request(forever)
	h := k.launch(req)
	if again := k.launch(req); again != h {
		k.Errorf("second Launch gave %q, the first %q", again, h)
	}
	k.says(h, "started")
	if again := k.launch(req); again != h {
		k.Errorf("third Launch gave %q, the first %q", again, h)
	}
	k.started(h, 1)
}

func (k *kit) launchReopened() {
	req := k.request(forever)
	h := k.launch(req)
	k.says(h, "started")
	k.l = k.open()
	if again := k.launch(req); again != h {
		k.Errorf("Launch after reopening gave %q, before %q", again, h)
	}
	k.started(h, 1)
}

func (k *kit) launchEnded() {
	req := k.request("exit 3")
	h := k.launch(req)
	k.ended(h)
	k.launch(req)
	k.l = k.open()
	k.launch(req)
	if got := k.ended(h); got.Exit == nil || *got.Exit != 3 {
		k.Errorf("Health = %+v, want the first worker's exit code 3", got)
	}
	k.started(h, 1)
}

func (k *kit) launchSame() {
	req := k.request(forever)
	handles := make([]launcher.Handle, 30)
	launchers := []launcher.Launcher{k.l, k.open(), k.open()}
	var wg sync.WaitGroup
	for i := range handles {
		wg.Go(func() {
			got, err := launchers[i%len(launchers)].Launch(k.ctx, req)
			if err != nil {
				k.Errorf("Launch = %v", err)
			}
			handles[i] = got.Handle
		})
	}
	wg.Wait()
	h := k.launch(req)
	for _, got := range handles {
		if got != h {
			k.Errorf("one Launch gave %q, another %q", got, h)
		}
	}
	k.says(h, "started")
	k.started(h, 1)
}

// launchMany accepts that a target has no room. Then nothing may exist of the launches that it
// refused.
func (k *kit) launchMany() {
	reqs := make([]*launcher.Request, cmp.Or(k.target.Many, 100))
	handles, errs := make([]launcher.Handle, len(reqs)), make([]error, len(reqs))
	var wg sync.WaitGroup
	for i := range reqs {
		reqs[i] = k.request("exit 0")
		wg.Go(func() { handles[i], errs[i] = k.ask(reqs[i]) })
	}
	wg.Wait()
	taken := 0
	for i, h := range handles {
		if errors.Is(errs[i], launcher.ErrCapacity) {
			continue
		}
		if errs[i] != nil {
			k.Fatalf("Launch(%s) = %v", reqs[i].ID, errs[i])
		}
		taken++
		if got := k.ended(h); got.Status != launcher.Succeeded {
			k.Errorf("%s: %+v, want Succeeded", h, got)
		}
		k.started(h, 1)
	}
	if taken == 0 {
		k.Errorf("the target took none of %d workers: %v", len(reqs), errs[0])
	}
	if got := len(k.list(launcher.Filter{Instance: k.instance})); got != taken {
		k.Errorf("List yields %d workers, want the %d that were taken", got, taken)
	}
}

func (k *kit) launchCancelled() {
	req := k.request(forever)
	ctx, cancel := context.WithCancel(k.ctx)
	cancel()
	_, _ = k.l.Launch(ctx, req) // either outcome is right; the next Launch finds out
	h := k.launch(req)
	k.says(h, "started")
	k.started(h, 1)
}

func (k *kit) launchInvalid() {
	for what, change := range map[string]func(*launcher.Request){
		"a run ID that cannot be a name": func(r *launcher.Request) { r.ID.Run = "../x" },
		"attempt 0":                      func(r *launcher.Request) { r.ID.Attempt = 0 },
		"no command":                     func(r *launcher.Request) { r.Command = nil },
		"no instance":                    func(r *launcher.Request) { r.Instance = "" },
	} {
		req := k.request("exit 0")
		change(req)
		if got, err := k.l.Launch(k.ctx, req); !errors.Is(err, launcher.ErrInvalid) {
			k.Errorf("Launch with %s = %+v, %v, want ErrInvalid", what, got, err)
		}
	}
}

func (k *kit) launchAttempts() {
	first := k.request("echo first; exit 1")
	h1 := k.launch(first)
	k.ended(h1)
	second := k.request("echo second")
	second.ID = launcher.ID{Run: first.ID.Run, Attempt: 2}
	h2 := k.launch(second)
	if h1 == h2 {
		k.Fatalf("both attempts have the handle %q", h1)
	}
	if got := k.ended(h2); got.Status != launcher.Succeeded {
		k.Errorf("second attempt: %+v, want Succeeded", got)
	}
	if got := k.health(h1); got.Status != launcher.Failed {
		k.Errorf("first attempt: %+v, want Failed", got)
	}
}

func (k *kit) launchNoProgram() {
	req := k.request("")
	req.Command = []string{"/no/such/program-of-the-kit"}
	got, err := k.l.Launch(k.ctx, req)
	if errors.Is(err, launcher.ErrInvalid) {
		return
	}
	if err != nil {
		k.Fatalf("Launch = %v, want ErrInvalid or a worker that failed", err)
	}
	k.leaveNothing(k.l, got.Handle)
	if health := k.ended(got.Handle); health.Status != launcher.Failed ||
		!strings.Contains(health.Message, "program-of-the-kit") {
		k.Errorf("Health = %+v, want Failed with the program's name", health)
	}
}

func (k *kit) terminate(h launcher.Handle, grace time.Duration, want bool) {
	k.Helper()
	if got, err := k.l.Terminate(k.ctx, h, grace); err != nil || got != want {
		k.Errorf("Terminate(%s, %v) = %v, %v, want %v", h, grace, got, err, want)
	}
}

func (k *kit) terminateGrace() {
	if !k.kind.Traits.SignalsWorker {
		k.Skip("not promised: Terminate does not reach the worker as a signal")
	}
	h := k.launch(k.request(`trap 'echo stopping; exit 7' TERM; echo ready; ` + forever))
	k.says(h, "ready")
	k.terminate(h, k.target.Timeout, true)
	got := k.ended(h)
	if got.Exit == nil || *got.Exit != 7 || got.Cause != launcher.CauseCanceled {
		k.Errorf("Health = %+v, want exit code 7 and cause canceled", got)
	}
	k.says(h, "stopping")
}

func (k *kit) terminateStubborn() {
	h := k.launch(k.request(`trap 'echo no' TERM; echo ready; ` + forever))
	k.says(h, "ready")
	k.terminate(h, 200*time.Millisecond, true)
	if got := k.ended(h); got.Status != launcher.Failed {
		k.Errorf("Health = %+v, want Failed", got)
	}
}

func (k *kit) terminateNow() {
	h := k.launch(k.request(`trap 'echo no' TERM; echo ready; ` + forever))
	k.says(h, "ready")
	k.terminate(h, 0, true)
	if got := k.ended(h); got.Status != launcher.Failed || got.Exit != nil && *got.Exit == 0 {
		k.Errorf("Health = %+v, want Failed", got)
	}
}

func (k *kit) terminateReturns() {
	h := k.launch(k.request(`trap '' TERM; echo ready; ` + forever))
	k.says(h, "ready")
	k.terminate(h, time.Hour, true)
	if got := k.health(h); !got.Status.Alive() {
		k.Errorf("Health = %+v, want a live worker: it ignores the signal", got)
	}
	k.terminate(h, 0, true)
	k.ended(h)
}

func (k *kit) terminateTwice() {
	h := k.launch(k.request(`trap 'echo got' TERM; echo ready; ` + forever))
	k.says(h, "ready")
	k.terminate(h, time.Hour, true)
	k.terminate(h, time.Hour, true)
	k.l = k.open()
	k.terminate(h, 100*time.Millisecond, true)
	k.ended(h)
	k.terminate(h, 0, false)
}

func (k *kit) terminateEnded() {
	h := k.launch(k.request("exit 0"))
	k.ended(h)
	k.terminate(h, time.Second, false)
	if got := k.health(h); got.Status != launcher.Succeeded {
		k.Errorf("Health = %+v, want Succeeded as before", got)
	}
}

// unknown returns a handle of this launcher for a worker that never existed.
func (k *kit) unknown() launcher.Handle {
	known := k.request("exit 0")
	h := k.launch(known)
	k.ended(h)
	return launcher.Handle(strings.ReplaceAll(string(h), known.ID.Run, uuid.NewString()))
}

func (k *kit) terminateUnknown() { k.terminate(k.unknown(), time.Second, false) }

func (k *kit) terminateEarly() {
	for range 10 {
		h := k.launch(k.request(forever))
		if _, err := k.l.Terminate(k.ctx, h, 0); err != nil {
			k.Fatalf("Terminate(%s) = %v", h, err)
		}
		k.until(h, "not alive", func(h launcher.Health) bool { return !h.Status.Alive() })
	}
}

func (k *kit) terminateRelaunch() {
	req := k.request(forever)
	h := k.launch(req)
	k.says(h, "started")
	k.terminate(h, 0, true)
	k.ended(h)
	k.launch(req)
	k.started(h, 1)
	if got := k.health(h); !got.Status.Ended() {
		k.Errorf("Health = %+v, want ended", got)
	}
}

func (k *kit) healthEnds() {
	for _, c := range []struct {
		script string
		status launcher.Status
		exit   int
	}{{"exit 0", launcher.Succeeded, 0}, {"echo dying; exit 42", launcher.Failed, 42}} {
		got := k.ended(k.launch(k.request(c.script)))
		if got.Status != c.status || got.Exit == nil || *got.Exit != c.exit {
			k.Errorf("%s: Health = %+v, want %s with exit code %d", c.script, got, c.status, c.exit)
		}
		if c.exit != 0 && (got.Cause == "" || got.Message == "" || !slices.Contains(got.Tail, "dying")) {
			k.Errorf("%s: Health = %+v, want a cause, a message and the last lines", c.script, got)
		}
		if got.Ended.Before(got.Started) || got.Started.IsZero() {
			k.Errorf("%s: started %v, ended %v", c.script, got.Started, got.Ended)
		}
	}
}

func (k *kit) healthUnknown() {
	if got := k.health(k.unknown()); got.Status != launcher.NotFound {
		k.Errorf("Health = %+v, want NotFound", got)
	}
}

func (k *kit) healthReopened() {
	h := k.launch(k.request("exit 5"))
	live := k.launch(k.request(forever))
	before := k.ended(h)
	k.l = k.open()
	if got := k.health(h); got.Status != before.Status || *got.Exit != *before.Exit || !got.Ended.Equal(before.Ended) {
		k.Errorf("Health after reopening = %+v, before %+v", got, before)
	}
	if got := k.health(live); !got.Status.Alive() {
		k.Errorf("Health of the live worker = %+v", got)
	}
}

// The first process of a container cannot be killed from inside. It exits with a code instead.
func (k *kit) healthKilled() {
	got := k.ended(k.launch(k.request("kill -9 $$; exit 9")))
	if got.Status != launcher.Failed || got.Message == "" {
		k.Errorf("Health = %+v, want Failed with a message", got)
	}
}

func (k *kit) list(f launcher.Filter) []launcher.Worker {
	k.Helper()
	lister, ok := launcher.As[launcher.Lister](k.l)
	if !ok {
		k.Skip("not promised: the launcher lists no workers")
	}
	var all []launcher.Worker
	for w, err := range lister.List(k.ctx, f) {
		if err != nil {
			k.Fatalf("List(%+v) = %v", f, err)
		}
		all = append(all, w)
	}
	return all
}

func (k *kit) listInstance() {
	ours := k.request(forever)
	h := k.launch(ours)
	theirs := k.request(forever)
	theirs.Instance = "another-" + k.instance
	k.launch(theirs)
	got := k.list(launcher.Filter{Instance: k.instance})
	if len(got) != 1 || got[0].ID != ours.ID || got[0].Handle != h || got[0].Instance != k.instance ||
		!got[0].Health.Status.Alive() {
		k.Errorf("List = %+v, want only %s", got, h)
	}
}

func (k *kit) listRuns() {
	a, b := k.request("exit 0"), k.request("exit 0")
	k.launch(a)
	k.launch(b)
	if got := k.list(launcher.Filter{Instance: k.instance, Runs: []string{b.ID.Run}}); len(got) != 1 ||
		got[0].ID != b.ID {
		k.Errorf("List of one run = %+v, want %s", got, b.ID)
	}
	if got := k.list(launcher.Filter{Instance: k.instance, Runs: []string{}}); len(got) != 0 {
		k.Errorf("List of no run = %+v", got)
	}
	if got := k.list(launcher.Filter{Instance: k.instance}); len(got) != 2 {
		k.Errorf("List of all runs = %+v, want two", got)
	}
}

func (k *kit) watch() {
	watcher, ok := launcher.As[launcher.Watcher](k.l)
	if !ok {
		k.Skip("not promised: the launcher does not watch")
	}
	before := k.request(forever)
	k.launch(before)
	ctx, cancel := context.WithCancel(k.ctx)
	seen := make(chan launcher.Worker, 10000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for w, err := range watcher.Watch(ctx) {
			if err != nil {
				k.Errorf("Watch: %v", err)
				return
			}
			seen <- w
		}
	})
	defer wg.Wait()
	defer cancel()
	next := func(what string, ok func(launcher.Worker) bool) {
		k.Helper()
		for {
			select {
			case w := <-seen:
				if ok(w) {
					return
				}
			case <-k.ctx.Done():
				k.Fatalf("Watch never yielded %s", what)
			}
		}
	}
	next("the worker that there was", func(w launcher.Worker) bool {
		if w.Synced {
			k.Fatal("Synced before the worker that there was")
		}
		return w.ID == before.ID
	})
	next("Synced", func(w launcher.Worker) bool { return w.Synced })
	after := k.request("exit 4")
	k.launch(after)
	next("the end of a new worker", func(w launcher.Worker) bool {
		return w.ID == after.ID && w.Instance == k.instance && w.Health.Exit != nil && *w.Health.Exit == 4
	})
}

func (k *kit) batch() {
	b, ok := launcher.As[launcher.Batcher](k.l)
	if !ok {
		k.Skip("not promised: the launcher answers one by one")
	}
	live, dead := k.launch(k.request(forever)), k.launch(k.request("exit 1"))
	k.ended(dead)
	got, err := b.HealthOf(k.ctx, []launcher.Handle{dead, live, dead})
	if err != nil || len(got) != 3 || got[0].Status != launcher.Failed || !got[1].Status.Alive() ||
		got[2].Status != launcher.Failed {
		k.Errorf("HealthOf = %+v, %v", got, err)
	}
}

func (k *kit) remove() {
	r, ok := launcher.As[launcher.Remover](k.l)
	if !ok {
		k.Skip("not promised: the launcher forgets nothing")
	}
	live, dead := k.launch(k.request(forever)), k.launch(k.request("exit 1"))
	k.says(live, "started")
	k.ended(dead)
	k.forget(k.ctx, r, dead)
	if got := k.health(dead); got.Status != launcher.NotFound {
		k.Errorf("Health of a removed worker = %+v", got)
	}
	if err := r.Remove(k.ctx, dead); err != nil {
		k.Errorf("Remove of a worker that is gone = %v", err)
	}
	if err := r.Remove(k.ctx, live); err == nil {
		k.Error("Remove of a live worker is not an error")
	}
	if got := k.health(live); !got.Status.Alive() {
		k.Errorf("Health of the live worker = %+v", got)
	}
}

func (k *kit) logs() {
	r, ok := launcher.As[launcher.LogReader](k.l)
	if !ok {
		k.Skip("not promised: the launcher reads no logs")
	}
	h := k.launch(k.request("echo out; sleep 0.2; echo err >&2; sleep 0.3; echo last"))
	follow, err := r.Logs(k.ctx, h, launcher.LogOptions{Follow: true})
	if err != nil {
		k.Fatalf("Logs = %v", err)
	}
	text, err := io.ReadAll(follow)
	if err := errors.Join(err, follow.Close()); err != nil || string(text) != "started\nout\nerr\nlast\n" {
		k.Errorf("followed log = %q, %v", text, err)
	}
	tail, err := r.Logs(k.ctx, h, launcher.LogOptions{Tail: 2})
	if err != nil {
		k.Fatalf("Logs = %v", err)
	}
	text, err = io.ReadAll(tail)
	if err := errors.Join(err, tail.Close()); err != nil || string(text) != "err\nlast\n" {
		k.Errorf("last two lines = %q, %v", text, err)
	}
	if _, err := r.Logs(k.ctx, k.unknown(), launcher.LogOptions{}); !errors.Is(err, launcher.ErrNotFound) {
		k.Errorf("Logs of an unknown worker = %v, want ErrNotFound", err)
	}
}

func (k *kit) secrets() {
	req := k.request("exit 0")
	if p, ok := launcher.As[launcher.Previewer](k.l); ok {
		got, err := p.Preview(k.ctx, req)
		if err != nil || strings.Contains(string(got), "hunter2") || !strings.Contains(string(got), "a value") {
			k.Errorf("Preview = %s, %v, want a value and no secret", got, err)
		}
	}
	h := k.launch(req)
	k.ended(h)
	if d, ok := launcher.As[launcher.Describer](k.l); ok {
		got, err := d.Describe(k.ctx, h, true)
		if err != nil || strings.Contains(string(got), "hunter2") || !strings.Contains(string(got), "started") {
			k.Errorf("Describe = %s, %v, want the log and no secret", got, err)
		}
	}
}

func (k *kit) handles() {
	req := k.request("exit 0")
	h := k.launch(req)
	if len(h) == 0 || len(h) > launcher.MaxHandle {
		k.Errorf("handle %q has %d bytes", h, len(h))
	}
	first, err := k.l.Launch(k.ctx, req)
	if err != nil {
		k.Fatal(err)
	}
	second, err := k.l.Launch(k.ctx, req)
	if err != nil || fmt.Sprint(first) != fmt.Sprint(second) {
		k.Errorf("a repeated Launch gives %+v, then %+v, %v", first, second, err)
	}
}

func (k *kit) labels() {
	d, ok := launcher.As[launcher.Describer](k.l)
	if !ok {
		k.Skip("not promised: the launcher has no debug information, by which this sentence is told")
	}
	req := k.request("exit 0")
	req.Labels = map[string]string{"dagster-run-id": req.ID.Run, "created-by": "the-kit"}
	h := k.launch(req)
	k.ended(h)
	info, err := d.Describe(k.ctx, h, false)
	if err != nil || !strings.Contains(string(info), "the-kit") || !strings.Contains(string(info), req.ID.Run) {
		k.Errorf("Describe = %s, %v, want the worker's labels in it", info, err)
	}
}

// contexts checks that calls that may last long end soon after their context.
func (k *kit) contexts() {
	h := k.launch(k.request(forever))
	k.says(h, "started")
	ctx, cancel := context.WithCancel(k.ctx)
	done := make(chan struct{}, 2)
	waiting := 0
	if w, ok := launcher.As[launcher.Watcher](k.l); ok {
		waiting++
		go func() {
			for _, err := range w.Watch(ctx) {
				if err != nil && ctx.Err() == nil {
					k.Errorf("Watch: %v", err)
				}
			}
			done <- struct{}{}
		}()
	}
	if r, ok := launcher.As[launcher.LogReader](k.l); ok {
		waiting++
		rc, err := r.Logs(ctx, h, launcher.LogOptions{Follow: true})
		if err != nil {
			k.Fatalf("Logs = %v", err)
		}
		go func() {
			_, _ = io.Copy(io.Discard, rc) // it may end with an error
			_ = rc.Close()
			done <- struct{}{}
		}()
	}
	cancel()
	for range waiting {
		select {
		case <-done:
		case <-time.After(k.target.Timeout):
			k.Fatal("Watch or Logs goes on although its context ended")
		}
	}
}

func (k *kit) foreignHandle() {
	const other = launcher.Handle("arn:aws:ecs:eu-west-1:123456789012:task/../../x")
	if was, err := k.l.Terminate(k.ctx, other, 0); was {
		k.Errorf("Terminate of a foreign handle = %v, %v", was, err)
	}
	if got, err := k.l.Health(k.ctx, other); err == nil && got.Status != launcher.NotFound {
		k.Errorf("Health of a foreign handle = %+v, want NotFound or an error", got)
	}
}
