package onnx_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/ort"
)

// ONNX Runtime is the judge of the shapes and folded values here; only this
// test knows it, the package does not.

type attrs = onnx.Attrs

// built is a graph under construction for one case.
type built struct{ *onnx.Graph }

func (b built) x(shape ...int) *onnx.Value {
	return b.Input(fmt.Sprintf("x%d", len(b.Inputs())), onnx.Float, shape...)
}

// c is a constant 0, 1, 2, ... of a shape.
func (b built) c(shape ...int) *onnx.Value {
	n := 1
	for _, d := range shape {
		n *= d
	}
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(i)
	}
	return b.Initializer(onnx.FromFloat32("", data, shape...))
}

// op builds a case of one operator with its first n outputs.
func op(name string, n int, a attrs, in func(b built) []*onnx.Value) func(b built) []*onnx.Value {
	return func(b built) []*onnx.Value { return b.OpN(name, n, a, in(b)...) }
}

func list(v ...*onnx.Value) []*onnx.Value { return v }

func TestShapesAndFoldedValuesAreThoseOfONNXRuntime(t *testing.T) {
	image := func(b built) []*onnx.Value { return list(b.x(2, 4, 7, 6)) }
	pair := func(l, r []int) func(b built) []*onnx.Value {
		return func(b built) []*onnx.Value { return list(b.x(l...), b.x(r...)) }
	}
	cases := map[string]func(b built) []*onnx.Value{
		"Conv": op("Conv", 1, attrs{"strides": []int{2, 1}, "pads": []int{1, 0, 2, 1}, "dilations": []int{1, 2}, "group": 2},
			pair([]int{2, 4, 9, 8}, []int{6, 2, 3, 2})),
		"Conv, padding by name": op("Conv", 1, attrs{"auto_pad": "SAME_UPPER", "strides": []int{2, 3}}, pair([]int{1, 2, 7, 8}, []int{3, 2, 3, 2})),
		"Conv without padding":  op("Conv", 1, attrs{"auto_pad": "VALID"}, pair([]int{1, 2, 7, 8}, []int{3, 2, 3, 2})),
		"Conv of sequences":     op("Conv", 1, attrs{"pads": []int{1, 1}}, pair([]int{2, 3, 9}, []int{5, 3, 4})),
		"ConvTranspose": op("ConvTranspose", 1, attrs{"strides": []int{2, 3}, "pads": []int{1, 0, 0, 1}, "output_padding": []int{1, 2}, "group": 2},
			pair([]int{2, 4, 5, 4}, []int{4, 3, 3, 2})),
		"ConvTranspose to a shape": op("ConvTranspose", 1, attrs{"strides": []int{2, 2}, "output_shape": []int{10, 9}}, pair([]int{1, 2, 5, 4}, []int{2, 3, 3, 3})),
		"ConvTranspose, same":      op("ConvTranspose", 1, attrs{"strides": []int{2, 2}, "auto_pad": "SAME_LOWER"}, pair([]int{1, 2, 5, 4}, []int{2, 3, 3, 3})),
		"MaxPool":                  op("MaxPool", 2, attrs{"kernel_shape": []int{3, 2}, "strides": []int{2, 2}, "pads": []int{1, 0, 1, 1}}, image),
		"MaxPool, rounded up":      op("MaxPool", 1, attrs{"kernel_shape": []int{2, 3}, "strides": []int{3, 2}, "ceil_mode": 1}, image),
		"AveragePool, rounded up":  op("AveragePool", 1, attrs{"kernel_shape": []int{3, 3}, "strides": []int{3, 3}, "pads": []int{1, 1, 1, 1}, "ceil_mode": 1}, image),
		"AveragePool, same":        op("AveragePool", 1, attrs{"kernel_shape": []int{3, 3}, "strides": []int{2, 2}, "auto_pad": "SAME_UPPER"}, image),
		"GlobalAveragePool":        op("GlobalAveragePool", 1, nil, image),
		"GlobalMaxPool":            op("GlobalMaxPool", 1, nil, image),
		"Resize by scales": func(b built) []*onnx.Value {
			return list(b.Op("Resize", attrs{"mode": "linear"}, b.x(1, 2, 3, 5), nil, b.Floats(1, 1, 1.5, 0.6)))
		},
		"Resize to sizes": func(b built) []*onnx.Value {
			return list(b.Op("Resize", attrs{"mode": "nearest", "axes": []int{2, 3}}, b.x(1, 2, 3, 5), nil, nil, b.Ints(6, 4)))
		},
		"DepthToSpace":  op("DepthToSpace", 1, attrs{"blocksize": 2}, image),
		"SpaceToDepth":  op("SpaceToDepth", 1, attrs{"blocksize": 2}, func(b built) []*onnx.Value { return list(b.x(1, 3, 4, 6)) }),
		"GridSample":    op("GridSample", 1, nil, pair([]int{2, 3, 4, 5}, []int{2, 6, 7, 2})),
		"MatMul":        op("MatMul", 1, nil, pair([]int{3, 1, 4, 5}, []int{2, 5, 6})),
		"MatMul, row":   op("MatMul", 1, nil, pair([]int{5}, []int{2, 5, 6})),
		"MatMul, both":  op("MatMul", 1, nil, pair([]int{5}, []int{5})),
		"FusedMatMul":   op("com.microsoft:FusedMatMul", 1, attrs{"transA": 1, "transB": 1}, pair([]int{2, 5, 4}, []int{2, 6, 5})),
		"Gemm":          op("Gemm", 1, attrs{"transA": 1, "transB": 1}, func(b built) []*onnx.Value { return list(b.x(5, 4), b.x(6, 5), b.x(4, 1)) }),
		"Einsum":        op("Einsum", 1, attrs{"equation": "bij, bjk -> bik"}, pair([]int{2, 3, 4}, []int{2, 4, 5})),
		"Einsum, short": op("Einsum", 1, attrs{"equation": "ji,jk"}, pair([]int{3, 4}, []int{3, 5})),
		"LayerNormalization": op("LayerNormalization", 3, attrs{"axis": 1}, func(b built) []*onnx.Value {
			return list(b.x(2, 3, 4), b.x(3, 4), b.x(3, 4))
		}),
		"GroupNormalization": op("GroupNormalization", 1, attrs{"num_groups": 2}, func(b built) []*onnx.Value { return list(b.x(2, 4, 3), b.x(4), b.x(4)) }),
		"InstanceNormalization": op("InstanceNormalization", 1, nil, func(b built) []*onnx.Value {
			return list(b.x(2, 4, 3), b.x(4), b.x(4))
		}),
		"BatchNormalization": op("BatchNormalization", 1, nil, func(b built) []*onnx.Value {
			return list(b.x(2, 4, 3), b.x(4), b.x(4), b.x(4), b.x(4))
		}),
		"Dropout":   op("Dropout", 2, nil, image),
		"PRelu":     op("PRelu", 1, nil, pair([]int{2, 3, 4}, []int{3, 1})),
		"IsNaN":     op("IsNaN", 1, nil, image),
		"Pow":       op("Pow", 1, nil, pair([]int{2, 1, 4}, []int{3, 1})),
		"Mean":      op("Mean", 1, nil, func(b built) []*onnx.Value { return list(b.x(2, 1, 4), b.x(3, 1), b.x(1)) }),
		"TopK":      op("TopK", 2, attrs{"axis": 1}, func(b built) []*onnx.Value { return list(b.x(2, 5, 3), b.Ints(4)) }),
		"ArgMax":    op("ArgMax", 1, attrs{"axis": 1, "keepdims": 0}, image),
		"ReduceMax": func(b built) []*onnx.Value { return list(b.Reduce("ReduceMax", b.x(2, 3, 4), false, -1, 0)) },
		"CumSum":    func(b built) []*onnx.Value { return list(b.Op("CumSum", nil, b.x(2, 3), b.Const(onnx.Int64, 1))) },
		"OneHot": func(b built) []*onnx.Value {
			return list(b.Op("OneHot", attrs{"axis": 1}, b.Ints(1, 0, 3), b.Ints(5), b.Floats(0, 1)))
		},
		"GatherElements": func(b built) []*onnx.Value {
			return list(b.Op("GatherElements", attrs{"axis": 1}, b.x(3, 4), b.Unsqueeze(b.Ints(1, 0), 0)))
		},
		"GatherND": func(b built) []*onnx.Value {
			return list(b.Op("GatherND", attrs{"batch_dims": 1}, b.x(2, 3, 4), b.Unsqueeze(b.Ints(1, 2), 1)))
		},
		"ScatterND": func(b built) []*onnx.Value {
			return list(b.Op("ScatterND", attrs{"reduction": "add"}, b.x(3, 4), b.Unsqueeze(b.Ints(1, 1), 1), b.x(2, 4)))
		},
		"Trilu": func(b built) []*onnx.Value { return list(b.Op("Trilu", nil, b.x(3, 4))) },
		"Split without lengths": func(b built) []*onnx.Value {
			return b.OpN("Split", 3, attrs{"axis": 1, "num_outputs": 3}, b.x(2, 7))
		},
		"SoftmaxCrossEntropyLoss": func(b built) []*onnx.Value {
			return b.OpN("SoftmaxCrossEntropyLoss", 2, attrs{"reduction": "none"}, b.x(2, 3, 4), b.Reshape(b.Ints(0, 1, 2, 0, 1, 2, 0, 1), 2, 4))
		},
		"MultiHeadAttention": op("com.microsoft:MultiHeadAttention", 1, attrs{"num_heads": 2}, func(b built) []*onnx.Value {
			return list(b.x(2, 3, 4), b.x(2, 5, 4), b.x(2, 5, 4))
		}),
		"GroupNorm": func(b built) []*onnx.Value { return list(b.GroupNorm(b.x(2, 6, 3, 3), b.x(6), b.x(6), 3, 1e-5)) },
		"sugar": func(b built) []*onnx.Value {
			x := b.x(2, 4, 6, 6)
			y := b.AveragePool(b.ResizeNearest(b.SiLU(x), 2), 2, 2)
			y = b.Pad(b.Flatten(y, 2), 0, 1, -1, 2)
			return list(y, b.Relu(b.ReduceMean(b.Sqrt(b.Exp(b.Neg(b.Log(b.Sigmoid(x))))), true, 1)), b.Filled(onnx.Int64, 3, 2, 2))
		},

		// Folded: all inputs are constants.
		"Transpose": func(b built) []*onnx.Value { return list(b.Transpose(b.c(2, 3, 4), 2, 0, 1)) },
		"Slice": func(b built) []*onnx.Value {
			return list(b.SliceStep(b.c(5, 6), []int{0, -1}, []int{-1, 1}, []int{-100, 100}, []int{-2, 3}), b.Slice(b.c(5, 6), 1, -3, onnx.End))
		},
		"Gather": func(b built) []*onnx.Value {
			return list(b.Gather(b.c(3, 4, 2), b.Reshape(b.Ints(1, -1, 0, 2), 2, 2), 1), b.At(b.c(3, 4), 0, -1))
		},
		"Concat": func(b built) []*onnx.Value { return list(b.Concat(1, b.c(2, 3), b.c(2, 1), b.c(2, 2))) },
		"Split":  func(b built) []*onnx.Value { return b.Split(b.c(3, 6), 1, 1, 3, 2) },
		"Expand": func(b built) []*onnx.Value { return list(b.Expand(b.c(3, 1), 2, 1, 4), b.Expand(b.c(2, 3, 1), 1, 4)) },
		"Tile":   func(b built) []*onnx.Value { return list(b.Op("Tile", nil, b.c(2, 3), b.Ints(2, 3))) },
		"Range": func(b built) []*onnx.Value {
			return list(b.Op("Range", nil, b.Const(onnx.Int64, 7), b.Const(onnx.Int64, -2), b.Const(onnx.Int64, -2)),
				b.Op("Range", nil, b.Const(onnx.Float, 0), b.Const(onnx.Float, 1), b.Const(onnx.Float, 0.3)))
		},
		"Shape": func(b built) []*onnx.Value {
			return list(b.Op("Shape", attrs{"start": -2}, b.x(2, 3, 4)), b.Op("Size", nil, b.x(2, 3)))
		},
		"integers": func(b built) []*onnx.Value {
			l, r := b.Ints(7, -7, 8), b.Ints(3, 3, -5)
			out := list(b.Mul(l, r), b.Sub(l, r), b.Op("Div", nil, b.Ints(7, 9, 12), b.Ints(2, 3, 5)), b.Op("Mod", nil, l, r))
			out = append(out, b.Op("Mod", attrs{"fmod": 1}, l, r), b.Op("Min", nil, l, r), b.Op("Max", nil, l, r), b.Op("Abs", nil, l), b.Neg(l))
			return append(out, b.ReduceSum(l, false), b.Reduce("ReduceProd", l, true), b.Reduce("ReduceMin", l, false), b.Reduce("ReduceMax", l, false))
		},
		"comparisons": func(b built) []*onnx.Value {
			l, r := b.Ints(1, 2, 3), b.Ints(3, 2, 1)
			out := list()
			for _, name := range []string{"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"} {
				out = append(out, b.Cast(b.Op(name, nil, l, r), onnx.Float))
			}
			less := b.Op("Less", nil, l, r)
			not := b.Op("Not", nil, less)
			out = append(out, b.Cast(b.Op("And", nil, less, not), onnx.Int64), b.Cast(b.Op("Or", nil, less, not), onnx.Int64))
			return append(out, b.Cast(b.Op("Xor", nil, not, not), onnx.Int32), b.Op("Where", nil, less, l, r))
		},
		"reals": func(b built) []*onnx.Value {
			v := b.Floats(-1.5, 2.5, 0.3)
			out := list(b.Op("Floor", nil, v), b.Op("Ceil", nil, v), b.Op("Round", nil, v), b.Sqrt(b.Floats(4, 2)), b.Relu(v))
			return append(out, b.Cast(v, onnx.Int64), b.Cast(v, onnx.Bool), b.Cast(b.Ints(0, 5), onnx.Bool), b.Div(v, b.Floats(2)), b.Op("Pow", nil, b.Floats(2, 3), b.Floats(3, 2)))
		},
		"Constant": func(b built) []*onnx.Value {
			return list(b.Op("Constant", attrs{"value_int": 3}), b.Op("Constant", attrs{"value_ints": []int{1, 2}}),
				b.Op("Constant", attrs{"value_float": 0.5}), b.Op("Constant", attrs{"value_floats": []float32{1, 2.5}}))
		},
		"QAttention of what is rounded": func(b built) []*onnx.Value {
			x := b.OpN("DynamicQuantizeLinear", 3, nil, b.x(2, 3, 4))
			w := b.Initializer(onnx.Tensor{Type: onnx.Int8, Shape: []int{4, 24}, Data: make([]byte, 96)})
			return append(x, b.Op("com.microsoft:QAttention", attrs{"num_heads": 2}, x[0], w, b.x(24), x[1], b.x(24), nil, x[2]))
		},
		"Squeeze": func(b built) []*onnx.Value {
			return list(b.Op("Squeeze", nil, b.c(1, 3, 1)), b.Unsqueeze(b.c(3), 0, -1), b.Flatten(b.c(2, 3, 2), -1))
		},
	}
	for name, build := range cases {
		t.Run(name, func(t *testing.T) {
			g := onnx.New("case")
			compareWithRuntime(t, g, build(built{g}))
		})
	}
}

func compareWithRuntime(t *testing.T, g *onnx.Graph, values []*onnx.Value) {
	t.Helper()
	for i, v := range values {
		g.Output(fmt.Sprintf("y%d", i), v)
	}
	constant := len(g.Inputs()) == 0
	if constant {
		// A session needs an input.
		g.Output("unused", g.Neg(g.Input("x", onnx.Float, 1)))
	}
	var model bytes.Buffer
	if err := g.Encode(&model); err != nil {
		t.Fatal(err)
	}
	s, err := ort.OpenBytes(model.Bytes(), ort.Options{IntraOpThreads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var in []*ort.Tensor
	for _, v := range g.Inputs() {
		x, err := ort.Zeros(v.Type(), v.Shape()...)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, x)
	}
	out, err := s.Run(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	defer ort.CloseAll(append(in, out...)...)
	for i, v := range g.Outputs()[:len(values)] {
		if !slices.Equal(out[i].Shape(), v.Shape()) || out[i].Type() != v.Type() {
			t.Errorf("output %d is %s%v, ONNX Runtime gives %s%v", i, v.Type(), v.Shape(), out[i].Type(), out[i].Shape())
			continue
		}
		if v.Const() == nil {
			if constant && v.Producer().OpType != "OneHot" {
				t.Errorf("output %d (%s) is not folded", i, v.Producer())
			}
			continue
		}
		want := onnx.Tensor{Type: v.Type(), Shape: v.Shape(), Data: out[i].Bytes()}.Float64s()
		for j, f := range v.Const().Float64s() {
			if math.Abs(f-want[j]) > 1e-6*math.Max(1, math.Abs(want[j])) {
				t.Errorf("output %d (%s) folds to %v, ONNX Runtime gives %v", i, v.Producer(), v.Const().Float64s(), want)
				break
			}
		}
	}
}

func TestInferenceRefusesWhatDoesNotFit(t *testing.T) {
	for name, build := range map[string]func(b built) *onnx.Value{
		"groups": func(b built) *onnx.Value {
			return b.Conv(b.x(1, 4, 5, 5), b.x(6, 3, 3, 3), nil, onnx.ConvOptions{Group: 2})
		},
		"window": func(b built) *onnx.Value { return b.AveragePool(b.x(1, 4, 2, 2), 3, 1) },
		"stride": func(b built) *onnx.Value {
			return b.Conv(b.x(1, 1, 5, 5), b.x(1, 1, 3, 3), nil, onnx.ConvOptions{Strides: []int{0, 1}})
		},
		"pads":          func(b built) *onnx.Value { return b.Pad(b.x(2, 2), 1, 1) },
		"negative pads": func(b built) *onnx.Value { return b.Pad(b.x(2, 2), -3, 0, 0, 0) },
		"reshape":       func(b built) *onnx.Value { return b.Reshape(b.x(2, 3), 4, -1) },
		"reshape twice": func(b built) *onnx.Value { return b.Reshape(b.x(2, 3), -1, -1) },
		"attention's heads": func(b built) *onnx.Value {
			x := b.OpN("DynamicQuantizeLinear", 3, nil, b.x(2, 3, 4))
			w := b.Initializer(onnx.Tensor{Type: onnx.Int8, Shape: []int{4, 24}, Data: make([]byte, 96)})
			return b.Op("com.microsoft:QAttention", attrs{"num_heads": 3}, x[0], w, b.x(24), x[1], b.x(24), nil, x[2])
		},
		"permutation":       func(b built) *onnx.Value { return b.Transpose(b.x(2, 3), 0, 0) },
		"axis":              func(b built) *onnx.Value { return b.Softmax(b.x(2, 3), 2) },
		"concat":            func(b built) *onnx.Value { return b.Concat(0, b.x(2, 3), b.x(2, 4)) },
		"split":             func(b built) *onnx.Value { return b.Split(b.x(2, 3), 1, 1, 1)[0] },
		"index":             func(b built) *onnx.Value { return b.At(b.x(2, 3), 0, 2) },
		"types":             func(b built) *onnx.Value { return b.Add(b.x(2), b.Ints(1, 2)) },
		"broadcast":         func(b built) *onnx.Value { return b.Add(b.x(2), b.x(3)) },
		"bias":              func(b built) *onnx.Value { return b.Gemm(b.x(2, 3), b.x(3, 4), b.x(5), nil) },
		"unknown shape":     func(b built) *onnx.Value { return b.Op("Reshape", nil, b.x(6), b.Input("shape", onnx.Int64, 2)) },
		"zero step":         func(b built) *onnx.Value { return b.SliceStep(b.x(3), []int{0}, []int{0}, []int{2}, []int{0}) },
		"squeeze of two":    func(b built) *onnx.Value { return b.Squeeze(b.x(2, 1), 0) },
		"groups of a norm":  func(b built) *onnx.Value { return b.GroupNorm(b.x(1, 5, 2, 2), b.x(5), b.x(5), 2, 1e-5) },
		"equation":          func(b built) *onnx.Value { return b.Op("Einsum", attrs{"equation": "ij,jk->il"}, b.x(2, 3), b.x(3, 4)) },
		"attribute":         func(b built) *onnx.Value { return b.Op("Softmax", attrs{"axis": struct{}{}}, b.x(2)) },
		"element type":      func(b built) *onnx.Value { return b.Cast(b.x(2), onnx.String) },
		"number of classes": func(b built) *onnx.Value { return b.Op("TopK", nil, b.x(2, 3), b.Ints(4)) },
		"loop that grows": func(b built) *onnx.Value {
			final, _ := b.Loop(b.Const(onnx.Int64, 2), list(b.x(2)), func(body *onnx.Graph, _ *onnx.Value, c []*onnx.Value) (next, stacked []*onnx.Value) {
				return list(body.Concat(0, c[0], c[0])), nil
			})
			return append(final, nil)[0]
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := onnx.New("case")
			v := build(built{g})
			if g.Err() == nil {
				t.Fatalf("got %v", v)
			}
			// Nothing after the first error may panic or hide it.
			first := g.Err()
			if v != nil {
				g.Output("y", g.Reshape(g.Add(v, v), 1, v.Dim(0), v.Rank()))
			}
			if _, err := g.Bytes(); err == nil || err.Error() != first.Error() {
				t.Errorf("encoding says %v, building said %v", err, first)
			}
			if !strings.Contains(first.Error(), `"`) {
				t.Errorf("%v names no node", first)
			}
		})
	}
}

func TestReplacedNodesSurviveInliningAndEncoding(t *testing.T) {
	g := onnx.New("sum")
	x := g.Input("x", onnx.Float, 2, 1)
	y := g.Add(x, x)
	g.Output("y", y)
	if err := g.Replace(y.Producer(), func() []*onnx.Value { return list(g.Scale(x, 2)) }); err != nil {
		t.Fatal(err)
	}
	if g.Outputs()[0] != y || y.Producer().OpType != "Mul" || y.Name() != "y" {
		t.Errorf("the output is %v of %s", g.Outputs()[0], y.Producer())
	}
	h := onnx.New("around")
	u := h.Input("u", onnx.Float, 2, 1)
	out, _, err := h.Inline(g, map[*onnx.Value]*onnx.Value{x: u})
	if err != nil {
		t.Fatal(err)
	}
	h.Output("y", h.Concat(1, out[0], u))
	u.SetDimName(0, "N")
	b, err := h.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	d, err := onnx.Decode(b, onnx.BindBatch(5))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Outputs()[0]; !slices.Equal(got.Shape(), []int{5, 2}) {
		t.Errorf("output is %v", got)
	}
}
