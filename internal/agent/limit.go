package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// Limits holds the limits of a worker. The zero value sets none.
type Limits struct {
	Nice    int      `json:"nice,omitempty"`
	Cgroups []Cgroup `json:"cgroups,omitempty"`
}

// Cgroup is a folder of the cgroup file system that is created for one worker.
type Cgroup struct {
	Dir string      `json:"dir"`
	Set [][2]string `json:"set,omitempty"` // file and value, in order
}

func (l Limits) any() bool { return l.Nice != 0 || len(l.Cgroups) > 0 }

// errLimits is the exit code of a worker that was not started because its limits could not be set.
const errLimits = 125

// become sets the limits of this process and then turns it into the worker, so that no part of the
// worker ever runs without its limits. It does not return.
func become(file string) {
	// Niceness belongs to a thread, and the worker gets that of the thread that calls exec.
	runtime.LockOSThread()
	var spec Spec
	err := ReadJSON(file, &spec)
	for _, c := range spec.Limits.Cgroups {
		err = errors.Join(err, c.join())
	}
	if spec.Limits.Nice != 0 {
		err = errors.Join(err, syscall.Setpriority(syscall.PRIO_PROCESS, 0, spec.Limits.Nice))
	}
	program, lerr := look(spec)
	if err = errors.Join(err, lerr, os.Remove(file)); err == nil {
		err = syscall.Exec(program, spec.Command, spec.Env)
	}
	fmt.Fprintln(os.Stderr, "slipway-agent: the worker was not started:", err)
	os.Exit(errLimits)
}

// join creates the cgroup and moves this process into it.
func (c Cgroup) join() error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	for _, s := range append(append([][2]string{}, c.Set...), [2]string{"cgroup.procs", strconv.Itoa(os.Getpid())}) {
		if err := os.WriteFile(filepath.Join(c.Dir, s[0]), []byte(s[1]), 0o644); err != nil {
			return fmt.Errorf("limit by cgroup: %w", err)
		}
	}
	return nil
}

// oomKilled reports whether the kernel killed a process of the cgroup because memory ran out
// (memory.events in version 2, memory.oom_control in version 1).
func (c Cgroup) oomKilled() bool {
	for _, file := range []string{"memory.events", "memory.oom_control"} {
		text, err := os.ReadFile(filepath.Join(c.Dir, file))
		if err != nil {
			continue
		}
		for line := range strings.SplitSeq(string(text), "\n") {
			if n, ok := strings.CutPrefix(line, "oom_kill "); ok && n != "0" {
				return true
			}
		}
	}
	return false
}
