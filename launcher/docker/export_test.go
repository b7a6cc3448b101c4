package docker

import "github.com/slipway-run/slipway/launcher"

// Pulls returns the number of running pulls, and the number of kept outcomes of ended ones.
func Pulls(l launcher.Launcher) (going, kept int) {
	p := l.(*Launcher).pulls //nolint:errcheck,forcetypeassert // a test's own
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.going), len(p.outcomes)
}
