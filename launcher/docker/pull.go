package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/launcher"
)

// A puller pulls images beside the launches, each once at a time.
type puller struct {
	engine *client.Client
	limit  time.Duration
	log    *slog.Logger

	mu    sync.Mutex
	pulls map[string]*pull // by image
	fresh map[string]bool  // images and runs for which "always" was done
}

// pull is one pull of an image. Its fields are guarded by the puller's mutex.
type pull struct {
	began time.Time
	state string // in words
	ended bool
	err   error
	asked map[string]bool // runs that have been told its end
}

func newPuller(engine *client.Client, limit time.Duration, log *slog.Logger) *puller {
	return &puller{engine: engine, limit: limit, log: log, pulls: map[string]*pull{}, fresh: map[string]bool{}}
}

// askAgain is how soon a launch that waits for an image is asked for again.
const askAgain = 500 * time.Millisecond

// want makes sure of the image before a container is made, as far as the policy asks for it.
func (p *puller) want(image, policy, run string, auth *registry) error {
	if policy != "always" {
		return nil
	}
	p.mu.Lock()
	done := p.fresh[image+" "+run]
	p.mu.Unlock()
	if done {
		return nil
	}
	return p.start(image, run, auth, client.ImagePullOptions{})
}

// start begins a pull for a run, or says how the one that there is stands: [launcher.Pending] until it has ended, then nil or its error.
func (p *puller) start(image, run string, auth *registry, options client.ImagePullOptions) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.pulls[image]
	if at == nil || at.ended && (at.err == nil || at.asked[run]) {
		at = &pull{began: time.Now(), state: "waiting for the registry", asked: map[string]bool{}}
		p.pulls[image] = at
		go p.run(at, image, run, auth, options)
	}
	if at.ended {
		at.asked[run] = true
		return at.err
	}
	return launcher.Pending(askAgain, launcher.Note{Text: "[Slipway] Pulling image " + image}, launcher.Note{Text: fmt.Sprintf("[Slipway] Image %s: %s", image, at.state)})
}

// run pulls until the image is there, the registry says that it will not be, or the time is up.
func (p *puller) run(at *pull, image, run string, auth *registry, options client.ImagePullOptions) {
	ctx, cancel := context.WithTimeout(context.Background(), p.limit)
	defer cancel()
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := p.once(ctx, at, image, auth, options)
		if err != nil && ctx.Err() == nil {
			last = err
			p.log.Warn("image not pulled", "image", image, "err", err)
		}
		if err != nil && final(err) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(0))
	if ctx.Err() != nil && last != nil {
		err = fmt.Errorf("not within %v: %w", p.limit, last)
	}
	if err != nil {
		err = launcher.WithCause(fmt.Errorf("%w: image %s cannot be pulled: %w", launcher.ErrInvalid, image, err), launcher.CauseImagePull)
	} else {
		p.log.Info("image pulled", "image", image, "dur", time.Since(at.began))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at.ended, at.err = true, err
	if err == nil {
		p.fresh[image+" "+run] = true
	}
}

// final says whether the registry's answer will be the same next time.
func final(err error) bool {
	if cerrdefs.IsNotFound(err) || cerrdefs.IsUnauthorized(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsInvalidArgument(err) {
		return true
	}
	for _, sign := range []string{"manifest unknown", "not found", "pull access denied", "unauthorized", "authentication required", "denied:", "no matching manifest", "no basic auth credentials"} {
		if strings.Contains(err.Error(), sign) {
			return true
		}
	}
	return false
}

func (p *puller) once(ctx context.Context, at *pull, image string, auth *registry, options client.ImagePullOptions) error {
	if auth != nil {
		header, err := authconfig.Encode(registrytypes.AuthConfig{Username: auth.Username, Password: auth.Password, ServerAddress: auth.URL})
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
