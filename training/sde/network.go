package sde

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Network is the shape of a score network: a U-Net of residual blocks with
// self-attention, conditioned on the noise level (Song et al. appendix H; class
// NCSNpp of their code covers both families).
type Network struct {
	Size        int   `json:"size"`        // side of the images in pixels
	Channels    int   `json:"channels"`    // 1 grey, 3 RGB
	Width       int   `json:"width"`       // channels of the first level, a multiple of 4
	Multipliers []int `json:"multipliers"` // channels of each level, in widths; each level halves the side
	Blocks      int   `json:"blocks"`      // residual blocks a level on the way down; one more on the way up
	// Attention lists the sides at which levels attend; the middle always does.
	Attention []int   `json:"attention"`
	Dropout   float64 `json:"dropout"` // in each residual block, training only

	// Fourier embeds ln of the label by random frequencies of scale
	// FourierScale (NCSN++) instead of sines of the label (DDPM++).
	Fourier      bool    `json:"fourier"`
	FourierScale float64 `json:"fourier_scale,omitempty"`
	// FIR resamples with the kernel [1,3,3,1] instead of repeating and averaging.
	FIR bool `json:"fir"`
	// InputPyramid feeds the image to every level: "" not, "residual" through
	// strided convolutions, "skip" by downsampling and a 1×1 convolution.
	InputPyramid string `json:"input_pyramid,omitempty"`
	// OutputPyramid sums an image from every level ("skip") instead of reading
	// the last one ("").
	OutputPyramid string `json:"output_pyramid,omitempty"`
}

// Presets are the named network shapes that [Preset] knows, the paper's first.
var Presets = []string{"ddpm++", "ddpm++-deep", "ncsn++", "ncsn++-deep", "ncsn++-256", "small", "medium", "tiny", "nano"}

// Preset returns a named shape for images of size×size pixels:
//
//   - ddpm++, ncsn++: width 128, multipliers (1,2,2,2), 4 blocks; -deep: 8 blocks
//   - ncsn++-256: the published shape for 256 px
//   - medium: width 64, (1,2,2,2), 2 blocks
//   - small: width 64, (1,2,2), 2 blocks
//   - tiny: width 32, (1,2,2,2), 2 blocks
//   - nano: width 32, (1,2,2), 1 block, for tests and impatient processors
//
// All but the paper's own are of the DDPM++ family.
func Preset(name string, size, channels int) (Network, error) {
	n := Network{Size: size, Channels: channels, Width: 128, Multipliers: []int{1, 2, 2, 2}, Blocks: 4, Attention: []int{16}, Dropout: 0.1}
	switch name {
	case "ddpm++":
	case "ddpm++-deep":
		n.Blocks = 8
	case "ncsn++", "ncsn++-deep":
		n.Fourier, n.FourierScale, n.FIR, n.InputPyramid = true, 16, true, "residual"
		if name == "ncsn++-deep" {
			n.Blocks = 8
		}
	case "ncsn++-256":
		n.Multipliers, n.Blocks, n.Dropout = []int{1, 1, 2, 2, 2, 2, 2}, 2, 0
		n.Fourier, n.FourierScale, n.FIR, n.InputPyramid, n.OutputPyramid = true, 16, true, "skip", "skip"
	case "medium":
		n.Width, n.Blocks = 64, 2
	case "small":
		n.Width, n.Multipliers, n.Blocks = 64, []int{1, 2, 2}, 2
	case "tiny":
		n.Width, n.Blocks, n.Dropout = 32, 2, 0
	case "nano":
		n.Width, n.Multipliers, n.Blocks, n.Dropout = 32, []int{1, 2, 2}, 1, 0
	default:
		return Network{}, fmt.Errorf("choose score network %q: unknown, take one of %v", name, Presets)
	}
	return n, n.Validate()
}

// Validate reports sizes that do not fit each other.
func (n Network) Validate() error {
	var errs []error
	if n.Channels < 1 {
		errs = append(errs, fmt.Errorf("channels %d: want at least 1", n.Channels))
	}
	if n.Width < 4 || n.Width%4 != 0 {
		errs = append(errs, fmt.Errorf("width %d: want a multiple of 4", n.Width))
	}
	if n.Blocks < 1 {
		errs = append(errs, fmt.Errorf("blocks %d: want at least 1", n.Blocks))
	}
	if len(n.Multipliers) == 0 || slices.Min(n.Multipliers) < 1 {
		errs = append(errs, fmt.Errorf("multipliers %v: want at least one, all positive", n.Multipliers))
	} else if f := 1 << (len(n.Multipliers) - 1); n.Size < f || n.Size%f != 0 {
		errs = append(errs, fmt.Errorf("size %d: %d levels need a multiple of %d pixels", n.Size, len(n.Multipliers), f))
	}
	if !(n.Dropout >= 0 && n.Dropout < 1) {
		errs = append(errs, fmt.Errorf("dropout %g: want 0 ≤ p < 1", n.Dropout))
	}
	if !slices.Contains([]string{"", "residual", "skip"}, n.InputPyramid) || !slices.Contains([]string{"", "skip"}, n.OutputPyramid) {
		errs = append(errs, fmt.Errorf("pyramids %q and %q: unknown", n.InputPyramid, n.OutputPyramid))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("score network: %w", err)
	}
	return nil
}

// Param is one weight tensor.
type Param struct {
	Name  string
	Shape []int
	Data  []float32
	// Fixed weights are drawn once and not trained: the Fourier frequencies.
	Fixed bool
}

// source yields the graph value of a weight when the network asks for it, in
// the same order for every graph of one shape.
type source func(name string, shape []int, init initial) *onnx.Value

// initial says how a weight starts.
type initial struct {
	kind  initKind
	scale float64 // of variance scaling, or of normal numbers
}

type initKind int

const (
	initZero initKind = iota
	initOne
	initFan    // uniform, variance scale/((fan_in + fan_out)/2)
	initNormal // fixed normal numbers
)

// nearZero is the published scale of the last layer of every residual branch.
const nearZero = 1e-10

// Init returns fresh weights, each from its own generator of the seed.
func (n Network) Init(seed uint64) ([]Param, error) {
	var ps []Param
	_, err := n.build(1, false, func(g *onnx.Graph) source {
		return func(name string, shape []int, in initial) *onnx.Value {
			p := Param{Name: name, Shape: shape, Data: make([]float32, onnx.Elements(shape)), Fixed: in.kind == initNormal}
			r := newRand(seed, streamInit, uint64(len(ps)))
			switch in.kind {
			case initOne:
				for i := range p.Data {
					p.Data[i] = 1
				}
			case initFan:
				out, fan := shape[0], onnx.Elements(shape[1:])
				field := 1
				if len(shape) == 4 {
					field = shape[2] * shape[3]
				}
				limit := math.Sqrt(3 * in.scale / (float64(fan+out*field) / 2))
				for i := range p.Data {
					p.Data[i] = float32(limit * (2*r.Float64() - 1))
				}
			case initNormal:
				for i := range p.Data {
					p.Data[i] = float32(in.scale * r.NormFloat64())
				}
			}
			ps = append(ps, p)
			return g.Initializer(onnx.FromFloat32(name, p.Data, shape...))
		}
	})
	return ps, err
}

// Graph returns the network for serving: inputs "x" [batch, C, H, W] and "label"
// [batch], output "f" like x, weights as initialisers that alias params.
func (n Network) Graph(batch int, params []Param) (*onnx.Graph, error) {
	i := 0
	b, err := n.build(batch, false, func(g *onnx.Graph) source {
		return func(name string, shape []int, _ initial) *onnx.Value {
			if i >= len(params) || params[i].Name != name || !slices.Equal(params[i].Shape, shape) {
				g.Fail(fmt.Errorf("weight %q %v: the weights given are of another network", name, shape))
				return g.Initializer(onnx.FromFloat32(name, make([]float32, onnx.Elements(shape)), shape...))
			}
			i++
			return g.Initializer(onnx.FromFloat32(name, params[i-1].Data, shape...))
		}
	})
	if err != nil {
		return nil, err
	}
	b.g.Output("f", b.f)
	if i != len(params) {
		return nil, fmt.Errorf("score network: %d weights given, %d used: they are of another network", len(params), i)
	}
	return b.g, b.g.Err()
}

// Cost counts the weights that are trained, and the floating-point operations
// of one forward pass of one image in convolutions and matrix products (two a
// multiply-add).
func (n Network) Cost() (params int, flops int64, err error) {
	u, err := n.build(1, false, func(g *onnx.Graph) source {
		return func(name string, shape []int, in initial) *onnx.Value {
			if in.kind != initNormal {
				params += onnx.Elements(shape)
			}
			return g.Input(name, onnx.Float, shape...) // no data: only shapes count
		}
	})
	if err != nil {
		return 0, 0, err
	}
	return params, optim.FLOPs(u.g), nil
}

// unet is a network in the course of being built.
type unet struct {
	Network
	g        *onnx.Graph
	weight   source
	batch    int
	training bool
	act      *onnx.Value // SiLU of the embedded noise level [N, 4·width]
	x, label *onnx.Value // inputs
	f        *onnx.Value // output
	drops    int
}

// build makes the network as a graph of its own, in training mode or not.
func (n Network) build(batch int, training bool, weights func(*onnx.Graph) source) (*unet, error) {
	if err := n.Validate(); err != nil {
		return nil, err
	}
	g := onnx.New("score network")
	x := g.Input("x", onnx.Float, batch, n.Channels, n.Size, n.Size)
	label := g.Input("label", onnx.Float, batch)
	u := n.attach(g, x, label, training, weights(g))
	if err := g.Err(); err != nil {
		return nil, fmt.Errorf("build score network: %w", err)
	}
	return u, nil
}

// attach appends the network to a graph. In training mode dropout is drawn
// inside the graph.
func (n Network) attach(g *onnx.Graph, x, label *onnx.Value, training bool, weight source) *unet {
	u := &unet{Network: n, g: g, batch: x.Dim(0), training: training, weight: weight, x: x, label: label}
	u.forward()
	return u
}

func (u *unet) forward() {
	u.embed()
	g, levels := u.g, len(u.Multipliers)
	channels := func(level int) int { return u.Width * u.Multipliers[level] }

	pyramid := u.x
	h := u.conv("in", u.x, u.Width, 3, 1)
	skips := []*onnx.Value{h}
	push := func(v *onnx.Value) { h = v; skips = append(skips, v) }
	for l := range levels {
		for b := range u.Blocks {
			name := fmt.Sprintf("down.%d.%d", l, b)
			v := u.block(name, h, channels(l), 0)
			if slices.Contains(u.Attention, u.Size>>l) {
				v = u.attend(name+".attention", v)
			}
			push(v)
		}
		if l == levels-1 {
			break
		}
		name := fmt.Sprintf("down.%d.sample", l)
		v := u.block(name, h, channels(l), -1)
		switch u.InputPyramid {
		case "residual":
			pyramid = u.firConv(name+".pyramid", pyramid, channels(l))
			pyramid = g.Scale(g.Add(pyramid, v), math.Sqrt2/2)
			v = pyramid
		case "skip":
			pyramid = u.resample(pyramid, -1)
			v = g.Add(u.conv(name+".pyramid", pyramid, channels(l), 1, 1), v)
		}
		push(v)
	}

	h = u.block("middle.0", h, channels(levels-1), 0)
	h = u.attend("middle.attention", h)
	h = u.block("middle.1", h, channels(levels-1), 0)

	var image *onnx.Value
	for l := levels - 1; l >= 0; l-- {
		for b := range u.Blocks + 1 {
			skip := skips[len(skips)-1]
			skips = skips[:len(skips)-1]
			h = u.block(fmt.Sprintf("up.%d.%d", l, b), g.Concat(1, h, skip), channels(l), 0)
		}
		if slices.Contains(u.Attention, u.Size>>l) {
			h = u.attend(fmt.Sprintf("up.%d.attention", l), h)
		}
		if u.OutputPyramid == "skip" {
			part := u.last(fmt.Sprintf("up.%d.image", l), h)
			if image != nil {
				part = g.Add(u.resample(image, +1), part)
			}
			image = part
		}
		if l > 0 {
			h = u.block(fmt.Sprintf("up.%d.sample", l), h, channels(l), +1)
		}
	}
	if image == nil {
		image = u.last("out", h)
	}
	u.f = image
}

// last maps features to an image: norm, activation, convolution that starts
// near zero.
func (u *unet) last(name string, h *onnx.Value) *onnx.Value {
	h = u.g.SiLU(u.norm(name+".norm", h))
	return u.convInit(name+".conv", h, u.Channels, 3, 1, 1, nearZero)
}

// embed turns the label into a vector of the noise level.
func (u *unet) embed() {
	g := u.g
	defer g.Scope("embedding")()
	var angles *onnx.Value
	dim := u.Width
	if u.Fourier {
		w := u.weight("embedding.frequencies", []int{1, u.Width}, initial{initNormal, u.FourierScale})
		angles = g.Mul(g.Scale(g.Log(g.Reshape(u.label, u.batch, 1)), 2*math.Pi), w)
		dim = 2 * u.Width
	} else {
		half := u.Width / 2
		freq := make([]float64, half)
		for i := range freq {
			freq[i] = math.Exp(-math.Log(10000) / float64(max(half-1, 1)) * float64(i))
		}
		angles = g.Mul(g.Reshape(u.label, u.batch, 1), g.Reshape(g.Floats(freq...), 1, half))
	}
	e := g.Concat(1, g.Op("Sin", nil, angles), g.Op("Cos", nil, angles))
	e = u.dense("embedding.0", e, dim, 4*u.Width)
	e = u.dense("embedding.1", g.SiLU(e), 4*u.Width, 4*u.Width)
	u.act = g.SiLU(e)
}

// dense is x·Wᵀ + b with W [out, in].
func (u *unet) dense(name string, x *onnx.Value, in, out int) *onnx.Value {
	w := u.weight(name+".weight", []int{out, in}, initial{initFan, 1})
	b := u.weight(name+".bias", []int{out}, initial{})
	return u.g.Gemm(x, w, b, onnx.Attrs{"transB": 1})
}

func (u *unet) conv(name string, x *onnx.Value, out, kernel, stride int) *onnx.Value {
	return u.convInit(name, x, out, kernel, stride, kernel/2, 1)
}

func (u *unet) convInit(name string, x *onnx.Value, out, kernel, stride, pad int, scale float64) *onnx.Value {
	w := u.weight(name+".weight", []int{out, x.Dim(1), kernel, kernel}, initial{initFan, scale})
	b := u.weight(name+".bias", []int{out}, initial{})
	return u.g.Conv(x, w, b, onnx.ConvOptions{Strides: []int{stride, stride}, Pads: []int{pad, pad, pad, pad}})
}

// norm is a group normalisation in groups of at least 4 channels, 32 at most.
func (u *unet) norm(name string, x *onnx.Value) *onnx.Value {
	c := x.Dim(1)
	groups := min(c/4, 32)
	for groups > 1 && c%groups != 0 {
		groups--
	}
	w := u.weight(name+".weight", []int{c}, initial{kind: initOne})
	b := u.weight(name+".bias", []int{c}, initial{})
	return u.g.GroupNorm(x, w, b, max(groups, 1), 1e-6)
}

// block is BigGAN's residual block, with resampling inside: by is −1 to halve,
// +1 to double, 0 to keep the side.
func (u *unet) block(name string, x *onnx.Value, out, by int) *onnx.Value {
	g := u.g
	defer g.Scope(name)()
	h := g.SiLU(u.norm(name+".norm0", x))
	in := x.Dim(1)
	if by != 0 {
		h, x = u.resample(h, by), u.resample(x, by)
	}
	h = u.conv(name+".conv0", h, out, 3, 1)
	level := u.dense(name+".level", u.act, 4*u.Width, out)
	h = g.Add(h, g.Reshape(level, u.batch, out, 1, 1))
	h = g.SiLU(u.norm(name+".norm1", h))
	h = u.drop(h)
	h = u.convInit(name+".conv1", h, out, 3, 1, 1, nearZero)
	if in != out || by != 0 {
		x = u.conv(name+".skip", x, out, 1, 1)
	}
	return g.Scale(g.Add(x, h), math.Sqrt2/2)
}

// drop is dropout with a mask drawn inside the graph: at the paper's size the
// masks of one step are too large to be fed.
func (u *unet) drop(h *onnx.Value) *onnx.Value {
	if !u.training || u.Dropout == 0 {
		return h
	}
	g := u.g
	u.drops++
	r := g.Op("RandomUniform", onnx.Attrs{"shape": h.Shape(), "seed": float32(u.drops)})
	mask := g.Cast(g.Op("GreaterOrEqual", nil, r, g.Const(onnx.Float, u.Dropout)), onnx.Float)
	return g.Mul(h, g.Scale(mask, 1/(1-u.Dropout)))
}

// attend is self-attention with one head over all positions, emitted as matrix
// products of [N, H·W, C].
func (u *unet) attend(name string, x *onnx.Value) *onnx.Value {
	g := u.g
	defer g.Scope(name)()
	c, side := x.Dim(1), x.Dim(2)
	h := g.Reshape(u.norm(name+".norm", x), u.batch, c, side*side)
	h = g.Transpose(h, 0, 2, 1)
	w := u.weight(name+".qkv.weight", []int{c, 3 * c}, initial{initFan, 0.1 * 2}) // fan_avg of one C×C part: 0.1/c = 0.2/(2c)
	b := u.weight(name+".qkv.bias", []int{3 * c}, initial{})
	qkv := g.Split(g.Linear(h, w, b), 2, c, c, c)
	a := g.MatMul(g.Scale(qkv[0], 1/math.Sqrt(float64(c))), g.Transpose(qkv[1], 0, 2, 1))
	h = g.MatMul(g.Softmax(a, -1), qkv[2])
	w = u.weight(name+".out.weight", []int{c, c}, initial{initFan, nearZero})
	b = u.weight(name+".out.bias", []int{c}, initial{})
	h = g.Transpose(g.Linear(h, w, b), 0, 2, 1)
	h = g.Reshape(h, u.batch, c, side, side)
	return g.Scale(g.Add(x, h), math.Sqrt2/2)
}

// resample halves (−1) or doubles (+1) the side.
func (u *unet) resample(x *onnx.Value, by int) *onnx.Value {
	g := u.g
	switch {
	case u.FIR && by < 0:
		return g.Conv(x, u.fir(x.Dim(1), 1), nil, onnx.ConvOptions{Strides: []int{2, 2}, Pads: []int{1, 1, 1, 1}, Group: x.Dim(1)})
	case u.FIR:
		return g.ConvTranspose(x, u.fir(x.Dim(1), 4), nil, onnx.ConvOptions{Strides: []int{2, 2}, Pads: []int{1, 1, 1, 1}, Group: x.Dim(1)})
	case by < 0:
		return g.AveragePool(x, 2, 2)
	}
	return g.ResizeNearest(x, 2)
}

// fir is the separable kernel [1,3,3,1] of StyleGAN2, one copy a channel, of
// the given sum.
func (u *unet) fir(channels int, gain float64) *onnx.Value {
	k := []float64{1, 3, 3, 1}
	data := make([]float32, channels*16)
	for i := range data {
		data[i] = float32(gain * k[i/4%4] * k[i%4] / 64)
	}
	return u.g.Initializer(onnx.FromFloat32("", data, channels, 1, 4, 4))
}

// firConv blurs with the FIR kernel, then convolves 3×3 at stride 2.
func (u *unet) firConv(name string, x *onnx.Value, out int) *onnx.Value {
	if u.FIR {
		x = u.g.Conv(x, u.fir(x.Dim(1), 1), nil, onnx.ConvOptions{Pads: []int{2, 2, 2, 2}, Group: x.Dim(1)})
		return u.convInit(name, x, out, 3, 2, 0, 1)
	}
	return u.conv(name, x, out, 3, 2)
}
