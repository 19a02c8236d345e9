package onnx

import (
	"fmt"
)

// A rule infers the types and shapes of a node's outputs from its inputs and
// attributes, and reports what does not fit through [inference.failf].
type rule func(c *inference)

// rules holds the shape inference of every operator that the package knows, by
// operator name; those of other domains carry the domain and a colon.
var rules = map[string]rule{}

// inputs bounds the number of inputs of the operators in rules.
var arity = map[string][2]int{}

// many is the upper bound of a variadic operator's inputs.
const many = 1 << 30

// register adds the shape inference of operators that take between low and
// high inputs.
func register(r rule, low, high int, ops ...string) {
	for _, op := range ops {
		rules[op] = r
		arity[op] = [2]int{low, high}
	}
}

// Supported reports whether shapes of the operator can be inferred.
func Supported(domain, op string) bool {
	if domain != "" && domain != "ai.onnx" {
		op = domain + ":" + op
	}
	_, ok := rules[op]
	return ok
}

// inference is the view that a rule has of its node.
type inference struct {
	node *Node
}

// mismatch carries a rule's complaint up to guard.
type mismatch struct{ err error }

// infer sets the type and shape of the node's outputs, and folds them where
// they are small and known.
func infer(n *Node) error {
	key := n.OpType
	if n.Domain != "" && n.Domain != "ai.onnx" {
		key = n.Domain + ":" + n.OpType
	}
	r, ok := rules[key]
	if !ok {
		return fmt.Errorf("%s: shape inference does not know this operator", n)
	}
	c := &inference{n}
	return guard(func() {
		if b := arity[key]; len(n.Inputs) < b[0] || len(n.Inputs) > b[1] {
			c.failf("has %d inputs, takes %s", len(n.Inputs), arityText(b))
		}
		r(c)
		for i, v := range n.Outputs {
			if v.name == "" {
				continue
			}
			if v.typ == Undefined {
				c.failf("has no output %d", i)
			}
			if _, err := elements(v.shape); err != nil {
				c.failf("output %d: %v", i, err)
			}
		}
		fold(c)
	})
}

// guard turns what a rule complains about into an error.
func guard(f func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			m, ours := p.(mismatch)
			if !ours {
				panic(p)
			}
			err = m.err
		}
	}()
	f()
	return nil
}

func arityText(b [2]int) string {
	switch {
	case b[0] == b[1]:
		return fmt.Sprint(b[0])
	case b[1] == many:
		return fmt.Sprintf("at least %d", b[0])
	}
	return fmt.Sprintf("%d to %d", b[0], b[1])
}

func (c *inference) failf(format string, args ...any) {
	panic(mismatch{fmt.Errorf("%s: %s", c.node, fmt.Sprintf(format, args...))})
}

// in returns an input that must be there.
func (c *inference) in(i int) *Value {
	v := c.node.Input(i)
	if v == nil {
		c.failf("input %d is missing", i)
	}
	return v
}

// opt returns an input that may be nil.
func (c *inference) opt(i int) *Value { return c.node.Input(i) }

// out sets output i if the node has it.
func (c *inference) out(i int, t DataType, shape []int) {
	if i < len(c.node.Outputs) {
		v := c.node.Outputs[i]
		v.typ, v.shape = t, cloneShape(shape)
	}
}

// opset returns the operator set that decides the operator's version.
func (c *inference) opset() int { return c.node.graph.opset }

func (c *inference) attrs() Attrs { return c.node.Attrs }

// axis returns an axis in 0..rank-1.
func (c *inference) axis(a, rank int) int {
	if a < -rank || a >= rank {
		c.failf("axis %d is outside rank %d", a, rank)
	}
	if a < 0 {
		a += rank
	}
	return a
}

// axes normalises a list of axes and refuses repeated ones.
func (c *inference) axes(list []int, rank int) []int {
	if len(list) > rank {
		c.failf("axes %v are more than rank %d", list, rank)
	}
	seen := make([]bool, rank)
	out := make([]int, len(list))
	for i, a := range list {
		a = c.axis(a, rank)
		if seen[a] {
			c.failf("axes %v name axis %d twice", list, a)
		}
		seen[a] = true
		out[i] = a
	}
	return out
}

// constInts returns the integers of an input that must be known.
func (c *inference) constInts(i int, what string) []int {
	v := c.in(i)
	if v.constant == nil {
		c.failf("%s (input %d, %s) is not a constant: static shapes need it", what, i, v.name)
	}
	ints := v.constant.Ints()
	if ints == nil && v.constant.Elements() > 0 {
		c.failf("%s (input %d, %s) has type %s, wants integers", what, i, v.name, v.typ)
	}
	if len(ints) > maxListed {
		c.failf("%s (input %d, %s) lists %d integers", what, i, v.name, len(ints))
	}
	out := make([]int, len(ints))
	for j, x := range ints {
		out[j] = int(x)
	}
	return out
}

// maxListed bounds lists of axes, pads, split lengths and the like.
const maxListed = 1 << 16

// sameType fails unless the inputs i and j have one element type.
func (c *inference) sameType(list ...int) DataType {
	first := c.in(list[0])
	for _, i := range list[1:] {
		if v := c.opt(i); v != nil && v.typ != first.typ {
			c.failf("inputs %d and %d have types %s and %s", list[0], i, first.typ, v.typ)
		}
	}
	return first.typ
}

// rankAtLeast fails when input i has fewer dimensions.
func (c *inference) rankAtLeast(i, rank int) *Value {
	v := c.in(i)
	if len(v.shape) < rank {
		c.failf("input %d has shape %v, needs at least %d dimensions", i, v.shape, rank)
	}
	return v
}

// broadcast returns the shape that two shapes broadcast to (ONNX
// Broadcasting.md, multidirectional).
func (c *inference) broadcast(a, b []int) []int {
	out, ok := Broadcast(a, b)
	if !ok {
		c.failf("shapes %v and %v do not broadcast", a, b)
	}
	return out
}

// Broadcast returns the shape that a and b broadcast to after numpy's rule,
// and whether they do.
func Broadcast(a, b []int) ([]int, bool) {
	if len(a) < len(b) {
		a, b = b, a
	}
	out := cloneShape(a)
	shift := len(a) - len(b)
	for i, d := range b {
		switch {
		case out[shift+i] == d || d == 1:
		case out[shift+i] == 1:
			out[shift+i] = d
		default:
			return nil, false
		}
	}
	return out, true
}
