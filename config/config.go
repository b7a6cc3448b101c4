// Package config decodes YAML into settings that are declared once, as struct fields:
//
//	Dir string `config:"dir" default:"/tmp" required:"true" help:"Folder of the workers."`
//
// It reports every problem of a file at once, with its line and column, and guesses nothing: an
// unknown key is an error that names the nearest known key. Scalars are read as Dagster reads them
// (YAML 1.1, see [Scalar]).
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Secret is a text that is never shown: it formats, logs and encodes as [redacted].
type Secret string

const redacted = "[redacted]"

// String returns "[redacted]". Convert to string to get the value.
func (Secret) String() string { return redacted }

// GoString returns "[redacted]".
func (Secret) GoString() string { return redacted }

// LogValue returns "[redacted]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Text is a text that may be secret. It is secret if it came from {env: NAME}, {file: PATH} or
// ${NAME}: then it is not shown where a plain text would be.
type Text struct {
	Value  string
	Secret bool
}

// String returns the value, or "[redacted]" for a secret.
func (t Text) String() string {
	if t.Secret {
		return redacted
	}
	return t.Value
}

// Lookup looks up an environment variable, as [os.LookupEnv] does.
type Lookup func(name string) (string, bool)

// Values are the settings of one section, not decoded yet. The zero value has no settings.
type Values struct {
	File, Path string // where the section is, for messages: "slipway.yaml", "launchers.local.config"
	Node       *yaml.Node
	Dir        string // a folder for this section alone, for defaults and state; "" if it has none
	Env        Lookup // if nil, {env: NAME} and ${NAME} are errors
	Literal    bool   // ${NAME} is not expanded, as everywhere in dagster.yaml; {env: NAME} still is
	// Unknown is called with each unknown setting, which is then ignored. If nil, an unknown
	// setting is an error.
	Unknown func(*Problem)
}

func (v Values) decoder() *decoder {
	return &decoder{file: v.File, env: v.Env, literal: v.Literal, unknown: v.Unknown}
}

// FromMap returns the settings of a program that has no file, such as a test. They are what
// [json.Marshal] makes of the map.
func FromMap(settings map[string]any) (Values, error) {
	text, err := json.Marshal(settings)
	if err != nil {
		return Values{}, err
	}
	v := Values{File: "settings", Env: os.LookupEnv}
	v.Node, err = Parse(v.File, text) // JSON is YAML
	return v, err
}

// Decode fills the struct that into points to. The error joins one [Problem] for each fault.
func (v Values) Decode(into any) error {
	d := v.decoder()
	d.object(v.Node, reflect.ValueOf(into).Elem(), v.Path)
	return errors.Join(d.problems...)
}

// Either decodes a setting that is a text or a section. A scalar, {env: NAME} and {file: PATH} fill
// text; any other mapping fills the struct that section points to. Either reports whether it filled
// text.
func (v Values) Either(text *string, section any) (bool, error) {
	d, n := v.decoder(), resolve(v.Node)
	if key, _ := d.reference(n); n != nil && n.Kind == yaml.MappingNode && key == "" {
		d.object(n, reflect.ValueOf(section).Elem(), v.Path)
		return false, errors.Join(d.problems...)
	}
	d.scalar(n, reflect.ValueOf(text).Elem(), v.Path)
	return true, errors.Join(d.problems...)
}

// Problem is one fault of a settings file.
type Problem struct {
	File         string
	Line, Column int    // 0 if the whole section is missing
	Setting      string // dotted path
	Text         string
}

func (p *Problem) Error() string {
	at := p.File
	if p.Line > 0 {
		at = fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
	}
	if p.Setting == "" { // the whole file
		return fmt.Sprintf("%s: %s", at, p.Text)
	}
	return fmt.Sprintf("%s: %s: %s", at, p.Setting, p.Text)
}

// Problems returns all faults that an error joins.
func Problems(err error) []*Problem {
	switch e := err.(type) { //nolint:errorlint // finds all problems that errors.As could find
	case *Problem:
		return []*Problem{e}
	case interface{ Unwrap() []error }:
		var all []*Problem
		for _, one := range e.Unwrap() {
			all = append(all, Problems(one)...)
		}
		return all
	case interface{ Unwrap() error }:
		return Problems(e.Unwrap())
	}
	return nil
}

// Problem returns a fault of the setting at a path below v. Its place is that of the deepest
// existing part of the path.
func (v Values) Problem(setting, format string, args ...any) *Problem {
	p := &Problem{File: v.File, Setting: strings.Trim(v.Path+"."+setting, "."), Text: fmt.Sprintf(format, args...)}
	for n, rest := v.Node, setting; n != nil; {
		p.Line, p.Column = n.Line, n.Column
		var key string
		if key, rest, _ = strings.Cut(rest, "."); key == "" {
			break
		}
		n = item(n, key)
	}
	return p
}

// item returns the node of key. If key is name[i], it returns that member of the list.
func item(n *yaml.Node, key string) *yaml.Node {
	name, index, isItem := strings.Cut(strings.TrimSuffix(key, "]"), "[")
	n = Child(n, name)
	if i, err := strconv.Atoi(index); isItem && n != nil && err == nil && i < len(n.Content) {
		return n.Content[i]
	}
	return n
}

type decoder struct {
	file     string
	env      Lookup
	literal  bool
	unknown  func(*Problem)
	problems []error
}

func (d *decoder) problem(n *yaml.Node, path, format string, args ...any) *Problem {
	p := &Problem{File: d.file, Setting: strings.TrimPrefix(path, "."), Text: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	return p
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, d.problem(n, path, format, args...))
}

func (d *decoder) object(n *yaml.Node, into reflect.Value, path string) {
	n = resolve(n)
	if n != nil && n.Kind == yaml.ScalarNode && Scalar(n) == nil {
		n = nil
	}
	if n != nil && n.Kind != yaml.MappingNode {
		d.fail(n, path, "a mapping is expected, such as {setting: value}")
		return
	}
	keys := map[string]*yaml.Node{}
	var names []string
	for _, f := range reflect.VisibleFields(into.Type()) { // includes those of embedded structs
		names = append(names, f.Tag.Get("config"))
	}
	for _, p := range pairs(n) {
		keys[p.key.Value] = p.value
		if !contains(names, p.key.Value) {
			fault := d.problem(p.key, path+"."+p.key.Value, "unknown setting%s", suggest(p.key.Value, names))
			if d.unknown != nil {
				d.unknown(fault)
			} else {
				d.problems = append(d.problems, fault)
			}
		}
	}
	for i, f := range reflect.VisibleFields(into.Type()) {
		name := names[i]
		if name == "" {
			continue
		}
		field := into.FieldByIndex(f.Index)
		sub, ok := keys[name]
		if ok && f.Type.Kind() == reflect.Pointer && null(sub) {
			continue // like a missing setting: rendered files have empty ones
		}
		text, hasDefault := f.Tag.Lookup("default")
		switch {
		case ok:
			d.value(sub, field, path+"."+name)
		case f.Tag.Get("required") == "true":
			d.fail(n, path+"."+name, "required: %s", help(f))
		case hasDefault:
			def := &yaml.Node{Kind: yaml.ScalarNode, Value: text}
			if text == "" {
				def.Style = yaml.DoubleQuotedStyle // an empty plain scalar is null
			}
			d.value(def, field, path+"."+name)
		case f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[Values]():
			d.object(nil, field, path+"."+name)
		}
	}
}

func (d *decoder) value(n *yaml.Node, into reflect.Value, path string) {
	n = resolve(n)
	switch into.Interface().(type) {
	case Values:
		into.Set(reflect.ValueOf(Values{File: d.file, Path: strings.TrimPrefix(path, "."), Node: n, Env: d.env,
			Literal: d.literal, Unknown: d.unknown}))
		return
	case time.Duration:
		d.duration(n, into, path)
		return
	case Text:
		if d.scalar(n, into.Field(0), path); n.Kind == yaml.MappingNode || !d.literal &&
			strings.Contains(n.Value, "${") {
			into.Field(1).SetBool(true)
		}
		return
	}
	if into.Kind() == reflect.Slice || into.Kind() == reflect.Map {
		if null(n) {
			return
		}
	}
	switch into.Kind() {
	case reflect.Pointer:
		into.Set(reflect.New(into.Type().Elem()))
		d.value(n, into.Elem(), path)
	case reflect.Struct:
		d.object(n, into, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fail(n, path, "a list is expected, such as [a, b]")
			return
		}
		into.Set(reflect.MakeSlice(into.Type(), len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			d.value(item, into.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			d.fail(n, path, "a mapping is expected, such as {name: value}")
			return
		}
		into.Set(reflect.MakeMap(into.Type()))
		for _, p := range pairs(n) {
			v := reflect.New(into.Type().Elem()).Elem()
			d.value(p.value, v, path+"."+p.key.Value)
			into.SetMapIndex(reflect.ValueOf(p.key.Value), v)
		}
	default:
		d.scalar(n, into, path)
	}
}

func (d *decoder) scalar(n *yaml.Node, into reflect.Value, path string) {
	v, ok := d.expand(n, path)
	if !ok {
		return
	}
	switch into.Kind() {
	case reflect.String:
		if v == nil {
			d.fail(n, path, "a text is expected, not null")
			return
		}
		if s, ok := v.(string); ok {
			into.SetString(s)
			return
		}
		into.SetString(n.Value) // 1.10 stays "1.10"
	case reflect.Int, reflect.Int64:
		if s, ok := v.(string); ok {
			if i, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); err == nil {
				v = i
			}
		}
		if i, ok := v.(int64); ok {
			into.SetInt(i)
			return
		}
		d.fail(n, path, "%s is not an integer: write a whole number such as 5", said(n, v))
	case reflect.Bool:
		if s, ok := v.(string); ok {
			v = Scalar(&yaml.Node{Kind: yaml.ScalarNode, Value: s})
		}
		if b, ok := v.(bool); ok {
			into.SetBool(b)
			return
		}
		d.fail(n, path, "%s is neither true nor false: write one of them", said(n, v))
	default:
		panic("config: a field of type " + into.Type().String() + " cannot be decoded")
	}
}

func (d *decoder) duration(n *yaml.Node, into reflect.Value, path string) {
	v, ok := d.expand(n, path)
	if !ok {
		return
	}
	switch v := v.(type) {
	case int64: // seconds, as in all of Dagster's settings
		into.SetInt(int64(time.Duration(v) * time.Second))
		return
	case string:
		if t, err := time.ParseDuration(v); err == nil {
			into.SetInt(int64(t))
			return
		}
	}
	d.fail(n, path, "%s is not a duration: write seconds, or a text such as 30s or 5m", said(n, v))
}

// expand returns the scalar's value after {env: NAME} and ${NAME} are expanded.
func (d *decoder) expand(n *yaml.Node, path string) (any, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		switch key, value := d.reference(n); key {
		case "env":
			return d.lookup(n, value, path)
		case "file":
			return d.read(n, value, path)
		}
		fallthrough
	case yaml.SequenceNode:
		d.fail(n, path, "a single value is expected")
		return nil, false
	}
	v := Scalar(n)
	s, ok := v.(string)
	if !ok || d.literal || !strings.Contains(s, "${") {
		return v, true
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		if !found {
			b.WriteString(s)
			return b.String(), true
		}
		if strings.HasSuffix(before, "$") { // $${ is a literal ${
			b.WriteString(before + "{")
			s = rest
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			d.fail(n, path, "${ without }: close it, or write $${ for a literal ${")
			return nil, false
		}
		name, fallback, hasFallback := strings.Cut(name, ":-")
		val, ok := "", false
		if d.env != nil {
			val, ok = d.env(name)
		}
		if !ok && !hasFallback {
			d.fail(n, path,
				"environment variable %s is not set: set it for this process, or write a default, such as "+
					"${%[1]s:-value}", name)
			return nil, false
		}
		if !ok {
			val = fallback
		}
		b.WriteString(before + val)
		s = after
	}
}

// reference returns the key and the value of {env: NAME} and {file: PATH}, and "" for any other
// node.
func (d *decoder) reference(n *yaml.Node) (key, value string) {
	ps := pairs(n)
	if len(ps) != 1 || ps[0].key.Value != "env" && (ps[0].key.Value != "file" || d.literal) {
		return "", ""
	}
	return ps[0].key.Value, ps[0].value.Value
}

func (d *decoder) lookup(n *yaml.Node, name, path string) (any, bool) {
	if d.env != nil {
		if v, ok := d.env(name); ok {
			return v, true
		}
	}
	d.fail(n, path, "environment variable %s is not set: set it for this process", name)
	return nil, false
}

// maxFile is the maximum size in bytes of a file that {file: PATH} reads.
const maxFile = 1 << 20

// read returns the content of a file without the newline at its end, as for mounted secrets.
func (d *decoder) read(n *yaml.Node, file, path string) (any, bool) {
	if !filepath.IsAbs(file) {
		file = filepath.Join(filepath.Dir(d.file), file)
	}
	info, err := os.Stat(file)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxFile) {
		err = fmt.Errorf("%s is not a regular file of at most %d bytes", file, maxFile)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		d.fail(n, path, "%v: {file: PATH} needs a file that this process can read", err)
		return nil, false
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"), true
}

func null(n *yaml.Node) bool {
	n = resolve(n)
	return n == nil || n.Kind == yaml.ScalarNode && Scalar(n) == nil
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name && n != "" {
			return true
		}
	}
	return false
}

// help returns a text for a user who left a setting out: what the setting is.
func help(f reflect.StructField) string {
	if text := f.Tag.Get("help"); text != "" {
		return text
	}
	return "add it"
}

// suggest names the nearest known setting, or all of them if none is near.
func suggest(name string, known []string) string {
	best, near := "", 3
	for _, k := range known {
		if d := distance(name, k); k != "" && d < near && d < len(name) {
			best, near = k, d
		}
	}
	if best == "" {
		known = slices.DeleteFunc(slices.Clone(known), func(n string) bool { return n == "" })
		if len(known) == 1 {
			return "; the only one is " + known[0]
		}
		return "; there are " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance counts the single edits between two names (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
