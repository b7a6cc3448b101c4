package testenv

import (
	"context"
	"fmt"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// GoroutinesEnd waits, at the end of the test, until all goroutines have ended that the goroutine
// of the test started after this call, directly or through other goroutines. It finds them by a
// profiler label, which goroutines inherit. So tests that call it may run in parallel.
func GoroutinesEnd(t testing.TB) {
	t.Helper()
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("test", t.Name())))
	t.Cleanup(func() {
		Eventually(t, 10*time.Second, func() (bool, string) {
			left := goroutines(t)
			return left == "", "goroutines still run:\n" + left
		})
	})
}

// goroutines returns the stacks of the goroutines with the label of the test, except the one that
// calls it.
func goroutines(t testing.TB) string {
	var text strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&text, 1); err != nil {
		t.Fatal(err)
	}
	var left []string
	label := fmt.Sprintf(`# labels: {"test":%q}`, t.Name())
	for stack := range strings.SplitSeq(text.String(), "\n\n") {
		if strings.Contains(stack, label) && !strings.Contains(stack, "testenv.goroutines+") {
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}
