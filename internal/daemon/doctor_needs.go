package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
)

// interpreterTime is how long a Python may take to say its version of Dagster.
const interpreterTime = 30 * time.Second

// need is a code server or an interpreter on which waiting runs depend.
type need struct {
	level Level // of its absence
	whose string
	fix   string
	try   func(context.Context) error
}

// needs looks at what the runs that wait need of the launchers that they go to: a request that can
// be made, an interpreter that starts, a code server that answers. Interpreters that slipway.yaml
// names are started in any case.
func (d *doctor) needs(ctx context.Context, targets map[string]*dispatch.Target) {
	interpreters, servers := map[string]need{}, map[string]need{}
	interpreter := func(python, whose, fix string) {
		if _, ok := interpreters[python]; !ok {
			interpreters[python] = need{LevelError, whose, fix, func(ctx context.Context) error {
				return startInterpreter(ctx, python)
			}}
		}
	}
	for name, t := range targets {
		for _, location := range slices.Sorted(maps.Keys(t.Python)) {
			if t.Traits.LocalFiles {
				setting := "launchers." + name + ".python." + location
				interpreter(t.Python[location], setting,
					"set "+setting+" in slipway.yaml to a Python that has Dagster and the location's packages")
			}
		}
	}
	runs, err := d.store.Runs(ctx, storage.Filter{Statuses: []dagster.Status{dagster.Queued}})
	if err != nil {
		d.unread("the queue", err)
		return
	}
	seen := map[[3]string]bool{}
	build, route := Builder(d.in, d.name, nil), Route(d.in)
	for _, r := range runs {
		names := route(r)
		if r.Broken != nil || len(names) == 0 || targets[names[0]] == nil || !d.in.Settings.Queue.Only.Fits(r.Run) {
			continue
		}
		name, location := names[0], r.Remote.Location
		key := [3]string{name, location, string(r.Code.Raw)}
		if seen[key] {
			continue
		}
		seen[key] = true
		t := targets[name]
		if r.HasCodeServer() {
			address := serverAddress(r.Remote)
			n := need{LevelWarning, "code location " + location,
				"start it (dagster code-server start, or dagster api grpc), or correct its address in workspace.yaml",
				func(ctx context.Context) error {
					return ping(ctx, address, serverCredentials(r.Remote))
				}}
			if t.Traits.OwnCommand { // the server itself executes the run
				n.level = LevelError
			}
			servers[address] = n
		}
		req, err := build.Request(r.Run, worker.Attempt{Number: 1, Token: "doctor", At: time.Now()}, t.Target)
		switch {
		case err != nil:
			d.say(LevelError, CodeRunRefused, "correct that; then slipway launchers preview "+r.ID+
				" shows what would be started", "run %s of code location %s would fail on launcher %s: %v", r.ID,
				location, name, err)
		case t.Traits.LocalFiles && !t.Traits.OwnCommand && !r.IsCommand():
			interpreter(req.Command[0], "code location "+location,
				fmt.Sprintf("set launchers.%s.python.%s in slipway.yaml to a Python that has Dagster and the "+
					"location's packages", name, location))
		}
	}
	d.try(ctx, CodeInterpreter, "the Python %s of %s", "has Dagster", interpreters)
	d.try(ctx, CodeCodeServer, "the code server at %s of %s", "answers", servers)
}

// try asks all at once and adds a finding for each.
func (d *doctor) try(ctx context.Context, code Code, what, does string, needs map[string]need) {
	errs := map[string]error{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, n := range needs {
		wg.Go(func() {
			err := n.try(ctx)
			mu.Lock()
			defer mu.Unlock()
			errs[name] = err
		})
	}
	wg.Wait()
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		n := needs[name]
		text := fmt.Sprintf(what, name, n.whose)
		if err := errs[name]; err != nil {
			d.say(n.level, code, n.fix, "%s does not work: %v", text, err)
		} else {
			d.say(LevelOK, code, "", "%s %s", text, does)
		}
	}
}

// startInterpreter starts a Python and has it find Dagster.
func startInterpreter(ctx context.Context, python string) error {
	ctx, cancel := context.WithTimeout(ctx, interpreterTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, python,
		"-c", "import importlib.metadata as m; print(m.version('dagster'))").CombinedOutput()
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err != nil && lines[0] != "" {
		return fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return err
}

// serverAddress is where gRPC finds a code server.
func serverAddress(o dagster.RemoteOrigin) string {
	if o.Socket != "" {
		return "unix:" + o.Socket
	}
	return "dns:///" + net.JoinHostPort(o.Host, strconv.Itoa(o.Port))
}

func serverCredentials(o dagster.RemoteOrigin) credentials.TransportCredentials {
	if o.TLS {
		return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	return insecure.NewCredentials()
}
