// Package failpoint lets tests kill or stop a real daemon at a named line, to show that nothing is lost
// whatever dies or sleeps where. It does nothing unless the environment variable SLIPWAY_FAILPOINT names a
// point: NAME, or NAME:N for its N-th passing; with "stop " before it the process is stopped, as SIGSTOP
// does, until somebody lets it go on.
package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Env is the variable that arms one point.
const Env = "SLIPWAY_FAILPOINT"

var (
	point, stops = strings.CutPrefix(os.Getenv(Env), "stop ")
	name, nth    = parse(point)
	passed       atomic.Int64
)

func parse(s string) (string, int64) {
	name, count, ok := strings.Cut(s, ":")
	if n, err := strconv.ParseInt(count, 10, 64); ok && err == nil {
		return name, n
	}
	return name, 1
}

// Here kills or stops this process if the point is armed.
func Here(point string) {
	if point != name || passed.Add(1) != nth {
		return
	}
	if stops {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}
