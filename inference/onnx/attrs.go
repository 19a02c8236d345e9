package onnx

import (
	"fmt"
	"maps"
	"slices"
)

// Attrs are the attributes of a node by name. Values may be int, int64, bool
// (as 0 or 1), float32, float64, string, []int, []int64, []float32, []string,
// Tensor, *Tensor or, for control flow, *Graph. They are kept as int64,
// float32, string, []int64, []float32, []string, *Tensor and *Graph.
type Attrs map[string]any

// normal returns a copy of a with every value in the form that is kept.
func (a Attrs) normal() (Attrs, error) {
	out := make(Attrs, len(a))
	for _, name := range slices.Sorted(maps.Keys(a)) {
		switch v := a[name].(type) {
		case int:
			out[name] = int64(v)
		case bool:
			out[name] = int64(0)
			if v {
				out[name] = int64(1)
			}
		case float64:
			out[name] = float32(v)
		case DataType:
			out[name] = int64(v)
		case []int:
			ints := make([]int64, len(v))
			for i, x := range v {
				ints[i] = int64(x)
			}
			out[name] = ints
		case Tensor:
			out[name] = &v
		case int64, float32, string, []int64, []float32, []string, *Tensor, *Graph:
			out[name] = v
		default:
			return nil, fmt.Errorf("attribute %q has type %T, which ONNX does not have", name, v)
		}
	}
	return out, nil
}

// Int returns an integer attribute, or def when it is absent.
func (a Attrs) Int(name string, def int) int {
	if v, ok := a[name].(int64); ok {
		return int(v)
	}
	return def
}

// Float returns a float attribute, or def when it is absent.
func (a Attrs) Float(name string, def float32) float32 {
	if v, ok := a[name].(float32); ok {
		return v
	}
	return def
}

// String returns a string attribute, or def when it is absent.
func (a Attrs) String(name, def string) string {
	if v, ok := a[name].(string); ok {
		return v
	}
	return def
}

// Ints returns an attribute that is a list of integers, or nil.
func (a Attrs) Ints(name string) []int {
	v, ok := a[name].([]int64)
	if !ok {
		return nil
	}
	out := make([]int, len(v))
	for i, x := range v {
		out[i] = int(x)
	}
	return out
}

// Tensor returns a tensor attribute, or nil.
func (a Attrs) Tensor(name string) *Tensor {
	t, _ := a[name].(*Tensor)
	return t
}

// Graph returns a subgraph attribute, or nil.
func (a Attrs) Graph(name string) *Graph {
	g, _ := a[name].(*Graph)
	return g
}

// Has reports whether the attribute is present.
func (a Attrs) Has(name string) bool { _, ok := a[name]; return ok }
