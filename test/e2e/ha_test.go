//go:build real

package e2e_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// A leader is stopped between any two steps for longer than its lease. It continues when a standby
// has taken over and done its work. It commits nothing any more, and what it had begun on the
// target leaves one worker.
func TestStoppedAtEveryFailpoint(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	for name, s := range storages() {
		for _, point := range failpoint.Points() {
			t.Run(name+"/"+string(point), func(t *testing.T) {
				testenv.Beside(t, testenv.Leads)
				d := s.make(t)
				w := lightWorld(t, d)
				ids, attempts, want := w.fated(d, point)
				old := w.armed("stop " + point)
				old.sleeps()
				// No other daemon starts what the old one is about to start, because the lock of
				// the launcher is held.
				starting := point == failpoint.LaunchBefore || point == failpoint.LaunchDir ||
					point == failpoint.LaunchSpawned
				old.letsGo(func() bool {
					writing := !d.Postgres() && old.locks("POSIX", filepath.Join(d.Location, "history"))
					// The FLOCK may be that of another of the runs.
					return writing || !starting && old.locks("FLOCK", filepath.Join(w.home, "slipway", "process"))
				})
				young := w.slipway()
				young.says("msg=leading")
				more := enqueue(t, d, 2, nil)
				w.ended(time.Minute, young, more...)
				if !starting {
					w.ended(time.Minute, young, ids...)
					w.exactly(attempts, want, ids...)
				}
				leader := w.leader(d)
				before := w.rows(d, ids...)
				if err := old.cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				old.says("standing by")
				last := enqueue(t, d, 1, nil)
				w.ended(time.Minute, young, append(last, ids...)...)
				old.stop()
				young.stop()
				// On a busy machine the young daemon may lose its lead, even to the old one, but
				// with a new epoch. It is no fault if the next leader then writes.
				leads := w.leader(d)
				if leads != leader && epochOf(t, leads) <= epochOf(t, leader) {
					t.Errorf("the leader is %s, was %s", leads, leader)
				}
				if now := w.rows(d, ids...); !starting && leads == leader && now != before {
					t.Errorf("the old leader wrote. Before:\n%s\nafter:\n%s\nits log:\n%s", before, now, old.output())
				}
				w.exactly(attempts, want, ids...)
				w.exactlyOnce(dagster.Success, append(more, last...)...)
				if t.Failed() {
					t.Logf("the young one's log:\n%s", young.output())
				}
			})
		}
	}
}

// sleeps waits until the process is stopped.
func (p *process) sleeps() {
	p.t.Helper()
	testenv.Eventually(p.t, time.Minute, func() (bool, string) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		_, after, _ := strings.Cut(string(stat), ") ")
		return err == nil && strings.HasPrefix(after, "T"),
			fmt.Sprintf("it is not stopped: %s, %v\n%s", stat, err, p.output())
	})
}

// letsGo lets a stopped process continue for short moments while it holds a lock. It may be the
// lock of a SQLite file: until that is released no other process can write, not even Dagster, and
// no other daemon can lead. Or it is the lock of a worker that the process is about to start.
func (p *process) letsGo(holds func() bool) {
	p.t.Helper()
	for holds() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(rand.N(3 * time.Millisecond)) // any moment is fine
		_ = p.cmd.Process.Signal(syscall.SIGSTOP)
		p.sleeps()
	}
}

// locks reports whether the process holds an exclusive lock on a file or folder below folder. kind
// is POSIX, as SQLite uses, or FLOCK. It asks the kernel, because that answers at once. Time
// matters: a process, even a worker, that opens a locked SQLite file at the wrong moment is refused
// after 10 s ("locking protocol").
func (p *process) locks(kind, folder string) bool {
	p.t.Helper()
	table, err := os.ReadFile("/proc/locks")
	if err != nil {
		p.t.Fatal(err)
	}
	held := map[uint64]bool{}
	for _, line := range strings.Split(string(table), "\n") {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
		if len(f) < 6 || f[1] != kind || f[3] != "WRITE" || f[4] != strconv.Itoa(p.cmd.Process.Pid) {
			continue
		}
		if inode, err := strconv.ParseUint(f[5][strings.LastIndexByte(f[5], ':')+1:], 10, 64); err == nil {
			held[inode] = true
		}
	}
	found := false
	err = filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went away meanwhile
		}
		if info, err := d.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok && held[s.Ino] {
				found = true
			}
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return found
}

// epochOf returns the epoch in a leader row.
func epochOf(t *testing.T, leader string) int {
	t.Helper()
	text, _, _ := strings.Cut(leader, " ")
	epoch, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("leader row %q: %v", leader, err)
	}
	return epoch
}

// leader returns the leader row.
func (w *world) leader(d *storagetest.Dagster) string {
	w.t.Helper()
	text, err := d.Text("SELECT value FROM kvs WHERE key = ?", storage.LeaderKey)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// rows returns everything that is stored about runs, with the epoch of each launch row.
func (w *world) rows(d *storagetest.Dagster, ids ...string) string {
	w.t.Helper()
	var b strings.Builder
	for _, id := range ids {
		r := w.run(id)
		fmt.Fprintln(&b, id, r.Status, r.Updated, r.Launch, r.Handle, r.Deaths, r.Tags)
		for _, e := range w.events(id) {
			fmt.Fprintln(&b, "  ", e.Time, e.Type, e.Message)
		}
	}
	return b.String()
}

// A standby leads within 3 s after the leader has died. If instead the leader cannot reach the
// storage any more, a standby leads within a second after the leader's lease has ended. Runs in
// flight are adopted, and no worker notices.
func TestTakeOver(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	const most = 30 * time.Second // ten times the maximum, because a machine may be slow
	for name, s := range storages() {
		t.Run(name, func(t *testing.T) {
			testenv.Beside(t, testenv.Leads)
			d := s.make(t)
			w := lightWorld(t, d)
			var p *faultproxy.Proxy
			if d.Postgres() {
				u, err := url.Parse(d.Location)
				if err != nil {
					t.Fatal(err)
				}
				p = newProxy(t, u.Host)
			}
			first := w.slipway()
			first.says("msg=leading")
			second := w.slipway()
			second.says("standing by")
			go1 := w.home + "/go"
			held := enqueueGo(t, d, 2, "while [ ! -e "+go1+" ]; do sleep 0.05; done")
			for _, id := range held {
				w.status(first, id, dagster.Started)
			}
			first.killOne()
			at := time.Now()
			second.says("msg=leading")
			t.Logf("led %s after the kill", time.Since(at).Round(time.Millisecond))
			if since := time.Since(at); since > most {
				t.Errorf("the standby led %s after the leader was killed", since)
			}
			// The third daemon reaches the storage through a proxy, which then swallows everything.
			if p != nil {
				second.stop()
				u, err := url.Parse(d.Location)
				if err != nil {
					t.Fatal(err)
				}
				u.Host = p.Addr()
				w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: \""+u.String()+"\"}}\n")
				third := w.slipway()
				third.says("msg=leading")
				w.write("dagster.yaml", parked+w.storageYAML())
				second = w.slipway()
				second.says("standing by")
				p.Swallow(true)
				at = time.Now()
				second.says("msg=leading")
				t.Logf("led %s after the packets of the leader were dropped", time.Since(at).Round(time.Millisecond))
				third.says("leadership lost")
			}
			w.write("go", "")
			w.ended(time.Minute, second, held...)
			second.stop()
			w.exactlyOnce(dagster.Success, held...)
		})
	}
}

// A standby whose request for the lease was lost asks again, so it leads when that is necessary.
func TestStandbyAsksAgain(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Light)
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	w := lightWorld(t, d)
	leader := w.slipway()
	leader.says("msg=leading")
	u.Host = p.Addr()
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: \""+u.String()+"\"}}\n")
	standby := w.slipway()
	standby.says("standing by")
	p.Swallow(true)
	time.Sleep(3 * time.Second / 2) // it asks every half second
	p.Swallow(false)
	leader.killOne()
	standby.says("msg=leading")
	ids := enqueue(t, d, 2, nil)
	w.ended(time.Minute, standby, ids...)
	standby.stop()
	w.exactlyOnce(dagster.Success, ids...)
}
