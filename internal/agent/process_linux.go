package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Identify returns the identity of a running process.
func Identify(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The command, in parentheses, may contain anything. The state follows it, and the start time
	// is the 20th field from there.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 || string(fields[0]) == "Z" {
		return Process{}, os.ErrProcessDone
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: string(fields[19]), Boot: strings.TrimSpace(string(boot))}, nil
}

// Groups returns the process groups of a session, without the group of its leader.
func Groups(session int) []int {
	var groups []int
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is good
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		var state string
		var parent, group, its int
		_, err = fmt.Sscan(string(stat[bytes.LastIndexByte(stat, ')')+1:]), &state, &parent, &group, &its)
		if err == nil && its == session && group != session && !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
	}
	return groups
}

// adoptOrphans makes this process the parent of orphans among its descendants, so that it can reap
// them.
func adoptOrphans() {
	const setChildSubreaper = 36                                             // PR_SET_CHILD_SUBREAPER
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0) // without it init reaps them
}

// maxRSS is the peak memory of a child in bytes. On Linux, the unit of ru_maxrss is KiB.
func maxRSS(r *syscall.Rusage) int64 { return r.Maxrss * 1024 }
