package autodiff

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// decompositions replace operators that have no rule of their own, or no kernel
// on CUDA, by ones that have.
var decompositions = map[string]func(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error){
	"Attention":                        attention,
	"com.microsoft:MultiHeadAttention": multiHeadAttention,
	"GroupNormalization":               groupNorm,
	"RMSNormalization":                 rmsNorm,
	"SoftmaxCrossEntropyLoss":          crossEntropy,
	"NegativeLogLikelihoodLoss":        likelihoodLoss,
	"Mish":                             mish,
}

// decomposeNode replaces n unless its operator may stay.
func decomposeNode(g *onnx.Graph, n *onnx.Node) error {
	f := decompositions[key(n)]
	if f == nil {
		return nil
	}
	var failed error
	err := g.Replace(n, func() []*onnx.Value {
		defer g.Scope(n.Name)()
		var with []*onnx.Value
		with, failed = f(g, n)
		return with
	})
	if failed != nil {
		return fmt.Errorf("%s: %w", n, failed)
	}
	return err
}

// decompose decomposes the nodes that depend on the parameters.
func (t *tape) decompose(params []*onnx.Value) error {
	active := reachable(t.g, params)
	for _, n := range slices.Clone(t.g.Nodes()) {
		if !slices.ContainsFunc(n.Outputs, func(v *onnx.Value) bool { return active[v] }) {
			continue
		}
		if err := decomposeNode(t.g, n); err != nil {
			return err
		}
	}
	return nil
}

// attention (Attention-23): softmax(Q·Kᵀ·scale + mask)·V for each head.
// Operands are [N, heads, L, D] or [N, L, heads·D].
func attention(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	a := n.Attrs
	if a.Float("softcap", 0) != 0 || a.Has("qk_matmul_output_mode") && a.Int("qk_matmul_output_mode", 0) != 0 || len(n.Outputs) > 1 {
		return nil, fmt.Errorf("softcap and further outputs are not supported")
	}
	q, k, v := n.Input(0), n.Input(1), n.Input(2)
	heads, kvHeads := a.Int("q_num_heads", 0), a.Int("kv_num_heads", 0)
	flat := q.Rank() == 3
	if flat {
		q, k, v = splitHeads(g, q, heads), splitHeads(g, k, kvHeads), splitHeads(g, v, kvHeads)
	}
	if k.Dim(1) != q.Dim(1) {
		k, v = repeatHeads(g, k, q.Dim(1)), repeatHeads(g, v, q.Dim(1))
	}
	scale := cmp.Or(float64(a.Float("scale", 0)), 1/math.Sqrt(float64(q.Dim(3))))
	mask := n.Input(3)
	if mask != nil && mask.Type() == onnx.Bool {
		mask = g.Op("Where", nil, mask, g.ConstLike(q, 0), g.ConstLike(q, math.Inf(-1)))
	}
	if a.Int("is_causal", 0) != 0 {
		causal := causalMask(g, q.Type(), q.Dim(2), k.Dim(2))
		if mask == nil {
			mask = causal
		} else {
			mask = g.Add(mask, causal)
		}
	}
	o := scaledDotProduct(g, q, k, v, mask, scale)
	if flat {
		o = g.Reshape(g.Transpose(o, 0, 2, 1, 3), o.Dim(0), o.Dim(2), o.Dim(1)*o.Dim(3))
	}
	return []*onnx.Value{o}, nil
}

// scaledDotProduct scales the smaller of the factors: the query.
func scaledDotProduct(g *onnx.Graph, q, k, v, mask *onnx.Value, scale float64) *onnx.Value {
	s := g.MatMul(g.Scale(q, scale), g.Transpose(k, 0, 1, 3, 2))
	if mask != nil {
		s = g.Add(s, mask)
	}
	return g.MatMul(g.Softmax(s, -1), v)
}

func splitHeads(g *onnx.Graph, v *onnx.Value, heads int) *onnx.Value {
	return g.Transpose(g.Reshape(v, v.Dim(0), v.Dim(1), heads, v.Dim(2)/heads), 0, 2, 1, 3)
}

// repeatHeads gives grouped-query attention one key or value head for each
// query head.
func repeatHeads(g *onnx.Graph, v *onnx.Value, heads int) *onnx.Value {
	n, kv, l, d := v.Dim(0), v.Dim(1), v.Dim(2), v.Dim(3)
	v = g.Expand(g.Reshape(v, n, kv, 1, l, d), n, kv, heads/kv, l, d)
	return g.Reshape(v, n, heads, l, d)
}

// causalMask lets query i see the keys up to i.
func causalMask(g *onnx.Graph, t onnx.DataType, queries, keys int) *onnx.Value {
	above := g.Op("Trilu", onnx.Attrs{"upper": 1}, g.Filled(onnx.Float, 1, queries, keys), g.Const(onnx.Int64, 1))
	hidden := g.Op("Greater", nil, above, g.Const(onnx.Float, 0))
	return g.Op("Where", nil, hidden, g.Const(t, math.Inf(-1)), g.Const(t, 0))
}

// multiHeadAttention is ONNX Runtime's operator in its plain form: query, key
// and value [N, L, C], an optional bias [3C] and no masks or caches.
func multiHeadAttention(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	for i := 4; i < len(n.Inputs); i++ {
		if n.Inputs[i] != nil {
			return nil, fmt.Errorf("only query, key, value and bias are supported")
		}
	}
	heads := n.Attrs.Int("num_heads", 1)
	operands := []*onnx.Value{n.Input(0), n.Input(1), n.Input(2)}
	if bias := n.Input(3); bias != nil {
		at := 0
		for i, v := range operands {
			operands[i] = g.Add(v, g.Slice(bias, 0, at, at+v.Dim(2)))
			at += v.Dim(2)
		}
	}
	for i, v := range operands {
		operands[i] = splitHeads(g, v, heads)
	}
	scale := cmp.Or(float64(n.Attrs.Float("scale", 0)), 1/math.Sqrt(float64(operands[0].Dim(3))))
	o := scaledDotProduct(g, operands[0], operands[1], operands[2], nil, scale)
	o = g.Reshape(g.Transpose(o, 0, 2, 1, 3), o.Dim(0), o.Dim(2), o.Dim(1)*o.Dim(3))
	return []*onnx.Value{o}, nil
}

// groupNorm: as an InstanceNormalization over groups, which the CPU computes
// three times as fast and CUDA has a kernel for. Before operator set 21, scale
// and bias are by group.
func groupNorm(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	x, scale, bias := n.Input(0), n.Input(1), n.Input(2)
	groups := n.Attrs.Int("num_groups", 1)
	if g.Opset() < 21 {
		each := x.Dim(1) / groups
		repeat := func(v *onnx.Value) *onnx.Value {
			return g.Reshape(g.Expand(g.Reshape(v, groups, 1), groups, each), groups*each)
		}
		scale, bias = repeat(scale), repeat(bias)
	}
	return []*onnx.Value{g.GroupNorm(x, scale, bias, groups, float64(n.Attrs.Float("epsilon", 1e-5)))}, nil
}

// rmsNorm (RMSNormalization-23): x/√(mean x² + ε)·scale.
func rmsNorm(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	x := n.Input(0)
	axis := n.Attrs.Int("axis", -1)
	if axis < 0 {
		axis += x.Rank()
	}
	mean := g.ReduceMean(g.Mul(x, x), true, onnx.Axes(axis, x.Rank())...)
	r := g.Op("Reciprocal", nil, g.Sqrt(g.Add(mean, g.ConstLike(x, float64(n.Attrs.Float("epsilon", 1e-5))))))
	return []*onnx.Value{g.Mul(g.Mul(x, r), n.Input(1))}, nil
}

// mish: x·tanh(ln(1 + eˣ)).
func mish(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	x := n.Input(0)
	return []*onnx.Value{g.Mul(x, g.Op("Tanh", nil, g.Op("Softplus", nil, x)))}, nil
}

// crossEntropy: −Σ onehot(label)·log softmax(scores), by reduction.
func crossEntropy(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	logs := g.LogSoftmax(n.Input(0), 1)
	loss, err := pickedLoss(g, n, logs)
	if err != nil {
		return nil, err
	}
	out := []*onnx.Value{loss}
	if len(n.Outputs) > 1 {
		out = append(out, logs)
	}
	return out, nil
}

func likelihoodLoss(g *onnx.Graph, n *onnx.Node) ([]*onnx.Value, error) {
	loss, err := pickedLoss(g, n, n.Input(0))
	return []*onnx.Value{loss}, err
}

// pickedLoss reduces minus the log probabilities of the labels; weights by
// class weigh the terms, and the mean is over the weights. Labels equal to
// ignore_index count for nothing: their row of the one-hot matrix is made 0.
func pickedLoss(g *onnx.Graph, n *onnx.Node, logs *onnx.Value) (*onnx.Value, error) {
	labels := g.Cast(n.Input(1), onnx.Int64)
	classes := logs.Dim(1)
	channel := onnx.PerChannel(classes, logs.Rank())
	hot := g.Cast(g.Op("Equal", nil, g.Unsqueeze(labels, 1), g.Reshape(g.Ints(onnx.Axes(0, classes)...), channel...)), logs.Type())
	if n.Attrs.Has("ignore_index") {
		ignored := g.Const(onnx.Int64, float64(n.Attrs.Int("ignore_index", 0)))
		counts := g.Cast(g.Op("Not", nil, g.Op("Equal", nil, labels, ignored)), logs.Type())
		hot = g.Mul(hot, g.Unsqueeze(counts, 1))
	}
	if w := n.Input(2); w != nil {
		hot = g.Mul(hot, g.Reshape(w, channel...))
	}
	each := g.Neg(g.ReduceSum(g.Mul(hot, logs), false, 1))
	switch n.Attrs.String("reduction", "mean") {
	case "none":
		return each, nil
	case "sum":
		return g.ReduceSum(each, false), nil
	case "mean":
		if n.Input(2) == nil && !n.Attrs.Has("ignore_index") {
			return g.ReduceMean(each, false), nil
		}
		return g.Div(g.ReduceSum(each, false), g.ReduceSum(hot, false)), nil
	}
	return nil, fmt.Errorf("reduction %q is not known", n.Attrs.String("reduction", ""))
}
