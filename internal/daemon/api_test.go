package daemon

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/storage/sqlite"
	dagsterpb "github.com/slipway-run/slipway/proto/dagster"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestAddressOfTheEndpoint(t *testing.T) {
	for name, c := range map[string]struct {
		postgres bool
		set      instance.Terminate
		listen   string
		info     string // or the error's text
	}{
		"sqlite": {false, instance.Terminate{}, "/home/slipway/api.sock",
			`{"host": "localhost", "socket": "/home/slipway/api.sock"}`},
		"postgres needs a word": {true, instance.Terminate{}, "", "terminate.advertise: required"},
		"postgres on one machine": {true, instance.Terminate{LocalOnly: true}, "/home/slipway/api.sock",
			`{"host": "localhost", "socket": "/home/slipway/api.sock"}`},
		"advertised": {true, instance.Terminate{Advertise: "slipway:4001"}, ":4001",
			`{"host": "slipway", "port": 4001}`},
		"advertised with another": {true,
			instance.Terminate{Advertise: "slipway:80", Listen: "0.0.0.0:4001", Cert: "c"}, "0.0.0.0:4001",
			`{"host": "slipway", "port": 80, "use_ssl": true}`},
		"listen is not an address to reach": {false, instance.Terminate{Listen: ":4001"}, "", "is not a host:port"},
	} {
		in := &instance.Instance{Home: "/home"}
		in.Settings.Terminate = c.set
		if c.postgres {
			in.Storage.URL = "postgresql://h/d"
		}
		a, err := addressOf(in)
		if err != nil {
			a.listen, a.info = "", err.Error()
		}
		if a.listen != c.listen || !strings.Contains(a.info, c.info) {
			t.Errorf("%s: listens on %q, says %q", name, a.listen, a.info)
		}
	}
}

func TestSocketPathsStayShort(t *testing.T) {
	t.Setenv("HOME", "/root")
	t.Setenv("XDG_CACHE_HOME", "")
	long := "/" + strings.Repeat("long/", 40)
	if a, b := socketOf(long), socketOf(long+"x"); len(a) > maxSocket || a == b {
		t.Errorf("sockets %s and %s", a, b)
	}
}

// The endpoint says yes only to runs of this instance that storage shows as being canceled.
func TestEndpointHoldsNoAuthority(t *testing.T) {
	d := storagetest.NewSQLite(t)
	s, err := sqlite.Open(t.Context(), d.Location)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fence, _, err := s.Lead(t.Context(), "slipway-test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	made := func(instance string, canceling bool) string {
		id := uuid.NewString()
		if err := d.Enqueue(id, nil); err != nil {
			t.Fatal(err)
		}
		if instance != "" {
			if _, err := s.Claim(t.Context(), fence,
				[]storage.Claim{{Run: id, Launcher: "local", Instance: instance, Token: "t", At: time.Now()}}); err !=
				nil {
				t.Fatal(err)
			}
		}
		if canceling {
			if err := d.Event(dagster.NewEvent(dagster.Run{ID: id, Job: "light"}, dagster.RunCanceling, time.Now(),
				"")); err != nil {
				t.Fatal(err)
			}
		}
		return id
	}
	socket := filepath.Join(t.TempDir(), "s")
	daemon := &Daemon{Store: s, Log: slog.New(slog.DiscardHandler), name: "i",
		address: address{network: "unix", listen: socket}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- daemon.serveAPI(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := dagsterpb.NewDagsterApiClient(conn)
	testenv.Eventually(t, 10*time.Second, func() (bool, string) {
		got, err := c.Ping(ctx, &dagsterpb.PingRequest{Echo: "hello"}, grpc.UseCompressor("gzip"))
		return err == nil && got.GetEcho() == "hello", "no answer to Ping"
	})
	for name, k := range map[string]struct {
		run         string
		cancel, can bool
	}{
		"ours and canceling":      {made("i", true), true, true},
		"ours and starting":       {made("i", false), false, true},
		"another instance's":      {made("j", true), false, false},
		"a run without a launch":  {made("", true), false, false},
		"a run that is not there": {uuid.NewString(), false, false},
	} {
		request := `{"__class__": "X", "run_id": "` + k.run + `"}`
		got, err := c.CancelExecution(ctx, &dagsterpb.CancelExecutionRequest{SerializedCancelExecutionRequest: request})
		if err != nil || strings.Contains(got.GetSerializedCancelExecutionResult(), `"success": true`) != k.cancel {
			t.Errorf("%s: CancelExecution = %v, %v, want %v", name, got, err, k.cancel)
		}
		can, err := c.CanCancelExecution(ctx,
			&dagsterpb.CanCancelExecutionRequest{SerializedCanCancelExecutionRequest: request})
		if err != nil || strings.Contains(can.GetSerializedCanCancelExecutionResult(), `"can_cancel": true`) != k.can {
			t.Errorf("%s: CanCancelExecution = %v, %v, want %v", name, can, err, k.can)
		}
	}
	if _, err := c.CancelExecution(ctx,
		&dagsterpb.CancelExecutionRequest{SerializedCancelExecutionRequest: "{"}); err == nil {
		t.Error("a request that cannot be read was answered")
	}
	if s, err := d.Status(made("i", false)); err != nil || s != dagster.Starting {
		t.Errorf("a call changed storage: %s, %v", s, err)
	}
}
