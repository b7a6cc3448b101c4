package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipway-run/slipway/internal/instance"
)

// errReloaded ends a lead because the same daemon continues it with other settings.
var errReloaded = errors.New("the settings were read again")

// shared is what a daemon keeps when its settings are read again.
type shared struct {
	answered atomic.Pointer[time.Time] // when the storage answered last
	asked    atomic.Pointer[time.Time] // when the lease was asked for last: a sign of life
	web      atomic.Pointer[string]    // address of metrics and status; nil while they are not served
	leads    atomic.Bool

	mu       sync.Mutex
	current  *Daemon                 // the one whose settings are in force; nil before they are complete
	running  *Daemon                 // the one that elects; it may lag behind current for a moment
	stopLead context.CancelCauseFunc // of the lead; nil while there is none
}

// use makes d's settings those in force. The caller closes skipped, which never ran, unless it is
// nil.
func (s *shared) use(d *Daemon) (skipped *Daemon) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != s.running {
		skipped = s.current
	}
	s.current = d
	if s.stopLead != nil {
		s.stopLead(errReloaded)
	}
	return skipped
}

// inForce returns the daemon whose settings are in force; nil before they are complete.
func (s *shared) inForce() *Daemon {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// run returns the daemon whose settings are in force. The caller closes was, which ran before with
// others, unless it is nil.
func (s *shared) run() (d, was *Daemon) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != s.current {
		was = s.running
	}
	s.running = s.current
	return s.running, was
}

// lead runs f as a lead of d, with a context that ends when other settings come in force.
func (s *shared) lead(ctx context.Context, d *Daemon, f func(context.Context) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	s.stopLead = stop
	stale := s.current != d
	s.mu.Unlock()
	if stale {
		return nil
	}
	s.leads.Store(true)
	defer s.leads.Store(false)
	return f(ctx)
}

// watchReloads reads the settings again whenever it is asked to, until ctx ends.
func (d *Daemon) watchReloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.Reloads:
		}
		if d.Load == nil {
			d.Log.InfoContext(ctx, "this command does not reload settings: restart it")
			continue
		}
		d.reload(ctx)
	}
}

// reload reads the settings and puts them in force. A leader finishes the launches that are under
// way and then starts again as a new leader would, without giving up the lease. So every setting
// takes effect, and no worker notices. If anything is wrong, nothing changes.
func (d *Daemon) reload(ctx context.Context) {
	d.Log.InfoContext(ctx, "reloading the settings")
	in, err := d.Load()
	if err == nil {
		err = fixed(d.Instance, in)
	}
	var next *Daemon
	if err == nil {
		next = &Daemon{
			Instance: in, Store: d.Store, Log: d.Log, Worker: d.Worker, Metrics: d.Metrics, Systemd: d.Systemd,
			id: d.id, name: d.name, shared: d.shared,
		}
		err = next.prepare(ctx)
	}
	if err != nil {
		d.Log.ErrorContext(ctx, "the new settings are not used: the previous ones stay in force", "err", err)
		return
	}
	if d.Reloaded != nil {
		d.Reloaded(in)
	}
	d.shared.use(next).close()
	next.checkTargets(ctx)
}

// fixed returns an error if a setting differs that only a start can change: a setting of what this
// process has opened, or one that is written in the rows of runs in flight.
func fixed(was, now *instance.Instance) error {
	var names []string
	for name, same := range map[string]bool{
		"storage":     was.Storage == now.Storage && was.Settings.StorageURL == now.Settings.StorageURL,
		"instance_id": was.Settings.InstanceID == now.Settings.InstanceID,
		"terminate":   was.Settings.Terminate == now.Settings.Terminate,
		"web":         was.Settings.Web == now.Settings.Web,
	} {
		if !same {
			names = append(names, name)
		}
	}
	if slices.Sort(names); len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%s: to change this, restart slipway daemon", strings.Join(names, ", "))
}
