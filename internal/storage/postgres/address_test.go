//go:build real

package postgres

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// addresses are sections storage.postgres. The role has a password of such characters as the first
// word of a name says.
var addresses = map[string]string{
	"slash, raw": `postgres_url: "postgresql://@U:pa/ss#w?rd@@A"`,
	"slash, in parts": `postgres_db: {username: "@U", password: "pa/ss#w?rd", hostname: "@H", port: ` +
		`@P, db_name: "@D"}`,
	"percent, raw":    `postgres_url: "postgresql://@U:50%off@@A"`,
	"percent, quoted": `postgres_url: "postgresql://@U:50%25off@@A"`,
	"percent, in parts": `postgres_db: {username: "@U", password: "50%off", hostname: "@H", port: @P, ` +
		`db_name: "@D"}`,
	"space, raw":                   `postgres_url: "postgresql://@U:a b^c|d@@A"`,
	"space, quoted":                `postgres_url: "postgresql://@U:a%20b%5Ec%7Cd@@A"`,
	"percent, as a parameter":      `postgres_url: "postgresql://@U@@A?password=50%25off"`,
	"space, as a parameter with +": `postgres_url: "postgresql://@H:@P/@D?user=@U&password=a+b%5Ec%7Cd"`,
	"space, among params": `postgres_db: {username: "@U", hostname: "@H", port: @P, db_name: "@D", ` +
		`params: {password: "a b^c|d"}}`,
	"percent, a driver": `postgres_url: "postgresql+psycopg2://@U:50%25off@@A"`,
	"percent, options with +": `postgres_url: ` +
		`"postgresql://@U:50%25off@@A?options=-c+search_path%3Dother,public"`,
	"percent, options with %20": `postgres_url: ` +
		`"postgresql://@U:50%25off@@A?options=-c%20search_path%3Dother,public%20-c%20work_mem%3D8MB"`,
	"percent, options among params": `postgres_db: {username: "@U", password: "50%off", hostname: "@H", port: @P, ` +
		`db_name: "@D", params: {options: "-c search_path=other,public", keepalives: 1, connect_timeout: 9}}`,
	"percent, keepalives": `postgres_url: ` +
		`"postgresql://@U:50%25off@@A?keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3` +
		`&tcp_user_timeout=9000"`,
	"percent, keepalives off":    `postgres_url: "postgresql://@U:50%25off@@A?keepalives=0"`,
	"percent, gssencmode":        `postgres_url: "postgresql://@U:50%25off@@A?gssencmode=disable"`,
	"percent, gssencmode prefer": `postgres_url: "postgresql://@U:50%25off@@A?gssencmode=prefer"`,
	"percent, fallback name":     `postgres_url: "postgresql://@U:50%25off@@A?fallback_application_name=x"`,
	"percent, two names": `postgres_url: ` +
		`"postgresql://@U:50%25off@@A?fallback_application_name=x&application_name=y"`,
	"percent, hostaddr":        `postgres_url: "postgresql://@U:50%25off@db.invalid:@P/@D?hostaddr=@H"`,
	"percent, hostaddr alone":  `postgres_url: "postgresql://@U:50%25off@/@D?hostaddr=@H&port=@P"`,
	"percent, repeated hosts":  `postgres_url: "postgresql://@U:50%25off@/@D?host=@H:1&host=@H:@P"`,
	"percent, a list of hosts": `postgres_url: "postgresql://@U:50%25off@/@D?host=@H,@H&port=1,@P"`,
	"percent, hosts with addresses": `postgres_url: ` +
		`"postgresql://@U:50%25off@/@D?host=a.invalid,b.invalid&port=1,@P&hostaddr=@H,@H"`,
	"percent, a host as a parameter": `postgres_url: "postgresql://@U:50%25off@/@D?host=@H:@P"`,
	"percent, encodings and TLS": `postgres_url: ` +
		`"postgresql://@U:50%25off@@A?client_encoding=utf8&sslmode=prefer&sslcompression=0` +
		`&ssl_min_protocol_version=TLSv1.2&target_session_attrs=read-write"`,
	"percent, blank values": `postgres_url: "postgresql://@U:50%25off@@A?sslmode=&application_name=&x"`,
}

// Every address that Dagster opens is opened by us, daemon and slipway-worker alike, with the same
// user, database and settings.
func TestAddressesThatDagsterOpens(t *testing.T) {
	d := storagetest.NewPostgres(t)
	u, err := url.Parse(d.Location)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), d.Location)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	roles := map[string]string{"slash": "pa/ss#w?rd", "percent": "50%off", "space": "a b^c|d"}
	exec1 := func(query string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	exec1("CREATE SCHEMA other")
	var names []string
	for role, password := range roles {
		role = name + "_" + role
		names = append(names, role)
		exec1("CREATE ROLE " + role + " LOGIN SUPERUSER PASSWORD '" + password + "'")
	}
	t.Cleanup(func() {
		for _, role := range names {
			if _, err := admin.Exec(context.Background(), "DROP ROLE "+role); err != nil {
				t.Error(err)
			}
		}
		if err := admin.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})

	cases := slices.Sorted(func(yield func(string) bool) {
		for c := range addresses {
			if !yield(c) {
				return
			}
		}
	})
	const facts = "SELECT concat_ws(' ', current_user, current_database(), current_setting('search_path'), " +
		"current_setting('work_mem'), current_setting('application_name'))"
	files := make([]string, len(cases))
	for i, c := range cases {
		kind, _, _ := strings.Cut(c, ",")
		text := strings.NewReplacer("@U", name+"_"+kind, "@@A", "@"+u.Host+u.Path, "@H", u.Hostname(), "@P", u.Port(),
			"@D", name).Replace(addresses[c])
		files[i] = filepath.Join(t.TempDir(), "dagster.yaml")
		if err := os.WriteFile(files[i], []byte("storage: {postgres: {"+text+"}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := `
import json, sys, sqlalchemy
from dagster_postgres.utils import pg_url_from_config
from dagster_shared.yaml_utils import load_yaml_from_path
out = []
for file in sys.argv[2:]:
    try:
        url = pg_url_from_config(load_yaml_from_path(file)["storage"]["postgres"])
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        with engine.connect() as conn:
            out.append(conn.exec_driver_sql(sys.argv[1]).scalar())
    except Exception as e:
        out.append("error: " + str(e))
print(json.dumps(out))
`
	cmd := exec.Command(filepath.Join(testenv.DagsterBin(t), "python"),
		append([]string{"-c", script, facts}, files...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var dagsters []string
	if err := json.Unmarshal(out, &dagsters); err != nil {
		t.Fatal(err, string(out))
	}
	for i, c := range cases {
		if strings.HasPrefix(dagsters[i], "error: ") {
			t.Errorf("%s: Dagster does not open it, so that this case shows nothing: %s", c, dagsters[i])
			continue
		}
		in, err := instance.LoadDagster(filepath.Dir(files[i]), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Errorf("%s: %v", c, err)
			continue
		}
		ref, err := dagster.ParseInstanceRef(string(in.Ref()))
		if err != nil {
			t.Fatal(err)
		}
		if worker, err := instance.StorageOf(ref, nil); err != nil || worker.URL != in.Storage.URL {
			t.Errorf("%s: slipway-worker opens another address than the daemon: %v", c, err)
		}
		kind, _, _ := strings.Cut(c, ",")
		if a, err := parseAddress(string(in.Storage.URL)); err != nil || a.ConnConfig.Password != roles[kind] {
			// which the test's server, that trusts everybody, does not say
			t.Errorf("%s: another password, or %v", c, err)
		}
		s, err := Open(t.Context(), in.Storage.URL)
		if err != nil {
			t.Errorf("%s: Open = %v", c, err)
			continue
		}
		var got string
		if err := s.pool.QueryRow(t.Context(), facts).Scan(&got); err != nil || got != dagsters[i] {
			t.Errorf("%s: our session is %q, %v; Dagster's is %q", c, got, err, dagsters[i])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Addresses of random parts are taken apart as SQLAlchemy takes them apart.
func TestAddressesAreReadAsBySQLAlchemy(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	var urls []string
	for range 2000 {
		u := pick("postgresql://", "postgres://", "postgresql+psycopg2://") + pick("", "u", "u%40x", "a b", "ü%") +
			pick("", ":", ":p", ":p/q?r#s", ":50%off", ":%41%2F%zz", ":a:b") + pick("", "@") +
			pick("", "host", "h.example", "[::1]", "10.0.0.1") + pick("", ":", ":5432") + pick("", "/", "/db", "/d b")
		for i, n := 0, r.IntN(4); i < n; i++ {
			u += pick("?", "&", "&&") + pick("sslmode", "options", "application_name", "password", "a b", "%6F") +
				pick("", "=", "=x", "=a+b%20c", "=a=b", "=%C3%BC", "=50%")
		}
		urls = append(urls, u)
	}
	script := `
import json, sys
from sqlalchemy.engine import make_url
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
out = []
for url in json.load(sys.stdin):
    try:
        args, kwargs = PGDialect_psycopg2().create_connect_args(make_url(url))
        out.append({k: str(v[-1] if isinstance(v, (list, tuple)) else v) for k, v in kwargs.items() if v != ""})
    except Exception:
        out.append(None)
print(json.dumps(out))
`
	in, err := json.Marshal(urls)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(testenv.DagsterBin(t), "python"), "-c", script)
	cmd.Stdin = strings.NewReader(string(in))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []map[string]string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	for i, u := range urls {
		got, ok := parameters(u)
		if want[i] == nil { // Dagster does not open it
			continue
		}
		if d := testenv.Diff(map[string]string(got), want[i]); d != "" {
			t.Errorf("parameters(%q), %v (-got +want):\n%s", u, ok, d)
		}
	}
}

// What cannot be kept to, and would make a connection less safe, is refused by its name; no error
// shows the password.
func TestAddressesThatAreRefused(t *testing.T) {
	for address, want := range map[string]string{
		"postgresql://u:hunter2@h/d?gssencmode=require":      "gssencmode=require",
		"postgresql://u:hunter2@h/d?sslcrl=/x":               "parameter sslcrl",
		"postgresql://u:hunter2@h/d?requirepeer=postgres":    "parameter requirepeer",
		"postgresql://u:hunter2@h/d?sslrootcert=/no/such":    "/no/such",
		"postgresql://u:hunter2@h/d?sslmode=hunter":          "sslmode is invalid",
		"postgresql://u:hunter2@h/d?keepalives_idle=soon":    `"soon"`,
		"postgresql://u:hunter2@h/d?target_session_attrs=no": "a value that is not allowed",
		"mysql://u:hunter2@h/d":                              "a URL such as postgresql://",
	} {
		_, err := Open(t.Context(), config.Secret(address))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%s) = %v, want %s", address, err, want)
		}
	}
}
