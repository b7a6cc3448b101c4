// Package failpoint lets tests kill a real daemon at a named line, to show that nothing is lost
// whatever dies where. It does nothing unless the environment variable SLIPWAY_FAILPOINT names a
// point: NAME, or NAME:N for its N-th passing.
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
	name, nth = parse(os.Getenv(Env))
	passed    atomic.Int64
)

func parse(s string) (string, int64) {
	name, count, ok := strings.Cut(s, ":")
	if n, err := strconv.ParseInt(count, 10, 64); ok && err == nil {
		return name, n
	}
	return name, 1
}

// Here kills this process, as kill -9 would, if the point is armed.
func Here(point string) {
	if point != name || passed.Add(1) != nth {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}
