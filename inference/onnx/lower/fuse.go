package lower

import (
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// selfAttention returns the product that makes queries, keys and values side by side, of
// so many tokens and heads, where n puts side by side again what the heads of
// softmax(Q·Kᵀ/√d)·V give; nil where it does not.
func selfAttention(n *onnx.Node) (of *onnx.Node, tokens, heads int) {
	if n.OpType != "Reshape" || n.Domain != "" {
		return nil, 0, 0
	}
	values := made(made(n, 0, "Transpose", 0, 2, 1, 3), 0, "MatMul")
	p := made(values, 0, "Softmax")
	logits := made(p, 0, "MatMul")
	scaled := made(logits, 0, "Mul")
	var split *onnx.Node
	var shape []int // [N, tokens, heads, d]
	for i, from := range []*onnx.Node{
		made(scaled, 0, "Transpose", 0, 2, 1, 3), made(logits, 1, "Transpose", 0, 2, 3, 1), made(values, 1, "Transpose", 0, 2, 1, 3),
	} {
		of := made(from, 0, "Reshape")
		s := made(of, 0, "Split")
		if s == nil || len(s.Outputs) != 3 || of.Inputs[0] != s.Outputs[i] || i > 0 && (s != split || !slices.Equal(from.Inputs[0].Shape(), shape)) {
			return nil, 0, 0
		}
		split, shape = s, from.Inputs[0].Shape()
	}
	x, scale := split.Inputs[0], scaled.Input(1).Const()
	if x.Rank() != 2 || split.Attrs.Int("axis", 0) != 1 || split.Outputs[0].Dim(1)*3 != x.Dim(1) || len(shape) != 4 || shape[2]*shape[3]*3 != x.Dim(1) ||
		!slices.Equal(n.Outputs[0].Shape(), split.Outputs[0].Shape()) || p.Attrs.Int("axis", -1) != -1 ||
		scale == nil || scale.Elements() != 1 || math.Abs(float64(scale.Float32s()[0])*math.Sqrt(float64(shape[3]))-1) > 1e-6 {
		return nil, 0, 0
	}
	return x.Producer(), shape[1], shape[2]
}

// normaliseSums computes the layer normalisation of a sum, by scales and biases that are
// weights, together with the sum.
func normaliseSums(g *onnx.Graph, allowed func(*onnx.Node) bool) error {
	norms, results := map[*onnx.Node]*onnx.Node{}, map[*onnx.Node]*onnx.Value{} // by sum; by norm
	for _, n := range g.Live() {
		if !rewritable(n) || slices.ContainsFunc(n.Inputs[1:], func(v *onnx.Value) bool { return v == nil || !v.IsInitializer() || v.Rank() != 1 }) {
			continue
		}
		x := n.Inputs[0]
		if sum := made(n, 0, "Add"); sum != nil && sum.Graph() == g && allowed(sum) && x.Rank() <= 3 && norms[sum] == nil &&
			slices.Equal(sum.Inputs[0].Shape(), x.Shape()) && slices.Equal(sum.Inputs[1].Shape(), x.Shape()) {
			norms[sum] = n
		}
	}
	_, err := replaceEach(g, func(n *onnx.Node) func() []*onnx.Value {
		if norm := norms[n]; norm != nil {
			return func() []*onnx.Value {
				out := g.OpN(onnx.Microsoft+":SkipLayerNormalization", 4, onnx.Attrs{"epsilon": norm.Attrs.Float("epsilon", 1e-5)},
					append(slices.Clone(n.Inputs), norm.Inputs[1:]...)...)
				results[norm] = out[0]
				return out[3:]
			}
		}
		if y := results[n]; y != nil {
			return func() []*onnx.Value { return []*onnx.Value{y} }
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("normalise sums: %w", err)
	}
	return nil
}

// made returns the node that makes input i of n if it is of that operator, and if it
// permutes, in that order; nil otherwise or where n is.
func made(n *onnx.Node, i int, op string, perm ...int) *onnx.Node {
	if n == nil || n.Input(i) == nil {
		return nil
	}
	m := n.Input(i).Producer()
	if m == nil || m.Domain != "" || m.OpType != op || len(perm) > 0 && !slices.Equal(m.Attrs.Ints("perm"), perm) {
		return nil
	}
	return m
}
