package docker_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/docker"
)

// open opens a launcher with settings in YAML.
func open(t testing.TB, settings string) (launcher.Launcher, error) {
	t.Helper()
	n, err := config.Parse("slipway.yaml", []byte(settings))
	if err != nil {
		t.Fatal(err)
	}
	return docker.Kind().Open(context.Background(),
		config.Values{File: "slipway.yaml", Path: "launchers.docker.config", Node: n, Env: os.LookupEnv},
		slog.New(slog.DiscardHandler))
}

func must(t testing.TB, settings string) launcher.Launcher {
	t.Helper()
	l, err := open(t, settings)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
