package autodiff

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(softmax, "Softmax")
	register(logSoftmax, "LogSoftmax")
	register(layerNorm, "LayerNormalization")
	register(instanceNorm, "InstanceNormalization")
	register(batchNorm, "BatchNormalization")
}

// softmax: dX = Y·(dY − Σ dY·Y) over the axis. Where Y = P only goes into a
// product O = P·V, Σ dP·P = Σ dO·O, which is a sum over fewer elements
// (FlashAttention, arXiv 2205.14135, appendix B.2).
func softmax(b *backward) {
	g, y, dy := b.g, b.y(0), b.dy()
	axis := b.node.Attrs.Int("axis", -1)
	row := b.attentionRowSum(axis)
	if row == nil {
		row = g.ReduceSum(g.Mul(dy, y), true, axis)
	}
	b.give(0, g.Mul(y, g.Sub(dy, row)))
}

// attentionRowSum returns Σ dO·O over the last axis when the only use of a
// softmax over the last axis is a matrix product with something that is not
// wider.
func (b *backward) attentionRowSum(axis int) *onnx.Value {
	y := b.y(0)
	if axis != -1 && axis != y.Rank()-1 || b.uses[y] != 1 {
		return nil
	}
	for _, n := range b.g.Nodes() {
		if n.OpType != "MatMul" || n.Input(0) != y || n.Input(1).Rank() != y.Rank() {
			continue
		}
		o := n.Outputs[0]
		d := b.gradient(o)
		if d == nil || o.Dim(-1) > y.Dim(-1) {
			return nil
		}
		for i := range y.Rank() - 1 {
			if o.Dim(i) != y.Dim(i) {
				return nil // P was broadcast
			}
		}
		return b.g.ReduceSum(b.g.Mul(d, o), true, -1)
	}
	return nil
}

// logSoftmax: dX = dY − e^Y·Σ dY over the axis.
func logSoftmax(b *backward) {
	g := b.g
	sum := g.ReduceSum(b.dy(), true, b.node.Attrs.Int("axis", -1))
	b.give(0, g.Sub(b.dy(), g.Mul(g.Exp(b.y(0)), sum)))
}

// layerNorm: Y = γ·x̂ + β with x̂ = (X − m)·r. With g = dY·γ:
// dX = r·(g − mean g − x̂·mean(g·x̂)), dγ = Σ dY·x̂, dβ = Σ dY (layer
// normalisation, arXiv 1607.06450; LayerNormalization-17 gives m and r as
// outputs 1 and 2).
//
// x̂ is never formed. All sums over rows or columns are products of matrices
// with vectors, because these read memory once and write next to nothing:
// with Q = dY·X, s = Q·γ and t = dY·γ (one number a row, n columns)
//
//	mean g      = t/n
//	mean(g·x̂)   = r(s − m·t)/n  =: c
//	dγ          = Σ rows r·Q − Σ rows m·r·dY
//	dX          = r·dY·γ − X·r²·c − (r·t/n − m·r²·c)
func layerNorm(b *backward) {
	x, gamma := b.x(0), b.x(1)
	axis := b.node.Attrs.Int("axis", -1)
	if axis < 0 {
		axis += x.Rank()
	}
	rows, n := onnx.Elements(x.Shape()[:axis]), onnx.Elements(x.Shape()[axis:])
	if gamma.Elements() != n || b.x(2) != nil && b.x(2).Elements() != n {
		b.failf("scale and bias must have the %d elements of the normalised dimensions", n)
		return
	}
	g := b.g
	stats := g.Extend(b.node, 3)
	dy := b.reshape(b.dy(), []int{rows, n})
	column := []int{rows, 1}
	m := b.reshape(g.Cast(stats[1], x.Type()), column)
	r := b.reshape(g.Cast(stats[2], x.Type()), column)
	if b.wants(2) {
		b.give(2, b.reshape(sumRows(g, dy), b.x(2).Shape()))
	}
	if !b.wants(0) && !b.wants(1) {
		return
	}
	xm := b.reshape(x, []int{rows, n})
	q := g.Mul(dy, xm)
	if b.wants(1) {
		scaled := g.Gemm(r, q, nil, onnx.Attrs{"transA": 1})
		shifted := g.Gemm(g.Mul(m, r), dy, nil, onnx.Attrs{"transA": 1})
		b.give(1, b.reshape(g.Sub(scaled, shifted), gamma.Shape()))
	}
	if !b.wants(0) {
		return
	}
	vector := b.reshape(gamma, []int{n, 1})
	s, t := g.MatMul(q, vector), g.MatMul(dy, vector)
	c := g.Scale(g.Mul(r, g.Sub(s, g.Mul(m, t))), 1/float64(n))
	slope := g.Mul(g.Mul(r, r), c)
	offset := g.Sub(g.Scale(g.Mul(r, t), 1/float64(n)), g.Mul(m, slope))
	first := g.Mul(g.Mul(dy, b.reshape(gamma, []int{1, n})), r)
	d := g.Sub(first, g.Add(g.Mul(xm, slope), offset))
	b.give(0, b.reshape(d, x.Shape()))
}

// sumRows adds the rows of a matrix [rows, n] to [1, n].
func sumRows(g *onnx.Graph, v *onnx.Value) *onnx.Value { return g.ReduceSum(v, true, 0) }

// instanceNorm: as layer normalisation over the spatial dimensions of every
// channel, with scale and bias by channel (arXiv 1607.08022):
// dX = r·(g − mean g − x̂·mean(g·x̂)) with g = dY·γ.
//
// The operator does not give its statistics. Where the scale is 1 and the bias
// 0, as in group and layer normalisations composed of it, Y itself is x̂, and
// r follows from it: q = mean(X·x̂) = r·σ² = 1/r − ε·r, so r = 2/(q + √(q² + 4ε)).
func instanceNorm(b *backward) {
	g, x, gamma := b.g, b.x(0), b.x(1)
	spatial := onnx.Axes(2, x.Rank())
	all := append([]int{0}, spatial...)
	epsilon := float64(b.node.Attrs.Float("epsilon", 1e-5))
	dy := b.dy()
	if isFilledWith(gamma, 1) && isFilledWith(b.x(2), 0) && !b.wants(1) && !b.wants(2) {
		normal := b.y(0)
		q := g.ReduceMean(g.Mul(x, normal), true, spatial...)
		root := g.Sqrt(g.Add(g.Mul(q, q), g.ConstLike(x, 4*epsilon)))
		r := g.Div(g.ConstLike(x, 2), g.Add(q, root))
		b.give(0, b.normalized(dy, normal, g.Mul(dy, normal), r, spatial))
		return
	}
	channel := onnx.PerChannel(x.Dim(1), x.Rank())
	centred := g.Sub(x, g.ReduceMean(x, true, spatial...))
	count := float64(x.Elements()) / float64(max(x.Dim(0)*x.Dim(1), 1))
	variance := g.Scale(g.Reduce("ReduceSumSquare", centred, true, spatial...), 1/count)
	r := g.Op("Reciprocal", nil, g.Sqrt(g.Add(variance, g.ConstLike(x, epsilon))))
	normal := g.Mul(centred, r)
	product := g.Mul(dy, normal)
	if b.wants(1) {
		b.give(1, g.ReduceSum(product, false, all...))
	}
	if b.wants(2) {
		b.give(2, g.ReduceSum(dy, false, all...))
	}
	if b.wants(0) {
		b.give(0, b.normalized(dy, normal, product, g.Mul(r, b.reshape(gamma, channel)), spatial))
	}
}

// normalized returns r·(d − mean d − x̂·mean(product)), where product is d·x̂.
func (b *backward) normalized(d, normal, product, r *onnx.Value, axes []int) *onnx.Value {
	g := b.g
	inner := g.Add(g.Mul(normal, g.ReduceMean(product, true, axes...)), g.ReduceMean(d, true, axes...))
	return g.Mul(g.Sub(d, inner), r)
}

// isFilledWith reports whether v is known and all its elements are equal to f.
func isFilledWith(v *onnx.Value, f float64) bool {
	if v == nil || v.Const() == nil || v.Elements() > 1<<16 {
		return false
	}
	return !slices.ContainsFunc(v.Const().Float64s(), func(x float64) bool { return x != f })
}

// batchNorm with frozen statistics: Y = γ(X − μ)·s + β with s = 1/√(σ² + ε):
// dX = dY·γ·s, dγ = s·(Σ dY·X − μ·Σ dY), dβ = Σ dY.
func batchNorm(b *backward) {
	if b.node.Attrs.Int("training_mode", 0) != 0 {
		b.failf("batch statistics are not differentiated: freeze them")
		return
	}
	g, x := b.g, b.x(0)
	others, channel := append([]int{0}, onnx.Axes(2, x.Rank())...), onnx.PerChannel(x.Dim(1), x.Rank())
	epsilon := float64(b.node.Attrs.Float("epsilon", 1e-5))
	s := g.Op("Reciprocal", nil, g.Sqrt(g.Add(b.x(4), g.ConstLike(b.x(4), epsilon))))
	if b.wants(0) {
		b.give(0, g.Mul(b.dy(), b.reshape(g.Mul(b.x(1), s), channel)))
	}
	if !b.wants(1) && !b.wants(2) {
		return
	}
	sum := g.ReduceSum(b.dy(), false, others...)
	b.give(2, sum)
	if b.wants(1) {
		with := g.ReduceSum(g.Mul(b.dy(), x), false, others...)
		b.give(1, g.Mul(s, g.Sub(with, g.Mul(b.x(3), sum))))
	}
	if b.wants(3) || b.wants(4) {
		b.failf("the statistics are frozen: they have no gradient")
	}
}
