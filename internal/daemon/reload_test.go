package daemon_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/web"
	"github.com/slipway-run/slipway/test/testenv"
)

// Settings that are read again while runs are launched, many times, lose no run and start none
// twice.
func TestReloadAmidLaunches(t *testing.T) {
	w := newWorld(t, parked, "web: {listen: '127.0.0.1:0'}\n")
	reloads := make(chan os.Signal, 1)
	d := &daemon.Daemon{
		Instance: w.in, Store: w.store, Log: slog.New(slog.NewTextHandler(io.Writer(w), nil)),
		Metrics: web.NewMetrics("test"), Reloads: reloads,
		Load: func() (*instance.Instance, error) { return instance.Load(w.d.Location, w.kinds, os.LookupEnv) },
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var ids []string
	for range 6 {
		ids = append(ids, w.enqueue(nil))
		reloads <- syscall.SIGHUP
	}
	for _, id := range ids {
		if r := w.ended(id); r.Status != dagster.Success || r.Launch.Attempt != 1 {
			t.Errorf("run %s is %s, launch row %v: %s", id, r.Status, r.Launch, w.story(id))
		}
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		return strings.Contains(w.output(), "the reloaded settings are in force"), w.output()
	})
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	testenv.LeadLasts(t, w.output())
}
