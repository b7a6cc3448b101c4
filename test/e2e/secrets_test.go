//go:build real

package e2e_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/testenv"
)

// planted is a compute log manager with a secret among its settings.
const planted = `
from dagster import Field, StringSource
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

class Logs(LocalComputeLogManager):
    @classmethod
    def config_type(cls):
        return {"base_dir": StringSource, "secret": Field(str)}

    @classmethod
    def from_config_value(cls, inst_data, config_value):
        return cls(base_dir=config_value["base_dir"], inst_data=inst_data)
`

// Secrets in dagster.yaml do not show in the process list, wherever they are in that file. The test
// examines the worker, its supervisor and the processes of steps.
func TestSecretsDoNotShowInTheProcessList(t *testing.T) {
	testenv.Beside(t, testenv.Dagster)
	w := newWorld(t, testenv.Postgres(t), "launchers: {local: {kind: process}}\n")
	u, err := url.Parse(w.location)
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"PG=" + w.location, "PYTHONPATH=" + w.home}
	w.write("planted.py", planted)
	w.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: {env: PG}}}\n")
	// The webserver knows the real password only by the name of its variable, because it shows it
	// itself.
	server := w.webserver("test/fates/fates.py")
	user, at := u.User.Username(), u.Host+u.Path
	for i, form := range []string{
		fmt.Sprintf("storage: {postgres: {postgres_url: 'postgresql://%s@%s?password=TOPSECRET'}}\n", user, at),
		fmt.Sprintf("storage: {postgres: {postgres_url: 'postgresql://%s:/TOPSECRET#?%%@%s'}}\n", user, at),
		fmt.Sprintf("storage: {postgres: {postgres_db: {username: %s, hostname: %s, port: %s, db_name: %s, params: "+
			"{password: TOPSECRET}}}}\n", user, u.Hostname(), u.Port(), strings.Trim(u.Path, "/")),
		fmt.Sprintf("storage: {postgres: {postgres_url: {env: PG}}}\ncompute_logs: {module: planted, class: Logs, "+
			"config: {base_dir: %q, secret: TOPSECRET}}\n", w.home),
	} {
		w.write("dagster.yaml", parked+form)
		p := w.slipway()
		released := filepath.Join(w.home, fmt.Sprint("released", i))
		id, err := server.Launch(t.Context(), waitsFor(released))
		if err != nil {
			t.Fatal(err)
		}
		// A step is executed, so all processes exist.
		testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
			return w.count(id, "STEP_START") > 0, "no step has begun:\n" + w.story(id) + p.output()
		})
		worker := false
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil || len(files) == 0 {
			t.Skip("no /proc")
		}
		for _, f := range files {
			line, err := os.ReadFile(f)
			if err != nil {
				continue // it has ended
			}
			args := strings.Split(string(line), "\x00")
			worker = worker || slices.Contains(args, "execute_run") && ofHome(f, w.home)
			if strings.Contains(string(line), "TOPSECRET") {
				t.Errorf("%s\n%s shows the secret: %q", form, f, args)
			}
		}
		if !worker {
			t.Errorf("%s\nno worker in the process list, so that this test shows nothing", form)
		}
		w.write(filepath.Base(released), "")
		w.ended(2*time.Minute, p, id)
		if r := w.run(id); r.Status != dagster.Success {
			t.Errorf("%s\nthe run is %s:\n%s", form, r.Status, w.story(id))
		}
		p.stop()
	}
}

// ofHome reports whether a process has home in its environment. file is its cmdline in /proc.
func ofHome(file, home string) bool {
	env, err := os.ReadFile(filepath.Join(filepath.Dir(file), "environ"))
	return err == nil && strings.Contains("\x00"+string(env), "\x00DAGSTER_HOME="+home+"\x00")
}
