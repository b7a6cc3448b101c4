package daemon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/dispatch"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/monitor"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/internal/worker"
	"github.com/slipway-run/slipway/launcher"
)

// Name returns the name of an instance on workers and launch rows: the instance_id in slipway.yaml
// if it is set, else the storage's own ID.
func Name(ctx context.Context, in *instance.Instance, s storage.Reader) (string, error) {
	if name := in.Settings.InstanceID; name != "" {
		return name, nil
	}
	return s.InstanceID(ctx)
}

// hostOf names this host, for a launcher whose workers see its files; "" for the others, which are
// asked when they are needed.
func hostOf(ctx context.Context, home string, kind *launcher.Kind, l launcher.Launcher) (string, error) {
	if !kind.Traits.LocalFiles {
		return "", nil
	}
	if local, ok := launcher.As[launcher.Local](l); ok {
		return local.Host(ctx)
	}
	return launcher.HostOf(filepath.Join(home, "slipway"))
}

// Targets opens the launchers of an instance. The caller closes them.
func Targets(ctx context.Context, in *instance.Instance, log *slog.Logger) (map[string]*dispatch.Target, error) {
	targets := map[string]*dispatch.Target{}
	var errs []error
	for name, l := range in.Launchers {
		opened, err := l.Kind.Open(ctx, l.Config, log.With("launcher", name))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		kind := launcher.KindOf(l.Kind, opened)
		t := worker.Target{Name: name, Traits: kind.Traits, Python: l.Python, Cwd: l.Cwd, Grace: l.Grace,
			LaunchRate: l.Rate, Ref: in.WorkerRefFor(l), Gate: worker.Gate(l.Gate), Context: kind.Context}
		limit, err := l.Allow.Max()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		t.Allow = worker.Allow{Images: l.Allow.Images, Forbid: l.Allow.Forbid, Max: limit}
		t.Tags, t.Denied = l.Allow.RawTags(kind)
		t.FailsWithRun = kind.FailsWithRun != nil && kind.FailsWithRun(l.Config)
		if t.Gate == "" {
			t.Gate = worker.DefaultGate(kind.Traits)
		}
		targets[name] = dispatch.NewTarget(t, kind, opened)
		if targets[name].Host, err = hostOf(ctx, in.Home, kind, opened); err != nil {
			errs = append(errs, err)
		}
	}
	for i, r := range in.Router.Rules() {
		for _, name := range r.To {
			if t := targets[name]; len(r.Set.Nodes) > 0 && t != nil && !t.Traits.Nodes {
				errs = append(errs, in.RuleProblem(i, "set.nodes",
					"launcher %q, of kind %s, does not choose nodes: remove set.nodes, or let the rule lead to a "+
						"launcher that does", name, t.Kind.Name))
			}
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		err = errors.Join(err, CloseTargets(targets))
	}
	return targets, err
}

// Sweeper returns the part of a leader that compares targets with the storage.
func Sweeper(in *instance.Instance, name string, s storage.Store, targets map[string]*dispatch.Target,
	log *slog.Logger) *monitor.Sweeper {
	rules := map[string]monitor.Removal{}
	for name, l := range in.Launchers {
		rules[name] = monitor.Removal(l.Remove)
	}
	return &monitor.Sweeper{
		Store: s, Instance: name, Targets: targets, Removal: rules, Grace: monitor.OrphanGrace, Logs: Logs(in),
		KeepLogs: in.Settings.KeepLogs, Log: log,
	}
}

// Times returns a function that tells how long a run may take on a launcher. Its answer depends on
// the run's tags, its rule, slipway.yaml and dagster.yaml.
func Times(in *instance.Instance) func(r dagster.Run, launcher string) monitor.Times {
	t := in.Timeouts()
	seconds := func(n int) time.Duration { return time.Duration(n) * time.Second }
	return func(r dagster.Run, launcher string) monitor.Times {
		set := in.Router.Route(r).Set
		return monitor.Times{
			Start: cmp.Or(set.Start, seconds(t.Start)), Cancel: seconds(t.Cancel),
			MaxRuntime: cmp.Or(set.MaxRun, seconds(t.MaxRuntime)),
			Grace:      cmp.Or(set.Grace, in.Launchers[launcher].Grace), Settle: in.Launchers[launcher].Settle,
			Silence: in.Settings.Monitoring.Silence,
		}.Of(r)
	}
}

// Policy returns the policy for runs whose workers are proved dead.
func Policy(in *instance.Instance, targets map[string]*dispatch.Target) *monitor.Policy {
	d := in.Deaths()
	p := &monitor.Policy{Workers: d.Workers, Resumes: d.Resumes, Ladder: d.Memory, Route: in.Router.Launchers,
		Resumers: map[string]bool{}}
	for _, r := range d.Rules {
		rule := monitor.Rule{Do: monitor.Then(r.Do), Started: monitor.Then(r.Started)}
		for _, c := range r.Causes {
			rule.Causes = append(rule.Causes, launcher.Cause(c))
		}
		p.Rules = append(p.Rules, rule)
	}
	for name, t := range targets {
		p.Resumers[name] = !t.Traits.OwnCommand
	}
	return p
}

// Route returns a function that lists the launchers that a run may go to. It leaves out the
// launchers that the run had to leave for the next one, unless none would remain.
func Route(in *instance.Instance) func(storage.Run) []string {
	return func(r storage.Run) []string {
		route := in.Router.Launchers(r.Run)
		if left := monitor.Left(route, r.Deaths); len(left) > 0 {
			return left
		}
		return route
	}
}

// Logs is the folder of the output of workers that were removed from their target.
func Logs(in *instance.Instance) string { return filepath.Join(in.Home, "slipway", "logs") }

// CloseTargets frees what launchers hold in this process. Workers continue.
func CloseTargets(targets map[string]*dispatch.Target) error {
	var errs []error
	for _, t := range targets {
		errs = append(errs, launcher.Close(t.Launcher))
	}
	return errors.Join(errs...)
}

// Builder returns the builder of an instance's requests. The parameter goWorker is the command of
// slipway-worker on this machine.
func Builder(in *instance.Instance, name string, goWorker []string) *worker.Builder {
	return &worker.Builder{
		Instance: name, RefSecret: in.RefHasSecret(), AllowSecretsInArgv: in.Settings.AllowSecretsInArgv,
		Ref: in.Ref(), GoWorker: goWorker, Files: &worker.Machine{}, Router: in.Router,
	}
}
