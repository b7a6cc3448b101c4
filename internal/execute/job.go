package execute

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/slipway-run/slipway/config"
)

// Job is a command job. In a run's config it has this form:
//
//	steps:
//	  extract: {command: [sh, -c, "echo rows"], timeout: 5m, retries: 2, retry_delay: 10s}
//	  load:    {command: [./load], needs: [extract], env: {MODE: full}}
//	max_parallel: 4
type Job struct {
	Steps       map[string]Step `config:"steps" required:"true" help:"Steps by name."`
	MaxParallel int             `config:"max_parallel" default:"4" help:"Maximum number of steps that run at once."`
}

// Step is one step of a command job.
type Step struct {
	Command    []string          `config:"command" required:"true" help:"Program and arguments; they are not passed through a shell."`
	Needs      []string          `config:"needs" help:"Steps that must succeed before this one starts."`
	Env        map[string]string `config:"env" help:"Additional environment variables."`
	Dir        string            `config:"dir" help:"Working directory; default: the worker's."`
	Timeout    time.Duration     `config:"timeout" default:"0" help:"How long one attempt may take; 0: no limit."`
	Retries    int               `config:"retries" default:"0" help:"How many times the step is repeated after a failure."`
	RetryDelay time.Duration     `config:"retry_delay" default:"0" help:"How long to wait before the step is repeated."`
}

// ParseJob reads and checks a run's config. Every problem is reported.
func ParseJob(runConfig json.RawMessage) (Job, error) {
	return ParseJobFile("run config", runConfig) // JSON is YAML
}

// ParseJobFile is ParseJob for the YAML text of a file, which its errors name.
func ParseJobFile(file string, text []byte) (Job, error) {
	var j Job
	n, err := config.Parse(file, text)
	if err != nil {
		return j, err
	}
	if err := (config.Values{File: file, Node: n, Literal: true}).Decode(&j); err != nil {
		return j, err
	}
	if len(j.Steps) == 0 || j.MaxParallel < 1 {
		return j, fmt.Errorf("%s: a command job needs at least one step and a max_parallel of at least 1", file)
	}
	for name, s := range j.Steps {
		if len(s.Command) == 0 {
			return j, fmt.Errorf("%s: steps.%s.command: required: a program and its arguments", file, name)
		}
		for _, need := range s.Needs {
			if _, ok := j.Steps[need]; !ok {
				return j, fmt.Errorf("%s: steps.%s.needs: there is no step %q%s", file, name, need,
					config.Suggest(need, slices.Sorted(maps.Keys(j.Steps))))
			}
		}
	}
	if circle := j.circle(); circle != nil {
		return j, fmt.Errorf("%s: steps wait for each other: %s; remove one of their needs", file,
			strings.Join(circle, ", "))
	}
	return j, nil
}

// circle returns the names of steps that can never start, sorted, or nil if there are none.
func (j Job) circle() []string {
	done := map[string]bool{}
	for {
		ready := j.ready(func(step string) bool { return done[step] }, func(step string) bool { return done[step] })
		if len(ready) == 0 {
			break
		}
		for _, s := range ready {
			done[s] = true
		}
	}
	if len(done) == len(j.Steps) {
		return nil
	}
	left := maps.Clone(j.Steps)
	maps.DeleteFunc(left, func(name string, _ Step) bool { return done[name] })
	return slices.Sorted(maps.Keys(left))
}

// ready returns the names of the steps whose needs are met and that have not begun, sorted.
func (j Job) ready(met, begun func(string) bool) []string {
	var ready []string
	for _, name := range slices.Sorted(maps.Keys(j.Steps)) {
		if !begun(name) && !slices.ContainsFunc(j.Steps[name].Needs, func(need string) bool { return !met(need) }) {
			ready = append(ready, name)
		}
	}
	return ready
}
