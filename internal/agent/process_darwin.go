package agent

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Identify returns the identity of a running process.
func Identify(pid int) (Process, error) {
	start, err := exec.Command("/bin/ps", "-o", "lstart=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return Process{}, os.ErrProcessDone
	}
	boot, err := exec.Command("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid").Output()
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: strings.TrimSpace(string(start)), Boot: strings.TrimSpace(string(boot))}, nil
}

// adoptOrphans does nothing here: launchd becomes the parent of orphans, and reaps them.
func adoptOrphans() {}

// maxRSS is the peak memory of a child in bytes, the unit of ru_maxrss on macOS.
func maxRSS(r *syscall.Rusage) int64 { return r.Maxrss }

// Groups returns no process groups: macOS does not tell which groups belong to a session.
func Groups(int) []int { return nil }
