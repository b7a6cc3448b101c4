package testenv

import (
	"strings"
	"testing"
)

// Goroutines that the test started, directly or through others, are found. Goroutines of another
// test are not.
func TestGoroutines(t *testing.T) {
	stop, both := make(chan struct{}), make(chan struct{}, 2)
	t.Run("other", func(t *testing.T) {
		GoroutinesEnd(t)
		if left := goroutines(t); left != "" {
			t.Errorf("goroutines of a test that started none:\n%s", left)
		}
	})
	t.Run("own", func(t *testing.T) {
		GoroutinesEnd(t)
		go func() {
			go func() { both <- struct{}{}; <-stop }()
			both <- struct{}{}
			<-stop
		}()
		<-both
		<-both
		if left := goroutines(t); strings.Count(left, "TestGoroutines.") < 2 {
			t.Errorf("want both goroutines, got:\n%s", left)
		}
		close(stop)
	})
}
