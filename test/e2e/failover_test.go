//go:build real

package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// server is a Postgres server of one test.
type server struct {
	t         *testing.T
	dir, addr string
}

// pg runs a program of Postgres as a user that Postgres accepts.
func pg(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	command := append(strings.Fields(os.Getenv("SLIPWAY_TEST_PG_RUN")),
		append([]string{filepath.Join(os.Getenv("SLIPWAY_TEST_PG_BIN"), program)}, args...)...)
	cmd := exec.Command(command[0], command[1:]...) //nolint:gosec // what hack/with-postgres names
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log")) // for the message only
		t.Fatalf("%s %s: %v\n%s\n%s", program, args, err, out, log)
	}
}

// start starts the server on a free port, with settings in addition to those of its folder.
func (s *server) start(settings string) {
	s.t.Helper()
	s.addr = testenv.FreeAddress(s.t)
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ctl("-l", filepath.Join(s.dir, "log"), "-w",
		"-o", fmt.Sprintf("-p %s -k %s -c listen_addresses=%s %s", port, s.dir, host, settings), "start")
	s.t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(s.dir, "data/postmaster.pid")); err == nil {
			s.ctl("-m", "immediate", "-w", "stop")
		}
	})
}

func (s *server) ctl(args ...string) {
	s.t.Helper()
	pg(s.t, s.dir, "pg_ctl", append([]string{"-D", filepath.Join(s.dir, "data")}, args...)...)
}

// newServer returns a server whose folder belongs to the user of Postgres.
func newServer(t *testing.T) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "slipway-pg-") // t.TempDir is in a folder that only this user can enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if out, err := exec.Command("chown", "postgres", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return &server{t: t, dir: dir}
}

// The server dies, its standby is promoted, and the address leads to the standby. Everything that
// was committed is kept. Queued runs, runs in flight and their workers continue.
func TestPostgresFailsOver(t *testing.T) {
	testenv.Faults(t)
	testenv.Postgres(t)
	if os.Getenv("SLIPWAY_TEST_PG_BIN") == "" {
		testenv.Missing(t, "postgres",
			"SLIPWAY_TEST_PG_BIN names no folder of a server's programs: hack/with-postgres does, where it has them")
	}
	testenv.Beside(t, testenv.Light)
	primary, standby := newServer(t), newServer(t)
	pg(t, primary.dir, "initdb", "-D", filepath.Join(primary.dir, "data"), "-U", "slipway", "-A", "trust", "-E", "UTF8",
		"--no-sync", "--locale=C.UTF-8")
	primary.start("-c fsync=off -c synchronous_standby_names=*")
	host, port, err := net.SplitHostPort(primary.addr)
	if err != nil {
		t.Fatal(err)
	}
	pg(t, standby.dir, "pg_basebackup", "-h", host, "-p", port, "-U", "slipway",
		"-D", filepath.Join(standby.dir, "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync")
	standby.start("-c fsync=off")

	at := func(addr string) string { return "postgresql://slipway@" + addr + "/postgres" }
	if err := postgres.Create(t.Context(), config.Secret(at(primary.addr))); err != nil {
		t.Fatal(err)
	}
	d, err := storagetest.Connect(at(primary.addr))
	if err != nil {
		t.Fatal(err)
	}
	proxy := newProxy(t, primary.addr)
	w := lightWorld(t, d)
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: \""+at(proxy.Addr())+"\"}}\n")
	daemon := w.slipway()
	daemon.says("msg=leading")
	hold := filepath.Join(w.home, "go")
	running := enqueueGo(t, d, 6, "while [ ! -e "+hold+" ]; do sleep 0.05; done")
	for _, id := range running {
		w.status(daemon, id, dagster.Started)
	}
	moving := enqueueGo(t, d, 40, "sleep 0.2") // some queued, some started, when the server dies
	time.Sleep(300 * time.Millisecond)         // any moment is fine
	primary.ctl("-m", "immediate", "-w", "stop")
	w.write("go", "") // their workers end while there is no storage
	standby.ctl("-w", "promote")
	proxy.To(standby.addr)
	if err := w.store.Close(); err != nil {
		t.Error(err)
	}
	w.store, w.location = nil, at(standby.addr)
	if d, err = storagetest.Connect(w.location); err != nil {
		t.Fatal(err)
	}
	after := enqueueGo(t, d, 3, "true")
	all := append(append(running, moving...), after...)
	w.ended(2*time.Minute, daemon, all...)
	daemon.stop()
	w.exactlyOnce(dagster.Success, all...)
	if t.Failed() {
		for _, id := range all {
			if w.run(id).Status != dagster.Success {
				t.Logf("run %s:\n%s", id, w.story(id))
			}
		}
		t.Logf("the daemon's log:\n%s", daemon.output())
	}
}
