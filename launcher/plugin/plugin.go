// Package plugin has launchers that are programs of their own: the contract of package launcher
// over gRPC (proto/launcher), with the handshake, the mutual TLS and the restarts of
// hashicorp/go-plugin.
//
// [Kind] is the side of Slipway, [Serve] is the side of a plug-in in Go. A plug-in in another
// language serves the same service.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc/status"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	pb "github.com/slipway-run/slipway/proto/launcher"
)

// Config holds the settings of a launcher that is a program.
type Config struct {
	Command []string               `config:"command" required:"true" help:"The program and its arguments. A relative path with a slash begins at the folder of slipway.yaml. Only root and the user that runs Slipway may be able to change the program."`
	PassEnv []string               `config:"pass_env" help:"Variables of the daemon's environment that the program gets. It always gets PATH, HOME and similar ones, and the ones that its config names by {env: NAME}. * means all."`
	Env     map[string]config.Text `config:"env" help:"Further environment variables of the program."`
	MTLS    bool                   `config:"mtls" default:"true" help:"The program and Slipway prove to each other who they are. Turn it off for a program that cannot do this: then only the permissions of the socket's folder protect the connection."`
	Timeout time.Duration          `config:"start_timeout" default:"30s" help:"How long the program may take to start."`
	Config  config.Values          `config:"config" help:"Settings of the launcher that the program serves. slipway launchers schema --launcher NAME shows them."`
}

// Kind declares launchers that are programs of their own.
func Kind() *launcher.Kind {
	return &launcher.Kind{
		Name: "plugin", Help: "Run workers by a program of your own that serves the contract, in any language.",
		Schema: config.Fields(Config{}),
		Open: func(ctx context.Context, v config.Values, log *slog.Logger) (launcher.Launcher, error) {
			var c Config
			if err := v.Decode(&c); err != nil {
				return nil, err
			}
			if len(c.Command) == 0 {
				return nil, v.Problem("command", "a program is needed")
			}
			var err error
			if c.Command[0], err = v.Program("command", c.Command[0]); err != nil {
				return nil, err
			}
			env := v.Environ(append(c.PassEnv, config.EnvNames(c.Config.Node)...), c.Env)
			o := Options{Command: c.Command, Env: env, Plain: !c.MTLS, Timeout: c.Timeout, Dir: v.Dir}
			return Open(ctx, o, c.Config, log)
		},
	}
}

// Options says how a program is started.
type Options struct {
	Command []string
	Env     []string // the complete environment
	Plain   bool     // without mutual TLS
	Timeout time.Duration
	Dir     string // a folder for this launcher alone
	Cwd     string // the program's working directory; "" means this process's
}

// Open starts a program and opens the launcher that it serves. v holds that launcher's settings.
func Open(ctx context.Context, o Options, v config.Values, log *slog.Logger) (*Remote, error) {
	text, err := v.JSON()
	if err != nil {
		return nil, err
	}
	p := &process{options: o, config: text, log: log}
	if err := p.start(); err != nil {
		_ = p.close() // the first error tells more
		return nil, atSettings(err, v)
	}
	r := &Remote{process: p, abilities: p.opened.Abilities}
	d := p.declared
	r.kind = &launcher.Kind{Name: d.Name, Help: d.Help, Schema: settingsIn(d.Settings), Tags: d.Tags,
		Context: d.Context, Traits: traitsIn(d.Traits)}
	if p.opened.Traits != nil {
		r.kind.Traits = traitsIn(p.opened.Traits)
	}
	log.InfoContext(ctx, "launcher program started", "program", o.Command[0], "serves", d.Name,
		"abilities", r.abilities)
	return r, nil
}

// atSettings adds to the problems that the program found in its settings their places in the file.
func atSettings(err error, v config.Values) error {
	s, ok := status.FromError(errors.Unwrap(err))
	if !ok {
		return err
	}
	var errs []error
	for _, d := range s.Details() {
		if d, ok := d.(*pb.ErrorDetail); ok {
			for _, p := range d.Problems {
				errs = append(errs, v.Problem(p.Setting, "%s", p.Text))
			}
		}
	}
	if len(errs) == 0 {
		return v.Problem("", "%v", err)
	}
	return errors.Join(errs...)
}

// process is the program. It is started again after it has died.
type process struct {
	options Options
	config  []byte
	log     *slog.Logger

	mu       sync.Mutex
	client   *goplugin.Client
	sockets  string // folder of its socket
	launcher pb.LauncherClient
	declared *pb.Declaration
	opened   *pb.OpenReply
	closed   bool
}

// api returns the connection. If the program has died it is started again first.
func (p *process) api(ctx context.Context) (pb.LauncherClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("%w: the launcher was closed", launcher.ErrTransient)
	}
	if p.client != nil && !p.client.Exited() {
		return p.launcher, nil
	}
	p.log.WarnContext(ctx, "the launcher's program has died and is started again", "program", p.options.Command[0])
	if err := p.started(); err != nil {
		return nil, fmt.Errorf("%w: %w", launcher.ErrTransient, err)
	}
	return p.launcher, nil
}

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started()
}

// startError is the error of a program that could not be started, with the text of the failure.
type startError struct {
	program string
	err     error
}

func (e *startError) Error() string { return fmt.Sprintf("%s: %v", e.program, text(e.err)) }
func (e *startError) Unwrap() error { return e.err }

// text returns the message of an error, without the words that gRPC adds.
func text(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// started starts the program. The caller holds the mutex.
func (p *process) started() (err error) {
	tail := &lastLines{}
	fail := func(err error) error { return &startError{p.options.Command[0], tail.with(err)} }
	if err := p.kill(); err != nil {
		return fail(err)
	}
	// Only this user can open the folder of the program's socket.
	if p.sockets, err = os.MkdirTemp("", "slipway-plugin-"); err != nil {
		return fail(err)
	}
	cmd := exec.Command(p.options.Command[0], p.options.Command[1:]...)
	cmd.Dir = p.options.Cwd
	// the last of equal names wins
	cmd.Env = append(slices.Clone(p.options.Env), goplugin.EnvUnixSocketDir+"="+p.sockets)
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake, Plugins: goplugin.PluginSet{service: &grpcPlugin{}}, Cmd: cmd, SkipHostEnv: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         !p.options.Plain, Managed: true, StartTimeout: p.options.Timeout, Logger: slogger(p.log),
		Stderr: tail, SyncStdout: tail, SyncStderr: io.Discard,
	})
	conn, err := p.client.Client()
	if err != nil {
		return fail(err)
	}
	served, err := conn.Dispense(service)
	if err != nil {
		return fail(err)
	}
	api := served.(pb.LauncherClient) //nolint:errcheck,forcetypeassert // made by grpcPlugin
	ctx, cancel := context.WithTimeout(context.Background(), p.options.Timeout)
	defer cancel()
	if p.declared, err = api.Declare(ctx, &pb.DeclareRequest{}); err != nil {
		return fail(err)
	}
	if p.declared.Contract != contract {
		return fail(fmt.Errorf("it serves version %d of the contract; this Slipway speaks %d", p.declared.Contract,
			contract))
	}
	if p.opened, err = api.Open(ctx, &pb.OpenRequest{Config: p.config, Dir: p.options.Dir}); err != nil {
		return &startError{p.options.Command[0], err}
	}
	p.launcher = api
	return nil
}

func (p *process) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.kill()
}

// kill ends the program, if there is one. The caller holds the mutex.
func (p *process) kill() error {
	if p.client != nil {
		p.client.Kill()
	}
	p.client = nil
	return os.RemoveAll(p.sockets)
}

// lastLines keeps the end of what a program wrote before it could log.
type lastLines struct {
	mu   sync.Mutex
	text []byte
}

const maxTail = 2 << 10

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	l.text = l.text[max(0, len(l.text)-maxTail):]
	return len(p), nil
}

// with adds the lines to an error. They replace go-plugin's advice, which does not apply here.
func (l *lastLines) with(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, _, _ := strings.Cut(err.Error(), "\n")
	if line, ok := strings.CutPrefix(first, "Unrecognized remote plugin message:"); ok {
		first = fmt.Sprintf("this program is not a plug-in: its first line must be the handshake of go-plugin, but "+
			"was %q (docs/launchers/plugin.md)", strings.TrimSpace(line))
	}
	if text := strings.TrimSpace(string(l.text)); text != "" {
		return fmt.Errorf("%s; it wrote: %s", first, text)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return errors.New(first)
}

// slogger passes go-plugin's log on to log. It includes the log of the program.
func slogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: service, Output: io.Discard, Level: hclog.Trace})
	l.RegisterSink(sink{log})
	return l
}

type sink struct{ log *slog.Logger }

func (s sink) Accept(name string, level hclog.Level, msg string, args ...any) {
	at := slog.LevelDebug
	own := name != service // from the program, not from go-plugin
	switch {
	case level == hclog.Error:
		at = slog.LevelError
	case level == hclog.Warn:
		at = slog.LevelWarn
	case level == hclog.Info && own:
		at = slog.LevelInfo
	}
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == "timestamp" {
			args = slices.Delete(slices.Clone(args), i, i+2)
			break
		}
	}
	s.log.Log(context.Background(), at, msg, args...)
}

// Cleanup ends every program that was started and not closed. It is for tests and for the end of a
// command.
func Cleanup() { goplugin.CleanupClients() }
