package autodiff

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(reduce, "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
		"ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
	register(cumSum, "CumSum")
	register(topK, "TopK")
}

// reduce: Y and dY are seen with the reduced axes kept as 1, so that they
// broadcast against X.
//
//	Sum: dY; Mean: dY/n; Max and Min: dY where X = Y, shared between ties;
//	L1: dY·sign X; L2: dY·X/Y, 0 where Y = 0; SumSquare: 2·dY·X;
//	LogSum: dY·e^(−Y); LogSumExp: dY·e^(X−Y)
func reduce(b *backward) {
	g, x := b.g, b.x(0)
	axes, _ := onnx.ReducedAxes(b.node)
	kept := slices.Clone(x.Shape())
	n := 1
	for _, a := range axes {
		n *= kept[a]
		kept[a] = 1
	}
	dy, y := b.reshape(b.dy(), kept), b.reshape(b.y(0), kept)
	switch b.node.OpType {
	case "ReduceMean":
		b.give(0, b.expand(g.Scale(dy, 1/float64(n)), x.Shape()))
	case "ReduceSum":
		b.give(0, b.expand(dy, x.Shape()))
	case "ReduceMax", "ReduceMin":
		b.give(0, b.toExtremum(y, dy, axes))
	case "ReduceL1":
		b.give(0, g.Mul(g.Op("Sign", nil, x), dy))
	case "ReduceL2":
		zero := g.ConstLike(y, 0)
		none := g.Op("Equal", nil, y, zero)
		share := g.Op("Where", nil, none, zero, g.Div(dy, g.Op("Where", nil, none, g.ConstLike(y, 1), y)))
		b.give(0, g.Mul(x, share))
	case "ReduceSumSquare":
		b.give(0, g.Mul(x, g.Scale(dy, 2)))
	case "ReduceLogSum":
		b.give(0, b.expand(g.Mul(dy, g.Exp(g.Neg(y))), x.Shape()))
	case "ReduceLogSumExp":
		b.give(0, g.Mul(g.Exp(g.Sub(x, y)), dy))
	}
}

func (b *backward) expand(v *onnx.Value, shape []int) *onnx.Value {
	if slices.Equal(v.Shape(), shape) {
		return v
	}
	return b.g.Expand(v, shape...)
}

// cumSum: the sum from the other end (CumSum-14).
func cumSum(b *backward) {
	a := b.node.Attrs
	b.give(0, b.g.Op("CumSum", onnx.Attrs{
		"exclusive": a.Int("exclusive", 0), "reverse": 1 - a.Int("reverse", 0),
	}, b.dy(), b.x(1)))
}

// topK: dY goes back to where the values came from; indices do not repeat.
func topK(b *backward) {
	x := b.x(0)
	zeros := b.g.Filled(x.Type(), 0, x.Shape()...)
	indices := b.g.Extend(b.node, 2)[1]
	b.give(0, b.g.Op("ScatterElements", onnx.Attrs{"axis": b.node.Attrs.Int("axis", -1)}, zeros, indices, b.dy()))
}
