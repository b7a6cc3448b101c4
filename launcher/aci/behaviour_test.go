package aci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/launcher/launchertest"
	emulator "github.com/slipway-run/slipway/test/emulator/aci"
	"github.com/slipway-run/slipway/test/testenv"
)

const (
	forever = "while :; do sleep 0.05; done"
	wait    = 20 * time.Second
)

// case_ is one emulator with a launcher and an instance.
type case_ struct {
	*testing.T
	*azure
	l  *aci.Launcher
	in *launchertest.Instance
}

func newCase(t *testing.T, change func(*emulator.Settings), more map[string]any) *case_ {
	a := newAzure(t, &emulator.Processes{}, change)
	l := a.must(t, more)
	in := launchertest.NewInstance(t, l)
	in.Timeout = wait
	return &case_{t, a, l, in}
}

func (c *case_) request(script string) *launcher.Request {
	req := c.in.NewRun("sh", "-c", script)
	req.Env = []launcher.Env{{Name: "PLAIN", Value: "a value"}, {Name: "DB_PASSWORD", Value: "hunter2"},
		{Name: "HIDDEN", Value: "hunter3", Secret: true}}
	return req
}

func (c *case_) inject(f emulator.Fault) {
	c.Helper()
	if err := c.Inject(f); err != nil {
		c.Fatal(err)
	}
}

// until waits until a worker's health satisfies ok.
func (c *case_) until(h launcher.Handle, what string, ok func(launcher.Health) bool) launcher.Health {
	c.Helper()
	var last launcher.Health
	testenv.Eventually(c, wait, func() (bool, string) {
		var err error
		last, err = c.l.Health(context.Background(), h)
		return err == nil && ok(last), fmt.Sprintf("want %s, is %+v, %v", what, last, err)
	})
	return last
}

func (c *case_) ended(h launcher.Handle) launcher.Health {
	c.Helper()
	return c.until(h, "ended", func(h launcher.Health) bool { return h.Status.Ended() })
}

func running(h launcher.Health) bool { return h.Status == launcher.Running }

// launch repeats Launch until it succeeds, as dispatch does.
func (c *case_) launch(req *launcher.Request) launcher.Handle {
	c.Helper()
	var got launcher.Launched
	testenv.Eventually(c, wait, func() (bool, string) {
		var err error
		got, err = c.l.Launch(context.Background(), req)
		if errors.Is(err, launcher.ErrInvalid) {
			c.Fatalf("Launch = %v", err)
		}
		return err == nil, fmt.Sprint(err)
	})
	return got.Handle
}

func (c *case_) fails(req *launcher.Request, want error) error {
	c.Helper()
	_, err := c.l.Launch(context.Background(), req)
	if !errors.Is(err, want) {
		c.Fatalf("Launch = %v, want %v", err, want)
	}
	return err
}

// count returns the number of requests of an operation.
func (c *case_) count(op string) int {
	n := 0
	for _, r := range c.Journal() {
		if r.Operation == op {
			n++
		}
	}
	return n
}

func (c *case_) counts(op string, want int) {
	c.Helper()
	if got := c.count(op); got != want {
		c.Errorf("%d requests %s, want %d: %s", got, op, want, text(c.Journal()))
	}
}

func (c *case_) deployed(h launcher.Handle, want int) {
	c.Helper()
	if got := c.Deployed(string(h)); got != want {
		c.Errorf("group %s was deployed %d times, want %d", h, got, want)
	}
}

// The behaviours of the service that a launcher must handle, with the numbers of
// docs/launchers/aci.md.
func TestBehaviours(t *testing.T) {
	ctx := context.Background()
	for _, b := range []struct {
		name   string
		change func(*emulator.Settings)
		more   map[string]any
		test   func(*case_)
	}{
		{"01 the same request twice is one group and one PUT", nil, nil, func(c *case_) {
			req := c.request(forever)
			h := c.launch(req)
			if h2 := c.launch(req); h2 != h {
				c.Errorf("handles %s and %s", h, h2)
			}
			c.counts("put", 1)
			c.deployed(h, 1)
		}},
		{"02 a PUT whose answer is lost is found", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "drop_after", Operation: "put", Count: 1})
			h := c.launch(c.request(forever))
			c.until(h, "running", running)
			c.counts("put", 1)
			c.deployed(h, 1)
		}},
		{"02b the last group of a quota, whose answer is lost, is found and not taken for a lack of room",
			func(s *emulator.Settings) { s.Quota.Groups = 1 }, nil, func(c *case_) {
				req := c.request(forever)
				c.inject(emulator.Fault{Action: "drop_after", Operation: "put", Count: 1})
				// after the look before the PUT
				c.inject(emulator.Fault{Action: "status", Operation: "get", Status: 500, Skip: 1, Count: 30})
				_ = c.fails(req, launcher.ErrTransient)
				c.Calm()
				if _, err := c.must(c, nil).Launch(ctx, req); err != nil {
					c.Errorf("Launch = %v, want the group that exists", err)
				}
				c.counts("put", 1)
			}},
		{"03 a PUT that is lost is sent again", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "drop_before", Operation: "put", Count: 1})
			h := c.launch(c.request(forever))
			c.until(h, "running", running)
			c.counts("put", 2)
			c.deployed(h, 1)
			hashes := map[string]bool{}
			for _, r := range c.Journal() {
				if r.Operation == "put" {
					hashes[r.Body] = true
				}
			}
			if len(hashes) != 1 {
				c.Errorf("the two PUTs differ: %v", hashes)
			}
		}},
		{"04 two processes that launch one request", nil, nil, func(c *case_) {
			req, other := c.request(forever), c.must(c, nil)
			var wg sync.WaitGroup
			for _, l := range []*aci.Launcher{c.l, other, c.l, other} {
				wg.Go(func() {
					if _, err := l.Launch(ctx, req); err != nil && !errors.Is(err, launcher.ErrTransient) {
						c.Errorf("Launch = %v", err)
					}
				})
			}
			wg.Wait()
			// of two processes on one machine; on two machines the gate lets only one pass, see e2e
			c.deployed(c.launch(req), 1)
			if len(c.Names()) != 1 {
				c.Errorf("groups %v", c.Names())
			}
		}},
		{"05 a group of another instance is left alone", nil, nil, func(c *case_) {
			req := c.request(forever)
			h := c.launch(req)
			theirs := *req
			theirs.Instance = "another"
			if err := c.fails(&theirs, launcher.ErrInvalid); !strings.Contains(err.Error(), "left alone") {
				c.Errorf("Launch = %v", err)
			}
			c.counts("put", 1)
			c.deployed(h, 1)
		}},
		{"06 a finished group is never PUT again", nil, nil, func(c *case_) {
			req := c.request("exit 3")
			h := c.launch(req)
			c.ended(h)
			c.l = c.must(c, nil)
			if h2 := c.launch(req); h2 != h {
				c.Errorf("handles %s and %s", h, h2)
			}
			c.counts("put", 1)
			c.deployed(h, 1)
		}},
		{"07 a quota that is reached is no capacity", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "quota", Operation: "put"})
			if err := c.fails(c.request(forever), launcher.ErrCapacity); launcher.CauseOf(err) != launcher.CauseQuota {
				c.Errorf("%v has cause %q", err, launcher.CauseOf(err))
			}
			if n := c.Names(); len(n) != 0 {
				c.Errorf("groups %v", n)
			}
		}},
		{"07b a quota that is used up is seen before the PUT", func(s *emulator.Settings) { s.Quota.Groups = 1 }, nil,
			func(c *case_) {
				c.launch(c.request(forever))
				c.l = c.must(c, nil)
				_ = c.fails(c.request(forever), launcher.ErrCapacity)
				c.counts("put", 1)
				if n, known, err := c.l.Free(ctx, launcher.Resources{}); n != 0 || !known || err != nil {
					c.Errorf("Free = %d, %v, %v", n, known, err)
				}
			}},
		{"08 without capacity the next region is tried, after the first has answered", nil,
			map[string]any{"locations": []string{"northeurope", "francecentral"}}, func(c *case_) {
				c.inject(emulator.Fault{Action: "capacity", Operation: "put", Location: "westeurope"})
				c.inject(emulator.Fault{Action: "capacity", Operation: "put", Location: "northeurope"})
				h := c.launch(c.request(forever))
				c.counts("put", 3)
				c.until(h, "running", running)
				names := map[string]bool{}
				for _, r := range c.Journal() {
					if r.Operation == "put" {
						names[r.Group] = true
					}
				}
				if len(names) != 3 || len(c.Names()) != 1 {
					c.Errorf("names %v, groups %v; want one name for each region and one group", names, c.Names())
				}
				c.launch(c.request(forever))
				c.counts("put", 4) // regions without capacity are not tried again
			}},
		{"08b without capacity for a large group a location still takes a small one", nil, nil, func(c *case_) {
			large := c.request(forever)
			large.Resources.CPUMillis = 16_000
			_ = c.fails(large, launcher.ErrCapacity)
			if n, known, err := c.l.Free(ctx, launcher.Resources{}); n == 0 || !known || err != nil {
				c.Errorf("Free = %d, %v, %v, want room for groups of the usual size", n, known, err)
			}
			c.launch(c.request(forever))
			c.counts("put", 2)
			_ = c.fails(large, launcher.ErrCapacity)
			c.counts("put", 2) // large groups do not try it again
		}},
		{"09 a quota of zero means a long pause", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "fraud", Operation: "put"})
			err := c.fails(c.request(forever), launcher.ErrCapacity)
			if after, _ := launcher.RetryAfter(err); after < 10*time.Minute {
				c.Errorf("%v: to be tried again after %v", err, after)
			}
			_ = c.fails(c.request(forever), launcher.ErrCapacity)
			c.counts("put", 1)
		}},
		{"10 a group in transition is left for ten seconds", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "transitioning", Operation: "put"})
			err := c.fails(c.request(forever), launcher.ErrTransient)
			if after, ok := launcher.RetryAfter(err); !ok || after < 10*time.Second {
				c.Errorf("%v: to be tried again after %v", err, after)
			}
		}},
		{"11 a throttled launcher asks for nothing before its time", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "throttle", Operation: "put", RetryAfter: 372})
			for range 3 {
				err := c.fails(c.request(forever), launcher.ErrTransient)
				if after, ok := launcher.RetryAfter(err); !ok || after < 370*time.Second ||
					launcher.CauseOf(err) != launcher.CauseThrottled {
					c.Errorf("%v: to be tried again after %v", err, after)
				}
			}
			c.counts("put", 1)
			other := c.must(c, nil)
			if _, err := other.Health(ctx, launcher.Handle("dagster-run-x")); err != nil {
				c.Errorf("another launcher: %v", err)
			}
		}},
		{"12 an image that is inaccessible at the PUT", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "inaccessible_image", Operation: "put"})
			req := c.request(forever)
			err := c.fails(req, launcher.ErrPending) // the registry may fail for a moment; the launcher is healthy
			if notes := launcher.Notes(err); len(notes) != 1 || !strings.Contains(notes[0].Text, req.Image) {
				c.Errorf("%v has notes %v, want one that names the image", err, notes)
			}
			if err := c.fails(req, launcher.ErrInvalid); launcher.CauseOf(err) != launcher.CauseImagePull {
				c.Errorf("%v has cause %q", err, launcher.CauseOf(err))
			}
		}},
		{"12b an image that cannot be pulled later", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "image_pull", Message: "manifest unknown"})
			h := c.launch(c.request(forever))
			got := c.ended(h)
			if got.Cause != launcher.CauseImagePull || !strings.Contains(got.Message, "manifest unknown") {
				c.Errorf("Health = %+v", got)
			}
			if n := c.Names(); len(n) != 0 {
				c.Errorf("groups %v: it would go on trying", n)
			}
		}},
		{"12c a registry's bad minute", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "image_pull", Message: "i/o timeout", Delay: time.Second})
			c.inject(emulator.Fault{Action: "registry_error", Operation: "put", Count: 1})
			c.until(c.launch(c.request(forever)), "running", running)
		}},
		{"12d a registry that stays away fails the run, and is no matter of other runs", nil,
			map[string]any{"pull_patience": "200ms"}, func(c *case_) {
				c.inject(emulator.Fault{Action: "registry_error", Operation: "put"})
				req := c.request(forever)
				_ = c.fails(req, launcher.ErrPending)
				testenv.Eventually(c, wait, func() (bool, string) {
					_, err := c.l.Launch(ctx, req)
					if !errors.Is(err, launcher.ErrPending) && !errors.Is(err, launcher.ErrInvalid) ||
						launcher.CauseOf(err) != launcher.CauseImagePull && errors.Is(err, launcher.ErrInvalid) {
						c.Fatalf("Launch = %v, want ErrPending, then ErrInvalid for the image", err)
					}
					return errors.Is(err, launcher.ErrInvalid), fmt.Sprint(err)
				})
			}},
		{"13 a group that is stuck is deleted before it is reported as gone", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "stuck_pending"})
			h := c.launch(c.request(forever))
			c.until(h, "starting", func(h launcher.Health) bool { return h.Status == launcher.Starting })
			if was, err := c.l.Terminate(ctx, h, time.Second); !was || err != nil {
				c.Errorf("Terminate = %v, %v", was, err)
			}
			if got := c.ended(h); got.Cause != launcher.CauseCanceled {
				c.Errorf("Health = %+v", got)
			}
			if n := c.Names(); len(n) != 0 {
				c.Errorf("groups %v", n)
			}
		}},
		{"14 provisioning that failed and may start later is deleted before it counts as dead",
			func(s *emulator.Settings) { s.Timing.Delete = 500 * time.Millisecond }, nil, func(c *case_) {
				c.inject(emulator.Fault{Action: "provision_failed", Delay: 2 * time.Second})
				h := c.launch(c.request(forever))
				got := c.ended(h)
				if got.Cause != launcher.CauseUnschedulable ||
					!strings.Contains(got.Message, "not available in the location") {
					c.Errorf("Health = %+v", got)
				}
				if n := c.Names(); len(n) != 0 {
					c.Errorf("groups %v", n)
				}
			}},
		{"15 a container that has ended wins over its group that says Running", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "group_says_running"})
			if got := c.ended(c.launch(c.request("exit 5"))); got.Exit == nil || *got.Exit != 5 {
				c.Errorf("Health = %+v", got)
			}
		}},
		{"15b a group without an instance view is not judged", nil, nil, func(c *case_) {
			h := c.launch(c.request("exit 0"))
			c.ended(h)
			c.inject(emulator.Fault{Action: "no_instance_view"})
			c.l = c.must(c, nil)
			if got, err := c.l.Health(ctx, h); err != nil || got.Status.Ended() {
				c.Errorf("Health = %+v, %v", got, err)
			}
		}},
		{"16 terminating a group that is not there is false", nil, nil, func(c *case_) {
			h := c.launch(c.request("exit 0"))
			c.ended(h)
			if err := c.Befall("", "", string(h), "vanish"); err != nil {
				c.Fatal(err)
			}
			c.l = c.must(c, nil)
			if was, err := c.l.Terminate(ctx, h, time.Second); was || err != nil {
				c.Errorf("Terminate = %v, %v", was, err)
			}
		}},
		{"17 a stopped worker counts as dead only when the service says so", func(s *emulator.Settings) {
			s.Timing.StopGrace = 700 * time.Millisecond
		}, nil, func(c *case_) {
			h := c.launch(c.request("trap '' TERM; " + forever))
			c.until(h, "running", running)
			if was, err := c.l.Terminate(ctx, h, time.Second); !was || err != nil {
				c.Fatalf("Terminate = %v, %v", was, err)
			}
			if got, err := c.l.Health(ctx, h); err != nil || !got.Status.Alive() {
				c.Errorf("Health right after = %+v, %v", got, err)
			}
			if got := c.ended(h); got.Cause != launcher.CauseCanceled {
				c.Errorf("Health = %+v", got)
			}
		}},
		{"18 a stop and a deletion without effect are not taken for the end", nil, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "delete_ignored"})
			h := c.launch(c.request(forever))
			c.until(h, "running", running)
			if was, err := c.l.Terminate(ctx, h, 0); !was || err != nil {
				c.Fatalf("Terminate = %v, %v", was, err)
			}
			for range 5 {
				if got, err := c.l.Health(ctx, h); err != nil || !got.Status.Alive() {
					c.Fatalf("Health = %+v, %v", got, err)
				}
			}
			if err := c.l.Remove(ctx, h); err == nil {
				c.Error("Remove of a live worker is not an error")
			}
		}},
		{"19 a slow deletion holds its quota", func(s *emulator.Settings) { s.Quota.Groups = 1 }, nil, func(c *case_) {
			c.inject(emulator.Fault{Action: "slow_delete", Delay: time.Second})
			h := c.launch(c.request("exit 0"))
			c.ended(h)
			if err := c.l.Remove(ctx, h); err != nil {
				c.Fatal(err)
			}
			c.l = c.must(c, nil)
			_ = c.fails(c.request(forever), launcher.ErrCapacity)
			testenv.Eventually(c, wait, func() (bool, string) {
				return len(c.Names()) == 0, "the group is still there"
			})
			c.l = c.must(c, nil)
			c.launch(c.request(forever))
		}},
		{"20 errors of reads say nothing of the worker", nil, nil, func(c *case_) {
			h := c.launch(c.request(forever))
			c.until(h, "running", running)
			for _, f := range []emulator.Fault{{Action: "status", Status: 500},
				{Action: "status", Status: 503, Code: "ServerBusy"}, {Action: "drop_before"}, {Action: "bad_json"},
				{Action: "status", Status: 400, Code: "BadRequest"}} {
				c.Calm()
				c.inject(f)
				time.Sleep(60 * time.Millisecond) // older than the known state may be
				if got, err := c.l.Health(ctx, h); !errors.Is(err, launcher.ErrTransient) {
					c.Errorf("%s %d: Health = %+v, %v, want ErrTransient", f.Action, f.Status, got, err)
				}
				if was, err := c.l.Terminate(ctx, h, 0); was || err == nil {
					c.Errorf("%s %d: Terminate = %v, %v", f.Action, f.Status, was, err)
				}
			}
			c.Calm()
			c.until(h, "running", running)
		}},
		{"21 what every request meets is denied, what one names fails that one", nil, nil, func(c *case_) {
			for _, a := range []struct {
				status int
				code   string
				want   error
			}{
				{401, "ExpiredAuthenticationToken", launcher.ErrDenied},
				{403, "AuthorizationFailed", launcher.ErrDenied}, {404, "ResourceGroupNotFound", launcher.ErrDenied},
				{404, "SubscriptionNotFound", launcher.ErrDenied}, {409, "ScopeLocked", launcher.ErrDenied},
				{409, "MissingSubscriptionRegistration", launcher.ErrDenied},
				{403, "LinkedAuthorizationFailed", launcher.ErrInvalid},
				{403, "RequestDisallowedByPolicy", launcher.ErrInvalid}, {404, "ResourceNotFound", launcher.ErrInvalid},
				{404, "VirtualNetworkNotFound", launcher.ErrInvalid}, {400, "SubnetNotDelegated", launcher.ErrInvalid},
				{409, "SomethingNew", launcher.ErrInvalid},
				{500, "InternalServerError", launcher.ErrTransient}, {429, "TooManyRequests", launcher.ErrTransient},
			} {
				c.Calm()
				c.l = c.must(c, nil)
				c.inject(emulator.Fault{Operation: "put", Action: "status", Status: a.status, Code: a.code,
					Message: "in Azure's words"})
				err := c.fails(c.request(forever), a.want)
				for _, kind := range []error{launcher.ErrDenied, launcher.ErrInvalid, launcher.ErrTransient,
					launcher.ErrNotFound} {
					if errors.Is(err, kind) && kind != a.want { //nolint:errorlint // one of the list
						c.Errorf("%d %s: Launch = %v, which is %v too", a.status, a.code, err, kind)
					}
				}
				if !strings.Contains(err.Error(), "in Azure's words") {
					c.Errorf("%d %s: Launch = %v, without Azure's words", a.status, a.code, err)
				}
			}
			if n := c.Names(); len(n) != 0 {
				c.Errorf("groups %v", n)
			}
		}},
		{"22 a read that does not know of the group yet", nil, nil, func(c *case_) {
			h := c.launch(c.request(forever))
			c.inject(emulator.Fault{Action: "stale_read", Delay: time.Hour})
			if got, err := c.l.Health(ctx, h); err != nil || got.Status != launcher.Starting {
				c.Errorf("Health = %+v, %v, want Starting", got, err)
			}
			if was, err := c.l.Terminate(ctx, h, 0); was || !errors.Is(err, launcher.ErrTransient) {
				c.Errorf("Terminate = %v, %v", was, err)
			}
			c.Calm()
			c.until(h, "running", running)
		}},
		{"23 a worker out of memory", nil, nil, func(c *case_) {
			h := c.launch(c.request(forever))
			c.until(h, "running", running)
			if err := c.Befall("", "", string(h), "oom"); err != nil {
				c.Fatal(err)
			}
			if got := c.ended(h); got.Cause != launcher.CauseOOM || !strings.Contains(got.Message, "0.3 GB") {
				c.Errorf("Health = %+v", got)
			}
		}},
		{"24 maintenance starts the container again", nil, nil, func(c *case_) {
			c.moved("maintenance", launcher.CauseEvicted)
		}},
		{"24b maintenance of which only the start time tells", func(s *emulator.Settings) {
			s.Switches.ForgetRestarts, s.Switches.SkipPrevious = true, true
		}, nil, func(c *case_) { c.moved("maintenance", launcher.CauseEvicted) }},
		{"25 an eviction of a spot container", nil, map[string]any{"priority": "spot"}, func(c *case_) {
			c.moved("evict", launcher.CausePreempted)
		}},
		{"26 a platform that starts a failed container again", func(s *emulator.Settings) {
			s.Switches.RestartOnFailure = true
		}, nil, func(c *case_) {
			if got := c.ended(c.launch(c.request("echo dying; exit 1"))); got.Exit == nil || *got.Exit != 1 ||
				got.Cause != launcher.CauseExit {
				c.Errorf("Health = %+v", got)
			}
		}},
		{"27 only groups with our tags are touched", nil, nil, func(c *case_) {
			h := c.launch(c.request("exit 0"))
			c.ended(h)
			const foreign = "dagster-run-foreign"
			c.put(foreign, map[string]string{"owner": "foreign"})
			for w, err := range c.l.List(ctx, launcher.Filter{Instance: c.in.ID}) {
				if err != nil || w.Handle != h {
					c.Errorf("List yields %+v, %v", w, err)
				}
			}
			if was, err := c.l.Terminate(ctx, foreign, 0); was || err == nil {
				c.Errorf("Terminate = %v, %v", was, err)
			}
			if err := c.l.Remove(ctx, foreign); err == nil {
				c.Error("Remove of a foreign group is not an error")
			}
			if !slices.Contains(c.Names(), foreign) {
				c.Errorf("the foreign group has gone: %v", c.Names())
			}
		}},
		{"28 three hundred groups are one list and one GET for each in its time", func(s *emulator.Settings) {
			s.Sizes.CPU = 4
		}, map[string]any{"poll": "30s"}, func(c *case_) {
			for range 300 {
				c.launch(c.request("exit 0"))
			}
			c.Forget()
			for range 3 {
				n := 0
				for _, err := range c.l.List(ctx, launcher.Filter{Instance: c.in.ID}) {
					if n++; err != nil {
						c.Fatal(err)
					}
				}
				if n != 300 {
					c.Fatalf("List yields %d workers", n)
				}
			}
			c.counts("list", 9) // three pages each
			c.counts("get", 300)
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			b.test(newCase(t, b.change, b.more))
		})
	}
}

// moved checks what happens to a worker that the platform starts again. The worker is gated, so the
// second one exits.
func (c *case_) moved(what string, cause launcher.Cause) {
	marker := c.TempDir() + "/taken"
	h := c.launch(c.request("if [ -e " + marker + " ]; then exit 0; fi; touch " + marker + "; " + forever))
	c.until(h, "running", running)
	testenv.Eventually(c, wait, func() (bool, string) {
		_, err := os.Stat(marker)
		return err == nil, "the worker has not begun"
	})
	if err := c.Befall("", "", string(h), what); err != nil {
		c.Fatal(err)
	}
	if got := c.ended(h); got.Status != launcher.Failed || got.Cause != cause {
		c.Errorf("Health = %+v, want Failed with cause %s", got, cause)
	}
	if got, err := c.must(c, nil).Health(context.Background(), h); err != nil || got.Status == launcher.Running {
		c.Errorf("Health by another process = %+v, %v", got, err)
	}
}

// put makes a group that does not belong to the launcher.
func (c *case_) put(name string, tags map[string]string) {
	c.Helper()
	body := text(map[string]any{"location": "westeurope", "tags": tags,
		"properties": map[string]any{"osType": "Linux", "restartPolicy": "Never", "containers": []any{map[string]any{
			"name": "c", "properties": map[string]any{"image": "i", "command": []string{"true"},
				"resources": map[string]any{"requests": map[string]any{"cpu": 1, "memoryInGB": 1}}},
		}}}})
	url := c.url + "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/data-platform/providers/" +
		"Microsoft.ContainerInstance/containerGroups/" + name + "?api-version=2023-05-01"
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, url, strings.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer x")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.Fatal(err)
	}
	said, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 201 {
		c.Fatalf("PUT = %d %s, %v", resp.StatusCode, said, err)
	}
}

// A stop deletes the worker's output. It is read before, and read again if the answer cannot be
// parsed.
func TestLastLinesBeforeStop(t *testing.T) {
	t.Parallel()
	c := newCase(t, nil, nil)
	h := c.launch(c.request("echo last words; " + forever))
	testenv.Eventually(t, wait, func() (bool, string) {
		r, err := c.l.Logs(t.Context(), h, launcher.LogOptions{})
		if err != nil {
			return false, err.Error()
		}
		text, err := io.ReadAll(r)
		return err == nil && strings.Contains(string(text), "last words"), string(text)
	})
	c.inject(emulator.Fault{Action: "bad_json", Operation: "logs", Count: 1})
	if was, err := c.l.Terminate(t.Context(), h, time.Second); !was || err != nil {
		t.Fatalf("Terminate = %v, %v", was, err)
	}
	if got := c.ended(h); !slices.Contains(got.Tail, "last words") {
		t.Errorf("Health = %+v, want what it wrote", got)
	}
}

// A stop that had no effect is asked for again after a pause, and one that failed by the next look.
func TestStopThatFailsIsAskedForAgain(t *testing.T) {
	t.Parallel()
	c := newCase(t, nil, map[string]any{"poll": "20ms"})
	h := c.launch(c.request(forever))
	c.until(h, "running", running)
	c.inject(emulator.Fault{Action: "transitioning", Operation: "stop", Count: 1})
	c.inject(emulator.Fault{Action: "status", Status: 503, Operation: "stop", Skip: 1, Count: 20})
	if was, err := c.l.Terminate(t.Context(), h, time.Second); err != nil || !was {
		t.Fatal(was, err)
	}
	c.ended(h)
	if got := c.count("stop"); got < 22 {
		t.Errorf("%d stops, want 22: without effect, 20 that failed, and one more", got)
	}
}
