// Package failpoint lets tests kill or stop a real daemon at a named line, to show that nothing is lost
// whatever dies or sleeps where. It does nothing unless the environment variable SLIPWAY_FAILPOINT names a
// point: NAME, or NAME:N for its N-th passing; with "stop " before it the process is stopped, as SIGSTOP
// does, until somebody lets it go on.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Env is the variable that arms one point.
const Env = "SLIPWAY_FAILPOINT"

// TraceEnv is the variable with a file to which each [Trace] adds a line: the process, the step, the run and its attempt.
const TraceEnv = "SLIPWAY_TRACE"

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

// Trace records a step of the protocol, where a test asks for it.
func Trace(step Step, run string, attempt int) {
	if trace != nil {
		_, _ = fmt.Fprintf(trace, "%d %s %s %d\n", os.Getpid(), step, run, attempt) // one write; a trace that is not whole is refused
	}
}

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
func Here(p Point) {
	if string(p) != name || passed.Add(1) != nth {
		return
	}
	if stops {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}
