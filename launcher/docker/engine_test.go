//go:build real

package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// bench is a test with a real engine.
type bench struct {
	*testing.T
	engine *client.Client
	image  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	image := testenv.DockerImage(t)
	engine, err := client.New(client.FromEnv)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() }) // nothing is written through it
	return &bench{T: t, engine: engine, image: image}
}

func (b *bench) request(command ...string) *launcher.Request {
	req := &launcher.Request{ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Token: "t", Instance: "test",
		Image: b.image, Command: command, At: time.Now(), Job: "job"}
	b.Cleanup(func() {
		_, err := b.engine.ContainerRemove(context.Background(), req.ID.String(),
			client.ContainerRemoveOptions{Force: true})
		if err != nil && !strings.Contains(err.Error(), "No such container") {
			b.Error(err)
		}
	})
	return req
}

func (b *bench) launch(l launcher.Launcher, req *launcher.Request) launcher.Handle {
	b.Helper()
	got, err := l.Launch(b.Context(), req)
	if err != nil {
		b.Fatal(err)
	}
	return got.Handle
}

func (b *bench) until(l launcher.Launcher, h launcher.Handle, ok func(launcher.Health) bool) (health launcher.Health) {
	b.Helper()
	testenv.Eventually(b, time.Minute, func() (bool, string) {
		var err error
		health, err = l.Health(b.Context(), h)
		return err == nil && ok(health), fmt.Sprintf("%+v, %v", health, err)
	})
	return health
}

func ended(h launcher.Health) bool { return h.Status.Ended() }

func TestOutOfMemory(t *testing.T) {
	b := newBench(t)
	l := must(t, "{network: none, memory: 64Mi}")
	worker := b.until(l, b.launch(l, b.request("tail", "/dev/zero")), ended)
	if worker.Cause != launcher.CauseOOM || worker.Exit == nil || *worker.Exit != 137 {
		t.Errorf("a worker that the kernel killed: %+v, want cause oom", worker)
	}
	child := b.until(l, b.launch(l, b.request("sh", "-c", "tail /dev/zero; exit 3")), ended)
	if child.Cause != launcher.CauseExit || *child.Exit != 3 {
		t.Errorf("a worker whose child the kernel killed: %+v, want cause exit", child)
	}
	big := b.request("tail", "/proc/meminfo")
	big.Resources.MemoryBytes = 128 << 20
	b.launch(l, big)
	got, err := b.engine.ContainerInspect(t.Context(), big.ID.String(), client.ContainerInspectOptions{})
	if err != nil || got.Container.HostConfig.Memory != 128<<20 {
		t.Errorf("a run's own memory: %+v, %v, want 128 MiB", got.Container.HostConfig, err)
	}
}

func TestKilledAndRemovedFromOutside(t *testing.T) {
	b := newBench(t)
	l := must(t, "{network: none}")
	killed := b.request("sleep", "600")
	h := b.launch(l, killed)
	if _, err := b.engine.ContainerKill(t.Context(), killed.ID.String(),
		client.ContainerKillOptions{Signal: "SIGKILL"}); err != nil {
		t.Fatal(err)
	}
	if got := b.until(l, h, ended); got.Status != launcher.Failed || got.Cause != launcher.CauseExit ||
		*got.Exit != 137 {
		t.Errorf("Health = %+v, want Failed with exit code 137", got)
	}
	if _, err := b.engine.ContainerRemove(t.Context(), killed.ID.String(), client.ContainerRemoveOptions{}); err !=
		nil {
		t.Fatal(err)
	}
	if got := b.until(l, h, func(launcher.Health) bool { return true }); got.Status != launcher.NotFound {
		t.Errorf("Health = %+v, want NotFound", got)
	}
}

// Nothing is lost if a daemon died between making the container and starting it.
func TestMadeAndNotStarted(t *testing.T) {
	b := newBench(t)
	l := must(t, "{network: none}")
	make := func(req *launcher.Request, instance string) {
		t.Helper()
		_, err := b.engine.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Name: req.ID.String(),
			Config: &container.Config{Image: b.image, Cmd: req.Command,
				Labels: map[string]string{"dagster/run_id": req.ID.Run, "slipway-instance": instance,
					"slipway-attempt": "1"}},
			HostConfig: &container.HostConfig{NetworkMode: "none"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	req := b.request("true")
	make(req, "test")
	if got := b.until(l, b.launch(l, req), ended); got.Status != launcher.Succeeded {
		t.Errorf("Health = %+v, want Succeeded", got)
	}
	canceled := b.request("true")
	make(canceled, "test")
	if was, err := l.Terminate(t.Context(), launcher.Handle(canceled.ID.String()), 0); err != nil || !was {
		t.Errorf("Terminate of a container that was not started = %v, %v", was, err)
	}
	theirs := b.request("true")
	make(theirs, "another")
	if got, err := l.Launch(t.Context(), theirs); !errors.Is(err, launcher.ErrInvalid) {
		t.Errorf("Launch where another instance has the name = %+v, %v, want ErrInvalid", got, err)
	}
}

func TestAdopt(t *testing.T) {
	b := newBench(t)
	l := must(t, "{network: none}")
	run := uuid.NewString()
	made, err := b.engine.ContainerCreate(t.Context(), client.ContainerCreateOptions{ // as Dagster's launcher does
		Config: &container.Config{Image: b.image, Cmd: []string{"sleep", "600"},
			Labels: map[string]string{"dagster/run_id": run}},
		HostConfig: &container.HostConfig{NetworkMode: "none"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := b.engine.ContainerRemove(context.Background(), made.ID,
			client.ContainerRemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
	if _, err := b.engine.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	a, _ := launcher.As[launcher.Adopter](l)
	h, ok := a.Adopt(launcher.Foreign{Run: run, Tags: map[string]string{"docker/container_id": made.ID}})
	if got := b.until(l, h, func(launcher.Health) bool { return true }); !ok || got.Status != launcher.Running {
		t.Errorf("Health of an adopted container = %+v, want Running", got)
	}
	forged, _ := a.Adopt(launcher.Foreign{Run: uuid.NewString(),
		Tags: map[string]string{"docker/container_id": made.ID}})
	if was, err := l.Terminate(t.Context(), forged, 0); err != nil || was {
		t.Errorf("Terminate by a forged tag = %v, %v, want that it finds nothing", was, err)
	}
	if was, err := l.Terminate(t.Context(), h, 0); err != nil || !was {
		t.Errorf("Terminate of an adopted container = %v, %v", was, err)
	}
}

func TestNetworks(t *testing.T) {
	b := newBench(t)
	names := []string{"slipway-test-" + uuid.NewString()[:8], "slipway-test-" + uuid.NewString()[:8]}
	for _, n := range names {
		if _, err := b.engine.NetworkCreate(t.Context(), n, client.NetworkCreateOptions{Driver: "bridge"}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := b.engine.NetworkRemove(context.Background(), n, client.NetworkRemoveOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	l := must(t, fmt.Sprintf("{networks: [%s, %s]}", names[0], names[1]))
	req := b.request("true")
	b.until(l, b.launch(l, req), ended)
	got, err := b.engine.ContainerInspect(t.Context(), req.ID.String(), client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if got.Container.NetworkSettings.Networks[n] == nil {
			t.Errorf("the worker is not in network %s", n)
		}
	}
	if _, err := b.engine.ContainerRemove(t.Context(), req.ID.String(), client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	missing := must(t, fmt.Sprintf("{networks: [%s, no-such-network]}", names[0]))
	if got, err := missing.Launch(t.Context(), b.request("true")); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "no-such-network") {
		t.Errorf("Launch with a network that is missing = %+v, %v, want ErrInvalid", got, err)
	}
}

func TestImageThatIsNotThere(t *testing.T) {
	b := newBench(t)
	for settings, want := range map[string]string{
		"{network: none, pull: never}":      "No such image",
		"{network: none, pull_timeout: 1s}": "cannot be pulled",
	} {
		l := must(t, settings)
		req := b.request("true")
		req.Image = "127.0.0.1:1/missing/nothing:1"
		_, err := launchTold(t, l, req)
		if !errors.Is(err, launcher.ErrInvalid) || launcher.CauseOf(err) != launcher.CauseImagePull ||
			!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "missing/nothing:1") {
			t.Errorf("%s: Launch = %v, want ErrInvalid with cause image_pull and %q", settings, err, want)
		}
	}
}

// With a real registry and a login, the pull runs independently of the launches and reports its
// progress.
func TestPull(t *testing.T) {
	b := newBench(t)
	address := registry(t)
	image := address + "/team/worker:1"
	docker := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(),
			"docker", append([]string{"--config", filepath.Join(t.TempDir(), "docker")}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
	}
	l := must(t, fmt.Sprintf("{network: none, registry: {url: %q, username: ann, password: hunter2}}", address))
	early := b.request("true")
	early.Image = image
	if _, err := launchTold(t, l, early); launcher.CauseOf(err) != launcher.CauseImagePull ||
		!strings.Contains(err.Error(), "manifest unknown") {
		t.Errorf("Launch before the image is pushed = %v, want cause image_pull", err)
	}
	config := t.TempDir()
	for _, args := range [][]string{{"tag", b.image, image}, {"login", "-u", "ann", "-p", "hunter2", address},
		{"push", "-q", image}} {
		if out, err := exec.CommandContext(t.Context(),
			"docker", append([]string{"--config", config}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
	}
	docker("rmi", image)
	for settings, context := range map[string]string{
		"{network: none, pull_timeout: 20s}": `{}`,
		fmt.Sprintf("{network: none, registry: {url: %q, username: ann, password: hunter2}}",
			address): fmt.Sprintf(`{"registry": {"url": %q, "username": "ann", "password": "wrong"}}`, address),
	} {
		denied := b.request("true")
		denied.Image, denied.Overrides = image,
			[]launcher.Override{{Source: "container_context.docker", JSON: json.RawMessage(context)}}
		if _, err := launchTold(t, must(t, settings), denied); launcher.CauseOf(err) != launcher.CauseImagePull ||
			!strings.Contains(err.Error(), "auth") {
			t.Errorf("Launch with %s and %s = %v, want cause image_pull", settings, context, err)
		}
	}
	req := b.request("true")
	req.Image = image
	_, err := l.Launch(t.Context(), req)
	if notes := launcher.Notes(err); !errors.Is(err, launcher.ErrPending) || len(notes) == 0 ||
		!strings.Contains(notes[0].Text, image) {
		t.Errorf("first Launch = %v, want ErrPending and a note that names the image", err)
	}
	if _, err := launchTold(t, l, req); err != nil {
		t.Fatal(err)
	}
	if got := b.until(l, launcher.Handle(req.ID.String()), ended); got.Status != launcher.Succeeded {
		t.Errorf("Health = %+v", got)
	}
	docker("rm", req.ID.String())
	docker("rmi", image)
	t.Setenv("DOCKER_CONFIG", config) // docker login has put it there
	known := b.request("true")
	known.Image = image
	if _, err := launchTold(t, must(t, "{network: none}"), known); err != nil {
		t.Errorf("Launch with a login of docker login = %v", err)
	}
	b.until(l, launcher.Handle(known.ID.String()), ended)
	docker("rm", known.ID.String())
	docker("rmi", image)
}

// A registry sees its own login, and never that of another registry.
func TestLoginIsForItsRegistry(t *testing.T) {
	b := newBench(t)
	var mu sync.Mutex
	var shown []string
	server := httptest.NewUnstartedServer(nil)
	address := server.Listener.Addr().String()
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		write := func(text string) {
			_, _ = io.WriteString(w, text) // the client may have left
		}
		w.Header().Set("Content-Type", "application/json")
		user, password, ok := r.BasicAuth()
		switch {
		case r.URL.Path == "/token":
			if ok {
				mu.Lock()
				shown = append(shown, user+":"+password)
				mu.Unlock()
			}
			write(`{"token": "t", "access_token": "t"}`)
		case r.Header.Get("Authorization") != "Bearer t":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:team/etl:pull"`, address))
			w.WriteHeader(http.StatusUnauthorized)
			write(`{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}`)
		case r.URL.Path == "/v2/":
		default:
			w.WriteHeader(http.StatusNotFound)
			write(`{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}`)
		}
	})
	server.Start()
	t.Cleanup(server.Close)
	for url, want := range map[string]int{"127.0.0.1:1": 0, "https://index.docker.io/v1/": 0, address: 1, "http://" + address + "/v2/": 1} {
		mu.Lock()
		shown = nil
		mu.Unlock()
		req := b.request("true")
		req.Image = address + "/team/etl:1"
		_, err := launchTold(t,
			must(t, fmt.Sprintf("{network: none, registry: {url: %q, username: puller, password: secret}}", url)), req)
		if err == nil || !strings.Contains(err.Error(), "manifest unknown") {
			t.Errorf("login of %s: Launch = %v, want that the registry is asked and has no such image", url, err)
		}
		mu.Lock()
		if got := slices.Compact(slices.Clone(shown)); len(got) != want || want > 0 && got[0] != "puller:secret" {
			t.Errorf("login of %s: the registry at %s was shown %q", url, address, shown)
		}
		mu.Unlock()
	}
}

// registry starts Debian's docker-registry and returns its address.
func registry(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("docker-registry"); err != nil {
		testenv.Missing(t, "docker", "no docker-registry program: apt-get install docker-registry")
	}
	dir, address := t.TempDir(), testenv.FreeAddress(t)
	users, err := exec.CommandContext(t.Context(), "htpasswd", "-nbB", "ann", "hunter2").Output()
	if err != nil {
		testenv.Missing(t, "docker", "no htpasswd program: apt-get install apache2-utils")
	}
	settings := fmt.Sprintf(
		"version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\nauth: "+
			"{htpasswd: {realm: test, path: %q}}\n", dir, address, filepath.Join(dir, "users"))
	for name, text := range map[string]string{"users": string(users), "config.yml": settings} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Server(t, address, "docker-registry", "serve", filepath.Join(dir, "config.yml"))
	return address
}

// An engine works over ssh as over its socket.
func TestEngineOverSSH(t *testing.T) {
	b := newBench(t)
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		testenv.Missing(t, "docker", "no sshd: apt-get install openssh-server")
	}
	dir, address := t.TempDir(), testenv.FreeAddress(t)
	for _, key := range []string{"host", "user"} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "",
			"-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	public := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Join(bytes.Fields(text)[:2], []byte(" "))
	}
	host, port, _ := strings.Cut(address, ":")
	files := map[string]string{
		"authorized": string(public("user")) + "\n",
		"known":      fmt.Sprintf("[%s]:%s %s\n", host, port, public("host")),
		"sshd": fmt.Sprintf(
			"ListenAddress %s\nHostKey %s/host\nAuthorizedKeysFile %s/authorized\nStrictModes no\nUsePAM no\nPidFile "+
				"none\nPermitRootLogin yes\nAllowStreamLocalForwarding yes\n",
			address, dir, dir),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		testenv.Missing(t, "docker", "sshd needs root: "+err.Error())
	}
	testenv.Server(t, address, sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd"))
	l := must(t, fmt.Sprintf("{host: %q, network: none, ssh: {key: %q, known_hosts: %q}}",
		"ssh://root@"+address+testenv.DockerSocket(), filepath.Join(dir, "user"), filepath.Join(dir, "known")))
	if got := b.until(l, b.launch(l, b.request("true")), ended); got.Status != launcher.Succeeded {
		t.Errorf("Health = %+v", got)
	}
	c, _ := launcher.As[launcher.Checker](l)
	if got := c.Check(t.Context()); len(got) == 0 || !got[0].OK {
		t.Errorf("Check = %+v", got)
	}
}

func TestCheck(t *testing.T) {
	b := newBench(t)
	c, _ := launcher.As[launcher.Checker](must(t,
		fmt.Sprintf("{image: %q, networks: [none, no-such-network]}", b.image)))
	text, err := json.Marshal(c.Check(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"engine", b.image, "no-such-network", "docker network create"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("Check = %s, want %q in it", text, want)
		}
	}
	dead, _ := launcher.As[launcher.Checker](must(t, "{host: 'unix:///no/such/socket'}"))
	if got := dead.Check(t.Context()); len(got) != 1 || got[0].OK || got[0].Fix == "" {
		t.Errorf("Check without an engine = %+v", got)
	}
}

// A worker whose logging driver keeps no output is not a missing worker.
func TestOutputThatIsNotKept(t *testing.T) {
	b := newBench(t)
	l := must(t, "{network: none, container_kwargs: {log_config: {type: none}}}")
	h := b.launch(l, b.request("sh", "-c", "echo lost; exit 3"))
	if got := b.until(l, h, ended); got.Status != launcher.Failed || len(got.Tail) > 0 {
		t.Errorf("Health = %+v", got)
	}
	reader, _ := launcher.As[launcher.LogReader](l)
	_, err := reader.Logs(t.Context(), h, launcher.LogOptions{})
	if !errors.Is(err, launcher.ErrNotFound) || strings.Contains(fmt.Sprint(err), "no such worker") ||
		!strings.Contains(fmt.Sprint(err), `log driver "none"`) {
		t.Errorf("Logs = %v, want that the driver keeps no output", err)
	}
}
