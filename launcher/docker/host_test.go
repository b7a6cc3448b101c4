package docker_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/launcher"
)

// An engine is named by its ID, whatever address it is reached by. No other engine gets that name.
func TestHost(t *testing.T) {
	asked := 0
	fresh := func() string { asked++; return fmt.Sprintf("c0ffee-%d", asked) }
	docker := fakeInfo{id: func() string { return "JQ6N:T3XG" }, name: "vm", root: "/var/lib/docker"}
	podman := fakeInfo{id: fresh, name: "build 1", root: "/home/dagster/.local/share/containers/storage"}
	rootful := podman
	rootful.root = "/var/lib/containers/storage"
	for name, c := range map[string]struct {
		info fakeInfo
		want string
	}{
		"docker":                      {docker, "JQ6N:T3XG"},
		"podman":                      {podman, "build_1:/home/dagster/.local/share/containers/storage"},
		"another podman of the host":  {rootful, "build_1:/var/lib/containers/storage"},
		"a proxy that lets pass less": {fakeInfo{refusal: refusal{http.StatusForbidden, "forbidden"}}, ""},
		"no ID and no name":           {fakeInfo{id: func() string { return "" }}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newFakeEngine(t)
			e.set(func() { e.info = c.info })
			for _, address := range []string{e.address, strings.Replace(e.address, "127.0.0.1", "localhost", 1)} {
				l, ok := launcher.As[launcher.Local](must(t, "{host: '"+address+"'}"))
				if !ok {
					t.Fatal("the launcher is not Local")
				}
				for range 2 {
					if got, err := l.Host(t.Context()); got != c.want || err != nil {
						t.Errorf("Host at %s = %q, %v; want %q", address, got, err, c.want)
					}
				}
			}
		})
	}
}

// An engine that does not answer is not an engine without a name. An engine that takes over the
// address of another is recognized as a different one.
func TestHostOfAnotherEngine(t *testing.T) {
	e := newFakeEngine(t)
	e.set(func() { e.info.refusal = refusal{http.StatusServiceUnavailable, "the engine is starting"} })
	l, ok := launcher.As[launcher.Local](must(t, "{host: '"+e.address+"'}"))
	if !ok {
		t.Fatal("the launcher is not Local")
	}
	if got, err := l.Host(t.Context()); err == nil {
		t.Errorf("Host = %q of an engine that does not answer, want an error", got)
	}
	for _, id := range []string{"first", "second"} {
		e.set(func() { e.info = fakeInfo{id: func() string { return id }, name: "vm", root: "/var/lib/docker"} })
		if got, err := l.Host(t.Context()); got != id || err != nil {
			t.Errorf("Host = %q, %v; want %q", got, err, id)
		}
	}
}
