package aci_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http/httptest"
	"testing"
	"time"

	emulator "github.com/slipway-run/slipway/test/emulator/aci"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/aci"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/test/testenv"
)

// azure is an emulator with an address.
type azure struct {
	*emulator.Emulator
	url string
}

// newAzure starts an emulator until the test ends.
func newAzure(t testing.TB, backend emulator.Backend, change func(*emulator.Settings)) *azure {
	t.Helper()
	settings, err := emulator.Preset("fast")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&settings)
	}
	e, err := emulator.New(emulator.Options{Backend: backend, State: t.TempDir(), Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(e)
	t.Cleanup(func() {
		server.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return &azure{e, server.URL}
}

// settings returns the settings of a launcher for an emulator, with changes.
func (a *azure) settings(more map[string]any) map[string]any {
	out := map[string]any{
		"resource_group": "data-platform", "subscription_id": "11111111-2222-3333-4444-555555555555",
		"image": "registry.example.com/etl:1", "location": "westeurope",
		"cpu": "0.1", "memory": "0.3", "endpoint": a.url, "allow_http": true, "credential": "token", "token": "a-token",
		"poll": "50ms",
	}
	maps.Copy(out, more)
	return out
}

func (a *azure) open(t testing.TB, more map[string]any) (*aci.Launcher, error) {
	t.Helper()
	v, err := config.FromMap(a.settings(more))
	if err != nil {
		t.Fatal(err)
	}
	l, err := aci.Kind().Open(context.Background(), v, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return l.(*aci.Launcher), nil
}

func (a *azure) must(t testing.TB, more map[string]any) *aci.Launcher {
	t.Helper()
	l, err := a.open(t, more)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func (a *azure) kit(t *testing.T, image string) {
	t.Helper()
	launchertest.Run(t, launchertest.Target{
		Kind: aci.Kind(), Timeout: time.Minute, Image: image, Many: testenv.Crowd(), Parallel: true,
		Open: func() (launcher.Launcher, error) {
			l, err := a.open(t, nil)
			return l, err
		},
	})
}

// stubborn is how long a worker that ignores the signal stays alive in the kit. In that time the
// kit looks at several such workers, even on a busy machine.
const stubborn = 5 * time.Second

// The kit, with containers that are processes.
func TestContract(t *testing.T) {
	t.Parallel()
	newAzure(t, &emulator.Processes{}, func(s *emulator.Settings) { s.Timing.StopGrace = stubborn }).kit(t, "")
}

// text returns a value as JSON, for messages.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
