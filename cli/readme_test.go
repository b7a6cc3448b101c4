package cli

import (
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher/all"
	"github.com/slipway-run/slipway/test/testenv"
)

// repoFile returns the text of a file of this repository.
func repoFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section returns the text below a heading of README.md.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(repoFile(t, "README.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("README.md has no section %q", heading)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// matched returns the groups of the only match of a pattern, which README.md must have.
func matched(t *testing.T, text, pattern string) []string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1)
	if len(m) != 1 {
		t.Fatalf("%q matches %d times, want once", pattern, len(m))
	}
	return m[0][1:]
}

func TestReadmeIsShort(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(repoFile(t, "README.md"), "\n"), "\n")
	if len(lines) > 100 {
		t.Errorf("README.md has %d lines, want at most 100", len(lines))
	}
}

// Every command that README.md names exists, with its flags.
func TestReadmeNamesCommandsThatExist(t *testing.T) {
	text, makefile := repoFile(t, "README.md"), repoFile(t, "Makefile")
	var commands []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(m[1]) {
			line, _, _ = strings.Cut(line, "#")
			commands = append(commands, strings.Split(line, "&&")...)
		}
	}
	for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
		commands = append(commands, m[1])
	}
	checked := 0
	for _, command := range commands {
		words := strings.Fields(command)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "make":
			if !strings.Contains(makefile, "\n"+words[1]+":") {
				t.Errorf("%s: the Makefile has no such target", command)
			}
		case "bin/slipway", "slipway":
			p := &program{kinds: all.Kinds(), out: io.Discard, err: io.Discard, env: os.LookupEnv}
			cmd, rest, err := p.command().Find(words[1:])
			if err != nil || !cmd.Runnable() {
				t.Errorf("%s: there is no such command: %v", command, err)
			} else if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: %v", command, err)
			}
		default:
			continue
		}
		checked++
	}
	if checked < 8 {
		t.Errorf("only %d commands were checked", checked)
	}
}

// The table of launchers has each kind once, in the order of launcher/all.
func TestReadmeListsTheLaunchers(t *testing.T) {
	var got, want []string
	for _, m := range regexp.MustCompile(`(?m)^\| \[(.+?)\]\((.+?)\) \|`).FindAllStringSubmatch(section(t, "Launchers"),
		-1) {
		got = append(got, m[1]+" "+m[2])
	}
	for _, k := range all.Kinds() {
		want = append(want, k.Name+" docs/launchers/"+k.Name+".md")
	}
	if !slices.Equal(got, want) {
		t.Errorf("README.md lists the launchers\n%v, want\n%v", got, want)
	}
}

// Each entry of README's section "Not yet" has a check that the thing is still missing.
func TestReadmeSaysNotYet(t *testing.T) {
	says := func(file, pattern string) bool { return regexp.MustCompile(pattern).MatchString(repoFile(t, file)) }
	missing := map[string]func() bool{
		"Real Azure":       func() bool { return says("docs/launchers/aci.md", `(?i)real azure[^.]*\bnot\b`) },
		"Managed clusters": func() bool { return says("docs/launchers/k8s.md", `(?i)managed clusters[^.]*\bnot\b`) },
		"MySQL": func() bool {
			home := t.TempDir()
			if err := os.WriteFile(filepath.Join(home, "dagster.yaml"), []byte("storage: {mysql: {mysql_url: x}}\n"),
				0o600); err != nil {
				t.Fatal(err)
			}
			_, err := instance.Load(home, all.Kinds(), os.LookupEnv)
			return err != nil && strings.Contains(err.Error(), "storage.mysql: ")
		},
		"A release": func() bool { return strings.HasSuffix(Version, "-devel") },
	}
	for _, m := range regexp.MustCompile(`(?m)^- (?:\*\*(.+?)\.\*\*)?`).FindAllStringSubmatch(section(t, "Not yet"),
		-1) {
		if missing[m[1]] == nil {
			t.Errorf("README.md: Not yet: %q: nothing here checks that it is not there", m[0])
		} else if !missing[m[1]]() {
			t.Errorf("README.md: Not yet: %s: it seems to be there now", m[1])
		}
		delete(missing, m[1])
	}
	for what := range missing {
		t.Errorf("README.md: Not yet does not list %q", what)
	}
}

// Each figure of README.md is in the recorded results of the command and the date above its table.
func TestReadmeFiguresWereMeasured(t *testing.T) {
	text, figures := repoFile(t, "README.md"), section(t, "Figures")
	unit := regexp.MustCompile(`([\d.]+) (ms|s|seconds?|minutes?|launches/s|times|%)\b`)
	for _, m := range unit.FindAllString(strings.Replace(text, figures, "", 1), -1) {
		t.Errorf("README.md has the figure %q outside of the section Figures", m)
	}
	head := matched(t, figures, "^\n`make (bench-\\w+)` on (\\d) cores, (\\d{4}-\\d\\d-\\d\\d), ")
	bench := repoFile(t, "docs/bench/"+head[2]+"-"+strings.TrimPrefix(head[0], "bench-")+".txt")
	if !strings.Contains(bench, head[1]+" cores, "+head[2]) {
		t.Errorf("the figures were not measured on %s cores", head[1])
	}
	var measured []float64
	for _, n := range regexp.MustCompile(`\d+\.\d+`).FindAllString(bench, -1) {
		f, err := strconv.ParseFloat(n, 64)
		if err != nil {
			t.Fatal(err)
		}
		measured = append(measured, f)
	}
	found := unit.FindAllStringSubmatch(figures, -1)
	for _, m := range found {
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		_, decimals, _ := strings.Cut(m[1], ".")
		scale := math.Pow10(len(decimals))
		if !slices.ContainsFunc(measured, func(f float64) bool {
			if m[2] == "s" { // they are milliseconds there
				f /= 1000
			}
			return math.Round(f*scale) == math.Round(n*scale)
		}) {
			t.Errorf("%s was not measured", m[0])
		}
	}
	if len(found) != 12 {
		t.Errorf("the table has %d figures, want 12", len(found))
	}
}

// The versions and counts in README.md equal those in the files that define them.
func TestReadmeNumbers(t *testing.T) {
	text := strings.Join(strings.Fields(repoFile(t, "README.md")), " ")
	if got, want := matched(t, text, `You need Go ([\d.]+),`)[0],
		matched(t, repoFile(t, "go.mod"), `(?m)^go (\d+\.\d+)`)[0]; got != want {
		t.Errorf("README.md asks for Go %s, go.mod for %s", got, want)
	}
	python := matched(t, text, `Python (\d+)\.(\d+) or newer`)
	if want := "sys.version_info < (" + python[0] + ", " + python[1] + ")"; !strings.Contains(repoFile(t, "hack/venv"),
		want) {
		t.Errorf("README.md asks for Python %s.%s, hack/venv for another one", python[0], python[1])
	}
	releases := matched(t, text, `Dagster (1\.\d+) to (1\.\d+)\]`)
	oldest := 99
	files, err := filepath.Glob(filepath.Join(testenv.Root(t), "hack/python/releases/1.*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		minor, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "1."), ".txt"))
		if err != nil {
			t.Fatal(err)
		}
		oldest = min(oldest, minor)
	}
	newest := matched(t, repoFile(t, "hack/python/constraints.txt"), `(?m)^dagster==(\d+\.\d+)`)[0]
	if releases[0] != "1."+strconv.Itoa(oldest) || releases[1] != newest {
		t.Errorf("README.md says Dagster %v; the tests have 1.%d to %s", releases, oldest, newest)
	}
	var cases []json.RawMessage
	if err := json.Unmarshal([]byte(repoFile(t, "test/golden/1.13.27/queue_vectors.json")), &cases); err != nil {
		t.Fatal(err)
	}
	if got := matched(t, text, `in (\d+) recorded cases`)[0]; got != strconv.Itoa(len(cases)) {
		t.Errorf("README.md says %s recorded cases, there are %d", got, len(cases))
	}
	classes := regexp.MustCompile("(?m)^\\| `\\w+RunLauncher` \\|").FindAllString(
		repoFile(t, "docs/launchers/python.md"), -1)
	if want := []string{"four", "five", "six", "seven"}[len(classes)-4]; matched(t, text,
		`\[(\w+) published classes\]`)[0] != want {
		t.Errorf("README.md says that another number of classes ran than docs/launchers/python.md, which has %s", want)
	}
}
