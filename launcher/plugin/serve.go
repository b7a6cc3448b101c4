package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	pb "github.com/slipway-run/slipway/proto/launcher"
)

// handshake lets a plug-in recognize that Slipway started it, and not a user by hand. It is not a
// secret.
var handshake = goplugin.HandshakeConfig{ProtocolVersion: contract, MagicCookieKey: "SLIPWAY_LAUNCHER",
	MagicCookieValue: "contract"}

// contract is the version of the contract that this package speaks.
const contract = 1

// service is the name of the only service of a plug-in.
const service = "launcher"

// Serve serves a kind of launcher to the Slipway that started this program. It returns when that
// Slipway has ended. It is the whole main of a plug-in:
//
//	func main() { plugin.Serve(Kind()) }
//
// What the launcher logs appears in Slipway's log.
func Serve(kind *launcher.Kind) {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: wireLog}))
	go exitWithParent()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake, GRPCServer: goplugin.DefaultGRPCServer,
		Plugins: goplugin.PluginSet{service: &grpcPlugin{server: newServer(kind, log)}},
		Logger:  hclog.New(&hclog.LoggerOptions{Output: os.Stderr, JSONFormat: true, Level: hclog.Warn}),
	})
}

// wireLog renames the attributes of a record to the names that go-plugin reads.
func wireLog(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.TimeKey:
		return slog.String("@timestamp", a.Value.Time().Format("2006-01-02T15:04:05.000000Z07:00"))
	case slog.LevelKey:
		return slog.String("@level", hclog.LevelFromString(a.Value.String()).String())
	case slog.MessageKey:
		a.Key = "@message"
	}
	return a
}

// exitWithParent ends this program when the process that started it is gone, for whatever reason.
func exitWithParent() {
	for parent := os.Getppid(); os.Getppid() == parent; time.Sleep(time.Second) {
	}
	os.Exit(0)
}

// grpcPlugin implements both ends as go-plugin requires.
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

func (p *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pb.RegisterLauncherServer(s, p.server)
	return nil
}

func (p *grpcPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return pb.NewLauncherClient(c), nil
}

// server serves one launcher.
type server struct {
	pb.UnimplementedLauncherServer
	kind *launcher.Kind
	log  *slog.Logger

	mu sync.RWMutex
	l  launcher.Launcher // nil until Open
}

func newServer(kind *launcher.Kind, log *slog.Logger) *server { return &server{kind: kind, log: log} }

// opened returns the launcher.
func (s *server) opened() (launcher.Launcher, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.l == nil {
		return nil, errors.New("the launcher was not opened")
	}
	return s.l, nil
}

// with calls f with the launcher and returns the result with its error in wire form.
func with[T any](s *server, f func(launcher.Launcher) (T, error)) (T, error) {
	l, err := s.opened()
	if err != nil {
		var none T
		return none, toWire(err, "")
	}
	out, err := f(l)
	return out, toWire(err, "")
}

// ability calls f with an ability of the launcher.
func ability[A, T any](s *server, f func(A) (T, error)) (T, error) {
	return with(s, func(l launcher.Launcher) (T, error) {
		a, ok := launcher.As[A](l)
		if !ok {
			var none T
			return none, fmt.Errorf("%w: the launcher cannot do this", errors.ErrUnsupported)
		}
		return f(a)
	})
}

func (s *server) Declare(context.Context, *pb.DeclareRequest) (*pb.Declaration, error) {
	return &pb.Declaration{
		Name: s.kind.Name, Help: s.kind.Help, Settings: settingsOut(s.kind.Schema), Tags: s.kind.Tags,
		Context: s.kind.Context, Traits: traitsOut(s.kind.Traits), Contract: contract,
	}, nil
}

// settings is the path of the settings in Open's errors.
const settings = "config"

func (s *server) Open(_ context.Context, r *pb.OpenRequest) (*pb.OpenReply, error) {
	v := config.Values{Path: settings, Dir: r.Dir, Env: os.LookupEnv}
	if text := bytes.TrimSpace(r.Config); len(text) > 0 && !bytes.Equal(text, []byte("null")) {
		var doc yaml.Node
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return nil, toWire(fmt.Errorf("%w: %w", launcher.ErrInvalid, err), "")
		}
		v.Node = doc.Content[0]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.l != nil {
		return nil, toWire(errors.New("the launcher was opened before"), "")
	}
	l, err := s.kind.Open(context.Background(), v, s.log) // the launcher outlives this call
	if err != nil {
		return nil, toWire(errors.Join(err, launcher.ErrInvalid), settings)
	}
	s.l = l
	return &pb.OpenReply{Abilities: launcher.Abilities(l), Traits: traitsOut(launcher.KindOf(s.kind, l).Traits)}, nil
}

func (s *server) Launch(ctx context.Context, r *pb.Request) (*pb.Launched, error) {
	return with(s, func(l launcher.Launcher) (*pb.Launched, error) {
		got, err := l.Launch(ctx, requestIn(r))
		return launchedOut(got), err
	})
}

func (s *server) Terminate(ctx context.Context, r *pb.TerminateRequest) (*pb.TerminateReply, error) {
	return with(s, func(l launcher.Launcher) (*pb.TerminateReply, error) {
		ran, err := l.Terminate(ctx, launcher.Handle(r.Handle), span(r.GraceUs))
		return &pb.TerminateReply{Stopped: ran}, err
	})
}

func (s *server) Health(ctx context.Context, r *pb.HealthRequest) (*pb.HealthReply, error) {
	return with(s, func(l launcher.Launcher) (*pb.HealthReply, error) {
		h, err := l.Health(ctx, launcher.Handle(r.Handle))
		return healthOut(h), err
	})
}

func (s *server) Find(ctx context.Context, r *pb.Request) (*pb.FindReply, error) {
	return ability(s, func(f launcher.Finder) (*pb.FindReply, error) {
		got, found, err := f.Find(ctx, requestIn(r))
		return &pb.FindReply{Found: found, Launched: launchedOut(got)}, err
	})
}

func (s *server) List(r *pb.ListRequest, stream grpc.ServerStreamingServer[pb.Worker]) error {
	_, err := ability(s, func(l launcher.Lister) (struct{}, error) {
		f := launcher.Filter{Instance: r.Instance, Runs: r.Runs}
		if r.AllRuns {
			f.Runs = nil
		} else if f.Runs == nil {
			f.Runs = []string{}
		}
		for w, err := range l.List(stream.Context(), f) {
			if err == nil {
				err = stream.Send(workerOut(w))
			}
			if err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	return err
}

func (s *server) Watch(_ *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.Worker]) error {
	_, err := ability(s, func(l launcher.Watcher) (struct{}, error) {
		for w, err := range l.Watch(stream.Context()) {
			if err == nil {
				err = stream.Send(workerOut(w))
			}
			if err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	return err
}

func (s *server) HealthOf(ctx context.Context, r *pb.HealthOfRequest) (*pb.HealthOfReply, error) {
	return ability(s, func(l launcher.Batcher) (*pb.HealthOfReply, error) {
		hs := make([]launcher.Handle, len(r.Handles))
		for i, h := range r.Handles {
			hs[i] = launcher.Handle(h)
		}
		got, err := l.HealthOf(ctx, hs)
		out := &pb.HealthOfReply{}
		for _, h := range got {
			out.Health = append(out.Health, healthOut(h))
		}
		return out, err
	})
}

func (s *server) Remove(ctx context.Context, r *pb.RemoveRequest) (*pb.RemoveReply, error) {
	return ability(s, func(l launcher.Remover) (*pb.RemoveReply, error) {
		return &pb.RemoveReply{}, l.Remove(ctx, launcher.Handle(r.Handle))
	})
}

// chunk is the maximum number of bytes of output in one message.
const chunk = 32 << 10

func (s *server) Logs(r *pb.LogsRequest, stream grpc.ServerStreamingServer[pb.LogsChunk]) error {
	_, err := ability(s, func(l launcher.LogReader) (struct{}, error) {
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		reader, err := l.Logs(ctx, launcher.Handle(r.Handle), launcher.LogOptions{Tail: int(r.Tail), Follow: r.Follow})
		if err != nil {
			return struct{}{}, err
		}
		// A reader that follows ends only when it is closed. So it must be closed when the caller
		// goes away.
		var once sync.Once
		var closed error
		closing := func() { once.Do(func() { closed = reader.Close() }) }
		stop := context.AfterFunc(ctx, closing)
		defer stop()
		_, err = copyChunks(stream, reader)
		closing()
		return struct{}{}, errors.Join(err, closed)
	})
	return err
}

func (s *server) Describe(ctx context.Context, r *pb.DescribeRequest) (*pb.JSON, error) {
	return ability(s, func(l launcher.Describer) (*pb.JSON, error) {
		text, err := l.Describe(ctx, launcher.Handle(r.Handle), r.Logs)
		return &pb.JSON{Json: text}, err
	})
}

func (s *server) Preview(ctx context.Context, r *pb.Request) (*pb.JSON, error) {
	return ability(s, func(l launcher.Previewer) (*pb.JSON, error) {
		text, err := l.Preview(ctx, requestIn(r))
		return &pb.JSON{Json: text}, err
	})
}

func (s *server) Check(ctx context.Context, _ *pb.CheckRequest) (*pb.CheckReply, error) {
	return ability(s, func(l launcher.Checker) (*pb.CheckReply, error) {
		out := &pb.CheckReply{}
		for _, f := range l.Check(ctx) {
			out.Findings = append(out.Findings, &pb.Finding{Ok: f.OK, What: f.What, Fix: f.Fix})
		}
		return out, nil
	})
}

func (s *server) Free(ctx context.Context, r *pb.FreeRequest) (*pb.FreeReply, error) {
	return ability(s, func(l launcher.Capacity) (*pb.FreeReply, error) {
		n, known, err := l.Free(ctx, resourcesIn(r.Resources))
		return &pb.FreeReply{N: int64(n), Known: known}, err
	})
}

func (s *server) Adopt(_ context.Context, r *pb.AdoptRequest) (*pb.AdoptReply, error) {
	return ability(s, func(l launcher.Adopter) (*pb.AdoptReply, error) {
		h, ok := l.Adopt(launcher.Foreign{Run: r.Run, Tags: r.Tags})
		return &pb.AdoptReply{Handle: string(h), Adopted: ok}, nil
	})
}
