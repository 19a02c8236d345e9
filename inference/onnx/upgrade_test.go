package onnx

import (
	"slices"
	"testing"
)

// TestInlineConverts: a graph of an old operator set goes into a newer one and
// back, with the same shapes.
func TestInlineConverts(t *testing.T) {
	build := func(opset int) (*Graph, *Value) {
		g := NewOpset("source", opset)
		x := g.Input("x", Float, 2, 6, 4)
		parts := g.OpN("Split", 2, splitAttrs(opset), x)
		y := g.ReduceMean(g.Add(parts[0], parts[1]), true, 1)
		g.Output("y", g.Reduce("ReduceMax", y, false, -1))
		return g, x
	}
	for _, c := range []struct{ from, to int }{{13, 21}, {17, 21}, {21, 17}, {23, 21}, {21, 21}} {
		src, x := build(c.from)
		g := NewOpset("target", c.to)
		out, _, err := g.Inline(src, map[*Value]*Value{x: g.Input("in", Float, 3, 6, 4)})
		if err != nil {
			t.Fatalf("%d to %d: %v", c.from, c.to, err)
		}
		if !slices.Equal(out[0].Shape(), []int{3, 1}) {
			t.Errorf("%d to %d: shape %v, want [3 1]", c.from, c.to, out[0].Shape())
		}
		for _, n := range g.Nodes() {
			if n.OpType == "ReduceMean" && n.Attrs.Has("axes") != (c.to < 18) {
				t.Errorf("%d to %d: %s has axes as an attribute: %v", c.from, c.to, n, n.Attrs.Has("axes"))
			}
			if n.OpType == "Split" && n.Attrs.Has("num_outputs") != (c.to >= 18) {
				t.Errorf("%d to %d: %s has num_outputs: %v", c.from, c.to, n, n.Attrs.Has("num_outputs"))
			}
		}
	}
	t.Run("an operator that the target does not have is refused", func(t *testing.T) {
		src := NewOpset("source", 20)
		x := src.Input("x", Float, 2)
		src.Output("y", src.Op("Gelu", nil, x))
		g := NewOpset("target", 17)
		if _, _, err := g.Inline(src, map[*Value]*Value{x: g.Input("in", Float, 2)}); err == nil {
			t.Error("accepted")
		}
	})
}

func splitAttrs(opset int) Attrs {
	if opset < 18 {
		return Attrs{"axis": 1}
	}
	return Attrs{"axis": 1, "num_outputs": 2}
}
