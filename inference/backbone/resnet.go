package backbone

import (
	"fmt"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// resnet appends a ResNet (He et al. 2016; stride in the 3×3 convolution, as in
// timm and torchvision). BatchNorm uses its stored statistics. The embedding is
// the global average of the last stage.
func (b *builder) resnet(image *onnx.Value) Features {
	s, g := b.m.Spec, b.g
	x := b.pixels(image)
	x = g.Op("Relu", nil, b.batchNorm(b.conv(x, "conv1", 2, 3), "bn1"))
	x = g.Op("MaxPool", onnx.Attrs{"kernel_shape": []int{3, 3}, "strides": []int{2, 2}, "pads": []int{1, 1, 1, 1}}, x)
	layers, head := b.last()
	for stage, n := range s.Blocks[:layers] {
		for i := range n {
			stride := 1
			if i == 0 && stage > 0 {
				stride = 2
			}
			x = b.residual(x, fmt.Sprintf("layer%d.%d", stage+1, i), stride)
		}
		b.tapPlane(x, stage+1)
	}
	if !head {
		return Features{}
	}
	f := Features{Embedding: b.pool(x)}
	b.tapHead(f.Embedding)
	return f
}

// pool is the mean over the plane: [N, C, H, W] → [N, C].
func (b *builder) pool(x *onnx.Value) *onnx.Value {
	defer b.g.Scope("pool")()
	c := int64(x.Dim(1))
	return b.reshape(b.g.Op("GlobalAveragePool", nil, x), -1, c)
}

func (b *builder) residual(x *onnx.Value, name string, stride int) *onnx.Value {
	g := b.g
	defer g.Scope(name)()
	relu := func(x *onnx.Value) *onnx.Value { return g.Op("Relu", nil, x) }
	norm := func(x *onnx.Value, conv, bn string, stride, pad int) *onnx.Value {
		return b.batchNorm(b.conv(x, name+"."+conv, stride, pad), name+"."+bn)
	}
	var h *onnx.Value
	if b.m.Spec.Basic {
		h = relu(norm(x, "conv1", "bn1", stride, 1))
		h = norm(h, "conv2", "bn2", 1, 1)
	} else {
		h = relu(norm(x, "conv1", "bn1", 1, 0))
		h = relu(norm(h, "conv2", "bn2", stride, 1))
		h = norm(h, "conv3", "bn3", 1, 0)
	}
	if b.m.has(name + ".downsample.0.weight") {
		x = norm(x, "downsample.0", "downsample.1", stride, 0)
	}
	return relu(g.Op("Add", nil, h, x))
}

func (b *builder) conv(x *onnx.Value, name string, stride, pad int) *onnx.Value {
	w := b.param(name + ".weight")
	return b.g.Op("Conv", convAttrs(w, stride, pad, pad, 1), x, w, b.optional(name+".bias"))
}

func convAttrs(w *onnx.Value, stride, before, after, group int) onnx.Attrs {
	return onnx.Attrs{
		"kernel_shape": []int{w.Dim(2), w.Dim(3)},
		"strides":      []int{stride, stride},
		"pads":         []int{before, before, after, after},
		"group":        group,
	}
}

func (b *builder) batchNorm(x *onnx.Value, name string) *onnx.Value {
	return b.g.Op("BatchNormalization", onnx.Attrs{"epsilon": float32(b.m.Spec.NormEps)}, x,
		b.param(name+".weight"), b.param(name+".bias"), b.param(name+".running_mean"), b.param(name+".running_var"))
}

// loadResNet fills m from timm- or torchvision-named weights.
func loadResNet(m *Model, w source) error {
	s := &m.Spec
	s.Family, s.Size, s.NormEps = ResNet, 224, 1e-5
	s.Basic = !w.has("layer1.0.conv3.weight")
	for stage := 1; stage <= 4; stage++ {
		n := 0
		for w.has(fmt.Sprintf("layer%d.%d.conv1.weight", stage, n)) {
			n++
		}
		last := fmt.Sprintf("layer%d.0.conv3.weight", stage)
		if s.Basic {
			last = fmt.Sprintf("layer%d.0.conv2.weight", stage)
		}
		shape := w.shape(last)
		if n == 0 || len(shape) != 4 {
			return architectureError("no weights of residual stage %d", stage)
		}
		s.Blocks, s.Widths = append(s.Blocks, n), append(s.Widths, shape[0])
	}
	s.Dim = s.Widths[3]
	if err := s.Validate(); err != nil {
		return err
	}
	if mid := w.shape("layer1.0.conv1.weight"); !s.Basic && len(mid) == 4 && mid[0] > s.Widths[0]/4 {
		s.Wide = mid[0] / max(s.Widths[0]/4, 1)
	}
	return takeAll(m, w)
}

// resnetShapes lists the weights of a ResNet. The stem has 64 channels and a
// bottleneck's middle a quarter of its output, as in every published one.
func resnetShapes(s Spec) []paramShape {
	var out []paramShape
	unit := func(conv, bn string, o, i, k int) {
		out = append(out, paramShape{conv + ".weight", []int{o, i, k, k}, false})
		for _, part := range []string{"weight", "bias", "running_mean", "running_var"} {
			out = append(out, paramShape{bn + "." + part, []int{o}, false})
		}
	}
	stem := stemChannels(s)
	unit("conv1", "bn1", stem, 3, 7)
	in := stem
	for stage, n := range s.Blocks {
		width := s.Widths[stage]
		for i := range n {
			p := fmt.Sprintf("layer%d.%d.", stage+1, i)
			if s.Basic {
				unit(p+"conv1", p+"bn1", width, in, 3)
				unit(p+"conv2", p+"bn2", width, width, 3)
			} else {
				mid := width / 4 * max(s.Wide, 1)
				unit(p+"conv1", p+"bn1", mid, in, 1)
				unit(p+"conv2", p+"bn2", mid, mid, 3)
				unit(p+"conv3", p+"bn3", width, mid, 1)
			}
			if i == 0 && (stage > 0 || in != width) {
				unit(p+"downsample.0", p+"downsample.1", width, in, 1)
			}
			in = width
		}
	}
	return out
}

// stemChannels is the width of a ResNet's first convolution: a quarter of the
// first bottleneck stage, or the whole of the first basic one.
func stemChannels(s Spec) int {
	if s.Basic {
		return s.Widths[0]
	}
	return s.Widths[0] / 4
}
