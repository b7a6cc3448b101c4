//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled reports whether this program was built with the tag failpoints.
const Enabled = true

var (
	point, stops = strings.CutPrefix(os.Getenv(Env), "stop ")
	name, nth    = parse(point)
	passed       atomic.Int64
)

func parse(s string) (Point, int64) {
	name, count, ok := strings.Cut(s, ":")
	if n, err := strconv.ParseInt(count, 10, 64); ok && err == nil {
		return Point(name), n
	}
	return Point(name), 1
}

// Here kills or stops this process if the point is armed.
func Here(p Point) {
	if p != name || passed.Add(1) != nth {
		return
	}
	if stops {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}

var trace = openTrace(os.Getenv(TraceEnv))

func openTrace(file string) *os.File {
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil
	}
	return f
}

// Trace records a step of the protocol if a test asks for the trace.
func Trace(s Step, run string, attempt int) {
	if trace != nil {
		// One write, so that lines of several daemons do not mix. Package model refuses a trace
		// that lacks a line.
		_, _ = fmt.Fprintf(trace, "%d %s %s %d\n", os.Getpid(), s, run, attempt)
	}
}
