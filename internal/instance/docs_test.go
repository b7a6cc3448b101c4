package instance_test

import (
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestSettingsInDocs(t *testing.T) {
	testenv.Generated(t, "../../docs/configuration.md", config.Table(config.Fields(instance.Settings{})))
}
