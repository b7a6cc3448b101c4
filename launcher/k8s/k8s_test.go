package k8s_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
)

func open(t testing.TB, settings map[string]any) (launcher.Launcher, error) {
	t.Helper()
	v, err := config.FromMap(settings)
	if err != nil {
		t.Fatal(err)
	}
	v.Env = os.LookupEnv
	return k8s.Kind().Open(context.Background(), v, slog.New(slog.DiscardHandler))
}
