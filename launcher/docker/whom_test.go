package docker_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/launcher"
)

// A refusal that concerns one request fails that request. A refusal that every request would meet
// concerns the engine.
func TestWhomARefusalIsAbout(t *testing.T) {
	const ends, engine, denied = "the run ends", "the engine is asked again", "the engine refuses us"
	kinds := map[string]error{ends: launcher.ErrInvalid, engine: launcher.ErrTransient, denied: launcher.ErrDenied}
	for _, c := range []struct {
		refusal
		want string
	}{
		{refusal{400, "invalid CapAdd: unknown capability: \"CAP_X\""}, ends},
		{refusal{404, "network x not found"}, ends},
		{refusal{409, "conflicting options: hostname and the network mode"}, ends},
		{refusal{501, "not supported on this platform"}, ends},
		{refusal{500, "an error that is not known"}, ends},
		{refusal{500,
			"driver failed programming external connectivity: Bind for 0.0.0.0:80 failed: port is already allocated"},
			ends},
		{refusal{500, "failed to initialize logging driver: dial tcp 127.0.0.1:1: connect: connection refused"}, ends},
		{refusal{403, "authorization denied by plugin opa: privileged containers are forbidden"}, ends},
		{refusal{500, ""}, engine},
		{refusal{404, ""}, engine},
		{refusal{400, "client version 1.40 is too old. Minimum supported API version is 1.44"}, engine},
		{refusal{429, "too many requests"}, engine},
		{refusal{502, "bad gateway"}, engine},
		{refusal{503, "the engine is starting"}, engine},
		{refusal{500, "mkdir /var/lib/docker/overlay2/x: no space left on device"}, engine},
		{refusal{500,
			`connection error: desc = "transport: error while dialing: dial unix:///run/containerd/containerd.sock: ` +
				`connect: connection refused": unavailable`}, engine},
		{refusal{500,
			"failed to set up container networking: no available IPv4 addresses on this network's address pools: " +
				"dagster"}, engine},
		{refusal{500, "fork/exec /usr/bin/runc: resource temporarily unavailable"}, engine},
		{refusal{401, "authentication required"}, denied},
		{refusal{403, "request forbidden by administrative rules"}, denied},
	} {
		for _, call := range []string{"create", "start"} {
			e := newFakeEngine(t)
			l := must(t, "{host: '"+e.address+"', network: none}")
			at := map[string]*refusal{"create": &e.create, "start": &e.start}[call]
			e.set(func() { *at = c.refusal })
			req := e.request()
			_, err := l.Launch(t.Context(), req)
			for kind, sentinel := range kinds {
				if errors.Is(err, sentinel) != (kind == c.want) {
					t.Errorf("%s answers %d %q: Launch = %v, want that %s", call, c.status, c.text, err, c.want)
				}
			}
			if got, herr := l.Health(t.Context(), launcher.Handle(req.ID.String())); c.want == engine &&
				call == "start" && (herr != nil || got.Status != launcher.Starting) {
				t.Errorf("start answers %q: Health = %+v, %v, want Starting: the next start may succeed", c.text, got,
					herr)
			}
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: Launch = %v, want the engine's words %q in it", call, err, c.text)
			}
			if n := e.containers(); c.want == ends && n != 0 {
				t.Errorf("%s answers %q: %d containers are left", call, c.text, n)
			}
			e.set(func() { *at = refusal{} }) // the failed call is tried again
			if _, err := l.Launch(t.Context(), req); err != nil {
				t.Errorf("%s: Launch after %q = %v", call, c.text, err)
			}
			if got, err := l.Health(t.Context(), launcher.Handle(req.ID.String())); err != nil ||
				got.Status != launcher.Running {
				t.Errorf("%s: Health after %q = %+v, %v, want Running", call, c.text, got, err)
			}
		}
	}
}

// As long as a refused container is not removed, it may be running.
func TestRefusedAndNotRemoved(t *testing.T) {
	e := newFakeEngine(t)
	l := must(t, "{host: '"+e.address+"', network: none}")
	e.set(func() { e.start, e.removal = refusal{500, "no"}, refusal{409, "You cannot remove a running container"} })
	if _, err := l.Launch(t.Context(), e.request()); !errors.Is(err, launcher.ErrTransient) ||
		errors.Is(err, launcher.ErrInvalid) {
		t.Errorf("Launch = %v, want ErrTransient alone", err)
	}
}
