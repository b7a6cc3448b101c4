package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Parse reads one YAML document and returns its top node, nil if the text has none.
func Parse(file string, text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	err := yaml.Unmarshal(text, &doc)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: this is not valid YAML: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	n := doc.Content[0]
	if n.Kind == yaml.ScalarNode && Scalar(n) == nil {
		return nil, nil
	}
	return n, duplicates(file, n)
}

// duplicates refuses a key that occurs twice in one mapping, because one of the two values would be
// lost.
func duplicates(file string, n *yaml.Node) error {
	var errs []error
	seen := map[string]bool{}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if seen[c.Value] && c.Value != "<<" {
				errs = append(errs, &Problem{File: file, Line: c.Line, Column: c.Column, Setting: c.Value,
					Text: "occurs twice in this mapping: remove one"})
			}
			seen[c.Value] = true
			continue
		}
		errs = append(errs, duplicates(file, c))
	}
	return errors.Join(errs...)
}

// Child returns the value of a key in a mapping, or nil if the mapping does not have the key.
func Child(n *yaml.Node, key string) *yaml.Node {
	for _, p := range pairs(n) {
		if p.key.Value == key {
			return p.value
		}
	}
	return nil
}

// Keys lists the keys of a mapping, in order.
func Keys(n *yaml.Node) []*yaml.Node {
	var keys []*yaml.Node
	for _, p := range pairs(n) {
		keys = append(keys, p.key)
	}
	return keys
}

type pair struct{ key, value *yaml.Node }

// pairs returns the members of a mapping, followed by those of its merge keys (<<).
func pairs(n *yaml.Node) []pair {
	n = resolve(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	var own, merged []pair
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], resolve(n.Content[i+1])
		if k.Value != "<<" || k.Style != 0 {
			own = append(own, pair{k, v})
			continue
		}
		if v.Kind == yaml.SequenceNode {
			for _, m := range v.Content {
				merged = append(merged, pairs(m)...)
			}
		} else {
			merged = append(merged, pairs(v)...)
		}
	}
	for _, m := range merged {
		if !slices.ContainsFunc(own, func(p pair) bool { return p.key.Value == m.key.Value }) {
			own = append(own, m)
		}
	}
	return own
}

func resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// Tree returns a node as plain values: nil, bool, int64, float64, string, []any and map[string]any.
func Tree(n *yaml.Node) any {
	n = resolve(n)
	switch {
	case n == nil:
		return nil
	case n.Kind == yaml.MappingNode:
		m := map[string]any{}
		for _, p := range pairs(n) {
			m[p.key.Value] = Tree(p.value)
		}
		return m
	case n.Kind == yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			list[i] = Tree(c)
		}
		return list
	}
	return Scalar(n)
}

// These match the implicit types of PyYAML's SafeLoader (YAML 1.1) as Dagster uses it: without
// timestamps.
var (
	boolText = regexp.MustCompile(`^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$`)
	nullText = regexp.MustCompile(`^(?:~|null|Null|NULL|)$`)
	intText  = regexp.MustCompile(`^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|` +
		`[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$`)
	floatText = regexp.MustCompile(`^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|` +
		`\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|` +
		`[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$`)
)

// timeText matches a timestamp. Dagster does not read timestamps, but PyYAML's writer quotes them.
var timeText = regexp.MustCompile(
	`^\d{4}-\d\d-\d\d$|^\d{4}-\d\d?-\d\d?(?:[Tt]|[ \t]+)\d\d?:\d\d:\d\d(?:\.\d*)?(?:[ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?$`)

// Scalar returns the value of a scalar node as Dagster's YAML loader reads it: yes, no, on and off
// are booleans, 010 is eight, 1:30 is ninety, a date is a text.
func Scalar(n *yaml.Node) any {
	s := n.Value
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 ||
		n.Style&yaml.TaggedStyle != 0 && n.Tag == "!!str" {
		return s
	}
	return plain(s)
}

func plain(s string) any {
	switch {
	case nullText.MatchString(s):
		return nil
	case boolText.MatchString(s):
		switch strings.ToLower(s) {
		case "yes", "true", "on":
			return true
		}
		return false
	case intText.MatchString(s):
		if i, ok := integer(strings.ReplaceAll(s, "_", "")); ok {
			return i
		}
	case floatText.MatchString(s):
		return float(strings.ToLower(strings.ReplaceAll(s, "_", "")))
	}
	return s
}

func integer(s string) (int64, bool) {
	digits := strings.TrimLeft(s, "+-")
	sign := int64(1)
	if strings.HasPrefix(s, "-") {
		sign = -1
	}
	if strings.Contains(digits, ":") {
		return sign * int64(sexagesimal(digits)), true
	}
	i, err := strconv.ParseInt(digits, 0, 64) // base by prefix; a leading 0 means octal
	return sign * i, err == nil
}

func float(s string) float64 {
	digits := strings.TrimLeft(s, "+-")
	sign := 1.0
	if strings.HasPrefix(s, "-") {
		sign = -1
	}
	switch digits {
	case ".inf":
		return math.Inf(int(sign))
	case ".nan":
		return math.NaN()
	}
	return sign * sexagesimal(digits)
}

func sexagesimal(s string) float64 {
	total := 0.0
	for part := range strings.SplitSeq(s, ":") {
		f, _ := strconv.ParseFloat(part, 64)
		total = total*60 + f
	}
	return total
}

// Dump writes a tree as yaml.dump(default_flow_style=False) of PyYAML does: block style, sorted
// keys, lists not indented. Two things differ, and read back as the same value: long lines are not
// folded, and texts with control characters or with characters other than ASCII are double-quoted.
func Dump(tree any) string {
	var b strings.Builder
	dump(&b, tree, 0, false)
	return b.String()
}

func dump(b *strings.Builder, tree any, indent int, inList bool) {
	pad := strings.Repeat(" ", indent)
	switch v := tree.(type) {
	case map[string]any:
		if len(v) == 0 {
			b.WriteString("{}\n")
			return
		}
		for i, k := range slices.Sorted(maps.Keys(v)) {
			if i > 0 || !inList {
				b.WriteString(pad)
			}
			b.WriteString(quote(k) + ":")
			dumpChild(b, v[k], indent)
		}
	case []any:
		if len(v) == 0 {
			b.WriteString("[]\n")
			return
		}
		for i, item := range v {
			if i > 0 || !inList {
				b.WriteString(pad)
			}
			b.WriteString("- ")
			dump(b, item, indent+2, true)
		}
	default:
		b.WriteString(scalarText(v) + "\n")
	}
}

// dumpChild writes the part after "key:".
func dumpChild(b *strings.Builder, v any, indent int) {
	switch c := v.(type) {
	case map[string]any:
		if len(c) > 0 {
			b.WriteString("\n")
			dump(b, c, indent+2, false)
			return
		}
	case []any:
		if len(c) > 0 {
			b.WriteString("\n")
			dump(b, c, indent, false)
			return
		}
	}
	b.WriteString(" ")
	dump(b, v, indent, true)
}

func scalarText(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		switch {
		case math.IsNaN(v):
			return ".nan"
		case math.IsInf(v, 0):
			return strings.TrimPrefix(strings.Replace(strconv.FormatFloat(v, 'f', -1, 64), "Inf", ".inf", 1), "+")
		}
		s := strconv.FormatFloat(v, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		return s
	}
	return quote(v.(string))
}

// quote returns a text as PyYAML writes it: plain if it reads back as the same text, else quoted.
func quote(s string) string {
	for _, r := range s {
		if r < ' ' || r > '~' {
			return doubleQuote(s)
		}
	}
	_, isText := plain(s).(string)
	switch {
	case s == "", !isText, s == "=", s == "<<", timeText.MatchString(s),
		strings.HasPrefix(s, "---"), strings.HasPrefix(s, "..."),
		strings.HasPrefix(s, " "), strings.HasSuffix(s, " "),
		strings.ContainsRune("#,[]{}&*!|>'\"%@`", rune(s[0])),
		strings.ContainsRune("-?:", rune(s[0])) && (len(s) == 1 || s[1] == ' '),
		strings.Contains(s, ": "), strings.HasSuffix(s, ":"), strings.Contains(s, " #"):
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	return s
}

func doubleQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02X`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
