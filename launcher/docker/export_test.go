package docker

import "github.com/slipway-run/slipway/launcher"

// Pulls returns how many pulls go on, and how many outcomes of ended ones are kept.
func Pulls(l launcher.Launcher) (going, kept int) {
	p := l.(*Launcher).pulls //nolint:errcheck,forcetypeassert // a test's own
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.going), len(p.outcomes)
}
