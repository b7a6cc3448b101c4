//go:build real

package testenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// FaultsEnv names the environment variable that turns the long tests of faults on.
const FaultsEnv = "SLIPWAY_TEST_FAULTS"

// Faults skips the test if the long tests of faults are off.
func Faults(t testing.TB) {
	t.Helper()
	if !long() && os.Getenv(FaultsEnv) == "" {
		Missing(t, "faults",
			"make test-faults runs the long tests of faults: kills, stalls, replaced workers, every state of the model")
	}
}

// NotFaults skips the test if the long tests of faults are on, because make test runs it.
func NotFaults(t testing.TB) {
	t.Helper()
	if !long() && os.Getenv(FaultsEnv) != "" {
		t.Skip("make test runs it")
	}
}

// Soak skips the test except in the long form of the suites.
func Soak(t testing.TB) {
	t.Helper()
	if !long() {
		t.Skip("make soak runs it")
	}
}

// long reports whether the suites run in their long form.
func long() bool { return os.Getenv("SLIPWAY_SOAK") != "" }

// Postgres makes an empty database for the test and returns its address.
func Postgres(t testing.TB) string {
	t.Helper()
	server := os.Getenv(PostgresEnv)
	if server == "" {
		Missing(t, "postgres", "set "+PostgresEnv+" to the address of a server, or run make test, which starts one")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	address, drop, err := Database(ctx, server)
	if err != nil {
		t.Fatalf("%s: %v", PostgresEnv, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return address
}

// PostgresIn is [Postgres] with a time zone for the sessions of the database.
func PostgresIn(t testing.TB, zone string) string {
	t.Helper()
	address := Postgres(t)
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(),
		"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), '"+zone+"'); END $$")
	if err = errors.Join(err, conn.Close(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatal(err)
	}
	return address
}

// PgBouncer starts a PgBouncer with a pool mode in front of the server at address. It returns the
// address of the PgBouncer.
func PgBouncer(t testing.TB, address, mode string) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		Missing(t, "pgbouncer", "install Debian's pgbouncer")
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	listens := FreeAddress(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "pgbouncer.ini")
	_, port, _ := net.SplitHostPort(listens) // net.Listen returned it
	text := fmt.Sprintf(
		"[databases]\n* = host=%s port=%s user=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %s\nauth_type "+
			"= any\npool_mode = %s\nunix_socket_dir =\nignore_startup_parameters = extra_float_digits\n",
		u.Hostname(), u.Port(), u.User.Username(), port, mode)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{bin, file}
	if os.Getuid() == 0 { // pgbouncer refuses to run as root
		for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args...)
	}
	Server(t, listens, args[0], args[1:]...)
	u.Host = listens
	return u.String()
}

// DagsterBin returns the folder of the programs of real Dagster (python, dagster,
// dagster-webserver). make venv installs them into .venv.
func DagsterBin(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(Root(t), ".venv", "bin")
	if _, err := os.Stat(filepath.Join(bin, "dagster-webserver")); err != nil {
		Missing(t, "dagster", "no .venv with Dagster in the project: run make venv")
	}
	return bin
}

// OlderEnv names the environment variable that turns on the tests with older releases of Dagster
// and of Slipway.
const OlderEnv = "SLIPWAY_TEST_OLDER"

// Releases returns, by version, the folders with the programs of other releases of Dagster. make
// test-releases installs them.
func Releases(t testing.TB) map[string]string {
	t.Helper()
	if !long() && os.Getenv(OlderEnv) == "" {
		Missing(t, "releases", "make test-releases installs other releases of Dagster and runs the tests with them")
	}
	known, err := filepath.Glob(filepath.Join(Root(t), "hack", "python", "releases", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	bins := map[string]string{}
	for _, f := range known {
		version := strings.TrimSuffix(filepath.Base(f), ".txt")
		dir := filepath.Join(Root(t), ".venvs", version)
		if _, err := os.Stat(filepath.Join(dir, ".complete")); err == nil {
			bins[version] = filepath.Join(dir, "bin")
		}
	}
	if len(bins) == 0 {
		Missing(t, "releases", "no other releases of Dagster in .venvs: run make test-releases, which installs them")
	}
	return bins
}

// CgroupEnv names the environment variable with the cgroup below which tests make cgroups. It is
// for a user who may not make them below the root cgroup.
const CgroupEnv = "SLIPWAY_TEST_CGROUP"

// DockerSocket returns the path of the socket of the engine that hack/with-docker uses.
func DockerSocket() string {
	return strings.TrimPrefix(cmp.Or(os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock"), "unix://")
}

// DockerImageEnv names the environment variable with an image of the local Docker engine. The image
// has sh and Dagster.
const DockerImageEnv = "SLIPWAY_TEST_IMAGE"

// DockerImage returns the image in which tests run workers.
func DockerImage(t testing.TB) string {
	t.Helper()
	image := os.Getenv(DockerImageEnv)
	if image == "" {
		Missing(t, "docker", "set "+DockerImageEnv+
			" to an image of the local engine, or run make test-targets, which starts one and builds it")
	}
	return image
}

// KubeconfigEnv names the environment variable with the path of a kubeconfig for a test cluster.
// The cluster has the image that [DockerImage] returns.
const KubeconfigEnv = "SLIPWAY_TEST_KUBECONFIG"

// Kubernetes returns the kubeconfig of a cluster and an image in which workers can run there.
func Kubernetes(t testing.TB) (kubeconfig, image string) {
	t.Helper()
	kubeconfig, image = os.Getenv(KubeconfigEnv), os.Getenv("SLIPWAY_TEST_IMAGE")
	if kubeconfig == "" || image == "" {
		Missing(t, "kubernetes", "make test-targets starts a cluster of one node; or set "+KubeconfigEnv+
			" and SLIPWAY_TEST_IMAGE")
	}
	return kubeconfig, image
}

// AzureEnv names the environment variable with the settings of an aci launcher, as JSON, for a real
// subscription.
const AzureEnv = "SLIPWAY_TEST_AZURE"
