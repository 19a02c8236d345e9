package onnx

import (
	"fmt"
	"math"
	"slices"
)

// This file holds short forms of [Graph.Op] for the operators that builders use
// most. Each hides what differs between operator sets.

// Const returns a scalar constant of type t. Equal constants of one graph are
// one initialiser.
func (g *Graph) Const(t DataType, v float64) *Value {
	if t.IsFloat() {
		if t == Float16 || t == BFloat16 {
			return g.Cast(g.Const(Float, v), t)
		}
		return g.shared(tensorOf(t, nil, []float64{v}, nil))
	}
	return g.shared(tensorOf(t, nil, nil, []int64{int64(v)}))
}

// ConstLike returns a scalar constant of the type of x.
func (g *Graph) ConstLike(x *Value, v float64) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	return g.Const(x.typ, v)
}

// Ints returns a one-dimensional int64 constant.
func (g *Graph) Ints(v ...int) *Value {
	list := make([]int64, len(v))
	for i, x := range v {
		list[i] = int64(x)
	}
	return g.shared(tensorOf(Int64, []int{len(v)}, nil, list))
}

// Floats returns a one-dimensional float constant.
func (g *Graph) Floats(v ...float64) *Value {
	return g.shared(tensorOf(Float, []int{len(v)}, v, nil))
}

// Filled returns a constant of the given shape whose elements all are v.
func (g *Graph) Filled(t DataType, v float64, shape ...int) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	var value *Tensor
	if t.IsFloat() && t != Float16 && t != BFloat16 {
		value = tensorOf(t, []int{1}, []float64{v}, nil)
	} else if !t.IsFloat() && t.Size() > 0 {
		value = tensorOf(t, []int{1}, nil, []int64{int64(v)})
	} else {
		return g.Cast(g.Filled(Float, v, shape...), t)
	}
	return g.Op("ConstantOfShape", Attrs{"value": value}, g.Ints(shape...))
}

// shared returns an initialiser with these contents, made once a graph.
func (g *Graph) shared(t *Tensor) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	key := fmt.Sprintf("%d %v %x", t.Type, t.Shape, t.Data)
	if v := g.constants[key]; v != nil {
		return v
	}
	t.Name = g.unique("const")
	v := g.addInitializer(t)
	if len(key) <= 256 { // a longer one is not worth a place in memory
		g.constants[key] = v
	}
	return v
}

// addInitializer adds a tensor whose name is claimed already.
func (g *Graph) addInitializer(t *Tensor) *Value {
	v := &Value{name: t.Name, typ: t.Type, shape: cloneShape(t.Shape), graph: g, kind: initializer, constant: t}
	g.initializers = append(g.initializers, v)
	g.values[t.Name] = v
	return v
}

// Add returns a + b, broadcast.
func (g *Graph) Add(a, b *Value) *Value { return g.Op("Add", nil, a, b) }

// Sub returns a − b, broadcast.
func (g *Graph) Sub(a, b *Value) *Value { return g.Op("Sub", nil, a, b) }

// Mul returns a·b element by element, broadcast.
func (g *Graph) Mul(a, b *Value) *Value { return g.Op("Mul", nil, a, b) }

// Div returns a/b element by element, broadcast.
func (g *Graph) Div(a, b *Value) *Value { return g.Op("Div", nil, a, b) }

// Neg returns −x.
func (g *Graph) Neg(x *Value) *Value { return g.Op("Neg", nil, x) }

// Exp returns eˣ.
func (g *Graph) Exp(x *Value) *Value { return g.Op("Exp", nil, x) }

// Log returns the natural logarithm.
func (g *Graph) Log(x *Value) *Value { return g.Op("Log", nil, x) }

// Sqrt returns the square root.
func (g *Graph) Sqrt(x *Value) *Value { return g.Op("Sqrt", nil, x) }

// Scale returns x times a number.
func (g *Graph) Scale(x *Value, by float64) *Value { return g.Mul(x, g.ConstLike(x, by)) }

// MatMul returns the matrix product a·b over the last two dimensions.
func (g *Graph) MatMul(a, b *Value) *Value { return g.Op("MatMul", nil, a, b) }

// Gemm returns alpha·op(a)·op(b) + beta·c for matrices; c may be nil.
func (g *Graph) Gemm(a, b, c *Value, attrs Attrs) *Value { return g.Op("Gemm", attrs, a, b, c) }

// Linear returns x·w + b over the last dimension of x, with w of shape
// [in, out]; b may be nil.
func (g *Graph) Linear(x, w, b *Value) *Value {
	y := g.MatMul(x, w)
	if b == nil {
		return y
	}
	return g.Add(y, b)
}

// ConvOptions is the geometry of a convolution over n spatial dimensions; nil
// lists stand for strides and dilations of 1 and no padding.
type ConvOptions struct {
	Strides, Dilations []int
	Pads               []int // n begins, then n ends
	Group              int   // 0 means 1
	OutputPadding      []int // ConvTranspose only
}

func (o ConvOptions) attrs(kernel []int) Attrs {
	a := Attrs{"kernel_shape": kernel}
	if o.Strides != nil {
		a["strides"] = o.Strides
	}
	if o.Dilations != nil {
		a["dilations"] = o.Dilations
	}
	if o.Pads != nil {
		a["pads"] = o.Pads
	}
	if o.Group != 0 {
		a["group"] = o.Group
	}
	if o.OutputPadding != nil {
		a["output_padding"] = o.OutputPadding
	}
	return a
}

// Conv convolves x [N,C,d...] with w [M,C/group,k...]; bias [M] may be nil.
func (g *Graph) Conv(x, w, bias *Value, o ConvOptions) *Value {
	return g.conv("Conv", x, w, bias, o)
}

func (g *Graph) conv(op string, x, w, bias *Value, o ConvOptions) *Value {
	if g.Err() != nil || w.bad || len(w.shape) < 3 {
		return g.Op(op, nil, x, w, bias)
	}
	return g.Op(op, o.attrs(w.shape[2:]), x, w, bias)
}

// ConvTranspose is the gradient of Conv with respect to its input: x [N,M,d...]
// and w [M,C/group,k...] give [N,C,...]; bias [C] may be nil.
func (g *Graph) ConvTranspose(x, w, bias *Value, o ConvOptions) *Value {
	return g.conv("ConvTranspose", x, w, bias, o)
}

// Reshape gives x another shape; one dimension may be −1, and 0 keeps the
// dimension at its place.
func (g *Graph) Reshape(x *Value, shape ...int) *Value {
	return g.Op("Reshape", nil, x, g.Ints(shape...))
}

// Flatten returns a matrix whose rows are the dimensions before axis.
func (g *Graph) Flatten(x *Value, axis int) *Value {
	return g.Op("Flatten", Attrs{"axis": axis}, x)
}

// Transpose permutes the dimensions.
func (g *Graph) Transpose(x *Value, perm ...int) *Value {
	return g.Op("Transpose", Attrs{"perm": perm}, x)
}

// Squeeze drops dimensions of 1.
func (g *Graph) Squeeze(x *Value, axes ...int) *Value {
	return g.Op("Squeeze", nil, x, g.Ints(axes...))
}

// Unsqueeze inserts dimensions of 1 at the given axes of the result.
func (g *Graph) Unsqueeze(x *Value, axes ...int) *Value {
	return g.Op("Unsqueeze", nil, x, g.Ints(axes...))
}

// Expand broadcasts x to a shape.
func (g *Graph) Expand(x *Value, shape ...int) *Value {
	return g.Op("Expand", nil, x, g.Ints(shape...))
}

// Concat joins values along an axis.
func (g *Graph) Concat(axis int, x ...*Value) *Value {
	return g.Op("Concat", Attrs{"axis": axis}, x...)
}

// Slice takes x[start:end] along one axis; end may be [End].
func (g *Graph) Slice(x *Value, axis, start, end int) *Value {
	return g.Op("Slice", nil, x, g.Ints(start), g.Ints(end), g.Ints(axis))
}

// SliceStep takes x[start:end:step] along several axes.
func (g *Graph) SliceStep(x *Value, axes, starts, ends, steps []int) *Value {
	return g.Op("Slice", nil, x, g.Ints(starts...), g.Ints(ends...), g.Ints(axes...), g.Ints(steps...))
}

// End is the end of any axis for Slice.
const End = math.MaxInt64

// Split cuts x along an axis into parts of the given lengths.
func (g *Graph) Split(x *Value, axis int, parts ...int) []*Value {
	return g.OpN("Split", len(parts), Attrs{"axis": axis}, x, g.Ints(parts...))
}

// Gather takes elements along an axis by int64 or int32 indices.
func (g *Graph) Gather(x, indices *Value, axis int) *Value {
	return g.Op("Gather", Attrs{"axis": axis}, x, indices)
}

// At takes one element along an axis, which is dropped.
func (g *Graph) At(x *Value, axis, index int) *Value {
	return g.Gather(x, g.Const(Int64, float64(index)), axis)
}

// Pad adds zeros, or takes elements away where negative, before and after each
// axis: all begins, then all ends.
func (g *Graph) Pad(x *Value, pads ...int) *Value {
	return g.Op("Pad", nil, x, g.Ints(pads...))
}

// Softmax normalises over an axis.
func (g *Graph) Softmax(x *Value, axis int) *Value {
	return g.Op("Softmax", Attrs{"axis": axis}, x)
}

// LogSoftmax is the logarithm of Softmax.
func (g *Graph) LogSoftmax(x *Value, axis int) *Value {
	return g.Op("LogSoftmax", Attrs{"axis": axis}, x)
}

// LayerNorm normalises over the last dimension; bias may be nil.
func (g *Graph) LayerNorm(x, scale, bias *Value, epsilon float64) *Value {
	return g.Op("LayerNormalization", Attrs{"axis": -1, "epsilon": epsilon}, x, scale, bias)
}

// GroupNorm normalises x [N,C,...] over groups of channels. It is emitted as
// Reshape, InstanceNormalization and an affine map, because GroupNormalization
// has no kernel on CUDA and a slow one on the CPU. Scale and bias are [C].
func (g *Graph) GroupNorm(x, scale, bias *Value, groups int, epsilon float64) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	if x.Rank() < 3 || groups < 1 || x.shape[1]%groups != 0 {
		g.fail(fmt.Errorf("group norm of %q %v: channels do not split into %d groups", x.name, x.shape, groups))
		return g.badValue()
	}
	h := g.Reshape(x, x.shape[0], groups, -1)
	h = g.Op("InstanceNormalization", Attrs{"epsilon": epsilon}, h,
		g.Repeated(x.typ, 1, groups), g.Repeated(x.typ, 0, groups))
	h = g.Reshape(h, x.shape...)
	channel := PerChannel(x.shape[1], x.Rank())
	return g.Add(g.Mul(h, g.Reshape(scale, channel...)), g.Reshape(bias, channel...))
}

// Repeated returns a one-dimensional constant of n equal elements, kept as an
// initialiser: unlike [Graph.Filled] nothing is computed at run time.
func (g *Graph) Repeated(t DataType, v float64, n int) *Value {
	if g.Err() != nil {
		return g.badValue()
	}
	key := fmt.Sprintf("repeated %d %v %d", t, v, n)
	if c := g.constants[key]; c != nil {
		return c
	}
	c := tensorOf(t, []int{n}, slices.Repeat([]float64{v}, n), slices.Repeat([]int64{int64(v)}, n))
	c.Name = g.unique("const")
	g.constants[key] = g.addInitializer(c)
	return g.constants[key]
}

// Gelu is the exact, erf-based GELU. Below operator set 20 it is composed.
func (g *Graph) Gelu(x *Value) *Value {
	if g.opset >= 20 || g.Err() != nil {
		return g.Op("Gelu", nil, x)
	}
	phi := g.Add(g.Op("Erf", nil, g.Scale(x, math.Sqrt2/2)), g.ConstLike(x, 1))
	return g.Mul(g.Mul(x, phi), g.ConstLike(x, 0.5))
}

// Sigmoid is 1/(1+e⁻ˣ).
func (g *Graph) Sigmoid(x *Value) *Value { return g.Op("Sigmoid", nil, x) }

// SiLU is x·sigmoid(x).
func (g *Graph) SiLU(x *Value) *Value { return g.Mul(x, g.Sigmoid(x)) }

// Relu is max(x, 0).
func (g *Graph) Relu(x *Value) *Value { return g.Op("Relu", nil, x) }

// Cast converts to another element type; a value of that type passes as it is.
func (g *Graph) Cast(x *Value, to DataType) *Value {
	if g.Err() == nil && x.typ == to {
		return x
	}
	return g.Op("Cast", Attrs{"to": to}, x)
}

// Reduce applies ReduceSum, ReduceMean, ReduceMax and so on over axes (none
// means all of them) and keeps the reduced axes as 1 when keep is set.
func (g *Graph) Reduce(op string, x *Value, keep bool, axes ...int) *Value {
	attrs := Attrs{"keepdims": keep}
	if len(axes) == 0 {
		return g.Op(op, attrs, x)
	}
	if op == "ReduceSum" || g.opset >= 18 {
		return g.Op(op, attrs, x, g.Ints(axes...))
	}
	attrs["axes"] = axes
	return g.Op(op, attrs, x)
}

// ReduceSum sums over axes; none means all of them.
func (g *Graph) ReduceSum(x *Value, keep bool, axes ...int) *Value {
	return g.Reduce("ReduceSum", x, keep, axes...)
}

// ReduceMean averages over axes; none means all of them.
func (g *Graph) ReduceMean(x *Value, keep bool, axes ...int) *Value {
	return g.Reduce("ReduceMean", x, keep, axes...)
}

// ResizeNearest enlarges the spatial dimensions of x [N,C,H,W] by a whole
// factor, repeating pixels.
func (g *Graph) ResizeNearest(x *Value, factor int) *Value {
	f := float64(factor)
	return g.Op("Resize", Attrs{
		"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor",
	}, x, nil, g.Floats(1, 1, f, f))
}

// AveragePool averages windows of k×k at a stride.
func (g *Graph) AveragePool(x *Value, k, stride int) *Value {
	return g.Op("AveragePool", Attrs{"kernel_shape": []int{k, k}, "strides": []int{stride, stride}}, x)
}

// Loop runs body as often as the scalar int64 value trip says; body gets the
// iteration (a scalar int64) and the carried values, and returns their next
// values and what is to be stacked. It may use values of g and of the graphs
// around it. Loop returns the final carried values and the stacked ones, whose
// first dimension is the trip count, which then must be constant.
func (g *Graph) Loop(trip *Value, carried []*Value, body func(b *Graph, iteration *Value, carried []*Value) (next, stacked []*Value)) (final, stacked []*Value) {
	if g.Err() != nil {
		return nil, nil
	}
	b := g.subgraph(g.unique(g.scope + "body"))
	b.scope = b.name + "/"
	iteration := b.Input(b.fresh("iteration"), Int64)
	going := b.Input(b.fresh("going"), Bool)
	inner := make([]*Value, len(carried))
	for i, v := range carried {
		if v == nil || v.bad {
			g.fail(fmt.Errorf("loop %q: carried value %d is missing", b.name, i))
			return nil, nil
		}
		inner[i] = b.Input(b.fresh("carried"), v.typ, v.shape...)
	}
	next, stack := body(b, iteration, inner)
	if g.Err() != nil {
		return nil, nil
	}
	if len(next) != len(carried) {
		g.fail(fmt.Errorf("loop %q: the body returns %d carried values of %d", b.name, len(next), len(carried)))
		return nil, nil
	}
	b.Output(b.fresh("still_going"), b.Op("Identity", nil, going))
	for _, v := range next {
		b.Output(b.fresh("next"), v)
	}
	for _, v := range stack {
		b.Output(b.fresh("stacked"), v)
	}
	if g.Err() != nil {
		return nil, nil
	}
	in := append([]*Value{trip, g.Const(Bool, 1)}, carried...)
	out := g.OpN("Loop", len(carried)+len(stack), Attrs{"body": b}, in...)
	if g.Err() != nil {
		return nil, nil
	}
	return out[:len(carried)], out[len(carried):]
}

// fresh returns a name under the scope that is free to claim.
func (g *Graph) fresh(name string) string {
	full := g.unique(g.scope + name)
	delete(g.root().names, full)
	return full
}
