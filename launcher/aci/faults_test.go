//go:build real

package aci_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	emulator "github.com/slipway-run/slipway/test/emulator/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

// With faults at every call, on a seeded schedule, no worker is started twice, lost, or left over.
func TestFaults(t *testing.T) {
	t.Parallel()
	n := 100
	if os.Getenv("SLIPWAY_SOAK") != "" {
		n = 300
	}
	c := newCase(t, func(s *emulator.Settings) { s.Timing.StopGrace = 100 * time.Millisecond },
		map[string]any{"locations": []string{"northeurope"}, "poll": "20ms"})
	random := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // a schedule
	c.Seed(7)
	for _, f := range []emulator.Fault{
		{Action: "drop_before", Probability: 0.05}, {Action: "drop_after", Probability: 0.05},
		{Action: "status", Status: 503, Code: "ServerBusy", Probability: 0.05},
		{Action: "status", Status: 500, Probability: 0.03},
		{Action: "bad_json", Probability: 0.03}, {Action: "throttle", RetryAfter: 1, Skip: 500, Count: 3},
		{Action: "capacity", Operation: "put", Location: "westeurope", Probability: 0.02},
		{Action: "transitioning", Operation: "stop", Probability: 0.1},
		{Action: "no_instance_view", Operation: "get", Probability: 0.05},
		{Action: "slow", Delay: 30 * time.Millisecond, Probability: 0.05},
		{Action: "stuck_pending", Delay: 200 * time.Millisecond, Probability: 0.1},
		{Action: "image_pull", Message: "i/o timeout", Delay: 300 * time.Millisecond, Probability: 0.1},
		{Action: "slow_delete", Delay: 200 * time.Millisecond, Probability: 0.2},
	} {
		c.inject(f)
	}
	starts := c.TempDir()
	scripts := []string{"exit 0", "exit 3", "sleep 0.2; exit 0", forever}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range n {
		script := scripts[random.IntN(len(scripts))]
		req := c.request("echo x >>" + starts + "/$RUN; " + script)
		req.Env = append(req.Env, launcher.Env{Name: "RUN", Value: req.ID.Run})
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := c.through(req, script); err != nil {
				c.Errorf("run %d, %s (%s): %v; the last requests about it:\n%s", i, req.ID, script, err,
					c.journalOf(req.ID.String()))
			}
		})
	}
	wg.Wait()
	c.Calm()
	files, err := os.ReadDir(starts)
	if err != nil || len(files) == 0 {
		t.Fatalf("%d workers have begun, %v", len(files), err)
	}
	for _, f := range files {
		if lines, err := os.ReadFile(starts + "/" + f.Name()); err != nil || string(lines) != "x\n" {
			t.Errorf("the worker of %s was started %d times, %v", f.Name(), len(lines)/2, err)
		}
	}
	testenv.Eventually(t, wait, func() (bool, string) {
		return len(c.Names()) == 0, fmt.Sprintf("%d groups are left", len(c.Names()))
	})
	if got := c.count("put"); got < n {
		t.Errorf("%d PUTs", got)
	}
	t.Logf("%d runs, %d requests", n, len(c.Journal()))
}

// journalOf prints the last requests about a group.
func (c *case_) journalOf(group string) string {
	var lines []string
	for _, r := range c.Journal() {
		if r.Group == group {
			lines = append(lines, fmt.Sprintf("%s %s %d %s %v", r.At.Format("15:04:05.000"), r.Operation, r.Status,
				r.Code,
				r.Faults))
		}
	}
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// through takes a request from its launch to its removal despite all faults, as the daemon does.
func (c *case_) through(req *launcher.Request, script string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	again := func(what string, f func() (bool, error)) error {
		var last error
		for ctx.Err() == nil {
			done, err := f()
			if done {
				return nil
			}
			if errors.Is(err, launcher.ErrInvalid) || errors.Is(err, launcher.ErrDenied) {
				return fmt.Errorf("%s: %w", what, err)
			}
			last = err
			time.Sleep(20 * time.Millisecond)
		}
		return fmt.Errorf("%s never ended: %w", what, last)
	}
	var h launcher.Handle
	err := again("launch", func() (bool, error) {
		got, err := c.l.Launch(ctx, req)
		h = got.Handle
		return err == nil, err
	})
	if err != nil {
		return err
	}
	asked := false
	var last launcher.Health
	err = again("end", func() (bool, error) {
		var err error
		if last, err = c.l.Health(ctx, h); err != nil {
			return false, err
		}
		if script == forever && last.Status == launcher.Running && !asked {
			was, err := c.l.Terminate(ctx, h, time.Second)
			asked = was && err == nil
			return false, err
		}
		return last.Status.Ended(), fmt.Errorf("%+v", last)
	})
	if err != nil {
		return fmt.Errorf("%w; asked to stop: %v, last health %+v", err, asked, last)
	}
	if want := map[string]launcher.Status{"exit 3": launcher.Failed, forever: launcher.Failed}[script]; want != "" &&
		last.Status != want || want == "" && last.Status != launcher.Succeeded {
		return fmt.Errorf("ended as %+v", last)
	}
	return again("removal", func() (bool, error) {
		err := c.l.Remove(ctx, h)
		return err == nil, err
	})
}
