package backbone

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// MobileBlock is one block of a network of mobile inverted bottlenecks.
type MobileBlock struct {
	Stage   int    `json:"stage"`
	Hidden  int    `json:"hidden,omitempty"`  // channels of the depthwise convolution; 0: one plain convolution
	Width   int    `json:"width"`             // channels that it gives
	Kernel  int    `json:"kernel"`            // pixels
	Stride  int    `json:"stride"`            //
	Squeeze int    `json:"squeeze,omitempty"` // channels in the middle of squeeze-and-excitation; 0: none
	Act     string `json:"act"`               // activation: one of the names of [builder.activate]
}

// Mobile is what a network of mobile inverted bottlenecks has beside its blocks
// (MobileNetV2 and V3, EfficientNet, EfficientNet-Lite).
type Mobile struct {
	Blocks []MobileBlock `json:"blocks"`
	Stem   int           `json:"stem"`               // channels of the first convolution
	Head   int           `json:"head"`               // channels of the last one
	Act    string        `json:"act"`                // of both
	Late   bool          `json:"late,omitempty"`     // MobileNetV3: the last convolution comes behind the pooling, with a bias and without a norm
	Hard   bool          `json:"hard,omitempty"`     // squeeze-and-excitation of MobileNetV3: hard sigmoid, ReLU
	Same   bool          `json:"same_pad,omitempty"` // TensorFlow's padding: the odd pixel goes behind
}

// Activations.
const (
	actGelu      = ""           // erf-GELU
	actGeluTanh  = "gelu_tanh"  //
	actQuickGelu = "quick_gelu" // x·σ(1.702x)
	actSilu      = "silu"       // x·σ(x), swish
	actRelu      = "relu"
	actRelu6     = "relu6"
	actHardSwish = "hard_swish" // x·min(max(x+3, 0), 6)/6
)

func (b *builder) activate(x *onnx.Value, act string) *onnx.Value {
	g := b.g
	switch act {
	case actGelu:
		return g.Op("Gelu", nil, x)
	case actGeluTanh:
		return g.Op("Gelu", onnx.Attrs{"approximate": "tanh"}, x)
	case actQuickGelu:
		return g.Op("Mul", nil, x, g.Op("Sigmoid", nil, g.Op("Mul", nil, x, b.floats([]float32{1.702}))))
	case actSilu:
		return g.Op("Mul", nil, x, g.Op("Sigmoid", nil, x))
	case actRelu:
		return g.Op("Relu", nil, x)
	case actRelu6:
		return g.Op("Clip", nil, x, b.floats([]float32{0}), b.floats([]float32{6}))
	case actHardSwish:
		return g.Op("HardSwish", nil, x)
	}
	if b.err == nil {
		b.err = architectureError("activation %q", act)
	}
	return x
}

// mobile appends a network of mobile inverted bottlenecks (Sandler et al. 2018,
// Howard et al. 2019, Tan and Le 2019). The embedding is what the classifier
// reads.
func (b *builder) mobile(image *onnx.Value) Features {
	s := b.m.Spec
	m := s.Mobile
	x := b.activate(b.batchNorm(b.samePad(b.pixels(image), "conv_stem", 2, 1), "bn1"), m.Act)
	layers, head := b.last()
	place := 0
	for i, blk := range m.Blocks {
		if blk.Stage >= layers {
			break
		}
		if i > 0 && m.Blocks[i-1].Stage != blk.Stage {
			place = 0
		}
		x = b.mobileBlock(x, fmt.Sprintf("blocks.%d.%d", blk.Stage, place), blk)
		place++
		if i+1 == len(m.Blocks) || m.Blocks[i+1].Stage != blk.Stage {
			b.tapPlane(x, blk.Stage+1)
		}
	}
	if !head {
		return Features{}
	}
	var f Features
	if m.Late {
		c := int64(x.Dim(1))
		x = b.reshape(b.g.Op("GlobalAveragePool", nil, x), -1, c)
		f.Embedding = b.activate(b.linear(x, "conv_head"), m.Act)
	} else {
		x = b.activate(b.batchNorm(b.conv(x, "conv_head", 1, 0), "bn2"), m.Act)
		f.Embedding = b.pool(x)
	}
	b.tapHead(f.Embedding)
	return f
}

func (b *builder) mobileBlock(x *onnx.Value, name string, blk MobileBlock) *onnx.Value {
	defer b.g.Scope(name)()
	in := x
	if blk.Hidden == 0 {
		return b.activate(b.batchNorm(b.samePad(x, name+".conv", blk.Stride, 1), name+".bn1"), blk.Act)
	}
	norm := 1
	next := func() string { norm++; return fmt.Sprintf("%s.bn%d", name, norm-1) }
	if b.m.has(name + ".conv_pwl.weight") {
		x = b.activate(b.batchNorm(b.conv(x, name+".conv_pw", 1, 0), next()), blk.Act)
	}
	x = b.activate(b.batchNorm(b.samePad(x, name+".conv_dw", blk.Stride, blk.Hidden), next()), blk.Act)
	if blk.Squeeze > 0 {
		x = b.squeeze(x, name+".se", blk)
	}
	last := name + ".conv_pw"
	if b.m.has(name + ".conv_pwl.weight") {
		last = name + ".conv_pwl"
	}
	x = b.batchNorm(b.conv(x, last, 1, 0), next())
	if blk.Stride == 1 && in.Dim(1) == x.Dim(1) {
		x = b.g.Op("Add", nil, x, in)
	}
	return x
}

// squeeze is squeeze-and-excitation: channels weighted by what their means say.
func (b *builder) squeeze(x *onnx.Value, name string, blk MobileBlock) *onnx.Value {
	g := b.g
	c := int64(x.Dim(1))
	y := b.reshape(g.Op("GlobalAveragePool", nil, x), -1, c)
	if y = b.linear(y, name+".conv_reduce"); b.m.Spec.Mobile.Hard {
		y = b.linear(g.Op("Relu", nil, y), name+".conv_expand")
		y = g.Op("HardSigmoid", onnx.Attrs{"alpha": float32(1.0 / 6), "beta": float32(0.5)}, y)
	} else {
		y = g.Op("Sigmoid", nil, b.linear(b.activate(y, blk.Act), name+".conv_expand"))
	}
	return g.Op("Mul", nil, x, b.reshape(y, -1, c, 1, 1))
}

// samePad is a convolution whose output has ⌈size/stride⌉ cells.
func (b *builder) samePad(x *onnx.Value, name string, stride, group int) *onnx.Value {
	w := b.param(name + ".weight")
	before, after := w.Dim(2)/2, w.Dim(2)/2
	if b.m.Spec.Mobile.Same {
		before, after = samePadding(x.Dim(2), w.Dim(2), stride)
	}
	return b.g.Op("Conv", convAttrs(w, stride, before, after, group), x, w, b.optional(name+".bias"))
}

var (
	liteName = regexp.MustCompile(`^_blocks\.(\d+)\._(expand_conv|depthwise_conv|project_conv|se_reduce|se_expand|bn0|bn1|bn2)\.(.*)$`)
	hfNet    = regexp.MustCompile(`^encoder\.blocks\.(\d+)\.(?:expansion|depthwise_conv|squeeze_excite|projection)\.(expand_conv|expand_bn|depthwise_conv|depthwise_norm|reduce|expand|project_conv|project_bn)\.(.*)$`)
)

// mobileParts are the names of a block's layers, without and with an expansion.
var mobileParts = map[string][2]string{
	"expand_conv": {"", "conv_pw"}, "bn0": {"", "bn1"}, "expand_bn": {"", "bn1"},
	"depthwise_conv": {"conv_dw", "conv_dw"}, "bn1": {"bn1", "bn2"}, "depthwise_norm": {"bn1", "bn2"},
	"se_reduce": {"se.conv_reduce", "se.conv_reduce"}, "reduce": {"se.conv_reduce", "se.conv_reduce"},
	"se_expand": {"se.conv_expand", "se.conv_expand"}, "expand": {"se.conv_expand", "se.conv_expand"},
	"project_conv": {"conv_pw", "conv_pwl"}, "bn2": {"bn2", "bn3"}, "project_bn": {"bn2", "bn3"},
}

// mobileRenamer names the blocks of networks that count them through as timm
// does, by stages: a new stage starts where the number of channels changes.
func mobileRenamer(w *Weights, d dialect, prefix string) func(string) (string, int) {
	pattern, expand, project, tops := liteName, "_blocks.%d._expand_conv.weight", "_blocks.%d._project_conv.weight", map[string]string{
		"_conv_stem.": "conv_stem.", "_bn0.": "bn1.", "_conv_head.": "conv_head.", "_bn1.": "bn2.",
	}
	if d.name == dialectHFNet {
		pattern, expand, project, tops = hfNet, "encoder.blocks.%d.expansion.expand_conv.weight", "encoder.blocks.%d.projection.project_conv.weight", map[string]string{
			"embeddings.convolution.": "conv_stem.", "embeddings.batchnorm.": "bn1.", "encoder.top_conv.": "conv_head.", "encoder.top_bn.": "bn2.",
		}
	}
	type place struct {
		stage, index, expanded int
	}
	var places []place
	before := -1
	for i := 0; ; i++ {
		shape := w.Shape(prefix + fmt.Sprintf(project, i))
		if len(shape) != 4 {
			break
		}
		p := place{}
		if n := len(places); n > 0 {
			p = place{stage: places[n-1].stage, index: places[n-1].index + 1}
			if shape[0] != before {
				p = place{stage: p.stage + 1}
			}
		}
		if w.Has(prefix + fmt.Sprintf(expand, i)) {
			p.expanded = 1
		}
		before = shape[0]
		places = append(places, p)
	}
	return func(name string) (string, int) {
		for from, to := range tops {
			if rest, ok := strings.CutPrefix(name, from); ok {
				return to + rest, 0
			}
		}
		m := pattern.FindStringSubmatch(name)
		if m == nil {
			return name, 0
		}
		i, err := strconv.Atoi(m[1])
		if err != nil || i >= len(places) {
			return name, 0
		}
		to := mobileParts[m[2]][places[i].expanded]
		if to == "" {
			return name, 0
		}
		return fmt.Sprintf("blocks.%d.%d.%s.%s", places[i].stage, places[i].index, to, m[3]), 0
	}
}

// Strides of the stages.
var (
	efficientStrides = []int{1, 2, 2, 2, 1, 2, 1}
	v3SmallStrides   = []int{2, 2, 2, 1, 2, 1}
)

// loadMobile fills m from weights of a network of mobile inverted bottlenecks.
// Padding and, without squeeze-and-excitation, the activation are not in the
// weights: they follow from the family, and for timm's names from hint.
func loadMobile(m *Model, w source, hint string) error {
	s := &m.Spec
	mob := &Mobile{}
	s.Mobile = mob
	squeezed := 0
	for stage := 0; ; stage++ {
		n := 0
		for ; ; n++ {
			p := fmt.Sprintf("blocks.%d.%d.", stage, n)
			blk := MobileBlock{Stage: stage, Stride: 1}
			dw, out := w.shape(p+"conv_dw.weight"), w.shape(p+"conv_pwl.weight")
			if out == nil {
				out = w.shape(p + "conv_pw.weight")
			}
			if plain := w.shape(p + "conv.weight"); dw == nil && len(plain) == 4 {
				blk.Width, blk.Kernel = plain[0], plain[2]
			} else if len(dw) == 4 && len(out) == 4 {
				blk.Hidden, blk.Width, blk.Kernel = dw[0], out[0], dw[2]
				if se := w.shape(p + "se.conv_reduce.weight"); len(se) == 4 {
					blk.Squeeze = se[0]
					squeezed++
				}
			} else {
				break
			}
			mob.Blocks = append(mob.Blocks, blk)
		}
		if n == 0 {
			break
		}
		s.Blocks = append(s.Blocks, n)
	}
	stem, head := w.shape("conv_stem.weight"), w.shape("conv_head.weight")
	if len(mob.Blocks) == 0 || len(stem) != 4 || len(head) != 4 {
		return architectureError("conv_stem of shape %v, %d blocks and conv_head of shape %v make no mobile network", stem, len(mob.Blocks), head)
	}
	mob.Stem, mob.Head, mob.Late = stem[0], head[0], !w.has("bn2.weight")
	s.Dim, s.Size = mob.Head, 224
	if err := mobileKind(s, squeezed, hint, m.dialect); err != nil {
		return err
	}
	for i := range mob.Blocks {
		if b := &mob.Blocks[i]; i == 0 || mob.Blocks[i-1].Stage != b.Stage {
			b.Stride = s.strides()[b.Stage]
		}
	}
	if err := s.Validate(); err != nil {
		return err
	}
	return takeAll(m, w)
}

// strides are those of the stages.
func (s Spec) strides() []int {
	if s.Mobile.Hard && len(s.Blocks) == 6 {
		return v3SmallStrides
	}
	return efficientStrides
}

// mobileKind tells the members of the family apart.
func mobileKind(s *Spec, squeezed int, hint, dialect string) error {
	m := s.Mobile
	var kernels []int
	plain := 0
	for i, b := range m.Blocks {
		if i == 0 || m.Blocks[i-1].Stage != b.Stage {
			kernels = append(kernels, b.Kernel)
		}
		if b.Hidden == 0 {
			plain++
		}
	}
	act := func(name string) {
		m.Act = name
		for i := range m.Blocks {
			m.Blocks[i].Act = name
		}
	}
	lite := []int{3, 3, 5, 3, 5, 5, 3}
	switch {
	case m.Late && plain == 1 && squeezed > 0 && (len(s.Blocks) == 7 || len(s.Blocks) == 6):
		m.Hard = true
		act(actHardSwish)
		rectified := 3 // stages with ReLU: of the large one
		if len(s.Blocks) == 6 {
			rectified = 2
		}
		for i := range m.Blocks {
			if m.Blocks[i].Stage < rectified {
				m.Blocks[i].Act = actRelu
			}
		}
	case m.Late || plain > 0 || len(s.Blocks) != 7:
		return architectureError("a mobile network of %d stages, %d blocks with and %d without depthwise convolutions is not built; export it to ONNX and import that", len(s.Blocks), len(m.Blocks)-plain, plain)
	case squeezed == len(m.Blocks) && slices.Equal(kernels, lite):
		act(actSilu)
	case squeezed == 0 && (slices.Equal(kernels, lite) || slices.Equal(kernels, []int{3, 3, 3, 3, 3, 3, 3})):
		act(actRelu6)
	default:
		return architectureError("a mobile network with kernels %v and squeeze-and-excitation in %d of %d blocks is neither an EfficientNet, an EfficientNet-Lite nor a MobileNet; export it to ONNX and import that", kernels, squeezed, len(m.Blocks))
	}
	switch {
	case dialect != dialectTimm:
		m.Same, s.NormEps = true, 1e-3
	case strings.Contains(hint, "tf_"):
		m.Same, s.NormEps = true, 1e-3
	case hint == "":
		return architectureError("timm's own weights and those ported from TensorFlow have the same names here and are padded differently: say which with --arch, as in --arch tf_%s or --arch %s", s.Name(), s.Name())
	default:
		s.NormEps = 1e-5
	}
	return nil
}

// mobileShapes lists the weights in the order of the forward pass.
func mobileShapes(s Spec) []paramShape {
	m := s.Mobile
	var out []paramShape
	conv := func(name, bn string, shape ...int) {
		out = append(out, paramShape{name + ".weight", shape, false})
		for _, part := range []string{"weight", "bias", "running_mean", "running_var"} {
			out = append(out, paramShape{bn + "." + part, shape[:1], false})
		}
	}
	conv("conv_stem", "bn1", m.Stem, 3, 3, 3)
	in, place := m.Stem, 0
	for i, b := range m.Blocks {
		if i > 0 && m.Blocks[i-1].Stage != b.Stage {
			place = 0
		}
		p := fmt.Sprintf("blocks.%d.%d.", b.Stage, place)
		place++
		if b.Hidden == 0 {
			conv(p+"conv", p+"bn1", b.Width, in, b.Kernel, b.Kernel)
			in = b.Width
			continue
		}
		bn, last := 1, p+"conv_pw"
		if b.expands(in) {
			conv(p+"conv_pw", p+"bn1", b.Hidden, in, 1, 1)
			bn, last = 2, p+"conv_pwl"
		}
		conv(p+"conv_dw", fmt.Sprintf("%sbn%d", p, bn), b.Hidden, 1, b.Kernel, b.Kernel)
		if b.Squeeze > 0 {
			out = append(out,
				paramShape{p + "se.conv_reduce.weight", []int{b.Squeeze, b.Hidden, 1, 1}, false}, paramShape{p + "se.conv_reduce.bias", []int{b.Squeeze}, false},
				paramShape{p + "se.conv_expand.weight", []int{b.Hidden, b.Squeeze, 1, 1}, false}, paramShape{p + "se.conv_expand.bias", []int{b.Hidden}, false})
		}
		conv(last, fmt.Sprintf("%sbn%d", p, bn+1), b.Width, b.Hidden, 1, 1)
		in = b.Width
	}
	if m.Late {
		return append(out, paramShape{"conv_head.weight", []int{m.Head, in, 1, 1}, false}, paramShape{"conv_head.bias", []int{m.Head}, false})
	}
	conv("conv_head", "bn2", m.Head, in, 1, 1)
	return out
}

// expands says whether a block widens its input first: those whose depthwise
// convolution has as many channels do not.
func (b MobileBlock) expands(in int) bool { return b.Hidden != in }

// mobileName is the architecture's name in timm, as near as shapes tell.
func (s Spec) mobileName() string {
	m := s.Mobile
	depth := 0
	for _, n := range s.Blocks {
		depth += n
	}
	wide := m.Blocks[len(m.Blocks)-1].Width > 320
	switch {
	case m.Hard && len(s.Blocks) == 6:
		return "mobilenetv3_small"
	case m.Hard:
		return "mobilenetv3_large"
	case m.Act == actRelu6 && !slices.ContainsFunc(m.Blocks, func(b MobileBlock) bool { return b.Kernel != 3 }):
		return "mobilenetv2"
	case m.Act == actRelu6:
		n := map[int]string{16: "0", 21: "1", 24: "3", 30: "4"}[depth]
		if depth == 21 && wide {
			n = "2"
		}
		return "efficientnet_lite" + n
	}
	n := map[int]string{16: "0", 23: "1", 26: "3", 32: "4", 39: "5", 45: "6", 55: "7"}[depth]
	if depth == 23 && wide {
		n = "2"
	}
	return "efficientnet_b" + n
}
