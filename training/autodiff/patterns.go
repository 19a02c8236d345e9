package autodiff

import (
	"math"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Exporters write some activations as several nodes. Differentiated one by one
// they take twice the passes over memory that their own formula takes, so they
// are recognised by their last node. Inner nodes must have no other use.

// findPatterns returns a rule for the last node of every recognised pattern
// among nodes.
func (t *tape) findPatterns(nodes []*onnx.Node) map[*onnx.Node]rule {
	found := map[*onnx.Node]rule{}
	for _, n := range nodes {
		if n.OpType != "Mul" || n.Domain != "" {
			continue
		}
		if x := t.matchGelu(n); x != nil && t.active[x] {
			found[n] = func(b *backward) {
				b.add(x, geluGradient(b.g, x, b.dy()))
			}
		} else if x, s := t.matchSiLU(n); x != nil && t.active[x] {
			found[n] = func(b *backward) {
				b.add(x, siluGradient(b.g, s, b.y(0), b.dy(), 1))
			}
		}
	}
	return found
}

// inner returns the node of an operator that computes v, when v has one use.
func (t *tape) inner(v *onnx.Value, op string) *onnx.Node {
	if v == nil || t.uses[v] != 1 {
		return nil
	}
	if n := v.Producer(); n != nil && n.OpType == op && n.Domain == "" && n.Graph() == t.g {
		return n
	}
	return nil
}

// scalar reports whether v is the known number f, to float precision.
func scalar(v *onnx.Value, f float64) bool {
	if v == nil || v.Const() == nil || v.Elements() != 1 {
		return false
	}
	s := v.Const().Float64s()
	return len(s) == 1 && math.Abs(s[0]-f) <= 1e-5*math.Abs(f)
}

// other returns the second operand of a commutative node with a known number
// as its first, either way round.
func other(n *onnx.Node, f float64) *onnx.Value {
	if scalar(n.Input(1), f) {
		return n.Input(0)
	}
	if scalar(n.Input(0), f) {
		return n.Input(1)
	}
	return nil
}

// matchGelu recognises the forms of x·½(1 + erf(x/√2)):
// (x·(1+e))·½, (½x)·(1+e) and x·(½(1+e)). It returns x.
func (t *tape) matchGelu(n *onnx.Node) *onnx.Value {
	if m := t.inner(other(n, 0.5), "Mul"); m != nil {
		for i := range 2 {
			if x := t.matchOnePlusErf(m.Input(1 - i)); x != nil && x == m.Input(i) {
				return x
			}
		}
	}
	for i := range 2 {
		if x := t.matchOnePlusErf(n.Input(1 - i)); x != nil {
			if half := t.inner(n.Input(i), "Mul"); half != nil && other(half, 0.5) == x {
				return x
			}
		}
		if half := t.inner(n.Input(1-i), "Mul"); half != nil {
			if x := t.matchOnePlusErf(other(half, 0.5)); x != nil && x == n.Input(i) {
				return x
			}
		}
	}
	return nil
}

// matchOnePlusErf returns x of 1 + erf(x/√2).
func (t *tape) matchOnePlusErf(v *onnx.Value) *onnx.Value {
	sum := t.inner(v, "Add")
	if sum == nil {
		return nil
	}
	erf := t.inner(other(sum, 1), "Erf")
	if erf == nil {
		return nil
	}
	if d := t.inner(erf.Input(0), "Div"); d != nil && scalar(d.Input(1), math.Sqrt2) {
		return d.Input(0)
	}
	if m := t.inner(erf.Input(0), "Mul"); m != nil {
		return other(m, math.Sqrt2/2)
	}
	return nil
}

// matchSiLU recognises x·σ(x) and returns x and σ(x).
func (t *tape) matchSiLU(n *onnx.Node) (x, s *onnx.Value) {
	for i := range 2 {
		if sigmoid := t.inner(n.Input(i), "Sigmoid"); sigmoid != nil && sigmoid.Input(0) == n.Input(1-i) {
			return n.Input(1 - i), n.Input(i)
		}
	}
	return nil, nil
}
