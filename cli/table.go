package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A table is text in columns. In a block of rows, each column is as wide as its widest cell. An
// empty row begins a new block.
type table struct{ text strings.Builder }

// row adds a row. Cells are formatted as by [fmt.Print].
func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			t.text.WriteByte('\t')
		}
		_, _ = fmt.Fprint(&t.text, c) // writing to a Builder never fails
	}
	t.text.WriteByte('\n')
}

// cell turns a text from another program into one line without tabs, because in a table tabs end
// columns and newlines end rows.
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
