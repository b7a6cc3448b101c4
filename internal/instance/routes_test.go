package instance_test

import (
	"slices"
	"testing"

	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/launcher"
)

// A tag with raw settings is allowed if it is listed, or if Dagster's own launcher reads it and
// there is no list.
func TestRawTags(t *testing.T) {
	ours, stock := &launcher.Kind{Tags: []string{"a", "b"}}, &launcher.Kind{Tags: []string{"a", "b"}, StockTags: true}
	for name, c := range map[string]struct {
		kind            *launcher.Kind
		list            []string
		allowed, denied []string
	}{
		"no list":                             {ours, nil, nil, []string{"a", "b"}},
		"one is listed":                       {ours, []string{"b", "c"}, []string{"b"}, []string{"a"}},
		"no list, tags of Dagster's launcher": {stock, nil, []string{"a", "b"}, nil},
		"an empty list":                       {stock, []string{}, nil, []string{"a", "b"}},
	} {
		allowed, denied := instance.Allow{Tags: c.list}.RawTags(c.kind)
		if !slices.Equal(allowed, c.allowed) || !slices.Equal(denied, c.denied) {
			t.Errorf("%s: RawTags = %v, %v, want %v, %v", name, allowed, denied, c.allowed, c.denied)
		}
	}
}
