package launcher_test

import (
	"testing"

	"github.com/slipway-run/slipway/launcher"
)

// Every run ID that Dagster accepts names a worker, and parsing that name returns the same ID.
func TestRunIDsOfAllForms(t *testing.T) {
	const plain = "9f1c7a4e-0b2d-4c3e-8a5f-6d7e8f901234"
	names := map[string]string{}
	for _, run := range []string{
		plain, "9F1C7A4E-0B2D-4C3E-8A5F-6D7E8F901234", "9f1C7a4e-0b2d-4c3e-8a5f-6d7e8f901234",
		"{9f1c7a4e-0b2d-4c3e-8a5f-6d7e8f901234}", "{9F1C7A4E-0B2D-4C3E-8A5F-6D7E8F901234}",
		"9f1c7a4e0b2d4c3e8a5f6d7e8f901234", "9F1C7A4E0B2D4C3E8A5F6D7E8F901234",
		"urn:uuid:9f1c7a4e-0b2d-4c3e-8a5f-6d7e8f901234", "run-b",
	} {
		id := launcher.ID{Run: run, Attempt: 9999}
		if err := id.Check(); err != nil {
			t.Errorf("%s: %v", run, err)
		}
		name := id.String()
		if got, ok := launcher.ParseID(name); !ok || got != id || len(name) > 63 {
			t.Errorf("ParseID(%q) of %d bytes = %v, %v, want %v", name, len(name), got, ok, id)
		}
		if other := names[name]; other != "" {
			t.Errorf("%s and %s have one name, %s", run, other, name)
		}
		names[name] = run
	}
	if got := (launcher.ID{Run: plain, Attempt: 1}).String(); got != "dagster-run-"+plain+"-1" {
		t.Errorf("the name of a plain ID is %s", got)
	}
	for _, run := range []string{"", "../x", "x000000001-9f1c7a4e0b2d4c3e8a5f6d7e8f901234", "{" + plain,
		"9G1C7A4E-0B2D-4C3E-8A5F-6D7E8F901234", "Run"} {
		if err := (launcher.ID{Run: run, Attempt: 1}).Check(); err == nil {
			t.Errorf("%q names a worker: %s", run, launcher.ID{Run: run, Attempt: 1})
		}
	}
}
