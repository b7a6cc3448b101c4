package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/daemon"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/home"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

// world is a fresh instance on one of the storages.
type world struct {
	home, location string
	writer         *storagetest.Dagster // writes as Dagster's webserver does
	store          storage.Store
	drop           func(context.Context) error
	worker         []string // command of slipway-worker
}

// built builds a program of this module, cmd/NAME, into a new folder, which the caller removes.
func built(ctx context.Context, name string) (dir, bin string, err error) {
	if dir, err = os.MkdirTemp("", "slipway-bench-"); err != nil {
		return "", "", err
	}
	bin = filepath.Join(dir, name)
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", bin,
		"github.com/slipway-run/slipway/cmd/"+name).CombinedOutput(); err != nil {
		return "", "", errors.Join(fmt.Errorf("go build: %w: %s", err, out), os.RemoveAll(dir))
	}
	return dir, bin, nil
}

// storages returns the storages that can be measured here: sqlite, and postgres if SLIPWAY_TEST_PG
// names a server.
func storages() []string {
	if os.Getenv(testenv.PostgresEnv) == "" {
		fmt.Println("no Postgres (SLIPWAY_TEST_PG): measuring on SQLite only; make bench starts one")
		return []string{"sqlite"}
	}
	return []string{"sqlite", "postgres"}
}

// newWorld makes an instance. more is added to its dagster.yaml.
func newWorld(ctx context.Context, dir, kind, more, slipwayYAML string) (*world, error) {
	dir, err := os.MkdirTemp(dir, "home")
	if err != nil {
		return nil, err
	}
	w := &world{home: dir, location: dir, drop: func(context.Context) error { return nil }}
	if kind == "postgres" {
		if w.location, w.drop, err = testenv.Database(ctx, os.Getenv(testenv.PostgresEnv)); err != nil {
			return nil, err
		}
	}
	err = errors.Join(home.Create(ctx, w.location),
		home.Write(w.home, w.location, more+"telemetry: {enabled: false}\n", slipwayYAML+home.LocalOnly),
		os.WriteFile(filepath.Join(w.home, "workspace.yaml"), []byte("load_from: []\n"), 0o600))
	if err != nil {
		return nil, err
	}
	if w.writer, err = storagetest.Connect(w.location); err != nil {
		return nil, err
	}
	w.store, err = home.Open(ctx, w.location)
	return w, err
}

func (w *world) close() error { return errors.Join(w.store.Close(), w.drop(context.Background())) }

// enqueue puts n runs into the queue. It returns when each could be read as QUEUED.
func (w *world) enqueue(n int, pause time.Duration) (map[string]time.Time, error) {
	at := map[string]time.Time{}
	next := time.Now()
	for range n {
		run := uuid.NewString()
		if err := w.writer.Enqueue(run, nil); err != nil {
			return nil, err
		}
		at[run] = time.Now()
		next = next.Add(pause)
		time.Sleep(time.Until(next))
	}
	return at, nil
}

// slipway runs a daemon while f runs.
func (w *world) slipway(ctx context.Context, kind *launcher.Kind, f func(context.Context) error) error {
	in, err := instance.Load(w.home, []*launcher.Kind{kind}, os.LookupEnv)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(w.home, "slipway.log"))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	d := &daemon.Daemon{Instance: in, Store: w.store, Log: slog.New(slog.NewTextHandler(log, nil)), Worker: w.worker}
	go func() { done <- d.Run(ctx) }()
	err = f(ctx)
	stop()
	if err = errors.Join(err, <-done, log.Close()); err != nil {
		text, _ := os.ReadFile(log.Name()) // for the message only
		err = fmt.Errorf("%w; the daemon's log:\n%s", err, text)
	}
	return err
}
