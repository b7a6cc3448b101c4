package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/slipway-run/slipway/launcher"
	pb "github.com/slipway-run/slipway/proto/launcher"
)

// Remote is a launcher at the other end of a wire. It is safe for use by many goroutines.
type Remote struct {
	process   *process
	kind      *launcher.Kind
	abilities []string
}

var _ launcher.Launcher = (*Remote)(nil)

// Declared returns the kind that the program serves.
func (r *Remote) Declared() *launcher.Kind { return r.kind }

// Close ends the program. Workers are not affected.
func (r *Remote) Close() error { return r.process.close() }

// call calls the program. If the program has died it is started again first.
func call[T any](ctx context.Context, r *Remote, f func(pb.LauncherClient) (T, error)) (T, error) {
	api, err := r.process.api(ctx)
	if err != nil {
		var none T
		return none, err
	}
	out, err := f(api)
	return out, fromWire(err)
}

// Launch implements [launcher.Launcher].
func (r *Remote) Launch(ctx context.Context, req *launcher.Request) (launcher.Launched, error) {
	got, err := call(ctx, r, func(api pb.LauncherClient) (*pb.Launched, error) {
		return api.Launch(ctx, requestOut(req))
	})
	if err != nil {
		return launcher.Launched{}, err
	}
	return launchedIn(got)
}

// Terminate implements [launcher.Launcher].
func (r *Remote) Terminate(ctx context.Context, h launcher.Handle, grace time.Duration) (bool, error) {
	got, err := call(ctx, r, func(api pb.LauncherClient) (*pb.TerminateReply, error) {
		return api.Terminate(ctx, &pb.TerminateRequest{Handle: string(h), GraceUs: grace.Microseconds()})
	})
	return got.GetStopped(), err
}

// Health implements [launcher.Launcher].
func (r *Remote) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	got, err := call(ctx, r, func(api pb.LauncherClient) (*pb.HealthReply, error) {
		return api.Health(ctx, &pb.HealthRequest{Handle: string(h)})
	})
	if err != nil {
		return launcher.Health{}, err
	}
	return healthIn(got), nil
}

// As provides the abilities that the program has.
func (r *Remote) As(ability any) bool {
	return launcher.Provide(ability, abilities{r}, func(name string) bool { return slices.Contains(r.abilities, name) })
}

// abilities implements all abilities. Remote.As decides which of them the program has.
type abilities struct{ *Remote }

func (a abilities) Find(ctx context.Context, req *launcher.Request) (launcher.Launched, bool, error) {
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.FindReply, error) {
		return api.Find(ctx, requestOut(req))
	})
	if err != nil || !got.Found {
		return launcher.Launched{}, false, err
	}
	l, err := launchedIn(got.Launched)
	return l, err == nil, err
}

func (a abilities) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return stream(ctx, a.Remote,
		func(ctx context.Context, api pb.LauncherClient) (grpc.ServerStreamingClient[pb.Worker], error) {
			return api.List(ctx, &pb.ListRequest{Instance: f.Instance, Runs: f.Runs, AllRuns: f.Runs == nil})
		})
}

func (a abilities) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return stream(ctx, a.Remote,
		func(ctx context.Context, api pb.LauncherClient) (grpc.ServerStreamingClient[pb.Worker], error) {
			return api.Watch(ctx, &pb.WatchRequest{})
		})
}

// stream yields the workers that a call streams.
func stream(ctx context.Context, r *Remote,
	open func(context.Context, pb.LauncherClient) (grpc.ServerStreamingClient[pb.Worker], error),
) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the stream
		s, err := call(ctx, r, func(api pb.LauncherClient) (grpc.ServerStreamingClient[pb.Worker], error) {
			return open(ctx, api)
		})
		for err == nil {
			var w *pb.Worker
			if w, err = s.Recv(); err == nil && !yield(workerIn(w), nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) && ctx.Err() == nil {
			yield(launcher.Worker{}, fromWire(err))
		}
	}
}

func (a abilities) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	req := &pb.HealthOfRequest{}
	for _, h := range hs {
		req.Handles = append(req.Handles, string(h))
	}
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.HealthOfReply, error) {
		return api.HealthOf(ctx, req)
	})
	if err != nil {
		return nil, err
	}
	if len(got.Health) != len(hs) {
		return nil, fmt.Errorf("the launcher gave %d answers about %d workers", len(got.Health), len(hs))
	}
	out := make([]launcher.Health, len(hs))
	for i, h := range got.Health {
		out[i] = healthIn(h)
	}
	return out, nil
}

func (a abilities) Remove(ctx context.Context, h launcher.Handle) error {
	_, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.RemoveReply, error) {
		return api.Remove(ctx, &pb.RemoveRequest{Handle: string(h)})
	})
	return err
}

func (a abilities) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	tail := int32(min(o.Tail, 1<<30)) //nolint:gosec // bounded
	s, err := call(ctx, a.Remote, func(api pb.LauncherClient) (grpc.ServerStreamingClient[pb.LogsChunk], error) {
		return api.Logs(ctx, &pb.LogsRequest{Handle: string(h), Tail: tail, Follow: o.Follow})
	})
	if err != nil {
		cancel()
		return nil, err
	}
	r := &chunks{stream: s, cancel: cancel}
	// An error of the call itself comes with the first message.
	if err := r.fill(); err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return nil, err
	}
	return r, nil
}

// chunks reads the output that a call streams.
type chunks struct {
	stream grpc.ServerStreamingClient[pb.LogsChunk]
	cancel context.CancelFunc
	rest   []byte
	err    error
}

// fill receives the next chunk if none is left.
func (c *chunks) fill() error {
	for len(c.rest) == 0 && c.err == nil {
		var m *pb.LogsChunk
		if m, c.err = c.stream.Recv(); c.err == nil {
			c.rest = m.Data
			if len(m.Data) == 0 { // the first chunk only marks the beginning
				return nil
			}
		}
		c.err = fromWire(c.err)
	}
	if len(c.rest) > 0 {
		return nil
	}
	return c.err
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *chunks) Close() error {
	c.cancel()
	return nil
}

// copyChunks sends what r reads. It sends an empty chunk first, which says that the worker exists
// even if it has not written anything yet.
func copyChunks(s grpc.ServerStreamingServer[pb.LogsChunk], r io.Reader) (int64, error) {
	if err := s.Send(&pb.LogsChunk{}); err != nil {
		return 0, err
	}
	return io.CopyBuffer(sender{s}, struct{ io.Reader }{r}, make([]byte, chunk))
}

type sender struct {
	s grpc.ServerStreamingServer[pb.LogsChunk]
}

func (s sender) Write(p []byte) (int, error) {
	if err := s.s.Send(&pb.LogsChunk{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (a abilities) Describe(ctx context.Context, h launcher.Handle, logs bool) (json.RawMessage, error) {
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.JSON, error) {
		return api.Describe(ctx, &pb.DescribeRequest{Handle: string(h), Logs: logs})
	})
	return got.GetJson(), err
}

func (a abilities) Preview(ctx context.Context, req *launcher.Request) (json.RawMessage, error) {
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.JSON, error) {
		return api.Preview(ctx, requestOut(req))
	})
	return got.GetJson(), err
}

func (a abilities) Check(ctx context.Context) []launcher.Finding {
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.CheckReply, error) {
		return api.Check(ctx, &pb.CheckRequest{})
	})
	if err != nil {
		return []launcher.Finding{{What: "the launcher's program gave no answer: " + err.Error(),
			Fix: "see what it logs: slipway daemon --log-level debug"}}
	}
	var out []launcher.Finding
	for _, f := range got.Findings {
		out = append(out, launcher.Finding{OK: f.Ok, What: f.What, Fix: f.Fix})
	}
	return out
}

func (a abilities) Free(ctx context.Context, res launcher.Resources) (int, bool, error) {
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.FreeReply, error) {
		return api.Free(ctx, &pb.FreeRequest{Resources: resourcesOut(res)})
	})
	return int(got.GetN()), got.GetKnown(), err
}

// adoptTimeout is the timeout of Adopt, which has no context in the contract.
const adoptTimeout = 10 * time.Second

func (a abilities) Adopt(f launcher.Foreign) (launcher.Handle, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), adoptTimeout)
	defer cancel()
	got, err := call(ctx, a.Remote, func(api pb.LauncherClient) (*pb.AdoptReply, error) {
		return api.Adopt(ctx, &pb.AdoptRequest{Run: f.Run, Tags: f.Tags})
	})
	if err != nil {
		return "", false
	}
	return launcher.Handle(got.Handle), got.Adopted
}

// cutPath returns the path of a setting relative to the settings at path at.
func cutPath(setting, at string) string {
	rest, ok := strings.CutPrefix(setting, at)
	if !ok {
		return setting
	}
	return strings.TrimPrefix(rest, ".")
}
