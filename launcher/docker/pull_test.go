package docker_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	registrytypes "github.com/moby/moby/api/types/registry"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
)

// Only the workers that waited for a pull get its outcome. It is kept for no other worker.
func TestOutcomesOfPulls(t *testing.T) {
	const wrong = "unauthorized: incorrect username or password"
	e := newFakeEngine(t)
	var failing string     // for every login
	var hold chan struct{} // pulls last until it is closed
	e.pull = func(_, platform string, login registrytypes.AuthConfig) (text string) {
		var wait chan struct{}
		e.set(func() { text, wait = failing, hold })
		<-wait
		switch {
		case text != "":
		case login.Password == "wrong":
			text = wrong
		case platform == "linux/s390x":
			text = "no matching manifest for linux/s390x"
		}
		return text
	}
	closed := make(chan struct{})
	close(closed)
	for _, policy := range []string{"missing", "always"} {
		l := must(t, "{host: '"+e.address+"', network: none, pull: "+policy+"}")
		request := func(image, context string) *launcher.Request {
			req := e.request()
			req.Image, req.Overrides = "r.example/"+policy+"/"+image+":1",
				[]launcher.Override{{Source: "container_context.docker", JSON: json.RawMessage(context)}}
			return req
		}
		login := func(password string) string {
			return `{"registry": {"url": "https://r.example/v2/", "username": "ann", "password": "` + password + `"}}`
		}
		for _, c := range []struct {
			what, image, context string
			failing, want        string
		}{
			{"of an image that is not pushed yet", "late", "{}", "manifest unknown", "manifest unknown"},
			{"of that image, which is pushed now", "late", "{}", "", ""},
			{"with a wrong login", "private", login("wrong"), "", wrong},
			{"with the right one", "private", login("right"), "", ""},
			{"for a platform that the image is not for", "other", `{"container_kwargs": {"platform": "linux/s390x"}}`,
				"", "no matching manifest"},
			{"for one that it is for", "other", `{"container_kwargs": {"platform": "linux/amd64"}}`, "", ""},
		} {
			e.set(func() { failing, hold = c.failing, closed })
			_, err := launchTold(t, l, request(c.image, c.context))
			if (err == nil) != (c.want == "") || err != nil &&
				(!strings.Contains(err.Error(), c.want) || launcher.CauseOf(err) != launcher.CauseImagePull ||
					!errors.Is(err, launcher.ErrInvalid)) {
				t.Errorf("%s: Launch %s = %v, want %q", policy, c.what, err, c.want)
			}
		}
		// All workers that wait for one pull get its outcome. Another login or platform is another
		// pull.
		waiting := make(chan struct{})
		e.set(func() { failing, hold, e.pulls = "", waiting, nil })
		all := map[*launcher.Request]string{
			request("shared", "{}"): "", request("shared", "{ }"): "", request("shared", login("wrong")): wrong,
			request("shared", login("right")):                                      "",
			request("shared", `{"container_kwargs": {"platform": "linux/s390x"}}`): "no matching manifest",
		}
		for req := range all {
			if _, err := l.Launch(t.Context(), req); !errors.Is(err, launcher.ErrPending) {
				t.Errorf("%s: Launch = %v, want ErrPending", policy, err)
			}
		}
		close(waiting)
		for req, want := range all {
			if _, err := launchTold(t, l, req); (err == nil) != (want == "") || err != nil &&
				!strings.Contains(err.Error(), want) {
				t.Errorf("%s: Launch with %s = %v, want %q", policy, req.Overrides[0].JSON, err, want)
			}
		}
		e.set(func() {
			if len(e.pulls) != 4 {
				t.Errorf("%s: %d pulls, want one for each login and platform", policy, len(e.pulls))
			}
		})
		if going, kept := docker.Pulls(l); going != 0 || kept != 0 {
			t.Errorf("%s: %d pulls go on and %d outcomes are kept, want none", policy, going, kept)
		}
	}
}
