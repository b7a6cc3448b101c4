package agent

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Identify names a running process.
func Identify(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The command, in parentheses, may hold anything; the state follows it, and the start time is the 20th field from there.
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

// adoptOrphans makes this process the parent of orphans among its descendants, so that it can reap them.
func adoptOrphans() {
	const setChildSubreaper = 36                                             // PR_SET_CHILD_SUBREAPER
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0) // without it init reaps them
}

// maxRSS is the peak memory of a child in bytes.
func maxRSS(r *syscall.Rusage) int64 { return r.Maxrss * 1024 }
