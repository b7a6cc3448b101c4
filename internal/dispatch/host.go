package dispatch

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/storage"
)

// NewToken makes the token of a new launch row. It names the host of the target, if workers can be seen there alone.
func (t *Target) NewToken() string { return storage.NewToken(uuid.NewString(), t.Host) }

// Elsewhere explains why the target cannot see the worker of a launch row: it runs on another host. It is "" if the target can.
// Such a target must not be asked: its answer that there is no such worker proves nothing.
func (t *Target) Elsewhere(l storage.LaunchRow) string {
	host := l.Host()
	if host == "" || host == t.Host {
		return ""
	}
	return fmt.Sprintf("launcher %q started the run worker on another host (%s), which cannot be seen from this one (%s): a daemon on that host must lead to look after it", t.Name, host, t.Host)
}

// Token makes the token of a new launch row of a target.
func (d *Dispatcher) Token(launcher string) string { return d.Targets[launcher].NewToken() }
