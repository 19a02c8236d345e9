package autodiff

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// This file evaluates graphs in plain float64 loops, after the formulas of the
// ONNX operator documentation and without sharing code with the rules or with
// ONNX Runtime: the independent reference for finite differences.

// array is a dense row-major tensor; integers and booleans are float64, too.
type array struct {
	shape []int
	data  []float64
}

func newArray(shape ...int) array {
	return array{shape, make([]float64, size(shape))}
}

func size(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func strides(shape []int) []int {
	s := make([]int, len(shape))
	n := 1
	for i := len(shape) - 1; i >= 0; i-- {
		s[i], n = n, n*shape[i]
	}
	return s
}

// each calls f with every index of a shape, in row-major order.
func each(shape []int, f func(index []int, flat int)) {
	if size(shape) == 0 {
		return
	}
	index := make([]int, len(shape))
	for flat := 0; ; flat++ {
		f(index, flat)
		i := len(shape) - 1
		for ; i >= 0; i-- {
			if index[i]++; index[i] < shape[i] {
				break
			}
			index[i] = 0
		}
		if i < 0 {
			return
		}
	}
}

// at reads with numpy's broadcasting.
func (a array) at(index []int) float64 {
	p, s := 0, strides(a.shape)
	shift := len(index) - len(a.shape)
	for i, d := range a.shape {
		if d != 1 {
			p += index[shift+i] * s[i]
		}
	}
	return a.data[p]
}

func (a array) offset(index []int) int {
	p, s := 0, strides(a.shape)
	for i := range a.shape {
		p += index[i] * s[i]
	}
	return p
}

func (a array) ints() []int {
	out := make([]int, len(a.data))
	for i, v := range a.data {
		out[i] = int(v)
	}
	return out
}

// evaluate computes the wanted values of a graph from its inputs.
func evaluate(g *onnx.Graph, inputs map[*onnx.Value]array, wanted ...*onnx.Value) (out []array, err error) {
	defer func() {
		if p := recover(); p != nil {
			if s, ok := p.(string); ok {
				err = fmt.Errorf("reference: %s", s)
				return
			}
			panic(p)
		}
	}()
	values := map[*onnx.Value]array{}
	maps.Copy(values, inputs)
	for _, v := range g.Initializers() {
		if _, given := values[v]; !given {
			values[v] = array{v.Shape(), v.Const().Float64s()}
		}
	}
	for _, n := range g.Nodes() {
		in := make([]array, len(n.Inputs))
		for i, v := range n.Inputs {
			if v != nil {
				in[i] = values[v]
			}
		}
		result := reference(n, in)
		for i, v := range n.Outputs {
			if i >= len(result) {
				panic(fmt.Sprintf("%s has no output %d", n, i))
			}
			if !slices.Equal(result[i].shape, v.Shape()) {
				panic(fmt.Sprintf("%s gives %v, inferred %v", n, result[i].shape, v.Shape()))
			}
			values[v] = result[i]
		}
	}
	for _, v := range wanted {
		out = append(out, values[v])
	}
	return out, nil
}

var unaryReference = map[string]func(x float64, a onnx.Attrs) float64{
	"Identity":   func(x float64, _ onnx.Attrs) float64 { return x },
	"Cast":       func(x float64, _ onnx.Attrs) float64 { return x },
	"Neg":        func(x float64, _ onnx.Attrs) float64 { return -x },
	"Exp":        func(x float64, _ onnx.Attrs) float64 { return math.Exp(x) },
	"Log":        func(x float64, _ onnx.Attrs) float64 { return math.Log(x) },
	"Sqrt":       func(x float64, _ onnx.Attrs) float64 { return math.Sqrt(x) },
	"Reciprocal": func(x float64, _ onnx.Attrs) float64 { return 1 / x },
	"Sin":        func(x float64, _ onnx.Attrs) float64 { return math.Sin(x) },
	"Cos":        func(x float64, _ onnx.Attrs) float64 { return math.Cos(x) },
	"Tan":        func(x float64, _ onnx.Attrs) float64 { return math.Tan(x) },
	"Atan":       func(x float64, _ onnx.Attrs) float64 { return math.Atan(x) },
	"Erf":        func(x float64, _ onnx.Attrs) float64 { return math.Erf(x) },
	"Tanh":       func(x float64, _ onnx.Attrs) float64 { return math.Tanh(x) },
	"Sigmoid":    func(x float64, _ onnx.Attrs) float64 { return 1 / (1 + math.Exp(-x)) },
	"Relu":       func(x float64, _ onnx.Attrs) float64 { return math.Max(x, 0) },
	"Softplus":   func(x float64, _ onnx.Attrs) float64 { return math.Log1p(math.Exp(x)) },
	"Softsign":   func(x float64, _ onnx.Attrs) float64 { return x / (1 + math.Abs(x)) },
	"Mish":       func(x float64, _ onnx.Attrs) float64 { return x * math.Tanh(math.Log1p(math.Exp(x))) },
	"Abs":        func(x float64, _ onnx.Attrs) float64 { return math.Abs(x) },
	"Floor":      func(x float64, _ onnx.Attrs) float64 { return math.Floor(x) },
	"Sign": func(x float64, _ onnx.Attrs) float64 {
		switch {
		case x > 0:
			return 1
		case x < 0:
			return -1
		}
		return 0
	},
	"Not": func(x float64, _ onnx.Attrs) float64 { return 1 - x },
	"LeakyRelu": func(x float64, a onnx.Attrs) float64 {
		return math.Max(x, 0) + float64(a.Float("alpha", 0.01))*math.Min(x, 0)
	},
	"Elu": func(x float64, a onnx.Attrs) float64 {
		return math.Max(x, 0) + float64(a.Float("alpha", 1))*math.Expm1(math.Min(x, 0))
	},
	"Selu": func(x float64, _ onnx.Attrs) float64 {
		return 1.05070102214813232421875 * (math.Max(x, 0) + 1.67326319217681884765625*math.Expm1(math.Min(x, 0)))
	},
	"Celu": func(x float64, a onnx.Attrs) float64 {
		al := float64(a.Float("alpha", 1))
		return math.Max(x, 0) + al*math.Expm1(math.Min(x, 0)/al)
	},
	"HardSigmoid": func(x float64, a onnx.Attrs) float64 {
		return math.Max(0, math.Min(1, float64(a.Float("alpha", 0.2))*x+float64(a.Float("beta", 0.5))))
	},
	"HardSwish": func(x float64, _ onnx.Attrs) float64 { return x * math.Max(0, math.Min(1, x/6+0.5)) },
	"Gelu": func(x float64, a onnx.Attrs) float64 {
		if a.String("approximate", "none") == "tanh" {
			return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
		}
		return 0.5 * x * math.Erfc(-x/math.Sqrt2)
	},
	"QuickGelu": func(x float64, a onnx.Attrs) float64 {
		return x / (1 + math.Exp(-float64(a.Float("alpha", 1.702))*x))
	},
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var binaryReference = map[string]func(a, b float64) float64{
	"Add":            func(a, b float64) float64 { return a + b },
	"Sub":            func(a, b float64) float64 { return a - b },
	"Mul":            func(a, b float64) float64 { return a * b },
	"Div":            func(a, b float64) float64 { return a / b },
	"Pow":            math.Pow,
	"Min":            math.Min,
	"Max":            math.Max,
	"Sum":            func(a, b float64) float64 { return a + b },
	"Mean":           func(a, b float64) float64 { return a + b },
	"And":            func(a, b float64) float64 { return a * b },
	"Equal":          func(a, b float64) float64 { return truth(a == b) },
	"Greater":        func(a, b float64) float64 { return truth(a > b) },
	"Less":           func(a, b float64) float64 { return truth(a < b) },
	"GreaterOrEqual": func(a, b float64) float64 { return truth(a >= b) },
	"LessOrEqual":    func(a, b float64) float64 { return truth(a <= b) },
	"PRelu":          func(a, b float64) float64 { return math.Max(a, 0) + b*math.Min(a, 0) },
}

// reference computes one node.
func reference(n *onnx.Node, in []array) []array {
	a := n.Attrs
	if f := unaryReference[n.OpType]; f != nil {
		y := newArray(in[0].shape...)
		for i, x := range in[0].data {
			y.data[i] = f(x, a)
		}
		return []array{y}
	}
	if f := binaryReference[n.OpType]; f != nil {
		y := in[0]
		for _, b := range in[1:] {
			x := y
			shape, _ := onnx.Broadcast(x.shape, b.shape)
			y = newArray(shape...)
			each(shape, func(index []int, flat int) { y.data[flat] = f(x.at(index), b.at(index)) })
		}
		if n.OpType == "Mean" {
			mean := newArray(y.shape...)
			for i := range y.data {
				mean.data[i] = y.data[i] / float64(len(in))
			}
			y = mean
		}
		return []array{y}
	}
	y := func() array { return newArray(n.Outputs[0].Shape()...) }
	axisOf := func(def, rank int) int {
		axis := a.Int("axis", def)
		if axis < 0 {
			axis += rank
		}
		return axis
	}
	switch n.OpType {
	case "Where":
		out := y()
		each(out.shape, func(index []int, flat int) {
			out.data[flat] = in[2].at(index)
			if in[0].at(index) != 0 {
				out.data[flat] = in[1].at(index)
			}
		})
		return []array{out}
	case "Clip":
		out := y()
		for i, x := range in[0].data {
			if len(in) > 1 && in[1].data != nil {
				x = math.Max(x, in[1].data[0])
			}
			if len(in) > 2 && in[2].data != nil {
				x = math.Min(x, in[2].data[0])
			}
			out.data[i] = x
		}
		return []array{out}
	case "Dropout":
		return []array{in[0]}
	case "MatMul":
		return []array{matMulReference(in[0], in[1], n.Outputs[0].Shape())}
	case "FusedMatMul":
		l, r := in[0], in[1]
		if a.Int("transA", 0) != 0 {
			l = swapped(l)
		}
		if a.Int("transB", 0) != 0 {
			r = swapped(r)
		}
		out := matMulReference(l, r, n.Outputs[0].Shape())
		for i := range out.data {
			out.data[i] *= float64(a.Float("alpha", 1))
		}
		return []array{out}
	case "Gemm":
		l, r := in[0], in[1]
		if a.Int("transA", 0) != 0 {
			l = swapped(l)
		}
		if a.Int("transB", 0) != 0 {
			r = swapped(r)
		}
		out := matMulReference(l, r, n.Outputs[0].Shape())
		each(out.shape, func(index []int, flat int) {
			out.data[flat] *= float64(a.Float("alpha", 1))
			if len(in) > 2 {
				out.data[flat] += float64(a.Float("beta", 1)) * in[2].at(index)
			}
		})
		return []array{out}
	case "Einsum":
		return []array{einsumReference(a.String("equation", ""), in, n.Outputs[0].Shape())}
	case "Softmax", "LogSoftmax":
		return []array{softmaxReference(in[0], axisOf(-1, len(in[0].shape)), n.OpType == "LogSoftmax")}
	case "LayerNormalization", "RMSNormalization":
		axis := axisOf(-1, len(in[0].shape))
		return layerNormReference(n, in, size(in[0].shape[:axis]), size(in[0].shape[axis:]))
	case "InstanceNormalization":
		return []array{groupNormReference(in, in[0].shape[1], float64(a.Float("epsilon", 1e-5)))}
	case "GroupNormalization":
		return []array{groupNormReference(in, a.Int("num_groups", 1), float64(a.Float("epsilon", 1e-5)))}
	case "BatchNormalization":
		out := y()
		each(out.shape, func(index []int, flat int) {
			c := index[1]
			out.data[flat] = (in[0].data[flat]-in[3].data[c])/math.Sqrt(in[4].data[c]+float64(a.Float("epsilon", 1e-5)))*in[1].data[c] + in[2].data[c]
		})
		return []array{out}
	case "Attention":
		return []array{attentionReference(n, in)}
	case "MultiHeadAttention":
		return []array{attentionReference(n, in)}
	case "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss":
		return lossReference(n, in)
	case "Conv":
		return []array{convReference(n, in)}
	case "ConvTranspose":
		return []array{convTransposeReference(n, in)}
	case "MaxPool", "AveragePool":
		return poolReference(n, in[0])
	case "GlobalAveragePool", "GlobalMaxPool":
		axes := []int{}
		for i := 2; i < len(in[0].shape); i++ {
			axes = append(axes, i)
		}
		op := map[string]string{"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[n.OpType]
		return []array{reduceReference(op, in[0], axes, n.Outputs[0].Shape())}
	case "Resize":
		return []array{resizeReference(n, in[0])}
	case "Reshape", "Flatten", "Squeeze", "Unsqueeze":
		return []array{{n.Outputs[0].Shape(), in[0].data}}
	case "Expand":
		out := y()
		each(out.shape, func(index []int, flat int) { out.data[flat] = in[0].at(index) })
		return []array{out}
	case "Tile":
		out := y()
		source := make([]int, len(out.shape))
		each(out.shape, func(index []int, flat int) {
			for i := range index {
				source[i] = index[i] % in[0].shape[i]
			}
			out.data[flat] = in[0].at(source)
		})
		return []array{out}
	case "Transpose":
		out := y()
		perm := a.Ints("perm")
		if perm == nil {
			for i := range out.shape {
				perm = append(perm, len(out.shape)-1-i)
			}
		}
		source := make([]int, len(perm))
		each(out.shape, func(index []int, flat int) {
			for i, p := range perm {
				source[p] = index[i]
			}
			out.data[flat] = in[0].data[in[0].offset(source)]
		})
		return []array{out}
	case "Concat":
		axis := axisOf(0, len(in[0].shape))
		out := y()
		start := 0
		for _, x := range in {
			target := make([]int, len(x.shape))
			each(x.shape, func(index []int, flat int) {
				copy(target, index)
				target[axis] += start
				out.data[out.offset(target)] = x.data[flat]
			})
			start += x.shape[axis]
		}
		return []array{out}
	case "Split":
		axis := axisOf(0, len(in[0].shape))
		start := 0
		var outs []array
		for _, v := range n.Outputs {
			out := newArray(v.Shape()...)
			source := make([]int, len(out.shape))
			each(out.shape, func(index []int, flat int) {
				copy(source, index)
				source[axis] += start
				out.data[flat] = in[0].data[in[0].offset(source)]
			})
			start += v.Dim(axis)
			outs = append(outs, out)
		}
		return outs
	case "Slice":
		return []array{sliceReference(in, n.Outputs[0].Shape())}
	case "Pad":
		out := y()
		for i := range out.data {
			if len(in) > 2 && in[2].data != nil {
				out.data[i] = in[2].data[0]
			}
		}
		begins := make([]int, len(out.shape))
		if len(in) > 3 {
			for i, axis := range in[3].ints() {
				if axis < 0 {
					axis += len(out.shape)
				}
				begins[axis] = in[1].ints()[i]
			}
		} else {
			copy(begins, in[1].ints())
		}
		target := make([]int, len(out.shape))
		each(in[0].shape, func(index []int, flat int) {
			for i := range index {
				target[i] = index[i] + begins[i]
				if target[i] < 0 || target[i] >= out.shape[i] {
					return
				}
			}
			out.data[out.offset(target)] = in[0].data[flat]
		})
		return []array{out}
	case "Gather":
		axis := axisOf(0, len(in[0].shape))
		out := y()
		source := make([]int, len(in[0].shape))
		q := len(in[1].shape)
		each(out.shape, func(index []int, flat int) {
			copy(source, index[:axis])
			at := int(in[1].at(index[axis : axis+q]))
			if at < 0 {
				at += in[0].shape[axis]
			}
			source[axis] = at
			copy(source[axis+1:], index[axis+q:])
			out.data[flat] = in[0].data[in[0].offset(source)]
		})
		return []array{out}
	case "GatherElements":
		axis := axisOf(0, len(in[0].shape))
		out := y()
		source := make([]int, len(out.shape))
		each(out.shape, func(index []int, flat int) {
			copy(source, index)
			source[axis] = int(in[1].data[flat])
			out.data[flat] = in[0].data[in[0].offset(source)]
		})
		return []array{out}
	case "GatherND":
		out := y()
		depth := in[1].shape[len(in[1].shape)-1]
		inner := size(in[0].shape[depth:])
		s := strides(in[0].shape)
		for row := range len(in[1].data) / depth {
			at := 0
			for i := range depth {
				at += int(in[1].data[row*depth+i]) * s[i]
			}
			copy(out.data[row*inner:(row+1)*inner], in[0].data[at:])
		}
		return []array{out}
	case "ScatterElements":
		axis := axisOf(0, len(in[0].shape))
		out := array{in[0].shape, slices.Clone(in[0].data)}
		target := make([]int, len(out.shape))
		each(in[1].shape, func(index []int, flat int) {
			copy(target, index)
			target[axis] = int(in[1].data[flat])
			p := out.offset(target)
			if a.String("reduction", "none") == "add" {
				out.data[p] += in[2].data[flat]
			} else {
				out.data[p] = in[2].data[flat]
			}
		})
		return []array{out}
	case "ScatterND":
		out := array{in[0].shape, slices.Clone(in[0].data)}
		depth := in[1].shape[len(in[1].shape)-1]
		inner := size(out.shape[depth:])
		s := strides(out.shape)
		for row := range len(in[1].data) / depth {
			at := 0
			for i := range depth {
				at += int(in[1].data[row*depth+i]) * s[i]
			}
			for i := range inner {
				if a.String("reduction", "none") == "add" {
					out.data[at+i] += in[2].data[row*inner+i]
				} else {
					out.data[at+i] = in[2].data[row*inner+i]
				}
			}
		}
		return []array{out}
	case "Trilu":
		out := y()
		k := 0
		if len(in) > 1 {
			k = int(in[1].data[0])
		}
		r := len(out.shape)
		each(out.shape, func(index []int, flat int) {
			d := index[r-1] - index[r-2]
			if upper := a.Int("upper", 1) != 0; upper && d >= k || !upper && d <= k {
				out.data[flat] = in[0].data[flat]
			}
		})
		return []array{out}
	case "DepthToSpace":
		out, k := y(), a.Int("blocksize", 1)
		channels := out.shape[1]
		each(out.shape, func(i []int, flat int) {
			row, col := i[2]%k, i[3]%k
			c := (row*k+col)*channels + i[1]
			if a.String("mode", "DCR") == "CRD" {
				c = i[1]*k*k + row*k + col
			}
			out.data[flat] = in[0].at([]int{i[0], c, i[2] / k, i[3] / k})
		})
		return []array{out}
	case "SpaceToDepth":
		out, k := y(), a.Int("blocksize", 1)
		channels := in[0].shape[1]
		each(out.shape, func(i []int, flat int) {
			block, c := i[1]/channels, i[1]%channels
			out.data[flat] = in[0].at([]int{i[0], c, i[2]*k + block/k, i[3]*k + block%k})
		})
		return []array{out}
	case "ConstantOfShape":
		out := y()
		if v := a.Tensor("value"); v != nil {
			for i := range out.data {
				out.data[i] = v.Float64s()[0]
			}
		}
		return []array{out}
	case "CumSum":
		axis := int(in[1].data[0])
		if axis < 0 {
			axis += len(in[0].shape)
		}
		out := y()
		source := make([]int, len(out.shape))
		each(out.shape, func(index []int, flat int) {
			copy(source, index)
			for j := range in[0].shape[axis] {
				before, same := j < index[axis], j == index[axis]
				if a.Int("reverse", 0) != 0 {
					before = j > index[axis]
				}
				if before || same && a.Int("exclusive", 0) == 0 {
					source[axis] = j
					out.data[flat] += in[0].data[in[0].offset(source)]
				}
			}
		})
		return []array{out}
	case "TopK":
		return topKReference(n, in[0])
	}
	if len(n.OpType) > 6 && n.OpType[:6] == "Reduce" {
		axes := a.Ints("axes")
		if len(in) > 1 {
			axes = in[1].ints()
		}
		if len(axes) == 0 {
			for i := range in[0].shape {
				axes = append(axes, i)
			}
		}
		for i, axis := range axes {
			if axis < 0 {
				axes[i] += len(in[0].shape)
			}
		}
		return []array{reduceReference(n.OpType, in[0], axes, n.Outputs[0].Shape())}
	}
	panic(fmt.Sprintf("%s is not implemented", n))
}

func swapped(a array) array {
	r := len(a.shape)
	shape := slices.Clone(a.shape)
	shape[r-1], shape[r-2] = shape[r-2], shape[r-1]
	out := newArray(shape...)
	source := make([]int, r)
	each(shape, func(index []int, flat int) {
		copy(source, index)
		source[r-1], source[r-2] = source[r-2], source[r-1]
		out.data[flat] = a.data[a.offset(source)]
	})
	return out
}

func matMulReference(a, b array, shape []int) array {
	if len(a.shape) == 1 {
		a = array{[]int{1, a.shape[0]}, a.data}
	}
	if len(b.shape) == 1 {
		b = array{[]int{b.shape[0], 1}, b.data}
	}
	m, k, n := a.shape[len(a.shape)-2], a.shape[len(a.shape)-1], b.shape[len(b.shape)-1]
	batch, _ := onnx.Broadcast(a.shape[:len(a.shape)-2], b.shape[:len(b.shape)-2])
	out := newArray(shape...)
	ab := array{a.shape[:len(a.shape)-2], make([]float64, size(a.shape[:len(a.shape)-2]))}
	for i := range ab.data {
		ab.data[i] = float64(i)
	}
	bb := array{b.shape[:len(b.shape)-2], make([]float64, size(b.shape[:len(b.shape)-2]))}
	for i := range bb.data {
		bb.data[i] = float64(i)
	}
	each(batch, func(index []int, flat int) {
		pa, pb := int(ab.at(index))*m*k, int(bb.at(index))*k*n
		for i := range m {
			for j := range n {
				sum := 0.0
				for l := range k {
					sum += a.data[pa+i*k+l] * b.data[pb+l*n+j]
				}
				out.data[(flat*m+i)*n+j] = sum
			}
		}
	})
	return out
}

func einsumReference(equation string, in []array, shape []int) array {
	terms, output, _ := onnx.EinsumTerms(equation)
	var labels []rune
	var dims []int
	for i, term := range terms {
		for j, l := range term {
			if !slices.Contains(labels, l) {
				labels = append(labels, l)
				dims = append(dims, in[i].shape[j])
			}
		}
	}
	out := newArray(shape...)
	pick := func(term []rune, index []int) []int {
		at := make([]int, len(term))
		for i, l := range term {
			at[i] = index[slices.Index(labels, l)]
		}
		return at
	}
	each(dims, func(index []int, _ int) {
		p := 1.0
		for i, term := range terms {
			p *= in[i].data[in[i].offset(pick(term, index))]
		}
		out.data[out.offset(pick(output, index))] += p
	})
	return out
}

func softmaxReference(x array, axis int, log bool) array {
	out := newArray(x.shape...)
	other := slices.Clone(x.shape)
	other[axis] = 1
	each(other, func(index []int, _ int) {
		at := slices.Clone(index)
		top, sum := math.Inf(-1), 0.0
		for i := range x.shape[axis] {
			at[axis] = i
			top = math.Max(top, x.data[x.offset(at)])
		}
		for i := range x.shape[axis] {
			at[axis] = i
			sum += math.Exp(x.data[x.offset(at)] - top)
		}
		for i := range x.shape[axis] {
			at[axis] = i
			v := x.data[x.offset(at)] - top - math.Log(sum)
			if !log {
				v = math.Exp(v)
			}
			out.data[x.offset(at)] = v
		}
	})
	return out
}

func layerNormReference(n *onnx.Node, in []array, rows, columns int) []array {
	epsilon := float64(n.Attrs.Float("epsilon", 1e-5))
	out := newArray(in[0].shape...)
	means, inverses := make([]float64, rows), make([]float64, rows)
	for r := range rows {
		x := in[0].data[r*columns : (r+1)*columns]
		mean, variance := 0.0, 0.0
		if n.OpType == "LayerNormalization" {
			for _, v := range x {
				mean += v / float64(columns)
			}
		}
		for _, v := range x {
			variance += (v - mean) * (v - mean) / float64(columns)
		}
		means[r], inverses[r] = mean, 1/math.Sqrt(variance+epsilon)
		for i, v := range x {
			out.data[r*columns+i] = (v - mean) * inverses[r] * in[1].data[i]
			if len(in) > 2 {
				out.data[r*columns+i] += in[2].data[i]
			}
		}
	}
	result := []array{out}
	if len(n.Outputs) > 1 {
		result = append(result, array{n.Outputs[1].Shape(), means})
	}
	if len(n.Outputs) > 2 {
		result = append(result, array{n.Outputs[2].Shape(), inverses})
	}
	return result
}

func groupNormReference(in []array, groups int, epsilon float64) array {
	x := in[0]
	out := newArray(x.shape...)
	channels := x.shape[1]
	plane := size(x.shape[2:])
	block := channels / groups * plane
	for b := range x.shape[0] * groups {
		part := x.data[b*block : (b+1)*block]
		mean, variance := 0.0, 0.0
		for _, v := range part {
			mean += v / float64(block)
		}
		for _, v := range part {
			variance += (v - mean) * (v - mean) / float64(block)
		}
		for i, v := range part {
			c := (b*block + i) / plane % channels
			s := c
			if len(in[1].data) == groups {
				s = c / (channels / groups)
			}
			out.data[b*block+i] = (v-mean)/math.Sqrt(variance+epsilon)*in[1].data[s] + in[2].data[s]
		}
	}
	return out
}

// attentionReference: softmax(q·k·scale + mask) v by plain loops.
func attentionReference(n *onnx.Node, in []array) array {
	a := n.Attrs
	q, k, v := in[0], in[1], in[2]
	heads, kv := a.Int("q_num_heads", 0), a.Int("kv_num_heads", 0)
	if n.OpType == "MultiHeadAttention" {
		heads = a.Int("num_heads", 1)
		kv = heads
		if len(in) > 3 {
			add := func(x array, from int) array {
				out := newArray(x.shape...)
				c := x.shape[2]
				for i := range x.data {
					out.data[i] = x.data[i] + in[3].data[from+i%c]
				}
				return out
			}
			q, k, v = add(q, 0), add(k, q.shape[2]), add(v, q.shape[2]+k.shape[2])
		}
	}
	flat := len(q.shape) == 3
	read := func(x array, heads, b, h, l, d int) float64 {
		if flat {
			return x.data[(b*x.shape[1]+l)*x.shape[2]+h*(x.shape[2]/heads)+d]
		}
		return x.at([]int{b, h, l, d})
	}
	batch := q.shape[0]
	lq, lk, dq, dv := 0, 0, 0, 0
	if flat {
		lq, lk, dq, dv = q.shape[1], k.shape[1], q.shape[2]/heads, v.shape[2]/kv
	} else {
		heads, kv = q.shape[1], k.shape[1]
		lq, lk, dq, dv = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
	}
	scale := float64(a.Float("scale", 0))
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(dq))
	}
	out := newArray(n.Outputs[0].Shape()...)
	for b := range batch {
		for h := range heads {
			g := h / (heads / kv)
			for i := range lq {
				scores := newArray(lk)
				for j := range lk {
					for d := range dq {
						scores.data[j] += read(q, heads, b, h, i, d) * read(k, kv, b, g, j, d) * scale
					}
					if n.OpType == "Attention" && len(in) > 3 {
						scores.data[j] += in[3].at([]int{b, h, i, j})
					}
					if a.Int("is_causal", 0) != 0 && j > i {
						scores.data[j] = math.Inf(-1)
					}
				}
				p := softmaxReference(scores, 0, false)
				for d := range dv {
					sum := 0.0
					for j := range lk {
						sum += p.data[j] * read(v, kv, b, g, j, d)
					}
					if flat {
						out.data[(b*lq+i)*heads*dv+h*dv+d] = sum
					} else {
						out.data[((b*heads+h)*lq+i)*dv+d] = sum
					}
				}
			}
		}
	}
	return out
}

func lossReference(n *onnx.Node, in []array) []array {
	logs := in[0]
	if n.OpType == "SoftmaxCrossEntropyLoss" {
		logs = softmaxReference(in[0], 1, true)
	}
	out := newArray(in[1].shape...)
	weights := 0.0
	total := 0.0
	each(in[1].shape, func(index []int, flat int) {
		label := int(in[1].data[flat])
		w := 1.0
		if len(in) > 2 {
			w = in[2].data[label]
		}
		if n.Attrs.Has("ignore_index") && label == n.Attrs.Int("ignore_index", 0) {
			w = 0
		}
		at := slices.Concat(index[:1], []int{label}, index[1:])
		out.data[flat] = -w * logs.data[logs.offset(at)]
		total += out.data[flat]
		weights += w
	})
	switch n.Attrs.String("reduction", "mean") {
	case "sum":
		out = array{[]int{}, []float64{total}}
	case "mean":
		out = array{[]int{}, []float64{total / weights}}
	}
	return []array{out, logs}[:len(n.Outputs)]
}

// geometry reads the attributes of a window with their defaults; it knows
// explicit padding only.
func geometry(a onnx.Attrs, n int) (stride, dilation, begin []int, group int) {
	fill := func(name string, def int) []int {
		l := a.Ints(name)
		for len(l) < n {
			l = append(l, def)
		}
		return l
	}
	return fill("strides", 1), fill("dilations", 1), fill("pads", 0)[:n], a.Int("group", 1)
}

func convReference(n *onnx.Node, in []array) array {
	x, w := in[0], in[1]
	spatial := len(x.shape) - 2
	stride, dilation, begin, group := geometry(n.Attrs, spatial)
	out := newArray(n.Outputs[0].Shape()...)
	perGroup := w.shape[1]
	at := make([]int, len(x.shape))
	each(out.shape, func(index []int, flat int) {
		sum := 0.0
		if len(in) > 2 {
			sum = in[2].data[index[1]]
		}
		g := index[1] / (w.shape[0] / group)
		each(w.shape[1:], func(tap []int, k int) {
			at[0], at[1] = index[0], g*perGroup+tap[0]
			for i := range spatial {
				at[i+2] = index[i+2]*stride[i] - begin[i] + tap[i+1]*dilation[i]
				if at[i+2] < 0 || at[i+2] >= x.shape[i+2] {
					return
				}
			}
			sum += x.data[x.offset(at)] * w.data[index[1]*size(w.shape[1:])+k]
		})
		out.data[flat] = sum
	})
	return out
}

func convTransposeReference(n *onnx.Node, in []array) array {
	x, w := in[0], in[1]
	spatial := len(x.shape) - 2
	stride, dilation, begin, group := geometry(n.Attrs, spatial)
	out := newArray(n.Outputs[0].Shape()...)
	perGroup := w.shape[1]
	at := make([]int, len(x.shape))
	each(x.shape, func(index []int, flat int) {
		g := index[1] / (x.shape[1] / group)
		each(w.shape[1:], func(tap []int, k int) {
			at[0], at[1] = index[0], g*perGroup+tap[0]
			for i := range spatial {
				at[i+2] = index[i+2]*stride[i] - begin[i] + tap[i+1]*dilation[i]
				if at[i+2] < 0 || at[i+2] >= out.shape[i+2] {
					return
				}
			}
			out.data[out.offset(at)] += x.data[flat] * w.data[index[1]*size(w.shape[1:])+k]
		})
	})
	if len(in) > 2 {
		each(out.shape, func(index []int, flat int) { out.data[flat] += in[2].data[index[1]] })
	}
	return out
}

func poolReference(n *onnx.Node, x array) []array {
	kernel := n.Attrs.Ints("kernel_shape")
	stride, dilation, begin, _ := geometry(n.Attrs, len(kernel))
	end := n.Attrs.Ints("pads")
	if end == nil {
		end = make([]int, 2*len(kernel))
	}
	end = end[len(kernel):]
	out := newArray(n.Outputs[0].Shape()...)
	indices := newArray(n.Outputs[0].Shape()...)
	at := make([]int, len(x.shape))
	each(out.shape, func(index []int, flat int) {
		sum, count, best := 0.0, 0.0, math.Inf(-1)
		each(kernel, func(tap []int, _ int) {
			copy(at, index[:2])
			inside, padded := true, true
			for i := range tap {
				p := index[i+2]*stride[i] - begin[i] + tap[i]*dilation[i]
				at[i+2] = p
				inside = inside && p >= 0 && p < x.shape[i+2]
				padded = padded && p < x.shape[i+2]+end[i]
			}
			if inside {
				v := x.data[x.offset(at)]
				sum += v
				count++
				if v > best {
					best = v
					indices.data[flat] = float64(x.offset(at))
				}
			} else if padded && n.Attrs.Int("count_include_pad", 0) != 0 {
				count++
			}
		})
		out.data[flat] = best
		if n.OpType == "AveragePool" {
			out.data[flat] = sum / count
		}
	})
	return []array{out, indices}[:len(n.Outputs)]
}

func resizeReference(n *onnx.Node, x array) array {
	out := newArray(n.Outputs[0].Shape()...)
	how := n.Attrs.String("coordinate_transformation_mode", "half_pixel")
	origin := func(i, to, from int) float64 {
		switch how {
		case "asymmetric":
			return float64(i) * float64(from) / float64(to)
		case "align_corners":
			return float64(i) * float64(from-1) / math.Max(float64(to-1), 1)
		}
		return (float64(i)+0.5)*float64(from)/float64(to) - 0.5
	}
	clamp := func(v float64, n int) float64 { return math.Max(0, math.Min(v, float64(n-1))) }
	at := make([]int, len(x.shape))
	each(out.shape, func(index []int, flat int) {
		if n.Attrs.String("mode", "nearest") == "nearest" {
			for i := range index {
				o := origin(index[i], out.shape[i], x.shape[i])
				if n.Attrs.String("nearest_mode", "round_prefer_floor") == "floor" {
					o = math.Floor(o)
				} else {
					o = math.Ceil(o - 0.5)
				}
				at[i] = int(clamp(o, x.shape[i]))
			}
			out.data[flat] = x.data[x.offset(at)]
			return
		}
		h := clamp(origin(index[2], out.shape[2], x.shape[2]), x.shape[2])
		w := clamp(origin(index[3], out.shape[3], x.shape[3]), x.shape[3])
		for _, dh := range []int{0, 1} {
			for _, dw := range []int{0, 1} {
				r, c := int(h)+dh, int(w)+dw
				weight := (1 - math.Abs(h-float64(r))) * (1 - math.Abs(w-float64(c)))
				if weight > 0 {
					out.data[flat] += weight * x.at([]int{index[0], index[1], r, c})
				}
			}
		}
	})
	return out
}

func sliceReference(in []array, shape []int) array {
	x := in[0]
	starts := in[1].ints()
	axes := make([]int, len(starts))
	steps := make([]int, len(starts))
	for i := range starts {
		axes[i], steps[i] = i, 1
	}
	if len(in) > 3 && in[3].data != nil {
		axes = in[3].ints()
	}
	if len(in) > 4 {
		steps = in[4].ints()
	}
	from, by := make([]int, len(shape)), make([]int, len(shape))
	for i := range by {
		by[i] = 1
	}
	for i, axis := range axes {
		if axis < 0 {
			axis += len(shape)
		}
		s := starts[i]
		if s < 0 {
			s += x.shape[axis]
		}
		from[axis], by[axis] = min(max(s, 0), x.shape[axis]-truthInt(steps[i] < 0)), steps[i]
	}
	out := newArray(shape...)
	at := make([]int, len(shape))
	each(shape, func(index []int, flat int) {
		for i := range index {
			at[i] = from[i] + index[i]*by[i]
		}
		out.data[flat] = x.data[x.offset(at)]
	})
	return out
}

func truthInt(b bool) int { return int(truth(b)) }

func reduceReference(op string, x array, axes, shape []int) array {
	kept := slices.Clone(x.shape)
	for _, a := range axes {
		kept[a] = 1
	}
	count := float64(size(x.shape)) / float64(size(kept))
	out := newArray(kept...)
	start := map[string]float64{"ReduceMax": math.Inf(-1), "ReduceMin": math.Inf(1)}[op]
	for i := range out.data {
		out.data[i] = start
	}
	at := make([]int, len(kept))
	each(x.shape, func(index []int, flat int) {
		for i := range index {
			at[i] = min(index[i], kept[i]-1)
		}
		o, v := &out.data[out.offset(at)], x.data[flat]
		switch op {
		case "ReduceMax":
			*o = math.Max(*o, v)
		case "ReduceMin":
			*o = math.Min(*o, v)
		case "ReduceL1":
			*o += math.Abs(v)
		case "ReduceL2", "ReduceSumSquare":
			*o += v * v
		case "ReduceLogSumExp":
			*o += math.Exp(v)
		default:
			*o += v
		}
	})
	for i, v := range out.data {
		switch op {
		case "ReduceMean":
			out.data[i] = v / count
		case "ReduceL2":
			out.data[i] = math.Sqrt(v)
		case "ReduceLogSum", "ReduceLogSumExp":
			out.data[i] = math.Log(v)
		}
	}
	return array{shape, out.data}
}

func topKReference(n *onnx.Node, x array) []array {
	axis := n.Attrs.Int("axis", -1)
	if axis < 0 {
		axis += len(x.shape)
	}
	values, indices := newArray(n.Outputs[0].Shape()...), newArray(n.Outputs[0].Shape()...)
	other := slices.Clone(x.shape)
	other[axis] = 1
	each(other, func(index []int, _ int) {
		order := make([]int, x.shape[axis])
		at := slices.Clone(index)
		read := func(i int) float64 { at[axis] = i; return x.data[x.offset(at)] }
		for i := range order {
			order[i] = i
		}
		sort.SliceStable(order, func(i, j int) bool { return read(order[i]) > read(order[j]) })
		for i := range values.shape[axis] {
			v := read(order[i])
			at[axis] = i
			values.data[values.offset(at)] = v
			indices.data[values.offset(at)] = float64(order[i])
		}
	})
	return []array{values, indices}[:len(n.Outputs)]
}
