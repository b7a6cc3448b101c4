package docker_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/moby/moby/api/pkg/authconfig"
	registrytypes "github.com/moby/moby/api/types/registry"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// refusal is an answer of an engine.
type refusal struct {
	status int
	text   string
}

// fakeEngine keeps containers and images as an engine does, and refuses what a test wants it to
// refuse.
type fakeEngine struct {
	t       *testing.T
	address string

	mu      sync.Mutex
	images  map[string]bool
	made    map[string]*fakeContainer // by name
	create  refusal                   // of every creation; the zero value means none
	start   refusal                   // of every start; the zero value means none
	removal refusal                   // of every removal; the zero value means none
	// pull answers a pull with the text of an error; "" is success.
	pull  func(image, platform string, login registrytypes.AuthConfig) string
	pulls []registrytypes.AuthConfig // the login of each pull
	info  fakeInfo
}

// fakeInfo is an engine's description of itself.
type fakeInfo struct {
	refusal
	id         func() string
	name, root string
}

type fakeContainer struct {
	labels        map[string]string
	status, error string
}

func newFakeEngine(t *testing.T) *fakeEngine {
	t.Helper()
	e := &fakeEngine{t: t, images: map[string]bool{"image": true}, made: map[string]*fakeContainer{},
		info: fakeInfo{id: func() string { return "fake" }},
		pull: func(string, string, registrytypes.AuthConfig) string { return "" }}
	s := httptest.NewServer(e)
	t.Cleanup(s.Close)
	e.address = "tcp://" + strings.TrimPrefix(s.URL, "http://")
	return e
}

func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.Header().Set("Api-Version", "1.41")
	reply := func(status int, body any) {
		if body == nil {
			w.WriteHeader(status)
			return
		}
		testenv.Reply(w, status, body)
	}
	refuse := func(by refusal) {
		if by.text == "" {
			w.WriteHeader(by.status)
			return
		}
		reply(by.status, map[string]string{"message": by.text})
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if strings.HasPrefix(parts[0], "v1.") {
		parts = parts[1:]
	}
	q := r.URL.Query()
	switch {
	case parts[0] == "_ping":
		reply(http.StatusOK, nil)
	case parts[0] == "info" && e.info.refusal != refusal{}:
		refuse(e.info.refusal)
	case parts[0] == "info":
		reply(http.StatusOK, map[string]string{"ID": e.info.id(), "Name": e.info.name, "DockerRootDir": e.info.root})
	case r.URL.Path == "/v1.41/images/create":
		login, err := authconfig.Decode(r.Header.Get(registrytypes.AuthHeader))
		if err != nil {
			e.t.Error(err)
		}
		image := q.Get("fromImage") + ":" + q.Get("tag")
		e.pulls = append(e.pulls, *login)
		e.mu.Unlock() // a pull takes its time
		text := e.pull(image, q.Get("platform"), *login)
		e.mu.Lock()
		if text != "" {
			reply(http.StatusInternalServerError, map[string]string{"message": text})
			return
		}
		e.images[image] = true
		reply(http.StatusOK, map[string]string{"status": "done"})
	case parts[1] == "create":
		var body struct {
			Image  string
			Labels map[string]string
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			e.t.Error(err)
		}
		switch {
		case e.create != refusal{}:
			refuse(e.create)
		case !e.images[body.Image]:
			reply(http.StatusNotFound, map[string]string{"message": "No such image: " + body.Image})
		default:
			e.made[q.Get("name")] = &fakeContainer{labels: body.Labels, status: "created"}
			reply(http.StatusCreated, map[string]any{"Id": q.Get("name"), "Warnings": []string{}})
		}
	case e.made[parts[1]] == nil:
		reply(http.StatusNotFound, map[string]string{"message": "No such container: " + parts[1]})
	case r.Method == http.MethodDelete && e.removal != refusal{}:
		refuse(e.removal)
	case r.Method == http.MethodDelete:
		delete(e.made, parts[1])
		reply(http.StatusNoContent, nil)
	case parts[2] == "start" && e.start != refusal{}:
		// else something in front of the engine has answered
		if e.start.status < http.StatusTooManyRequests || e.start.status == http.StatusInternalServerError {
			e.made[parts[1]].error = e.start.text
		}
		refuse(e.start)
	case parts[2] == "start":
		e.made[parts[1]].status, e.made[parts[1]].error = "running", ""
		reply(http.StatusNoContent, nil)
	default:
		c := e.made[parts[1]]
		reply(http.StatusOK, map[string]any{"Id": parts[1], "Name": "/" + parts[1],
			"State":  map[string]any{"Status": c.status, "Error": c.error},
			"Config": map[string]any{"Labels": c.labels}})
	}
}

// set changes the engine's behavior.
func (e *fakeEngine) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *fakeEngine) containers() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.made)
}

func (e *fakeEngine) request() *launcher.Request {
	return &launcher.Request{ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Token: "t", Instance: "test",
		Image: "image", Command: []string{"true"}, At: time.Now(), Job: "job"}
}

// launchTold repeats Launch while the launcher prepares.
func launchTold(t *testing.T, l launcher.Launcher, req *launcher.Request) (got launcher.Launched, err error) {
	t.Helper()
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		got, err = l.Launch(t.Context(), req)
		return !errors.Is(err, launcher.ErrPending), "still pending"
	})
	return got, err
}
