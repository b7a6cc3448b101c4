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

// A leader that is stopped between any two steps for longer than its lease, and goes on when a standby has taken over and done its work: it
// commits nothing any more, and what it had begun on the target leaves one worker.
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
				// What the old one is about to start nobody else starts: the launcher's lock is held.
				starting := point == failpoint.LaunchBefore || point == failpoint.LaunchDir || point == failpoint.LaunchSpawned
				old.letsGo(func() bool {
					writing := !d.Postgres() && old.locks("POSIX", filepath.Join(d.Location, "history"))
					return writing || !starting && old.locks("FLOCK", filepath.Join(w.home, "slipway", "process")) // of another of the runs
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
				// On a busy machine the young one may lose its lead, to the old one as well: with a new epoch.
				// What the next leader then writes is no fault.
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

// sleeps waits until a process is stopped.
func (p *process) sleeps() {
	p.t.Helper()
	testenv.Eventually(p.t, time.Minute, func() (bool, string) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		_, after, _ := strings.Cut(string(stat), ") ")
		return err == nil && strings.HasPrefix(after, "T"), fmt.Sprintf("it is not stopped: %s, %v\n%s", stat, err, p.output())
	})
}

// letsGo lets a stopped process go on for a moment as long as it holds a lock: of a SQLite file, where until it lets go nobody can write, Dagster
// included, and no other daemon can lead; or of a worker that it is about to start.
func (p *process) letsGo(holds func() bool) {
	p.t.Helper()
	for holds() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(rand.N(3 * time.Millisecond)) // any moment will do
		_ = p.cmd.Process.Signal(syscall.SIGSTOP)
		p.sleeps()
	}
}

// locks says whether the process alone holds a lock of a kind, POSIX as SQLite's or FLOCK, of a file or folder below a folder. It asks the kernel, which
// knows at once: whoever opens a SQLite file that is locked in an unlucky moment, workers too, is refused after 10 s ("locking protocol").
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

// epochOf reads the epoch of a leader row.
func epochOf(t *testing.T, leader string) int {
	t.Helper()
	text, _, _ := strings.Cut(leader, " ")
	epoch, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("leader row %q: %v", leader, err)
	}
	return epoch
}

// leader is the leader row.
func (w *world) leader(d *storagetest.Dagster) string {
	w.t.Helper()
	text, err := d.Text("SELECT value FROM kvs WHERE key = ?", storage.LeaderKey)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// rows is everything that stands about runs, with the epoch of each launch row.
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

// A standby leads within 3 s of the leader's death, and within a second after the lease of one has ended that cannot reach the storage any more; what was in flight
// is adopted, and no worker notices.
func TestTakeOver(t *testing.T) {
	testenv.Faults(t)
	t.Parallel()
	const most = 30 * time.Second // ten times what it takes at most: a machine may be slow
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
			if p != nil { // the third one reaches the storage through a proxy that then swallows everything
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
				third.says("lead lost")
			}
			w.write("go", "")
			w.ended(time.Minute, second, held...)
			second.stop()
			w.exactlyOnce(dagster.Success, held...)
		})
	}
}

// A standby whose question about the lease was lost asks again: it leads when it has to.
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
	time.Sleep(3 * time.Second / 2) // it asks each half second
	p.Swallow(false)
	leader.killOne()
	standby.says("msg=leading")
	ids := enqueue(t, d, 2, nil)
	w.ended(time.Minute, standby, ids...)
	standby.stop()
	w.exactlyOnce(dagster.Success, ids...)
}
