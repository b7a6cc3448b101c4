package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A warning that comes twice a second is logged once and then counted; another one, or an error, is
// logged at once.
func TestWarningsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := slog.New(newSeldom(slog.NewTextHandler(&out, nil))).With("launcher", "local")
		for i := range 300 { // 150 s
			log.Warn("the lease cannot be had", "err", fmt.Errorf("port %d: read-only", i), "dur", time.Duration(i))
			time.Sleep(500 * time.Millisecond)
		}
		if n := strings.Count(out.String(), "the lease cannot be had"); n != 3 ||
			strings.Count(out.String(), "times=120") != 2 {
			t.Errorf("of 300 equal warnings in 150 s %d were logged, want 3, two of them with times=120:\n%s", n,
				out.String())
		}
		out.Reset()
		for range 2 {
			for _, text := range []string{"read-only", "no route"} {
				log.Warn("the lease cannot be had", "err", errors.New(text))
			}
		}
		if n := strings.Count(out.String(), "the lease cannot be had"); n != 2 {
			t.Errorf("%d lines of two errors, want 2:\n%s", n, out.String())
		}
		out.Reset()
		for _, run := range []string{"a", "b"} {
			log.Warn("a run is left alone", "run_id", run)
			log.Error("the lease cannot be had", "err", errors.New("read-only"))
			log.With("launcher", "other").Warn("the lease cannot be had")
		}
		if n := strings.Count(out.String(), "\n"); n != 5 {
			t.Errorf("%d lines, want one for each run and each error and one for the other launcher:\n%s", n,
				out.String())
		}
		time.Sleep(time.Hour)
		if log.Warn("the last one"); strings.Contains(out.String(), "times") {
			t.Errorf("a warning of long ago is counted:\n%s", out.String())
		}
	})
}
