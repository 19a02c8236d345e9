package backbone

import (
	"fmt"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// convnext appends a ConvNeXt (Liu et al. 2022). Between convolutions the
// channels are last, so that norms and linear layers work on rows. The embedding
// is LayerNorm of the global average, what the classifier reads.
func (b *builder) convnext(image *onnx.Value) Features {
	s := b.m.Spec
	x := b.conv(b.pixels(image), "stem.0", 4, 0)
	x = b.channelNorm(x, "stem.1")
	layers, head := b.last()
	for stage, n := range s.Blocks[:layers] {
		name := fmt.Sprintf("stages.%d.", stage)
		if stage > 0 {
			x = b.conv(b.channelNorm(x, name+"downsample.0"), name+"downsample.1", 2, 0)
		}
		for i := range n {
			x = b.convnextBlock(x, fmt.Sprintf("%sblocks.%d", name, i))
		}
		b.tapPlane(x, stage+1)
	}
	if !head {
		return Features{}
	}
	f := Features{Embedding: b.layerNorm(b.pool(x), "head.norm")}
	b.tapHead(f.Embedding)
	return f
}

func (b *builder) convnextBlock(x *onnx.Value, name string) *onnx.Value {
	g := b.g
	defer g.Scope(name)()
	c, h, w := int64(x.Dim(1)), int64(x.Dim(2)), int64(x.Dim(3))
	k := b.param(name + ".conv_dw.weight") // [C, 1, 7, 7]
	pad := k.Dim(2) / 2
	y := g.Op("Conv", convAttrs(k, 1, pad, pad, int(c)), x, k, b.param(name+".conv_dw.bias"))
	y = b.reshape(b.transpose(y, 0, 2, 3, 1), -1, c)
	y = b.layerNorm(y, name+".norm")
	y = g.Op("Gelu", nil, b.linear(y, name+".mlp.fc1"))
	y = b.linear(b.drop(y, name+".mlp.drop1"), name+".mlp.fc2")
	y = b.drop(y, name+".mlp.drop2")
	if b.m.has(name + ".gamma") {
		y = g.Op("Mul", nil, y, b.param(name+".gamma"))
	}
	y = b.transpose(b.reshape(y, -1, h, w, c), 0, 3, 1, 2)
	return g.Op("Add", nil, x, y)
}

// channelNorm is LayerNorm over the channels of [N, C, H, W].
func (b *builder) channelNorm(x *onnx.Value, name string) *onnx.Value {
	return b.transpose(b.layerNorm(b.transpose(x, 0, 2, 3, 1), name), 0, 3, 1, 2)
}

// loadConvNeXt fills m from timm-named weights.
func loadConvNeXt(m *Model, w source) error {
	s := &m.Spec
	s.Family, s.Size, s.NormEps = ConvNeXt, 224, 1e-6
	for stage := range 4 {
		n := 0
		for w.has(fmt.Sprintf("stages.%d.blocks.%d.conv_dw.weight", stage, n)) {
			n++
		}
		shape := w.shape(fmt.Sprintf("stages.%d.blocks.0.conv_dw.weight", stage))
		if n == 0 || len(shape) != 4 {
			return architectureError("no weights of ConvNeXt stage %d", stage)
		}
		s.Blocks, s.Widths = append(s.Blocks, n), append(s.Widths, shape[0])
	}
	s.Dim = s.Widths[3]
	if fc1 := w.shape("stages.0.blocks.0.mlp.fc1.weight"); len(fc1) >= 2 {
		s.Hidden = fc1[0] / max(s.Widths[0], 1) // MLP ratio
	}
	if err := s.Validate(); err != nil {
		return err
	}
	return takeAll(m, w)
}

func convnextShapes(s Spec) []paramShape {
	var out []paramShape
	add := func(name string, shape ...int) { out = append(out, paramShape{name, shape, false}) }
	pair := func(name string, c int, shape ...int) { add(name+".weight", shape...); add(name+".bias", c) }
	w := s.Widths
	pair("stem.0", w[0], w[0], 3, 4, 4)
	pair("stem.1", w[0], w[0])
	for stage, n := range s.Blocks {
		c := w[stage]
		p := fmt.Sprintf("stages.%d.", stage)
		if stage > 0 {
			pair(p+"downsample.0", w[stage-1], w[stage-1])
			pair(p+"downsample.1", c, c, w[stage-1], 2, 2)
		}
		for i := range n {
			b := fmt.Sprintf("%sblocks.%d.", p, i)
			pair(b+"conv_dw", c, c, 1, 7, 7)
			pair(b+"norm", c, c)
			pair(b+"mlp.fc1", s.Hidden*c, s.Hidden*c, c)
			pair(b+"mlp.fc2", c, c, s.Hidden*c)
			out = append(out, paramShape{b + "gamma", []int{c}, true})
		}
	}
	pair("head.norm", w[3], w[3])
	return out
}
