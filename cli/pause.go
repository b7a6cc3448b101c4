package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/queue"
	"github.com/slipway-run/slipway/internal/storage"
)

// what selects the part of an instance that a command is about. The zero value selects all of it.
type what struct{ launcher, location, job, tag string }

func (w *what) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.launcher, "launcher",
		"", "only launches on this launcher; its runs go to the next launcher of their route, if there is one")
	f.StringVar(&w.location, "location", "", "only runs of this code location")
	f.StringVar(&w.job, "job", "", "only runs of this job")
	f.StringVar(&w.tag, "tag", "", "only runs with this tag, `KEY=VALUE`")
}

// pause returns the pause of that part.
func (w *what) pause(in *instance.Instance) (queue.Pause, error) {
	p := queue.Pause{Scope: queue.OfInstance}
	n := 0
	for _, o := range []struct {
		scope queue.Scope
		value string
	}{{queue.OfLauncher, w.launcher}, {queue.OfLocation, w.location}, {queue.OfJob, w.job}, {queue.OfTag, w.tag}} {
		if o.value != "" {
			p.Scope, p.Value = o.scope, o.value
			n++
		}
	}
	if n > 1 {
		return p, errors.New("use at most one of --launcher, --location, --job and --tag: pause each part separately")
	}
	if _, ok := in.Launchers[w.launcher]; w.launcher != "" && !ok {
		return p, fmt.Errorf("--launcher: slipway.yaml has no launcher %q; slipway launchers list shows its launchers",
			w.launcher)
	}
	if w.tag != "" && !strings.Contains(w.tag, "=") {
		return p, fmt.Errorf("--tag %s: must be KEY=VALUE (for example: team=data)", w.tag)
	}
	return p, nil
}

// me returns the name of the current user, which is shown with a pause.
func me() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

func (p *program) pauseCommand() *cobra.Command {
	var w what
	var by, why string
	var long time.Duration
	cmd := &cobra.Command{
		Use: "pause", Short: "Pause launches until they are unpaused", Args: noArgs,
		Long: `Pauses the launches of an instance, or of a part of it, until slipway unpause. Waiting runs stay
QUEUED; runs in flight continue. The pause is kept in Dagster's storage, so it survives restarts and
holds for every daemon. It takes effect within a second or two.`,
		Example: "  slipway pause --why 'database upgrade' --for 2h\n  slipway pause --launcher aci --why 'quota " +
			"talks'\n  slipway pause --tag team=finance --why audit",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				pause, err := p.setPause(cmd.Context(), in, s, w, by, why, long)
				if err != nil {
					return err
				}
				return p.say(pause, "launches of %s are paused\n", pause)
			})
		},
	}
	w.flags(cmd)
	pauseFlags(cmd, &by, &why)
	cmd.Flags().DurationVar(&long, "for", 0, "how long to pause, for example 2h (default: until slipway unpause)")
	least(cmd.Flags(), "for", "1s")
	return cmd
}

func pauseFlags(cmd *cobra.Command, by, why *string) {
	cmd.Flags().StringVar(by, "by", "", "who pauses (default: the current user)")
	cmd.Flags().StringVar(why, "why", "", "reason, which status and doctor show")
}

func (p *program) setPause(ctx context.Context, in *instance.Instance, s storage.Store, w what, by, why string,
	long time.Duration) (queue.Pause, error) {
	pause, err := w.pause(in)
	if err != nil {
		return pause, err
	}
	pause.By, pause.Why, pause.Since = cmp.Or(by, me()), why, time.Now().UTC().Truncate(time.Second)
	if long > 0 {
		pause.Until = pause.Since.Add(long)
	}
	return pause, s.SetEntry(ctx, pause.Key(), pause.Text())
}

// say prints the text or, with --json, v.
func (p *program) say(v any, format string, args ...any) error {
	if p.json {
		return p.printJSON(v)
	}
	_, err := fmt.Fprintf(p.out, format, args...)
	return err
}

func (p *program) unpauseCommand() *cobra.Command {
	var w what
	var all bool
	cmd := &cobra.Command{
		Use: "unpause", Short: "End a pause", Args: noArgs,
		Long: `Ends the pause of the instance, or of a part of it: give the same flags as for slipway pause. --all
ends all pauses. A maintenance window of slipway.yaml for the same part ends too, and begins again at
its next time.`,
		Example: "  slipway unpause\n  slipway unpause --launcher aci\n  slipway unpause --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				return p.unpause(cmd.Context(), in, s, w, all)
			})
		},
	}
	w.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "end all pauses")
	return cmd
}

func (p *program) unpause(ctx context.Context, in *instance.Instance, s storage.Store, w what, all bool) error {
	entries, err := s.Entries(ctx, queue.PausePrefix)
	if err != nil {
		return err
	}
	pause, err := w.pause(in)
	if err != nil {
		return err
	}
	if all && pause.Scope != queue.OfInstance {
		return usageError{fmt.Errorf("--all ends every pause, not only that of %s: leave out one of them", pause)}
	}
	now := time.Now().UTC()
	set := map[string]string{} // entries to write; "" deletes the entry
	for key := range entries {
		if (all || key == pause.Key()) && !strings.HasPrefix(key, queue.PausePrefix+string(queue.Ended)) {
			set[key] = ""
		}
	}
	for _, window := range daemon.Windows(in, entries, now) {
		if all || window.Key() == pause.Key() {
			end := window.End(me(), now)
			set[end.Key()] = end.Text()
		}
	}
	if len(set) == 0 && !all {
		return fmt.Errorf("launches of %s are not paused; slipway status shows all pauses", pause)
	}
	for key, text := range set {
		if err := s.SetEntry(ctx, key, text); err != nil {
			return err
		}
	}
	return p.say(map[string]int{"taken_away": len(set)}, "%s ended\n", count(len(set), "pause"))
}

func (p *program) drainCommand() *cobra.Command {
	var w what
	var by, why string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "drain", Short: "Pause launches, and wait until no run is in flight", Args: noArgs,
		Long: `Pauses launches as slipway pause does, and waits until none of the paused runs is in flight any more.
The pause stays afterwards, also after Ctrl-C or --timeout: slipway unpause ends it.`,
		Example: "  slipway drain\n  slipway drain --launcher docker --why 'new engine' --timeout 1h && systemctl " +
			"restart docker && slipway unpause --launcher docker",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				pause, err := p.setPause(cmd.Context(), in, s, w, by, cmp.Or(why, "drain"), 0)
				if err != nil {
					return err
				}
				return p.drain(cmd.Context(), s, pause, timeout)
			})
		},
	}
	w.flags(cmd)
	pauseFlags(cmd, &by, &why)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "fail if it takes longer, for example 1h (0: wait without limit)")
	least(cmd.Flags(), "timeout", "0s")
	return cmd
}

// drainLook is the time between two looks of drain at the runs in flight.
const drainLook = time.Second

func (p *program) drain(ctx context.Context, s storage.Store, pause queue.Pause, timeout time.Duration) error {
	began, last := time.Now(), -1
	for {
		runs, err := s.Runs(ctx, storage.Filter{Statuses: dagster.ActiveStatuses()})
		if err != nil {
			return err
		}
		n := 0
		for _, r := range runs {
			if pause.HoldsRun(r.Run) || r.Launch != nil && pause.HoldsLauncher(r.Launch.Launcher) {
				n++
			}
		}
		if n == 0 {
			return p.say(pause, "no run of %s is in flight any more; its launches stay paused until slipway unpause\n",
				pause)
		}
		if n != last && !p.json {
			if _, err := fmt.Fprintf(p.out, "%s in flight\n", count(n, "run")); err != nil {
				return err
			}
		}
		last = n
		if timeout > 0 && time.Since(began) > timeout {
			return fmt.Errorf("--timeout: %s of %s still in flight after %s; its launches stay paused until "+
				"slipway unpause", count(n, "run"), pause, timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainLook):
		}
	}
}

// pauses adds the rows of pauses.
func (t *table) pauses(pauses []queue.Pause) {
	t.row("PAUSED", "SINCE", "UNTIL", "BY", "WHY")
	for _, q := range pauses {
		until := "unpaused"
		if !q.Until.IsZero() {
			until = q.Until.Local().Format(time.DateTime)
		}
		t.row(q, q.Since.Local().Format(time.DateTime), until, q.By, dash(q.Why))
	}
}

func (p *program) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what an instance is doing", Args: noArgs,
		Long: `Shows which daemon leads the instance, its storage, how many runs wait and for what, its pauses and
its launchers. Some of this comes from the leading daemon, if it can be reached. The exit code is 1
if no daemon leads.`,
		Example: "  slipway status\n  slipway status --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withStore(cmd.Context(), func(in *instance.Instance, s storage.Store) error {
				name, err := daemon.Name(cmd.Context(), in, s)
				if err != nil {
					return err
				}
				st, problem, err := daemon.FullStatus(cmd.Context(), in, name, s)
				if err != nil {
					return err
				}
				return p.showStatus(st, problem)
			})
		},
	}
}

// errNoLeader is the error of slipway status if no daemon launches runs.
var errNoLeader = errors.New("no daemon leads this instance: start slipway daemon")

func (p *program) showStatus(st daemon.Status, problem error) error {
	var lead error
	if st.Leader.Lease != "held" {
		lead = errNoLeader
	}
	if p.json {
		return errors.Join(p.printJSON(st), lead)
	}
	var t table
	t.row("instance", st.Instance)
	t.row("home", st.Home)
	t.row("storage", st.Storage)
	if lead != nil {
		t.row("leader", fmt.Sprintf("none; the last one was %s, epoch %d", dash(st.Leader.ID), st.Leader.Epoch))
	} else {
		t.row("leader", fmt.Sprintf("%s, epoch %d", st.Leader.ID, st.Leader.Epoch))
	}
	for _, s := range dagster.UnfinishedStatuses() {
		if n := st.Runs[string(s)]; n > 0 {
			t.row(s, n)
		}
	}
	if st.Held != "" {
		t.row("claims", "none: "+st.Held)
	}
	if st.Elsewhere > 0 {
		t.row("on other hosts",
			fmt.Sprintf("%d workers that the leader cannot see: run the leading daemon where it sees that host or "+
				"Docker engine", st.Elsewhere))
	}
	for _, u := range st.Unwatched {
		t.row("not watched", fmt.Sprintf("%s; %s", u, u.Fix()))
	}
	for _, r := range slices.Sorted(maps.Keys(st.Waiting)) {
		if n := st.Waiting[r]; n > 0 {
			t.row(fmt.Sprintf("waiting for %s", r), n)
		}
	}
	if problem != nil && lead == nil {
		t.row("from the leader", fmt.Sprintf("unknown: %v", problem))
	}
	if len(st.Launchers) > 0 {
		t.row()
		t.row("LAUNCHER", "KIND", "STATE", "LAUNCHES/S")
		for _, l := range st.Launchers {
			state := "well"
			switch {
			case l.Sick:
				state = fmt.Sprintf("sick since %s: %s", l.Since.Local().Format(time.DateTime), l.Error)
			case l.Error != "":
				state = "its last call failed: " + l.Error
			}
			t.row(l, l.Kind, state, l.Rate)
		}
	}
	if len(st.Pauses) > 0 {
		t.row()
		t.pauses(st.Pauses)
	}
	return errors.Join(t.print(p.out), lead)
}
