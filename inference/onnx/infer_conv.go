package onnx

import "slices"

func init() {
	register(conv, 2, 3, "Conv")
	register(convTranspose, 2, 3, "ConvTranspose")
	register(pool, 1, 1, "MaxPool", "AveragePool", "LpPool")
	register(globalPool, 1, 1, "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
	register(col2im, 3, 3, "Col2Im")
	register(resize, 1, 4, "Resize")
	register(depthToSpace, 1, 1, "DepthToSpace")
	register(spaceToDepth, 1, 1, "SpaceToDepth")
	register(gridSample, 2, 2, "GridSample")
}

// Window is the geometry of a convolution or pooling over n spatial
// dimensions, with every default filled in.
type Window struct {
	Kernel, Strides, Dilations []int
	Begin, End                 []int // padding, explicit also where auto_pad asked for it
	Group                      int
	OutputPadding              []int // ConvTranspose
}

// WindowOf returns the geometry of a Conv, ConvTranspose or pooling node whose
// shapes have been inferred.
func WindowOf(n *Node) (Window, error) {
	var w Window
	err := guard(func() {
		c := &inference{n}
		kernel := n.Attrs.Ints("kernel_shape")
		if n.OpType == "Conv" || n.OpType == "ConvTranspose" {
			kernel = c.rankAtLeast(1, 3).shape[2:]
		}
		w = c.window(kernel)
		if n.OpType == "ConvTranspose" {
			c.transposedShape(&w)
		} else {
			c.slide(&w)
		}
	})
	return w, err
}

// maxWindow bounds strides, dilations, pads and kernels, so that sums and
// products of them cannot overflow.
const maxWindow = 1 << 24

// window reads the attributes that convolutions and pools share.
func (c *inference) window(kernel []int) Window {
	x := c.rankAtLeast(0, 3)
	n := len(x.shape) - 2
	if k := c.attrs().Ints("kernel_shape"); k != nil && !slices.Equal(k, kernel) {
		c.failf("kernel_shape %v differs from the weight's %v", k, kernel)
	}
	if len(kernel) != n {
		c.failf("kernel %v does not fit an input of shape %v", kernel, x.shape)
	}
	list := func(name string, def, low int) []int {
		l := c.attrs().Ints(name)
		if len(l) == 0 {
			l = slices.Repeat([]int{def}, n)
		}
		if len(l) != n {
			c.failf("%s %v does not fit an input of shape %v", name, l, x.shape)
		}
		for _, v := range l {
			if v < low || v > maxWindow {
				c.failf("%s %v is out of range", name, l)
			}
		}
		return l
	}
	for _, k := range kernel {
		if k < 1 || k > maxWindow {
			c.failf("kernel %v is out of range", kernel)
		}
	}
	for _, d := range x.shape[2:] {
		if d > maxWindow*maxWindow {
			c.failf("shape %v is too large", x.shape)
		}
	}
	w := Window{
		Kernel:        cloneShape(kernel),
		Strides:       list("strides", 1, 1),
		Dilations:     list("dilations", 1, 1),
		OutputPadding: list("output_padding", 0, 0),
		Begin:         make([]int, n),
		End:           make([]int, n),
		Group:         c.attrs().Int("group", 1),
	}
	if pads := c.attrs().Ints("pads"); len(pads) > 0 {
		if len(pads) != 2*n {
			c.failf("pads %v do not fit an input of shape %v", pads, x.shape)
		}
		for _, p := range pads {
			if p < -maxWindow || p > maxWindow {
				c.failf("pads %v are out of range", pads)
			}
		}
		copy(w.Begin, pads[:n])
		copy(w.End, pads[n:])
	}
	return w
}

// slide completes the padding that auto_pad asks for and returns the number of
// window positions along each spatial dimension (Conv-11, MaxPool-12).
func (c *inference) slide(w *Window) []int {
	x := c.in(0).shape[2:]
	ceil := c.attrs().Int("ceil_mode", 0) != 0
	auto := c.attrs().String("auto_pad", "NOTSET")
	out := make([]int, len(x))
	for i, d := range x {
		extent := (w.Kernel[i]-1)*w.Dilations[i] + 1
		s := w.Strides[i]
		switch auto {
		case "SAME_UPPER", "SAME_LOWER":
			out[i] = (d + s - 1) / s
			pad := max(0, (out[i]-1)*s+extent-d)
			w.Begin[i], w.End[i] = pad/2, pad-pad/2
			if auto == "SAME_LOWER" {
				w.Begin[i], w.End[i] = w.End[i], w.Begin[i]
			}
			continue
		case "VALID":
			w.Begin[i], w.End[i] = 0, 0
		case "NOTSET", "":
		default:
			c.failf("auto_pad %q is not known", auto)
		}
		room := d + w.Begin[i] + w.End[i] - extent
		if room < 0 {
			c.failf("a window of %d does not fit dimension %d of shape %v with pads %d and %d", extent, i+2, c.in(0).shape, w.Begin[i], w.End[i])
		}
		out[i] = room/s + 1
		if ceil && room%s != 0 && out[i]*s < d+w.Begin[i] {
			// A window that would start in the end padding is left out.
			out[i]++
		}
	}
	return out
}

func conv(c *inference) {
	x, weight := c.rankAtLeast(0, 3), c.rankAtLeast(1, 3)
	if len(x.shape) != len(weight.shape) {
		c.failf("input %v and weight %v differ in rank", x.shape, weight.shape)
	}
	w := c.window(weight.shape[2:])
	if w.Group < 1 || weight.shape[1]*w.Group != x.shape[1] || weight.shape[0]%w.Group != 0 {
		c.failf("weight %v does not fit %d channels in %d groups", weight.shape, x.shape[1], w.Group)
	}
	c.biasLength(weight.shape[0])
	c.out(0, c.sameType(0, 1, 2), append([]int{x.shape[0], weight.shape[0]}, c.slide(&w)...))
}

func (c *inference) biasLength(n int) {
	if b := c.opt(2); b != nil && !slices.Equal(b.shape, []int{n}) {
		c.failf("bias has shape %v, wants [%d]", b.shape, n)
	}
}

func convTranspose(c *inference) {
	x, weight := c.rankAtLeast(0, 3), c.rankAtLeast(1, 3)
	if len(x.shape) != len(weight.shape) {
		c.failf("input %v and weight %v differ in rank", x.shape, weight.shape)
	}
	w := c.window(weight.shape[2:])
	if w.Group < 1 || weight.shape[0] != x.shape[1] || x.shape[1]%w.Group != 0 {
		c.failf("weight %v does not fit %d channels in %d groups", weight.shape, x.shape[1], w.Group)
	}
	channels := weight.shape[1] * w.Group
	c.biasLength(channels)
	c.out(0, c.sameType(0, 1, 2), append([]int{x.shape[0], channels}, c.transposedShape(&w)...))
}

// transposedShape returns the spatial output of a ConvTranspose and completes
// the padding that output_shape or auto_pad leave to the operator
// (ConvTranspose-11).
func (c *inference) transposedShape(w *Window) []int {
	x := c.in(0).shape[2:]
	out := make([]int, len(x))
	want := c.attrs().Ints("output_shape")
	auto := c.attrs().String("auto_pad", "NOTSET")
	for i, d := range x {
		full := (d-1)*w.Strides[i] + w.OutputPadding[i] + (w.Kernel[i]-1)*w.Dilations[i] + 1
		same := auto == "SAME_UPPER" || auto == "SAME_LOWER"
		if len(want) == len(x) || same {
			out[i] = d * w.Strides[i]
			if len(want) == len(x) {
				out[i] = want[i]
			}
			total := full - out[i]
			w.Begin[i], w.End[i] = total/2, total-total/2
			if auto != "SAME_UPPER" {
				w.Begin[i], w.End[i] = w.End[i], w.Begin[i]
			}
			continue
		}
		if auto == "VALID" {
			w.Begin[i], w.End[i] = 0, 0
		}
		out[i] = full - w.Begin[i] - w.End[i]
	}
	for _, d := range out {
		if d < 0 {
			c.failf("pads leave a spatial shape of %v", out)
		}
	}
	return out
}

// pool: output 1 of MaxPool holds flat indices into the input.
func pool(c *inference) {
	x := c.rankAtLeast(0, 3)
	w := c.window(c.attrs().Ints("kernel_shape"))
	shape := append(cloneShape(x.shape[:2]), c.slide(&w)...)
	c.out(0, x.typ, shape)
	if c.node.OpType == "MaxPool" {
		c.out(1, Int64, shape)
	}
}

func globalPool(c *inference) {
	x := c.rankAtLeast(0, 3)
	shape := cloneShape(x.shape)
	for i := 2; i < len(shape); i++ {
		shape[i] = 1
	}
	c.out(0, x.typ, shape)
}

// col2im: [N, C·k, L] to [N, C, image...].
func col2im(c *inference) {
	x := c.in(0)
	image, block := c.constInts(1, "image_shape"), c.constInts(2, "block_shape")
	k, err := elements(block)
	if len(x.shape) != 3 || err != nil || k == 0 || x.shape[1]%k != 0 {
		c.failf("input %v does not fold with blocks of %v", x.shape, block)
	}
	c.out(0, x.typ, append([]int{x.shape[0], x.shape[1] / k}, image...))
}

// resize: Resize-13, -18 and -19. Sizes win over scales; an empty tensor
// counts as absent.
func resize(c *inference) {
	x := c.in(0)
	axes := c.attrs().Ints("axes")
	if len(axes) == 0 {
		axes = Axes(0, len(x.shape))
	}
	axes = c.axes(axes, len(x.shape))
	shape := cloneShape(x.shape)
	if s := c.opt(3); s != nil && s.Elements() > 0 {
		sizes := c.constInts(3, "sizes")
		if len(sizes) != len(axes) {
			c.failf("%d sizes for %d axes", len(sizes), len(axes))
		}
		if p := c.attrs().String("keep_aspect_ratio_policy", "stretch"); p != "stretch" {
			c.failf("keep_aspect_ratio_policy %q is not supported", p)
		}
		for i, a := range axes {
			shape[a] = sizes[i]
		}
		c.out(0, x.typ, shape)
		return
	}
	scales := c.in(2)
	if scales.constant == nil || !scales.typ.IsFloat() {
		c.failf("scales (%s) are not constant: static shapes need them", scales.name)
	}
	factors := scales.constant.Float64s()
	if len(factors) != len(axes) {
		c.failf("%d scales for %d axes", len(factors), len(axes))
	}
	for i, a := range axes {
		if !(factors[i] > 0) || factors[i] > maxWindow || shape[a] > maxWindow*maxWindow {
			c.failf("scale %v is out of range", factors[i])
		}
		shape[a] = int(float64(shape[a]) * factors[i])
	}
	c.out(0, x.typ, shape)
}

func depthToSpace(c *inference) {
	x, b := c.in(0), c.attrs().Int("blocksize", 0)
	if len(x.shape) != 4 || b < 1 || b > maxWindow || x.shape[1]%(b*b) != 0 {
		c.failf("input %v does not unfold with blocks of %d", x.shape, b)
	}
	c.out(0, x.typ, []int{x.shape[0], x.shape[1] / (b * b), x.shape[2] * b, x.shape[3] * b})
}

func spaceToDepth(c *inference) {
	x, b := c.in(0), c.attrs().Int("blocksize", 0)
	if len(x.shape) != 4 || b < 1 || b > maxWindow || x.shape[2]%b != 0 || x.shape[3]%b != 0 {
		c.failf("input %v does not fold with blocks of %d", x.shape, b)
	}
	c.out(0, x.typ, []int{x.shape[0], x.shape[1] * b * b, x.shape[2] / b, x.shape[3] / b})
}

func gridSample(c *inference) {
	x, grid := c.rankAtLeast(0, 3), c.rankAtLeast(1, 3)
	if len(x.shape) != len(grid.shape) {
		c.failf("input %v and grid %v differ in rank", x.shape, grid.shape)
	}
	c.out(0, x.typ, append(cloneShape(x.shape[:2]), grid.shape[1:len(grid.shape)-1]...))
}
