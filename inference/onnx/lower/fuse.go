package lower

import (
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
		scale == nil || scale.Type != onnx.Float || scale.Elements() != 1 || math.Abs(float64(scale.Float32s()[0])*math.Sqrt(float64(shape[3]))-1) > 1e-6 {
		return nil, 0, 0
	}
	return x.Producer(), shape[1], shape[2]
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
