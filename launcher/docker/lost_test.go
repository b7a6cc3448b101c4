package docker_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// An engine that was killed during a start reports the container as "created" and cannot start it,
// although its process may run. The worker counts as launched and not as dead, because another
// worker could be a second one. The texts are those of Docker 20.10 with containerd 1.6, killed
// during starts.
func TestLostInItsStart(t *testing.T) {
	for text, lost := range map[string]bool{
		"id already in use": true,
		"failed to start shim: mkdir /run/containerd/io.containerd.runtime.v2.task/moby/70d2: file exists: " +
			"unknown": true,
		"failed to set up container networking: listen tcp 0.0.0.0:80: bind: address already in " +
			"use": false,
		`failed to create shim task: OCI runtime create failed: exec: "nothing": executable file not found in ` +
			`$PATH`: false,
	} {
		req := &launcher.Request{ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Token: "t", Instance: "test",
			Image: "image", Command: []string{"true"}, At: time.Now(), Job: "job"}
		said := "" // by an earlier start
		engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Api-Version", "1.41")
			code, out := http.StatusOK, any(nil)
			switch {
			case strings.HasSuffix(r.URL.Path, "/json"):
				out = map[string]any{
					"Id": madeID, "Name": "/" + req.ID.String(),
					"State": map[string]any{"Status": "created", "Error": said},
					"Config": map[string]any{"Labels": map[string]string{"dagster/run_id": req.ID.Run,
						"slipway-instance": req.Instance}},
				}
			case strings.HasSuffix(r.URL.Path, "/start"):
				said = text
				code = http.StatusInternalServerError
				out = map[string]string{"message": text}
			}
			testenv.Reply(w, code, out)
		}))
		l := must(t, "{host: 'tcp://"+strings.TrimPrefix(engine.URL, "http://")+"', network: none}")
		for range 2 { // the second call finds the container of the first
			got, err := l.Launch(t.Context(), req)
			if lost != (err == nil) || err != nil && errors.Is(err, launcher.ErrTransient) {
				t.Errorf("%s: Launch = %+v, %v; want it launched: %v", text, got, err, lost)
			}
		}
		want := launcher.Failed
		if lost {
			want = launcher.Starting
		}
		if got, err := l.Health(t.Context(), launcher.Handle(req.ID.String())); err != nil || got.Status != want ||
			!strings.Contains(got.Message, text) {
			t.Errorf("%s: Health = %+v, %v; want %s", text, got, err, want)
		}
		engine.Close()
	}
}
