package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A table is text in columns. The columns of a block of rows are as wide as their widest cells; an empty row
// begins a new block.
type table struct{ text strings.Builder }

// row adds a row. Cells are formatted as by [fmt.Print].
func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			t.text.WriteByte('\t')
		}
		_, _ = fmt.Fprint(&t.text, c) // a Builder takes everything
	}
	t.text.WriteByte('\n')
}

// cell makes one line of a text that somebody else wrote: a table's columns end at tabs, its rows at newlines.
func cell(text string) string {
	return strings.NewReplacer("\t", "    ", "\n", " ", "\r", "", "\f", " ", "\v", " ").Replace(text)
}

// print writes the table to w.
func (t *table) print(w io.Writer) error {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(columns, t.text.String()); err != nil {
		return err
	}
	return columns.Flush()
}
