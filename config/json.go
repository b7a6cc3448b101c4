package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// JSON returns the section as JSON, with keys in the order of the file and ${NAME} expanded. It is
// for settings whose shape this package does not know. It returns "null" if there is no section. A
// mapping {env: NAME} stays a mapping. If there is an error, the text may not be valid JSON.
func (v Values) JSON() (json.RawMessage, error) {
	d := v.decoder()
	var b bytes.Buffer
	d.json(&b, v.Node, v.Path)
	return b.Bytes(), errors.Join(d.problems...)
}

func (d *decoder) json(b *bytes.Buffer, n *yaml.Node, path string) {
	n = resolve(n)
	switch {
	case n == nil:
		b.WriteString("null")
	case n.Kind == yaml.MappingNode:
		b.WriteByte('{')
		for i, p := range pairs(n) {
			if i > 0 {
				b.WriteByte(',')
			}
			d.text(b, p.key, p.key.Value, path)
			b.WriteByte(':')
			d.json(b, p.value, path+"."+p.key.Value)
		}
		b.WriteByte('}')
	case n.Kind == yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			d.json(b, item, fmt.Sprintf("%s[%d]", path, i))
		}
		b.WriteByte(']')
	default:
		if value, ok := d.expand(n, path); ok {
			d.text(b, n, value, path)
		}
	}
}

func (d *decoder) text(b *bytes.Buffer, n *yaml.Node, value any, path string) {
	text, err := json.Marshal(value)
	if err != nil {
		d.fail(n, strings.TrimPrefix(path, "."), "%v", err) // JSON has no .inf and no .nan
		return
	}
	b.Write(text)
}
