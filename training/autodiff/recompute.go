package autodiff

import (
	"maps"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Recompute trades time for memory (gradient checkpointing, arXiv 1604.06174):
// the forward values inside a segment are not kept for the backward pass but
// computed again from what enters the segment, when its gradients are due. A
// segment is a run of consecutive nodes for which label returns the same
// non-empty string; a network of equal blocks, each a segment, then keeps one
// activation a block, for about a third more time.
//
//	autodiff.Recompute(func(node string) string { // "blocks.3/attn/MatMul"
//		block, _, _ := strings.Cut(node, "/")
//		return block
//	})
//
// Random operators are not repeated: their results are kept.
func Recompute(label func(node string) string) Option {
	return func(o *options) { o.segment = label }
}

// segments cuts the nodes into runs with one label.
func (t *tape) segments(label func(node string) string) (runs [][]*onnx.Node, labels []string) {
	for _, n := range t.g.Nodes() {
		l := ""
		if label != nil {
			l = label(n.Name)
		}
		if last := len(runs) - 1; last >= 0 && labels[last] == l {
			runs[last] = append(runs[last], n)
			continue
		}
		runs, labels = append(runs, []*onnx.Node{n}), append(labels, l)
	}
	return runs, labels
}

// random operators give other values each time.
var random = []string{
	"Dropout", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
}

// copies is a segment that is computed again.
type copies struct {
	nodes    map[*onnx.Node]*onnx.Node
	values   map[*onnx.Value]*onnx.Value
	barriers map[*onnx.Value]*onnx.Value // of what enters the segment
	entered  []*onnx.Value               // the keys of barriers, in order
}

// repeat appends copies of a segment's nodes. What enters the segment passes a
// barrier that waits for a gradient: without it the copies would run beside the
// originals, or be merged with them by the runtime.
func (t *tape) repeat(nodes []*onnx.Node) *copies {
	defer t.g.Scope("again")()
	c := &copies{
		nodes:    map[*onnx.Node]*onnx.Node{},
		values:   map[*onnx.Value]*onnx.Value{},
		barriers: map[*onnx.Value]*onnx.Value{},
	}
	inside := map[*onnx.Value]bool{}
	var due *onnx.Value
	for _, n := range nodes {
		for _, v := range n.Outputs {
			inside[v] = true
			if len(t.grads[v]) > 0 {
				due = t.gradient(v)
			}
		}
	}
	zero := t.g.Scale(t.g.At(reshapeTo(t.g, due, []int{due.Elements()}), 0, 0), 0)
	for _, n := range nodes {
		if slices.Contains(random, n.OpType) || len(n.Reads()) != len(present(n.Inputs)) {
			continue
		}
		in := make([]*onnx.Value, len(n.Inputs))
		for i, v := range n.Inputs {
			in[i] = t.entering(c, v, inside, zero)
		}
		out := t.g.OpN(key(n), len(n.Outputs), n.Attrs, in...)
		if t.g.Err() != nil {
			return c
		}
		c.nodes[n] = out[0].Producer()
		for i, v := range n.Outputs {
			c.values[v] = out[i]
			t.active[out[i]] = t.active[v]
			t.uses[out[i]] = t.uses[v]
		}
	}
	return c
}

// entering returns what a copy reads in place of v.
func (t *tape) entering(c *copies, v *onnx.Value, inside map[*onnx.Value]bool, zero *onnx.Value) *onnx.Value {
	switch {
	case v == nil || c.values[v] != nil:
		return c.values[v]
	case inside[v] || v.Producer() == nil || v.Const() != nil || v.Type() != zero.Type():
		return v // kept, or no activation
	case c.barriers[v] == nil:
		c.barriers[v] = t.g.Add(v, zero)
		c.entered = append(c.entered, v)
		t.active[c.barriers[v]] = t.active[v]
		t.uses[c.barriers[v]] = t.uses[v]
	}
	return c.barriers[v]
}

func present(in []*onnx.Value) []*onnx.Value {
	return slices.DeleteFunc(slices.Clone(in), func(v *onnx.Value) bool { return v == nil })
}

// move adds the gradient contributions of one value to another's.
func (t *tape) move(from, to *onnx.Value) {
	t.grads[to] = append(t.grads[to], t.grads[from]...)
	delete(t.grads, from)
}

// runAgain differentiates a segment through its copies.
func (t *tape) runAgain(nodes []*onnx.Node) error {
	c := t.repeat(nodes)
	if err := t.g.Err(); err != nil {
		return err
	}
	again := make([]*onnx.Node, 0, len(nodes))
	for _, n := range nodes {
		if r := c.nodes[n]; r != nil {
			n = r
		}
		again = append(again, n)
	}
	maps.Copy(t.fused, t.findPatterns(again))
	for i, n := range slices.Backward(nodes) {
		if c.nodes[n] != nil {
			for _, v := range n.Outputs {
				t.move(v, c.values[v])
			}
		}
		if err := t.step(again[i]); err != nil {
			return err
		}
	}
	for _, v := range c.entered {
		t.move(c.barriers[v], v)
	}
	return nil
}
