// Package codeserver launches run workers as Dagster's DefaultRunLauncher does: the code server of
// a run's location executes the run in a process of its own. Slipway does not start the code server
// (grpc_server in workspace.yaml).
//
// The worker has the code server's environment, interpreter and user. It continues if the server is
// killed or restarted, but the new server does not know it. A server starts a second process if it
// is asked twice. So Slipway asks which runs it executes before it asks it to start one. If a start
// got no answer, the server may still act on it: the absence of the run counts only after
// [lateStart].
package codeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // Dagster's server may answer with it
	"google.golang.org/grpc/status"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
	dagsterpb "github.com/slipway-run/slipway/proto/dagster"
)

// Config holds the settings of the codeserver launcher.
type Config struct {
	ServerTimeout time.Duration `config:"server_timeout" default:"10m" help:"How long a run whose start got no answer may wait until its code server tells that it executes the run or not. After that the run fails. A run whose start did not reach the server waits in the queue."`
}

// Launcher launches workers through code servers. It is safe for use by many goroutines.
type Launcher struct {
	timeout time.Duration
	log     *slog.Logger

	mu    sync.Mutex
	conns map[server]*grpc.ClientConn
	used  map[server]time.Time // when each connection was last used
}

var (
	_ launcher.Launcher  = (*Launcher)(nil)
	_ launcher.Finder    = (*Launcher)(nil)
	_ launcher.Divider   = (*Launcher)(nil)
	_ launcher.Batcher   = (*Launcher)(nil)
	_ launcher.Describer = (*Launcher)(nil)
	_ launcher.Previewer = (*Launcher)(nil)
)

const (
	// lateStart is how long a request to start a run may be on its way: Dagster's own client gives
	// up after 60 s.
	lateStart = 60 * time.Second
	// dialAgain is the pause before connecting again to a server that could not be reached.
	dialAgain = time.Second
	// maxMessage is the largest message that Dagster's servers send by default.
	maxMessage = 50 << 20
)

// Kind declares the codeserver launcher.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name:   "codeserver",
		Help:   "Have the code server of a run's location execute it, as Dagster's DefaultRunLauncher does.",
		Schema: config.Fields(Config{}),
		Traits: launcher.Traits{OwnCommand: true, LateStart: lateStart},
		Open: func(_ context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			var c Config
			if err := v.Decode(&c); err != nil {
				return nil, err
			}
			return &Launcher{timeout: c.ServerTimeout, log: log, conns: map[server]*grpc.ClientConn{},
				used: map[server]time.Time{}}, nil
		},
	}
}

// server is the address of a code server: a gRPC target, with the prefix "tls " if the server
// speaks TLS.
type server string

// serverOf returns the code server of a run.
func serverOf(r dagster.Run) (server, error) {
	var s string
	o := r.Remote
	switch {
	case !r.HasCodeServer():
		return "", fmt.Errorf(
			"%w: code location %s is not served by a code server of its own (grpc_server in workspace.yaml), so its "+
				"runs need another launcher; in slipway.yaml, add a route with when: {code_server: false}",
			launcher.ErrInvalid, o.Location)
	case o.Socket != "":
		s = "unix:" + o.Socket
	default:
		s = "dns:///" + net.JoinHostPort(o.Host, strconv.Itoa(o.Port))
	}
	if o.TLS {
		s = "tls " + s
	}
	return server(s), nil
}

func (s server) String() string {
	_, address, _ := strings.Cut(string(s), ":")
	return strings.TrimPrefix(address, "///")
}

// place returns the address, with the prefix "tls " if the server speaks TLS. [serverAt] parses it.
func (s server) place() string {
	if strings.HasPrefix(string(s), "tls ") {
		return "tls " + s.String()
	}
	return s.String()
}

func serverAt(place string) server {
	address, secure := strings.CutPrefix(place, "tls ")
	scheme := "dns:///"
	if strings.Contains(address, "/") { // the path of a socket
		scheme = "unix:"
	}
	if secure {
		scheme = "tls " + scheme
	}
	return server(scheme + address)
}

// PlaceOfRun implements [launcher.Divider]: each code server is a place.
func (l *Launcher) PlaceOfRun(run json.RawMessage) string {
	r, err := dagster.ParseRun(string(run))
	if err != nil {
		return ""
	}
	if s, err := serverOf(r); err == nil {
		return s.place()
	}
	return ""
}

// PlaceOf implements [launcher.Divider].
func (l *Launcher) PlaceOf(h launcher.Handle) string {
	if s, _, ok := parse(h); ok {
		return s.place()
	}
	return ""
}

// Ping implements [launcher.Divider]. It sends the request that also precedes each start.
func (l *Launcher) Ping(ctx context.Context, place string) error {
	_, err := l.runs(ctx, serverAt(place))
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}

// handle returns the handle of a run: the server and the run's ID.
func (s server) handle(run string) launcher.Handle { return launcher.Handle(string(s) + " " + run) }

func parse(h launcher.Handle) (s server, run string, ok bool) {
	i := strings.LastIndexByte(string(h), ' ')
	if i < 0 {
		return "", "", false
	}
	s, run = server(h[:i]), string(h[i+1:])
	return s, run, run != "" && (strings.Contains(string(s), "dns:///") || strings.Contains(string(s), "unix:"))
}

// idle is how long an unused connection is kept. It is longer than any call.
const idle = time.Hour

// Close implements [io.Closer].
func (l *Launcher) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.forget(func(time.Time) bool { return true })
}

// forget closes connections, selected by the time of their last use. The caller holds mu. It is
// needed because a restarted code server may have another address each time.
func (l *Launcher) forget(which func(used time.Time) bool) (err error) {
	for s, at := range l.used {
		if which(at) {
			err = errors.Join(err, l.conns[s].Close())
			delete(l.conns, s)
			delete(l.used, s)
		}
	}
	return err
}

func (l *Launcher) api(s server) (dagsterpb.DagsterApiClient, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.forget(func(used time.Time) bool { return time.Since(used) > idle }); err != nil {
		l.log.Debug("codeserver: a connection that nothing uses was not closed well", "err", err)
	}
	c := l.conns[s]
	if c == nil {
		target, secure := strings.CutPrefix(string(s), "tls ")
		creds := insecure.NewCredentials()
		if secure {
			creds = credentials.NewTLS(nil)
		}
		var err error
		params := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 10 * time.Second}
		params.Backoff.MaxDelay = dialAgain
		if c, err = grpc.NewClient(target, grpc.WithConnectParams(params), grpc.WithTransportCredentials(creds),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithNoProxy()); err != nil {
			return nil, fmt.Errorf("%w: code server %s: %w", launcher.ErrInvalid, s, err)
		}
		l.conns[s] = c
	}
	l.used[s] = time.Now()
	return dagsterpb.NewDagsterApiClient(c), nil
}

// runs returns the runs that a server executes.
func (l *Launcher) runs(ctx context.Context, s server) (map[string]bool, error) {
	api, err := l.api(s)
	if err != nil {
		return nil, err
	}
	reply, err := api.GetCurrentRuns(ctx, &dagsterpb.Empty{})
	if err != nil {
		return nil, launcher.Unreached(silent(ctx, s, err)) // a query starts nothing
	}
	list, err := dagster.ParseCurrentRuns(reply.SerializedCurrentRuns)
	runs := map[string]bool{}
	for _, r := range list {
		runs[r] = true
	}
	return runs, err
}

// executes reports whether a server executes a run. A server that `dagster code-server start` runs
// does not list its runs, so it is asked about this one.
func (l *Launcher) executes(ctx context.Context, s server, run string) (bool, error) {
	runs, err := l.runs(ctx, s)
	if status.Code(err) != codes.Unimplemented {
		return runs[run], err
	}
	api, err := l.api(s)
	if err != nil {
		return false, err
	}
	reply, err := api.CanCancelExecution(ctx,
		&dagsterpb.CanCancelExecutionRequest{
			SerializedCanCancelExecutionRequest: dagster.RunRequest("CanCancelExecutionRequest", run)})
	if err != nil {
		return false, launcher.Unreached(silent(ctx, s, err))
	}
	return dagster.ParseCanCancel(reply.SerializedCanCancelExecutionResult)
}

// silence is the error of a call that got no answer, or no usable one.
type silence struct {
	server server
	err    error
}

func silent(ctx context.Context, s server, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return silence{s, err}
}

func (e silence) Error() string {
	return fmt.Sprintf("the code server at %s does not answer: %s", e.server, words(e.err))
}
func (e silence) Unwrap() error { return e.err }

// Find implements [launcher.Finder].
func (l *Launcher) Find(ctx context.Context, req *launcher.Request) (launcher.Launched, bool, error) {
	r, s, err := l.target(req)
	if err != nil {
		return launcher.Launched{}, false, err
	}
	there, err := l.executes(ctx, s, r.ID)
	if err != nil && time.Since(req.At) > l.timeout {
		err = fmt.Errorf("%w: it is not known whether the run was started, and for %v (server_timeout) the code "+
			"server did not tell: %w", launcher.ErrInvalid, l.timeout, err)
	}
	return launched(s, r), there, err
}

func launched(s server, r dagster.Run) launcher.Launched {
	return launcher.Launched{
		Handle: s.handle(r.ID),
		Notes: []launcher.Note{{Text: fmt.Sprintf("[Slipway] The code server of location %q at %s executes the run.",
			r.Remote.Location, s)}},
	}
}

// target returns the run of a request and its server.
func (l *Launcher) target(req *launcher.Request) (dagster.Run, server, error) {
	if err := req.ID.Check(); err != nil {
		return dagster.Run{}, "", err
	}
	r, err := dagster.ParseRun(string(req.Run))
	if err != nil {
		return r, "", fmt.Errorf("%w: %w", launcher.ErrInvalid, err)
	}
	if req.InstanceRef == nil {
		return r,
			"", fmt.Errorf("%w: a code server gets the instance from the program that starts a run, so this launcher "+
				"cannot have instance: image in slipway.yaml", launcher.ErrInvalid)
	}
	s, err := serverOf(r)
	return r, s, err
}

// words returns the text of a gRPC error, without the words that the library puts around it.
func words(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return err.Error()
	}
	text := s.GRPCStatus().Message()
	if _, quoted, ok := strings.Cut(text, "connection error: desc = "); ok {
		if cause, err := strconv.Unquote(quoted); err == nil {
			text = strings.TrimPrefix(cause, "transport: Error while dialing: ")
		}
	}
	return plain(text)
}

// details matches the text of an error of Python's gRPC, in the form in which Python prints the
// error.
var details = regexp.MustCompile(`details = "((?:[^"\\]|\\.)*)"`)

// plain returns a message without the text that Python's gRPC puts around it. `dagster code-server
// start` passes on the error of the server behind it as Python prints it.
func plain(message string) string {
	rest, ok := strings.CutPrefix(message, "Exception calling application: ")
	if inner := details.FindStringSubmatch(rest); ok && inner != nil {
		return inner[1]
	}
	return rest
}

// starting coalesces concurrent launches of the same run in this process.
var starting singleflight.Group

// Launch implements [launcher.Launcher]. It asks the server for its runs first.
func (l *Launcher) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	r, s, err := l.target(req)
	if err != nil {
		return launcher.Launched{}, err
	}
	_, err, _ = starting.Do(string(s.handle(r.ID)), func() (any, error) { return nil, l.start(ctx, req, r, s) })
	return launched(s, r), err
}

func (l *Launcher) start(ctx context.Context, req *launcher.Request, r dagster.Run, s server) error {
	if there, err := l.executes(ctx, s, r.ID); err != nil || there {
		return err
	}
	api, err := l.api(s)
	if err != nil {
		return err
	}
	reply, err := api.StartRun(ctx,
		&dagsterpb.StartRunRequest{SerializedExecuteRunArgs: dagster.StartRunArgs(r, req.InstanceRef)})
	if err != nil { // the server may have received it
		return fmt.Errorf("%w: %w", launcher.ErrTransient, silent(ctx, s, err))
	}
	ok, message, err := dagster.ParseResult(reply.SerializedStartRunResult)
	switch {
	case err != nil:
		return fmt.Errorf("code server %s: %w", s, err)
	case ok:
		return nil
	case strings.Contains(message, "after telling it to shut down"): // dagster._grpc.server, 1.13
		return launcher.Unreached(fmt.Errorf("the code server at %s ends: %s", s, message))
	}
	return fmt.Errorf("%w: the code server at %s did not start the run: %s", launcher.ErrInvalid, s, message)
}

// Terminate implements [launcher.Launcher]. The server interrupts the worker's process. It has no
// grace and no kill.
func (l *Launcher) Terminate(ctx context.Context, h launcher.Handle, _ time.Duration) (bool, error) {
	s, run, ok := parse(h)
	if !ok {
		return false, nil
	}
	api, err := l.api(s)
	if err != nil {
		return false, err
	}
	reply, err := api.CancelExecution(ctx,
		&dagsterpb.CancelExecutionRequest{SerializedCancelExecutionRequest: dagster.RunRequest("CancelExecutionRequest",
			run)})
	if err != nil {
		return false, fmt.Errorf("%w: %w", launcher.ErrTransient, silent(ctx, s, err))
	}
	done, _, err := dagster.ParseResult(reply.SerializedCancelExecutionResult)
	return done, err
}

// Health implements [launcher.Launcher]. A server reports which runs it executes and keeps nothing
// about ended runs. If a run crashed, the server itself records that in the run's log. A worker
// that the server does not execute is Unknown, because a worker of a restarted server continues.
func (l *Launcher) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	s, run, ok := parse(h)
	if !ok {
		return launcher.Health{Status: launcher.NotFound, Message: "this is not a handle of a code server"}, nil
	}
	there, err := l.executes(ctx, s, run)
	return health(s, there), err
}

func health(s server, there bool) launcher.Health {
	if there {
		return launcher.Health{Status: launcher.Running, Message: "the code server at " + s.String() + " executes it"}
	}
	return launcher.Health{Status: launcher.Unknown,
		Message: "the code server at " + s.String() +
			" does not execute it; it may have ended, or the server was started anew"}
}

// HealthOf implements [launcher.Batcher] with one call for each server. The workers of a server
// that does not answer are Unknown.
func (l *Launcher) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	type answer struct {
		runs map[string]bool
		err  error
	}
	answers := map[server]answer{}
	out := make([]launcher.Health, len(hs))
	for i, h := range hs {
		s, run, ok := parse(h)
		if !ok {
			out[i] = launcher.Health{Status: launcher.NotFound, Message: "this is not a handle of a code server"}
			continue
		}
		a, asked := answers[s]
		if !asked {
			a.runs, a.err = l.runs(ctx, s)
			answers[s] = a
		}
		there, err := a.runs[run], a.err
		if status.Code(err) == codes.Unimplemented {
			there, err = l.executes(ctx, s, run)
		}
		if out[i] = health(s, there); err != nil {
			out[i] = launcher.Health{Status: launcher.Unknown, Message: err.Error()}
		}
	}
	return out, ctx.Err()
}

// Describe implements [launcher.Describer].
func (l *Launcher) Describe(ctx context.Context, h launcher.Handle, _ bool) (json.RawMessage, error) {
	s, run, ok := parse(h)
	if !ok {
		return nil, fmt.Errorf("%w: %q is not a handle of a code server", launcher.ErrNotFound, h)
	}
	about := map[string]any{"server": s.String(), "run": run}
	if there, err := l.executes(ctx, s, run); err != nil {
		about["error"] = err.Error()
	} else {
		about["executes"] = there
	}
	return json.MarshalIndent(about, "", "  ")
}

// Preview implements [launcher.Previewer]. It leaves out the InstanceRef, which may contain a
// password.
func (l *Launcher) Preview(_ context.Context, req *launcher.Request) (json.RawMessage, error) {
	r, s, err := l.target(req)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(map[string]any{"server": s.String(), "tls": r.Remote.TLS, "call": "StartRun", "run": r.ID,
		"job": r.Job, "repository": r.Remote.Repository}, "", "  ")
}
