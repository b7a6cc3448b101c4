package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/singleflight"

	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
)

// hostAge is how long an answer of [launcher.Local] counts. It is far shorter than the time for
// which a worker must be absent to count as dead.
const hostAge = time.Second

// host is the last answer of a [launcher.Local]. The zero value is that there was none.
type host struct {
	asking singleflight.Group

	mu   sync.Mutex
	name string
	at   time.Time // when it was asked; monotonic
}

func (h *host) last() (name string, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.name, h.at
}

// hostNow asks for the only host on which the workers of the target can be seen; "" if they can be
// seen from everywhere.
func (t *Target) hostNow(ctx context.Context) (string, error) {
	local, ok := launcher.As[launcher.Local](t.Launcher)
	if t.Host != "" || !ok {
		return t.Host, nil
	}
	if name, at := t.host.last(); time.Since(at) < hostAge {
		return name, nil
	}
	name, err, _ := t.host.asking.Do("", func() (any, error) {
		at := time.Now()
		name, err := Call(ctx, t, local.Host)
		if err == nil {
			t.host.mu.Lock()
			defer t.host.mu.Unlock()
			t.host.name, t.host.at = name, at
		}
		return name, err
	})
	return name.(string), err
}

// Locate asks the target on which host its workers can be seen, if it has not said so lately.
// Before the first answer no run is claimed for the target.
func (t *Target) Locate(ctx context.Context) error {
	_, err := t.hostNow(ctx)
	return err
}

// lastHost is the last answer of hostNow; known is false if there was none.
func (t *Target) lastHost() (name string, known bool) {
	if _, ok := launcher.As[launcher.Local](t.Launcher); t.Host != "" || !ok {
		return t.Host, true
	}
	name, at := t.host.last()
	return name, !at.IsZero()
}

func (t *Target) located() bool {
	_, known := t.lastHost()
	return known
}

// NewToken makes the token of a new launch row. It names the host of the target, if workers can be
// seen there alone.
func (t *Target) NewToken() string {
	name, _ := t.lastHost()
	return storage.NewToken(uuid.NewString(), name)
}

// NextToken makes the token of the next attempt at a run whose worker, started with the launch row
// l, is dead. Only the host of that worker can have proved this.
func (t *Target) NextToken(l storage.LaunchRow) string {
	name, _ := t.lastHost()
	return storage.NewToken(uuid.NewString(), cmp.Or(l.Host(), name))
}

// Elsewhere explains why the target cannot see the worker of a launch row: it runs on another host.
// It is "" if the target can. Where it cannot, its answer that there is no such worker proves
// nothing. An error means that the target could not be asked.
func (t *Target) Elsewhere(ctx context.Context, l storage.LaunchRow) (string, error) {
	if l.Host() == "" {
		return "", nil
	}
	here, err := t.hostNow(ctx)
	if err != nil {
		return "", err
	}
	return t.elsewhere(l, here), nil
}

// KnownElsewhere is Elsewhere by the target's last answer. It is "" before the first one.
func (t *Target) KnownElsewhere(l storage.LaunchRow) string {
	if here, known := t.lastHost(); known {
		return t.elsewhere(l, here)
	}
	return ""
}

func (t *Target) elsewhere(l storage.LaunchRow, here string) string {
	host := l.Host()
	if host == "" || host == here {
		return ""
	}
	return fmt.Sprintf(
		"launcher %q started the run worker on another host (%s), which this host (%s) cannot see: a daemon on that "+
			"host must lead to watch the worker",
		t.Name, host, cmp.Or(here, "without a name"))
}

// Token makes the token of a new launch row of a target.
func (d *Dispatcher) Token(launcher string) string { return d.Targets[launcher].NewToken() }
