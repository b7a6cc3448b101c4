package slipway_test

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	commentWidth = 100 // columns of comments and of prose in Markdown
	codeWidth    = 120
	tab          = "    "
)

// unplain are words and turns that make a reader stop. Each has an ordinary replacement: see
// CONTRIBUTING, "Prose".
var unplain = regexp.MustCompile(
	`(?i)\b(likewise|somebody|nobody|whoever|whomever|amid|besides|for want of|is told of|are told of|says ` +
		`whether|takes in|that which|those that|has yet to|of its own accord|is no integer|but for)\b`)

// A finding is a place that breaks a rule of prose.
type finding struct {
	file string
	line int
	what string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.what) }

// TestProse looks at the width of lines, at words that make a reader stop, and at exported
// comments.
func TestProse(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "git", "ls-files", "*.go", "*.md").Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	for file := range strings.Lines(string(out)) {
		file = strings.TrimSpace(file)
		if strings.Contains(file, "testdata/") || strings.HasPrefix(file, "test/golden/") ||
			strings.HasSuffix(file, ".pb.go") || file == "prose_test.go" {
			continue
		}
		text, err := os.ReadFile(filepath.FromSlash(file))
		if err != nil {
			continue // removed and not yet committed
		}
		look := markdown
		if strings.HasSuffix(file, ".go") {
			look = source
		}
		found, err := look(file, text)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			t.Error(f)
		}
	}
}

// Each kind of finding is found where it is planted.
func TestProseFindsWhatIsPlanted(t *testing.T) {
	const long = "far too far too far too far too far too far too far too far too far too far too far too far too " +
		"far too far"
	for name, c := range map[string]struct {
		look       func(string, []byte) ([]finding, error)
		text, want string
	}{
		"a wide comment":     {source, "package p\n\n// " + long + "\nvar x int\n", "p:3: a comment of "},
		"a wide line":        {source, "package p\n\nvar x = \"" + long + long + "\"\n", "p:3: a line of "},
		"a word":             {source, "package p\n\n// x is told of y.\nvar x int\n", "p:3: \"is told of\""},
		"a word in a string": {source, "package p\n\nvar x = \"nobody leads\"\n", "p:3: \"nobody\""},
		"an exported name":   {source, "package p\n\n// It makes one.\nfunc Make() {}\n", "p:4: the comment of Make"},
		"an exported method": {source, "package p\n\ntype T int\n\n// It makes one.\nfunc (T) Make() {}\n",
			"p:6: the comment of Make"},
		"an exported field": {source, "package p\n\n// T is one.\ntype T struct {\n\t// " + long + "\n\tA int\n}\n",
			"p:5: a comment of "},
		"wide prose":      {markdown, "# T\n\n" + long + "\n", "p:3: a line of "},
		"a word in prose": {markdown, "# T\n\nIt is told of it.\n", "p:3: \"is told of\""},
	} {
		found, err := c.look("p", []byte(c.text))
		if err != nil || len(found) != 1 || !strings.HasPrefix(found[0].String(), c.want) {
			t.Errorf("%s: found %v, %v; want %s", name, found, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		look func(string, []byte) ([]finding, error)
		text string
	}{
		"a table, a link and code": {markdown, "| " + long + " |\n\n- [" + long + "](x)\n\n```\n" + long + "\n```\n"},
		"a quoted word":            {markdown, "The log says `nobody`.\n"},
		"a struct tag":             {source, "package p\n\ntype t struct {\n\tA int `help:\"" + long + "\"`\n}\n"},
	} {
		if found, err := c.look("p", []byte(c.text)); err != nil || len(found) != 0 {
			t.Errorf("%s: found %v, %v; want nothing", name, found, err)
		}
	}
}

// source looks at a Go file.
func source(file string, text []byte) (found []finding, err error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, file, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	add := func(line int, format string, args ...any) {
		found = append(found, finding{file, line, fmt.Sprintf(format, args...)})
	}
	comments := map[int]bool{} // lines that are a comment and nothing else
	for _, group := range f.Comments {
		for _, c := range group.List {
			line := files.Position(c.Pos()).Line
			for i, text := range strings.Split(c.Text, "\n") {
				comments[line+i] = true
				if m := unplain.FindString(text); m != "" {
					add(line+i, "%q in a comment", m)
				}
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if m := unplain.FindString(n.Value); n.Kind == token.STRING && m != "" {
				add(files.Position(n.Pos()).Line, "%q in a text", m)
			}
		case *ast.FuncDecl:
			if n.Name.IsExported() && n.Doc != nil && !begins(n.Doc, n.Name.Name) &&
				!strings.HasSuffix(file, "_test.go") {
				add(files.Position(n.Pos()).Line, "the comment of %s does not begin with its name", n.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range n.Specs {
				if s, ok := s.(*ast.TypeSpec); ok && s.Name.IsExported() && n.Doc != nil && len(n.Specs) == 1 &&
					!begins(n.Doc, s.Name.Name) {
					add(files.Position(n.Pos()).Line, "the comment of %s does not begin with its name", s.Name.Name)
				}
			}
		}
		return true
	})
	for i, line := range bytes.Split(text, []byte("\n")) {
		width := utf8.RuneCountInString(strings.ReplaceAll(string(line), "\t", tab))
		trimmed := strings.TrimSpace(string(line))
		switch {
		case strings.HasPrefix(trimmed, "//go:") || strings.Contains(trimmed, "http://") || strings.Contains(trimmed, "https://"):
		case comments[i+1] && strings.HasPrefix(trimmed, "//"):
			if width > commentWidth {
				add(i+1, "a comment of %d columns, more than %d", width, commentWidth)
			}
		case strings.HasSuffix(trimmed, "`"): // struct tags and long texts
		case width > codeWidth:
			add(i+1, "a line of %d columns, more than %d", width, codeWidth)
		}
	}
	slices.SortStableFunc(found, func(a, b finding) int { return a.line - b.line })
	return found, nil
}

// begins reports whether a comment begins with a name, perhaps after an article.
func begins(doc *ast.CommentGroup, name string) bool {
	words := strings.Fields(doc.Text())
	if len(words) > 1 && slices.Contains([]string{"A", "An", "The"}, words[0]) {
		words = words[1:]
	}
	return len(words) > 0 && (strings.TrimRight(words[0], ",.:'s") == strings.TrimRight(name, "s") ||
		words[0] == name || words[0] == "Deprecated:")
}

var quoted = regexp.MustCompile("`[^`]*`")

// markdown looks at a page.
func markdown(file string, text []byte) (found []finding, err error) {
	code, generated := false, false
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			code = !code
			continue
		case strings.HasPrefix(trimmed, "<!-- ") && strings.Contains(trimmed, "generated"):
			generated = true
		case trimmed == "<!-- end -->":
			generated = false
		}
		if code || generated {
			continue
		}
		if m := unplain.FindString(quoted.ReplaceAllString(line, "")); m != "" {
			found = append(found, finding{file, n, fmt.Sprintf("%q", m)})
		}
		if width := utf8.RuneCountInString(line); width > commentWidth && !strings.HasPrefix(trimmed, "|") &&
			!strings.Contains(line, "](") && !strings.HasPrefix(trimmed, "<!--") {
			found = append(found, finding{file, n,
				fmt.Sprintf("a line of %d columns, more than %d", width, commentWidth)})
		}
	}
	return found, lines.Err()
}
