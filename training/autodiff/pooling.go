package autodiff

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(maxPool, "MaxPool")
	register(averagePool, "AveragePool")
	register(globalAveragePool, "GlobalAveragePool")
	register(globalMaxPool, "GlobalMaxPool")
	register(resize, "Resize")
}

// maxPool: dY is added to where each maximum came from. Windows may overlap, so
// the scatter must add. The node is asked for its flat indices (output 1).
func maxPool(b *backward) {
	if b.node.Attrs.Int("storage_order", 0) != 0 {
		b.failf("storage_order 1 is not supported")
		return
	}
	g, x := b.g, b.x(0)
	indices := g.Extend(b.node, 2)[1]
	n := x.Elements()
	flat := []int{indices.Elements()}
	d := b.scatterAdd(g.Filled(x.Type(), 0, n), b.reshape(indices, flat), b.reshape(b.dy(), flat), 0)
	b.give(0, b.reshape(d, x.Shape()))
}

// scatterAdd adds updates to zeros along an axis (ScatterElements-16).
func (b *backward) scatterAdd(zeros, indices, updates *onnx.Value, axis int) *onnx.Value {
	if b.g.Opset() < 16 {
		b.failf("scattering with addition needs operator set 16, the graph has %d: export the model again", b.g.Opset())
	}
	return b.g.Op("ScatterElements", onnx.Attrs{"axis": axis, "reduction": "add"}, zeros, indices, updates)
}

// averagePool: every input of a window gets dY divided by the number of elements
// that the window averaged: a depthwise transposed convolution with ones, or,
// where windows tile the input, a repetition.
func averagePool(b *backward) {
	w, err := onnx.WindowOf(b.node)
	if err != nil {
		b.failf("%v", err)
		return
	}
	g, x, dy := b.g, b.x(0), b.dy()
	k := onnx.Elements(w.Kernel)
	unpadded := allEqual(w.Begin, 0) && allEqual(w.End, 0) && b.node.Attrs.Int("ceil_mode", 0) == 0
	tiles := unpadded && slices.Equal(w.Kernel, w.Strides) && len(w.Kernel) == 2
	for i, d := range w.Kernel {
		tiles = tiles && w.Dilations[i] == 1 && x.Dim(i+2) == dy.Dim(i+2)*d
	}
	if unpadded || b.node.Attrs.Int("count_include_pad", 0) != 0 && b.node.Attrs.Int("ceil_mode", 0) == 0 {
		dy = g.Scale(dy, 1/float64(k))
	} else {
		dy = g.Mul(dy, b.windowShares(w))
	}
	if tiles {
		b.give(0, g.Op("Resize", onnx.Attrs{
			"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor",
		}, dy, nil, g.Floats(1, 1, float64(w.Kernel[0]), float64(w.Kernel[1]))))
		return
	}
	c := x.Dim(1)
	ones := g.Filled(x.Type(), 1, append([]int{c, 1}, w.Kernel...)...)
	rest := make([]int, len(w.Kernel))
	end := slices.Clone(w.End)
	for i, k := range w.Kernel {
		room := x.Dim(i+2) + w.Begin[i] + end[i] - ((k-1)*w.Dilations[i] + 1)
		if over := (dy.Dim(i+2)-1)*w.Strides[i] - room; over > 0 {
			end[i] += over // ceil_mode let the last window hang over
		} else {
			rest[i] = -over
		}
	}
	b.give(0, g.ConvTranspose(dy, ones, nil, onnx.ConvOptions{
		Strides: w.Strides, Dilations: w.Dilations, Pads: slices.Concat(w.Begin, end), Group: c, OutputPadding: rest,
	}))
}

// windowShares returns 1 over the number of elements that each window averages,
// shaped [1, 1, positions...].
func (b *backward) windowShares(w onnx.Window) *onnx.Value {
	x, y := b.x(0), b.y(0)
	padded := b.node.Attrs.Int("count_include_pad", 0) != 0
	shape := append([]int{1, 1}, y.Shape()[2:]...)
	counts := []float64{1}
	for i, k := range w.Kernel {
		low, high := 0, x.Dim(i+2)
		if padded {
			low, high = -w.Begin[i], high+w.End[i]
		}
		var next []float64
		for _, before := range counts {
			for p := range y.Dim(i + 2) {
				inside := 0
				for t := range k {
					if at := p*w.Strides[i] - w.Begin[i] + t*w.Dilations[i]; at >= low && at < high {
						inside++
					}
				}
				next = append(next, before*float64(inside))
			}
		}
		counts = next
	}
	for i, c := range counts {
		counts[i] = 1 / c
	}
	return b.g.Cast(reshapeTo(b.g, b.g.Floats(counts...), shape), x.Type())
}

// globalAveragePool: dY/(H·W) everywhere.
func globalAveragePool(b *backward) {
	x := b.x(0)
	n := float64(x.Elements()) / float64(max(x.Dim(0)*x.Dim(1), 1))
	b.give(0, b.g.Expand(b.g.Scale(b.dy(), 1/n), x.Shape()...))
}

// globalMaxPool: dY where the input is the maximum; ties share it.
func globalMaxPool(b *backward) {
	b.give(0, b.toExtremum(b.y(0), b.dy(), onnx.Axes(2, b.x(0).Rank())))
}

// toExtremum spreads dy, reduced over axes with these kept as 1, over the
// elements of input 0 that are equal to y.
func (b *backward) toExtremum(y, dy *onnx.Value, axes []int) *onnx.Value {
	g := b.g
	mask := g.Cast(g.Op("Equal", nil, b.x(0), y), y.Type())
	return g.Mul(mask, g.Div(dy, g.ReduceSum(mask, true, axes...)))
}

// resize, nearest by whole factors: every pixel gets the sum over its copies,
// which is the average of a tile times its size. Linear: the interpolation is
// a matrix for each axis, and the gradient goes through its transpose.
func resize(b *backward) {
	x, y := b.x(0), b.y(0)
	a := b.node.Attrs
	mode := a.String("mode", "nearest")
	factors := make([]int, x.Rank())
	count := 1
	for i := range factors {
		if x.Dim(i) == 0 || y.Dim(i)%x.Dim(i) != 0 {
			b.failf("from %v to %v: only whole factors are supported", x.Shape(), y.Shape())
			return
		}
		factors[i] = y.Dim(i) / x.Dim(i)
		count *= factors[i]
	}
	if mode != "nearest" {
		b.resizeLinear(factors)
		return
	}
	how := a.String("coordinate_transformation_mode", "half_pixel")
	nearest := a.String("nearest_mode", "round_prefer_floor")
	copies := how == "asymmetric" && nearest == "floor" ||
		(how == "half_pixel" || how == "pytorch_half_pixel" || how == "half_pixel_symmetric") && (nearest == "round_prefer_floor" || nearest == "round_prefer_ceil")
	if !copies && count > 1 {
		b.failf("coordinate_transformation_mode %q with nearest_mode %q is not supported", how, nearest)
		return
	}
	if x.Rank() != 4 || factors[0] != 1 || factors[1] != 1 {
		b.failf("from %v to %v: only the two last of four dimensions may be resized", x.Shape(), y.Shape())
		return
	}
	kernel := factors[2:]
	d := b.g.Op("AveragePool", onnx.Attrs{"kernel_shape": kernel, "strides": kernel}, b.dy())
	b.give(0, b.g.Scale(d, float64(count)))
}

// resizeLinear: Y = A·X·Bᵀ on the last two of four dimensions, so
// dX = Aᵀ·dY·B, with A and B the interpolation matrices.
func (b *backward) resizeLinear(factors []int) {
	x := b.x(0)
	a := b.node.Attrs
	how := a.String("coordinate_transformation_mode", "half_pixel")
	known := how == "half_pixel" || how == "pytorch_half_pixel" || how == "asymmetric" || how == "align_corners"
	if a.String("mode", "nearest") != "linear" || x.Rank() != 4 || factors[0] != 1 || factors[1] != 1 || !known || a.Int("antialias", 0) != 0 {
		b.failf("mode %q with %q from %v to %v is not supported", a.String("mode", ""), how, x.Shape(), b.y(0).Shape())
		return
	}
	rows := b.interpolation(how, x.Dim(2), factors[2])
	columns := b.interpolation(how, x.Dim(3), factors[3])
	b.give(0, b.g.MatMul(b.g.MatMul(swapLast(b.g, rows), b.dy()), columns))
}

// interpolation returns the matrix [n·factor, n] of linear interpolation with
// clamped borders.
func (b *backward) interpolation(how string, n, factor int) *onnx.Value {
	m := n * factor
	matrix := make([]float32, m*n)
	for i := range m {
		at := (float64(i)+0.5)/float64(factor) - 0.5
		switch {
		case how == "asymmetric":
			at = float64(i) / float64(factor)
		case how == "align_corners":
			at = 0
			if m > 1 {
				at = float64(i) * float64(n-1) / float64(m-1)
			}
		}
		at = min(max(at, 0), float64(n-1))
		low := int(at)
		high := min(low+1, n-1)
		part := float32(at - float64(low))
		matrix[i*n+low] += 1 - part
		matrix[i*n+high] += part
	}
	return b.g.Cast(b.g.Initializer(onnx.FromFloat32("", matrix, m, n)), b.x(0).Type())
}
