//go:build real

package e2e_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// definitions is a job that succeeds only in the folder of its code server, with the variables of
// the .env there.
const definitions = `
import os
import dagster as dg
import %s

@dg.op
def look():
    assert os.environ.get("MY_SECRET") == "s3cret", "MY_SECRET is %%r" %% os.environ.get("MY_SECRET")
    assert open("beside.txt").read() == "beside"

@dg.job
def looks():
    look()

defs = dg.Definitions(jobs=[looks])
`

// A project with relative folders, modules, packages and a .env file, which also names the storage.
// Every run succeeds under stock Dagster, under a daemon that is started in the folder of the
// project, and under one that is started elsewhere.
func TestRelativeProjectWithDotEnv(t *testing.T) {
	testenv.Faults(t)
	testenv.Beside(t, testenv.Dagster)
	store := t.TempDir()
	w := newWorld(t, store, "launchers: {local: {kind: process}}\nqueue: {max_concurrent_runs: 5}\n")
	const fromEnv = "storage: {sqlite: {base_dir: {env: STORE}}}\n"
	w.write("dagster.yaml", "telemetry: {enabled: false}\n"+fromEnv)
	w.write("beside.txt", "beside")
	w.write(".env", "MY_SECRET='s3cret'\nSTORE=${STORE_ROOT:-"+filepath.Dir(store)+"}/"+filepath.Base(store)+"\n")
	for _, dir := range []string{"sub/module", "sub/package", "src", "code"} {
		if err := os.MkdirAll(filepath.Join(w.home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, sibling := range map[string]string{"sub/module/__init__.py": "near", "sub/package/__init__.py": "near",
		"src/defs.py": "near_src", "code/etl.py": "near_code"} {
		w.write(file, fmt.Sprintf(definitions, sibling))
	}
	for _, sibling := range []string{"sub/near.py", "src/near_src.py", "code/near_code.py"} {
		w.write(sibling, "")
	}
	address := testenv.FreeAddress(t)
	host, port, _ := strings.Cut(address, ":")
	served := w.start("code-server", nil, filepath.Join(w.dagster(), "dagster"), "api", "grpc", "-h", host, "-p", port,
		"-f", "code/etl.py", "-d", "code")
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return false, served.output()
		}
		return c.Close() == nil, ""
	})
	locations := []string{"module", "package", "file", "served"}
	server := w.serves(webserver.Options{Workspace: `load_from:
- python_module: {module_name: module, working_directory: sub, location_name: module}
- python_package: {package_name: package, working_directory: sub, location_name: package}
- python_file: {relative_path: src/defs.py, working_directory: src, location_name: file}
- grpc_server: {host: ` + host + `, port: ` + port + `, location_name: served}
`})
	launch := func() (ids []string) {
		t.Helper()
		for _, location := range locations {
			id, err := server.Launch(t.Context(), webserver.Job{Location: location, Name: "looks"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		return ids
	}
	succeed := func(who string, p *process) {
		t.Helper()
		ids := launch()
		w.ended(3*time.Minute, p, ids...)
		for i, id := range ids {
			if r := w.run(id); r.Status != dagster.Success {
				t.Errorf("%s: the run of location %s is %s:\n%s", who, locations[i], r.Status, w.story(id))
			}
		}
	}
	stock := w.stockDaemon()
	succeed("stock Dagster", stock)
	stock.kill()

	w.write("dagster.yaml", parked+fromEnv)
	here := w.slipway()
	succeed("a daemon in the project's folder", here)
	here.stop()

	elsewhere := w.start("slipway", []string{"STORE=" + store}, "sh",
		"-c", `cd / && exec "$0" daemon --log-level debug`, testenv.Build(t, "slipway"))
	succeed("a daemon elsewhere", elsewhere)
	elsewhere.stop()
}
