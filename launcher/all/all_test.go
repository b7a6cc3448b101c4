package all_test

import (
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/testenv"
)

// Every kind has a page with its settings, and a line in the list of launchers.
func TestEveryKindIsDocumented(t *testing.T) {
	index := "| kind | |\n|---|---|\n"
	for _, k := range all.Kinds() {
		index += "| [" + k.Name + "](" + k.Name + ".md) | " + k.Help + " |\n"
		testenv.Generated(t, "../../docs/launchers/"+k.Name+".md", config.Table(k.Schema))
	}
	testenv.Generated(t, "../../docs/launchers/README.md", index)
}
