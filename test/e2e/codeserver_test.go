//go:build real

package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// If slipway.yaml does not mention them, code servers execute the runs of their own location, as
// with Dagster's DefaultRunLauncher. Processes of this machine execute the other runs.
func TestCodeServers(t *testing.T) {
	testenv.Beside(t, testenv.Dagster)
	w := newWorld(t, "", "queue: {max_concurrent_runs: 20}\n")
	address := testenv.FreeAddress(t)
	first := w.codeServerAt(address, "served", "fates")
	server := w.serves(webserver.Options{
		Locations: []string{filepath.Join(testenv.Root(t), "test/fates/fates.py")},
		Servers:   map[string]string{"served": address},
	})
	w.stockDaemon()
	p := w.slipway()
	launch := func(location, job, until string) string {
		t.Helper()
		j := webserver.Job{Location: location, Name: job}
		if until != "" {
			j.Config = waitsFor(filepath.Join(w.home, until)).Config
		}
		id, err := server.Launch(t.Context(), j)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}

	managed := launch("fates", "light", "")
	good := launch("served", "light", "")
	bad := launch("served", "fails", "")
	crashed := launch("served", "kills_itself", "")
	canceled := launch("served", "waits", "never")
	adopted := launch("served", "waits", "adopted")
	w.status(p, canceled, dagster.Started)
	w.status(p, adopted, dagster.Started)
	w.terminate(server, canceled)
	p.stop() // the worker of the code server continues
	p = w.slipway()
	w.write("adopted", "")
	w.ended(2*time.Minute, p, managed, good, bad, crashed, canceled, adopted)

	// The server is restarted. A run that is launched in the meantime waits for it. A run that it
	// already executed continues without it.
	orphan := launch("served", "waits", "orphan")
	w.status(p, orphan, dagster.Started)
	p.stop()
	waiting := launch("served", "light", "") // while the server is there, because the webserver asks it about the job
	first.killOne()
	p = w.slipway()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		said := w.says(waiting)
		return strings.Contains(said, "the code server at "+address+" does not answer"), said + p.output()
	})
	second := w.codeServerAt(address, "served", "fates")
	w.write("orphan", "")
	w.ended(2*time.Minute, p, waiting, orphan)

	for _, c := range []struct {
		id   string
		want dagster.Status
		says string
	}{
		{managed, dagster.Success, `launcher "local"`},
		{good, dagster.Success, `[Slipway] The code server of location "served" at ` + address + ` executes the run.`},
		{bad, dagster.Failure, `launcher "code-server"`},
		{crashed, dagster.Failure, "was terminated by signal 9"}, // the code server's own words
		{canceled, dagster.Canceled, ""},
		{adopted, dagster.Success, ""},
		{waiting, dagster.Success, `has its own code server`},
		{orphan, dagster.Success, ""},
	} {
		r, said := w.run(c.id), w.says(c.id)
		if r.Status != c.want || !strings.Contains(said, c.says) {
			t.Errorf("%s is %s, want %s and %q:\n%s", r.Job, r.Status, c.want, c.says, said)
		}
		if n := w.count(c.id, dagster.RunStart); n != 1 {
			t.Errorf("%s was started %d times", r.Job, n)
		}
	}
	if t.Failed() {
		t.Log(p.output(), second.output())
	}
}

// One code server is down and one hangs. They hold up only their own runs, although these runs
// alone would fill the limit. Their runs wait in the queue, where they can be canceled, and their
// logs say what they wait for. They are launched when the server is back. Status, doctor and
// metrics name the server.
func TestCodeServersFailOneByOne(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Dagster)
	const each = 3
	w := newWorld(t, "", "queue: {max_concurrent_runs: 3}\n")
	servers, running, runs := map[string]string{}, map[string]*process{}, map[string][]string{}
	for _, name := range []string{"down", "hung", "well"} {
		servers[name] = testenv.FreeAddress(t)
		running[name] = w.codeServerAt(servers[name], name, "fates")
	}
	server := w.serves(webserver.Options{Servers: servers})
	for _, name := range []string{"down", "hung", "well"} { // in this order
		for range each {
			id, err := server.Launch(t.Context(), webserver.Job{Location: name, Name: "light"})
			if err != nil {
				t.Fatal(err)
			}
			runs[name] = append(runs[name], id)
		}
	}
	running["down"].killOne()
	freeze := func(signal syscall.Signal) {
		if err := syscall.Kill(running["hung"].cmd.Process.Pid, signal); err != nil {
			t.Fatal(err)
		}
	}
	freeze(syscall.SIGSTOP)
	p := w.slipway()
	w.ended(2*time.Minute, p, runs["well"]...)
	canceled := runs["down"][0]
	w.terminate(server, canceled)
	w.ended(10*time.Second, p, canceled)
	for name, why := range map[string]string{"down": "refused", "hung": "does not answer"} {
		for _, id := range runs[name] {
			if id == canceled {
				continue
			}
			testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
				said := w.says(id)
				return w.run(id).Status == dagster.Queued &&
						strings.Contains(said, servers[name]+" has failed since ") && strings.Contains(said, why),
					said + p.output()
			})
			if n := strings.Count(w.says(id), "waits in the queue"); n != 1 {
				t.Errorf("the log of a run says %d times that it waits:\n%s", n, w.says(id))
			}
		}
	}
	sees := func(what, text string, want ...string) {
		t.Helper()
		for _, s := range want {
			if !strings.Contains(text, s) {
				t.Errorf("%s does not say %q:\n%s", what, s, text)
			}
		}
	}
	text, err := w.command("status", "--json")
	var st daemon.Status
	if err != nil || json.Unmarshal([]byte(text), &st) != nil {
		t.Fatalf("status: %v\n%s", err, text)
	}
	sick := map[string]bool{}
	for _, l := range st.Launchers {
		sick[l.Place] = l.Sick && l.Error != "" && !l.Since.IsZero()
	}
	if !sick[servers["down"]] || !sick[servers["hung"]] || sick[servers["well"]] || sick[""] {
		t.Errorf("status: sick are %v of %v", sick, servers)
	}
	text, _ = w.command("status")
	sees("status", text, "code-server at "+servers["down"], "sick since ")
	text, _ = w.command("doctor") // its exit code says that something must be done
	sees("doctor", text, "launcher code-server at "+servers["down"]+" has been sick since ",
		"launcher code-server at "+servers["hung"])
	if strings.Contains(text, "launcher code-server: no problem found") {
		t.Errorf("doctor found nothing against a launcher that is sick:\n%s", text)
	}
	answer, err := http.Get(st.Leader.Address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := io.ReadAll(answer.Body)
	if err != nil || answer.Body.Close() != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]int{"down": 1, "hung": 1, "well": 0} {
		sees("metrics", string(metrics), fmt.Sprintf("slipway_launcher_sick{launcher=%q,place=%q} %d",
			"code-server", servers[name], v))
	}

	freeze(syscall.SIGCONT)
	w.codeServerAt(servers["down"], "down", "fates")
	w.ended(2*time.Minute, p, append(runs["hung"], runs["down"]...)...)
	for name, ids := range runs {
		for _, id := range ids {
			if r := w.run(id); id != canceled && (r.Status != dagster.Success || w.count(id, dagster.RunStart) != 1) {
				t.Errorf("a run of %s is %s, started %d times:\n%s", name, r.Status, w.count(id, dagster.RunStart),
					w.says(id))
			}
		}
	}
}
