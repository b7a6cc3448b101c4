// Package slipway_test holds the rules for the whole module: who may import whom, and what the
// programs contain.
package slipway_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/testenv"
)

const module = "github.com/slipway-run/slipway/"

func TestMain(m *testing.M) {
	code := m.Run()
	testenv.Cleanup()
	os.Exit(code)
}

// mayImport lists, for each package, which packages of this module it may import. Packages of tests
// and of internal/ may import what they test and are not listed.
var mayImport = map[string]string{
	"internal/agent": "",
	"internal/execute": "internal/dagster config launcher internal/instance internal/storage " +
		"internal/storage/sqlite internal/storage/postgres",
	"test/failpoint":             "",
	"config":                     "",
	"internal/dagster":           "",
	"launcher":                   "config",
	"internal/router":            "internal/dagster config launcher",
	"internal/worker":            "internal/dagster launcher internal/router",
	"internal/storage":           "internal/dagster test/failpoint",
	"internal/storage/sqlite":    "internal/dagster internal/storage test/failpoint",
	"internal/storage/postgres":  "internal/dagster internal/storage test/failpoint config",
	"internal/instance":          "internal/dagster config launcher internal/router",
	"launcher/process":           "launcher config internal/agent test/failpoint",
	"launcher/all":               "launcher launcher/*",
	"launcher/aci":               "launcher config test/failpoint",
	"test/emulator/aci":          "",
	"test/emulator/aci-emulator": "test/emulator/aci",
	"launcher/codeserver":        "launcher config internal/dagster proto/dagster",
	"launcher/docker":            "launcher config test/failpoint",
	"launcher/k8s":               "launcher config test/failpoint",
	"launcher/plugin":            "launcher config proto/launcher",
	"launcher/python":            "launcher config launcher/plugin",
	"internal/dispatch":          "internal/dagster internal/storage launcher internal/worker test/failpoint",
	"internal/queue":             "internal/dagster internal/storage test/failpoint",
	"internal/monitor":           "internal/dagster internal/storage launcher internal/dispatch test/failpoint",
	"proto/dagster":              "",
	"proto/launcher":             "",
	"internal/daemon": "internal/dagster internal/storage internal/instance launcher internal/worker " +
		"internal/dispatch internal/queue internal/monitor internal/web proto/dagster",
	"internal/web": "internal/queue",
	"cli": "internal/agent cli/scaffold launcher/python internal/dagster config " +
		"internal/storage internal/storage/sqlite internal/storage/postgres internal/instance launcher " +
		"launcher/plugin launcher/launchertest internal/daemon internal/queue internal/web internal/dispatch " +
		"internal/monitor internal/worker internal/execute internal/webserver",
	"cli/scaffold":          "",
	"cmd/slipway":           "cli launcher/all",
	"cmd/slipway-agent":     "internal/agent",
	"cmd/slipway-worker":    "internal/execute",
	"internal/webserver":    "",
	"test/testenv":          "test/failpoint",
	"test/home":             "config internal/storage internal/storage/postgres internal/storage/sqlite",
	"test/storagetest":      "internal/dagster internal/storage test/testenv",
	"launcher/launchertest": "launcher config",
	"test/faultproxy":       "",
	"test/chaos": "internal/dagster test/chaos/check test/home test/model test/failpoint " +
		"test/faultproxy test/storagetest test/testenv",
	"test/chaos/slipway": "cli config launcher launcher/docker launcher/process",
	"test/model":         "",
	"test/mutations":     "",
	"test/chaos/check":   "", // it shares no code with what it checks
	"test/bench": "internal/agent test/emulator/aci launcher launcher/aci launcher/k8s " +
		"launcher/process launcher/docker config internal/daemon internal/dagster internal/instance internal/storage " +
		"test/storagetest test/faultproxy internal/webserver test/home test/testenv",
}

// anyLauncher is what a launcher may import that is not in the table.
const anyLauncher = "launcher config"

// standardOnly are the packages that run on targets and import nothing but the standard library.
var standardOnly = []string{"internal/agent", "cmd/slipway-agent"}

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
			if isOurs && !slices.ContainsFunc(strings.Fields(allowed), func(pattern string) bool {
				fits, _ := path.Match(pattern, ours)
				return fits
			}) {
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

// The programs that users get read no environment variable of a test. A program that is built with
// the tag shows that the test would find the names.
func TestProgramsHaveNoFailpoints(t *testing.T) {
	for file, want := range map[string]bool{
		testenv.Build(t, "slipway"):                  false,
		testenv.Build(t, "slipway-worker"):           false,
		testenv.BuildFailpoints(t, "slipway-worker"): true,
	} {
		program, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{failpoint.Env, failpoint.TraceEnv} {
			if got := bytes.Contains(program, []byte(name)); got != want {
				t.Errorf("%s contains %s: %t, want %t", file, name, got, want)
			}
		}
	}
}

// NOTICE names every module whose code is in the programs.
func TestNoticeIsWhole(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("NOTICE")
	if err != nil {
		t.Fatal(err)
	}
	var named []string // a/b, also from a/{b,c}
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
		if m+"/" != module && !slices.ContainsFunc(named, func(n string) bool {
			return n != "" && (m == n || strings.HasPrefix(m, n+"/"))
		}) {
			t.Errorf("NOTICE does not name %s", m)
		}
	}
}
