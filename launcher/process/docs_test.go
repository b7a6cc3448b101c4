package process_test

import (
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/testenv"
	"github.com/slipway-run/slipway/launcher/process"
)

// The table of settings in the documentation is the one that the code declares.
func TestSettingsInDocs(t *testing.T) {
	testenv.Generated(t, "../../docs/launchers/process.md", config.Table(config.Fields(process.Config{})))
}
