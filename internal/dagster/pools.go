package dagster

import (
	"maps"
	"slices"
	"strconv"
)

// Pools are the concurrency pools that a run's steps use
// (dagster._core.storage.dagster_run.RunOpConcurrency).
type Pools struct {
	All  []string       // sorted
	Root map[string]int // how many of the steps that can start at once use a pool
	// Unconstrained is true if a step that can start at once uses no pool.
	Unconstrained bool
}

// poolsOf decodes run_op_concurrency. It returns nil if no step uses a pool.
func poolsOf(o Object) *Pools {
	if o == nil {
		return nil
	}
	p := &Pools{Root: map[string]int{}}
	p.Unconstrained, _ = o.Value("has_unconstrained_root_nodes").(bool)
	all := o.object("all_pools")
	p.All = append(all.texts("__set__"), all.texts("__frozenset__")...)
	slices.Sort(p.All)
	for pool, raw := range o.object("root_key_counts") {
		n, err := strconv.Atoi(string(raw))
		if err == nil {
			p.Root[pool] = n
		}
	}
	return p
}

// Value returns the pools in a form for [Encode].
func (p Pools) Value() map[string]any {
	return map[string]any{
		"__class__": "RunOpConcurrency", "all_pools": map[string]any{"__set__": p.All},
		"has_unconstrained_root_nodes": p.Unconstrained, "root_key_counts": maps.Clone(p.Root),
	}
}

// objects returns the objects in a list field.
func (o Object) objects(field string) []Object {
	var out []Object
	list, _ := o.Value(field).([]any)
	for _, v := range list {
		if m, ok := v.(map[string]any); ok {
			sub := Object{}
			for k, e := range m {
				sub[k] = Encode(e)
			}
			out = append(out, sub)
		}
	}
	return out
}

// texts returns the texts in a list field.
func (o Object) texts(field string) []string {
	var out []string
	list, _ := o.Value(field).([]any)
	for _, v := range list {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
