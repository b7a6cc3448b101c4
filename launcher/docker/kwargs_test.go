package docker_test

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
)

// made returns what the launcher would send to the engine with one of container_kwargs.
func made(t *testing.T, keyword string, value any) (out struct {
	Config     struct{ Entrypoint []string }
	HostConfig struct{ Memory int64 }
	Platform   map[string]string
}, err error) {
	t.Helper()
	settings, err := json.Marshal(map[string]any{"image": "image", "container_kwargs": map[string]any{keyword: value}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := open(t, string(settings))
	if err != nil {
		return out, err
	}
	previewer, _ := launcher.As[launcher.Previewer](l)
	text, err := previewer.Preview(t.Context(), &launcher.Request{
		ID:       launcher.ID{Run: "6f2d0c1e-53a4-4f0e-9d3b-0d3f5b1f7a10", Attempt: 1},
		Instance: "test", Command: []string{"true"}, At: time.Now(),
	})
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal(text, &out)
}

// docker-py 7.1 splits a command with Python's shlex.split. The wanted words are those of Python 3.11.
func TestEntrypointIsSplitAsByPython(t *testing.T) {
	for text, want := range map[string][]string{
		"":                      nil,
		"  ":                    nil,
		"  a\t b\nc ":           {"a", "b", "c"},
		`'a b' "c d"`:           {"a b", "c d"},
		`a'b'c"d e"f`:           {"abcd ef"},
		`'' a ""`:               {"", "a", ""},
		`a\ b \"c \#d \n`:       {"a b", `"c`, "#d", "n"},
		`'a\b' '\'`:             {`a\b`, `\`},
		`'it'\''s'`:             {"it's"},
		`"a\"b" "a\\b"`:         {`a"b`, `a\b`},
		"\"a\\$b\\`\"":          {"a\\$b\\`"},
		`"a\nb" "é\x"`:          {`a\nb`, `é\x`},
		"# a":                   {"#", "a"},
		"a #b c#d":              {"a", "#b", "c#d"},
		"$HOME `x` $(y) ~":      {"$HOME", "`x`", "$(y)", "~"},
		"a;b|c&d>e <f (g)":      {"a;b|c&d>e", "<f", "(g)"},
		"a*?[b]{c,d} !x":        {"a*?[b]{c,d}", "!x"},
		`$'a\nb'`:               {`$a\nb`},
		"sh -c 'exec \"$@\"' x": {"sh", "-c", `exec "$@"`, "x"},
	} {
		got, err := made(t, "entrypoint", text)
		if err != nil || !slices.Equal(got.Config.Entrypoint, want) {
			t.Errorf("entrypoint %q: %q, %v, want %q", text, got.Config.Entrypoint, err, want)
		}
	}
	for _, text := range []string{"'a", `"a`, `a\`, `"a\`} {
		if got, err := made(t, "entrypoint", text); err == nil {
			t.Errorf("entrypoint %q: %q, want an error", text, got.Config.Entrypoint)
		}
	}
}

// The wanted numbers are those of docker-py 7.1's parse_bytes.
func TestSizesAreReadAsByDockerPy(t *testing.T) {
	for value, want := range map[any]int64{
		268435456: 268435456, "268435456": 268435456, "-1": -1, "7b": 7, "7B": 7, "0": 0,
		"2k": 2048, "512m": 536870912, "512M": 536870912, "1g": 1073741824, "1gb": 1073741824, "1Gb": 1073741824,
		"1.5g": 1610612736, "0.25m": 262144, "1 g": 1073741824,
		"1GiB": 1073741824, "2t": 2199023255552, // docker-py refuses these
	} {
		got, err := made(t, "mem_limit", value)
		if err != nil || got.HostConfig.Memory != want {
			t.Errorf("mem_limit %v: %d, %v, want %d", value, got.HostConfig.Memory, err, want)
		}
	}
	for _, text := range []string{"", "g", "b", "1x", "1gg", "lots", "nan", "infg", "1e30g", "-1g"} {
		if got, err := made(t, "mem_limit", text); err == nil {
			t.Errorf("mem_limit %q: %d, want an error", text, got.HostConfig.Memory)
		}
	}
}

func TestPlatform(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"linux/arm64":  {"os": "linux", "architecture": "arm64"},
		"linux/arm/v7": {"os": "linux", "architecture": "arm", "variant": "v7"},
	} {
		if got, err := made(t, "platform", text); err != nil || !maps.Equal(got.Platform, want) {
			t.Errorf("platform %q: %v, %v, want %v", text, got.Platform, err, want)
		}
	}
}
