package dispatch_test

import (
	"os"
	"testing"

	"github.com/slipway-run/slipway/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Parallel()
	os.Exit(m.Run())
}
