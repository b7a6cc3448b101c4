package slipway_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// Every link of a page to a file of this project leads to an existing file, and to an existing
// heading if it names one.
func TestLinksInDocs(t *testing.T) {
	checked := 0
	err := filepath.WalkDir(".", func(page string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && page != "." {
			return fs.SkipDir
		}
		if filepath.Ext(page) != ".md" {
			return nil
		}
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			checked++
			file := page
			if target != "" {
				file = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link to %s leads nowhere: %v", page, m[1], err)
			} else if anchor != "" && filepath.Ext(file) == ".md" && !hasHeading(t, file, anchor) {
				t.Errorf("%s: %s has no heading #%s", page, file, anchor)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 50 {
		t.Errorf("only %d links were checked", checked)
	}
}

// hasHeading reports whether a page has a heading with an anchor, in the form that GitHub derives
// from headings.
func hasHeading(t *testing.T, page, anchor string) bool {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range heading.FindAllStringSubmatch(string(text), -1) {
		slug := strings.ReplaceAll(notSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
		if slug == anchor {
			return true
		}
	}
	return false
}

var (
	whereRow  = regexp.MustCompile("(?m)^\\| .* \\| `([^`]+)` `([^`]+)` \\| `([^`]+)` `([^`]+)` \\|$")
	whereLine = regexp.MustCompile("(?m)^\\| .*`")
)

// Every file, function and test that docs/where-is-it-decided.md names exists. Each of its
// questions names some.
func TestWhereIsItDecided(t *testing.T) {
	text, err := os.ReadFile("docs/where-is-it-decided.md")
	if err != nil {
		t.Fatal(err)
	}
	questions := strings.Split(string(text), "\n## ")[1:]
	if len(questions) < 12 {
		t.Errorf("the page has %d questions", len(questions))
	}
	for _, q := range questions {
		title, _, _ := strings.Cut(q, "\n")
		rows := whereRow.FindAllStringSubmatch(q, -1)
		if len(rows) == 0 || len(rows) != len(whereLine.FindAllString(q, -1)) {
			t.Errorf("%s: a row of its table is not: | what | `FILE` `FUNCTION` | `FOLDER` `TEST` |", title)
		}
		for _, row := range rows {
			file, function, folder := row[1], row[2], row[3]
			if !slices.Contains(declared(t, file), function) {
				t.Errorf("%s: %s does not declare %s", title, file, function)
			}
			test, rest, _ := strings.Cut(row[4], "/")
			subtest := rest[strings.LastIndex(rest, "/")+1:]
			files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(files, func(file string) bool { return slices.Contains(declared(t, file), test) }) {
				t.Errorf("%s: %s has no test %s", title, folder, test)
			}
			if subtest != "" && !saidBySuites(t, subtest) {
				t.Errorf("%s: no suite has the subtest %q", title, subtest)
			}
		}
	}
}

// saidBySuites reports whether one of the two suites, that of storages and that of launchers, has a
// subtest with this name.
func saidBySuites(t *testing.T, name string) bool {
	t.Helper()
	for _, file := range []string{"test/storagetest/suite.go", "launcher/launchertest/launchertest.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), strconv.Quote(name)) {
			return true
		}
	}
	return false
}

// declared returns the names that a Go file declares: types, variables, constants and functions,
// and methods as Type.Method or (*Type).Method.
func declared(t *testing.T, file string) (names []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return nil
	}
	for _, d := range parsed.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				of := types.ExprString(d.Recv.List[0].Type)
				if strings.HasPrefix(of, "*") {
					of = "(" + of + ")"
				}
				name = of + "." + name
			}
			names = append(names, name)
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					names = append(names, s.Name.Name)
				case *ast.ValueSpec:
					for _, n := range s.Names {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}
