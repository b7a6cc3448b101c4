package spool_test

import (
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher/launchertest"

	spool "example.com/slipway-spool"
)

func settings(t *testing.T) map[string]any {
	return map[string]any{"program": "./spool", "folder": t.TempDir()}
}

func TestExitCode(t *testing.T) {
	in := launchertest.NewInstance(t, launchertest.Open(t, spool.Kind(), settings(t)))
	worker := in.Launch(in.NewRun("sh", "-c", "exit 3"))
	if got := worker.End(); got.Exit == nil || *got.Exit != 3 {
		t.Errorf("the worker ended as %+v, want exit code 3", got)
	}
}

// The whole test of the contract.
func TestContract(t *testing.T) {
	launchertest.Run(t, launchertest.Target{Kind: spool.Kind(), Settings: settings(t), Timeout: time.Minute})
}
