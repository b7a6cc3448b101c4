//go:build real

package e2e_test

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/testenv"
)

// create makes the storage of a world without Dagster.
func (w *world) create() {
	w.t.Helper()
	var err error
	if strings.HasPrefix(w.location, "postgresql://") {
		err = postgres.Create(w.t.Context(), config.Secret(w.location))
	} else {
		err = sqlite.Create(w.t.Context(), w.location)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// cli runs a command of the built program and decodes its JSON output.
func (w *world) cli(into any, args ...string) {
	w.t.Helper()
	out, err := exec.Command(testenv.Build(w.t, "slipway"),
		append([]string{"--home", w.home, "--json"}, args...)...).Output()
	if err != nil {
		w.t.Fatalf("slipway %v: %v\n%s", args, err, out)
	}
	if err := json.Unmarshal(out, into); err != nil {
		w.t.Fatalf("slipway %v: %v\n%s", args, err, out)
	}
}

func (w *world) enqueued(args ...string) string {
	w.t.Helper()
	var got struct {
		IDs []string `json:"run_ids"`
	}
	w.cli(&got, append([]string{"runs", "enqueue"}, args...)...)
	return got.IDs[0]
}

const etlSteps = `{steps: {
  extract: {command: [sh, -c, "echo rows; echo a warning >&2"]},
  flaky: {command: [sh, -c, "test $DAGSTER_STEP_ATTEMPT = 2"], retries: 1, needs: [extract]},
  load: {command: [sh, -c, "echo $MODE"], env: {MODE: full}, needs: [flaky]}}}`

// Slipway makes a storage, adds runs to it, and executes them with its own worker. Dagster treats
// it as its own: its pages show the runs without error, its live log has our events, and it
// launches further runs there.
func TestDagsterReadsWhatWeWrote(t *testing.T) {
	halves(t, func(t *testing.T, location string) {
		w := newWorld(t, location, "")
		w.create()
		w.write("etl.yaml", etlSteps)
		p := w.slipway()
		good := w.enqueued("--job", "etl", "--tag", "team=data", "--steps", filepath.Join(w.home, "etl.yaml"))
		bad := w.enqueued("--", "sh", "-c", "echo giving up >&2; exit 7")
		slow := w.enqueued("--", "sh", "-c", "while test ! -e "+w.home+"/go; do sleep 0.05; done")
		w.ended(time.Minute, p, good, bad)
		w.status(p, slow, dagster.Started)
		server := w.webserver("test/fates/fates.py")

		follow, stop := context.WithCancel(t.Context())
		defer stop()
		seen := make(chan string, 100)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(seen)
			for m, err := range liveLog(follow, server, slow) {
				if err != nil {
					t.Error("live log: ", err)
					return
				}
				seen <- m
			}
		})
		await(t, seen, "STEP_START") // from here the webserver follows the log
		w.write("go", "")
		await(t, seen, "RUN_SUCCESS")
		stop()
		wg.Wait()

		runs, err := server.Runs(t.Context(), 10)
		if err != nil || len(runs) != 3 {
			t.Fatalf("the runs page shows %v, %v, want 3 runs", runs, err)
		}
		for _, id := range []string{good, bad, slow} {
			if _, err := server.Events(t.Context(), id); err != nil {
				t.Error(err)
			}
			if err := server.RunPage(t.Context(), id); err != nil {
				t.Error(err)
			}
			w.endedWell(id, "", map[string]dagster.Status{good: dagster.Success, bad: dagster.Failure,
				slow: dagster.Success}[id])
			if s := w.run(id).Launch.State; s != storage.Taken {
				t.Errorf("the launch row of %s is %s, want taken", id, s)
			}
		}
		steps, err := server.Steps(t.Context(), good)
		if err != nil || steps["extract"] != "SUCCESS" || steps["flaky"] != "SUCCESS" || steps["load"] != "SUCCESS" {
			t.Errorf("steps of the good run: %v, %v", steps, err)
		}
		if steps, err = server.Steps(t.Context(), bad); err != nil || steps["run"] != "FAILURE" {
			t.Errorf("steps of the bad run: %v, %v", steps, err)
		}
		stdout, stderr, err := server.Captured(t.Context(), good)
		if err != nil || stdout != "rows\nfull\n" || stderr != "a warning\n" {
			t.Errorf("captured %q and %q, %v", stdout, stderr, err)
		}
		if f := w.events(bad, dagster.StepFailure); len(f) != 1 || f[0].Error() == nil ||
			!strings.Contains(f[0].Error().Message, "exit code 7") {
			t.Errorf("the failure of the bad step: %+v", f)
		}
		id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
		if err != nil {
			t.Fatal(err)
		}
		copied := w.enqueued("--like", id)
		w.ended(2*time.Minute, p, id, copied)
		w.endedWell(id, "light", dagster.Success)
		w.endedWell(copied, "light", dagster.Success)
		p.stop()
	})
}

// await reads messages until one begins with prefix.
func await(t *testing.T, seen <-chan string, prefix string) {
	t.Helper()
	deadline := time.After(time.Minute)
	var all []string
	for {
		select {
		case m, ok := <-seen:
			if !ok {
				t.Fatalf("the live log ended before %s: %v", prefix, all)
			}
			if all = append(all, m); strings.HasPrefix(m, prefix) {
				return
			}
		case <-deadline:
			t.Fatalf("no %s in the live log: %v", prefix, all)
		}
	}
}

// Two workers of one launch row start at the same moment. One executes, the other leaves.
func TestGateLetsOneWorkerPass(t *testing.T) {
	halves(t, func(t *testing.T, location string) {
		w := newWorld(t, location, "")
		server := w.webserver("test/fates/fates.py")
		in, err := instance.Load(w.home, all.Kinds("agent"), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		bin := testenv.Build(t, "slipway-worker")
		b := &worker.Builder{Instance: "test", GoWorker: []string{bin}, Files: &worker.Machine{}}
		s := w.open()
		fence, leads, err := s.Lead(t.Context(), "slipway-test", 10*time.Minute)
		if err != nil || !leads {
			t.Fatal(leads, err)
		}
		pair := func(id string) {
			t.Helper()
			out, err := s.Claim(t.Context(), fence,
				[]storage.Claim{{Run: id, Launcher: "local", Instance: "test", Token: uuid.NewString(),
					At: time.Now()}})
			if err != nil || !out[0].Done {
				t.Fatal(out, err)
			}
			l := out[0].Launch
			target := worker.Target{Name: "local", Ref: in.WorkerRef(),
				Traits: launcher.Traits{LocalFiles: true, Gate: true}, Gate: worker.GateOn}
			req, err := b.Request(w.run(id).Run, worker.Attempt{Number: l.Attempt, Token: l.Token, At: l.At}, target)
			if err != nil {
				t.Fatal(err)
			}
			var env []string
			for _, e := range req.Env {
				env = append(env, e.Name+"="+e.Value)
			}
			for _, p := range []*process{w.start("worker", env, req.Command...),
				w.start("worker", env, req.Command...)} {
				<-p.done
				if code := p.cmd.ProcessState.ExitCode(); code != 0 {
					t.Errorf("a worker ended with %d:\n%s", code, p.output())
				}
			}
			r := w.run(id)
			if n := w.count(id, dagster.RunStart); n != 1 || r.Status != dagster.Success ||
				r.Launch.State != storage.Taken {
				t.Errorf("run %s: %d starts, %s, launch row %s\n%s", id, n, r.Status, r.Launch.State, w.story(id))
			}
			if n := strings.Count(w.story(id), "Started process for run"); n != 1 {
				t.Errorf("run %s: %d workers passed the gate", id, n)
			}
		}
		for range 2 {
			id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
			if err != nil {
				t.Fatal(err)
			}
			pair(id)
		}
		for range 10 {
			pair(w.enqueued("--", "true"))
		}
	})
}
