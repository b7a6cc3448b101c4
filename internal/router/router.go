// Package router decides which launchers a run may go to, in which order, and which settings the
// rule adds. It is pure.
//
// The first rule whose conditions all match decides. If no rule matches, the default decides.
package router

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/launcher"
)

// LauncherTag is the tag with which a run chooses a launcher, if the rule allows it.
const LauncherTag = "slipway/launcher"

// Launcher is what the router knows about a launcher.
type Launcher struct {
	// Restricted launchers cannot be reached by rules that look at tags, because any user can set
	// tags.
	Restricted bool
}

// Rule is one entry of routes, before it is compiled.
type Rule struct {
	Name string // shown to users; routes[N] if not set
	When When
	To   []string // launchers, the first choice first
	// ByTag says that a run may choose one of To with its tag [LauncherTag].
	ByTag bool
	Set   Set
}

// Set holds the settings that a rule makes for the workers of its runs. They override those of the
// code location and of the launcher. Allowed tags of a run override them.
type Set struct {
	Image     string
	Resources launcher.Resources // 0 means not set
	Env       []launcher.Env
	Labels    map[string]string
	Nodes     map[string]string // labels that the worker's node must have
	Grace     time.Duration     // between stop and kill; 0 means not set
	Start     time.Duration     // maximum time until PIPELINE_START; 0 means not set
	MaxRun    time.Duration     // maximum time after PIPELINE_START; 0 means not set
	Config    json.RawMessage   // for the launcher to decode, like a section of container_context; nil: none
}

// When holds the conditions of a rule. A list matches if any member matches. Texts are globs, in
// which * matches any text and ? any character.
type When struct {
	Location, Repository, Job, Assets, Partition []string
	Tags                                         map[string][]string
	Priority, CPU, Memory, GPU                   string // comparisons, for example >=2
	CEL                                          string // expression over run; matches if it is true
	CodeServer                                   *bool  // whether the location has its own code server; nil: either
}

// Decision is the router's decision about a run.
type Decision struct {
	Rule      string   // name of the rule, or "default"
	Launchers []string // the first choice first; never none
	Reason    string   // why this rule decides, in words
	Index     int      // index of the rule; -1 for the default
	Passed    []string // for each rule before it, why that rule does not match
	Set       Set
}

// A Problem is a mistake in a rule. Setting is its path below routes[Rule].
type Problem struct {
	Rule    int
	Setting string
	Text    string
}

func (p *Problem) Error() string { return fmt.Sprintf("routes[%d].%s: %s", p.Rule, p.Setting, p.Text) }

// Router holds the routes of one instance. It is safe for use by many goroutines.
type Router struct {
	rules    []rule
	fallback []string
}

type rule struct {
	Rule
	conditions []condition
}

// Rules returns the rules, in order.
func (r *Router) Rules() []Rule {
	var out []Rule
	for _, one := range r.rules {
		out = append(out, one.Rule)
	}
	return out
}

// condition reports whether a run matches, and why or why not, in words.
type condition func(r dagster.Run, n launcher.Resources) (bool, string)

// New compiles rules. Its error joins one [Problem] for each mistake. fallback is the default: a
// launcher, or several in order.
func New(rules []Rule, fallback []string, launchers map[string]Launcher) (*Router, error) {
	out := &Router{fallback: fallback}
	var errs []error
	for i, r := range rules {
		problem := func(setting, format string, args ...any) {
			errs = append(errs, &Problem{i, setting, fmt.Sprintf(format, args...)})
		}
		if r.Name == "" {
			r.Name = fmt.Sprintf("routes[%d]", i)
		}
		if len(r.To) == 0 {
			problem("to", "required: a launcher, or a list of launchers")
		}
		for _, name := range r.To {
			l, ok := launchers[name]
			switch {
			case !ok:
				problem("to", "there is no launcher named %q under launchers:%s", name,
					config.Suggest(name, slices.Sorted(maps.Keys(launchers))))
			case l.Restricted && (r.ByTag || r.When.tagged()):
				problem("to", "launcher %q is restricted: rules with allow_tag or with conditions on tags "+
					"(partition, priority, cpu, memory and gpu are tags too) may not lead to it, because any user "+
					"can set tags; match on location and job only, or remove restricted", name)
			}
		}
		compiled := rule{Rule: r}
		compiled.conditions = r.When.compile(problem)
		out.rules = append(out.rules, compiled)
	}
	return out, errors.Join(errs...)
}

// Launchers returns the launchers in the decision of [Router.Route].
func (r *Router) Launchers(run dagster.Run) []string { return r.Route(run).Launchers }

// Route decides for a run.
func (r *Router) Route(run dagster.Run) Decision {
	needs, _ := Resources(run) // package worker reports a tag that cannot be parsed
	var passed []string
	for i, rule := range r.rules {
		ok, why := rule.fits(run, needs)
		if !ok {
			passed = append(passed, rule.Name+": "+why)
			continue
		}
		d := Decision{Rule: rule.Name, Launchers: rule.To, Index: i, Passed: passed, Reason: why, Set: rule.Set}
		if name, ok := run.Tags[LauncherTag]; ok && rule.ByTag {
			if i := slices.Index(rule.To, name); i >= 0 {
				d.Launchers, d.Reason = rule.To[i:i+1], d.Reason+", and the run's tag "+LauncherTag+" chooses"
			} else {
				d.Reason += fmt.Sprintf("; its tag %s=%q names none of this rule's launchers and is ignored",
					LauncherTag, name)
			}
		}
		return d
	}
	reason := "no rule matches"
	if len(r.rules) == 0 {
		reason = "there are no rules"
	}
	return Decision{Rule: "default", Launchers: r.fallback, Index: -1, Passed: passed, Reason: reason}
}

func (r rule) fits(run dagster.Run, needs launcher.Resources) (bool, string) {
	var reasons []string
	for _, c := range r.conditions {
		ok, why := c(run, needs)
		if !ok {
			return false, why
		}
		reasons = append(reasons, why)
	}
	if len(reasons) == 0 {
		return true, "it has no condition"
	}
	return true, strings.Join(reasons, ", ")
}

// tagged reports whether the conditions look at tags.
func (w When) tagged() bool {
	return len(w.Tags)+len(w.Partition) > 0 || w.Priority+w.CPU+w.Memory+w.GPU != "" ||
		slices.ContainsFunc([]string{"tags", "partition", "priority", "cpu", "memory", "gpu"}, func(word string) bool {
			return strings.Contains(w.CEL, word)
		})
}

func (w When) compile(problem func(setting, format string, args ...any)) []condition {
	var out []condition
	text := func(name string, globs []string, of func(dagster.Run) []string) {
		if len(globs) == 0 {
			return
		}
		compiled := make([]*regexp.Regexp, len(globs))
		for i, g := range globs {
			compiled[i] = glob(g)
		}
		out = append(out, func(r dagster.Run, _ launcher.Resources) (bool, string) {
			values := of(r)
			for _, v := range values {
				for i, g := range compiled {
					if g.MatchString(v) {
						return true, fmt.Sprintf("%s %q matches %q", name, v, globs[i])
					}
				}
			}
			if len(values) == 0 {
				return false, fmt.Sprintf("the run has no %s", name)
			}
			return false, fmt.Sprintf("%s %s matches none of %s", name, quoted(values), quoted(globs))
		})
	}
	one := func(v string) []string {
		if v == "" {
			return nil
		}
		return []string{v}
	}
	if w.CodeServer != nil {
		out = append(out, func(r dagster.Run, _ launcher.Resources) (bool, string) {
			if r.HasCodeServer() {
				return *w.CodeServer, fmt.Sprintf("location %q has its own code server", r.Remote.Location)
			}
			return !*w.CodeServer, fmt.Sprintf("location %q does not have its own code server", r.Remote.Location)
		})
	}
	text("location", w.Location, func(r dagster.Run) []string { return one(r.Remote.Location) })
	text("repository", w.Repository, func(r dagster.Run) []string { return one(r.Remote.Repository) })
	text("job", w.Job, func(r dagster.Run) []string { return one(r.Job) })
	text("asset", w.Assets, func(r dagster.Run) []string { return r.Assets })
	text("partition", w.Partition, func(r dagster.Run) []string { return one(r.Tags[dagster.PartitionTag]) })
	for _, key := range slices.Sorted(maps.Keys(w.Tags)) {
		text("tag "+key, w.Tags[key], func(r dagster.Run) []string {
			if v, ok := r.Tags[key]; ok {
				return []string{v}
			}
			return nil
		})
	}
	for _, n := range []struct {
		setting, text string
		parse         func(string) (int64, error)
		of            func(dagster.Run, launcher.Resources) (int64, bool)
	}{
		{"priority", w.Priority, whole, func(r dagster.Run, _ launcher.Resources) (int64, bool) {
			return priority(r), true
		}},
		{"cpu", w.CPU, config.ParseMillis, func(_ dagster.Run, n launcher.Resources) (int64, bool) {
			return n.CPUMillis, n.CPUMillis > 0
		}},
		{"memory", w.Memory, config.ParseBytes, func(_ dagster.Run, n launcher.Resources) (int64, bool) {
			return n.MemoryBytes, n.MemoryBytes > 0
		}},
		{"gpu", w.GPU, whole, func(_ dagster.Run, n launcher.Resources) (int64, bool) { return n.GPUs, true }},
	} {
		if n.text == "" {
			continue
		}
		holds, err := comparison(n.text, n.parse)
		if err != nil {
			problem("when."+n.setting, "%v", err)
			continue
		}
		out = append(out, func(r dagster.Run, needs launcher.Resources) (bool, string) {
			v, has := n.of(r, needs)
			if !has {
				return false, "the run does not set its " + n.setting
			}
			if !holds(v) {
				return false, fmt.Sprintf("%s is not %s", n.setting, n.text)
			}
			return true, fmt.Sprintf("%s is %s", n.setting, n.text)
		})
	}
	if w.CEL != "" {
		c, err := celCondition(w.CEL)
		if err != nil {
			problem("when.cel", "%v", err)
		}
		out = append(out, c)
	}
	return out
}

func quoted(texts []string) string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = strconv.Quote(t)
	}
	return strings.Join(out, ", ")
}

// glob compiles a pattern in which * matches any text and ? any character.
func glob(pattern string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(pattern)
	return regexp.MustCompile("(?s)^" + strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(quoted) + "$")
}

// Fits reports whether a text matches one of globs.
func Fits(text string, globs []string) bool {
	return slices.ContainsFunc(globs, func(g string) bool { return glob(g).MatchString(text) })
}

// comparison compiles a text such as >=2, <4 or 3.
func comparison(text string, parse func(string) (int64, error)) (func(int64) bool, error) {
	operators := []struct {
		sign  string
		holds func(a, b int64) bool
	}{
		{">=", func(a, b int64) bool { return a >= b }}, {"<=", func(a, b int64) bool { return a <= b }},
		{">", func(a, b int64) bool { return a > b }}, {"<", func(a, b int64) bool { return a < b }},
		{"=", func(a, b int64) bool { return a == b }}, {"", func(a, b int64) bool { return a == b }},
	}
	for _, o := range operators {
		rest, ok := strings.CutPrefix(strings.TrimSpace(text), o.sign)
		if !ok {
			continue
		}
		n, err := parse(strings.TrimSpace(rest))
		if err != nil {
			return nil, fmt.Errorf("%q is not a comparison (for example: >=2)", text)
		}
		return func(v int64) bool { return o.holds(v, n) }, nil
	}
	return nil, fmt.Errorf("%q is not a comparison (for example: >=2)", text)
}

// priority returns a run's priority for comparisons, limited to the range of int64.
func priority(r dagster.Run) int64 {
	p := r.Priority()
	switch {
	case p.IsInt64():
		return p.Int64()
	case p.Sign() < 0:
		return math.MinInt64
	}
	return math.MaxInt64
}

func whole(s string) (int64, error) { return strconv.ParseInt(strings.TrimSpace(s), 10, 64) }

// celCost limits the work of one expression for one run.
const celCost = 100_000

// celCondition compiles an expression over run, which has job, location, repository, tags, assets,
// partition, priority, cpu (cores), memory (bytes) and gpu.
func celCondition(text string) (condition, error) {
	env, err := cel.NewEnv(cel.Variable("run", cel.MapType(cel.StringType, cel.DynType)))
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if issues != nil && issues.Err() != nil {
		return nil, fmt.Errorf("this is not a valid CEL expression: %w", issues.Err())
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("the expression is a %s, not a bool", t)
	}
	program, err := env.Program(ast, cel.CostLimit(celCost))
	if err != nil {
		return nil, err
	}
	return func(r dagster.Run, n launcher.Resources) (bool, string) {
		assets := r.Assets
		if assets == nil {
			assets = []string{}
		}
		out, _, err := program.Eval(map[string]any{"run": map[string]any{
			"job": r.Job, "location": r.Remote.Location, "repository": r.Remote.Repository, "tags": r.Tags,
			"assets": assets, "partition": r.Tags[dagster.PartitionTag],
			"priority": priority(r), "cpu": float64(n.CPUMillis) / 1000, "memory": n.MemoryBytes, "gpu": n.GPUs,
		}})
		if err != nil { // for example a missing tag: a condition that cannot be evaluated does not match
			return false, fmt.Sprintf("%s: %v", text, err)
		}
		if out.Value() != true {
			return false, text + " is not true"
		}
		return true, text + " is true"
	}, nil
}
