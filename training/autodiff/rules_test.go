package autodiff

import (
	"math"
	"slices"
	"testing"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func TestUnaryRules(t *testing.T) {
	same := func(v float64) float64 { return v }
	for op, domain := range map[string]func(float64) float64{
		"Identity": same, "Neg": same, "Exp": same, "Log": positive, "Sqrt": positive, "Reciprocal": positive,
		"Sin": same, "Cos": same, "Tan": func(v float64) float64 { return math.Tanh(v) }, "Atan": same,
		"Erf": same, "Tanh": same, "Sigmoid": same, "Relu": same, "LeakyRelu": same, "Elu": same, "Selu": same,
		"Celu": same, "Softplus": same, "Softsign": same, "Mish": same, "HardSigmoid": same,
		"HardSwish": func(v float64) float64 { return 3 * v }, "Gelu": same, "Abs": same, "Floor": same,
		"com.microsoft:QuickGelu": same, "com.microsoft:Gelu": same,
	} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				return b.g.Op(op, nil, b.param(domain, b.shape(2)...))
			})
		})
	}
	t.Run("with attributes", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			x := b.x(3, 4)
			y := b.g.Op("LeakyRelu", onnx.Attrs{"alpha": 0.3}, x)
			y = b.g.Add(y, b.g.Op("Elu", onnx.Attrs{"alpha": 0.7}, x))
			y = b.g.Add(y, b.g.Op("Celu", onnx.Attrs{"alpha": 1.7}, x))
			y = b.g.Add(y, b.g.Op("HardSigmoid", onnx.Attrs{"alpha": 0.4, "beta": 0.3}, x))
			y = b.g.Add(y, b.g.Op("com.microsoft:QuickGelu", onnx.Attrs{"alpha": 1.0}, x))
			return b.g.Add(y, b.g.Op("Gelu", onnx.Attrs{"approximate": "tanh"}, x))
		})
	})
}

func TestBinaryRulesWithBroadcasting(t *testing.T) {
	for _, op := range []string{"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu"} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				f := func(v float64) float64 { return v }
				if op == "Div" || op == "Pow" {
					f = positive
				}
				shape := b.shape(3)
				l, r := shape, b.broadcastable(shape)
				if op != "PRelu" && b.flip("swap") {
					l, r = r, l
				}
				x := b.param(f, l...)
				if b.flip("one constant") {
					return b.g.Op(op, nil, x, b.input(f, r...))
				}
				return b.g.Op(op, nil, x, b.param(f, r...))
			})
		})
	}
	t.Run("a value with itself", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			x := b.param(positive, b.shape(2)...)
			y := b.g.Add(b.g.Add(x, x), b.g.Mul(x, x))
			return b.g.Add(b.g.Sub(y, x), b.g.Div(x, x))
		})
	})
	t.Run("known exponents", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			x := b.param(positive, 3, 2)
			y := x
			for _, e := range []float64{0.5, 1, 2, 3, -1.5} {
				y = b.g.Add(y, b.g.Op("Pow", nil, x, b.g.Const(onnx.Float, e)))
			}
			return y
		})
	})
	t.Run("three operands", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			return b.g.Op([]string{"Min", "Max", "Sum", "Mean"}[b.n(0, 3, "op")], nil, b.x(2, 3), b.x(3), b.x(2, 1))
		})
	})
	t.Run("ties share", func(t *testing.T) {
		g := onnx.New("ties")
		x, y := g.Input("x", onnx.Float), g.Input("y", onnx.Float)
		grads, err := Gradient(g, g.Op("Max", nil, x, y), []*onnx.Value{x, y})
		if err != nil {
			t.Fatal(err)
		}
		one := array{[]int{}, []float64{1}}
		got, err := evaluate(g, map[*onnx.Value]array{x: one, y: one}, grads...)
		if err != nil || got[0].data[0] != 0.5 || got[1].data[0] != 0.5 {
			t.Errorf("gradients %v, %v", got, err)
		}
	})
}

func TestSelectionRules(t *testing.T) {
	t.Run("Where", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			shape := b.shape(3)
			condition := b.g.Op("Greater", nil, b.input(func(v float64) float64 { return v }, b.broadcastable(shape)...), b.g.Const(onnx.Float, 0))
			return b.g.Op("Where", nil, condition, b.x(b.broadcastable(shape)...), b.x(shape...))
		})
	})
	t.Run("Clip", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			low, high := b.g.Const(onnx.Float, -0.7), b.g.Const(onnx.Float, 0.6)
			switch b.n(0, 3, "bounds") {
			case 0:
				low = nil
			case 1:
				high = nil
			case 2:
				low, high = nil, nil
			}
			return b.g.Op("Clip", nil, b.x(b.shape(2)...), low, high)
		})
	})
	t.Run("Cast", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			return b.g.Cast(b.g.Op("Tanh", nil, b.g.Cast(b.x(2, 3), onnx.Double)), onnx.Float)
		})
	})
	t.Run("Dropout outside training", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value { return b.g.Op("Dropout", nil, b.x(2, 3), b.g.Const(onnx.Float, 0.3)) })
	})
}

func TestMatrixRules(t *testing.T) {
	t.Run("MatMul", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			m, k, n := b.n(1, 4, "m"), b.n(1, 4, "k"), b.n(1, 4, "n")
			batch := b.shape(b.n(0, 2, "rank"))
			l, r := slices.Clone(batch), b.broadcastable(batch)
			if b.flip("swap") {
				l, r = r, l
			}
			l, r = append(l, m, k), append(r, k, n)
			if b.flip("left vector") {
				l = []int{k}
			} else if b.flip("right vector") {
				r = []int{k}
			}
			return b.g.MatMul(b.x(l...), b.x(r...))
		})
	})
	t.Run("FusedMatMul", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			m, k, n := b.n(1, 4, "m"), b.n(1, 4, "k"), b.n(1, 4, "n")
			l, r := []int{2, m, k}, []int{2, k, n}
			transA, transB := b.flip("transA"), b.flip("transB")
			if transA {
				l = []int{2, k, m}
			}
			if transB {
				r = []int{2, n, k}
			}
			return b.g.Op("com.microsoft:FusedMatMul", onnx.Attrs{"transA": transA, "transB": transB, "alpha": 0.7}, b.x(l...), b.x(r...))
		})
	})
	t.Run("Gemm", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			m, k, n := b.n(1, 4, "m"), b.n(1, 4, "k"), b.n(1, 4, "n")
			l, r := []int{m, k}, []int{k, n}
			transA, transB := b.flip("transA"), b.flip("transB")
			if transA {
				l = []int{k, m}
			}
			if transB {
				r = []int{n, k}
			}
			var c *onnx.Value
			if b.flip("bias") {
				c = b.x(b.broadcastable([]int{m, n})...)
			}
			return b.g.Gemm(b.x(l...), b.x(r...), c, onnx.Attrs{"transA": transA, "transB": transB, "alpha": 1.5, "beta": 0.5})
		})
	})
	t.Run("Einsum", func(t *testing.T) {
		for _, equation := range []string{"ij,jk->ik", "bhid,bhjd->bhij", "bijc,ij->bc", "ij->i", "ij,ij->", "abc,cd,e->abde", "i,j->ij", "ijk->kij"} {
			t.Run(equation, func(t *testing.T) {
				checkRule(t, func(b *bench) *onnx.Value {
					terms, _, _ := onnx.EinsumTerms(equation)
					size := map[rune]int{}
					var in []*onnx.Value
					for _, term := range terms {
						var shape []int
						for _, l := range term {
							if size[l] == 0 {
								size[l] = b.n(1, 3, string(l))
							}
							shape = append(shape, size[l])
						}
						in = append(in, b.x(shape...))
					}
					return b.g.Op("Einsum", onnx.Attrs{"equation": equation}, in...)
				})
			})
		}
	})
}

func TestNormalizationRules(t *testing.T) {
	for _, op := range []string{"Softmax", "LogSoftmax"} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				return b.g.Op(op, onnx.Attrs{"axis": b.n(-3, 2, "axis")}, b.x(b.shape(3)...))
			})
		})
	}
	t.Run("Softmax in attention", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			p := b.g.Softmax(b.x(2, 3, 4, 5), -1)
			return b.g.MatMul(p, b.x(2, 3, 5, b.n(1, 7, "width")))
		})
	})
	t.Run("LayerNormalization", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			shape := []int{b.n(1, 3, "n"), b.n(2, 4, "l"), b.n(2, 5, "c")}
			axis := b.n(1, 2, "axis")
			x := b.param(func(v float64) float64 { return 2*v + 1 }, shape...)
			var bias *onnx.Value
			scale := b.input(positive, shape[axis:]...)
			if b.flip("train scale") {
				b.params = append(b.params, scale)
			}
			if b.flip("bias") {
				bias = b.x(shape[axis:]...)
			}
			return b.g.Op("LayerNormalization", onnx.Attrs{"axis": axis - 3*b.n(0, 1, "negative"), "epsilon": 1e-3}, x, scale, bias)
		})
	})
	t.Run("RMSNormalization", func(t *testing.T) {
		// Operator set 23; ONNX Runtime sees only the decomposition.
		checkRule(t, func(b *bench) *onnx.Value {
			b.g = onnx.NewOpset("test", 23)
			return b.g.Op("RMSNormalization", onnx.Attrs{"epsilon": 1e-3}, b.x(2, 3, 4), b.x(4))
		})
	})
	t.Run("InstanceNormalization", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			c := b.n(1, 3, "c")
			shape := append([]int{b.n(1, 3, "n"), c}, []int{b.n(2, 4, "h"), b.n(2, 3, "w")}[:b.n(1, 2, "rank")]...)
			return b.g.Op("InstanceNormalization", onnx.Attrs{"epsilon": 1e-3}, b.x(shape...), b.x(c), b.x(c))
		})
	})
	t.Run("GroupNormalization", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			groups, each := b.n(1, 3, "groups"), b.n(1, 3, "each")
			c := groups * each
			x := b.x(2, c, 2, 3)
			if b.flip("composed") {
				return b.g.GroupNorm(x, b.x(c), b.x(c), groups, 1e-3)
			}
			params := c
			if b.flip("operator set 18") {
				return b.g.Op("GroupNormalization", onnx.Attrs{"num_groups": groups, "epsilon": 1e-3}, x, b.x(params), b.x(params))
			}
			return b.g.Op("GroupNormalization", onnx.Attrs{"num_groups": groups, "epsilon": 1e-3}, x, b.x(params), b.x(params))
		})
	})
	t.Run("BatchNormalization", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			c := b.n(1, 4, "c")
			x := b.x(b.n(1, 3, "n"), c, b.n(1, 3, "h"), 2)
			return b.g.Op("BatchNormalization", onnx.Attrs{"epsilon": 1e-3}, x, b.x(c), b.x(c), b.input(func(v float64) float64 { return v }, c), b.input(positive, c))
		})
	})
	t.Run("GroupNormalization of operator set 18", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			b.g = onnx.NewOpset("test", 18)
			return b.g.Op("GroupNormalization", onnx.Attrs{"num_groups": 2, "epsilon": 1e-3}, b.x(2, 4, 3, 2), b.x(2), b.x(2))
		})
	})
}

func TestConvolutionRules(t *testing.T) {
	for _, op := range []string{"Conv", "ConvTranspose"} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				rank := b.n(1, 2, "spatial")
				group, in, out := 1, 1, 1
				switch b.n(0, 3, "kind") {
				case 0: // depthwise
					group = b.n(1, 3, "group")
				case 1: // many channels: one product a tap
					in, out = b.n(8, 9, "in"), b.n(1, 2, "out")
				default:
					group, in, out = b.n(1, 2, "group"), b.n(1, 3, "in"), b.n(1, 3, "out")
				}
				var spatial, kernel, strides, dilations, begin, end, rest []int
				for range rank {
					k, s, d := b.n(1, 3, "kernel"), b.n(1, 3, "stride"), b.n(1, 2, "dilation")
					extent := (k-1)*d + 1
					kernel, strides, dilations = append(kernel, k), append(strides, s), append(dilations, d)
					begin, end = append(begin, b.n(0, extent-1, "begin")), append(end, b.n(0, extent-1, "end"))
					spatial = append(spatial, b.n(extent, extent+3, "size"))
					rest = append(rest, b.n(0, s-1, "rest"))
				}
				o := onnx.ConvOptions{Strides: strides, Dilations: dilations, Pads: append(begin, end...), Group: group}
				n := b.n(1, 2, "n")
				var bias *onnx.Value
				if op == "Conv" {
					x := b.x(append([]int{n, in * group}, spatial...)...)
					w := b.x(append([]int{out * group, in}, kernel...)...)
					if b.flip("bias") {
						bias = b.x(out * group)
					}
					return b.g.Conv(x, w, bias, o)
				}
				o.OutputPadding = rest
				x := b.x(append([]int{n, out * group}, spatial...)...)
				w := b.x(append([]int{out * group, in}, kernel...)...)
				if b.flip("bias") {
					bias = b.x(in * group)
				}
				return b.g.ConvTranspose(x, w, bias, o)
			})
		})
	}
	t.Run("depthwise with uneven padding", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			c, s, d := b.n(2, 3, "c"), b.n(1, 2, "stride"), b.n(1, 2, "dilation")
			return b.g.Conv(b.x(2, c, 6, 5), b.x(c, 1, 3, 2), b.x(c), onnx.ConvOptions{
				Strides: []int{s, 1}, Dilations: []int{d, 1}, Group: c,
				Pads: []int{b.n(0, 2, "top"), b.n(0, 1, "left"), b.n(0, 2, "bottom"), b.n(0, 1, "right")},
			})
		})
	})
	t.Run("pointwise", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			c, m := b.n(1, 20, "c"), b.n(1, 20, "m")
			return b.g.Conv(b.x(2, c, b.n(1, 5, "h"), b.n(1, 4, "w")), b.x(m, c, 1, 1), nil, onnx.ConvOptions{
				Strides: []int{b.n(1, 3, "rows"), b.n(1, 2, "columns")},
			})
		})
	})
	t.Run("fewer channels out than in, many positions", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			c := b.n(2, 5, "c")
			return b.g.Conv(b.x(2, c, 6, 5), b.x(c/2, c, 3, 2), nil, onnx.ConvOptions{
				Dilations: []int{b.n(1, 2, "dilation"), 1},
				Pads:      []int{b.n(0, 2, "top"), b.n(0, 1, "left"), b.n(0, 2, "bottom"), b.n(0, 1, "right")},
			})
		})
	})
	t.Run("padding by name", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			attrs := onnx.Attrs{"auto_pad": []string{"SAME_UPPER", "SAME_LOWER", "VALID"}[b.n(0, 2, "how")], "strides": []int{2, 1}}
			y := b.g.Op("Conv", attrs, b.x(1, 2, 5, 4), b.x(3, 2, 3, 2))
			// The reference knows explicit padding only: spell it out.
			n := y.Producer()
			w, err := onnx.WindowOf(n)
			if err != nil {
				b.Fatal(err)
			}
			delete(n.Attrs, "auto_pad")
			n.Attrs["pads"] = []int64{int64(w.Begin[0]), int64(w.Begin[1]), int64(w.End[0]), int64(w.End[1])}
			return y
		})
	})
}

func TestPoolingRules(t *testing.T) {
	for _, op := range []string{"MaxPool", "AveragePool"} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				var kernel, strides, begin, end, spatial []int
				for range 2 {
					k := b.n(1, 3, "kernel")
					kernel = append(kernel, k)
					strides = append(strides, b.n(1, 3, "stride"))
					begin, end = append(begin, b.n(0, k-1, "begin")), append(end, b.n(0, k-1, "end"))
					spatial = append(spatial, b.n(k, k+4, "size"))
				}
				attrs := onnx.Attrs{"kernel_shape": kernel, "strides": strides, "pads": append(begin, end...), "ceil_mode": b.flip("ceil")}
				if op == "AveragePool" {
					attrs["count_include_pad"] = b.flip("count padding")
				}
				return b.g.Op(op, attrs, b.x(b.n(1, 2, "n"), b.n(1, 3, "c"), spatial[0], spatial[1]))
			})
		})
	}
	t.Run("AveragePool of tiles", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			k := b.n(1, 3, "k")
			return b.g.AveragePool(b.x(2, 3, 2*k, 3*k), k, k)
		})
	})
	for _, op := range []string{"GlobalAveragePool", "GlobalMaxPool"} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value { return b.g.Op(op, nil, b.x(b.shape(4)...)) })
		})
	}
	t.Run("Resize", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			x := b.x(2, 2, b.n(1, 4, "h"), b.n(1, 4, "w"))
			scales := b.g.Floats(1, 1, float64(b.n(1, 3, "fh")), float64(b.n(1, 3, "fw")))
			attrs := onnx.Attrs{"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
			switch b.n(0, 4, "mode") {
			case 0:
				attrs = onnx.Attrs{"mode": "nearest"}
			case 1:
				attrs = onnx.Attrs{"mode": "linear"}
			case 2:
				attrs = onnx.Attrs{"mode": "linear", "coordinate_transformation_mode": "align_corners"}
			case 3:
				attrs = onnx.Attrs{"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
			}
			return b.g.Op("Resize", attrs, x, nil, scales)
		})
	})
}

func TestMovementRules(t *testing.T) {
	cases := map[string]func(b *bench) *onnx.Value{
		"Reshape":   func(b *bench) *onnx.Value { return b.g.Reshape(b.x(2, 3, 4), 4, -1) },
		"Flatten":   func(b *bench) *onnx.Value { return b.g.Flatten(b.x(b.shape(3)...), b.n(0, 3, "axis")) },
		"Squeeze":   func(b *bench) *onnx.Value { return b.g.Squeeze(b.x(2, 1, 3, 1), 1, -1) },
		"Unsqueeze": func(b *bench) *onnx.Value { return b.g.Unsqueeze(b.x(2, 3), 0, -1) },
		"Transpose": func(b *bench) *onnx.Value {
			perm := b.rng.Perm(4)
			if b.flip("default") {
				return b.g.Op("Transpose", nil, b.x(b.shape(4)...))
			}
			return b.g.Transpose(b.x(b.shape(4)...), perm...)
		},
		"Expand": func(b *bench) *onnx.Value {
			shape := b.shape(3)
			return b.g.Expand(b.x(b.broadcastable(shape)...), shape...)
		},
		"Tile": func(b *bench) *onnx.Value {
			return b.g.Op("Tile", nil, b.x(b.shape(2)...), b.g.Ints(b.n(1, 3, "r0"), b.n(1, 3, "r1")))
		},
		"Concat": func(b *bench) *onnx.Value {
			axis := b.n(-2, 1, "axis")
			shapes := [][]int{{2, 3}, {2, 3}, {2, 3}}
			for _, s := range shapes {
				s[(axis+2)%2] = b.n(1, 3, "length")
			}
			middle := b.input(func(v float64) float64 { return v }, shapes[1]...)
			if b.flip("all trained") {
				b.params = append(b.params, middle)
			}
			return b.g.Concat(axis, b.x(shapes[0]...), middle, b.x(shapes[2]...))
		},
		"Split": func(b *bench) *onnx.Value {
			parts := b.g.Split(b.x(3, 6), -1, 1, 3, 2)
			y := b.g.Mul(parts[1], b.g.Const(onnx.Float, 2))
			if b.flip("two parts") {
				y = b.g.Concat(1, y, parts[2])
			}
			return y
		},
		"Slice": func(b *bench) *onnx.Value {
			step := []int{-3, -2, -1, 1, 2, 3}[b.n(0, 5, "step")]
			start, end := b.n(0, 2, "start"), b.n(3, 7, "end")
			if step < 0 {
				start, end = b.n(3, 6, "start"), b.n(-8, -6, "end")
			}
			y := b.g.SliceStep(b.x(3, 7), []int{1}, []int{start}, []int{end}, []int{step})
			if b.flip("two axes") {
				y = b.g.SliceStep(b.x(4, 7, 3), []int{0, 1}, []int{1, start}, []int{3, end}, []int{1, step})
			}
			return y
		},
		"overlapping slices": func(b *bench) *onnx.Value {
			x := b.x(2, 6)
			y := b.g.Add(b.g.Slice(x, 1, 0, 2), b.g.Slice(x, 1, 1, 3))
			y = b.g.Add(y, b.g.Slice(x, 1, 4, 6))
			return b.g.Mul(b.g.Add(y, b.g.Slice(x, 1, 2, 4)), b.g.Slice(b.g.Slice(x, 0, 0, 1), 1, 3, 5))
		},
		"Pad": func(b *bench) *onnx.Value {
			return b.g.Pad(b.x(3, 4), b.n(0, 2, "a"), b.n(-1, 2, "b"), b.n(-1, 2, "c"), b.n(-1, 2, "d"))
		},
		"Gather one": func(b *bench) *onnx.Value { return b.g.At(b.x(3, 4, 2), b.n(0, 1, "axis"), b.n(-3, 2, "index")) },
		"Gather run": func(b *bench) *onnx.Value { return b.g.Gather(b.x(3, 5), b.g.Ints(1, 2, 3), 1) },
		"Gather constants": func(b *bench) *onnx.Value {
			return b.g.Gather(b.x(3, 4, 3), b.g.Ints(2, 0, -1, 0), b.n(0, 2, "axis"))
		},
		"Gather": func(b *bench) *onnx.Value {
			return b.g.Gather(b.x(3, 4, 3), b.integers(3, b.shape(2)...), b.n(-3, 2, "axis"))
		},
		"GatherElements": func(b *bench) *onnx.Value {
			return b.g.Op("GatherElements", onnx.Attrs{"axis": b.n(0, 1, "axis")}, b.x(3, 3), b.integers(3, 3, 3))
		},
		"GatherND": func(b *bench) *onnx.Value { return b.g.Op("GatherND", nil, b.x(3, 3, 2), b.integers(3, 4, 2)) },
		"Trilu": func(b *bench) *onnx.Value {
			return b.g.Op("Trilu", onnx.Attrs{"upper": b.flip("upper")}, b.x(2, 3, 4), b.g.Const(onnx.Int64, float64(b.n(-2, 2, "k"))))
		},
		"DepthToSpace": func(b *bench) *onnx.Value {
			return b.g.Op("DepthToSpace", onnx.Attrs{"blocksize": 2, "mode": []string{"DCR", "CRD"}[b.n(0, 1, "mode")]}, b.x(2, 8, 2, 3))
		},
		"SpaceToDepth": func(b *bench) *onnx.Value {
			return b.g.Op("SpaceToDepth", onnx.Attrs{"blocksize": 2}, b.x(2, 3, 4, 6))
		},
	}
	for name, build := range cases {
		t.Run(name, func(t *testing.T) { checkRule(t, build) })
	}
}

func TestReductionRules(t *testing.T) {
	for _, op := range []string{
		"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
	} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				f := func(v float64) float64 { return v }
				if op == "ReduceLogSum" {
					f = positive
				}
				x := b.param(f, b.shape(3)...)
				axes := [][]int{nil, {0}, {-1}, {0, 2}, {1, 2}}[b.n(0, 4, "axes")]
				return b.g.Reduce(op, x, b.flip("keep"), axes...)
			})
		})
	}
	t.Run("ReduceL2 of nothing but zeros", func(t *testing.T) {
		g := onnx.New("zeros")
		x := g.Input("x", onnx.Float, 3)
		grads, err := Gradient(g, g.Reduce("ReduceL2", x, false), []*onnx.Value{x})
		if err != nil {
			t.Fatal(err)
		}
		got, err := evaluate(g, map[*onnx.Value]array{x: newArray(3)}, grads...)
		if err != nil || !slices.Equal(got[0].data, []float64{0, 0, 0}) {
			t.Errorf("gradient %v, %v", got, err)
		}
	})
	t.Run("attributes of operator set 17", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			b.g = onnx.NewOpset("test", 17)
			x := b.x(2, 3, 4)
			y := b.g.Op("ReduceMean", onnx.Attrs{"axes": []int{1, -1}, "keepdims": 0}, x)
			return b.g.Add(y, b.g.Op("ReduceMax", onnx.Attrs{"axes": []int{1, 2}, "keepdims": 0}, x))
		})
	})
	t.Run("CumSum", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			axis := b.g.Const(onnx.Int64, float64(b.n(-2, 1, "axis")))
			return b.g.Op("CumSum", onnx.Attrs{"reverse": b.flip("reverse"), "exclusive": b.flip("exclusive")}, b.x(b.shape(2)...), axis)
		})
	})
	t.Run("TopK", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			return b.g.OpN("TopK", 2, onnx.Attrs{"axis": b.n(-2, 1, "axis")}, b.x(4, 5), b.g.Ints(2))[0]
		})
	})
}

func TestDecomposedRules(t *testing.T) {
	t.Run("Attention", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			b.g = onnx.NewOpset("test", 23)
			heads, kv := 4, []int{1, 2, 4}[b.n(0, 2, "kv")]
			q, k, v := []int{2, heads, 3, 2}, []int{2, kv, 3, 2}, []int{2, kv, 3, 5}
			attrs := onnx.Attrs{"is_causal": b.flip("causal")}
			if b.flip("flat") {
				q, k, v = []int{2, 3, heads * 2}, []int{2, 3, kv * 2}, []int{2, 3, kv * 5}
				attrs["q_num_heads"], attrs["kv_num_heads"] = heads, kv
			}
			if b.flip("scale") {
				attrs["scale"] = 0.3
			}
			var mask *onnx.Value
			if b.flip("mask") {
				mask = b.x(3, 3)
			}
			return b.g.Op("Attention", attrs, b.x(q...), b.x(k...), b.x(v...), mask)
		})
	})
	t.Run("MultiHeadAttention", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			var bias *onnx.Value
			if b.flip("bias") {
				bias = b.x(12)
			}
			return b.g.Op("com.microsoft:MultiHeadAttention", onnx.Attrs{"num_heads": 2}, b.x(2, 3, 4), b.x(2, 5, 4), b.x(2, 5, 4), bias)
		})
	})
	for _, op := range []string{"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"} {
		t.Run(op, func(t *testing.T) {
			checkRule(t, func(b *bench) *onnx.Value {
				attrs := onnx.Attrs{"reduction": []string{"mean", "sum", "none"}[b.n(0, 2, "reduction")]}
				var weights *onnx.Value
				if b.flip("weights") {
					weights = b.input(positive, 3)
				}
				rest := b.shape(b.n(0, 2, "rank"))
				labels := b.integers(3, append([]int{4}, rest...)...)
				if b.flip("ignore") {
					attrs["ignore_index"] = 0
					b.values[labels].data[0] = 1
				}
				return b.g.Op(op, attrs, b.x(append([]int{4, 3}, rest...)...), labels, weights)
			})
		})
	}
}

func TestPatterns(t *testing.T) {
	t.Run("erf GELU as exporters write it", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			g, x := b.g, b.x(3, 4)
			c := func(v float64) *onnx.Value { return g.Const(onnx.Float, v) }
			e := g.Op("Erf", nil, g.Div(x, c(math.Sqrt2)))
			if b.flip("product") {
				e = g.Op("Erf", nil, g.Mul(c(math.Sqrt2/2), x))
			}
			e = g.Add(e, c(1))
			switch b.n(0, 2, "form") {
			case 0:
				return g.Mul(g.Mul(x, e), c(0.5))
			case 1:
				return g.Mul(g.Mul(c(0.5), x), e)
			}
			return g.Mul(x, g.Mul(c(0.5), e))
		})
	})
	t.Run("SiLU", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value { return b.g.SiLU(b.x(3, 4)) })
	})
	t.Run("not when an inner value is used elsewhere", func(t *testing.T) {
		checkRule(t, func(b *bench) *onnx.Value {
			x := b.x(3, 4)
			s := b.g.Sigmoid(x)
			return b.g.Add(b.g.Mul(x, s), s)
		})
	})
}
