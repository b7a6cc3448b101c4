package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/agent"
	"github.com/slipway-run/slipway/launcher"
)

// cgroupRoot is where Linux mounts its cgroup file systems.
const cgroupRoot = "/sys/fs/cgroup"

// bounds are the limits that apply to all workers of a launcher.
type bounds struct {
	nice       int
	cpuMillis  int64
	memory     int64
	parent     string // name of the parent of the workers' cgroups; "" for no limits by cgroups
	version2   bool
	maxWorkers int
}

// readBounds checks the settings.
func readBounds(c Config, v config.Values) (bounds, error) {
	b := bounds{nice: c.Nice, parent: strings.Trim(c.Cgroup, "/"), maxWorkers: c.MaxWorkers}
	fail := func(setting, format string, args ...any) error {
		return v.Problem(setting, format, args...)
	}
	var err error
	if c.CPU != "" {
		if b.cpuMillis, err = config.ParseMillis(c.CPU); err != nil || b.cpuMillis <= 0 {
			return b, fail("cpu", "%q is not an amount of processors such as 2 or 500m", c.CPU)
		}
	}
	if c.Memory != "" {
		if b.memory, err = config.ParseBytes(c.Memory); err != nil || b.memory <= 0 {
			return b, fail("memory", "%q is not an amount of memory such as 512Mi or 2G", c.Memory)
		}
	}
	if b.nice < -20 || b.nice > 19 {
		return b, fail("nice", "%d is not between -20 and 19", b.nice)
	}
	if b.parent == "" {
		if b.cpuMillis+b.memory > 0 {
			return b,
				fail("cgroup", "required with cpu and memory: the name of a cgroup that the daemon's user may make "+
					"others in, such as slipway")
		}
		return b, nil
	}
	_, err = os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	b.version2 = err == nil
	return b, b.prepare(fail)
}

// prepare makes the parent cgroup and enables limits for the cgroups of workers below it.
func (b bounds) prepare(fail func(setting, format string, args ...any) error) error {
	dirs := []string{filepath.Join(cgroupRoot, b.parent)}
	if !b.version2 {
		dirs = []string{filepath.Join(cgroupRoot, "cpu", b.parent), filepath.Join(cgroupRoot, "memory", b.parent)}
	}
	var err error
	for _, d := range dirs {
		err = errors.Join(err, os.MkdirAll(d, 0o755))
	}
	if err == nil && b.version2 {
		err = b.enable()
	}
	if err != nil {
		return fail("cgroup",
			"workers cannot be limited here: %v; leave cgroup, cpu and memory out, or have the cgroup delegated to "+
				"this user", err)
	}
	return nil
}

// enable enables the controllers of version 2. A cgroup has the files of a controller only if every
// cgroup above it has the controller in cgroup.subtree_control, so enable begins at the root. It
// fails if a setting needs a controller that is missing, or if a process runs in one of the cgroups
// (EBUSY), because the kernel then allows no workers below it. A run whose tag needs a missing
// controller fails when it is launched.
func (b bounds) enable() error {
	dir := cgroupRoot
	for _, name := range append([]string{""}, strings.Split(b.parent, "/")...) {
		dir = filepath.Join(dir, name)
		file := filepath.Join(dir, "cgroup.subtree_control")
		for _, c := range []struct {
			controller string
			limit      int64
		}{{"memory", b.memory}, {"cpu", b.cpuMillis}} { // memory first: for cpu the kernel does not return EBUSY
			enabled, err := os.ReadFile(file)
			// Whole words, because "cpuset" is another controller.
			if err == nil && !slices.Contains(strings.Fields(string(enabled)), c.controller) {
				err = os.WriteFile(file, []byte("+"+c.controller), 0o644)
			}
			if errors.Is(err, syscall.EBUSY) {
				return fmt.Errorf("%w: processes run in that cgroup; name one that has none", err)
			}
			if err != nil && c.limit > 0 {
				return err
			}
		}
	}
	return nil
}

// period is the period of the processor limit, in µs.
const period = 100_000

// of returns the limits of one worker: the limits that its run asks for, else those of the
// settings.
func (b bounds) of(name string, r launcher.Resources) agent.Limits {
	l := agent.Limits{Nice: b.nice}
	cpu, memory := b.cpuMillis, b.memory
	if r.CPUMillis > 0 {
		cpu = r.CPUMillis
	}
	if r.MemoryBytes > 0 {
		memory = r.MemoryBytes
	}
	if b.parent == "" || cpu+memory == 0 {
		return l
	}
	quota, bytes := strconv.FormatInt(cpu*period/1000, 10), strconv.FormatInt(memory, 10)
	if b.version2 {
		c := agent.Cgroup{Dir: filepath.Join(cgroupRoot, b.parent, name)}
		if cpu > 0 {
			c.Set = append(c.Set, [2]string{"cpu.max", fmt.Sprintf("%s %d", quota, period)})
		}
		if memory > 0 {
			c.Set = append(c.Set, [2]string{"memory.max", bytes})
		}
		l.Cgroups = []agent.Cgroup{c}
		return l
	}
	if cpu > 0 {
		l.Cgroups = append(l.Cgroups, agent.Cgroup{
			Dir: filepath.Join(cgroupRoot, "cpu", b.parent, name),
			Set: [][2]string{{"cpu.cfs_period_us", strconv.Itoa(period)}, {"cpu.cfs_quota_us", quota}},
		})
	}
	if memory > 0 {
		l.Cgroups = append(l.Cgroups, agent.Cgroup{Dir: filepath.Join(cgroupRoot, "memory", b.parent, name),
			Set: [][2]string{{"memory.limit_in_bytes", bytes}}})
	}
	return l
}

// Free implements [launcher.Capacity].
func (l *Launcher) Free(context.Context, launcher.Resources) (n int, known bool, err error) {
	if l.bounds.maxWorkers == 0 {
		return 0, false, nil
	}
	alive, err := l.alive()
	return max(0, l.bounds.maxWorkers-alive), true, err
}

// alive counts the workers that have begun and not ended.
func (l *Launcher) alive() (int, error) {
	entries, err := os.ReadDir(filepath.Join(l.root, "state"))
	if err != nil {
		return 0, fmt.Errorf("process: %w", err)
	}
	begun, ended := map[string]bool{}, map[string]bool{}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".begun"); ok {
			begun[name] = true
		} else if name, ok := strings.CutSuffix(e.Name(), ".ended"); ok {
			ended[name] = true
		}
	}
	n := 0
	for name := range begun {
		if ended[name] {
			continue
		}
		// A worker that died together with its supervisor left no record.
		if alive, err := held(agent.PathsOf(l.root, name).Lock); err != nil {
			return 0, err
		} else if alive {
			n++
		}
	}
	return n, nil
}
