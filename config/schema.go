package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Field describes one setting, for help, reference pages and schemas. It is plain data, so that a
// launcher at the other end of a wire can declare its settings too.
type Field struct {
	Name     string  `json:"name"`
	Type     string  `json:"type"` // text, secret, integer, boolean, duration, list, map, section or any
	Default  string  `json:"default,omitempty"`
	Help     string  `json:"help,omitempty"`
	Required bool    `json:"required,omitempty"`
	Item     *Field  `json:"item,omitempty"`   // of a list or map: the type of its members
	Fields   []Field `json:"fields,omitempty"` // of a section
	Cases    []Case  `json:"cases,omitempty"`  // of a section
}

// Case says which fields the setting Setting has, in a section whose setting Where has the value
// Is.
type Case struct {
	Where, Is string
	Setting   string
	Fields    []Field
}

// Fields lists the settings that a struct declares, in order.
func Fields(of any) []Field { return fieldsOf(reflect.TypeOf(of)) }

func fieldsOf(t reflect.Type) []Field {
	var fields []Field
	for _, f := range reflect.VisibleFields(t) { // includes those of embedded structs
		name := f.Tag.Get("config")
		if name == "" {
			continue
		}
		field := typed(f.Type)
		field.Name, field.Default, field.Help = name, f.Tag.Get("default"), f.Tag.Get("help")
		field.Required = f.Tag.Get("required") == "true"
		fields = append(fields, field)
	}
	return fields
}

func typed(t reflect.Type) Field {
	switch t {
	case reflect.TypeFor[Secret]():
		return Field{Type: "secret"}
	case reflect.TypeFor[Text]():
		return Field{Type: "text"}
	case reflect.TypeFor[Values]():
		return Field{Type: "any"}
	case reflect.TypeFor[time.Duration]():
		return Field{Type: "duration"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typed(t.Elem())
	case reflect.String:
		return Field{Type: "text"}
	case reflect.Int, reflect.Int64:
		return Field{Type: "integer"}
	case reflect.Bool:
		return Field{Type: "boolean"}
	case reflect.Slice, reflect.Map:
		item := typed(t.Elem())
		kind := "list"
		if t.Kind() == reflect.Map {
			kind = "map"
		}
		return Field{Type: kind, Item: &item}
	case reflect.Struct:
		return Field{Type: "section", Fields: fieldsOf(t)}
	}
	panic("config: a field of type " + t.String() + " cannot be described")
}

// Table returns the fields as a Markdown table, for reference pages. Fields of sections have dotted
// names. NAME stands for a key that the user chooses.
func Table(fields []Field) string {
	var b strings.Builder
	b.WriteString("| setting | type | default | |\n|---|---|---|---|\n")
	table(&b, "", fields)
	return b.String()
}

func table(b *strings.Builder, prefix string, fields []Field) {
	for _, f := range fields {
		name, def := prefix+f.Name, ""
		switch {
		case f.Required:
			def = "required"
		case f.Default != "":
			def = "`" + f.Default + "`"
		}
		if f.Type != "section" || f.Help != "" {
			fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", name, f.kind(), def, f.Help)
		}
		switch {
		case f.Type == "section":
			table(b, name+".", f.Fields)
		case f.Item != nil && f.Type == "map":
			table(b, name+".NAME.", f.Item.Fields)
		case f.Item != nil:
			table(b, name+"[].", f.Item.Fields)
		}
	}
}

func (f Field) kind() string {
	switch {
	case f.Item == nil:
		return f.Type
	case f.Item.Type == "section":
		return f.Type + " of sections"
	}
	return f.Type + " of " + f.Item.kind()
}

// Schema returns a JSON schema (draft 2020-12) of a section with these fields. A scalar may also be
// {env: NAME}, {file: PATH} or a text with ${NAME}.
func Schema(fields []Field) json.RawMessage {
	s := object(fields)
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil { // maps of texts do not fail
		panic(err)
	}
	return text
}

func object(fields []Field) map[string]any {
	properties, required := map[string]any{}, []string{}
	for _, f := range fields {
		properties[f.Name] = f.schema()
		if f.Required {
			required = append(required, f.Name)
		}
	}
	s := map[string]any{"type": []string{"object", "null"}, "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
		s["type"] = "object"
	}
	return s
}

func (f Field) schema() map[string]any {
	var s map[string]any
	switch f.Type {
	case "any":
		s = map[string]any{}
	case "section":
		s = object(f.Fields)
		var cases []any
		for _, c := range f.Cases {
			cases = append(cases, c.schema())
		}
		if len(cases) > 0 {
			s["allOf"] = cases
		}
	case "list":
		s = map[string]any{"type": []string{"array", "null"}, "items": f.Item.schema()}
	case "map":
		s = map[string]any{"type": []string{"object", "null"}, "additionalProperties": f.Item.schema()}
	default:
		types := map[string][]string{
			"integer": {"integer", "string"}, "boolean": {"boolean", "string"}, "duration": {"integer", "string"},
			"text": {"string", "number", "boolean"}, "secret": {"string", "number", "boolean"},
		}[f.Type]
		from := func(key string) any {
			return map[string]any{"type": "object", "properties": map[string]any{key: map[string]any{"type": "string"}},
				"required": []string{key}, "additionalProperties": false}
		}
		s = map[string]any{"anyOf": []any{map[string]any{"type": types}, from("env"), from("file")}}
	}
	if f.Help != "" {
		s["description"] = f.Help
	}
	if f.Default != "" {
		s["default"] = f.Default
	}
	return s
}

func (c Case) schema() any {
	of := object(c.Fields)
	then := map[string]any{"properties": map[string]any{c.Setting: of}}
	if of["required"] != nil {
		then["required"] = []string{c.Setting}
	}
	is := map[string]any{"properties": map[string]any{c.Where: map[string]any{"const": c.Is}},
		"required": []string{c.Where}}
	return map[string]any{"if": is, "then": then}
}
