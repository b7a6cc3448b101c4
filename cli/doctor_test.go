//go:build real

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

const isParked = "run_queue: {max_concurrent_runs: 0}\nrun_monitoring: {enabled: false}\n"

// write writes the files of an instance.
func write(t *testing.T, home, dagsterYAML, slipwayYAML string) {
	t.Helper()
	for name, text := range map[string]string{"dagster.yaml": dagsterYAML, "slipway.yaml": slipwayYAML} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// statements runs SQL.
func statements(t *testing.T, d *storagetest.Dagster, queries ...string) {
	t.Helper()
	for _, q := range queries {
		if err := d.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// beat writes the heartbeats of a dagster-daemon.
func beat(t *testing.T, d *storagetest.Dagster, age time.Duration, types ...string) {
	t.Helper()
	for _, typ := range types {
		at := time.Now().Add(-age).UTC().Format("2006-01-02 15:04:05.000000")
		if err := d.Exec(
			"INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) VALUES (?, 'stock', ?, '{}')", typ,
			at); err != nil {
			t.Fatal(err)
		}
	}
}

// onSQLite creates a healthy instance beside a parked dagster-daemon. No Slipway daemon leads it.
func onSQLite(t *testing.T, slipwayYAML string) *storagetest.Dagster {
	t.Helper()
	d := storagetest.Open(t, parked(t, false, slipwayYAML))
	beat(t, d, time.Second, "QUEUED_RUN_COORDINATOR", "SENSOR", "SCHEDULER", "BACKFILL")
	return d
}

// onPostgres is [onSQLite] on Postgres. It also returns the folder.
func onPostgres(t *testing.T) (d *storagetest.Dagster, home string) {
	t.Helper()
	d, home = storagetest.NewPostgres(t), t.TempDir()
	statements(t, d, "INSERT INTO instance_info (run_storage_id) VALUES ('"+uuid.NewString()+"')",
		"INSERT INTO alembic_version (version_num) VALUES ('7e2f3204cf8e')")
	beat(t, d, time.Second, "QUEUED_RUN_COORDINATOR", "SENSOR", "SCHEDULER", "BACKFILL")
	opens(t, home, d.Location)
	return d, home
}

// opens makes an instance use a database.
func opens(t *testing.T, home, address string) {
	t.Helper()
	write(t, home, isParked+"storage: {postgres: {postgres_url: '"+address+"'}}\n", "terminate: {local_only: true}\n")
}

// changed returns a database's address with another user, path or query.
func changedURL(t *testing.T, address string, change func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}

// role creates a role of the server with some rights in the database, and returns the database's
// address with that role.
func role(t *testing.T, d *storagetest.Dagster, options, rights string) string {
	t.Helper()
	name := "r_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	statements(t, d, "CREATE ROLE "+name+" LOGIN PASSWORD 'right' "+options,
		"GRANT "+rights+" ON ALL TABLES IN SCHEMA public TO "+name,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "+name)
	t.Cleanup(func() { statements(t, d, "DROP OWNED BY "+name, "DROP ROLE "+name) })
	return changedURL(t, d.Location, func(u *url.URL) { u.User = url.UserPassword(name, "wrong") })
}

const allRights = "SELECT, INSERT, UPDATE, DELETE"

// queued puts a run with a changed body into the queue.
func queued(t *testing.T, d *storagetest.Dagster, change func(origin, code map[string]any)) string {
	t.Helper()
	id := uuid.NewString()
	var body map[string]any
	if err := json.Unmarshal([]byte(storagetest.Body(id, nil)), &body); err != nil {
		t.Fatal(err)
	}
	at := func(m map[string]any, keys ...string) map[string]any {
		for _, key := range keys {
			m = m[key].(map[string]any)
		}
		return m
	}
	change(
		at(body, "external_pipeline_origin", "external_repository_origin", "repository_location_origin"),
		at(body, "pipeline_code_origin", "repository_origin"))
	r, err := dagster.ParseRun(string(dagster.Encode(body)))
	if err == nil {
		err = d.EnqueueRun(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// servedAt gives a run a code server at an address.
func servedAt(t *testing.T, address string) func(origin, _ map[string]any) {
	return func(origin, _ map[string]any) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		origin["host"], origin["port"] = host, json.Number(port)
	}
}

// findings runs doctor, in this process or with the given command, and parses its output.
func findings(t *testing.T, home string, command ...string) []daemon.Symptom {
	t.Helper()
	var out string
	var err error
	if len(command) > 0 {
		var text bytes.Buffer
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Stdout = &text
		err = cmd.Run()
		out = text.String()
	} else {
		out, err = withKinds(t.Context(), all.Kinds(testenv.Build(t, "slipway-agent")), home, "doctor", "--json")
	}
	var found []daemon.Symptom
	if jerr := json.Unmarshal([]byte(out), &found); jerr != nil {
		t.Fatalf("doctor = %v, %v:\n%s", err, jerr, out)
	}
	if bad := slices.ContainsFunc(found, func(s daemon.Symptom) bool { return s.Level == daemon.LevelError }); bad ==
		(err == nil) {
		t.Errorf("doctor = %v with\n%s", err, report(found))
	}
	return found
}

func report(found []daemon.Symptom) string {
	var b strings.Builder
	for _, s := range found {
		fmt.Fprintf(&b, "%s %s: %s\n    %s\n", s.Level, s.Code, s.What, s.Fix)
	}
	return b.String()
}

// plant is a fault that was seen in use, and the finding that it must cause.
type plant struct {
	make    func(t *testing.T) string // gives DAGSTER_HOME
	level   daemon.Level
	code    daemon.Code
	what    string
	fix     string
	command func(t *testing.T, home string) []string // nil: doctor in this process
}

// Each planted fault is found, with its cause, next step and code, and no other fault is reported.
func TestDoctorFindsPlantedFaults(t *testing.T) {
	noChange := func(_, _ map[string]any) {}
	local := "launchers: {local: {kind: process}}\n"
	plants := map[string]plant{
		"a wrong password": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				as := role(t, d, "", allRights)
				u, _ := url.Parse(as) // role made it
				// The server trusts every other role, so this one must be asked for its password.
				statements(t, d,
					fmt.Sprintf(`DO $$ BEGIN EXECUTE format('COPY (SELECT 1) TO PROGRAM %%L', 'sed -i "1i host all `+
						`%s all scram-sha-256" ' || current_setting('hba_file')); END $$`, u.User.Username()),
					"SELECT pg_reload_conf()")
				opens(t, home, as)
				return home
			},
			level: daemon.LevelError, code: "storage_login", what: "FATAL: password authentication failed",
			fix: "correct the user and the password of storage.postgres in dagster.yaml",
		},
		"a variable that is not set": {
			make: func(t *testing.T) string {
				home := t.TempDir()
				write(t, home,
					"storage: {postgres: {postgres_db: {username: u, password: {env: NO_SUCH_PASSWORD}, hostname: h, "+
						"db_name: d}}}\n", "")
				return home
			},
			level: daemon.LevelError, code: daemon.CodeConfiguration,
			what: "dagster.yaml:1:59: storage.postgres.postgres_db.password: environment variable NO_SUCH_PASSWORD " +
				"is not set", fix: "correct the settings that the message names",
		},
		"Postgres down, or a wrong port": {
			make: func(t *testing.T) string {
				home := t.TempDir()
				opens(t, home, "postgresql://u:p@"+testenv.FreeAddress(t)+"/d")
				return home
			},
			level: daemon.LevelError, code: "storage_unreachable", what: "connection refused",
			fix: "start the Postgres server, or correct host and port",
		},
		"a wrong name of the database": {
			make: func(t *testing.T) string {
				home := t.TempDir()
				opens(t, home, changedURL(t, testenv.Postgres(t), func(u *url.URL) { u.Path = "/no_such_database" }))
				return home
			},
			level: daemon.LevelError, code: "storage_database", what: `database "no_such_database" does not exist`,
			fix: "correct the database's name (db_name)",
		},
		"DAGSTER_HOME is not set": {
			make:  func(*testing.T) string { return "" },
			level: daemon.LevelError, code: daemon.CodeConfiguration, what: "DAGSTER_HOME is not set",
			fix: "until then no daemon starts",
		},
		"DAGSTER_HOME is not there": {
			make:  func(*testing.T) string { return "/no/such/folder" },
			level: daemon.LevelError, code: daemon.CodeConfiguration,
			what: "DAGSTER_HOME=/no/such/folder is not a folder",
			fix:  "until then no daemon starts",
		},
		"DAGSTER_HOME is relative": {
			make:  func(*testing.T) string { return "relative" },
			level: daemon.LevelError, code: daemon.CodeConfiguration, what: "is not an absolute path",
			fix: "until then no daemon starts",
		},
		"DAGSTER_HOME without dagster.yaml": {
			make:  func(t *testing.T) string { return t.TempDir() },
			level: daemon.LevelWarning, code: daemon.CodeDagsterYAML, what: "dagster.yaml does not exist",
			fix: "the folder of the dagster.yaml that your webserver uses",
		},
		"DAGSTER_HOME of another instance": {
			make:  func(t *testing.T) string { return parked(t, false, "") },
			level: daemon.LevelWarning, code: daemon.CodeDagsterDaemon,
			what: "no dagster-daemon has ever written to this storage",
			fix:  "compare its DAGSTER_HOME and storage with those here",
		},
		"an empty database": {
			make: func(t *testing.T) string {
				home := t.TempDir()
				opens(t, home, testenv.Postgres(t))
				return home
			},
			level: daemon.LevelError, code: "storage_empty", what: `relation "runs" does not exist`,
			fix: "start dagster-webserver once",
		},
		"dagster-daemon is not parked": {
			make: func(t *testing.T) string {
				home := onSQLite(t, "").Location
				write(t, home, "concurrency: {runs: {max_concurrent_runs: 6}}\n", "")
				return home
			},
			level: daemon.LevelError, code: daemon.CodeDequeuer,
			what: "dagster-daemon may dequeue runs of this instance",
			fix:  "set concurrency.runs.max_concurrent_runs: 0",
		},
		"dagster-daemon was parked and not restarted": {
			make: func(t *testing.T) string {
				d := onSQLite(t, local)
				past := time.Now().Add(-time.Minute)
				if err := os.Chtimes(filepath.Join(d.Location, "dagster.yaml"), past, past); err != nil {
					t.Fatal(err)
				}
				id := queued(t, d, noChange)
				if err := d.Event(dagster.NewEvent(dagster.Run{ID: id, Job: "light"}, dagster.RunStarting, time.Now(),
					"")); err != nil {
					t.Fatal(err)
				}
				return d.Location
			},
			level: daemon.LevelError, code: daemon.CodeSecondDequeuer, what: "left the queue at",
			fix: "restart dagster-daemon",
		},
		"dagster-daemon does not run": {
			make: func(t *testing.T) string {
				d := storagetest.Open(t, parked(t, false, ""))
				beat(t, d, 10*time.Minute, "QUEUED_RUN_COORDINATOR", "SENSOR")
				return d.Location
			},
			level: daemon.LevelWarning, code: daemon.CodeDagsterDaemon,
			what: "dagster-daemon is not running: it was last heard of 10m", fix: "start dagster-daemon",
		},
		"a part of dagster-daemon does not run": {
			make: func(t *testing.T) string {
				d := storagetest.Open(t, parked(t, false, ""))
				beat(t, d, time.Second, "QUEUED_RUN_COORDINATOR")
				beat(t, d, 10*time.Minute, "SENSOR")
				return d.Location
			},
			level: daemon.LevelWarning, code: daemon.CodeDagsterDaemon,
			what: "dagster-daemon's SENSOR was last heard of 10m",
			fix:  "start dagster-daemon",
		},
		"a daemon that waits for dagster-daemon's monitor": {
			make: func(t *testing.T) string {
				d := onSQLite(t, "")
				beat(t, d, 30*time.Second, "MONITORING")
				return d.Location
			},
			level: daemon.LevelError, code: daemon.CodeLeader, what: "no daemon leads",
			fix: "(the last one: 30s ago)",
		},
		"no terminate.advertise": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				write(t, home, isParked+"storage: {postgres: {postgres_url: '"+d.Location+"'}}\n", "")
				return home
			},
			level: daemon.LevelError, code: daemon.CodeTerminate, what: "terminate.advertise: required with Postgres",
			fix: "set terminate in slipway.yaml",
		},
		"an address to advertise at which no program listens": {
			make: func(t *testing.T) string {
				d := onSQLite(t, fmt.Sprintf("terminate: {listen: %q, advertise: %q}\n", testenv.FreeAddress(t),
					testenv.FreeAddress(t)))
				start(t, d.Location)
				statusOf(t, d.Location)
				return d.Location
			},
			level: daemon.LevelWarning, code: daemon.CodeTerminate,
			what: "the endpoint for Terminate in Dagster's UI does not answer at 127.0.0.1:",
			fix:  "see terminate in slipway.yaml",
		},
		"a port that another program has": {
			make: func(t *testing.T) string {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = l.Close() })
				return onSQLite(t, fmt.Sprintf("terminate: {listen: %q}\n", l.Addr())).Location
			},
			level: daemon.LevelWarning, code: daemon.CodeTerminate, what: "another program listens on 127.0.0.1:",
			fix: "terminate.listen",
		},
		"a certificate that is not there": {
			make: func(t *testing.T) string {
				return onSQLite(t,
					fmt.Sprintf("terminate: {listen: %q, tls_cert: /no/cert.pem, tls_key: /no/key.pem}\n",
						testenv.FreeAddress(t))).Location
			},
			level: daemon.LevelError, code: daemon.CodeTerminate, what: "terminate.tls_cert: open /no/cert.pem",
			fix: "to the files of the endpoint's certificate and key",
		},
		"a database whose clock is off": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				name, err := d.Text("SELECT current_database()")
				if err != nil {
					t.Fatal(err)
				}
				statements(t, d,
					"CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT "+
						"pg_catalog.clock_timestamp() + interval ''40 s'''",
					"ALTER DATABASE "+name+" SET search_path = public, pg_catalog")
				return home
			},
			level: daemon.LevelWarning, code: daemon.CodeClock,
			what: "the database's clock is 40", fix: "set both by NTP",
		},
		"a code server that is down": {
			make: func(t *testing.T) string {
				d := onSQLite(t, "")
				queued(t, d, servedAt(t, testenv.FreeAddress(t)))
				return d.Location
			},
			level: daemon.LevelError, code: daemon.CodeCodeServer,
			what: "of code location here does not work: connection error", fix: "start it (dagster code-server start",
		},
		"an interpreter of slipway.yaml that is not there": {
			make: func(t *testing.T) string {
				return onSQLite(t, "launchers: {local: {kind: process, python: {etl: /no/such/python}}}\n").Location
			},
			level: daemon.LevelError, code: daemon.CodeInterpreter,
			what: "/no/such/python of launchers.local.python.etl does not work",
			fix:  "set launchers.local.python.etl in slipway.yaml",
		},
		"an interpreter without Dagster": {
			make: func(t *testing.T) string {
				d := onSQLite(t, local)
				queued(t, d, func(_, code map[string]any) { code["executable_path"] = "/bin/false" })
				return d.Location
			},
			level: daemon.LevelError, code: daemon.CodeInterpreter,
			what: "/bin/false of code location here does not work",
			fix:  "set launchers.local.python.here in slipway.yaml",
		},
		"an interpreter of a code location that is not there": {
			make: func(t *testing.T) string {
				d := onSQLite(t, local)
				queued(t, d, func(_, code map[string]any) { code["entry_point"] = []any{"no-such-dagster"} })
				return d.Location
			},
			level: daemon.LevelError, code: daemon.CodeRunRefused,
			what: "runs in /nowhere/python, which is not on this machine", fix: "slipway launchers preview",
		},
		"a relative folder": {
			make: func(t *testing.T) string {
				d := onSQLite(t, local)
				queued(t, d, func(_, code map[string]any) {
					code["executable_path"] = "/bin/true"
					code["code_pointer"] = map[string]any{"__class__": "FileCodePointer", "fn_name": "defs",
						"python_file": "code/etl.py", "working_directory": "code"}
				})
				return d.Location
			},
			level: daemon.LevelError, code: daemon.CodeRunRefused, what: "code/etl.py is in none of",
			fix: "slipway launchers preview",
		},
		"no Docker engine": {
			make: func(t *testing.T) string {
				return onSQLite(t,
					"launchers: {local: {kind: process}, far: {kind: docker, config: {host: "+
						"'unix:///no/such/socket'}}}\n").Location
			},
			level: daemon.LevelError, code: daemon.CodeLauncher,
			what: "launcher far: the engine at unix:///no/such/socket does not answer", fix: "start it",
		},
		"a full disk": {
			make: func(t *testing.T) string {
				return onSQLite(t, "launchers: {local: {kind: process, config: {dir: '"+t.TempDir()+"'}}}\n").Location
			},
			command: func(t *testing.T, home string) []string {
				if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
					t.Skipf("no file system can be mounted: %v %s", err, out)
				}
				return []string{"unshare", "--mount", "sh",
					"-c", `d=$(sed 's/.*dir: .\([^}]*\).}}}/\1/' "$1/slipway.yaml") && mount -t tmpfs -o size=64k ` +
						`none "$d" && mkdir "$d/workers" "$d/state" "$d/tmp" && echo here >"$d/host" && { head -c 1m ` +
						`/dev/zero >"$d/fill" 2>/dev/null; exec "$0" --home "$1" doctor --json; }`,
					testenv.Build(t, "slipway"), home}
			},
			level: daemon.LevelError, code: daemon.CodeLauncher, what: "workers' files cannot be written: ",
			fix: "free space on the disk of",
		},
		"a DAGSTER_HOME that cannot be written to": {
			make: func(t *testing.T) string {
				home := onSQLite(t, local).Location
				if err := os.Chmod(home, 0o555); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.Chmod(home, 0o755) })
				return home
			},
			command: asUser,
			level:   daemon.LevelError, code: daemon.CodeLauncherConfig,
			what: "launchers.local.config.dir: workers' files cannot be written: mkdir",
			fix:  "correct the setting that the message names",
		},
		"an SQLite storage that cannot be written to": {
			make: func(t *testing.T) string {
				d := onSQLite(t, local)
				statements(t, d, "INSERT INTO instance_info (run_storage_id) VALUES ('x')",
					"PRAGMA wal_checkpoint(TRUNCATE)")
				for _, path := range []string{"history/runs.db", "history"} {
					if err := os.Chmod(filepath.Join(d.Location, path), 0o555); err != nil {
						t.Fatal(err)
					}
				}
				t.Cleanup(func() { _ = os.Chmod(filepath.Join(d.Location, "history"), 0o755) })
				return d.Location
			},
			command: asUser,
			level:   daemon.LevelError, code: "storage_rights", what: "history/runs.db: ",
			fix: "give the user of slipway access to the files in history",
		},
		"a schema that Slipway does not know": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				statements(t, d, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
				return home
			},
			level: daemon.LevelWarning, code: daemon.CodeRevision,
			what: "revision ffffffffffff is not one that Slipway knows",
			fix:  "a newer Slipway",
		},
		"a column that is missing": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				statements(t, d, "ALTER TABLE runs DROP COLUMN end_time")
				return home
			},
			level: daemon.LevelError, code: "storage_schema", what: `column "end_time" does not exist`,
			fix: "dagster instance migrate",
		},
		"PgBouncer in transaction mode": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				opens(t, home, testenv.PgBouncer(t, d.Location, "transaction"))
				return home
			},
			level: daemon.LevelError, code: "storage_pooler",
			what: "PgBouncer", fix: "set storage.direct_url in slipway.yaml",
		},
		"direct_url of another instance": {
			make: func(t *testing.T) string {
				_, home := onPostgres(t)
				other, _ := onPostgres(t)
				file := filepath.Join(home, "slipway.yaml")
				if err := os.WriteFile(file,
					[]byte("terminate: {local_only: true}\nstorage: {direct_url: '"+other.Location+"'}\n"),
					0o600); err != nil {
					t.Fatal(err)
				}
				return home
			},
			level: daemon.LevelError, code: daemon.CodeOtherInstance,
			what: "storage.direct_url: it leads to another instance",
			fix:  "the same server and database",
		},
		"a database that is read-only": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				name, err := d.Text("SELECT current_database()")
				if err != nil {
					t.Fatal(err)
				}
				statements(t, d, "ALTER DATABASE "+name+" SET default_transaction_read_only = on")
				return home
			},
			level: daemon.LevelError, code: "storage_read_only", what: "in a read-only transaction",
			fix: "set the primary server",
		},
		"no rights on runs": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				opens(t, home, role(t, d, "", "SELECT"))
				return home
			},
			level: daemon.LevelError, code: "storage_rights", what: "permission denied for table runs (UPDATE)",
			fix: "GRANT SELECT, INSERT, UPDATE, DELETE",
		},
		"a role that may have two connections": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				opens(t, home, role(t, d, "CONNECTION LIMIT 2", allRights))
				return home
			},
			level: daemon.LevelError, code: "storage_connections",
			what: "may have 2 connections at once", fix: "ALTER ROLE",
		},
		"sslmode=require where there is no TLS": {
			make: func(t *testing.T) string {
				d, home := onPostgres(t)
				opens(t, home, changedURL(t, d.Location, func(u *url.URL) { u.RawQuery = "sslmode=require" }))
				return home
			},
			level: daemon.LevelError, code: "storage_tls",
			what: "server refused TLS connection", fix: "set sslmode=prefer",
		},
		"a limit of zero": {
			make:  func(t *testing.T) string { return onSQLite(t, "queue: {max_concurrent_runs: 0}\n").Location },
			level: daemon.LevelError, code: daemon.CodeLimit,
			what: "queue.max_concurrent_runs is 0: no run is launched",
			fix:  "set queue.max_concurrent_runs in slipway.yaml",
		},
		"a run that has waited for long": {
			make: func(t *testing.T) string {
				d := onSQLite(t, local)
				id := queued(t, d, func(_, code map[string]any) {
					code["executable_path"] = filepath.Join(testenv.DagsterBin(t), "python")
				})
				if err := d.Exec("UPDATE runs SET create_timestamp = '2020-01-01 00:00:00.000000' WHERE run_id = ?",
					id); err != nil {
					t.Fatal(err)
				}
				return d.Location
			},
			level: daemon.LevelWarning, code: daemon.CodeQueue,
			what: "1 of 1 queued runs have waited for longer than 10m0s",
			fix:  "slipway runs explain RUN",
		},
	}
	for setting, text := range map[string][2]string{
		"a typo":                    {"", "queeu: {}\n"},
		"a wrong kind":              {"", "launchers: {local: {kind: proces}}\n"},
		"a tab":                     {"", "queue:\n\tmax_concurrent_runs: 1\n"},
		"a key that is there twice": {"run_queue: {}\nrun_queue: {}\n", ""},
		"MySQL":                     {"storage: {mysql: {mysql_url: x}}\n", ""},
		"DefaultRunCoordinator": {"run_coordinator: {module: dagster, class: DefaultRunCoordinator}\n",
			""},
		"an open port without a token":          {"", "web: {listen: '0.0.0.0:9870'}\n"},
		"a limit that is none":                  {"", "queue: {max_concurrent_runs: many}\n"},
		"charge of the queue that there is not": {isParked, "queue: {charge: free}\n"},
	} {
		plants[setting] = plant{
			make: func(t *testing.T) string {
				home := onSQLite(t, "").Location
				write(t, home, text[0], text[1])
				return home
			},
			level: daemon.LevelError, code: daemon.CodeConfiguration, what: ".yaml", fix: "until then no daemon starts",
		}
	}
	if len(plants) < 30 {
		t.Errorf("%d faults, want 30", len(plants))
	}
	for name, p := range plants {
		t.Run(name, func(t *testing.T) {
			home := p.make(t)
			var command []string
			if p.command != nil {
				command = p.command(t, home)
			}
			found := findings(t, home, command...)
			i := slices.IndexFunc(found, func(s daemon.Symptom) bool {
				return s.Code == p.code && s.Level != daemon.LevelOK
			})
			if i < 0 || found[i].Level != p.level || !strings.Contains(found[i].What, p.what) ||
				!strings.Contains(found[i].Fix, p.fix) {
				t.Errorf("doctor does not find %s %s: %q, %q, but\n%s", p.level, p.code, p.what, p.fix, report(found))
			}
			for _, s := range found {
				known := s.Code == p.code || s.Code == daemon.CodeLeader || s.Code == daemon.CodeMonitor ||
					strings.HasPrefix(string(s.Code), "storage_") && p.code == daemon.CodeDagsterYAML
				if s.Level == daemon.LevelError && !known {
					t.Errorf("doctor blames %s: %s", s.Code, s.What)
				}
			}
		})
	}
}

// asUser returns the command of doctor as a user whom file modes can keep from writing, unlike
// root.
func asUser(t *testing.T, home string) []string {
	command := []string{testenv.Build(t, "slipway"), "--home", home, "doctor", "--json"}
	if os.Getuid() != 0 {
		return command
	}
	return append([]string{"setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"},
		command...)
}

// The only finding of a healthy instance is that no daemon leads it, on both storages. A code
// server that answers and a Python that starts are named.
func TestDoctorOfHealthyInstances(t *testing.T) {
	d, home := onPostgres(t)
	bin := testenv.DagsterBin(t)
	address := testenv.FreeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	testenv.Server(t, address, filepath.Join(bin, "dagster"), "api", "grpc",
		"--python-file", filepath.Join(testenv.Root(t), "test/fates/fates.py"), "--host", "127.0.0.1", "--port", port)
	queued(t, d, servedAt(t, address))
	queued(t, d, func(origin, code map[string]any) {
		origin["__class__"], origin["location_name"] = "ManagedGrpcPythonEnvRepositoryLocationOrigin", "managed"
		code["executable_path"] = filepath.Join(bin, "python")
	})
	for name, home := range map[string]string{"Postgres": home, "SQLite": onSQLite(t, "").Location} {
		found := findings(t, home)
		for _, s := range found {
			if s.Level != daemon.LevelOK && s.Code != daemon.CodeLeader {
				t.Errorf("%s: %s %s: %s", name, s.Level, s.Code, s.What)
			}
		}
		if name != "Postgres" {
			continue
		}
		for _, want := range []string{"the code server at dns:///" + address + " of code location here answers",
			"python of code location managed has Dagster", "the storage accepts writes",
			"dagster-daemon was last heard of"} {
			if !strings.Contains(report(found), want) {
				t.Errorf("doctor does not say %q:\n%s", want, report(found))
			}
		}
	}
}

// A sick launcher is not reported as well in the same report, and the runs that wait for it are
// counted by reason.
func TestDoctorOfASickLauncher(t *testing.T) {
	home := parked(t, false,
		"launchers: {batch: {kind: command, config: {launch: [sh, -c, 'echo key expired >&2; exit 77'], health: [sh, "+
			"-c, 'exit 66'], terminate: ['true']}}}\ndefault: batch\n")
	d := storagetest.Open(t, home)
	start(t, home)
	for range 3 {
		enqueued(t, home, "--", "true")
	}
	testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
		st := statusOf(t, home)
		return st.Launchers[0].Sick, fmt.Sprintf("%+v", st)
	})
	waiting := enqueued(t, home, "--", "true")
	if err := d.Exec("UPDATE runs SET create_timestamp = '2020-01-01 00:00:00.000000' WHERE run_id = ?",
		waiting); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		out, _ := slipway(t, home, "doctor")
		return strings.Contains(out, "launcher batch has been sick") &&
			!strings.Contains(out, "ok       launcher batch") &&
			strings.Contains(out, "they wait for launcher_sick (") && !strings.Contains(out, "map["), out
	})
}

// A daemon that can no longer lead, because its database is read-only, says so once and not at
// every try.
func TestReadOnlyDatabaseIsToldOnce(t *testing.T) {
	const warning = "cannot acquire leadership"
	d, home := onPostgres(t)
	name, err := d.Text("SELECT current_database()")
	if err != nil {
		t.Fatal(err)
	}
	address := testenv.FreeAddress(t)
	write(t, home, isParked+"storage: {postgres: {postgres_url: '"+d.Location+"'}}\n",
		"terminate: {local_only: true}\nweb: {listen: '"+address+"'}\n")
	log := start(t, home)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		text, err := os.ReadFile(log)
		return strings.Contains(string(text), "msg=leading"), fmt.Sprintf("%s%v", text, err)
	})
	statements(t, d, "ALTER DATABASE "+name+" SET default_transaction_read_only = on",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "+
			"pg_backend_pid()")
	failed := regexp.MustCompile(`slipway_storage_seconds_count\{outcome="error"\} ([0-9]+)`)
	var text []byte
	told := -1 // failures when the warning was there
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		resp, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return false, err.Error()
		}
		metrics, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return false, err.Error()
		}
		if text, err = os.ReadFile(log); err != nil {
			return false, err.Error()
		}
		n := 0
		if m := failed.FindSubmatch(metrics); m != nil {
			n, err = strconv.Atoi(string(m[1]))
		}
		if told < 0 && strings.Contains(string(text), warning) {
			told = n
		}
		return err == nil && told >= 0 && n >= told+5, fmt.Sprintf("the storage failed %d times; log:\n%s", n, text)
	})
	if n := strings.Count(string(text), warning); n != 1 || !strings.Contains(string(text), "read-only transaction") {
		t.Errorf("%d warnings, want one about the read-only database:\n%s", n, text)
	}
}
