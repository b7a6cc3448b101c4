package codeserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/codeserver"
	dagsterpb "github.com/slipway-run/slipway/proto/dagster"
)

// server is a code server whose runs are entries of a list, and which fails on request. The
// end-to-end tests use real ones.
type server struct {
	dagsterpb.UnimplementedDagsterApiServer
	mu      sync.Mutex
	runs    []string
	starts  int
	hold    chan struct{} // StartRun answers when it is closed, if it is not nil
	refuses string
	broken  error // the answer to every question, if it is not nil
	lists   bool
}

func (s *server) GetCurrentRuns(ctx context.Context, e *dagsterpb.Empty) (*dagsterpb.GetCurrentRunsReply, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	if !s.lists {
		return s.UnimplementedDagsterApiServer.GetCurrentRuns(ctx, e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(map[string]any{"__class__": "GetCurrentRunsResult", "current_runs": s.runs,
		"serializable_error_info": nil})
	return &dagsterpb.GetCurrentRunsReply{SerializedCurrentRuns: string(text)}, err
}

func (s *server) CanCancelExecution(_ context.Context,
	r *dagsterpb.CanCancelExecutionRequest) (*dagsterpb.CanCancelExecutionReply, error) {
	id, err := dagster.ParseRunRequest(r.SerializedCanCancelExecutionRequest)
	s.mu.Lock()
	defer s.mu.Unlock()
	return &dagsterpb.CanCancelExecutionReply{
		SerializedCanCancelExecutionResult: dagster.CanCancelExecutionResult(slices.Contains(s.runs, id))}, err
}

func (s *server) StartRun(_ context.Context, r *dagsterpb.StartRunRequest) (*dagsterpb.StartRunReply, error) {
	args, err := dagster.ParseObject(r.SerializedExecuteRunArgs)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.refuses == "" {
		s.starts++
		s.runs = append(s.runs, args.Value("pipeline_run_id").(string))
	}
	message := s.refuses
	s.mu.Unlock()
	if s.hold != nil {
		<-s.hold
	}
	text, err := json.Marshal(map[string]any{"__class__": "StartRunResult", "success": message == "",
		"message": message, "serializable_error_info": nil})
	return &dagsterpb.StartRunReply{SerializedStartRunResult: string(text)}, err
}

func (s *server) serve(t *testing.T, address string) {
	t.Helper()
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	dagsterpb.RegisterDagsterApiServer(g, s)
	go func() { _ = g.Serve(listener) }()
	t.Cleanup(g.Stop)
}

func open(t *testing.T, settings string) launcher.Launcher {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(settings), &doc); err != nil {
		t.Fatal(err)
	}
	v := config.Values{File: "slipway.yaml", Path: "launchers.code.config"}
	if len(doc.Content) > 0 {
		v.Node = doc.Content[0]
	}
	l, err := codeserver.Kind().Open(t.Context(), v, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const run = "9323e8b5-5971-49f9-9da9-02c2fd39230b"

func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// request returns a request for a run of a location with the given origin.
func request(origin string) *launcher.Request {
	return &launcher.Request{
		ID: launcher.ID{Run: run, Attempt: 1}, Instance: "test", At: time.Now(),
		InstanceRef: json.RawMessage(`{"__class__": "InstanceRef"}`),
		Run: json.RawMessage(`{"__class__": "PipelineRun", "run_id": "` + run +
			`", "pipeline_name": "j", "tags": {}, "external_pipeline_origin": {"__class__": ` +
			`"ExternalPipelineOrigin", "external_repository_origin": {"__class__": "ExternalRepositoryOrigin", ` +
			`"repository_location_origin": ` + origin + `, "repository_name": "r"}, "pipeline_name": "j"}}`),
	}
}

func at(socket string) *launcher.Request {
	return request(fmt.Sprintf(
		`{"__class__": "GrpcServerRepositoryLocationOrigin", "host": "localhost", "port": null, "socket": %q, `+
			`"location_name": "etl"}`, socket))
}

// A start whose answer was lost is found and not repeated, both with a server that lists its runs
// and with one that does not.
func TestLostAnswer(t *testing.T) {
	for _, lists := range []bool{true, false} {
		s, address := &server{lists: lists, hold: make(chan struct{})}, socket(t)
		s.serve(t, address)
		l, req := open(t, ""), at(address)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := l.Launch(ctx, req)
		cancel()
		if err == nil || errors.Is(err, launcher.ErrInvalid) || errors.Is(err, launcher.ErrPending) {
			t.Fatalf("lists %v: Launch without an answer = %v, want an error that says nothing of the outcome", lists,
				err)
		}
		close(s.hold)
		got, found, err := l.(launcher.Finder).Find(t.Context(), req)
		if err != nil || !found {
			t.Errorf("lists %v: Find = %+v, %v, %v, want the run", lists, got, found, err)
		}
		again, err := l.Launch(t.Context(), req)
		if err != nil || again.Handle != got.Handle || s.starts != 1 {
			t.Errorf("lists %v: Launch again = %+v, %v, and %d starts; want %s and one", lists, again, err, s.starts,
				got.Handle)
		}
		if h, err := open(t, "").Health(t.Context(), got.Handle); err != nil || h.Status != launcher.Running {
			t.Errorf("lists %v: Health = %+v, %v, want Running", lists, h, err)
		}
		other := strings.Replace(string(got.Handle), run, "another", 1)
		hs, err := l.(launcher.Batcher).HealthOf(t.Context(),
			[]launcher.Handle{launcher.Handle(other), got.Handle, "unix:/nowhere x", "what"})
		if err != nil || hs[0].Status != launcher.Unknown || hs[1].Status != launcher.Running ||
			hs[2].Status != launcher.Unknown || hs[3].Status != launcher.NotFound {
			t.Errorf("lists %v: HealthOf = %+v, %v", lists, hs, err)
		}
	}
}

// A start that did not reach its server is refused for all runs of that server. If the outcome of a
// start stays unknown, the run fails after a time.
func TestServerThatIsNotThere(t *testing.T) {
	address := socket(t)
	l, req := open(t, "server_timeout: 1h"), at(address)
	many := l.(launcher.Divider)
	place := many.PlaceOfRun(req.Run)
	_, err := l.Launch(t.Context(), req)
	if !errors.Is(err, launcher.ErrDenied) ||
		!strings.HasPrefix(err.Error(), "the code server at "+address+" does not answer: dial unix") {
		t.Errorf("Launch = %v, want ErrDenied that names the server", err)
	}
	if err := many.Ping(t.Context(), place); !errors.Is(err, launcher.ErrDenied) {
		t.Errorf("Ping(%s) = %v, want ErrDenied", place, err)
	}
	if _, _, err := l.(launcher.Finder).Find(t.Context(), req); !errors.Is(err, launcher.ErrDenied) {
		t.Errorf("Find = %v, want ErrDenied", err)
	}
	req.At = time.Now().Add(-2 * time.Hour)
	if _, _, err := l.(launcher.Finder).Find(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "server_timeout") {
		t.Errorf("Find after server_timeout = %v, want ErrInvalid that names the setting", err)
	}
	s := &server{lists: true}
	s.serve(t, address)
	l = open(t, "") // gRPC waits a moment before it tries an address again
	s.refuses = "Tried to start a run on a server after telling it to shut down"
	req.At = time.Now()
	if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrDenied) {
		t.Errorf("Launch on a server that stops = %v, want ErrDenied", err)
	}
	if err := l.(launcher.Divider).Ping(t.Context(), place); err != nil {
		t.Errorf("Ping(%s) = %v", place, err)
	}
	s.refuses = "no such job"
	if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "no such job") {
		t.Errorf("Launch that is refused = %v, want ErrInvalid with the server's words", err)
	}
}

// A run and its worker are at the same place, which [launcher.Divider]'s Ping can ask.
func TestPlaces(t *testing.T) {
	for origin, want := range map[string]string{
		`{"__class__": "GrpcServerRepositoryLocationOrigin", "host": "::1", "port": 4000, "socket": null, ` +
			`"location_name": "etl"}`: "[::1]:4000",
		`{"__class__": "GrpcServerRepositoryLocationOrigin", "host": "code.example", "port": 4000, "socket": null, ` +
			`"location_name": "etl", "use_ssl": true}`: "tls code.example:4000",
		`{"__class__": "GrpcServerRepositoryLocationOrigin", "host": "localhost", "port": null, "socket": "/tmp/s", ` +
			`"location_name": "etl"}`: "/tmp/s",
		`{"__class__": "ManagedGrpcPythonEnvRepositoryLocationOrigin", "location_name": ` +
			`"etl"}`: "",
	} {
		many := open(t, "").(launcher.Divider)
		req := request(origin)
		if got := many.PlaceOfRun(req.Run); got != want {
			t.Errorf("PlaceOfRun(%s) = %q, want %q", origin, got, want)
		}
		if want == "" {
			continue
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got, _, _ := many.(launcher.Finder).Find(ctx, req) // it says where it looked
		if place := many.PlaceOf(got.Handle); place != want {
			t.Errorf("PlaceOf(%s) = %q, want %q", got.Handle, place, want)
		}
		if err := many.Ping(ctx, want); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(want, "tls ")) {
			t.Errorf("Ping(%s) = %v, want an error that names it", want, err)
		}
	}
}

func TestRunsWithoutACodeServer(t *testing.T) {
	l := open(t, "")
	managed := request(`{"__class__": "ManagedGrpcPythonEnvRepositoryLocationOrigin", "location_name": "etl"}`)
	if _, err := l.Launch(t.Context(), managed); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "code_server: false") {
		t.Errorf("Launch = %v, want ErrInvalid that names the condition", err)
	}
	req := at("/nowhere")
	req.InstanceRef = nil
	if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "instance: image") {
		t.Errorf("Launch without an InstanceRef = %v, want ErrInvalid that names the setting", err)
	}
	req = request(`{"__class__": "GrpcServerRepositoryLocationOrigin", "host": "code.example", "port": 4000, ` +
		`"socket": null, "location_name": "etl", "use_ssl": true}`)
	text, err := l.(launcher.Previewer).Preview(t.Context(), req)
	if want := `"server": "code.example:4000"`; err != nil || !strings.Contains(string(text), want) ||
		!strings.Contains(string(text), `"tls": true`) {
		t.Errorf("Preview = %s, %v, want %s with TLS", text, err, want)
	}
}

// The error of a server behind `dagster code-server start` is reported in its own words, without
// what Python prints around them.
func TestWordsOfAnErrorOfPython(t *testing.T) {
	s, address := &server{}, socket(t)
	s.broken = status.Error(codes.Unknown,
		"Exception calling application: <_InactiveRpcError of RPC that terminated with:\n\tstatus = "+
			"StatusCode.UNAVAILABLE\n\tdetails = \"failed to connect to all addresses\"\n\tdebug_error_string = "+
			"\"UNKNOWN: x\"\n>")
	s.serve(t, address)
	l := open(t, "")
	_, err := l.Launch(t.Context(), at(address))
	said := fmt.Sprint(launcher.Notes(err))
	if len(launcher.Notes(err)) == 0 {
		said = err.Error()
	}
	if !strings.Contains(said, "failed to connect to all addresses") ||
		strings.Contains(said, "Exception calling application") {
		t.Errorf("Launch on a server whose own one is away says %s", said)
	}
	if err := launcher.Close(l); err != nil {
		t.Error(err)
	}
}
