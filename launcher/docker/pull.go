package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
)

// A puller pulls images independently of the launches. Workers that want the same image with the
// same login for the same platform share a pull. Each worker that waited for the pull gets its
// outcome once. No other worker gets it.
type puller struct {
	engine *client.Client
	limit  time.Duration
	env    config.Lookup
	log    *slog.Logger

	mu       sync.Mutex
	going    map[pullKey]*pull
	outcomes map[waiter]outcome // that no launch has asked for yet
}

// pullKey identifies a pull.
type pullKey struct {
	image    string
	login    registry // of the settings; if empty, that of Docker's config.json
	platform string   // as in docker pull --platform
}

// waiter is a worker, by its name, that waits for a pull.
type waiter struct {
	pullKey
	worker string
}

// pull is a running pull. The puller's mutex guards its fields.
type pull struct {
	began   time.Time
	state   string // for people
	workers map[string]bool
}

type outcome struct {
	at  time.Time
	err error
}

func newPuller(engine *client.Client, limit time.Duration, env config.Lookup, log *slog.Logger) *puller {
	return &puller{engine: engine, limit: limit, env: env, log: log, going: map[pullKey]*pull{},
		outcomes: map[waiter]outcome{}}
}

const (
	// askAgain is the pause after which a launch that waits for an image is asked for again.
	askAgain = 500 * time.Millisecond
	// keepOutcome is how long an outcome waits for its worker, whose run may have been canceled.
	keepOutcome = 10 * time.Minute
)

// ended reports whether a pull for w has succeeded since the last call for w. It returns the error
// of a pull that failed, or [launcher.Pending] if a pull for w is running. Without a pull for w it
// returns false.
func (p *puller) ended(w waiter) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.outcomes[w]; ok {
		delete(p.outcomes, w)
		return o.err == nil, o.err
	}
	if at := p.going[w.pullKey]; at != nil && at.workers[w.worker] {
		return false, at.pending(w.image)
	}
	return false, nil
}

// start begins a pull for w, or makes w wait for a running one. It returns [launcher.Pending].
func (p *puller) start(w waiter, options client.ImagePullOptions) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.going[w.pullKey]
	if at == nil {
		at = &pull{began: time.Now(), state: "waiting for the registry", workers: map[string]bool{}}
		p.going[w.pullKey] = at
		go p.run(at, w.pullKey, options)
	}
	at.workers[w.worker] = true
	return at.pending(w.image)
}

func (at *pull) pending(image string) error {
	return launcher.Pending(askAgain, launcher.Note{Text: "[Slipway] Pulling image " + image},
		launcher.Note{Text: fmt.Sprintf("[Slipway] Image %s: %s", image, at.state)})
}

// run pulls until the image is there, the registry's refusal is final, or the time is up.
func (p *puller) run(at *pull, k pullKey, options client.ImagePullOptions) {
	ctx, cancel := context.WithTimeout(context.Background(), p.limit)
	defer cancel()
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		login, noLogin := p.login(ctx, k)
		err := p.once(ctx, at, k.image, login, options)
		isFinal := err != nil && final(err)
		if err != nil && noLogin != nil {
			err = fmt.Errorf("%w; the registry was asked without a login: %w", err, noLogin)
		}
		if err != nil && ctx.Err() == nil {
			last = err
			p.log.Warn("image not pulled", "image", k.image, "err", err)
		}
		if isFinal {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(0))
	if ctx.Err() != nil && last != nil {
		err = fmt.Errorf("not within %v: %w", p.limit, last)
	}
	if err != nil {
		err = launcher.WithCause(fmt.Errorf("%w: image %s cannot be pulled: %w", launcher.ErrInvalid, k.image, err),
			launcher.CauseImagePull)
	} else {
		p.log.Info("image pulled", "image", k.image, "dur", time.Since(at.began))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.going, k)
	maps.DeleteFunc(p.outcomes, func(_ waiter, o outcome) bool { return time.Since(o.at) > keepOutcome })
	for worker := range at.workers {
		p.outcomes[waiter{k, worker}] = outcome{time.Now(), err}
	}
}

// final reports whether the registry would give the same answer next time.
func final(err error) bool {
	if cerrdefs.IsNotFound(err) || cerrdefs.IsUnauthorized(err) || cerrdefs.IsPermissionDenied(err) ||
		cerrdefs.IsInvalidArgument(err) {
		return true
	}
	for _, sign := range []string{"manifest unknown", "not found", "pull access denied",
		"unauthorized", "authentication required", "denied:", "no matching manifest", "no basic auth credentials"} {
		if strings.Contains(err.Error(), sign) {
			return true
		}
	}
	return false
}

func (p *puller) once(ctx context.Context, at *pull, image string, login registrytypes.AuthConfig,
	options client.ImagePullOptions) error {
	if login != (registrytypes.AuthConfig{}) {
		header, err := authconfig.Encode(login)
		if err != nil {
			return err
		}
		options.RegistryAuth = header
	}
	got, err := p.engine.ImagePull(ctx, image, options)
	if err != nil {
		return err
	}
	var failed error
	layers, done := map[string]bool{}, 0
	for m, err := range got.JSONMessages(ctx) {
		if err != nil {
			failed = err
			break
		}
		if m.Error != nil {
			failed = errors.New(m.Error.Message)
			break
		}
		if m.ID == "" {
			continue
		}
		layers[m.ID] = layers[m.ID] || m.Status == "Pull complete" || m.Status == "Already exists"
		n := 0
		for _, complete := range layers {
			if complete {
				n++
			}
		}
		if n != done {
			done = n
			p.mu.Lock()
			at.state = fmt.Sprintf("%d of %d layers", n, len(layers))
			p.mu.Unlock()
		}
	}
	return errors.Join(failed, got.Close())
}
