package k8s

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A model describes the possible form of a tree of raw settings. It is derived from the API's own
// Go types. Such a tree consists of JSON values (map[string]any, []any, string, json.Number, bool,
// nil). Its keys may be spelled as in the API, initContainers, or as in Python, init_containers.
type model struct {
	kind   modelKind
	of     *model            // of a list or a table: its elements
	fields map[string]*model // of an object, by the API's names
	snake  map[string]string // the API's names by Python's names
	name   string            // of the type, for people
	bits   int               // of a number
}

type modelKind int

const (
	anything modelKind = iota // not checked
	text
	quantity
	moment
	number
	intOrText
	flag
	list
	table // a mapping whose keys the user chooses
	object
)

var models sync.Map // reflect.Type to *model

// modelOf returns the model of a type of the API.
func modelOf[T any]() *model { return modelFor(reflect.TypeFor[T]()) }

func modelFor(t reflect.Type) *model {
	if m, ok := models.Load(t); ok {
		return m.(*model)
	}
	m := readModel(t)
	models.Store(t, m)
	return m
}

func readModel(t reflect.Type) *model {
	switch t {
	case reflect.TypeFor[resource.Quantity]():
		return &model{kind: quantity}
	case reflect.TypeFor[metav1.Time]():
		return &model{kind: moment}
	case reflect.TypeFor[intstr.IntOrString]():
		return &model{kind: intOrText}
	case reflect.TypeFor[metav1.FieldsV1]():
		return &model{kind: anything}
	case reflect.TypeFor[[]byte]():
		return &model{kind: text}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return modelFor(t.Elem())
	case reflect.String:
		return &model{kind: text}
	case reflect.Bool:
		return &model{kind: flag}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Float64:
		return &model{kind: number, bits: t.Bits()}
	case reflect.Slice:
		return &model{kind: list, of: modelFor(t.Elem())}
	case reflect.Map:
		return &model{kind: table, of: modelFor(t.Elem())}
	case reflect.Struct:
		m := &model{kind: object, fields: map[string]*model{}, snake: map[string]string{}, name: t.Name()}
		m.add(t)
		return m
	}
	return &model{kind: anything}
}

func (m *model) add(t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && (f.Anonymous || strings.Contains(options, "inline")) {
			m.add(f.Type)
			continue
		}
		if name == "" || name == "-" {
			continue
		}
		m.fields[name] = modelFor(f.Type)
		m.snake[snakeCase(name)] = name
	}
}

var (
	acronym = regexp.MustCompile(`([A-Z]+)([A-Z][a-z])`)
	hump    = regexp.MustCompile(`([a-z\d])([A-Z])`)
)

// snakeCase returns the name that Kubernetes' Python client has for a name of the API.
func snakeCase(name string) string {
	s := strings.ToLower(hump.ReplaceAllString(acronym.ReplaceAllString(name, "${1}_${2}"), "${1}_${2}"))
	switch s {
	case "exec", "continue", "from": // Python's keywords
		return "_" + s
	}
	return s
}

// fault returns an error about the value at a path of a tree. The path "" is the tree itself.
func fault(path, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if path != "" {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return err
}

// below returns the path of a member of the value at a path.
func below(path, key string) string { return strings.TrimPrefix(path+"."+key, ".") }

// known returns the API's name of a key.
func (m *model) known(key string) (string, bool) {
	if name, ok := m.snake[key]; ok {
		return name, true
	}
	_, ok := m.fields[key]
	return key, ok
}

// normal returns a tree with the API's names. A name that the model does not know is an error.
// Scalars stay unchanged.
func (m *model) normal(v any, path string) (any, error) {
	switch m.kind {
	case list:
		items, ok := v.([]any)
		if !ok {
			return nil, fault(path, "a list is expected, not %s", word(v))
		}
		out := make([]any, len(items))
		var errs []error
		for i, item := range items {
			var err error
			out[i], err = m.of.normal(item, fmt.Sprintf("%s[%d]", path, i))
			errs = append(errs, err)
		}
		return out, errors.Join(errs...)
	case table:
		entries, ok := v.(map[string]any)
		if !ok {
			return nil, fault(path, "a mapping is expected, not %s", word(v))
		}
		out := map[string]any{}
		var errs []error
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			var err error
			out[key], err = m.of.normal(entries[key], below(path, key))
			errs = append(errs, err)
		}
		return out, errors.Join(errs...)
	case object:
		return m.normalObject(v, path)
	case quantity: // reported here, where the path is the user's
		if s, ok := v.(string); ok {
			if err := checkQuantity(s, path); err != nil {
				return nil, fault(path, "%w", err)
			}
		}
	}
	return v, nil
}

// checkQuantity reports a text that is not a quantity of the Kubernetes API. The path ends with the
// name of the resource.
func checkQuantity(s, path string) error {
	valid := func(s string) bool {
		_, err := resource.ParseQuantity(s)
		return err == nil
	}
	if valid(s) {
		return nil
	}
	example := "1"
	switch meant := strings.TrimRight(strings.ToUpper(strings.ReplaceAll(s, " ", "")), "IB") + "i"; { // 4GB, 4 gib
	case strings.HasSuffix(path, "cpu"):
		example = "500m"
	case valid(meant):
		example = meant
	case strings.HasSuffix(path, "memory"), strings.HasSuffix(path, "storage"):
		example = "512Mi"
	}
	return fmt.Errorf("%q is not a quantity of Kubernetes (for example: %s)", s, example)
}

func (m *model) normalObject(v any, path string) (any, error) {
	entries, ok := v.(map[string]any)
	if !ok {
		return nil, fault(path, "a mapping is expected (%s of the Kubernetes API), not %s", m.name, word(v))
	}
	out := map[string]any{}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		name, ok := m.known(key)
		if !ok {
			errs = append(errs, fault(below(path, key), "the Kubernetes API has no such field in %s", m.name))
			continue
		}
		if _, twice := out[name]; twice {
			errs = append(errs, fault(path, "%s stands there twice, as %s too", name, key))
			continue
		}
		value, err := m.fields[name].normal(entries[key], below(path, key))
		out[name] = value
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// cast returns a normal tree whose scalars have the types of the API, converted as Dagster does: a
// number becomes its digits if a text is wanted, and any text is true if a flag is wanted. It drops
// members that are null.
func (m *model) cast(v any, path string) (any, error) {
	switch m.kind {
	case list:
		items, _ := v.([]any)
		out := make([]any, len(items))
		var errs []error
		for i, item := range items {
			var err error
			if item == nil {
				err = fault(fmt.Sprintf("%s[%d]", path, i), "null stands in a list")
			} else {
				out[i], err = m.of.cast(item, fmt.Sprintf("%s[%d]", path, i))
			}
			errs = append(errs, err)
		}
		return out, errors.Join(errs...)
	case table, object:
		entries, _ := v.(map[string]any)
		out := map[string]any{}
		var errs []error
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			of := m.of
			if m.kind == object {
				of = m.fields[key]
			}
			if entries[key] == nil {
				continue
			}
			value, err := of.cast(entries[key], below(path, key))
			out[key] = value
			errs = append(errs, err)
		}
		return out, errors.Join(errs...)
	case anything:
		return v, nil
	}
	out, err := m.scalar(v)
	if s, ok := out.(string); ok && err == nil && m.kind == quantity {
		err = checkQuantity(s, path)
	}
	if err != nil {
		err = fault(path, "%w", err)
	}
	return out, err
}

func (m *model) scalar(v any) (any, error) {
	switch v.(type) {
	case map[string]any, []any:
		return nil, fmt.Errorf("one value is expected, not %s", word(v))
	}
	switch m.kind {
	case text, quantity:
		switch v := v.(type) {
		case bool:
			return map[bool]string{true: "True", false: "False"}[v], nil
		case json.Number:
			return pythonNumber(v), nil
		}
	case moment:
		s, _ := v.(string)
		if _, err := time.Parse(time.RFC3339, s); err != nil {
			return nil, fmt.Errorf("%s is not a time (for example: 2026-01-31T12:00:00Z)", word(v))
		}
	case intOrText:
		switch v := v.(type) {
		case string:
			return v, nil
		case json.Number:
			if n, err := strconv.ParseInt(v.String(), 10, 32); err == nil {
				return n, nil
			}
		}
		return nil, fmt.Errorf("a whole number or a text is expected, not %s", word(v))
	case number:
		return whole(v, m.bits)
	case flag:
		switch v := v.(type) {
		case string:
			return v != "", nil
		case json.Number:
			f, err := v.Float64()
			return f != 0 || err != nil, nil
		}
	}
	return v, nil
}

// whole returns an integer of some bits, converted as Python's int does.
func whole(v any, bits int) (any, error) {
	digits := ""
	switch v := v.(type) {
	case bool:
		return map[bool]int{true: 1}[v], nil
	case json.Number:
		digits = v.String()
		if f, err := v.Float64(); strings.ContainsAny(digits, ".eE") && err == nil && math.Abs(f) < 1<<53 {
			digits = strconv.FormatInt(int64(f), 10)
		}
	case string:
		digits = strings.TrimSpace(v)
	}
	n, err := strconv.ParseInt(digits, 10, bits)
	if err != nil {
		return nil, fmt.Errorf("a whole number of at most %d bits is expected, not %s", bits, word(v))
	}
	return n, nil
}

// pythonNumber returns a number as Python prints it.
func pythonNumber(n json.Number) string {
	s := n.String()
	if !strings.ContainsAny(s, ".eE") {
		return s
	}
	f, err := n.Float64()
	if err != nil {
		return s
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s = strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// word describes the kind of a value, for people.
func word(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "a mapping"
	case []any:
		return "a list"
	case string:
		return strconv.Quote(v)
	default:
		return fmt.Sprint(v)
	}
}
