package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/test/testenv"
)

// write replaces slipway.yaml.
func rewrite(t *testing.T, home, slipwayYAML string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(home, "slipway.yaml"), []byte(slipwayYAML), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d *daemonProcess) hangup() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// gate is a command that ends once its file is there.
func gate(t *testing.T) (open func(), command []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "open")
	return func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Error(err)
		}
	}, []string{"--", "sh", "-c", "while [ ! -e " + file + " ]; do sleep 0.05; done"}
}

// SIGHUP applies new settings (limits, launchers, the log's level) while the daemon keeps its
// leadership and its workers continue. Settings that are wrong, or that need a restart, change
// nothing.
func TestReload(t *testing.T) {
	testenv.Beside(t, testenv.Leads)
	home := parked(t, false, "queue: {max_concurrent_runs: 1}\n")
	d := launch(t, home)
	d.says(1, "msg=leading")
	open, command := gate(t)
	first := enqueued(t, home, command...)
	status(t, home, first, "STARTED")
	second := enqueued(t, home, "--", "true")

	for i, c := range []struct{ settings, says string }{
		{"queue: {max_concurrent_runs: many}\n", "slipway.yaml:1:30: queue.max_concurrent_runs"},
		{"queue: {max_concurrent_runs: 2}\nweb: {listen: off}\n", "web: to change this, restart slipway daemon"},
		{"queue: {max_concurrent_runs: 2}\ninstance_id: other\n",
			"instance_id: to change this, restart slipway daemon"},
	} {
		rewrite(t, home, c.settings)
		d.hangup()
		d.says(i+1, "the previous ones stay in force")
		d.says(1, c.says)
	}
	testenv.LeadLasts(t, d.output())

	const settings = "queue: {max_concurrent_runs: 2}\nlaunchers: {local: {kind: process}, spare: {kind: process}}\n"
	rewrite(t, home, settings)
	d.hangup()
	status(t, home, second, "SUCCESS")
	st := statusOf(t, home)
	if len(st.Launchers) != 2 || st.Launchers[1].Name != "spare" ||
		st.Leader.Epoch != 1+int64(testenv.LeadLasts(t, d.output())) {
		t.Errorf("status after a reload = %+v", st)
	}
	rewrite(t, home, settings+"log_level: warn\nmaintenance: [{cron: '0 0 * * *', for: 24h}]\n")
	d.hangup()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		st := statusOf(t, home)
		return len(st.Pauses) == 1, fmt.Sprint(st)
	})
	logged := d.output()
	if out, err := built(t, home, "unpause"); err != nil {
		t.Errorf("unpause = %v\n%s", err, out)
	}
	status(t, home, enqueued(t, home, "--", "true"), "SUCCESS")
	if more := strings.TrimPrefix(d.output(), logged); strings.Contains(more, "level=INFO") {
		t.Errorf("with log_level warn the daemon logs\n%s", more)
	}
	open()
	status(t, home, first, "SUCCESS")
	testenv.LeadLasts(t, d.output())

	watching := launch(t, home, "--observe", "--log-level", "info")
	watching.says(1, "observing")
	watching.hangup()
	watching.says(1, "this command does not reload settings")
}

// systemd is told that the daemon is ready, its status, that it is alive and that it stops. Workers
// do not get systemd's variables.
func TestSystemdIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "4000000")
	home := parked(t, false, "")
	d := launch(t, home)
	heard := ""
	hears := func(text string) {
		t.Helper()
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			message := make([]byte, 4096)
			if err := l.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := l.Read(message); err == nil {
				heard += string(message[:n]) + "\n"
			}
			return strings.Contains(heard, text), "heard:\n" + heard + d.output()
		})
	}
	hears("READY=1\n")
	hears("STATUS=leading instance ")
	hears("WATCHDOG=1\n")
	status(t, home, enqueued(t, home, "--", "sh", "-c", `test -z "$NOTIFY_SOCKET$WATCHDOG_USEC"`), "SUCCESS")
	d.stop()
	hears("STOPPING=1\n")
}

// A standby waits for an address that the leader on the same machine uses, and serves there when
// the leader has ended.
func TestStandbyOnOneAddress(t *testing.T) {
	testenv.Beside(t, testenv.Leads)
	address := testenv.FreeAddress(t)
	home := parked(t, false, "web: {listen: '"+address+"'}\n")
	leader := launch(t, home)
	leader.says(1, "metrics and status are served")
	leader.says(1, "msg=leading")
	standby := launch(t, home)
	standby.says(1, "standing by")
	standby.says(1, "metrics and status cannot be served at web.listen")
	leads := func(want string) {
		t.Helper()
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			resp, err := http.Get("http://" + address + "/metrics")
			if err != nil {
				return false, err.Error()
			}
			text, err := io.ReadAll(resp.Body)
			return err == nil && resp.Body.Close() == nil &&
				strings.Contains(string(text), "\nslipway_leader "+want+"\n"), standby.output()
		})
	}
	leads("1")
	leader.stop()
	leads("1")
	if st := statusOf(t, home); st.Leader.Address != "http://"+address {
		t.Errorf("the standby that leads is asked at %q, want %s", st.Leader.Address, address)
	}
	if n := strings.Count(standby.output(), "cannot be served at web.listen; retrying"); n > 5 {
		t.Errorf("said %d times that the address is taken:\n%s", n, standby.output())
	}
}

// Runs in flight that no daemon watches with the present settings are named. A daemon does not
// start beside runs of another instance_id, unless it is told to leave them alone.
func TestRunsThatNobodyWatches(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, false, "instance_id: old\n")
	d := launch(t, home)
	open, command := gate(t)
	run := enqueued(t, home, command...)
	status(t, home, run, "STARTED")
	d.stop()
	named := func(setting, name, text string) {
		t.Helper()
		var st daemon.Status
		out, err := built(t, home, "status", "--json")
		if end := strings.LastIndex(out, "}"); json.Unmarshal([]byte(out[:end+1]), &st) != nil ||
			len(st.Unwatched) != 1 || st.Unwatched[0] != (daemon.Unwatched{Setting: setting, Name: name, Runs: 1}) {
			t.Errorf("status --json = %v, %+v\n%s", err, st.Unwatched, out)
		}
		for _, command := range []string{"status", "doctor"} {
			if out, err := built(t, home, command); err == nil || !strings.Contains(out, text) {
				t.Errorf("%s = %v, %q is missing in\n%s", command, err, text, out)
			}
		}
	}

	rewrite(t, home, "instance_id: new\n")
	const orphans = `1 runs in flight were launched while the instance was named "old"`
	named("instance_id", "old", orphans)
	refused := launch(t, home)
	<-refused.end
	for _, text := range []string{"slipway.yaml:1:14: instance_id", orphans, "set instance_id: old",
		"former_instance_ids: [old]"} {
		refused.says(1, text)
	}
	rewrite(t, home, "instance_id: new\nformer_instance_ids: [old]\n")
	told := launch(t, home)
	told.says(1, "msg=leading")
	told.says(1, `level=WARN msg="1 runs in flight were launched while the instance was named`)
	told.stop()

	rewrite(t, home, "instance_id: old\nlaunchers: {other: {kind: process}}\ndefault: other\n")
	named("launchers", "local", `1 runs in flight are on launcher "local", which slipway.yaml does not have`)

	rewrite(t, home, "instance_id: old\n")
	launch(t, home)
	open()
	status(t, home, run, "SUCCESS")
}

// unpause ends an open maintenance window, and status and doctor show that.
func TestUnpauseEndsAWindow(t *testing.T) {
	testenv.Beside(t, testenv.Light)
	home := parked(t, true,
		"maintenance: [{cron: '0 0 * * *', for: 24h, why: upgrade}, {cron: '0 0 * * *', for: 24h, tag: team=b}]\n")
	free, held := enqueued(t, home, "--", "true"), enqueued(t, home, "--tag", "team=b", "--", "true")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, err := built(t, home, "status")
		return err == nil && strings.Contains(out, "waiting for paused  2") &&
			regexp.MustCompile(`the instance .*upgrade`).MatchString(out), out
	})
	if out, err := built(t, home, "unpause"); err != nil || !strings.Contains(out, "1 pause ended") {
		t.Errorf("unpause of a window = %v\n%s", err, out)
	}
	status(t, home, free, "SUCCESS")
	if st := statusOf(t, home); st.Runs["QUEUED"] != 1 || len(st.Pauses) != 1 || st.Pauses[0].Value != "team=b" {
		t.Errorf("after the end of one window, status = %+v", st)
	}
	if out, err := built(t, home, "unpause"); err == nil || !strings.Contains(out, "are not paused") {
		t.Errorf("a second unpause = %v\n%s", err, out)
	}
	if out, err := built(t, home, "unpause", "--all"); err != nil || !strings.Contains(out, "1 pause ended") {
		t.Errorf("unpause --all = %v\n%s", err, out)
	}
	status(t, home, held, "SUCCESS")
}

// A tag limit's value may come from the environment: it limits that value alone.
func TestTagLimitOfAVariable(t *testing.T) {
	t.Setenv("SLIPWAY_TEST_TEAM", "etl")
	for _, value := range []string{"{env: SLIPWAY_TEST_TEAM}", "'${SLIPWAY_TEST_TEAM}'"} {
		home := parked(t, true, "queue: {tag_concurrency_limits: [{key: team, value: "+value+", limit: 0}]}\n")
		held, free := enqueued(t, home, "--tag", "team=etl", "--", "true"),
			enqueued(t, home, "--tag", "team=web", "--", "true")
		status(t, home, free, "SUCCESS")
		status(t, home, held, "QUEUED")
	}
}

// Every command that reads the settings reports the mistakes that keep the daemon from starting.
func TestSettingsThatNoCommandTakes(t *testing.T) {
	for settings, want := range map[string]string{
		"queue: {tag_concurrency_limits: [{key: team, limit: 1, value: {applyLimitPerUniqueVal: " +
			"true}}]}\n": "did you mean applyLimitPerUniqueValue?",
		"queue: {max_concurrent_runs: -2}\n": "queue.max_concurrent_runs: must be -1 (no limit), 0 or more",
		"queue: {charge: free}\n":            `"free" is neither admitted nor dagster`,
		"terminate: {advertise: nowhere}\n":  `"nowhere" is not a host:port`,
	} {
		home := parked(t, false, settings)
		for _, command := range []string{"daemon", "doctor", "status", "adopt"} {
			if out, err := slipway(t, home, command); err == nil || !strings.Contains(err.Error()+out, want) {
				t.Errorf("%s with %s = %v\n%s", command, settings, err, out)
			}
		}
	}
}
