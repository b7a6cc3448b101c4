package instance_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/testenv"
)

func TestSettingsInDocs(t *testing.T) {
	testenv.Generated(t, "../../docs/configuration.md", config.Table(config.Fields(instance.Settings{})))
}

// Editors that read the schema know the settings of each kind of launcher.
func TestSchemaKnowsTheKinds(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config.Schema(instance.Fields(all.Kinds()))))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("s.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("s.json")
	if err != nil {
		t.Fatal(err)
	}
	for text, ok := range map[string]bool{
		`{"launchers": {"d": {"kind": "docker", "config": {"image": "x"}}}}`:          true,
		`{"launchers": {"d": {"kind": "docker", "config": {"imgae": "x"}}}}`:          false,
		`{"launchers": {"d": {"kind": "process", "config": {"image": "x"}}}}`:         false,
		`{"launchers": {"d": {"kind": "process"}}}`:                                   true,
		`{"launchers": {"p": {"kind": "plugin"}}}`:                                    false, // what is required is
		`{"launchers": {"p": {"kind": "plugin", "config": {"command": ["./mine"]}}}}`: true,
	} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); (err == nil) != ok {
			t.Errorf("%s: %v, want ok %v", text, err, ok)
		}
	}
}
