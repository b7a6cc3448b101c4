package config

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// said describes the value of a scalar in a message: the text in the file, and the value that was
// read for it from the environment. It does not show the content of a file, because files hold
// secrets.
func said(n *yaml.Node, value any) string {
	if ps := pairs(n); n.Kind == yaml.MappingNode && len(ps) == 1 {
		if name := ps[0].value.Value; ps[0].key.Value == "env" {
			return fmt.Sprintf("the value %q of environment variable %s", value, name)
		}
		return "the content of " + ps[0].value.Value
	}
	if strings.Contains(n.Value, "${") {
		return fmt.Sprintf("%q, which is %s,", value, n.Value)
	}
	return fmt.Sprintf("%q", n.Value)
}
