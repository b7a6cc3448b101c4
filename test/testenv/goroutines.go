package testenv

import (
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// GoroutinesEnd waits, at the end of the test, until all goroutines that were started after this call have
// ended. Tests that call it must not run in parallel.
func GoroutinesEnd(t testing.TB) {
	t.Helper()
	before := goroutines(t)
	t.Cleanup(func() {
		Eventually(t, 10*time.Second, func() (bool, string) {
			for id, stack := range goroutines(t) {
				if _, ok := before[id]; !ok {
					return false, "a goroutine still runs:\n" + stack
				}
			}
			return true, ""
		})
	})
}

// goroutines returns the stacks of all goroutines by their numbers.
func goroutines(t testing.TB) map[string]string {
	var text strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&text, 2); err != nil {
		t.Fatal(err)
	}
	stacks := map[string]string{}
	for stack := range strings.SplitSeq(text.String(), "\n\n") {
		id, _, _ := strings.Cut(stack, " [") // goroutine 7 [running]:
		stacks[id] = stack
	}
	return stacks
}
