package codeserver

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/slipway-run/slipway/config"
)

// Unused connections to code servers are closed, and closing the launcher closes all of them.
func TestUnusedConnections(t *testing.T) {
	opened, err := Kind().Open(context.Background(), config.Values{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := opened.(*Launcher) //nolint:errcheck,forcetypeassert // what Open makes
	ask := func(s server) {
		t.Helper()
		if _, err := l.api(s); err != nil {
			t.Fatal(err)
		}
	}
	ask("dns:///old:1")
	ask("dns:///new:1")
	l.used["dns:///old:1"] = time.Now().Add(-2 * idle)
	ask("dns:///new:1")
	if len(l.conns) != 1 || len(l.used) != 1 || l.conns["dns:///new:1"] == nil {
		t.Errorf("connections %v, used %v, want the new one only", l.conns, l.used)
	}
	if err := l.Close(); err != nil || len(l.conns) != 0 {
		t.Errorf("Close = %v, and %d connections are left", err, len(l.conns))
	}
}
