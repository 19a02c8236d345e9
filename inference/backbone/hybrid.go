package backbone

import (
	"fmt"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// hybridGroups is the number of groups of every GroupNorm in the hybrid.
const hybridGroups = 32

// hybridPatches is the ResNet in front of a hybrid's encoder (R50+ViT-B/16: its
// fourth stage's blocks are in the third): weight-standardised convolutions,
// GroupNorm, TensorFlow "same" padding. It returns rows [N·g², C·p·p].
func (b *builder) hybridPatches(image *onnx.Value) *onnx.Value {
	s, g := b.m.Spec, b.g
	const p = "patch_embed.backbone."
	relu := func(x *onnx.Value) *onnx.Value { return g.Op("Relu", nil, x) }
	x := b.pixels(image)
	x = relu(b.groupNorm(b.stdConv(x, p+"stem.conv", 2), p+"stem.norm"))
	before, after := samePadding(x.Dim(2), 3, 2)
	x = g.Op("MaxPool", onnx.Attrs{
		"kernel_shape": []int{3, 3}, "strides": []int{2, 2},
		"pads": []int{before, before, after, after},
	}, x)
	for stage, n := range s.Blocks {
		for i := range n {
			name := fmt.Sprintf("%sstages.%d.blocks.%d", p, stage, i)
			stride := 1
			if i == 0 && stage > 0 {
				stride = 2
			}
			restore := g.Scope(fmt.Sprintf("stages.%d.blocks.%d", stage, i))
			h := relu(b.groupNorm(b.stdConv(x, name+".conv1", 1), name+".norm1"))
			h = relu(b.groupNorm(b.stdConv(h, name+".conv2", stride), name+".norm2"))
			h = b.groupNorm(b.stdConv(h, name+".conv3", 1), name+".norm3")
			if i == 0 {
				x = b.groupNorm(b.stdConv(x, name+".downsample.conv", stride), name+".downsample.norm")
			}
			x = relu(g.Op("Add", nil, h, x))
			restore()
		}
	}
	// [N, C, g·p, g·p] → rows in the order of a flattened kernel.
	c, q, grid := int64(x.Dim(1)), int64(s.Patch), int64(s.grid())
	if q == 1 {
		x = b.transpose(x, 0, 2, 3, 1)
	} else {
		x = b.transpose(b.reshape(x, -1, c, grid, q, grid, q), 0, 2, 4, 1, 3, 5)
	}
	return b.reshape(x, -1, c*q*q)
}

// stdConv is a convolution whose kernel is standardised over each output
// channel: (w − mean) / √(var + eps), biased variance (Qiao et al. 2019).
func (b *builder) stdConv(x *onnx.Value, name string, stride int) *onnx.Value {
	g := b.g
	w := b.param(name + ".weight")
	axes, keep := b.ints(1, 2, 3), onnx.Attrs{"keepdims": 1}
	d := g.Op("Sub", nil, w, g.Op("ReduceMean", keep, w, axes))
	variance := g.Op("ReduceMean", keep, g.Op("Mul", nil, d, d), axes)
	eps := b.floats([]float32{float32(b.m.Spec.StdEps)})
	std := g.Op("Div", nil, d, g.Op("Sqrt", nil, g.Op("Add", nil, variance, eps)))
	before, after := samePadding(x.Dim(2), w.Dim(2), stride)
	return g.Op("Conv", convAttrs(w, stride, before, after, 1), x, std)
}

// groupNorm is GroupNorm written as InstanceNormalization of [N, 32, C/32·H·W],
// since the GroupNormalization operator has no CUDA kernel.
func (b *builder) groupNorm(x *onnx.Value, name string) *onnx.Value {
	g := b.g
	c, h, w := int64(x.Dim(1)), int64(x.Dim(2)), int64(x.Dim(3))
	ones, zeros := make([]float32, hybridGroups), make([]float32, hybridGroups)
	for i := range ones {
		ones[i] = 1
	}
	y := b.reshape(x, -1, hybridGroups, c/hybridGroups*h*w)
	y = g.Op("InstanceNormalization", onnx.Attrs{"epsilon": float32(b.m.Spec.GroupEps)}, y, b.floats(ones, hybridGroups), b.floats(zeros, hybridGroups))
	y = b.reshape(y, -1, c, h, w)
	y = g.Op("Mul", nil, y, b.reshape(b.param(name+".weight"), c, 1, 1))
	return g.Op("Add", nil, y, b.reshape(b.param(name+".bias"), c, 1, 1))
}

// samePadding is TensorFlow's: the output has ⌈size/stride⌉ cells and the odd
// pixel goes behind.
func samePadding(size, kernel, stride int) (before, after int) {
	total := max((((size+stride-1)/stride)-1)*stride+kernel-size, 0)
	return total / 2, total - total/2
}

// inferHybrid reads the ResNet part of m.Spec from the shapes.
func inferHybrid(m *Model, w source) error {
	s := &m.Spec
	for stage := 0; ; stage++ {
		n := 0
		for w.has(fmt.Sprintf("patch_embed.backbone.stages.%d.blocks.%d.conv1.weight", stage, n)) {
			n++
		}
		if n == 0 {
			break
		}
		shape := w.shape(fmt.Sprintf("patch_embed.backbone.stages.%d.blocks.0.conv3.weight", stage))
		if len(shape) != 4 || shape[0]%(4*hybridGroups) != 0 {
			return architectureError("stage %d of the hybrid's ResNet has a last kernel of shape %v, want a multiple of %d channels", stage, shape, 4*hybridGroups)
		}
		s.Blocks, s.Widths = append(s.Blocks, n), append(s.Widths, shape[0])
	}
	if len(s.Blocks) == 0 || len(s.Blocks) > 4 {
		return architectureError("the hybrid's ResNet has %d stages, want 1 to 4", len(s.Blocks))
	}
	// timm's constants; the .npz files were made with flax's default of 1e-6 in
	// GroupNorm.
	s.GroupEps, s.StdEps = 1e-5, 1e-8
	if m.Format == "npz" {
		s.GroupEps = 1e-6
	}
	return nil
}

func hybridShapes(s Spec) []paramShape {
	const p = "patch_embed.backbone."
	var out []paramShape
	unit := func(conv, norm string, o, i, k int) {
		out = append(out,
			paramShape{conv + ".weight", []int{o, i, k, k}, false},
			paramShape{norm + ".weight", []int{o}, false},
			paramShape{norm + ".bias", []int{o}, false})
	}
	in := s.Widths[0] / 4
	unit(p+"stem.conv", p+"stem.norm", in, 3, 7)
	for stage, n := range s.Blocks {
		width := s.Widths[stage]
		for i := range n {
			b := fmt.Sprintf("%sstages.%d.blocks.%d.", p, stage, i)
			if i == 0 {
				unit(b+"downsample.conv", b+"downsample.norm", width, in, 1)
			}
			unit(b+"conv1", b+"norm1", width/4, in, 1)
			unit(b+"conv2", b+"norm2", width/4, width/4, 3)
			unit(b+"conv3", b+"norm3", width, width/4, 1)
			in = width
		}
	}
	return out
}
