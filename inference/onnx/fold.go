package onnx

import (
	"math"
	"slices"
)

// Folding keeps small results only: the arithmetic on shapes that exporters
// write, not weights. The totals bound what a hostile file can make us
// allocate.
const (
	maxFoldElements = 1 << 16
	maxFoldBytes    = 64 << 20
)

// A folder computes output 0 of a node whose inputs are all known; nil when it
// cannot.
type folder func(c *inference) *Tensor

var folders = map[string]folder{
	"Identity": same, "Reshape": same, "Squeeze": same, "Unsqueeze": same, "Flatten": same,
	"Gather": foldGather, "Slice": foldSlice, "Concat": foldConcat, "Transpose": foldTranspose,
	"Expand": foldExpand, "ConstantOfShape": foldConstantOfShape, "Range": foldRange, "Cast": foldCast, "CastLike": foldCast,
	"Where": foldWhere, "Not": foldNot, "Tile": foldTile,
	"ReduceProd": foldReduce(1, func(a, b float64) float64 { return a * b }),
	"ReduceSum":  foldReduce(0, func(a, b float64) float64 { return a + b }),
	"ReduceMin":  foldReduce(math.Inf(1), math.Min),
	"ReduceMax":  foldReduce(math.Inf(-1), math.Max),

	"Add": arithmetic(func(a, b int64) int64 { return a + b }, func(a, b float64) float64 { return a + b }),
	"Sub": arithmetic(func(a, b int64) int64 { return a - b }, func(a, b float64) float64 { return a - b }),
	"Mul": arithmetic(func(a, b int64) int64 { return a * b }, func(a, b float64) float64 { return a * b }),
	"Div": arithmetic(func(a, b int64) int64 { return a / b }, func(a, b float64) float64 { return a / b }),
	"Mod": foldMod,
	"And": arithmetic(func(a, b int64) int64 { return a & b }, nil),
	"Or":  arithmetic(func(a, b int64) int64 { return a | b }, nil),
	"Xor": arithmetic(func(a, b int64) int64 { return a ^ b }, nil),
	"Min": arithmetic(func(a, b int64) int64 { return min(a, b) }, math.Min),
	"Max": arithmetic(func(a, b int64) int64 { return max(a, b) }, math.Max),
	"Pow": arithmetic(nil, math.Pow),

	"Equal":          compare(func(a, b float64) bool { return a == b }),
	"Greater":        compare(func(a, b float64) bool { return a > b }),
	"Less":           compare(func(a, b float64) bool { return a < b }),
	"GreaterOrEqual": compare(func(a, b float64) bool { return a >= b }),
	"LessOrEqual":    compare(func(a, b float64) bool { return a <= b }),

	"Neg":   foldUnary(func(a float64) float64 { return -a }),
	"Abs":   foldUnary(math.Abs),
	"Floor": foldUnary(math.Floor),
	"Ceil":  foldUnary(math.Ceil),
	"Round": foldUnary(math.RoundToEven),
	"Sqrt":  foldUnary(math.Sqrt),
	"Relu":  foldUnary(func(a float64) float64 { return math.Max(a, 0) }),
}

// foldMod follows the sign of the divisor, or with fmod that of the dividend.
func foldMod(c *inference) *Tensor {
	if c.attrs().Int("fmod", 0) != 0 {
		return arithmetic(func(a, b int64) int64 { return a % b }, math.Mod)(c)
	}
	return arithmetic(floorMod, nil)(c)
}

func floorMod(a, b int64) int64 {
	m := a % b
	if m != 0 && (m < 0) != (b < 0) {
		m += b
	}
	return m
}

func fold(c *inference) {
	n := c.node
	if n.OpType == "Split" && n.Domain == "" {
		foldSplit(c)
		return
	}
	out := n.Outputs[0]
	f, ok := folders[n.OpType]
	if !ok || n.Domain != "" || len(n.Outputs) != 1 || out.constant != nil || len(n.Inputs) == 0 || out.Elements() > maxFoldElements {
		return
	}
	for _, v := range n.Inputs {
		if v != nil && (v.constant == nil || v.Elements() > maxFoldElements) {
			return
		}
	}
	if !n.graph.afford(out.Elements() * out.typ.Size()) {
		return
	}
	if t := f(c); t != nil && t.check() == nil {
		t.Name = out.name
		out.constant = t
	}
}

// afford takes bytes from what folding may allocate.
func (g *Graph) afford(bytes int) bool {
	r := g.root()
	if r.foldBytes+bytes > maxFoldBytes {
		return false
	}
	r.foldBytes += bytes
	return true
}

// foldSplit cuts a known value, the one folded operator with several outputs.
func foldSplit(c *inference) {
	x := c.in(0)
	if x.constant == nil || x.Elements() > maxFoldElements || !c.node.graph.afford(len(x.constant.Data)) {
		return
	}
	axis := c.axis(c.attrs().Int("axis", 0), len(x.shape))
	inner := Elements(x.shape[axis+1:]) * x.typ.Size()
	start := 0
	for _, v := range c.node.Outputs {
		var data []byte
		width := v.Dim(axis) * inner
		for b := range Elements(x.shape[:axis]) {
			at := b*x.shape[axis]*inner + start
			data = append(data, x.constant.Data[at:at+width]...)
		}
		start += width
		v.constant = &Tensor{Name: v.name, Type: v.typ, Shape: v.shape, Data: data}
	}
}

// result makes a tensor of the output's type and shape from values that are
// floats for floating-point types and ints otherwise.
func (c *inference) result(floats []float64, ints []int64) *Tensor {
	out := c.node.Outputs[0]
	if out.typ == Float16 || out.typ == BFloat16 {
		return nil
	}
	return tensorOf(out.typ, out.shape, floats, ints)
}

// same keeps the bytes under the output's shape.
func same(c *inference) *Tensor {
	return &Tensor{Type: c.node.Outputs[0].typ, Shape: c.node.Outputs[0].shape, Data: c.in(0).constant.Data}
}

// pick returns the elements of input 0 at flat positions.
func (c *inference) pick(positions []int) *Tensor {
	out := c.node.Outputs[0]
	in, size := c.in(0).constant, out.typ.Size()
	data := make([]byte, 0, len(positions)*size)
	for _, p := range positions {
		data = append(data, in.Data[p*size:(p+1)*size]...)
	}
	return &Tensor{Type: out.typ, Shape: out.shape, Data: data}
}

// positions returns, for each element of a tensor of the given shape in row-major
// order, base plus the sum of index times stride.
func positions(shape, strides []int, base int) []int {
	out := make([]int, 0, Elements(shape))
	if Elements(shape) == 0 {
		return out
	}
	index := make([]int, len(shape))
	p := base
	for {
		out = append(out, p)
		i := len(shape) - 1
		for ; i >= 0; i-- {
			index[i]++
			p += strides[i]
			if index[i] < shape[i] {
				break
			}
			p -= strides[i] * shape[i]
			index[i] = 0
		}
		if i < 0 {
			return out
		}
	}
}

// rowMajor returns the strides of a dense tensor, in elements.
func rowMajor(shape []int) []int {
	s := make([]int, len(shape))
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		s[i] = n
		n *= shape[i]
	}
	return s
}

// broadcastStrides returns strides that read a tensor of shape from as if it
// had been expanded to shape to.
func broadcastStrides(from, to []int) []int {
	s := rowMajor(from)
	out := make([]int, len(to))
	for i := range from {
		if from[i] != 1 {
			out[len(to)-len(from)+i] = s[i]
		}
	}
	return out
}

func foldTranspose(c *inference) *Tensor {
	in := rowMajor(c.in(0).shape)
	strides := make([]int, len(in))
	for i, a := range Permutation(c.node) {
		strides[i] = in[a]
	}
	return c.pick(positions(c.node.Outputs[0].shape, strides, 0))
}

func foldSlice(c *inference) *Tensor {
	strides := rowMajor(c.in(0).shape)
	base := 0
	for i, s := range c.spans() {
		base += s.Start * strides[i]
		strides[i] *= s.Step
	}
	return c.pick(positions(c.node.Outputs[0].shape, strides, base))
}

func foldExpand(c *inference) *Tensor {
	to := c.node.Outputs[0].shape
	return c.pick(positions(to, broadcastStrides(c.in(0).shape, to), 0))
}

func foldTile(c *inference) *Tensor {
	x := c.in(0)
	if x.Elements() == 0 {
		return nil
	}
	strides := rowMajor(x.shape)
	out := c.node.Outputs[0].shape
	at := make([]int, 0, Elements(out))
	for _, p := range positions(out, rowMajor(out), 0) {
		source := 0
		for i, s := range rowMajor(out) {
			source += p / s % out[i] % x.shape[i] * strides[i]
		}
		at = append(at, source)
	}
	return c.pick(at)
}

func foldGather(c *inference) *Tensor {
	x, idx := c.in(0), c.in(1)
	axis := c.axis(c.attrs().Int("axis", 0), len(x.shape))
	before, dim, after := Elements(x.shape[:axis]), x.shape[axis], Elements(x.shape[axis+1:])
	at := make([]int, 0, c.node.Outputs[0].Elements())
	chosen := idx.constant.Ints()
	for b := range before {
		for _, i := range chosen {
			if i < 0 {
				i += int64(dim)
			}
			for a := range after {
				at = append(at, (b*dim+int(i))*after+a)
			}
		}
	}
	return c.pick(at)
}

func foldConcat(c *inference) *Tensor {
	out := c.node.Outputs[0]
	axis := c.axis(c.attrs().Int("axis", 0), len(out.shape))
	var data []byte
	for b := range Elements(out.shape[:axis]) {
		for _, v := range c.node.Inputs {
			chunk := Elements(v.shape[axis:]) * v.typ.Size()
			data = append(data, v.constant.Data[b*chunk:(b+1)*chunk]...)
		}
	}
	return &Tensor{Type: out.typ, Shape: out.shape, Data: data}
}

func foldConstantOfShape(c *inference) *Tensor {
	out := c.node.Outputs[0]
	data := make([]byte, 0, out.Elements()*out.typ.Size())
	unit := make([]byte, out.typ.Size())
	if v := c.attrs().Tensor("value"); v != nil {
		unit = v.Data
	}
	for range out.Elements() {
		data = append(data, unit...)
	}
	return &Tensor{Type: out.typ, Shape: out.shape, Data: data}
}

func foldRange(c *inference) *Tensor {
	out := c.node.Outputs[0]
	n := out.Elements()
	if out.typ.IsFloat() {
		start, step := c.in(0).constant.Float64s()[0], c.in(2).constant.Float64s()[0]
		v := make([]float64, n)
		for i := range v {
			v[i] = start + float64(i)*step
		}
		return c.result(v, nil)
	}
	start, step := c.in(0).constant.Ints()[0], c.in(2).constant.Ints()[0]
	v := make([]int64, n)
	for i := range v {
		v[i] = start + int64(i)*step
	}
	return c.result(nil, v)
}

func foldCast(c *inference) *Tensor {
	from, to := c.in(0).constant, c.node.Outputs[0].typ
	if to.IsFloat() {
		return c.result(from.Float64s(), nil)
	}
	ints := from.Ints()
	if ints == nil {
		floats := from.Float64s()
		ints = make([]int64, len(floats))
		for i, f := range floats {
			ints[i] = int64(f)
			if to == Bool && f != 0 {
				ints[i] = 1
			}
		}
		return c.result(nil, ints)
	}
	if to == Bool {
		for i, v := range ints {
			if v != 0 {
				ints[i] = 1
			}
		}
	}
	return c.result(nil, ints)
}

func foldNot(c *inference) *Tensor {
	ints := c.in(0).constant.Ints()
	for i := range ints {
		ints[i] ^= 1
	}
	return c.result(nil, ints)
}

func foldWhere(c *inference) *Tensor {
	out := c.node.Outputs[0]
	choice := c.in(0).constant.Ints()
	at := positions(out.shape, broadcastStrides(c.in(0).shape, out.shape), 0)
	yes := positions(out.shape, broadcastStrides(c.in(1).shape, out.shape), 0)
	no := positions(out.shape, broadcastStrides(c.in(2).shape, out.shape), 0)
	size := out.typ.Size()
	data := make([]byte, 0, len(at)*size)
	for i := range at {
		if choice[at[i]] != 0 {
			data = append(data, c.in(1).constant.Data[yes[i]*size:][:size]...)
		} else {
			data = append(data, c.in(2).constant.Data[no[i]*size:][:size]...)
		}
	}
	return &Tensor{Type: out.typ, Shape: out.shape, Data: data}
}

func foldUnary(f func(float64) float64) folder {
	return func(c *inference) *Tensor {
		v := c.in(0).constant
		if ints := v.Ints(); ints != nil {
			for i, x := range ints {
				ints[i] = int64(f(float64(x)))
			}
			return c.result(nil, ints)
		}
		floats := v.Float64s()
		for i, x := range floats {
			floats[i] = f(x)
		}
		return c.result(floats, nil)
	}
}

// arithmetic folds a binary or variadic operator; a nil function means that the
// operator is not folded for that kind of element.
func arithmetic(ints func(a, b int64) int64, floats func(a, b float64) float64) folder {
	return func(c *inference) *Tensor {
		out := c.node.Outputs[0]
		if out.typ.IsFloat() {
			if floats == nil {
				return nil
			}
			return c.result(accumulate(c, Tensor.Float64s, floats), nil)
		}
		if ints == nil {
			return nil
		}
		if c.node.OpType == "Div" || c.node.OpType == "Mod" {
			for _, v := range c.in(1).constant.Ints() {
				if v == 0 || v == -1 && c.node.OpType == "Mod" {
					return nil
				}
			}
		}
		return c.result(nil, accumulate(c, Tensor.Ints, ints))
	}
}

func accumulate[T int64 | float64](c *inference, read func(Tensor) []T, f func(a, b T) T) []T {
	shape := c.node.Outputs[0].shape
	var total []T
	for i, v := range c.node.Inputs {
		values := read(*v.constant)
		at := positions(shape, broadcastStrides(v.shape, shape), 0)
		if i == 0 {
			total = make([]T, len(at))
			for j, p := range at {
				total[j] = values[p]
			}
			continue
		}
		for j, p := range at {
			total[j] = f(total[j], values[p])
		}
	}
	return total
}

func compare(f func(a, b float64) bool) folder {
	return func(c *inference) *Tensor {
		shape := c.node.Outputs[0].shape
		a, b := c.in(0), c.in(1)
		x, y := a.constant.Float64s(), b.constant.Float64s()
		at := positions(shape, broadcastStrides(a.shape, shape), 0)
		bt := positions(shape, broadcastStrides(b.shape, shape), 0)
		out := make([]int64, len(at))
		for i := range out {
			if f(x[at[i]], y[bt[i]]) {
				out[i] = 1
			}
		}
		return c.result(nil, out)
	}
}

func foldReduce(start float64, f func(a, b float64) float64) folder {
	return func(c *inference) *Tensor {
		x := c.in(0)
		axes, _ := c.reduced()
		strides := rowMajor(reducedShape(x.shape, axes, true))
		for _, a := range axes {
			strides[a] = 0
		}
		floats := x.constant.Float64s()
		total := slices.Repeat([]float64{start}, c.node.Outputs[0].Elements())
		for i, p := range positions(x.shape, strides, 0) {
			total[p] = f(total[p], floats[i])
		}
		if c.node.Outputs[0].typ.IsFloat() {
			return c.result(total, nil)
		}
		ints := make([]int64, len(total))
		for i, v := range total {
			ints[i] = int64(v)
		}
		return c.result(nil, ints)
	}
}
