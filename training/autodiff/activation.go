package autodiff

import (
	"math"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	// (erf x)′ = 2/√π·e^(−x²)
	pointwise("Erf", func(g *onnx.Graph, x, _, dy *onnx.Value) *onnx.Value {
		return g.Mul(dy, g.Scale(g.Exp(g.Neg(g.Mul(x, x))), 2/math.Sqrt(math.Pi)))
	})
	// (tanh x)′ = 1 − y²
	pointwise("Tanh", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value {
		return g.Mul(dy, g.Sub(g.ConstLike(y, 1), g.Mul(y, y)))
	})
	// σ′ = y(1 − y)
	pointwise("Sigmoid", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value {
		return g.Mul(dy, g.Sub(y, g.Mul(y, y)))
	})
	// max(x, 0)′ = 1 where y > 0
	pointwise("Relu", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value {
		return g.Mul(dy, indicator(g, g.Op("Greater", nil, y, g.ConstLike(y, 0)), y))
	})
	// ln(1 + eˣ)′ = σ(x)
	pointwise("Softplus", func(g *onnx.Graph, x, _, dy *onnx.Value) *onnx.Value { return g.Mul(dy, g.Sigmoid(x)) })
	// (x/(1 + |x|))′ = (1 − |y|)²
	pointwise("Softsign", func(g *onnx.Graph, _, y, dy *onnx.Value) *onnx.Value {
		r := g.Sub(g.ConstLike(y, 1), g.Op("Abs", nil, y))
		return g.Mul(dy, g.Mul(r, r))
	})
	register(leakyRelu, "LeakyRelu")
	register(prelu, "PRelu")
	register(elu, "Elu", "Selu", "Celu")
	register(hardSigmoid, "HardSigmoid")
	register(hardSwish, "HardSwish")
	register(clip, "Clip")
	register(gelu, "Gelu", "com.microsoft:Gelu")
	register(swish, "Swish", "com.microsoft:QuickGelu")
}

// indicator returns 1 where a condition holds and 0 elsewhere, of the type of
// x. A product with it takes two thirds of the time of Where on the CPU.
func indicator(g *onnx.Graph, condition, x *onnx.Value) *onnx.Value {
	return g.Cast(condition, x.Type())
}

// between returns the condition low < x < high.
func between(g *onnx.Graph, x *onnx.Value, low, high float64) *onnx.Value {
	return g.Op("And", nil,
		g.Op("Greater", nil, x, g.ConstLike(x, low)),
		g.Op("Less", nil, x, g.ConstLike(x, high)))
}

// leakyRelu: dY where x > 0, alpha·dY elsewhere.
func leakyRelu(b *backward) {
	g, x := b.g, b.x(0)
	alpha := float64(b.node.Attrs.Float("alpha", 0.01))
	b.give(0, g.Op("Where", nil, g.Op("Greater", nil, x, g.ConstLike(x, 0)), b.dy(), g.Scale(b.dy(), alpha)))
}

// prelu: as LeakyRelu with a slope tensor; dSlope = Σ dY·x where x < 0.
func prelu(b *backward) {
	g, x := b.g, b.x(0)
	positive := g.Op("Greater", nil, x, g.ConstLike(x, 0))
	if b.wants(0) {
		b.give(0, g.Op("Where", nil, positive, b.dy(), g.Mul(b.dy(), b.x(1))))
	}
	if b.wants(1) {
		b.give(1, g.Op("Where", nil, positive, g.ConstLike(x, 0), g.Mul(b.dy(), x)))
	}
}

// elu: for x ≤ 0, y = s·a(e^(x/c) − 1), so y′ = (y + s·a)/c; for x > 0, y′ = s.
// Elu: s = c = 1; Selu: s = gamma, a = alpha, c = 1; Celu: a = c = alpha.
func elu(b *backward) {
	g, x, y := b.g, b.x(0), b.y(0)
	scale, a, c := 1.0, float64(b.node.Attrs.Float("alpha", 1)), 1.0
	switch b.node.OpType {
	case "Selu":
		a = float64(b.node.Attrs.Float("alpha", 1.67326319217681884765625))
		scale = float64(b.node.Attrs.Float("gamma", 1.05070102214813232421875))
	case "Celu":
		c = a
	}
	negative := g.Mul(b.dy(), g.Scale(g.Add(y, g.ConstLike(y, scale*a)), 1/c))
	positive := b.dy()
	if scale != 1 {
		positive = g.Scale(positive, scale)
	}
	b.give(0, g.Op("Where", nil, g.Op("Greater", nil, x, g.ConstLike(x, 0)), positive, negative))
}

// hardSigmoid: alpha·dY where 0 < y < 1.
func hardSigmoid(b *backward) {
	g, y := b.g, b.y(0)
	alpha := float64(b.node.Attrs.Float("alpha", 0.2))
	b.give(0, g.Mul(b.dy(), g.Scale(indicator(g, between(g, y, 0, 1), y), alpha)))
}

// hardSwish (HardSwish-14): y = x·clip(x/6 + 1/2, 0, 1), so y′ = x/3 + 1/2 inside
// (−3, 3), 1 above and 0 below: with h = clip(x/3 + 1/2, ...), no closed form of
// one clip exists because y′ leaves [0, 1] inside the interval.
func hardSwish(b *backward) {
	g, x := b.g, b.x(0)
	inside := g.Add(g.Scale(x, 1.0/3), g.ConstLike(x, 0.5))
	outside := g.Cast(g.Op("Greater", nil, x, g.ConstLike(x, 0)), x.Type())
	b.give(0, g.Mul(b.dy(), g.Op("Where", nil, between(g, x, -3, 3), inside, outside)))
}

// clip: dY where x lies in [min, max], bounds included.
func clip(b *backward) {
	g, x := b.g, b.x(0)
	var in *onnx.Value
	if low := b.x(1); low != nil {
		in = g.Op("GreaterOrEqual", nil, x, low)
	}
	if high := b.x(2); high != nil {
		below := g.Op("LessOrEqual", nil, x, high)
		if in == nil {
			in = below
		} else {
			in = g.Op("And", nil, in, below)
		}
	}
	if in == nil {
		b.give(0, b.dy())
		return
	}
	b.give(0, g.Mul(b.dy(), indicator(g, in, x)))
	if b.wants(1) || b.wants(2) {
		b.failf("the gradient with respect to the bounds is not supported")
	}
}

// gelu: exact or tanh-approximated (Gelu-20).
func gelu(b *backward) {
	if b.node.Attrs.String("approximate", "none") == "tanh" {
		b.give(0, geluTanhGradient(b.g, b.x(0), b.dy()))
		return
	}
	b.give(0, geluGradient(b.g, b.x(0), b.dy()))
}

// geluGradient: y = xΦ(x), y′ = Φ(x) + xφ(x), with u = x/√2:
// Φ = ½(1 + erf u) and xφ = u·e^(−u²)/√π. Φ is a HardSigmoid of erf u, because
// that is one pass over memory instead of two: it never leaves [0, 1].
func geluGradient(g *onnx.Graph, x, dy *onnx.Value) *onnx.Value {
	u := g.Scale(x, math.Sqrt2/2)
	cdf := g.Op("HardSigmoid", onnx.Attrs{"alpha": 0.5, "beta": 0.5}, g.Op("Erf", nil, u))
	pdf := g.Div(g.Scale(u, 1/math.Sqrt(math.Pi)), g.Exp(g.Mul(u, u)))
	return g.Mul(dy, g.Add(cdf, pdf))
}

// geluTanhGradient: with u = c(x + 0.044715x³), c = √(2/π) and t = tanh u:
// y′ = ½(1 + t) + ½x(1 − t²)·c(1 + 3·0.044715x²).
func geluTanhGradient(g *onnx.Graph, x, dy *onnx.Value) *onnx.Value {
	c := math.Sqrt(2 / math.Pi)
	one := g.ConstLike(x, 1)
	x2 := g.Mul(x, x)
	t := g.Op("Tanh", nil, g.Mul(x, g.Add(g.Scale(x2, c*0.044715), g.ConstLike(x, c))))
	slope := g.Add(g.Scale(x2, 3*c*0.044715), g.ConstLike(x, c))
	inner := g.Mul(g.Mul(x, slope), g.Sub(one, g.Mul(t, t)))
	return g.Mul(dy, g.Scale(g.Add(g.Add(t, one), inner), 0.5))
}

// swish: y = x·σ(αx) (Swish-24; QuickGelu, whose alpha is 1.702 by default).
func swish(b *backward) {
	g, x := b.g, b.x(0)
	alpha := float64(b.node.Attrs.Float("alpha", 1))
	if b.node.OpType == "QuickGelu" {
		alpha = float64(b.node.Attrs.Float("alpha", 1.702))
	}
	scaled := x
	if alpha != 1 {
		scaled = g.Scale(x, alpha)
	}
	b.give(0, siluGradient(g, g.Sigmoid(scaled), b.y(0), b.dy(), alpha))
}

// siluGradient: y = x·s with s = σ(αx), y′ = s + αy(1 − s).
func siluGradient(g *onnx.Graph, s, y, dy *onnx.Value, alpha float64) *onnx.Value {
	if alpha != 1 {
		y = g.Scale(y, alpha)
	}
	return g.Mul(dy, g.Sub(g.Add(s, y), g.Mul(y, s)))
}
