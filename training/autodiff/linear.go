package autodiff

import (
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(matMul, "MatMul")
	register(fusedMatMul, "com.microsoft:FusedMatMul")
	register(gemm, "Gemm")
	register(einsum, "Einsum")
}

// swapLast transposes the last two dimensions.
func swapLast(g *onnx.Graph, v *onnx.Value) *onnx.Value {
	perm := onnx.Axes(0, v.Rank())
	n := len(perm)
	perm[n-1], perm[n-2] = n-2, n-1
	return g.Transpose(v, perm...)
}

// matMul: dA = dY·Bᵀ, dB = Aᵀ·dY, summed over broadcast batch dimensions. A
// 2-D weight gets one Gemm over all rows.
func matMul(b *backward) {
	a, w, dy := b.x(0), b.x(1), b.dy()
	g := b.g
	if w.Rank() == 2 && a.Rank() >= 2 {
		k, n := w.Dim(0), w.Dim(1)
		rows := a.Elements() / max(k, 1)
		flat := b.reshape(dy, []int{rows, n})
		if b.wants(0) {
			d := g.Gemm(flat, w, nil, onnx.Attrs{"transB": 1})
			b.give(0, b.reshape(d, a.Shape()))
		}
		if b.wants(1) {
			b.give(1, g.Gemm(b.reshape(a, []int{rows, k}), flat, nil, onnx.Attrs{"transA": 1}))
		}
		return
	}
	// Vectors become matrices, as the operator itself sees them.
	am, wm := a, w
	shape := slices.Clone(dy.Shape())
	if w.Rank() == 1 {
		wm = b.reshape(w, []int{w.Dim(0), 1})
		shape = append(shape, 1)
	}
	if a.Rank() == 1 {
		am = b.reshape(a, []int{1, a.Dim(0)})
		shape = slices.Insert(shape, len(shape)-1, 1)
	}
	dy = b.reshape(dy, shape)
	if b.wants(0) {
		d := b.unbroadcast(g.MatMul(dy, swapLast(g, wm)), am.Shape())
		b.give(0, b.reshape(d, a.Shape()))
	}
	if b.wants(1) {
		d := b.unbroadcast(g.MatMul(swapLast(g, am), dy), wm.Shape())
		b.give(1, b.reshape(d, w.Shape()))
	}
}

// fusedMatMul: Y = α·op(A)·op(B). With A' = op(A): dA' = α·dY·op(B)ᵀ, transposed
// back where op transposes.
func fusedMatMul(b *backward) {
	g, dy := b.g, b.dy()
	if alpha := float64(b.node.Attrs.Float("alpha", 1)); alpha != 1 {
		dy = g.Scale(dy, alpha)
	}
	a, w := b.x(0), b.x(1)
	if a.Rank() < 2 || w.Rank() < 2 {
		b.failf("operands of fewer than two dimensions are not supported")
		return
	}
	transA, transB := b.node.Attrs.Int("transA", 0) != 0, b.node.Attrs.Int("transB", 0) != 0
	as := func(v *onnx.Value, transposed bool) *onnx.Value {
		if transposed {
			return swapLast(g, v)
		}
		return v
	}
	if b.wants(0) {
		b.give(0, as(g.MatMul(dy, as(w, !transB)), transA))
	}
	if b.wants(1) {
		b.give(1, as(g.MatMul(as(a, !transA), dy), transB))
	}
}

// gemm: Y = α·op(A)·op(B) + β·C. dA = α·dY·op(B)ᵀ or its transpose, dB likewise,
// dC = β·dY summed to C's shape.
func gemm(b *backward) {
	g, dy := b.g, b.dy()
	attrs := b.node.Attrs
	alpha, beta := attrs.Float("alpha", 1), float64(attrs.Float("beta", 1))
	transA, transB := attrs.Int("transA", 0) != 0, attrs.Int("transB", 0) != 0
	a, w := b.x(0), b.x(1)
	product := func(l, r *onnx.Value, tl, tr bool) *onnx.Value {
		return g.Gemm(l, r, nil, onnx.Attrs{"alpha": alpha, "transA": tl, "transB": tr})
	}
	if b.wants(0) {
		if transA {
			b.give(0, product(w, dy, transB, true))
		} else {
			b.give(0, product(dy, w, false, !transB))
		}
	}
	if b.wants(1) {
		if transB {
			b.give(1, product(dy, a, true, transA))
		} else {
			b.give(1, product(a, dy, !transA, false))
		}
	}
	if b.wants(2) {
		d := b.unbroadcast(dy, b.x(2).Shape())
		if beta != 1 {
			d = g.Scale(d, beta)
		}
		b.give(2, d)
	}
}

// einsum: the gradient of one operand is the Einsum of dY with the others onto
// that operand's labels; labels that only this operand has were summed, so
// their gradient is broadcast.
func einsum(b *backward) {
	inputs, output, problem := onnx.EinsumTerms(b.node.Attrs.String("equation", ""))
	if problem != "" {
		b.failf("equation: %s", problem)
		return
	}
	for i, term := range inputs {
		if !b.wants(i) {
			continue
		}
		for j, l := range term {
			if slices.Contains(term[:j], l) {
				b.failf("the gradient of an operand that repeats the label %c is not supported", l)
				return
			}
		}
		terms := []string{string(output)}
		operands := []*onnx.Value{b.dy()}
		for j, other := range inputs {
			if j != i {
				terms = append(terms, string(other))
				operands = append(operands, b.x(j))
			}
		}
		known := strings.Join(terms, "")
		var found []rune
		shape := slices.Clone(b.x(i).Shape())
		for j, l := range term {
			if strings.ContainsRune(known, l) {
				found = append(found, l)
			} else {
				shape[j] = 1
			}
		}
		equation := strings.Join(terms, ",") + "->" + string(found)
		d := b.g.Op("Einsum", onnx.Attrs{"equation": equation}, operands...)
		d = b.reshape(d, shape)
		if !slices.Equal(shape, b.x(i).Shape()) {
			d = b.g.Expand(d, b.x(i).Shape()...)
		}
		b.give(i, d)
	}
}
