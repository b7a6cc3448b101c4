package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/web"
)

// Status is what an instance is doing. Fields that only the leading daemon knows are empty if it
// was not asked.
type Status struct {
	Instance  string           `json:"instance"`
	Home      string           `json:"home"`
	Storage   string           `json:"storage"` // kind and schema revision
	Leader    Leader           `json:"leader"`
	Runs      map[string]int   `json:"runs"` // unfinished ones, by status
	Pauses    []queue.Pause    `json:"pauses"`
	Held      string           `json:"held,omitempty"`    // why nothing is claimed; the leader's
	Waiting   map[string]int   `json:"waiting,omitempty"` // queued runs by reason; the leader's
	Unwatched []Unwatched      `json:"unwatched,omitempty"`
	Launchers []LauncherStatus `json:"launchers,omitempty"`
	// Elsewhere is how many runs in flight have their worker on another host, which the leader
	// cannot see.
	Elsewhere int `json:"workers_on_other_hosts,omitempty"`

	unfinished []storage.Run
}

// Leader is the daemon that leads.
type Leader struct {
	ID      string `json:"id"`
	Epoch   int64  `json:"epoch"`
	Lease   string `json:"lease"`             // held, or ended
	Address string `json:"address,omitempty"` // of its metrics and status
}

// LauncherStatus is one launcher of the leader, or one place behind it.
type LauncherStatus struct {
	Name  string    `json:"name"`
	Place string    `json:"place,omitempty"` // a place behind it that fails by itself, such as a code server
	Kind  string    `json:"kind"`
	Sick  bool      `json:"sick"`              // its calls fail; it gets one call at a time until one is answered
	Error string    `json:"error,omitempty"`   // of the last call or launch, if it failed
	Since time.Time `json:"since,omitzero"`    // time of the first of the calls in a row that failed
	Next  time.Time `json:"next_try,omitzero"` // when it may be called again while it is sick
	Busy  bool      `json:"busy"`              // it has no room for another run
	Rate  float64   `json:"launch_rate"`       // launches per second that it may be given now
}

// statusOf is what is known of a target.
func statusOf(t *dispatch.Target, busy []string) LauncherStatus {
	ill := t.Trouble()
	return LauncherStatus{Name: t.Name, Place: t.Place, Kind: t.Kind.Name, Sick: ill.Sick, Error: ill.Err,
		Since: ill.Since, Next: ill.Next, Busy: slices.Contains(busy, t.String()), Rate: t.LaunchRate()}
}

// String names the launcher, and the place behind it.
func (l LauncherStatus) String() string {
	if l.Place == "" {
		return l.Name
	}
	return l.Name + " at " + l.Place
}

// leaseHeld is a leader's Lease while it leads.
const leaseHeld = "held"

// webKey is the entry in which the leader publishes its address.
const webKey = "slipway/web"

// ReadStatus reads the status of an instance from its storage.
func ReadStatus(ctx context.Context, in *instance.Instance, name string, s storage.Store) (Status, error) {
	st := Status{Instance: name, Home: in.Home, Runs: map[string]int{}, Pauses: []queue.Pause{}}
	st.Storage = "SQLite in " + in.Storage.BaseDir
	if in.Storage.URL != "" {
		st.Storage = "Postgres"
	}
	if r := s.Revision(); r != "" {
		st.Storage += ", revision " + r
	}
	entries, err := s.Entries(ctx, "slipway/")
	if err != nil {
		return st, err
	}
	fence := storage.ParseFence(entries[storage.LeaderKey])
	st.Leader = Leader{ID: fence.Leader, Epoch: fence.Epoch, Lease: "ended"}
	var ends int64
	if _, err := fmt.Sscan(entries[storage.LeaseKey], &ends); err == nil && time.Now().Before(time.UnixMicro(ends)) {
		st.Leader.Lease = leaseHeld
	}
	if leader, address, _ := strings.Cut(entries[webKey], " "); leader == fence.Leader && leader != "" {
		st.Leader.Address = address
	}
	runs, err := s.Runs(ctx, storage.Filter{Statuses: dagster.UnfinishedStatuses()})
	if err != nil {
		return st, err
	}
	st.unfinished = runs
	for _, r := range runs {
		st.Runs[string(r.Status)]++
	}
	st.Unwatched = unwatched(in, name, runs)
	maps.DeleteFunc(entries, func(key, _ string) bool { return !strings.HasPrefix(key, queue.PausePrefix) })
	pauses, bad := holding(in, entries, time.Now())
	st.Pauses = append(st.Pauses, pauses...)
	return st, errors.Join(bad...)
}

// Status returns the status of the instance, with the facts that only this daemon knows.
func (d *Daemon) Status(ctx context.Context) (any, error) {
	st, err := ReadStatus(ctx, d.Instance, d.name, d.Store)
	if err != nil || st.Leader.ID != d.id {
		return st, err
	}
	st.Held = d.rival.Load().Why()
	st.Elsewhere = len(d.elsewhere(st.unfinished))
	var busy []string
	if w := d.waiting.Load(); w != nil {
		busy, st.Waiting = w.Busy, map[string]int{}
		for r, n := range w.Reasons {
			st.Waiting[string(r)] = n
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.targets)) {
		t := d.targets[name]
		st.Launchers = append(st.Launchers, statusOf(t, busy))
		for _, p := range t.Places() {
			st.Launchers = append(st.Launchers, statusOf(p, busy))
		}
	}
	return st, nil
}

// storageTrouble is how long the storage may not answer for the daemon to be ready all the same.
const storageTrouble = 5 * time.Second

// Ready returns nil while this daemon leads or stands by and its storage answers. Otherwise the
// error says what is missing.
func (d *Daemon) Ready() error {
	last := d.shared.answered.Load()
	if last == nil {
		return errors.New("the daemon has not reached the storage yet")
	}
	if since := time.Since(*last); since > storageTrouble {
		return fmt.Errorf("the storage has not answered for %s", since.Round(time.Second))
	}
	return nil
}

// defaultWeb is the address of metrics and status if slipway.yaml does not set one.
const defaultWeb = "127.0.0.1:9870"

// webRetry is the time between two tries to get the address of metrics and status.
const webRetry = time.Second

// serveWeb serves metrics, health and status until ctx ends. While another process has the address,
// as the daemon that leads on this machine may, it waits for it: so an address always answers for a
// daemon of this machine.
func (d *Daemon) serveWeb(ctx context.Context) error {
	set := d.Instance.Settings.Web.Listen
	if set == "off" || d.Metrics == nil {
		return nil
	}
	taken := trouble{log: d.Log, what: "metrics and status cannot be served at web.listen"}
	for ctx.Err() == nil {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", cmp.Or(set, defaultWeb))
		if err != nil && set == "" && errors.Is(err, syscall.EADDRINUSE) {
			l, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
		}
		switch {
		case err == nil:
			taken.over(ctx)
			return d.serveWebOn(ctx, l)
		// an address that moves between machines
		case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EADDRNOTAVAIL):
			taken.met(ctx, err)
			sleep(ctx, webRetry)
		case ctx.Err() == nil:
			return d.Instance.Problem("web.listen",
				"cannot serve metrics there: %v; set another host:port, or off", err)
		}
	}
	return nil
}

// announceWeb says in the storage where this leader is to be asked.
func (d *Daemon) announceWeb(ctx context.Context) {
	address := d.shared.web.Load()
	if address == nil {
		return
	}
	if err := d.Store.SetEntry(ctx, webKey, d.id+" "+*address); err != nil {
		d.Log.WarnContext(ctx, "cannot write the address of the status; slipway status shows less", "err", err)
	}
}

// countEnded counts runs of ours that have ended.
func (d *Daemon) countEnded(runs []storage.Run) {
	for _, r := range runs {
		if r.Status.Finished() && r.Launch != nil && r.Launch.Instance == d.name {
			d.Metrics.Ended(r.Launch.Launcher, string(r.Status))
		}
	}
}

// serveWebOn serves metrics, health and status until ctx ends.
func (d *Daemon) serveWebOn(ctx context.Context, l net.Listener) error {
	address := "http://" + l.Addr().String()
	d.Log.InfoContext(ctx, "metrics and status are served", "address", address)
	d.shared.web.Store(&address)
	if d.shared.leads.Load() { // since before the address was free
		d.shared.inForce().announceWeb(ctx)
	}
	s := &web.Server{
		Metrics: d.Metrics, Token: string(d.Instance.Settings.Web.Token), Ready: d.Ready, Log: d.Log,
		Status: func(ctx context.Context) (any, error) {
			if c := d.shared.inForce(); c != nil {
				return c.Status(ctx)
			}
			return nil, d.Ready()
		},
		Queue: func(ctx context.Context) (any, error) {
			if c := d.shared.inForce(); c != nil {
				return c.Holds(ctx)
			}
			return nil, d.Ready()
		},
		Scrape: func() {
			sick := map[[2]string]bool{} // by launcher and place
			c := d.shared.inForce()
			if c == nil {
				return
			}
			for name, t := range c.targets {
				sick[[2]string{name}] = t.Trouble().Sick
				for _, p := range t.Places() {
					sick[[2]string{name, p.Place}] = p.Trouble().Sick
				}
			}
			d.Metrics.Sick(sick)
		},
	}
	return s.Serve(ctx, l)
}

// Holds returns what holds back the queued runs, the most runs first. Only a daemon that leads
// knows it.
func (d *Daemon) Holds(ctx context.Context) ([]queue.Hold, error) {
	loop := d.queuing.Load()
	if loop == nil {
		return nil, errors.New("this daemon does not lead")
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	holds, err := loop.Holds(ctx)
	if err != nil {
		return nil, fmt.Errorf("the queue did not answer within %v: %w", askTimeout, err)
	}
	return append([]queue.Hold{}, holds...), nil // [], not null
}

// AskHolds asks the leading daemon for [Daemon.Holds]. The daemon keeps the queue in its memory, so
// nothing else can tell.
func AskHolds(ctx context.Context, in *instance.Instance, name string, s storage.Store) ([]queue.Hold, error) {
	st, err := ReadStatus(ctx, in, name, s)
	switch {
	case err != nil:
		return nil, err
	case st.Leader.Lease != leaseHeld:
		return nil, errors.New("no daemon leads this instance: start slipway daemon")
	case st.Leader.Address == "":
		return nil, errors.New("the leading daemon serves no status: web.listen is off in its slipway.yaml, or " +
			"another process uses the address; slipway runs explain RUN needs no daemon")
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var holds []queue.Hold
	if err := ask(ctx, st.Leader.Address+"/queue", string(in.Settings.Web.Token), &holds); err != nil {
		return nil, fmt.Errorf("the leading daemon does not say what its runs wait for; slipway doctor looks for the "+
			"reason: %w", err)
	}
	return holds, nil
}

// askTimeout bounds a question to the leader.
const askTimeout = 3 * time.Second

// FullStatus reads the status of an instance from its storage and from the leading daemon. If the
// daemon cannot be asked, problem says why.
func FullStatus(ctx context.Context, in *instance.Instance, name string,
	s storage.Store) (st Status, problem, err error) {
	if st, err = ReadStatus(ctx, in, name, s); err != nil {
		return st, nil, err
	}
	if st.Leader.Address == "" {
		return st, errors.New("it serves no status: web.listen is off, or another process uses the address"), nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var full Status
	if problem := ask(ctx, st.Leader.Address+"/status", string(in.Settings.Web.Token), &full); problem != nil {
		return st, problem, nil
	}
	if full.Leader.ID == st.Leader.ID {
		st.Held, st.Waiting, st.Launchers, st.Elsewhere = full.Held, full.Waiting, full.Launchers, full.Elsewhere
	}
	return st, nil, nil
}

// ask reads JSON from a daemon.
func ask(ctx context.Context, url, token string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was only read
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(into)
}
