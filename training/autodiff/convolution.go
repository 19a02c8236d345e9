package autodiff

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

func init() {
	register(conv, "Conv")
	register(convTranspose, "ConvTranspose")
}

// Below this many input channels a group, gathering all taps into one matrix
// costs less than one product per tap: measured on a 7×7 stem with 3 channels,
// 73 ms against 639.
const fewChannels = 8

// conv: dX is the transposed convolution of dY, dW the correlation of X with
// dY, dBias the sum of dY over all but the channels.
func conv(b *backward) {
	w, err := onnx.WindowOf(b.node)
	if err != nil {
		b.failf("%v", err)
		return
	}
	if b.wants(0) {
		b.give(0, b.convData(w))
	}
	if b.wants(1) {
		b.give(1, b.convWeight(b.x(0), b.dy(), b.x(1).Shape(), w))
	}
	if b.wants(2) {
		b.give(2, b.sumChannels(b.dy()))
	}
}

// sumChannels sums [N,C,d...] to [C].
func (b *backward) sumChannels(v *onnx.Value) *onnx.Value {
	return b.g.ReduceSum(v, false, append([]int{0}, onnx.Axes(2, v.Rank())...)...)
}

// convData returns the gradient of a convolution's input. A transposed
// convolution does it in general, and is cuDNN's own data gradient. On the CPU
// a convolution with the flipped kernel is twice as fast for depthwise kernels
// and, at stride 1, 15 to 40 % faster for dense ones, unless turning the kernel
// round costs too much; one with the transposed kernel is for 1×1 ones, whose
// strides then only put zeros between the pixels.
func (b *backward) convData(w onnx.Window) *onnx.Value {
	x, weight, dy := b.x(0), b.x(1), b.dy()
	spatial := len(w.Kernel)
	depthwise := weight.Dim(1) == 1 && weight.Dim(0) == w.Group
	positions := dy.Elements() / max(dy.Dim(1), 1)
	dense := w.Group == 1 && !allEqual(w.Kernel, 1) && positions >= 8*max(weight.Dim(0), weight.Dim(1))
	if b.target == CPU && (depthwise || dense) && allEqual(w.Strides, 1) {
		pads := make([]int, 2*spatial)
		for i, k := range w.Kernel {
			reach := (k - 1) * w.Dilations[i]
			pads[i], pads[spatial+i] = reach-w.Begin[i], reach-w.End[i]
		}
		if slices.Min(pads) >= 0 {
			turned := b.flip(weight, spatial)
			if dense {
				turned = b.swapChannels(turned)
			}
			return b.g.Conv(dy, turned, nil, onnx.ConvOptions{
				Dilations: w.Dilations, Pads: pads, Group: w.Group,
			})
		}
	}
	if b.target == CPU && w.Group == 1 && allEqual(w.Kernel, 1) && allEqual(w.Begin, 0) && allEqual(w.End, 0) {
		return b.pointwiseData(w)
	}
	rest := make([]int, spatial)
	for i, k := range w.Kernel {
		rest[i] = (x.Dim(i+2) + w.Begin[i] + w.End[i] - ((k-1)*w.Dilations[i] + 1)) % w.Strides[i]
	}
	return b.g.ConvTranspose(dy, weight, nil, onnx.ConvOptions{
		Strides: w.Strides, Dilations: w.Dilations, Group: w.Group,
		Pads: slices.Concat(w.Begin, w.End), OutputPadding: rest,
	})
}

// pointwiseData is convData for a 1×1 kernel without padding.
func (b *backward) pointwiseData(w onnx.Window) *onnx.Value {
	g, x, weight := b.g, b.x(0), b.x(1)
	m, c := weight.Dim(0), weight.Dim(1)
	ones := weight.Shape()[2:]
	t := b.reshape(g.Transpose(b.reshape(weight, []int{m, c}), 1, 0), append([]int{c, m}, ones...))
	d := g.Conv(b.dy(), t, nil, onnx.ConvOptions{})
	for i, s := range w.Strides {
		axis := i + 2
		if s == 1 {
			continue
		}
		d, _ = b.spread(d, axis, onnx.Span{Step: s, Count: d.Dim(axis)})
	}
	pads := make([]int, 2*x.Rank())
	for i := range x.Rank() {
		pads[x.Rank()+i] = x.Dim(i) - d.Dim(i)
	}
	if allEqual(pads, 0) {
		return d
	}
	return g.Pad(d, pads...)
}

// flip reverses the last n dimensions.
func (b *backward) flip(v *onnx.Value, n int) *onnx.Value {
	axes, starts, ends, steps := make([]int, n), make([]int, n), make([]int, n), make([]int, n)
	for i := range n {
		axes[i], starts[i], ends[i], steps[i] = v.Rank()-n+i, -1, -onnx.End, -1
	}
	return b.g.SliceStep(v, axes, starts, ends, steps)
}

// swapChannels turns a kernel [M, C, k...] into [C, M, k...].
func (b *backward) swapChannels(v *onnx.Value) *onnx.Value {
	return b.g.Transpose(v, append([]int{1, 0}, onnx.Axes(2, v.Rank())...)...)
}

func allEqual(list []int, v int) bool {
	return !slices.ContainsFunc(list, func(x int) bool { return x != v })
}

// convWeight returns the gradient of a convolution's weight of the given shape
// [M, C/group, k...] from its input x and its output's gradient dy:
//
//	dW[m,c,t] = Σ over n and positions p of dY[n,m,p]·X[n,c,p·stride + t·dilation]
//
// There is no such operator. Dense convolutions take one matrix product per
// tap t over a shifted slice of x, those with few channels one product for all
// taps, 1×1 ones a single product, depthwise ones a grouped convolution whose
// kernel is dY (METHOD: 46, 54 and 103 ms for the three on 128 channels at 32²).
func (b *backward) convWeight(x, dy *onnx.Value, shape []int, w onnx.Window) *onnx.Value {
	perGroup := shape[1]
	depthwise := perGroup == 1 && shape[0] == w.Group && w.Group > 1
	if depthwise {
		return b.depthwiseWeight(x, dy, shape, w)
	}
	pointwise := allEqual(w.Kernel, 1) && allEqual(w.Strides, 1) && allEqual(w.Begin, 0) && allEqual(w.End, 0)
	if pointwise && w.Group == 1 {
		return b.pointwiseWeight(x, dy, shape)
	}
	if w.Group == 1 && 2*shape[0] <= shape[1] && allEqual(w.Strides, 1) {
		return b.shiftedWeight(x, dy, shape, w)
	}
	return b.tappedWeight(x, dy, shape, w)
}

// shiftedWeight moves dY instead of x, which is less work where there are fewer
// output than input channels: with p the position in dY and q that in x,
// q = p + t·dilation − pad, dY at q − t·dilation + pad meets x at q. That is the
// weight gradient with the two in each other's place, its taps in reverse.
func (b *backward) shiftedWeight(x, dy *onnx.Value, shape []int, w onnx.Window) *onnx.Value {
	turned := w
	turned.Begin, turned.End = slices.Clone(w.Begin), slices.Clone(w.End)
	for i, k := range w.Kernel {
		reach := (k - 1) * w.Dilations[i]
		turned.Begin[i], turned.End[i] = reach-w.Begin[i], reach-w.End[i]
	}
	swapped := append([]int{shape[1], shape[0]}, shape[2:]...)
	d := b.tappedWeight(dy, x, swapped, turned)
	return b.swapChannels(b.flip(d, len(w.Kernel)))
}

// pointwiseWeight: dW = Σₙ dY[n]·X[n]ᵀ over flattened positions: one product a
// sample and a sum over samples where the weight is smaller than a sample, one
// product over transposed copies where it is not.
func (b *backward) pointwiseWeight(x, dy *onnx.Value, shape []int) *onnx.Value {
	g := b.g
	n, c, m := x.Dim(0), x.Dim(1), dy.Dim(1)
	positions := x.Elements() / max(n*c, 1)
	if m*c <= (m+c)*positions {
		xs, ds := b.reshape(x, []int{n, c, positions}), b.reshape(dy, []int{n, m, positions})
		d := g.ReduceSum(g.MatMul(ds, swapLast(g, xs)), false, 0)
		return b.reshape(d, shape)
	}
	d := g.Gemm(b.channelsFirst(dy, 1), b.channelsFirst(x, 1), nil, onnx.Attrs{"transB": 1})
	return b.reshape(d, shape)
}

// channelsFirst turns [N, C, d...] into [C, N·d] for one group and into
// [groups, C/groups, N·d] for several.
func (b *backward) channelsFirst(v *onnx.Value, groups int) *onnx.Value {
	t := v
	if v.Dim(0) != 1 {
		t = b.swapChannels(v)
	}
	c := v.Dim(1)
	rest := v.Elements() / max(c, 1)
	if groups == 1 {
		return b.reshape(t, []int{c, rest})
	}
	return b.reshape(t, []int{groups, c / groups, rest})
}

// tappedWeight multiplies dY with a slice of x for every tap of the kernel.
func (b *backward) tappedWeight(x, dy *onnx.Value, shape []int, w onnx.Window) *onnx.Value {
	g := b.g
	spatial := len(w.Kernel)
	n, c, m := x.Dim(0), x.Dim(1), dy.Dim(1)
	xt := b.reshape(b.channelsFirst(x, 1), append([]int{c, n}, x.Shape()[2:]...))
	if !allEqual(w.Begin, 0) || !allEqual(w.End, 0) {
		xt = g.Pad(xt, slices.Concat([]int{0, 0}, w.Begin, []int{0, 0}, w.End)...)
	}
	dt := b.channelsFirst(dy, w.Group)

	taps := 1
	for _, k := range w.Kernel {
		taps *= k
	}
	positions := dy.Elements() / max(n*m, 1)
	tap := make([]int, spatial)
	var slicesOf []*onnx.Value
	for range taps {
		slicesOf = append(slicesOf, b.reshape(b.tapSlice(xt, dy, tap, w), []int{w.Group, c / w.Group, n * positions}))
		for i := spatial - 1; i >= 0; i-- {
			if tap[i]++; tap[i] < w.Kernel[i] {
				break
			}
			tap[i] = 0
		}
	}
	perGroup := c / w.Group
	product := func(s *onnx.Value) *onnx.Value { // [group, M/group, C/group]
		if w.Group == 1 {
			return g.Gemm(dt, b.reshape(s, s.Shape()[1:]), nil, onnx.Attrs{"transB": 1})
		}
		return g.MatMul(dt, swapLast(g, s))
	}
	if taps == 1 {
		return b.reshape(product(slicesOf[0]), shape)
	}
	if perGroup < fewChannels {
		// All taps at once: [M, taps·C/group].
		all := product(g.Concat(1, slicesOf...))
		all = b.reshape(all, []int{m, taps, perGroup})
		return b.reshape(g.Transpose(all, 0, 2, 1), shape)
	}
	products := make([]*onnx.Value, taps)
	for i, s := range slicesOf {
		products[i] = b.reshape(product(s), []int{m, perGroup})
	}
	all := b.reshape(g.Concat(0, products...), []int{taps, m * perGroup})
	return b.reshape(g.Transpose(all, 1, 0), shape)
}

// tapSlice returns the elements of the padded [C, N, d...] input that one tap of
// the kernel meets, shaped [C, N, positions...].
func (b *backward) tapSlice(xt, dy *onnx.Value, tap []int, w onnx.Window) *onnx.Value {
	var axes, starts, ends, steps []int
	for i, t := range tap {
		start := t * w.Dilations[i]
		end := start + (dy.Dim(i+2)-1)*w.Strides[i] + 1
		if start == 0 && end == xt.Dim(i+2) && w.Strides[i] == 1 {
			continue
		}
		axes, starts = append(axes, i+2), append(starts, start)
		ends, steps = append(ends, end), append(steps, w.Strides[i])
	}
	if len(axes) == 0 {
		return xt
	}
	return b.g.SliceStep(xt, axes, starts, ends, steps)
}

// depthwiseWeight: every channel of every sample is a channel of one image, and
// dY is a grouped kernel that sums over the samples; strides and dilations
// change places.
func (b *backward) depthwiseWeight(x, dy *onnx.Value, shape []int, w onnx.Window) *onnx.Value {
	g := b.g
	spatial := len(w.Kernel)
	n, c := x.Dim(0), x.Dim(1)
	pads := make([]int, 2*spatial)
	for i, k := range w.Kernel {
		pads[i] = w.Begin[i]
		pads[spatial+i] = (dy.Dim(i+2)-1)*w.Strides[i] + (k-1)*w.Dilations[i] + 1 - x.Dim(i+2) - w.Begin[i]
	}
	xt := b.reshape(b.swapChannels(x), append([]int{1, c * n}, x.Shape()[2:]...))
	dt := b.swapChannels(dy)
	if slices.Min(pads) < 0 {
		// The end of the input that no window reached is cut off.
		cut := make([]int, 2*xt.Rank())
		for i := range spatial {
			if e := pads[spatial+i]; e < 0 {
				cut[xt.Rank()+2+i] = e
				pads[spatial+i] = 0
			}
		}
		xt = g.Pad(xt, cut...)
	}
	d := g.Conv(xt, dt, nil, onnx.ConvOptions{Strides: w.Dilations, Dilations: w.Strides, Pads: pads, Group: c})
	return b.reshape(d, shape)
}

// convTranspose is the data gradient of a convolution, so its own data gradient
// is that convolution, and its weight gradient that of the convolution with
// input and output gradient in each other's place.
func convTranspose(b *backward) {
	w, err := onnx.WindowOf(b.node)
	if err != nil {
		b.failf("%v", err)
		return
	}
	x := b.x(0)
	if b.wants(0) {
		dx := b.g.Conv(b.dy(), b.x(1), nil, onnx.ConvOptions{
			Strides: w.Strides, Dilations: w.Dilations, Group: w.Group, Pads: slices.Concat(w.Begin, w.End),
		})
		b.give(0, b.crop(dx, x.Shape()))
	}
	if b.wants(1) {
		b.give(1, b.convWeight(b.dy(), x, b.x(1).Shape(), w))
	}
	if b.wants(2) {
		b.give(2, b.sumChannels(b.dy()))
	}
}

// crop cuts v down to a shape that is not larger: an output_padding of a whole
// stride gives the convolution one position too many.
func (b *backward) crop(v *onnx.Value, shape []int) *onnx.Value {
	if b.g.Err() != nil || slices.Equal(v.Shape(), shape) {
		return v
	}
	pads := make([]int, 2*v.Rank())
	for i, d := range shape {
		pads[v.Rank()+i] = d - v.Dim(i)
	}
	return b.g.Pad(v, pads...)
}
