package process_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher/process"
)

var update = flag.Bool("update", false, "rewrite the generated part of docs/launchers/process.md")

// The table of settings in the documentation is the one that the code declares.
func TestSettingsInDocs(t *testing.T) {
	const file = "../../docs/launchers/process.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "-update -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end -->")
	if !ok || !ok2 {
		t.Fatalf("%s has no marks for the table of settings", file)
	}
	want := before + "-update -->\n" + config.Table(config.Fields(process.Config{})) + "<!-- end -->" + after
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(text) != want {
		t.Errorf("%s is out of date; run go test ./launcher/process -update", file)
	}
	if !strings.Contains(want, "`inherit_env`") {
		t.Error(fmt.Sprint("the table lacks a setting:\n", want))
	}
}
