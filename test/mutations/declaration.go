package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// declaration is a part of a file: text[start:end]. It does not include the doc comment.
type declaration struct {
	file       string // from the root
	text       string // of the whole file
	start, end int
}

// find returns the declaration that in names, as mutations.yaml explains. read returns the text of
// a file by its path from root.
func find(root, in string, read func(file string) (string, error)) (declaration, error) {
	if file, function, ok := strings.Cut(in, ":"); ok {
		text, err := read(file)
		if err != nil {
			return declaration{}, err
		}
		start, end, err := indented(text, function)
		if err != nil {
			return declaration{}, fmt.Errorf("%s: %w", file, err)
		}
		return declaration{file, text, start, end}, nil
	}
	folder, base := path.Split(in)
	base, name, _ := strings.Cut(base, ".")
	folder += base
	platform := build.Default
	platform.BuildTags = strings.Split(tags, ",")
	pkg, err := platform.ImportDir(filepath.Join(root, folder), 0)
	if err != nil {
		return declaration{}, fmt.Errorf("%s: %w", in, err)
	}
	for _, f := range pkg.GoFiles {
		file := path.Join(folder, f)
		text, err := read(file)
		if err != nil {
			return declaration{}, err
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, file, text, parser.SkipObjectResolution)
		if err != nil {
			return declaration{}, err
		}
		if node := named(parsed, name); node != nil {
			return declaration{file, text, files.Position(node.Pos()).Offset, files.Position(node.End()).Offset}, nil
		}
	}
	return declaration{}, fmt.Errorf("%s: package %s has no declaration %q", in, folder, name)
}

// named returns the top-level declaration with that name, or nil. If the declaration has several
// types, variables or constants, it returns only the named part.
func named(file *ast.File, name string) ast.Node {
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if receiver(d)+d.Name.Name == name {
				return d
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if spec.Name.Name == name {
						return spec
					}
				case *ast.ValueSpec:
					for _, n := range spec.Names {
						if n.Name == name {
							return spec
						}
					}
				}
			}
		}
	}
	return nil
}

// receiver returns "(*Type)." or "Type." for a method, without type parameters, and "" for a
// function.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	format, t := "%s.", f.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		format, t = "(*%s).", star.X
	}
	switch generic := t.(type) {
	case *ast.IndexExpr:
		t = generic.X
	case *ast.IndexListExpr:
		t = generic.X
	}
	return fmt.Sprintf(format, t)
}

// indented returns where a function of a language such as Python or Bash starts and ends. It ends
// before the next line that is indented no further than its first line, such as a closing brace.
func indented(text, function string) (start, end int, err error) {
	head := regexp.MustCompile(`(?m)^([ \t]*)(?:(?:async )?def |class |function )?` + regexp.QuoteMeta(function) +
		`\b[ ]*[(:].*\n`)
	found := head.FindAllStringSubmatchIndex(text, -1)
	if len(found) != 1 {
		return 0, 0, fmt.Errorf("%d functions are named %q, not one", len(found), function)
	}
	start, end = found[0][0], found[0][1]
	depth := found[0][3] - found[0][2]
	for line := range strings.Lines(text[end:]) {
		code := strings.TrimLeft(line, " \t")
		if strings.TrimSpace(code) != "" && len(line)-len(code) <= depth {
			return start, end, nil
		}
		end += len(line)
	}
	return start, end, nil
}
