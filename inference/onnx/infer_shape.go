package onnx

import (
	"math"
	"slices"
)

func init() {
	register(shapeOp, 1, 1, "Shape")
	register(size, 1, 1, "Size")
	register(constant, 0, 0, "Constant")
	register(constantOfShape, 1, 1, "ConstantOfShape")
	register(rangeOp, 3, 3, "Range")
	register(reshape, 2, 2, "Reshape")
	register(flatten, 1, 1, "Flatten")
	register(squeeze, 1, 2, "Squeeze")
	register(unsqueeze, 2, 2, "Unsqueeze")
	register(transpose, 1, 1, "Transpose")
	register(expand, 2, 2, "Expand")
	register(tile, 2, 2, "Tile")
	register(concat, 1, many, "Concat")
	register(split, 1, 2, "Split")
	register(slice, 3, 5, "Slice")
	register(pad, 2, 4, "Pad")
	register(gather, 2, 2, "Gather")
	register(gatherElements, 2, 2, "GatherElements")
	register(gatherND, 2, 2, "GatherND")
	register(scatterElements, 3, 3, "ScatterElements")
	register(scatterND, 3, 3, "ScatterND")
	register(oneHot, 3, 3, "OneHot")
	register(unary, 1, 2, "Trilu")
	register(unary, 2, 2, "CumSum", "ReverseSequence")
	register(eyeLike, 1, 1, "EyeLike")
}

func shapeOp(c *inference) {
	x := c.in(0)
	rank := len(x.shape)
	clamp := func(i int) int {
		if i < 0 {
			i += rank
		}
		return min(max(i, 0), rank)
	}
	start := clamp(c.attrs().Int("start", 0))
	end := max(clamp(c.attrs().Int("end", rank)), start)
	c.out(0, Int64, []int{end - start})
	c.known(x.shape[start:end], []int{end - start})
}

func size(c *inference) {
	c.out(0, Int64, nil)
	c.known([]int{c.in(0).Elements()}, nil)
}

// known sets output 0 to int64 values that follow from shapes alone.
func (c *inference) known(values, shape []int) {
	ints := make([]int64, len(values))
	for i, v := range values {
		ints[i] = int64(v)
	}
	t := FromInt64(c.node.Outputs[0].name, ints, shape...)
	c.node.Outputs[0].constant = &t
}

func constant(c *inference) {
	a := c.attrs()
	var t *Tensor
	switch {
	case a.Tensor("value") != nil:
		t = a.Tensor("value")
	case a.Has("value_int"):
		t = tensorOf(Int64, nil, nil, []int64{int64(a.Int("value_int", 0))})
	case a.Has("value_ints"):
		v, _ := a["value_ints"].([]int64)
		t = tensorOf(Int64, []int{len(v)}, nil, v)
	case a.Has("value_float"):
		t = tensorOf(Float, nil, []float64{float64(a.Float("value_float", 0))}, nil)
	case a.Has("value_floats"):
		v, _ := a["value_floats"].([]float32)
		t = new(FromFloat32("", v, len(v)))
	default:
		c.failf("has no value that is supported")
	}
	if err := t.check(); err != nil {
		c.failf("%v", err)
	}
	c.out(0, t.Type, t.Shape)
	c.node.Outputs[0].constant = t
}

func constantOfShape(c *inference) {
	t := Float
	if v := c.attrs().Tensor("value"); v != nil {
		if v.Elements() != 1 {
			c.failf("value has shape %v, wants one element", v.Shape)
		}
		t = v.Type
	}
	c.out(0, t, c.constInts(0, "the shape"))
}

func rangeOp(c *inference) {
	c.sameType(0, 1, 2)
	var v [3]float64
	for i := range v {
		t := c.in(i).constant
		if t == nil || t.Elements() != 1 {
			c.failf("input %d is not a constant scalar: static shapes need it", i)
		}
		if f := t.Float64s(); len(f) == 1 {
			v[i] = f[0]
		}
	}
	if v[2] == 0 {
		c.failf("step is 0")
	}
	n := math.Ceil((v[1] - v[0]) / v[2])
	if !(n >= 0) {
		n = 0
	}
	if n > maxElements {
		c.failf("has %g elements", n)
	}
	c.out(0, c.in(0).typ, []int{int(n)})
}

func reshape(c *inference) {
	x := c.in(0)
	want := c.constInts(1, "the shape")
	shape := cloneShape(want)
	free := -1
	known := 1
	for i, d := range want {
		switch {
		case d == -1 && free < 0:
			free = i
			continue
		case d == 0 && c.attrs().Int("allowzero", 0) == 0:
			if i >= len(x.shape) {
				c.failf("shape %v keeps dimension %d of %v", want, i, x.shape)
			}
			shape[i] = x.shape[i]
		case d < 0:
			c.failf("shape %v is not valid", want)
		}
		if shape[i] > maxElements || shape[i] != 0 && known > maxElements/shape[i] {
			c.failf("shape %v is too large", want)
		}
		known *= shape[i]
	}
	n := x.Elements()
	if free >= 0 {
		if known == 0 || n%known != 0 {
			c.failf("%v does not reshape to %v", x.shape, want)
		}
		shape[free] = n / known
		known *= shape[free]
	}
	if known != n {
		c.failf("%v does not reshape to %v", x.shape, want)
	}
	c.out(0, x.typ, shape)
}

func flatten(c *inference) {
	x := c.in(0)
	axis := c.attrs().Int("axis", 1)
	if axis < 0 {
		axis += len(x.shape)
	}
	if axis < 0 || axis > len(x.shape) {
		c.failf("axis %d is outside rank %d", axis, len(x.shape))
	}
	c.out(0, x.typ, []int{Elements(x.shape[:axis]), Elements(x.shape[axis:])})
}

func squeeze(c *inference) {
	x := c.in(0)
	drop := make([]bool, len(x.shape))
	if c.opt(1) != nil {
		for _, a := range c.axes(c.constInts(1, "axes"), len(x.shape)) {
			if x.shape[a] != 1 {
				c.failf("dimension %d of %v is not 1", a, x.shape)
			}
			drop[a] = true
		}
	} else {
		for i, d := range x.shape {
			drop[i] = d == 1
		}
	}
	shape := []int{}
	for i, d := range x.shape {
		if !drop[i] {
			shape = append(shape, d)
		}
	}
	c.out(0, x.typ, shape)
}

func unsqueeze(c *inference) {
	x := c.in(0)
	axes := c.constInts(1, "axes")
	rank := len(x.shape) + len(axes)
	added := make([]bool, rank)
	for _, a := range c.axes(axes, rank) {
		added[a] = true
	}
	shape := make([]int, 0, rank)
	next := 0
	for i := range rank {
		if added[i] {
			shape = append(shape, 1)
			continue
		}
		shape = append(shape, x.shape[next])
		next++
	}
	c.out(0, x.typ, shape)
}

// Permutation returns the axes of a Transpose node, with the default, the
// reverse order, filled in.
func Permutation(n *Node) []int {
	perm := n.Attrs.Ints("perm")
	if len(perm) == 0 && !n.Attrs.Has("perm") {
		perm = Axes(0, n.Inputs[0].Rank())
		slices.Reverse(perm)
	}
	return perm
}

func transpose(c *inference) {
	x := c.in(0)
	perm := Permutation(c.node)
	if len(perm) != len(x.shape) {
		c.failf("perm %v does not fit shape %v", perm, x.shape)
	}
	shape := make([]int, len(perm))
	for i, a := range c.axes(perm, len(x.shape)) {
		shape[i] = x.shape[a]
	}
	c.out(0, x.typ, shape)
}

func expand(c *inference) {
	x := c.in(0)
	c.out(0, x.typ, c.broadcast(x.shape, c.constInts(1, "the shape")))
}

func tile(c *inference) {
	x := c.in(0)
	repeats := c.constInts(1, "repeats")
	if len(repeats) != len(x.shape) {
		c.failf("repeats %v do not fit shape %v", repeats, x.shape)
	}
	shape := cloneShape(x.shape)
	for i, r := range repeats {
		if r < 0 || r > maxElements || r != 0 && shape[i] > maxElements/r {
			c.failf("repeats %v are out of range", repeats)
		}
		shape[i] *= r
	}
	c.out(0, x.typ, shape)
}

func concat(c *inference) {
	first := c.rankAtLeast(0, 1)
	axis := c.axis(c.attrs().Int("axis", 0), len(first.shape))
	shape := cloneShape(first.shape)
	for i := 1; i < len(c.node.Inputs); i++ {
		v := c.in(i)
		c.sameType(0, i)
		if len(v.shape) != len(shape) {
			c.failf("input %d has shape %v, input 0 %v", i, v.shape, first.shape)
		}
		for j, d := range v.shape {
			if j != axis && d != shape[j] {
				c.failf("input %d has shape %v, input 0 %v: they differ outside axis %d", i, v.shape, first.shape, axis)
			}
		}
		shape[axis] += v.shape[axis]
	}
	c.out(0, first.typ, shape)
}

func split(c *inference) {
	x := c.rankAtLeast(0, 1)
	axis := c.axis(c.attrs().Int("axis", 0), len(x.shape))
	n := len(c.node.Outputs)
	var parts []int
	if c.opt(1) != nil {
		parts = c.constInts(1, "split")
	} else {
		if k := c.attrs().Int("num_outputs", n); k != n {
			c.failf("num_outputs is %d, the node has %d", k, n)
		}
		each := (x.shape[axis] + n - 1) / n
		for i := range n {
			parts = append(parts, max(0, min(each, x.shape[axis]-i*each)))
		}
	}
	total := 0
	for _, p := range parts {
		if p < 0 || p > x.shape[axis] {
			c.failf("split %v of dimension %d of %v", parts, axis, x.shape)
		}
		total += p
	}
	if len(parts) != n || total != x.shape[axis] {
		c.failf("split %v gives %d outputs of dimension %d of %v", parts, n, axis, x.shape)
	}
	for i, p := range parts {
		shape := cloneShape(x.shape)
		shape[axis] = p
		c.out(i, x.typ, shape)
	}
}

// Span is the part of one axis that a Slice takes: Count elements from Start
// on, Step apart; Step may be negative.
type Span struct{ Start, Step, Count int }

// SpansOf returns what a Slice node, whose shapes have been inferred, takes of
// every axis of its input.
func SpansOf(n *Node) []Span { return (&inference{n}).spans() }

func (c *inference) spans() []Span {
	x := c.in(0)
	starts, ends := c.constInts(1, "starts"), c.constInts(2, "ends")
	axes, steps := Axes(0, len(starts)), slices.Repeat([]int{1}, len(starts))
	if c.opt(3) != nil {
		axes = c.constInts(3, "axes")
	}
	if c.opt(4) != nil {
		steps = c.constInts(4, "steps")
	}
	if len(ends) != len(starts) || len(axes) != len(starts) || len(steps) != len(starts) {
		c.failf("starts %v, ends %v, axes %v and steps %v differ in length", starts, ends, axes, steps)
	}
	spans := make([]Span, len(x.shape))
	for i, d := range x.shape {
		spans[i] = Span{0, 1, d}
	}
	for i, a := range c.axes(axes, len(x.shape)) {
		d, step := x.shape[a], steps[i]
		low, high := 0, d
		if step < 0 {
			low, high = -1, d-1
		}
		if step == 0 || step == math.MinInt {
			c.failf("steps %v are out of range", steps)
		}
		clamp := func(v int) int {
			if v < 0 {
				v += d
			}
			return min(max(v, low), high)
		}
		start, end := clamp(starts[i]), clamp(ends[i])
		count := 0
		if step > 0 && end > start {
			count = (end-start-1)/step + 1
		} else if step < 0 && start > end {
			count = (start-end-1)/(-step) + 1
		}
		spans[a] = Span{start, step, count}
	}
	return spans
}

func slice(c *inference) {
	spans := c.spans()
	shape := make([]int, len(spans))
	for i, s := range spans {
		shape[i] = s.Count
	}
	c.out(0, c.in(0).typ, shape)
}

// PadsOf returns the elements that a Pad node adds, or takes away where
// negative, before and after every axis of its input.
func PadsOf(n *Node) (begin, end []int) { return (&inference{n}).pads() }

func (c *inference) pads() (begin, end []int) {
	x := c.in(0)
	pads := c.constInts(1, "pads")
	axes := Axes(0, len(x.shape))
	if c.opt(3) != nil {
		axes = c.axes(c.constInts(3, "axes"), len(x.shape))
	}
	if len(pads) != 2*len(axes) {
		c.failf("pads %v do not fit shape %v", pads, x.shape)
	}
	begin, end = make([]int, len(x.shape)), make([]int, len(x.shape))
	for i, a := range axes {
		begin[a], end[a] = pads[i], pads[len(axes)+i]
		if max(begin[a], end[a]) > maxElements || min(begin[a], end[a]) < -maxElements {
			c.failf("pads %v are out of range", pads)
		}
	}
	return begin, end
}

func pad(c *inference) {
	x := c.in(0)
	begin, end := c.pads()
	shape := cloneShape(x.shape)
	for i := range shape {
		shape[i] += begin[i] + end[i]
		if shape[i] < 0 {
			c.failf("pads %v and %v leave nothing of shape %v", begin, end, x.shape)
		}
	}
	c.out(0, x.typ, shape)
}

func (c *inference) indices(i int) *Value {
	v := c.in(i)
	if v.typ != Int64 && v.typ != Int32 {
		c.failf("indices have type %s, want int64 or int32", v.typ)
	}
	return v
}

func gather(c *inference) {
	x, idx := c.rankAtLeast(0, 1), c.indices(1)
	axis := c.axis(c.attrs().Int("axis", 0), len(x.shape))
	if idx.constant != nil && idx.Elements() <= maxListed {
		for _, i := range idx.constant.Ints() {
			if i < -int64(x.shape[axis]) || i >= int64(x.shape[axis]) {
				c.failf("index %d is outside dimension %d of %v", i, axis, x.shape)
			}
		}
	}
	shape := append(cloneShape(x.shape[:axis]), idx.shape...)
	c.out(0, x.typ, append(shape, x.shape[axis+1:]...))
}

func gatherElements(c *inference) {
	x, idx := c.rankAtLeast(0, 1), c.indices(1)
	c.axis(c.attrs().Int("axis", 0), len(x.shape))
	if len(idx.shape) != len(x.shape) {
		c.failf("indices %v and data %v differ in rank", idx.shape, x.shape)
	}
	c.out(0, x.typ, idx.shape)
}

func gatherND(c *inference) {
	x, idx := c.rankAtLeast(0, 1), c.rankAtLeast(1, 1)
	c.indices(1)
	batch := c.attrs().Int("batch_dims", 0)
	depth := idx.shape[len(idx.shape)-1]
	if batch < 0 || batch >= len(idx.shape) || depth < 1 || batch+depth > len(x.shape) {
		c.failf("indices %v do not fit data %v with %d batch dimensions", idx.shape, x.shape, batch)
	}
	c.out(0, x.typ, append(cloneShape(idx.shape[:len(idx.shape)-1]), x.shape[batch+depth:]...))
}

func scatterElements(c *inference) {
	x, idx, updates := c.rankAtLeast(0, 1), c.indices(1), c.in(2)
	c.axis(c.attrs().Int("axis", 0), len(x.shape))
	if len(idx.shape) != len(x.shape) || !slices.Equal(idx.shape, updates.shape) {
		c.failf("data %v, indices %v and updates %v do not fit", x.shape, idx.shape, updates.shape)
	}
	c.out(0, c.sameType(0, 2), x.shape)
}

func scatterND(c *inference) {
	x, idx, updates := c.rankAtLeast(0, 1), c.rankAtLeast(1, 1), c.in(2)
	c.indices(1)
	depth := idx.shape[len(idx.shape)-1]
	if depth > len(x.shape) || !slices.Equal(updates.shape, append(cloneShape(idx.shape[:len(idx.shape)-1]), x.shape[depth:]...)) {
		c.failf("data %v, indices %v and updates %v do not fit", x.shape, idx.shape, updates.shape)
	}
	c.out(0, c.sameType(0, 2), x.shape)
}

func oneHot(c *inference) {
	idx := c.in(0)
	depth := c.in(1).constant
	if depth == nil || depth.Elements() != 1 {
		c.failf("depth (%s) is not one constant number", c.in(1).name)
	}
	n := depth.Float64s()[0]
	if !(n >= 0 && n <= maxElements) {
		c.failf("depth %v is out of range", n)
	}
	axis := c.axis(c.attrs().Int("axis", -1), len(idx.shape)+1)
	shape := append(cloneShape(idx.shape[:axis]), int(n))
	c.out(0, c.in(2).typ, append(shape, idx.shape[axis:]...))
}

func eyeLike(c *inference) {
	if len(c.in(0).shape) != 2 {
		c.failf("input has shape %v, wants a matrix", c.in(0).shape)
	}
	c.out(0, c.typeAttr("dtype", c.in(0).typ), c.in(0).shape)
}
