//go:build real

package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/emulator/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

// azure is an Azure emulator whose containers are in the local engine, with a record of what it was
// sent.
type azure struct {
	*aci.Emulator
	url string

	mu   sync.Mutex
	puts []string
}

func (a *azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has gone
		}
		a.mu.Lock()
		a.puts = append(a.puts, string(body))
		a.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	a.Emulator.ServeHTTP(w, r)
}

func newAzure(t *testing.T, files string) *azure {
	t.Helper()
	d, err := aci.NewDocker("host", 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := aci.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	s.Timing.StopGrace = 20 * time.Second
	e, err := aci.New(aci.Options{Backend: d, State: t.TempDir(), Files: files, Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	a := &azure{Emulator: e}
	server := httptest.NewServer(a)
	a.url = server.URL
	t.Cleanup(func() {
		for _, name := range e.Names() {
			if err := e.Befall("", "", name, "vanish"); err != nil {
				t.Error(err)
			}
		}
		server.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// group returns the name of the group of a run's attempt, or "" if there is none.
func (a *azure) group(run string, attempt int) string {
	for _, name := range a.Names() {
		if strings.HasPrefix(name, fmt.Sprintf("dagster-run-%s-%d-", run, attempt)) {
			return name
		}
	}
	return ""
}

// The settings that guides for Dagster show, beside a stock dagster.yaml, with an Azure emulator
// whose containers are real. Real workers end as they should, and the log of each run says how.
func TestDockerAzure(t *testing.T) {
	image := testenv.DockerImage(t)
	testenv.Beside(t, testenv.Dagster)
	testenv.DagsterBin(t)
	location := testenv.Postgres(t)
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	if password == "" {
		t.Fatal("the tests' server has no password")
	}
	w := newWorld(t, location, "")
	for name, value := range map[string]string{"USER": u.User.Username(), "PASSWORD": password, "HOST": u.Hostname(),
		"DB": strings.TrimPrefix(u.Path, "/")} {
		w.env = append(w.env, "DAGSTER_POSTGRES_"+name+"="+value)
	}
	fates, files := filepath.Join(testenv.Root(t), "test", "fates"), t.TempDir()
	for share, folder := range map[string]string{"fates": fates, "home": w.home} {
		if err := os.MkdirAll(filepath.Join(files, "account"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(folder, filepath.Join(files, "account", share)); err != nil {
			t.Fatal(err)
		}
	}
	a := newAzure(t, files)
	w.write("dagster.yaml", parked+fmt.Sprintf(`
storage:
  postgres:
    postgres_db:
      username: {env: DAGSTER_POSTGRES_USER}
      password: {env: DAGSTER_POSTGRES_PASSWORD}
      hostname: {env: DAGSTER_POSTGRES_HOST}
      db_name: {env: DAGSTER_POSTGRES_DB}
      port: %s
`, u.Port()))
	w.write("slipway.yaml", fmt.Sprintf(`
instance_id: e2e-%s
terminate: {local_only: true}
queue: {max_concurrent_runs: 20}
monitoring:
  max_resume_run_attempts: 2
  deaths: [{causes: [preempted], do: again, started: resume}, {causes: [oom, exit], do: fail}]
default: azure
launchers:
  azure:
    module: my_package.azure_launcher
    class: AzureContainerInstanceRunLauncher
    python: {"*": python}
    allow: {images: ["*"], tags: [slipway/aci]}
    config:
      resource_group: "my-dagster-rg"
      subscription_id: "11111111-2222-3333-4444-555555555555"
      image: %q
      cpu: 2.0
      memory: 4.0
      environment_variables:
        DAGSTER_POSTGRES_USER: "${DAGSTER_POSTGRES_USER}"
        DAGSTER_POSTGRES_PASSWORD: "${DAGSTER_POSTGRES_PASSWORD}"
        DAGSTER_POSTGRES_HOST: "${DAGSTER_POSTGRES_HOST}"
        DAGSTER_POSTGRES_DB: "${DAGSTER_POSTGRES_DB}"
      # Towards the emulator, and what the tests' workers need of this machine.
      endpoint: %q
      allow_http: true
      credential: token
      token: a-token
      poll: 500ms
      pull_patience: 3s
      volumes:
      - name: fates
        mount_path: %q
        read_only: true
        share: fates
        storage_account: account
        storage_account_key: hunter2
      - {name: share-of-home, mount_path: %q, share: home, storage_account: account, storage_account_key: hunter2}
`, uuid.NewString()[:8], image, a.url, fates, w.home))
	server := w.webserver("test/fates/fates.py", "test/fates/containers.py")
	p := w.slipway()
	launch := func(job string, tags map[string]string, config map[string]any) string {
		t.Helper()
		location := map[bool]string{true: "containers", false: "fates"}[job == "eats"]
		id, err := server.Launch(t.Context(), webserver.Job{Location: location, Name: job, Tags: tags, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	forever := waitsFor(filepath.Join(w.home, "never"))
	good := launch("light", nil, nil)
	bad := launch("fails", nil, nil)
	big := launch("eats", map[string]string{"slipway/memory": "400Mi"}, nil) // it needs more than that
	missing := launch("light", map[string]string{"slipway/image": "127.0.0.1:1/missing/nothing:1"}, nil)
	canceled := launch("waits", nil, forever.Config)
	oom := launch("waits", nil, forever.Config)
	released := filepath.Join(w.home, "released")
	evicted := launch("waits", map[string]string{"slipway/aci": `{"priority": "spot_then_regular"}`},
		waitsFor(released).Config)
	for _, id := range []string{canceled, oom, evicted} {
		w.status(p, id, dagster.Started)
	}
	w.terminate(server, canceled)
	if err := a.Befall("", "", a.group(oom, 1), "oom"); err != nil {
		t.Error(err)
	}
	if err := a.Befall("", "", a.group(evicted, 1), "evict"); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
		return a.group(evicted, 2) != "", "the evicted run has no second worker; the daemon's log:\n" + p.output()
	})
	w.write("released", "")
	w.ended(3*time.Minute, p, good, bad, big, missing, canceled, oom, evicted)

	s := a.Settings()
	full := s
	full.Quota.Cores = 1
	a.Set(full)
	waits := launch("light", nil, nil)
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		said := w.says(waits)
		return strings.Contains(said, "has had no room since"), said + p.output()
	})
	a.Set(s)
	w.ended(2*time.Minute, p, waits)

	for _, c := range []struct {
		id   string
		want dagster.Status
		says []string
	}{
		{good, dagster.Success, []string{"Launching run in container group dagster-run-" + good + "-1-"}},
		{bad, dagster.Failure, nil},
		{big, dagster.Failure, []string{"Cause oom", "exit code 137", "0.4 GB"}},
		{missing, dagster.Failure, []string{"Cause image_pull", "127.0.0.1:1/missing/nothing:1"}},
		{canceled, dagster.Canceled, nil},
		{oom, dagster.Failure, []string{"Cause oom", "4 GB"}},
		{evicted, dagster.Success, []string{"Cause preempted", "Launching a new run worker to resume run",
			"spot container was evicted"}},
		{waits, dagster.Success, []string{"has had no room since", "StandardCores"}},
	} {
		r, said := w.run(c.id), w.says(c.id)
		if r.Status != c.want {
			t.Errorf("%s is %s, want %s:\n%s", r.Job, r.Status, c.want, said)
		}
		for _, text := range c.says {
			if !strings.Contains(said, text) {
				t.Errorf("%s: %q is missing in\n%s", r.Job, text, said)
			}
		}
		if strings.Contains(said, "hunter2") {
			t.Errorf("%s: a secret in its log:\n%s", r.Job, said)
		}
	}
	if n := w.count(good, dagster.RunStart); n != 1 {
		t.Errorf("%d events PIPELINE_START", n)
	}
	a.onlySecure(t, password)
	if strings.Contains(p.output(), "hunter2") || strings.Contains(p.output(), "SecureValue:") {
		t.Errorf("a secret in the daemon's log")
	}
	testenv.Eventually(t, 3*time.Minute, func() (bool, string) {
		r := w.run(good)
		return strings.HasSuffix(r.Cost, " USD"), fmt.Sprintf("cost %q", r.Cost)
	})
	out, err := w.command("launchers", "check", "--from-target", "azure")
	if err != nil || !strings.Contains(out, "a worker there opened the storage") ||
		!strings.Contains(string(out), "all permissions are there") {
		t.Errorf("launchers check --from-target = %v\n%s", err, out)
	}
	p.stop()
}

// onlySecure checks that a password was sent only as secureValue.
func (a *azure) onlySecure(t *testing.T, password string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.puts) == 0 {
		t.Fatal("nothing was PUT")
	}
	for _, put := range a.puts {
		var body any
		if err := json.Unmarshal([]byte(put), &body); err != nil {
			t.Fatal(err)
		}
		found := false
		var walk func(key string, v any)
		walk = func(key string, v any) {
			switch v := v.(type) {
			case map[string]any:
				if v["name"] == "DAGSTER_POSTGRES_PASSWORD" {
					found = v["secureValue"] == password && v["value"] == nil
				}
				for k, item := range v {
					walk(k, item)
				}
			case []any:
				for _, item := range v {
					walk(key, item)
				}
			case string:
				if v == "hunter2" && key != "storageAccountKey" {
					t.Errorf("a key is sent as %s", key)
				}
				if strings.Contains(v, ":"+password+"@") && key != "secureValue" {
					t.Errorf("the password is sent in %s: %s", key, v)
				}
			}
		}
		walk("", body)
		if !found {
			t.Errorf("the password is no secureValue in %s", put)
		}
	}
}

// azurePostgresEnv names the environment variable with a Postgres server that this machine and
// container groups can reach.
const azurePostgresEnv = "SLIPWAY_TEST_AZURE_PG"

// Real Dagster with a real subscription, or with any emulator of one. Faults that Azure cannot be
// asked for, such as an eviction, are tested on our own emulator only.
func TestRealAzure(t *testing.T) {
	settings, server := os.Getenv(testenv.AzureEnv), os.Getenv(azurePostgresEnv)
	if settings == "" || server == "" {
		testenv.Missing(t, "azure", "set "+testenv.AzureEnv+
			" to a launcher's settings as JSON, with an image that has Dagster and the files of test/fates in its "+
			"working directory, "+
			"and "+azurePostgresEnv+
			" to the address of a Postgres server that this machine and container groups reach; see "+
			"docs/launchers/aci.md")
	}
	testenv.DagsterBin(t)
	t.Setenv(testenv.PostgresEnv, server)
	w := newWorld(t, testenv.Postgres(t), "")
	w.write("slipway.yaml", fmt.Sprintf(`
instance_id: e2e-%s
allow_secrets_in_argv: true
terminate: {local_only: true}
default: azure
launchers:
  azure: {kind: aci, python: {"*": python}, allow: {images: ["*"]}, remove: 1s, config: %s}
`, uuid.NewString()[:8], settings))
	// The image has files with these names too.
	servers := map[string]string{}
	for _, name := range []string{"fates", "containers"} {
		text, err := os.ReadFile(filepath.Join(testenv.Root(t), "test/fates", name+".py"))
		if err != nil {
			t.Fatal(err)
		}
		w.write(name+".py", string(text))
		servers[name] = testenv.FreeAddress(t)
		w.codeServerOf(servers[name], name, name+".py")
	}
	ui := w.serves(webserver.Options{Servers: servers})
	p := w.slipway()
	launch := func(location, job string, tags map[string]string, config map[string]any) string {
		t.Helper()
		id, err := ui.Launch(t.Context(), webserver.Job{Location: location, Name: job, Tags: tags, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	const long = 20 * time.Minute // a pull on Azure takes minutes
	good := launch("fates", "light", nil, nil)
	bad := launch("fates", "fails", nil, nil)
	big := launch("containers", "eats", map[string]string{"slipway/memory": "500Mi"}, nil)
	missing := launch("fates", "light", map[string]string{"slipway/image": "mcr.microsoft.com/missing/nothing:1"}, nil)
	canceled := launch("fates", "waits", nil, waitsFor("/never").Config)
	testenv.Eventually(t, long, func() (bool, string) {
		return w.run(canceled).Status == dagster.Started, w.says(canceled) + p.output()
	})
	w.terminate(ui, canceled)
	w.ended(long, p, good, bad, big, missing, canceled)
	for _, c := range []struct {
		id    string
		want  dagster.Status
		cause string
	}{{good, dagster.Success, ""}, {bad, dagster.Failure, ""}, {big, dagster.Failure, "oom"},
		{missing, dagster.Failure, "image_pull"}, {canceled, dagster.Canceled, ""}} {
		r := w.run(c.id)
		if r.Status != c.want || c.cause != "" && r.Cause != c.cause {
			t.Errorf("%s is %s of %q, want %s of %q:\n%s", r.Job, r.Status, r.Cause, c.want, c.cause, w.says(c.id))
		}
	}
	if n := w.count(good, dagster.RunStart); n != 1 {
		t.Errorf("%d events PIPELINE_START", n)
	}
	out, err := w.command("launchers", "check", "--from-target", "--timeout", "10m", "azure")
	if err != nil || !strings.Contains(out, "a worker there opened the storage") {
		t.Errorf("launchers check --from-target = %v\n%s", err, out)
	}
	p.stop()
	testenv.Eventually(t, long, func() (bool, string) { // until no group is left
		out, err := w.command("sweep", "azure", "--grace", "0s")
		if err != nil {
			t.Errorf("sweep = %v\n%s", err, out)
		}
		return !strings.Contains(out, "dagster-run-"), out
	})
}
