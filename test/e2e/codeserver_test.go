//go:build real

package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// Without a word in slipway.yaml, runs of a location with a code server of its own are executed by that server, as Dagster's
// DefaultRunLauncher has it, and the others by processes of this machine.
func TestCodeServers(t *testing.T) {
	testenv.Beside(t, testenv.Dagster)
	w := newWorld(t, "", "queue: {max_concurrent_runs: 20}\n")
	address := testenv.FreeAddress(t)
	first := w.codeServerAt(address, "served", "fates")
	server := w.serves(webserver.Options{
		Locations: []string{filepath.Join(testenv.Root(t), "test/fates/fates.py")}, Servers: map[string]string{"served": address},
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
	if ok, err := server.Terminate(t.Context(), canceled); err != nil || !ok {
		t.Errorf("Terminate in the UI = %v, %v, want success", ok, err)
	}
	p.stop() // the code server's worker goes on
	p = w.slipway()
	w.write("adopted", "")
	w.ended(2*time.Minute, p, managed, good, bad, crashed, canceled, adopted)

	// The server is started anew: what is launched meanwhile waits for it, and what it executed goes on without it.
	orphan := launch("served", "waits", "orphan")
	w.status(p, orphan, dagster.Started)
	p.stop()
	waiting := launch("served", "light", "") // while the server is there, which the webserver asks about it
	first.killOne()
	p = w.slipway()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		said := w.says(waiting)
		return strings.Contains(said, "does not answer; the run waits for it"), said + p.output()
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
		{waiting, dagster.Success, `has a code server of its own`},
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
