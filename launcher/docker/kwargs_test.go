package docker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
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

// docker-py 7.1 splits a command with Python's shlex.split. The wanted words are those of Python
// 3.11.
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

// dockerPy is the path of docker-py's source if the frozen packages are installed.
const dockerPy = ".venv/lib/python3.11/site-packages/docker/models/containers.py"

// Every option that docker-py 7.2 has for containers is known. testdata has the names of its
// RUN_CREATE_KWARGS and RUN_HOST_CONFIG_KWARGS (docker.models.containers). If docker-py is
// installed they are compared with it.
func TestAllOptionsOfDockerPy(t *testing.T) {
	text, err := os.ReadFile("testdata/docker-py-7.2.0.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(text))
	if source, err := os.ReadFile(filepath.Join(testenv.Root(t), dockerPy)); err == nil {
		var installed []string
		for _, list := range regexp.MustCompile(
			`(?s)RUN_(?:CREATE|HOST_CONFIG)_KWARGS = \[(.*?)\]`).FindAllStringSubmatch(string(source), -1) {
			for _, name := range regexp.MustCompile(`'(\w+)'`).FindAllStringSubmatch(list[1], -1) {
				installed = append(installed, name[1])
			}
		}
		slices.Sort(installed)
		if !slices.Equal(names, installed) {
			t.Errorf("the installed docker-py has other options than testdata: %v, want %v", installed, names)
		}
	}
	// docker-py and Dagster read these separately
	for _, name := range append(names, "ports", "volumes", "networking_config", "stop_timeout") {
		_, err := made(t, name, nil)
		_, own, _ := strings.Cut(fmt.Sprint(err), "the setting for it is ")
		if err != nil && own == "" {
			t.Errorf("container_kwargs.%s: %v", name, err)
		}
	}
}

// Values that docker-py accepts are accepted. Values that nothing accepts are refused with an
// explanation.
func TestFormsOfOptions(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"ports", `{"8080/tcp": {"HostIp": "127.0.0.1", "HostPort": "18080"}}`,
			`"8080/tcp":[{"HostIp":"127.0.0.1","HostPort":"18080"}]`},
		{"ports", `{"80": [1, null, {"HostPort": 3}]}`,
			`"80/tcp":[{"HostIp":"","HostPort":"1"},{"HostIp":"","HostPort":""},{"HostIp":"","HostPort":"3"}]`},
		{"device_read_bps", `[{"Path": "/dev/sda", "Rate": 1000}]`,
			`"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1000}]`},
		{"device_write_bps", `[{"Path": "/dev/sda", "Rate": 1000}]`,
			`"BlkioDeviceWriteBps":[{"Path":"/dev/sda","Rate":1000}]`},
		{"device_read_iops", `[{"Path": "/dev/sda", "Rate": 10}]`,
			`"BlkioDeviceReadIOps":[{"Path":"/dev/sda","Rate":10}]`},
		{"device_write_iops", `[{"Path": "/dev/sda", "Rate": 10}]`,
			`"BlkioDeviceWriteIOps":[{"Path":"/dev/sda","Rate":10}]`},
		{"blkio_weight_device", `[{"Path": "/dev/sda", "Weight": 10}]`,
			`"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":10}]`},
		{"volumes_from", `"a,b:ro"`, `"VolumesFrom":["a","b:ro"]`},
		{"links", `[["db", "database"]]`, `"Links":["db:database"]`},
		{"links", `{"db": null}`, `"Links":["db"]`},
		{"platform", `""`, `"Platform":null`},
		{"platform", `"linux"`, `"Platform":{"architecture":"","os":"linux"}`},
		{"platform", `"amd64"`, `"Platform":{"architecture":"amd64","os":"linux"}`},
		{"platform", `"arm/v7"`, `"Platform":{"architecture":"arm","os":"linux","variant":"v7"}`},
		{"kernel_memory", `"1g"`, `"image"`}, {"lxc_conf", `{"a": "b"}`, `"image"`}, {"version", `"1.40"`, `"image"`},
		{"use_config_proxy", `false`, `"image"`},

		{"platform", `"a/b/c/d"`, `not a platform`},
		{"init_path", `"/init"`, `engines have no such option since API 1.29; set init: true`},
		{"tty", `"yes"`, `config.container_kwargs.tty: true or false is expected, not a text`},
		{"cap_add", `"SYS_ADMIN"`, `a list is expected, not a text`},
		{"cpu_shares", `1.5`, `a whole number is expected, not the number 1.5`},
		{"restart_policy", `[]`, `a mapping is expected, not a list`},
		{"healthcheck", `{"test": "true", "retries": "many"}`, `Retries: a whole number is expected, not a text`},
		{"volumes", `{"/a": {"mode": "ro"}}`, `/a: bind is required`},
		{"ports", `{"80": {"HostIp": "127.0.0.1"}}`, `80: HostPort is required`},
	} {
		l, err := open(t, `{"image": "image", "container_kwargs": {"`+c.name+`": `+c.value+`}}`)
		got := fmt.Sprint(err)
		if err == nil {
			previewer, _ := launcher.As[launcher.Previewer](l)
			text, err := previewer.Preview(t.Context(), (&fakeEngine{}).request())
			var compact bytes.Buffer
			if err = errors.Join(err, json.Compact(&compact, text)); err != nil {
				t.Fatal(err)
			}
			got = compact.String()
		}
		if !strings.Contains(got, c.want) || strings.Count(got, "container_kwargs") > 1 {
			t.Errorf("%s: %s: %s, want %s", c.name, c.value, got, c.want)
		}
	}
}
