package dagster

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deeply arrays and objects may nest in a decoded text. Python's
// own decoder gives up at about the same depth.
const maxDepth = 1000

// Object is one serdes object: its fields by name, each as the exact JSON text that
// was read or will be written.
type Object map[string]json.RawMessage

// ParseObject reads a JSON object as Python's json.loads(strict=False) would: raw control
// characters in strings are allowed, the last of two equal keys wins, NaN and Infinity
// are numbers. The returned texts are slices of text.
func ParseObject(text string) (Object, error) {
	p := &parser{text: text}
	p.space()
	if p.peek() != '{' {
		return nil, p.fail("object expected")
	}
	o := Object{}
	p.pos++
	err := p.members('}', func() error {
		key, err := p.key()
		if err != nil {
			return err
		}
		start := p.pos
		if _, err := p.value(1); err != nil {
			return err
		}
		o[key] = json.RawMessage(text[start:p.pos])
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o, p.end()
}

// JSON returns the object's text as Python's json.dumps(sort_keys=True) orders and spaces it.
func (o Object) JSON() string { return string(appendValue(nil, o)) }

// Class returns the storage name of the object's class, "" if it has none.
func (o Object) Class() string { return o.text("__class__") }

// Value decodes one field; nil if it is absent or null. See [Decode] for the types.
func (o Object) Value(field string) any {
	raw, ok := o[field]
	if !ok {
		return nil
	}
	v, err := Decode(string(raw))
	if err != nil { // the field was parsed once already
		return nil
	}
	return v
}

func (o Object) text(field string) string {
	s, _ := o.Value(field).(string)
	return s
}

// object returns a field that holds an object; nil if it is absent or something else.
func (o Object) object(field string) Object {
	raw, ok := o[field]
	if !ok {
		return nil
	}
	sub, err := ParseObject(string(raw))
	if err != nil {
		return nil
	}
	return sub
}

// with returns a copy of the object with some fields replaced.
func (o Object) with(fields map[string]any) Object {
	n := maps.Clone(o)
	if n == nil {
		n = Object{}
	}
	for k, v := range fields {
		n[k] = Encode(v)
	}
	return n
}

// Encode returns the JSON text that Python's json.dumps(sort_keys=True) returns for v: keys in code
// point order, ", " and ": " between items, ASCII only, floats with a fraction. It takes nil, bool,
// string, integers, float64, slices and string-keyed maps of these, [Object], json.Number and
// json.RawMessage (both copied as they are). Another type is a bug of the caller and panics.
func Encode(v any) json.RawMessage { return appendValue(nil, v) }

// Normalize reads any JSON text and writes it as [Encode] does. Numbers keep their spelling.
func Normalize(text string) (string, error) {
	v, err := Decode(text)
	if err != nil {
		return "", err
	}
	return string(Encode(v)), nil
}

// Decode reads one JSON text into nil, bool, string, json.Number, []any and map[string]any. A lone
// surrogate in a string, which Go cannot hold, becomes U+FFFD; use [Object] to keep it.
func Decode(text string) (any, error) {
	p := &parser{text: text}
	p.space()
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	return v, p.end()
}

func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...)
	case bool:
		return strconv.AppendBool(b, v)
	case string:
		return appendString(b, v)
	case int:
		return strconv.AppendInt(b, int64(v), 10)
	case int64:
		return strconv.AppendInt(b, v, 10)
	case float64:
		return append(b, formatFloat(v)...)
	case json.Number:
		return append(b, v...)
	case json.RawMessage:
		return append(b, v...)
	case []string:
		return appendList(b, v)
	case []any:
		return appendList(b, v)
	case []Object:
		return appendList(b, v)
	case map[string]string:
		return appendMap(b, v)
	case map[string]any:
		return appendMap(b, v)
	case map[string]int:
		return appendMap(b, v)
	case Object:
		if v == nil {
			return append(b, "null"...)
		}
		return appendMap(b, v)
	}
	panic(fmt.Sprintf("dagster: cannot encode a %T", v))
}

func appendList[T any](b []byte, list []T) []byte {
	b = append(b, '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = appendValue(b, v)
	}
	return append(b, ']')
}

func appendMap[T any](b []byte, m map[string]T) []byte {
	b = append(b, '{')
	for i, k := range slices.Sorted(maps.Keys(m)) { // UTF-8 sorts as code points do
		if i > 0 {
			b = append(b, ", "...)
		}
		b = appendString(b, k)
		b = append(b, ": "...)
		b = appendValue(b, m[k])
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r == '\b':
			b = append(b, `\b`...)
		case r == '\f':
			b = append(b, `\f`...)
		case r >= ' ' && r < 0x7f:
			b = append(b, byte(r))
		case r >= 0x10000:
			hi, lo := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, hi, lo)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return append(b, '"')
}

// formatFloat writes a float as Python's repr does, always with a fraction or an exponent:
// Dagster refuses to read a timestamp that lacks one.
func formatFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// parser reads JSON with the liberties that Python's json module takes.
type parser struct {
	text string
	pos  int
}

func (p *parser) fail(what string) error {
	return fmt.Errorf("dagster: invalid JSON at byte %d: %s", p.pos, what)
}

func (p *parser) space() {
	for p.pos < len(p.text) {
		switch p.text[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

// peek is the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *parser) end() error {
	p.space()
	if p.pos != len(p.text) {
		return p.fail("text after the value")
	}
	return nil
}

// members reads the items of an array or object up to and with its closing byte. The
// opening one has been read.
func (p *parser) members(closing byte, item func() error) error {
	p.space()
	if p.peek() == closing {
		p.pos++
		return nil
	}
	for {
		p.space()
		if err := item(); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case closing:
			p.pos++
			return nil
		default:
			return p.fail("comma or end expected")
		}
	}
}

func (p *parser) key() (string, error) {
	if p.peek() != '"' {
		return "", p.fail("key expected")
	}
	key, err := p.string()
	if err != nil {
		return "", err
	}
	p.space()
	if p.peek() != ':' {
		return "", p.fail("colon expected")
	}
	p.pos++
	p.space()
	return key, nil
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, p.fail("nested too deeply")
	}
	switch p.peek() {
	case '{':
		p.pos++
		m := map[string]any{}
		err := p.members('}', func() error {
			key, err := p.key()
			if err != nil {
				return err
			}
			m[key], err = p.value(depth + 1)
			return err
		})
		return m, err
	case '[':
		p.pos++
		list := []any{}
		err := p.members(']', func() error {
			v, err := p.value(depth + 1)
			list = append(list, v)
			return err
		})
		return list, err
	case '"':
		return p.string()
	}
	for word, v := range map[string]any{
		"null": nil, "true": true, "false": false,
		"NaN": json.Number("NaN"), "Infinity": json.Number("Infinity"), "-Infinity": json.Number("-Infinity"),
	} {
		if strings.HasPrefix(p.text[p.pos:], word) {
			p.pos += len(word)
			return v, nil
		}
	}
	return p.number()
}

func (p *parser) number() (any, error) {
	start := p.pos
	if p.peek() == '-' {
		p.pos++
	}
	digits := func() int {
		from := p.pos
		for c := p.peek(); c >= '0' && c <= '9'; c = p.peek() {
			p.pos++
		}
		return p.pos - from
	}
	lead := p.peek()
	if n := digits(); n == 0 || n > 1 && lead == '0' {
		p.pos = start
		return nil, p.fail("value expected")
	}
	if p.peek() == '.' {
		p.pos++
		if digits() == 0 {
			return nil, p.fail("digit expected")
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if digits() == 0 {
			return nil, p.fail("digit expected")
		}
	}
	return json.Number(p.text[start:p.pos]), nil
}

// string reads a string whose opening quote is next.
func (p *parser) string() (string, error) {
	p.pos++
	start := p.pos
	if i := strings.IndexAny(p.text[start:], `"\`); i >= 0 && p.text[start+i] == '"' {
		p.pos += i + 1
		return strings.ToValidUTF8(p.text[start:start+i], "\ufffd"), nil
	}
	var b strings.Builder
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; c {
		case '"':
			p.pos++
			return strings.ToValidUTF8(b.String(), "\ufffd"), nil
		case '\\':
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			b.WriteRune(r)
		default:
			b.WriteByte(c)
			p.pos++
		}
	}
	return "", p.fail("unterminated string")
}

func (p *parser) escape() (rune, error) {
	p.pos++
	c := p.peek()
	p.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		r, err := p.hex4()
		if err != nil || !utf16.IsSurrogate(r) {
			return r, err
		}
		if strings.HasPrefix(p.text[p.pos:], `\u`) {
			back := p.pos
			p.pos += 2
			low, err := p.hex4()
			if err != nil {
				return 0, err
			}
			if full := utf16.DecodeRune(r, low); full != utf8.RuneError {
				return full, nil
			}
			p.pos = back
		}
		return utf8.RuneError, nil
	}
	p.pos--
	return 0, p.fail("unknown escape")
}

func (p *parser) hex4() (rune, error) {
	if p.pos+4 > len(p.text) {
		return 0, p.fail("four hex digits expected")
	}
	n, err := strconv.ParseUint(p.text[p.pos:p.pos+4], 16, 32)
	if err != nil {
		return 0, errors.Join(p.fail("four hex digits expected"), err)
	}
	p.pos += 4
	return rune(n), nil
}
