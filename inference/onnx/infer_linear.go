package onnx

import (
	"slices"
	"strings"
)

func init() {
	register(matMul, 2, 2, "MatMul")
	register(fusedMatMul, 2, 2, "com.microsoft:FusedMatMul")
	register(dynamicQuantizeMatMul, 3, 5, "com.microsoft:DynamicQuantizeMatMul")
	register(quantizedAttention, 3, 9, "com.microsoft:QAttention")
	register(dynamicQuantize, 1, 1, "DynamicQuantizeLinear")
	register(gemm, 2, 3, "Gemm")
	register(einsum, 1, many, "Einsum")
	register(attention, 3, 6, "Attention")
	register(multiHeadAttention, 1, 10, "com.microsoft:MultiHeadAttention")
}

func matMul(c *inference) {
	c.out(0, c.sameType(0, 1), c.matMulShape(c.in(0).shape, c.in(1).shape))
}

// matMulShape follows numpy.matmul: vectors are promoted to matrices, leading
// dimensions broadcast.
func (c *inference) matMulShape(a, b []int) []int {
	if len(a) == 0 || len(b) == 0 {
		c.failf("shapes %v and %v: a scalar has no matrix product", a, b)
	}
	rowVector, columnVector := len(a) == 1, len(b) == 1
	if rowVector {
		a = []int{1, a[0]}
	}
	if columnVector {
		b = []int{b[0], 1}
	}
	m, k, n := a[len(a)-2], a[len(a)-1], b[len(b)-1]
	if b[len(b)-2] != k {
		c.failf("shapes %v and %v differ in the inner dimension", a, b)
	}
	out := c.broadcast(a[:len(a)-2], b[:len(b)-2])
	if !rowVector {
		out = append(out, m)
	}
	if !columnVector {
		out = append(out, n)
	}
	return out
}

// fusedMatMul is ONNX Runtime's alpha·op(A)·op(B); transBatchA and transBatchB
// are not supported.
func fusedMatMul(c *inference) {
	if c.attrs().Int("transBatchA", 0) != 0 || c.attrs().Int("transBatchB", 0) != 0 {
		c.failf("transBatchA and transBatchB are not supported")
	}
	a, b := cloneShape(c.in(0).shape), cloneShape(c.in(1).shape)
	if c.attrs().Int("transA", 0) != 0 && len(a) >= 2 {
		a[len(a)-1], a[len(a)-2] = a[len(a)-2], a[len(a)-1]
	}
	if c.attrs().Int("transB", 0) != 0 && len(b) >= 2 {
		b[len(b)-1], b[len(b)-2] = b[len(b)-2], b[len(b)-1]
	}
	c.out(0, c.sameType(0, 1), c.matMulShape(a, b))
}

// dynamicQuantizeMatMul is ONNX Runtime's product of float rows, rounded to 8 bits
// on the way, by 8-bit weights: A, B, B's scale and zero point, what is added.
func dynamicQuantizeMatMul(c *inference) {
	if b := c.in(1).typ; b != Int8 && b != Uint8 {
		c.failf("weights are %s, want int8 or uint8", b)
	}
	c.out(0, c.in(0).typ, c.matMulShape(c.in(0).shape, c.in(1).shape))
}

// dynamicQuantize rounds to 8 bits by the range of what comes in: the integers, their
// step and their zero.
func dynamicQuantize(c *inference) {
	x := c.in(0)
	c.out(0, Uint8, x.shape)
	c.out(1, x.typ, nil)
	c.out(2, Uint8, nil)
}

// quantizedAttention is ONNX Runtime's self-attention of 8-bit rows [N,L,C] by the
// 8-bit weights [C,3·D] of queries, keys and values, D in num_heads heads.
func quantizedAttention(c *inference) {
	x, w, bias := c.in(0), c.in(1), c.in(2)
	heads := c.attrs().Int("num_heads", 0)
	if len(x.shape) != 3 || len(w.shape) != 2 || w.shape[0] != x.shape[2] || heads <= 0 || w.shape[1]%(3*heads) != 0 {
		c.failf("rows %v and weights %v do not make queries, keys and values of %d heads", x.shape, w.shape, heads)
	}
	c.out(0, bias.typ, []int{x.shape[0], x.shape[1], w.shape[1] / 3})
}

func gemm(c *inference) {
	a, b := c.in(0).shape, c.in(1).shape
	if len(a) != 2 || len(b) != 2 {
		c.failf("shapes %v and %v are not matrices", a, b)
	}
	m, k, k2, n := a[0], a[1], b[0], b[1]
	if c.attrs().Int("transA", 0) != 0 {
		m, k = k, m
	}
	if c.attrs().Int("transB", 0) != 0 {
		k2, n = n, k2
	}
	if k != k2 {
		c.failf("shapes %v and %v differ in the inner dimension", a, b)
	}
	if bias := c.opt(2); bias != nil {
		if s, ok := Broadcast(bias.shape, []int{m, n}); !ok || !slices.Equal(s, []int{m, n}) {
			c.failf("shape %v does not broadcast to [%d %d]", bias.shape, m, n)
		}
	}
	c.out(0, c.sameType(0, 1, 2), []int{m, n})
}

// einsum supports explicit and implicit output, without ellipsis.
func einsum(c *inference) {
	inputs, output, err := EinsumTerms(c.attrs().String("equation", ""))
	if err != "" {
		c.failf("equation %q: %s", c.attrs().String("equation", ""), err)
	}
	if len(inputs) != len(c.node.Inputs) {
		c.failf("equation has %d operands, the node %d inputs", len(inputs), len(c.node.Inputs))
	}
	size := map[rune]int{}
	for i, term := range inputs {
		shape := c.in(i).shape
		if len(shape) != len(term) {
			c.failf("input %d has shape %v, the equation gives it %d dimensions", i, shape, len(term))
		}
		c.sameType(0, i)
		for j, l := range term {
			if d, known := size[l]; known && d != shape[j] {
				c.failf("label %c is both %d and %d", l, d, shape[j])
			}
			size[l] = shape[j]
		}
	}
	shape := make([]int, len(output))
	for i, l := range output {
		d, known := size[l]
		if !known {
			c.failf("label %c of the output is in no input", l)
		}
		shape[i] = d
	}
	c.out(0, c.in(0).typ, shape)
}

// EinsumTerms splits an Einsum equation into the labels of its inputs and of
// its output; problem is empty when it could.
func EinsumTerms(equation string) (inputs [][]rune, output []rune, problem string) {
	equation = strings.ReplaceAll(equation, " ", "")
	left, right, explicit := strings.Cut(equation, "->")
	if strings.Contains(equation, ".") {
		return nil, nil, "an ellipsis is not supported"
	}
	count := map[rune]int{}
	for term := range strings.SplitSeq(left, ",") {
		labels := []rune(term)
		for _, l := range labels {
			if (l < 'a' || l > 'z') && (l < 'A' || l > 'Z') {
				return nil, nil, "labels are letters"
			}
			count[l]++
		}
		inputs = append(inputs, labels)
	}
	if explicit {
		return inputs, []rune(right), ""
	}
	for l, n := range count {
		if n == 1 {
			output = append(output, l)
		}
	}
	slices.Sort(output)
	return inputs, output, ""
}

// attention is ONNX Attention-23: 4-D operands [N,heads,L,D] or 3-D ones
// [N,L,heads·D] with q_num_heads and kv_num_heads.
func attention(c *inference) {
	q, k, v := c.in(0), c.in(1), c.in(2)
	if len(c.node.Outputs) > 1 {
		c.failf("only the first output is supported")
	}
	if c.opt(4) != nil || c.opt(5) != nil {
		c.failf("past_key and past_value are not supported")
	}
	if len(q.shape) != len(k.shape) || len(k.shape) != len(v.shape) {
		c.failf("query %v, key %v and value %v differ in rank", q.shape, k.shape, v.shape)
	}
	switch len(q.shape) {
	case 4:
		c.out(0, q.typ, []int{q.shape[0], q.shape[1], q.shape[2], v.shape[3]})
	case 3:
		heads, kvHeads := c.attrs().Int("q_num_heads", 0), c.attrs().Int("kv_num_heads", 0)
		if heads <= 0 || kvHeads <= 0 || q.shape[2]%heads != 0 || k.shape[2]%kvHeads != 0 || v.shape[2]%kvHeads != 0 {
			c.failf("query %v, key %v and value %v do not split into %d and %d heads", q.shape, k.shape, v.shape, heads, kvHeads)
		}
		c.out(0, q.typ, []int{q.shape[0], q.shape[1], v.shape[2] / kvHeads * heads})
	default:
		c.failf("query has shape %v, wants 3 or 4 dimensions", q.shape)
	}
}

// multiHeadAttention is ONNX Runtime's contrib operator with separate [N,L,C]
// query, key and value.
func multiHeadAttention(c *inference) {
	q := c.in(0)
	if len(q.shape) != 3 || c.opt(1) == nil || c.opt(2) == nil || len(c.in(2).shape) != 3 {
		c.failf("only separate 3-dimensional query, key and value are supported")
	}
	if h := c.attrs().Int("num_heads", 0); h <= 0 || q.shape[2]%h != 0 {
		c.failf("query %v does not split into %d heads", q.shape, h)
	}
	c.out(0, q.typ, []int{q.shape[0], q.shape[1], c.in(2).shape[2]})
}
