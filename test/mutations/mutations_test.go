package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A refactoring that moves code away from a mutation must also change the mutation.
func TestEveryMutationApplies(t *testing.T) {
	all, err := load("mutations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if err := m.apply("../..", map[string]string{}); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryMutationNamesATest(t *testing.T) {
	all, err := load("mutations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`go test (\./\S+) -run '?(Test\w+)`)
	for _, m := range all {
		parts := command.FindStringSubmatch(m.Test)
		if parts == nil {
			t.Errorf("mutation %s: test has not the form 'go test ./FOLDER -run TestName': %s", m.Name, m.Test)
			continue
		}
		if m.Quick && (!strings.HasPrefix(m.Test, "go test ") || parts[1] == "./test/e2e") {
			t.Errorf("mutation %s is quick, but its test needs more than Go: %s", m.Name, m.Test)
		}
		files, err := filepath.Glob(filepath.Join("../..", parts[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(b)
		}
		if !strings.Contains(text.String(), "\nfunc "+parts[2]) {
			t.Errorf("mutation %s: %s has no test %s", m.Name, parts[1], parts[2])
		}
	}
}

const goFile = `package p

type store[T any] struct{ a int }

// open does a.
func (s *store[T]) open() int {
	if s.a > 0 {
		return 1
	}
	return 1 + 2
}

func (s store[T]) open2() int { return 7 }

const (
	one = 1
	two = 1
)

var three, four = 3, 1
`

const pyFile = `class A:
    def open(self):
        if self.a:

            return 1

    def close(self):
        return 1

x = 1
`

func TestApply(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"p.go": goFile, "p.py": pyFile,
		"p.sh": "open() {\n\techo 1\n}\necho 1\n"} {
		if err := os.MkdirAll(filepath.Join(dir, "p"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "p", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ name, in, replace, by, want, fails string }{
		{name: "pointer method", in: "p.(*store).open", replace: "s.a > 0", by: "false", want: "if false {"},
		{name: "method", in: "p.store.open2", replace: "7", by: "8", want: "return 8 }"},
		{name: "several lines", in: "p.(*store).open", replace: "if s.a > 0 {\n  return 1\n}\n",
			want: "int {\n\t\n\treturn 1 + 2"},
		{name: "constant of a group", in: "p.two", replace: "1", by: "2", want: "two = 2\n"},
		{name: "variable", in: "p.four", replace: "1", by: "2", want: "= 3, 2\n"},
		{name: "type", in: "p.store", replace: "int", by: "uint", want: "a uint }"},
		{name: "Python", in: "p/p.py:open", replace: "return 1", by: "return 2", want: "\n            return 2\n"},
		{name: "Bash", in: "p/p.sh:open", replace: "echo 1", by: "echo 2", want: "echo 2\n}\necho 1"},
		{name: "text twice", in: "p.(*store).open", replace: "return 1", fails: "2 times, not once"},
		{name: "text in the doc comment only", in: "p.(*store).open", replace: "does", fails: "0 times"},
		{name: "no declaration", in: "p.store.open", replace: "1", fails: `no declaration "store.open"`},
		{name: "no package", in: "q.open", replace: "1", fails: "q.open"},
		{name: "no Python function", in: "p/p.py:ope", replace: "1", fails: "0 functions"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := map[string]string{}
			err := mutation{Name: "m", Edits: []edit{{test.in, test.replace, test.by}}}.apply(dir, changed)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) ||
					!strings.Contains(err.Error(), "mutation m") {
					t.Fatalf("error %v, want one with the mutation's name and %q", err, test.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range changed {
				if !strings.Contains(text, test.want) {
					t.Errorf("got:\n%s\nwant in it: %q", text, test.want)
				}
			}
		})
	}
}

// A later edit of a mutation applies to the text that the earlier edits changed.
func TestEditsOfOneFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(goFile), 0o644); err != nil {
		t.Fatal(err)
	}
	m := mutation{Edits: []edit{{".one", "1", "100"}, {".two", "1", "200"}}}
	changed := map[string]string{}
	if err := m.apply(dir, changed); err != nil {
		t.Fatal(err)
	}
	if text := changed["p.go"]; len(changed) != 1 || !strings.Contains(text, "one = 100\n\ttwo = 200\n") {
		t.Errorf("apply(%v) = %q", m.Edits, changed)
	}
}
