package daemon_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/launcher"
)

// What a worker on the target has seen wins over what the settings let expect.
func TestWhatWasSeenWins(t *testing.T) {
	w := newWorld(t, parked, "")
	targets, err := daemon.Targets(t.Context(), w.in, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	target := targets["local"]
	target.Traits.LocalFiles = false // elsewhere
	opened := launcher.Finding{OK: true, What: "a worker there opened the storage"}
	lost := launcher.Finding{What: "a worker there could not open the storage"}
	for name, c := range map[string]struct {
		seen []launcher.Finding
		want string
	}{
		"nothing was seen":       {nil, "the storage is SQLite"},
		"the storage was opened": {[]launcher.Finding{opened}, opened.What},
		"it was not":             {[]launcher.Finding{lost}, "the storage is SQLite, " + lost.What},
	} {
		var got []string
		for _, f := range daemon.Check(t.Context(), w.in, target, c.seen...) {
			what, _, _ := strings.Cut(f.What, " in /")
			got = append(got, what)
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: Check = %q, want %q", name, got, c.want)
		}
	}
	if err := daemon.CloseTargets(targets); err != nil {
		t.Error(err)
	}
}
