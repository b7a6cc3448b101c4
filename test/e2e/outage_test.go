//go:build real

package e2e_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// newProxy returns a proxy in front of a server. It is closed with the test.
func newProxy(t *testing.T, server string) *faultproxy.Proxy {
	t.Helper()
	p, err := faultproxy.New(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// behindProxy returns an instance on Postgres. Its daemon, which leads, and its workers reach the
// database through a proxy.
func behindProxy(t *testing.T) (*world, *storagetest.Dagster, *faultproxy.Proxy, *process) {
	t.Helper()
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.Addr()
	w := lightWorld(t, d)
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: \""+u.String()+"\"}}\n")
	daemon := w.slipway()
	daemon.says("msg=leading")
	return w, d, p, daemon
}

// While the storage is away, nothing is lost and no run fails. Workers continue, and so does the
// daemon when the storage is back.
func TestStorageIsAwayForSomeSeconds(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	w, d, p, daemon := behindProxy(t)
	before := enqueue(t, d, 3, nil)
	w.ended(time.Minute, daemon, before...)
	p.Cut(true)
	during := enqueue(t, d, 3, nil)
	daemon.says("standing by")
	p.Cut(false)
	after := enqueue(t, d, 3, map[string]string{"fate": "die"})
	w.ended(time.Minute, daemon, append(during, after...)...)
	daemon.stop()
	w.exactlyOnce(dagster.Success, append(before, during...)...)
	w.exactlyOnce(dagster.Failure, after...)
}

// Whatever the storage does for some seconds, the daemon and the workers continue afterwards.
// Nothing crashes, no run is lost, none runs twice.
func TestStorageTrouble(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	type trouble struct{ name, begin, end string }
	const setting = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I %s', current_database()); END $$"
	const away = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid " +
		"<> pg_backend_pid()"
	for _, c := range []trouble{
		{"read-only", fmt.Sprintf(setting, "SET default_transaction_read_only = on"),
			fmt.Sprintf(setting, "RESET default_transaction_read_only")},
		{"statements that are timed out", fmt.Sprintf(setting, "SET statement_timeout = ''1ms''"),
			fmt.Sprintf(setting, "RESET statement_timeout")},
	} {
		t.Run("postgres/"+c.name, func(t *testing.T) {
			testenv.Beside(t, testenv.Light)
			d := storagetest.NewPostgres(t)
			w := lightWorld(t, d)
			w.troubled(d, func() {
				for _, q := range []string{c.begin, away} { // new sessions have the setting
					if err := d.Exec(q); err != nil {
						t.Fatal(err)
					}
				}
			}, func() {
				for _, q := range []string{c.end, away} {
					if err := d.Exec(q); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
	t.Run("sqlite/locked", func(t *testing.T) {
		testenv.Beside(t, testenv.Light)
		d := storagetest.NewSQLite(t)
		w := lightWorld(t, d)
		lock := exec.Command(filepath.Join(testenv.DagsterBin(t), "python"), "-c", `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
`, filepath.Join(d.Location, "history/runs.db"))
		in, err := lock.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := lock.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		w.troubled(d, func() {
			if err := lock.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}, func() {
			if err := errors.Join(in.Close(), lock.Wait()); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("sqlite/moved", func(t *testing.T) {
		testenv.Beside(t, testenv.Light)
		d := storagetest.NewSQLite(t)
		w := lightWorld(t, d)
		history := filepath.Join(d.Location, "history")
		move := func(from, to string) func() {
			return func() {
				if err := os.Rename(from, to); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.troubled(d, move(history, history+".away"), move(history+".away", history))
	})
	t.Run("sqlite/replaced", func(t *testing.T) {
		testenv.Beside(t, testenv.Light)
		d := storagetest.NewSQLite(t)
		w := lightWorld(t, d)
		runs := filepath.Join(d.Location, "history/runs.db")
		w.troubled(d, func() {
			err := errors.Join(d.Exec("VACUUM INTO ?", runs+".copy"), os.Rename(runs+".copy", runs),
				os.RemoveAll(runs+"-wal"), os.RemoveAll(runs+"-shm"))
			if err != nil {
				t.Fatal(err)
			}
		}, func() {
			*d = *storagetest.Open(t, d.Location) // of the file that now has this name
		})
	})
}

// troubled runs a daemon while the storage has a fault for longer than the lease.
func (w *world) troubled(d *storagetest.Dagster, begin, end func()) {
	w.t.Helper()
	p := w.slipway()
	p.says("msg=leading")
	hold := filepath.Join(w.home, "go")
	held := enqueueGo(w.t, d, 2, "while [ ! -e "+hold+" ]; do sleep 0.05; done")
	for _, id := range held {
		w.status(p, id, dagster.Started)
	}
	begin()
	w.write("go", "")           // their workers end during the fault
	time.Sleep(4 * time.Second) // longer than the lease
	end()
	after := enqueue(w.t, d, 2, nil)
	w.ended(2*time.Minute, p, append(after, held...)...)
	p.stop()
	w.exactlyOnce(dagster.Success, append(after, held...)...)
}

// The shard of one run is locked, as if a worker of Dagster's froze during a write. No other run
// waits for it.
func TestLockedShardHoldsUpNoOtherRun(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Light)
	d := storagetest.NewSQLite(t)
	w := lightWorld(t, d)
	daemon := w.slipway()
	daemon.says("msg=leading")
	stuck := enqueueGo(t, d, 1, "while [ ! -e "+filepath.Join(w.home, "never")+" ]; do sleep 0.05; done")[0]
	w.status(daemon, stuck, dagster.Started)
	shard, err := sql.Open("sqlite", "file:"+filepath.Join(d.Location, "history/runs", stuck+".db")+
		"?_txlock=immediate&_pragma=busy_timeout(30000)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shard.Close() }()
	lock, err := shard.Begin()
	if err != nil {
		t.Fatal(err)
	}
	w.start("terminate", nil, testenv.Build(t, "slipway"), "runs", "terminate", stuck) // commits an event of that run
	w.status(daemon, stuck, dagster.Canceling)
	began := time.Now()
	others := enqueue(t, d, 6, nil)
	w.ended(time.Minute, daemon, others...)
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("six other runs took %v while one shard was locked", took)
	}
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	w.ended(time.Minute, daemon, stuck)
	daemon.stop()
	w.exactlyOnce(dagster.Success, others...)
	if r := w.run(stuck); r.Status != dagster.Canceled {
		t.Errorf("the run with the locked shard is %s, want CANCELED:\n%s", r.Status, w.story(stuck))
	}
}

// The answer of the gate to a worker is lost, with the connection or without. The worker asks
// again, learns that it has passed, and executes.
func TestGateAnswerIsLost(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.Addr()
	w := newWorld(t, u.String(),
		"launchers: {local: {kind: process, worker_gate: 'on'}}\nallow_secrets_in_argv: true\n")
	server := w.webserver("test/fates/fates.py")
	daemon := w.slipway()
	daemon.says("msg=leading")
	python := func() string {
		id, err := server.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	command := func() string { return w.enqueued("--", "true") }
	for _, c := range []struct {
		enqueue func() string
		last    string // what the worker sends when it is about to take the row
	}{
		{command, "commit"}, {python, "taken/"},
	} {
		for _, cut := range []bool{true, false} {
			lost := p.LoseAnswer("taken/", c.last, cut)
			id := c.enqueue()
			w.ended(2*time.Minute, daemon, id)
			select {
			case <-lost:
			default:
				t.Error("no worker asked at its gate")
			}
			w.exactlyOnce(dagster.Success, id)
		}
	}
	daemon.stop()
}

// A worker starts while everything that it sends to Postgres is swallowed. It continues when that
// has ended, although some of its connections never get an answer.
func TestWorkersBehindAHole(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Light)
	w, d, p, daemon := behindProxy(t)
	var all []string
	for range 4 {
		ids := enqueueGo(t, d, 8, "true")
		time.Sleep(rand.N(250 * time.Millisecond)) // any moment is fine
		p.Swallow(true)
		time.Sleep(time.Second)
		p.Swallow(false)
		w.ended(90*time.Second, daemon, ids...)
		all = append(all, ids...)
	}
	daemon.stop()
	w.exactlyOnce(dagster.Success, all...)
}
