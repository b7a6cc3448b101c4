//go:build real

package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// Tests of a leadership that lasts: the leading daemon itself heals what goes wrong, without a
// restart or a take-over.

// lasts fails the test unless the daemon has led all the time.
func (p *process) lasts() {
	p.t.Helper()
	if out := p.output(); strings.Count(out, "msg=leading") != 1 || strings.Contains(out, "standing by") {
		p.t.Errorf("the lead did not last, so nothing is shown:\n%s", out)
	}
}

// The answer to the COMMIT of a claim is lost, and the connection stays open. The same leader
// launches the run, once.
func TestClaimAnswerLost(t *testing.T) {
	testenv.Beside(t, testenv.Alone) // the leadership must last
	w, d, p, daemon := behindProxy(t)
	lost := p.LoseAnswer("PIPELINE_STARTING", "commit", false)
	ids := enqueue(t, d, 2, nil)
	<-lost
	w.ended(2*time.Minute, daemon, ids...)
	daemon.lasts()
	daemon.stop()
	w.exactlyOnce(dagster.Success, ids...)
}

// The answer to the COMMIT that renews the lease is lost, and the connection stays open. The
// leadership lasts.
func TestLeaseAnswerLost(t *testing.T) {
	testenv.Beside(t, testenv.Alone) // as above
	_, d, p, daemon := behindProxy(t)
	lease := func() time.Time {
		text, err := d.Text("SELECT value FROM kvs WHERE key = ?", storage.LeaseKey)
		if err != nil {
			t.Fatal(err)
		}
		micro, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.UnixMicro(micro)
	}
	<-p.LoseAnswer(storage.LeaseKey, "commit", false)
	was := lease()
	testenv.Eventually(t, time.Minute, func() (bool, string) { // by then it still leads, or leads again
		is := lease()
		return is.Sub(was) > 2*time.Second, fmt.Sprintf("the lease ended at %s, and ends at %s", was, is)
	})
	daemon.lasts()
	daemon.stop()
}

// The answer to the COMMIT that gives a run another worker is lost. The same leader launches the
// worker.
func TestResumeAnswerLost(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Alone) // as above
	w, _, p, daemon := behindProxy(t)
	daemon.stop()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.write("slipway.yaml", strings.Replace(w.read("slipway.yaml"), fmt.Sprintf(", python: {\"*\": %q}", self), "", 1)+
		"monitoring: {max_resume_run_attempts: 1}\n")
	server := w.webserver("test/fates/fates.py")
	daemon = w.slipway()
	daemon.says("msg=leading")
	lost := p.LoseAnswer("Launching a new run worker to resume run", "commit", false)
	op := map[string]any{"config": map[string]any{"file": filepath.Join(w.home, "wrote")}}
	id, err := server.Launch(t.Context(),
		webserver.Job{Location: "fates", Name: "dies_in_the_middle",
			Config: map[string]any{"ops": map[string]any{"first_step": op, "second_step": op}}})
	if err != nil {
		t.Fatal(err)
	}
	<-lost
	w.ended(2*time.Minute, daemon, id)
	if r := w.run(id); r.Status != dagster.Success || r.Launch.Attempt != 2 || w.count(id, dagster.RunStart) != 1 {
		t.Errorf("the run is %s, launch row %v:\n%s", r.Status, r.Launch, w.story(id))
	}
	daemon.lasts()
	daemon.stop()
}

// The test claims a run in the name of the leader and does nothing more. The leader finds the run
// by itself and launches it.
func TestForgottenClaimIsTakenUp(t *testing.T) {
	testenv.Faults(t)
	for name, s := range storages() {
		t.Run(name, func(t *testing.T) {
			testenv.Beside(t, testenv.Light)
			d := s.make(t)
			w := lightWorld(t, d)
			w.write("slipway.yaml", strings.Replace(w.read("slipway.yaml"), "max_concurrent_runs: 10",
				"max_concurrent_runs: 1", 1))
			daemon := w.slipway()
			daemon.says("msg=leading")
			hold := filepath.Join(w.home, "hold")
			first := enqueueGo(t, d, 1, "while [ ! -e "+hold+" ]; do sleep 0.05; done")[0]
			w.status(daemon, first, dagster.Started)
			id := enqueue(t, d, 1, nil)[0] // it waits for a free slot
			store := w.open()
			kv, err := store.Entries(t.Context(), storage.LeaderKey)
			if err != nil {
				t.Fatal(err)
			}
			instance, err := store.InstanceID(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fence := storage.ParseFence(kv[storage.LeaderKey])
			outcomes, err := store.Claim(t.Context(), fence,
				[]storage.Claim{{Run: id, Launcher: "local", Instance: instance, Token: uuid.NewString(),
					At: time.Now().UTC().Truncate(time.Microsecond)}})
			if err != nil || !outcomes[0].Done {
				t.Fatal(outcomes, err)
			}
			if err := store.Flush(t.Context(), fence); err != nil {
				t.Fatal(err)
			}
			w.ended(3*time.Minute, daemon, id)
			w.write("hold", "")
			w.ended(time.Minute, daemon, first)
			daemon.lasts()
			daemon.stop()
			w.exactlyOnce(dagster.Success, id, first)
		})
	}
}

// batch is the batch system of the example, with faults. While SPOOL.away exists it does not
// answer. With SPOOL.lost it starts a worker, and is away before it has answered. It records its
// calls in SPOOL.asked and SPOOL.missed.
const batch = `#!/bin/sh
[ ! -e "$SPOOL.away" ] || { echo "$1" >>"$SPOOL.missed"; echo "the batch system is away" >&2; exit 1; }
code=0
%q "$@" || code=$?
echo "$1 $2 $code" >>"$SPOOL.asked"
[ "$1" != launch ] || [ ! -e "$SPOOL.lost" ] || { touch "$SPOOL.away"; exit 1; }
exit $code
`

// A target is away while a run is canceled. It forgets a worker that continues to write and then
// dies. It loses another worker before the launch of that is answered. The leading daemon brings
// each run to its end, and stops no worker without its grace period.
func TestTargetInTrouble(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Light)
	d := storagetest.NewSQLite(t)
	w := lightWorld(t, d)
	w.write("slipway.yaml", fmt.Sprintf(`terminate: {local_only: true}
web: {listen: 'off'}
monitoring: {cancel_timeout_seconds: 1}
default: batch
launchers:
  batch:
    kind: command
    settle: 2s
    config:
      launch: [./batch, launch, "{name}", "{instance}", "{label}", "--", "{command}"]
      health: [./batch, health, "{name}"]
      terminate: [./batch, terminate, "{name}", "{grace}"]
      env: {SPOOL: %q}
      promises: {unique: true, strong_read: true, local_files: true, signals_worker: true}
`, filepath.Join(w.home, "spool")))
	program := fmt.Sprintf(batch, filepath.Join(testenv.Root(t), "examples/spool/command/spool"))
	if err := errors.Join(os.Mkdir(filepath.Join(w.home, "spool"), 0o700),
		os.WriteFile(filepath.Join(w.home, "batch"), []byte(program), 0o700)); err != nil {
		t.Fatal(err)
	}
	daemon := w.slipway()
	daemon.says("msg=leading")

	// begun starts a run of two steps, which wait for NAME.first and NAME.second.
	begun := func(name string) string {
		step := func(file string) map[string]any {
			wait := `trap 'touch "$0.stopped"; exit 1' TERM; while [ ! -e "$0" ] && [ -d "${0%/*}" ]; do sleep 0.05; ` +
				`done`
			return map[string]any{"command": []string{"sh", "-c", wait, filepath.Join(w.home, file)}}
		}
		first, second := step(name+".first"), step(name+".second")
		second["needs"] = []string{"first"}
		r := dagster.NewCommandRun(uuid.NewString(), name,
			dagster.Encode(map[string]any{"steps": map[string]any{"first": first, "second": second}}), nil)
		if err := d.EnqueueRun(r); err != nil {
			t.Fatal(err)
		}
		w.status(daemon, r.ID, dagster.Started)
		return r.ID
	}
	lines := func(file, line string) int {
		text, err := os.ReadFile(filepath.Join(w.home, file))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Count(string(text), line+"\n")
	}
	folder := func(id string) string {
		return filepath.Join(w.home, "spool", launcher.ID{Run: id, Attempt: 1}.String())
	}
	kill := func(folder string) {
		text, err := os.ReadFile(filepath.Join(folder, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || syscall.Kill(-pid, syscall.SIGKILL) != nil {
			t.Fatalf("worker %q was not killed, %v", text, err)
		}
	}
	remove := func(files ...string) {
		for _, f := range files {
			if err := os.Remove(filepath.Join(w.home, f)); err != nil {
				t.Error(err)
			}
		}
	}

	forgotten := begun("forgotten")
	kept := filepath.Join(w.home, "kept")
	if err := os.Rename(folder(forgotten), kept); err != nil {
		t.Fatal(err)
	}
	canceled := begun("canceled")
	w.write("spool.away", "")
	if err := d.Event(dagster.NewEvent(w.run(canceled).Run, dagster.RunCanceling, time.Now(), "")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 2*time.Minute, func() (bool, string) { // longer than cancel_timeout_seconds
		n := lines("spool.missed", "terminate")
		return n >= 4, fmt.Sprintf("the target was asked %d times to stop the worker", n)
	})
	if r := w.run(canceled); r.Status != dagster.Canceling {
		t.Errorf("the run is %s while its worker goes on", r.Status)
	}
	remove("spool.away")
	w.ended(2*time.Minute, daemon, canceled)
	remove("canceled.first.stopped") // a killed worker does not write it

	w.write("spool.lost", "")
	vanished := begun("vanished")
	kill(folder(vanished))
	if err := os.RemoveAll(folder(vanished)); err != nil {
		t.Fatal(err)
	}
	remove("spool.lost", "spool.away")
	w.ended(2*time.Minute, daemon, vanished)

	testenv.Eventually(t, 2*time.Minute, func() (bool, string) { // the first time was before its launch
		return lines("spool.asked", "health "+filepath.Base(folder(forgotten))+" 66") > 1,
			"the target was not asked for the worker that it has forgotten"
	})
	w.write("forgotten.first", "")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return w.count(forgotten, dagster.StepSuccess) == 1, "the worker that is forgotten writes no more"
	})
	kill(kept)
	w.ended(2*time.Minute, daemon, forgotten)

	for id, want := range map[string]dagster.Status{forgotten: dagster.Failure, canceled: dagster.Canceled,
		vanished: dagster.Failure} {
		if r := w.run(id); r.Status != want || r.Launch.Attempt != 1 || w.count(id, dagster.RunStart) != 1 {
			t.Errorf("run %s is %s, want %s; launch row %v:\n%s", r.Job, r.Status, want, r.Launch, w.story(id))
		}
	}
	daemon.lasts()
	daemon.stop()
}

// Two daemons on two hosts, with the process launcher. The second daemon does not see the worker of
// the first. So it leaves the run alone and says so. The run does not fail and gets no second
// worker. Two homes take the place of two hosts.
func TestTwoHosts(t *testing.T) {
	testenv.Beside(t, testenv.Leads)
	d := storagetest.NewPostgres(t)
	a, b := lightWorld(t, d), lightWorld(t, d)
	const again = "monitoring: {deaths: [{causes: [unknown], do: again, started: again}]}\n"
	for _, w := range []*world{a, b} {
		w.write("slipway.yaml", strings.Replace(w.read("slipway.yaml"), "kind: process,", "kind: process, settle: 2s,",
			1)+again)
	}
	first := a.slipway()
	first.says("msg=leading")
	hold := filepath.Join(a.home, "hold")
	id := enqueueGo(t, d, 1, "while [ ! -e "+hold+" ]; do sleep 0.05; done")[0]
	a.status(first, id, dagster.Started)
	first.killOne()
	second := b.slipway()
	second.says("msg=leading")
	second.says("on another host")
	if err := d.Event(dagster.NewEvent(a.run(id).Run, dagster.RunCanceling, time.Now(), "")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) { // longer than the settle time
		return strings.Contains(a.story(id), "could not be asked to stop"),
			"the run's log does not say why it goes on:\n" + second.output()
	})
	if r := a.run(id); r.Status != dagster.Canceling || r.Launch.Attempt != 1 {
		t.Errorf("the run is %s, attempt %d:\n%s", r.Status, r.Launch.Attempt, a.story(id))
	}
	second.stop()
	third := a.slipway() // on the first host again
	a.ended(time.Minute, third, id)
	third.stop()
	if r := a.run(id); r.Status != dagster.Canceled || r.Launch.Attempt != 1 || a.count(id, dagster.RunStart) != 1 {
		t.Errorf("the run is %s, attempt %d:\n%s", r.Status, r.Launch.Attempt, a.story(id))
	}
}
