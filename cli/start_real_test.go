//go:build real

package cli

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/storage/postgres"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// onThatPostgres makes a home for a database.
func onThatPostgres(t *testing.T, address, slipwayYAML string) string {
	t.Helper()
	home := t.TempDir()
	yaml := "run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\nstorage: {postgres: " +
		"{postgres_url: '" + address + "'}}\n"
	if err := os.WriteFile(filepath.Join(home, "dagster.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	rewrite(t, home, "terminate: {local_only: true}\n"+slipwayYAML)
	return home
}

// A daemon whose Postgres is late, empty, without rights for it and read-only, one after the other,
// waits, says each once, and then leads.
func TestStartWaitsForItsStorage(t *testing.T) {
	address := testenv.Postgres(t)
	d := storagetest.Open(t, address)
	if err := d.Exec("CREATE ROLE slipway_limited LOGIN"); err != nil &&
		!strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := faultproxy.New(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	proxy.Cut(true)
	u.User, u.Host = url.User("slipway_limited"), proxy.Addr()
	p := launch(t, onThatPostgres(t, u.String(), ""))
	p.says(1, "cannot use the storage yet; retrying")
	proxy.Cut(false)
	p.says(1, "the schema is not one that Slipway knows")
	d.MakeTables(t)
	p.says(1, "permission denied")
	if err := d.Exec("GRANT SELECT ON ALL TABLES IN SCHEMA public TO slipway_limited"); err != nil {
		t.Fatal(err)
	}
	p.says(1, "role slipway_limited lacks")
	p.says(1, "INSERT on kvs")
	readOnly := func(change string) {
		t.Helper()
		if err := d.Exec("ALTER DATABASE " + database(t, address) + " " + change + " default_transaction_read_only" +
			map[string]string{"SET": " = on"}[change]); err != nil {
			t.Fatal(err)
		}
	}
	readOnly("SET")
	// it began before
	if err := d.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'slipway_limited'"); err !=
		nil {
		t.Fatal(err)
	}
	p.says(1, "the database accepts no writes")
	for _, of := range []string{"TABLES", "SEQUENCES"} {
		if err := d.Exec("GRANT ALL ON ALL " + of + " IN SCHEMA public TO slipway_limited"); err != nil {
			t.Fatal(err)
		}
	}
	readOnly("RESET")
	p.says(1, "cannot use the storage yet: this problem has ended")
	p.says(1, "msg=leading")
	if n := strings.Count(p.output(), "level=WARN"); n > 12 {
		t.Errorf("%d warnings while it waited:\n%s", n, p.output())
	}
}

func database(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

// A direct_url that leads to the database of another instance is refused; one of the same database
// is taken.
func TestDirectURLOfAnotherInstance(t *testing.T) {
	var addresses []string
	for range 2 {
		d := storagetest.NewPostgres(t)
		s, err := postgres.Open(t.Context(), config.Secret(d.Location))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.InstanceID(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, d.Location)
	}
	home := onThatPostgres(t, addresses[0], "storage: {direct_url: '"+addresses[1]+"'}\n")
	for _, command := range []string{"daemon", "status", "doctor", "unpause"} {
		if out, err := slipway(t, home, command); err == nil ||
			!strings.Contains(err.Error()+out,
				"slipway.yaml:2:23: storage.direct_url: it leads to another instance: run_storage_id is ") {
			t.Errorf("%s = %v\n%s", command, err, out)
		}
	}
	rewrite(t, home, "terminate: {local_only: true}\nstorage: {direct_url: '"+addresses[0]+"'}\n")
	if out, err := slipway(t, home, "status"); err == nil || !strings.Contains(out, "leader") {
		t.Errorf("status with a direct_url of the same database = %v\n%s", err, out)
	}
}

// The unit of systemd has no fault that systemd itself finds. It starts the daemon again without
// end, whatever ended it.
func TestUnitOfSystemd(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), "deploy/systemd/slipway.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"StartLimitIntervalSec=0", "Restart=always", "Type=notify", "WatchdogSec=60",
		"KillMode=process", "EnvironmentFile=-/etc/slipway/environment"} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("the unit has no line %s", line)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("no systemd-analyze")
	}
	bin := testenv.Build(t, "slipway")
	unit := filepath.Join(t.TempDir(), "slipway.service")
	here := strings.NewReplacer("/usr/local/bin/slipway", bin, "User=dagster", "User=root").Replace(string(text))
	if err := os.WriteFile(unit, []byte(here), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", unit).CombinedOutput(); err != nil ||
		strings.Contains(string(out), "slipway.service:") {
		t.Errorf("systemd-analyze verify = %v\n%s", err, out)
	}
}
