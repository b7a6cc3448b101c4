package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/home"
)

// takeOverBound is the time in which a standby must lead, both after a kill of the leader and after
// its packets are dropped. In the second case it is the time of a lease, 2 s, and one more second.
const takeOverBound = 3 * time.Second

// takeovers measures how long an instance is without a leader.
func takeovers(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench takeover", flag.ContinueOnError)
	n := flags.Int("n", 10, "how often each")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, bin, err := built(ctx, "slipway") // without its supervisor, because nothing is launched
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var missed []error
	add := func(r result, err error) error {
		if err != nil {
			return err
		}
		fmt.Printf("%-60s n=%-3d p50 %7.0f ms  max %7.0f ms  bound %.0f ms\n", r.Name, r.N, r.P50, r.Max, r.BoundMS)
		if r.Max > r.BoundMS {
			missed = append(missed, fmt.Errorf("%s: the bound was missed", r.Name))
		}
		return nil
	}
	for _, kind := range storages() {
		if err := add(takeOver(ctx, dir, kind, bin, *n, false)); err != nil {
			return err
		}
		if kind == "postgres" {
			if err := add(takeOver(ctx, dir, kind, bin, *n, true)); err != nil {
				return err
			}
		}
	}
	return errors.Join(missed...)
}

// takeOver lets one daemon after the other lose its leadership: it dies, or nothing that it sends
// arrives any more.
func takeOver(ctx context.Context, dir, kind, bin string, n int, dropped bool) (r result, err error) {
	w, err := newWorld(ctx, dir, kind, parkedYAML, "")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var times []time.Duration
	for range n {
		home, cut := w.home, func(p *os.Process) { _ = p.Kill() }
		if dropped {
			p, through, err := w.behindProxy()
			if err != nil {
				return r, err
			}
			defer func() { _ = p.Close() }()
			home, cut = through, func(*os.Process) { p.Swallow(true) }
		}
		took, err := w.loseLeader(ctx, bin, home, cut)
		if err != nil {
			return r, err
		}
		times = append(times, took)
	}
	name := kind + ": kill -9 of the leader until a standby leads"
	if dropped {
		name = kind + ": the leader's packets are dropped until a standby leads"
	}
	return summarize(name, times, takeOverBound), nil
}

// behindProxy makes a home of the same instance whose daemon reaches the database through a proxy.
func (w *world) behindProxy() (*faultproxy.Proxy, string, error) {
	u, err := url.Parse(w.location)
	if err != nil {
		return nil, "", err
	}
	p, err := faultproxy.New(u.Host)
	if err != nil {
		return nil, "", err
	}
	u.Host = p.Addr()
	dir, err := os.MkdirTemp(filepath.Dir(w.home), "home")
	if err != nil {
		return nil, "", err
	}
	return p, dir, home.Write(dir, u.String(), parkedYAML+"telemetry: {enabled: false}\n", home.LocalOnly)
}

// loseLeader starts a daemon in a home and then another one as a standby. It takes the leadership
// from the first one, and returns how long no daemon led.
func (w *world) loseLeader(ctx context.Context, bin, home string, cut func(*os.Process)) (time.Duration, error) {
	before, err := w.epoch()
	if err != nil {
		return 0, err
	}
	var procs []*exec.Cmd
	defer func() {
		for _, p := range procs {
			_ = p.Process.Kill()
			_ = p.Wait() // it was killed
		}
	}()
	start := func(home string) error {
		log, err := os.CreateTemp(home, "slipway-*.log")
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, bin, "--home", home, "daemon")
		cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
		procs = append(procs, cmd)
		if err := errors.Join(cmd.Start(), log.Close()); err != nil {
			return err
		}
		return nil
	}
	if err := start(home); err != nil {
		return 0, err
	}
	first, err := w.leads(ctx, before)
	if err != nil {
		return 0, err
	}
	if err := start(w.home); err != nil {
		return 0, err
	}
	time.Sleep(time.Second + rand.N(time.Second)) // it is a standby and asks for leadership at any moment
	at := time.Now()
	cut(procs[0].Process)
	_, err = w.leads(ctx, first)
	return time.Since(at), err
}

// epoch returns the epoch of the last leader.
func (w *world) epoch() (int64, error) {
	text, err := w.writer.Text("SELECT value FROM kvs WHERE key = ?", storage.LeaderKey)
	return storage.ParseFence(text).Epoch, err
}

// leads waits for a leader with a later epoch.
func (w *world) leads(ctx context.Context, after int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		now, err := w.epoch()
		if err != nil || now > after {
			return now, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("no daemon leads after epoch %d: %w", after, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}
