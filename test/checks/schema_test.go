// Package checks_test holds tests that need libraries which nothing else here needs. They are in a
// module of their own, so that the root module does not depend on these libraries.
package checks_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher/all"
)

type settings struct {
	Name    string            `config:"name" required:"true" help:"A name."`
	Count   int               `config:"count" default:"3"`
	On      bool              `config:"on" default:"true"`
	Wait    time.Duration     `config:"wait" default:"1m"`
	Token   config.Secret     `config:"token"`
	List    []string          `config:"list"`
	Map     map[string]string `config:"map"`
	Sub     sub               `config:"sub"`
	Pointer *int              `config:"pointer"`
}

type sub struct {
	Deep string `config:"deep" default:"x"`
}

func env(name string) (string, bool) {
	v, ok := map[string]string{"USER_NAME": "ann"}[name]
	return v, ok
}

// compile compiles a JSON schema.
func compile(t *testing.T, text []byte) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	if err := c.AddResource("s.json", parse(t, text)); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("s.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// parse parses JSON as the schema library wants it.
func parse(t *testing.T, text []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The schema accepts exactly what the decoder accepts.
func TestSchemaAgreesWithDecode(t *testing.T) {
	schema := compile(t, config.Schema(config.Fields(settings{})))
	for text, ok := range map[string]bool{
		"name: x": true, "name: {env: USER_NAME}": true, "name: 1.10": true, "name: x\nwait: 30s\non: off": true,
		"name: x\nwait: 30": true,
		"name: x\nlist: [a, b]\nmap: {k: v}\nsub: {deep: y}\npointer: 7": true,
		"count: 3": false, "name: x\nnmae: y": false, "name: x\ncount: [1]": false, "name: x\nsub: {dep: y}": false,
		"name: x\nlist: a": false,
	} {
		n, err := config.Parse("f.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var s settings
		derr := config.Values{File: "f.yaml", Node: n, Env: env}.Decode(&s)
		raw, err := json.Marshal(config.Tree(n))
		if err != nil {
			t.Fatal(err)
		}
		if serr := schema.Validate(parse(t, raw)); (serr == nil) != ok || (derr == nil) != ok {
			t.Errorf("%q: schema says %v, Decode %v, want ok %v", text, serr, derr, ok)
		}
	}
}

// Editors that read the schema know the settings of each kind of launcher.
func TestSchemaKnowsTheKinds(t *testing.T) {
	schema := compile(t, config.Schema(instance.Fields(all.Kinds())))
	for text, ok := range map[string]bool{
		`{"launchers": {"d": {"kind": "docker", "config": {"image": "x"}}}}`:  true,
		`{"launchers": {"d": {"kind": "docker", "config": {"imgae": "x"}}}}`:  false,
		`{"launchers": {"d": {"kind": "process", "config": {"image": "x"}}}}`: false,
		`{"launchers": {"d": {"kind": "process"}}}`:                           true,
		// a required setting is missing
		`{"launchers": {"p": {"kind": "plugin"}}}`:                                    false,
		`{"launchers": {"p": {"kind": "plugin", "config": {"command": ["./mine"]}}}}`: true,
	} {
		if err := schema.Validate(parse(t, []byte(text))); (err == nil) != ok {
			t.Errorf("%s: %v, want ok %v", text, err, ok)
		}
	}
}
