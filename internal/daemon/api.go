package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // which Dagster's client uses
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	dagsterpb "github.com/slipway-run/slipway/proto/dagster"
)

// endpoint is the part of a code server that Dagster's DefaultRunLauncher asks to cancel a run. It
// changes nothing, because it cannot know its callers: it only reports whether Slipway will stop
// the run, which storage already shows as CANCELING.
type endpoint struct {
	dagsterpb.UnimplementedDagsterApiServer
	reader   storage.Reader
	instance string
	limit    *rate.Limiter
}

const (
	apiCallsPerSecond = 200
	apiMessage        = 64 << 10
	apiStreams        = 64
	// maxSocket is the longest path of a unix socket that every system takes.
	maxSocket = 100
)

// address is where the endpoint listens and how webservers find it.
type address struct {
	network, listen string
	info            string // of the tag
	cert, key       string
}

// errNoAdvertise asks for an address that Slipway cannot guess.
var errNoAdvertise = errors.New(
	`slipway.yaml: terminate.advertise: required with Postgres, because webservers may run on other machines: ` +
		`set the host:port at which they reach this daemon, so that Terminate in Dagster's UI works, or set ` +
		`terminate: {local_only: true}`)

// addressOf finds the endpoint's address from the settings.
func addressOf(in *instance.Instance) (address, error) {
	t := in.Settings.Terminate
	a := address{network: "tcp", listen: t.Listen, cert: t.Cert, key: t.Key}
	if t.Advertise == "" && t.Listen == "" {
		if in.Storage.URL != "" && !t.LocalOnly && !in.StockTerminates() {
			return a, errNoAdvertise
		}
		a.network, a.listen = "unix", socketOf(in.Home)
		a.info = dagster.GRPCInfo("localhost", 0, a.listen, t.Cert != "")
		return a, nil
	}
	host, port, err := t.Address()
	if err != nil {
		return a, err // Load has refused it
	}
	if a.listen == "" {
		a.listen = fmt.Sprintf(":%d", port)
	}
	a.info = dagster.GRPCInfo(host, port, "", t.Cert != "")
	return a, nil
}

// socketOf returns the path of the endpoint's socket. It is the same for each daemon of the
// instance, because tags of runs in flight name it.
func socketOf(home string) string {
	path := filepath.Join(home, "slipway", "api.sock")
	if cache, err := os.UserCacheDir(); err == nil && len(path) > maxSocket {
		sum := sha256.Sum256([]byte(home))
		return filepath.Join(cache, "slipway", fmt.Sprintf("%x.sock", sum[:8]))
	}
	return path
}

// apiRetry is the wait after the endpoint could not be opened, for example because another daemon
// of this machine has its port.
const apiRetry = 5 * time.Second

// serveAPI serves the endpoint until ctx ends. While that fails, runs are still launched.
func (d *Daemon) serveAPI(ctx context.Context) error {
	warned := false
	for ctx.Err() == nil {
		err := d.serveOnce(ctx)
		if err != nil && !warned {
			d.Log.WarnContext(ctx,
				"cannot open the endpoint for Terminate in Dagster's UI, so Terminate may report failure; retrying",
				"err", err)
			warned = true
		}
		if ctx.Err() == nil {
			sleep(ctx, apiRetry)
		}
	}
	return nil
}

func (d *Daemon) serveOnce(ctx context.Context) error {
	var lc net.ListenConfig
	if d.address.network == "unix" {
		if err := os.MkdirAll(filepath.Dir(d.address.listen), 0o755); err != nil {
			return err
		}
		_ = os.Remove(d.address.listen) // of a daemon that died; one that lives has lost the lead
	}
	l, err := lc.Listen(ctx, d.address.network, d.address.listen)
	if err != nil {
		return fmt.Errorf("endpoint for cancelling: %w", err)
	}
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(apiMessage), grpc.MaxConcurrentStreams(apiStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{PermitWithoutStream: true}),
	}
	e := &endpoint{reader: d.Store, instance: d.name, limit: rate.NewLimiter(apiCallsPerSecond, apiCallsPerSecond)}
	options = append(options, grpc.UnaryInterceptor(e.limited))
	if d.address.cert != "" {
		c, err := credentials.NewServerTLSFromFile(d.address.cert, d.address.key)
		if err != nil {
			return errors.Join(fmt.Errorf("slipway.yaml: terminate.tls_cert: %w", err), l.Close())
		}
		options = append(options, grpc.Creds(c))
	}
	s := grpc.NewServer(options...)
	dagsterpb.RegisterDagsterApiServer(s, e)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("endpoint for cancelling: %w", err)
	}
	return nil
}

func (e *endpoint) limited(ctx context.Context, req any, _ *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (any, error) {
	if !e.limit.Allow() {
		return nil, status.Error(codes.ResourceExhausted, "too many calls")
	}
	return handler(ctx, req)
}

// Ping implements api.DagsterApi.
func (e *endpoint) Ping(_ context.Context, req *dagsterpb.PingRequest) (*dagsterpb.PingReply, error) {
	return &dagsterpb.PingReply{Echo: req.GetEcho()}, nil
}

// ours finds a run that this instance launched; nil if there is none.
func (e *endpoint) ours(ctx context.Context, request string) (*storage.Run, error) {
	id, err := dagster.ParseRunRequest(request)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	runs, err := e.reader.Runs(ctx, storage.Filter{IDs: []string{id}})
	if err != nil {
		return nil, status.Error(codes.Unavailable, "the storage cannot be read")
	}
	if len(runs) == 0 || runs[0].Launch == nil || runs[0].Launch.Instance != e.instance ||
		runs[0].Launch.State == storage.Void {
		return nil, nil
	}
	return &runs[0], nil
}

// CancelExecution implements api.DagsterApi. The caller has written CANCELING before it asks.
func (e *endpoint) CancelExecution(ctx context.Context,
	req *dagsterpb.CancelExecutionRequest) (*dagsterpb.CancelExecutionReply, error) {
	r, err := e.ours(ctx, req.GetSerializedCancelExecutionRequest())
	if err != nil {
		return nil, err
	}
	result := dagster.CancelExecutionResult(true, "")
	switch {
	case r == nil:
		result = dagster.CancelExecutionResult(false, "Slipway did not launch this run.")
	case r.Status != dagster.Canceling && r.Status != dagster.Canceled:
		result = dagster.CancelExecutionResult(false,
			fmt.Sprintf("The run is %s: Slipway stops the worker of a run that is CANCELING.", r.Status))
	}
	return &dagsterpb.CancelExecutionReply{SerializedCancelExecutionResult: result}, nil
}

// CanCancelExecution implements api.DagsterApi.
func (e *endpoint) CanCancelExecution(ctx context.Context,
	req *dagsterpb.CanCancelExecutionRequest) (*dagsterpb.CanCancelExecutionReply, error) {
	r, err := e.ours(ctx, req.GetSerializedCanCancelExecutionRequest())
	if err != nil {
		return nil, err
	}
	return &dagsterpb.CanCancelExecutionReply{
		SerializedCanCancelExecutionResult: dagster.CanCancelExecutionResult(r != nil && r.Status.Active())}, nil
}
