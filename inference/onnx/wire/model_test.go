package wire

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A model's inputs are those that no initialiser gives, wherever that stands, and each
// file of external data is named once.
func TestParseTellsWhatAModelIs(t *testing.T) {
	entry := func(key, value string) []byte { return AppendBytes(AppendBytes(nil, 1, key), 2, value) }
	weight := func(name string, elem, dim int64, file string) []byte {
		b := AppendBytes(AppendInt(AppendInt(nil, TensorDims, dim), TensorType, elem), TensorName, name)
		if file != "" {
			b = AppendBytes(AppendBytes(b, TensorExternal, entry("location", file)), TensorExternal, entry("offset", "0"))
		}
		return b
	}
	x := ValueInfo{Name: "x", Elem: Float, Known: true, Dims: []int64{-1, 0, 3}, Params: []string{"N", "", ""}}
	w := ValueInfo{Name: "w", Elem: Float, Known: true, Dims: []int64{5}}
	y := ValueInfo{Name: "y", Elem: Float16}
	graph := AppendBytes(nil, GraphNode, AppendBytes(AppendBytes(nil, NodeOutput, "y"), NodeOutput, ""))
	graph = AppendBytes(AppendBytes(AppendBytes(graph, GraphInput, x.Encode()), GraphInput, w.Encode()), GraphOutput, y.Encode())
	for _, t := range [][]byte{weight("w", Float, 5, "b"), weight("v", Float16, 6, "a"), weight("u", Uint8, 7, "b"), weight("t", Float, 8, "")} {
		graph = AppendBytes(graph, GraphInitializer, t)
	}
	model := AppendBytes(AppendBytes(nil, ModelMetadata, entry("k", "v")), ModelGraph, graph)
	model = AppendBytes(model, ModelOpset, AppendInt(nil, 2, 17))
	model = AppendBytes(model, ModelOpset, AppendInt(AppendBytes(nil, 1, "other"), 2, 3))
	model = AppendBytes(model, ModelFunction, AppendBytes(nil, 1, "f"))
	got, err := Parse(model)
	if err != nil {
		t.Fatal(err)
	}
	want := &Model{
		Graph: graph, Opset: 17, Metadata: map[string]string{"k": "v"}, Functions: []string{"f"},
		Inputs: []ValueInfo{x}, Outputs: []ValueInfo{y}, Values: map[string]ValueInfo{"x": x, "w": w, "y": y},
		Produced: map[string]bool{"y": true, "w": true, "v": true, "u": true, "t": true},
		External: []string{"b", "a"}, Params: 5 + 6 + 8,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for what, b := range map[string][]byte{
		"nothing":    nil,
		"no graph":   AppendInt(nil, ModelGraph, 7),
		"two graphs": append(model, model...),
		"cut short":  model[:len(model)-1],
	} {
		if _, err := Parse(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: error %v", what, err)
		}
	}
}
