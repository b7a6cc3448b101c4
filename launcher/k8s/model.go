package k8s

import (
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

	"encoding/json"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Raw settings are trees of JSON (map[string]any, []any, string, json.Number, bool, nil) whose keys may be written as the API
// has them, initContainers, or as Python does, init_containers. A model says what a tree may look like: it is read off the API's
// own Go types.
type model struct {
	kind   modelKind
	of     *model            // of a list or a table: its elements
	fields map[string]*model // of an object, by the API's names
	snake  map[string]string // Python's names for those of the API
	name   string            // of the type, for people
}

type modelKind int

const (
	anything modelKind = iota // not looked into
	text
	number
	flag
	list
	table // a mapping whose keys the user chooses
	object
)

var models sync.Map // reflect.Type to *model

// modelOf gives the model of a type of the API.
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
	case reflect.TypeFor[resource.Quantity](), reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime](), reflect.TypeFor[[]byte]():
		return &model{kind: text}
	case reflect.TypeFor[intstr.IntOrString](), reflect.TypeFor[metav1.FieldsV1]():
		return &model{kind: anything}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return modelFor(t.Elem())
	case reflect.String:
		return &model{kind: text}
	case reflect.Bool:
		return &model{kind: flag}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Float64:
		return &model{kind: number}
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

// snakeCase is the name that Kubernetes' Python client has for one of the API.
func snakeCase(name string) string {
	s := strings.ToLower(hump.ReplaceAllString(acronym.ReplaceAllString(name, "${1}_${2}"), "${1}_${2}"))
	switch s {
	case "exec", "continue", "from": // words of Python's
		return "_" + s
	}
	return s
}

// known is the API's name of a key.
func (m *model) known(key string) (string, bool) {
	if name, ok := m.snake[key]; ok {
		return name, true
	}
	_, ok := m.fields[key]
	return key, ok
}

// normal is a tree with the API's names. What the model does not know is an error; scalars stay as they are.
func (m *model) normal(v any, path string) (any, error) {
	switch m.kind {
	case list:
		items, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("%s: a list is expected, not %s", path, word(v))
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
			return nil, fmt.Errorf("%s: a mapping is expected, not %s", path, word(v))
		}
		out := map[string]any{}
		var errs []error
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			var err error
			out[key], err = m.of.normal(entries[key], path+"."+key)
			errs = append(errs, err)
		}
		return out, errors.Join(errs...)
	case object:
		return m.normalObject(v, path)
	}
	return v, nil
}

func (m *model) normalObject(v any, path string) (any, error) {
	entries, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: a mapping is expected (%s of the Kubernetes API), not %s", path, m.name, word(v))
	}
	out := map[string]any{}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		name, ok := m.known(key)
		if !ok {
			errs = append(errs, fmt.Errorf("%s.%s: the Kubernetes API has no such field in %s", path, key, m.name))
			continue
		}
		if _, twice := out[name]; twice {
			errs = append(errs, fmt.Errorf("%s: %s stands there twice, as %s too", path, name, key))
			continue
		}
		value, err := m.fields[name].normal(entries[key], path+"."+key)
		out[name] = value
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// cast is a normal tree with each scalar turned into what the API wants there, as Dagster turns it: a number where a text is
// wanted becomes its digits, any text where a flag is wanted is true. Members that are null go.
func (m *model) cast(v any, path string) (any, error) {
	switch m.kind {
	case list:
		items, _ := v.([]any)
		out := make([]any, len(items))
		var errs []error
		for i, item := range items {
			var err error
			if item == nil {
				err = fmt.Errorf("%s[%d]: null stands in a list", path, i)
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
			value, err := of.cast(entries[key], path+"."+key)
			out[key] = value
			errs = append(errs, err)
		}
		return out, errors.Join(errs...)
	case anything:
		return v, nil
	}
	out, err := m.scalar(v)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return out, err
}

func (m *model) scalar(v any) (any, error) {
	switch v.(type) {
	case map[string]any, []any:
		return nil, fmt.Errorf("one value is expected, not %s", word(v))
	}
	switch m.kind {
	case text:
		switch v := v.(type) {
		case bool:
			return map[bool]string{true: "True", false: "False"}[v], nil
		case json.Number:
			return pythonNumber(v), nil
		}
		return v, nil
	case number:
		switch v := v.(type) {
		case bool:
			return map[bool]int{true: 1}[v], nil
		case json.Number:
			f, err := v.Float64()
			if strings.ContainsAny(v.String(), ".eE") && err == nil && math.Abs(f) < 1<<53 {
				return json.Number(strconv.FormatInt(int64(f), 10)), nil
			}
			return v, nil
		case string:
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("a number is expected, not %q", v)
			}
			return n, nil
		}
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

// pythonNumber is a number as Python prints it.
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

// word is what a value is, for people.
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
