package all_test

import (
	"os"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/testenv"
	"github.com/slipway-run/slipway/launcher/all"
)

// Every kind has a page with its settings, and stands in the list of launchers.
func TestEveryKindIsDocumented(t *testing.T) {
	index, err := os.ReadFile("../../docs/launchers/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all.Kinds() {
		if !strings.Contains(string(index), "["+k.Name+"]("+k.Name+".md)") {
			t.Errorf("docs/launchers/README.md does not list %s", k.Name)
		}
		testenv.Generated(t, "../../docs/launchers/"+k.Name+".md", config.Table(k.Schema))
	}
}
