package autodiff

import (
	"math"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(func(b *backward) { b.give(0, b.dy()) }, "Identity")
	register(func(*backward) {}, "Floor", "Ceil", "Round", "Sign")
	register(add, "Add", "Sum")
	register(sub, "Sub")
	register(mul, "Mul")
	register(div, "Div")
	register(pow, "Pow")
	register(mean, "Mean")
	register(extremum, "Min", "Max")
	register(where, "Where")
	register(cast, "Cast", "CastLike")
	register(dropout, "Dropout")
	register(abs, "Abs")

	pointwise("Neg", func(g *onnx.Graph, _, _, dy *onnx.Value) *onnx.Value { return g.Neg(dy) })
	// (eˣ)′ = eˣ
	pointwise("Exp", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value { return g.Mul(dy, y) })
	// (ln x)′ = 1/x
	pointwise("Log", func(g *onnx.Graph, x, _, dy *onnx.Value) *onnx.Value { return g.Div(dy, x) })
	// (√x)′ = 1/(2√x)
	pointwise("Sqrt", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value { return g.Div(g.Scale(dy, 0.5), y) })
	// (1/x)′ = −1/x²
	pointwise("Reciprocal", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value {
		return g.Neg(g.Mul(dy, g.Mul(y, y)))
	})
	pointwise("Sin", func(g *onnx.Graph, x, _, dy *onnx.Value) *onnx.Value { return g.Mul(dy, g.Op("Cos", nil, x)) })
	pointwise("Cos", func(g *onnx.Graph, x, _, dy *onnx.Value) *onnx.Value {
		return g.Neg(g.Mul(dy, g.Op("Sin", nil, x)))
	})
	// (tan x)′ = 1 + tan² x
	pointwise("Tan", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value { return g.Add(dy, g.Mul(dy, g.Mul(y, y))) })
	// (arctan x)′ = 1/(1 + x²)
	pointwise("Atan", func(g *onnx.Graph, x, _, dy *onnx.Value) *onnx.Value {
		return g.Div(dy, g.Add(g.Mul(x, x), g.ConstLike(x, 1)))
	})
}

// pointwise registers a rule for an operator of one input whose gradient has
// the same shape.
func pointwise(op string, f func(g *onnx.Graph, x, y, dy *onnx.Value) *onnx.Value) {
	register(func(b *backward) { b.give(0, f(b.g, b.x(0), b.y(0), b.dy())) }, op)
}

// add: dA = dB = dY.
func add(b *backward) {
	for i := range b.node.Inputs {
		b.give(i, b.dy())
	}
}

// sub: dA = dY, dB = −dY.
func sub(b *backward) {
	b.give(0, b.dy())
	if b.wants(1) {
		b.add(b.x(1), b.g.Neg(b.unbroadcast(b.dy(), b.x(1).Shape())))
	}
}

// mul: dA = dY·B, dB = dY·A.
func mul(b *backward) {
	if b.x(0) == b.x(1) {
		b.give(0, b.g.Mul(b.g.Scale(b.dy(), 2), b.x(0)))
		return
	}
	if b.wants(0) {
		b.give(0, b.productSummed(b.dy(), b.x(1), b.x(0).Shape()))
	}
	if b.wants(1) {
		b.give(1, b.productSummed(b.dy(), b.x(0), b.x(1).Shape()))
	}
}

// productSummed returns dY·v, to be summed to a shape. A factor that does not
// vary along the summed axes is applied after the sum, where that is all.
func (b *backward) productSummed(dy, v *onnx.Value, shape []int) *onnx.Value {
	if v.Elements() == 1 && v.Rank() <= len(shape) {
		return b.g.Mul(b.unbroadcast(dy, shape), v)
	}
	return b.g.Mul(dy, v)
}

// div: dA = dY/B, dB = −dY·Y/B.
func div(b *backward) {
	if b.x(0) == b.x(1) {
		return // Y = 1
	}
	if b.wants(0) {
		b.give(0, b.g.Div(b.dy(), b.x(1)))
	}
	if b.wants(1) {
		if b.x(1).Elements() == 1 {
			s := b.unbroadcast(b.g.Mul(b.dy(), b.y(0)), b.x(1).Shape())
			b.add(b.x(1), b.g.Neg(b.g.Div(s, b.x(1))))
			return
		}
		b.give(1, b.g.Neg(b.g.Div(b.g.Mul(b.dy(), b.y(0)), b.x(1))))
	}
}

// pow: dX = dY·c·X^(c−1); dC = dY·Y·ln X, for X > 0.
func pow(b *backward) {
	x, c := b.x(0), b.x(1)
	g := b.g
	if b.wants(0) {
		known := math.NaN()
		if t := c.Const(); t != nil && t.Elements() == 1 && !b.active[c] {
			known = t.Float64s()[0]
		}
		switch {
		case known == 1:
			b.give(0, b.dy())
		case known == 2:
			b.give(0, g.Mul(g.Scale(b.dy(), 2), x))
		case known == 0.5:
			b.give(0, g.Div(g.Scale(b.dy(), 0.5), b.y(0)))
		case !math.IsNaN(known):
			p := g.Op("Pow", nil, x, g.ConstLike(x, known-1))
			b.give(0, g.Mul(g.Scale(b.dy(), known), p))
		default:
			c = g.Cast(c, x.Type())
			p := g.Op("Pow", nil, x, g.Sub(c, g.ConstLike(c, 1)))
			b.give(0, g.Mul(b.dy(), g.Mul(c, p)))
		}
	}
	if b.wants(1) {
		d := g.Mul(b.dy(), g.Mul(b.y(0), g.Log(x)))
		b.give(1, g.Cast(d, b.x(1).Type()))
	}
}

// mean: each of n inputs gets dY/n.
func mean(b *backward) {
	d := b.g.Scale(b.dy(), 1/float64(len(b.node.Inputs)))
	for i := range b.node.Inputs {
		b.give(i, d)
	}
}

// extremum: dY goes to the inputs that are equal to Y; ties share it equally.
func extremum(b *backward) {
	g, y := b.g, b.y(0)
	if len(b.node.Inputs) == 1 {
		b.give(0, b.dy())
		return
	}
	masks := make([]*onnx.Value, len(b.node.Inputs))
	var ties *onnx.Value
	for i, x := range b.node.Inputs {
		masks[i] = g.Cast(g.Op("Equal", nil, x, y), y.Type())
		if ties == nil {
			ties = masks[i]
		} else {
			ties = g.Add(ties, masks[i])
		}
	}
	share := g.Div(b.dy(), ties)
	for i := range b.node.Inputs {
		if b.wants(i) {
			b.give(i, g.Mul(share, masks[i]))
		}
	}
}

// where: dA = dY where the condition holds, dB = dY where it does not.
func where(b *backward) {
	zero := b.g.ConstLike(b.y(0), 0)
	if b.wants(1) {
		b.give(1, b.g.Op("Where", nil, b.x(0), b.dy(), zero))
	}
	if b.wants(2) {
		b.give(2, b.g.Op("Where", nil, b.x(0), zero, b.dy()))
	}
}

// cast: the gradient is cast back.
func cast(b *backward) {
	if b.wants(0) {
		b.give(0, b.g.Cast(b.dy(), b.x(0).Type()))
	}
}

// dropout: outside training it is the identity; in training dX = dY·mask/(1−p),
// with the mask that the node drew (Dropout-13, output 1).
func dropout(b *backward) {
	mode := b.x(2)
	if mode == nil || mode.Const() != nil && mode.Const().Ints()[0] == 0 {
		b.give(0, b.dy())
		return
	}
	if mode.Const() == nil {
		b.failf("training_mode is not a constant")
		return
	}
	g, x := b.g, b.x(0)
	keep := g.ConstLike(x, 0.5)
	if p := b.x(1); p != nil {
		keep = g.Sub(g.ConstLike(x, 1), g.Cast(p, x.Type()))
	}
	mask := g.Cast(g.Extend(b.node, 2)[1], x.Type())
	b.give(0, g.Mul(b.dy(), g.Div(mask, keep)))
}

// abs: dX = dY·sign(X).
func abs(b *backward) { b.give(0, b.g.Mul(b.dy(), b.g.Op("Sign", nil, b.x(0)))) }
