package dagster

import (
	"encoding/json"
	"fmt"
)

// InstanceRef describes an instance to a worker (dagster._core.instance.ref.InstanceRef).
type InstanceRef struct{ object Object }

// ClassData names a Python class with its configuration (dagster._serdes.ConfigurableClassData).
type ClassData struct {
	Module, Class string
	ConfigYAML    string // block style, sorted keys
}

// ParseInstanceRef decodes an InstanceRef.
func ParseInstanceRef(text string) (InstanceRef, error) {
	o, err := ParseObject(text)
	if err != nil {
		return InstanceRef{}, fmt.Errorf("instance ref: %w", err)
	}
	if c := o.Class(); c != "InstanceRef" {
		return InstanceRef{}, fmt.Errorf("instance ref: class is %q", c)
	}
	return InstanceRef{o}, nil
}

// Part returns the class of one part, such as "run_launcher" or "storage"; false if the ref has
// none.
func (r InstanceRef) Part(name string) (ClassData, bool) {
	o := r.object.object(name + "_data")
	return ClassData{Module: o.text("module_name"), Class: o.text("class_name"), ConfigYAML: o.text("config_yaml")},
		o != nil
}

// WithPart returns the ref with one part replaced.
func (r InstanceRef) WithPart(name string, c ClassData) InstanceRef {
	return InstanceRef{r.object.with(map[string]any{name + "_data": c.Value()})}
}

// Settings returns the sections of dagster.yaml that a worker reads itself, by name.
func (r InstanceRef) Settings() map[string]json.RawMessage {
	return r.object.object("settings")
}

// JSON returns the text to pass on.
func (r InstanceRef) JSON() string { return r.object.JSON() }

// Value returns the class in a form for [Encode].
func (c ClassData) Value() map[string]any {
	return map[string]any{"__class__": "ConfigurableClassData", "class_name": c.Class, "config_yaml": c.ConfigYAML,
		"module_name": c.Module}
}
