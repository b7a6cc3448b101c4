package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/test/testenv"
)

// snippets are the fenced blocks of a page, with their language.
func snippets(t *testing.T, page string) (blocks [][2]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split("\n"+string(text), "\n```")
	for i := 1; i < len(parts); i += 2 {
		language, block, _ := strings.Cut(parts[i], "\n")
		blocks = append(blocks, [2]string{language, block + "\n"})
	}
	return blocks
}

// sources are all files of the example that have an extension, one after the other.
func sources(t *testing.T, extension string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(filepath.Join(testenv.Root(t), "examples/spool"),
		func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() || filepath.Ext(path) != extension {
				return err
			}
			text, err := os.ReadFile(path)
			b.Write(text)
			return err
		})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
