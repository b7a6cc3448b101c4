package spool_test

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher/launchertest"

	spool "example.com/slipway-spool"
)

// The whole test of a launcher: the sentences of the contract, with real workers.
func TestContract(t *testing.T) {
	launchertest.Run(t, launchertest.Target{
		Kind: spool.Kind(), Timeout: time.Minute, Settings: map[string]any{"program": "./spool", "folder": t.TempDir()},
	})
}
