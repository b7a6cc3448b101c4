// Package slipway_test holds the rule of who may import whom.
package slipway_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/slipway-run/slipway/"

// mayImport lists, for each package, which packages of this module it may import. Packages of tests and of
// internal/ may import what they test and are not listed.
var mayImport = map[string]string{
	"agent":                 "",
	"agent/execute":         "dagster config launcher instance storage storage/sqlite storage/postgres",
	"failpoint":             "",
	"config":                "",
	"dagster":               "",
	"launcher":              "config",
	"router":                "dagster config launcher",
	"worker":                "dagster launcher router",
	"storage":               "dagster",
	"storage/sqlite":        "dagster storage failpoint",
	"storage/postgres":      "dagster storage failpoint config",
	"instance":              "dagster config launcher router",
	"launcher/process":      "launcher config agent failpoint",
	"launcher/all":          "launcher launcher/*",
	"launcher/aci":          "launcher config failpoint",
	"emulator/aci":          "",
	"cmd/aci-emulator":      "emulator/aci",
	"launcher/codeserver":   "launcher config dagster proto/dagster",
	"launcher/docker":       "launcher config failpoint",
	"launcher/k8s":          "launcher config failpoint",
	"launcher/plugin":       "launcher config proto/launcher",
	"launcher/python":       "launcher config launcher/plugin",
	"dispatch":              "dagster storage launcher worker failpoint",
	"queue":                 "dagster storage failpoint",
	"monitor":               "dagster storage launcher dispatch failpoint",
	"proto/dagster":         "",
	"proto/launcher":        "",
	"daemon":                "dagster storage instance launcher worker dispatch queue monitor web proto/dagster",
	"web":                   "queue",
	"cli":                   "agent cli/scaffold launcher/python dagster config storage storage/sqlite storage/postgres instance launcher launcher/plugin launcher/launchertest daemon queue web dispatch monitor worker agent/execute internal/webserver",
	"cli/scaffold":          "",
	"cmd/slipway":           "cli launcher/all",
	"cmd/slipway-agent":     "agent",
	"cmd/slipway-worker":    "agent/execute",
	"internal/webserver":    "",
	"internal/testenv":      "",
	"internal/pgserver":     "",
	"storage/storagetest":   "dagster storage internal/testenv",
	"launcher/launchertest": "launcher config",
	"internal/faultproxy":   "",
	"e2e/chaos":             "config dagster e2e/chaos/check e2e/model failpoint internal/faultproxy storage/postgres storage/sqlite storage/storagetest",
	"e2e/chaos/slipway":     "cli launcher/docker launcher/process",
	"e2e/model":             "",
	"e2e/chaos/check":       "", // it shares no code with what it checks
	"bench":                 "agent emulator/aci launcher launcher/aci launcher/k8s launcher/process launcher/docker config daemon dagster instance storage storage/sqlite storage/postgres storage/storagetest internal/faultproxy internal/webserver",
}

// anyLauncher is what a launcher may import that is not in the table.
const anyLauncher = "launcher config"

// standardOnly are the packages that run on targets and import nothing but the standard library.
var standardOnly = []string{"agent", "cmd/slipway-agent"}

func TestImportsGoOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		seen[name] = true
		allowed, ok := mayImport[name]
		if dir, _ := path.Split(name); dir == "launcher/" && !ok {
			allowed, ok = anyLauncher, true
		}
		if !ok && len(p.Imports) > 0 {
			t.Errorf("%s is not in this table", name)
		}
		for _, i := range p.Imports {
			ours, isOurs := strings.CutPrefix(i, module)
			if isOurs && !slices.ContainsFunc(strings.Fields(allowed), func(pattern string) bool { fits, _ := path.Match(pattern, ours); return fits }) {
				t.Errorf("%s imports %s, which it may not", name, ours)
			}
			if !isOurs && slices.Contains(standardOnly, name) && strings.Contains(i, ".") {
				t.Errorf("%s imports %s, which is not of the standard library", name, i)
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("%s is in this table and not in the module", name)
		}
	}
}

// NOTICE names every module that is in the programs.
func TestNoticeIsWhole(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	var named []string // a/b, from a/{b,c}
	for _, line := range strings.Split(string(text), "\n") {
		first, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		before, rest, several := strings.Cut(first, "{")
		if !several {
			named = append(named, first)
			continue
		}
		for _, n := range strings.Split(strings.TrimSuffix(rest, "}"), ",") {
			named = append(named, before+n)
		}
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	for _, m := range slices.Compact(modules) {
		if m+"/" != module && !slices.ContainsFunc(named, func(n string) bool { return n != "" && (m == n || strings.HasPrefix(m, n+"/")) }) {
			t.Errorf("NOTICE does not name %s", m)
		}
	}
}
