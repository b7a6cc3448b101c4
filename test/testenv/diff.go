package testenv

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/util/diff"
)

// Diff returns the lines in which two values differ: those of a after "-" and those of b after "+".
// It returns "" if the values are deeply equal. Values are shown as indented JSON, other texts as
// they are.
func Diff(a, b any) string {
	if reflect.DeepEqual(a, b) {
		return ""
	}
	if d := diff.Diff(shown(a), shown(b)); d != "" {
		return d
	}
	return fmt.Sprintf("-%#v\n+%#v", a, b) // they differ in something that JSON does not show
}

func shown(v any) any {
	text, ok := v.(string)
	switch {
	case !ok:
		return v
	case json.Valid([]byte(text)):
		return json.RawMessage(text)
	default:
		return strings.Split(text, "\n")
	}
}
