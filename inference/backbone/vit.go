package backbone

import (
	"fmt"
	"math"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// vit appends a Vision Transformer (Dosovitskiy et al. 2021): pre-LN blocks,
// erf-GELU, embedding = class token after the final norm. Activations are kept
// as [N·T, D], so that every linear layer is one Gemm.
func (b *builder) vit(image *onnx.Value) Features {
	s := b.m.Spec
	x := b.drop(b.embed(image), "pos_drop") // [N, T, D]
	x = b.reshape(x, -1, int64(s.Dim))
	layers, head := b.last()
	classOnly := false
	for i := range layers {
		classOnly = i == layers-1 && !b.allTokens(layers) // nobody asks for the others
		x = b.block(x, fmt.Sprintf("blocks.%d", i), classOnly)
		b.tapTokens(x, i+1, classOnly)
	}
	if !head {
		return Features{}
	}
	x = b.layerNorm(x, "norm")
	b.tapTokens(x, 0, classOnly)
	if classOnly {
		return Features{Embedding: x}
	}
	var f Features
	if b.o.Tokens {
		f.Tokens = b.reshape(x, -1, int64(s.Tokens()), int64(s.Dim))
	}
	f.Embedding = b.classToken(x)
	return f
}

// embed gives [N, T, D]: projected patches, class token and registers in front,
// position embedding added.
func (b *builder) embed(image *onnx.Value) *onnx.Value {
	s, g := b.m.Spec, b.g
	defer g.Scope("patch_embed")()
	var x *onnx.Value
	if s.Family == Hybrid {
		x = b.hybridPatches(image)
	} else {
		x = b.patches(image)
	}
	w := b.param("patch_embed.proj.weight") // [D, C, p, p]
	w = b.reshape(w, int64(s.Dim), int64(w.Elements()/s.Dim))
	x = g.Op("Gemm", onnx.Attrs{"transB": 1}, x, w, b.optional("patch_embed.proj.bias"))
	x = b.reshape(x, -1, int64(s.grid()*s.grid()), int64(s.Dim))

	// The leading tokens are added as rows, not concatenated: Concat would need
	// one copy of them for each image, and so the batch size.
	lead := 1 + s.Registers
	x = b.padRows(x, lead, 0)
	pos, cls := b.param("pos_embed"), b.param("cls_token")
	if s.ClassPos {
		return g.Op("Add", nil, x, g.Op("Add", nil, pos, b.padRows(cls, 0, s.Tokens()-1)))
	}
	rows := []*onnx.Value{cls}
	if s.Registers > 0 {
		rows = append(rows, b.param("reg_token"))
	}
	return g.Op("Add", nil, x, g.Op("Concat", onnx.Attrs{"axis": 1}, append(rows, pos)...))
}

// padRows puts zero rows before and after axis 1 of a rank-3 tensor.
func (b *builder) padRows(x *onnx.Value, before, after int) *onnx.Value {
	return b.g.Op("Pad", nil, x, b.ints(0, int64(before), 0, 0, int64(after), 0))
}

// patches cuts the image into normalised rows [N·g², 3·p·p], ordered as a
// flattened convolution kernel, so that the patch convolution is one Gemm.
func (b *builder) patches(image *onnx.Value) *onnx.Value {
	p, grid := int64(b.m.Spec.Patch), int64(b.m.Spec.grid())
	x := b.reshape(image, -1, grid, p, grid, p, 3)
	x = b.transpose(x, 0, 1, 3, 5, 2, 4)
	x = b.reshape(x, -1, 3*p*p)
	return b.scaleShift(b.float(x), int(p*p), int(3*p*p))
}

// block is one encoder block on [N·T, D]. With classOnly it computes the class
// token alone and returns [N, D].
func (b *builder) block(x *onnx.Value, name string, classOnly bool) *onnx.Value {
	defer b.g.Scope(name)()
	h := b.layerNorm(x, name+".norm1")
	h = b.attention(h, name+".attn", classOnly)
	if classOnly {
		x = b.classToken(x)
	}
	x = b.g.Op("Add", nil, x, b.layerScale(h, name+".ls1.gamma"))

	h = b.layerNorm(x, name+".norm2")
	h = b.g.Op("Gelu", nil, b.linear(h, name+".mlp.fc1"))
	h = b.linear(b.drop(h, name+".mlp.drop1"), name+".mlp.fc2")
	h = b.layerScale(b.drop(h, name+".mlp.drop2"), name+".ls2.gamma")
	return b.g.Op("Add", nil, x, h)
}

func (b *builder) layerScale(x *onnx.Value, name string) *onnx.Value {
	if !b.m.Spec.LayerScale {
		return x
	}
	return b.g.Op("Mul", nil, x, b.param(name))
}

// classToken takes row 0 of each image: [N·T, D] → [N, D].
func (b *builder) classToken(x *onnx.Value) *onnx.Value {
	s := b.m.Spec
	x = b.reshape(x, -1, int64(s.Tokens()), int64(s.Dim))
	x = b.g.Op("Slice", nil, x, b.ints(0), b.ints(1), b.ints(1))
	return b.reshape(x, -1, int64(s.Dim))
}

// attention is multi-head self-attention on [N·T, D]. With classOnly only the
// class token asks: [N, D].
func (b *builder) attention(x *onnx.Value, name string, classOnly bool) *onnx.Value {
	s, g := b.m.Spec, b.g
	defer g.Scope("attn")()
	d, t, heads := int64(s.Dim), int64(s.Tokens()), int64(s.Heads)
	queries := t
	var q, k, v *onnx.Value
	if classOnly {
		queries = 1
		w, bias := b.param(name+".qkv.weight"), b.optional(name+".qkv.bias")
		part := func(x *onnx.Value, from, to int64) *onnx.Value {
			slice := func(v *onnx.Value) *onnx.Value {
				if v == nil {
					return nil
				}
				return g.Op("Slice", nil, v, b.ints(from), b.ints(to), b.ints(0))
			}
			return g.Op("Gemm", onnx.Attrs{"transB": 1}, x, slice(w), slice(bias))
		}
		q = part(b.classToken(x), 0, d)
		kv := g.OpN("Split", 2, onnx.Attrs{"axis": 1, "num_outputs": 2}, part(x, d, 3*d))
		k, v = kv[0], kv[1]
	} else {
		qkv := g.OpN("Split", 3, onnx.Attrs{"axis": 1, "num_outputs": 3}, b.linear(x, name+".qkv"))
		q, k, v = qkv[0], qkv[1], qkv[2]
	}
	split := func(x *onnx.Value, rows int64, perm ...int) *onnx.Value {
		return b.transpose(b.reshape(x, -1, rows, heads, d/heads), perm...)
	}
	q = split(q, queries, 0, 2, 1, 3) // [N, H, Q, d]
	k = split(k, t, 0, 2, 3, 1)       // [N, H, d, T]
	v = split(v, t, 0, 2, 1, 3)       // [N, H, T, d]
	q = g.Op("Mul", nil, q, b.floats([]float32{float32(1 / math.Sqrt(float64(d/heads)))}))
	p := g.Op("Softmax", onnx.Attrs{"axis": -1}, g.Op("MatMul", nil, q, k))
	o := b.transpose(g.Op("MatMul", nil, p, v), 0, 2, 1, 3)
	return b.linear(b.reshape(o, -1, d), name+".proj")
}

// loadViT fills m from timm-named weights. m.Spec.Family is set.
func loadViT(m *Model, w source) error {
	s := &m.Spec
	proj := w.shape("patch_embed.proj.weight")
	if len(proj) != 4 || proj[2] != proj[3] {
		return architectureError("patch_embed.proj.weight has shape %v, want [D C p p]", proj)
	}
	s.Dim, s.Patch, s.NormEps = proj[0], proj[2], 1e-6
	s.Heads = s.Dim / headDim
	if s.Dim%headDim != 0 {
		return architectureError("%d dimensions are not a multiple of the head width %d", s.Dim, headDim)
	}
	for w.has(fmt.Sprintf("blocks.%d.norm1.weight", s.Depth)) {
		s.Depth++
	}
	if s.Depth == 0 {
		return architectureError("no weights named blocks.0.…")
	}
	if fc1 := w.shape("blocks.0.mlp.fc1.weight"); len(fc1) == 2 {
		s.Hidden = fc1[0]
	}
	s.LayerScale = w.has("blocks.0.ls1.gamma")
	if reg := w.shape("reg_token"); len(reg) == 3 {
		s.Registers = reg[1]
	}
	for _, name := range []string{"norm_pre.weight", "fc_norm.weight", "dist_token", "blocks.0.attn.q_norm.weight", "blocks.0.mlp.w12.weight", "blocks.0.mlp.fc1_g.weight"} {
		if w.has(name) {
			return architectureError("%s belongs to a ViT variant that is not built; export it to ONNX and import that", name)
		}
	}

	pos := w.shape("pos_embed")
	if len(pos) != 3 || pos[0] != 1 || pos[2] != s.Dim {
		return architectureError("pos_embed has shape %v, want [1 T %d]", pos, s.Dim)
	}
	grid, ok := squareRoot(pos[1] - 1)
	s.ClassPos = ok && s.Registers == 0
	if !s.ClassPos {
		if grid, ok = squareRoot(pos[1]); !ok {
			return architectureError("pos_embed has %d rows, which no square grid has", pos[1])
		}
	}
	unit := s.Patch
	if s.Family == Hybrid {
		if err := inferHybrid(m, w); err != nil {
			return err
		}
		unit *= s.reduction()
		if proj[1] != s.Widths[len(s.Widths)-1] {
			return architectureError("patch_embed.proj.weight reads %d channels, the ResNet gives %d", proj[1], s.Widths[len(s.Widths)-1])
		}
	} else if proj[1] != 3 {
		return architectureError("patch_embed.proj.weight reads %d channels, want 3", proj[1])
	}
	if grid > 4096/unit {
		return architectureError("an input of %d px is too large", grid*unit)
	}
	s.Size = grid * unit
	if err := s.Validate(); err != nil {
		return err
	}
	for _, p := range vitShapes(*s) {
		if p.optional && !w.has(p.name) {
			continue
		}
		if err := w.take(m, p.name, p.shape...); err != nil {
			return err
		}
	}
	return nil
}

// paramShape is a weight that an architecture has.
type paramShape struct {
	name     string
	shape    []int
	optional bool
}

// vitShapes lists the weights of a ViT or Hybrid in the order of the forward
// pass.
func vitShapes(s Spec) []paramShape {
	var out []paramShape
	add := func(name string, shape ...int) { out = append(out, paramShape{name, shape, false}) }
	norm := func(name string) { add(name+".weight", s.Dim); add(name+".bias", s.Dim) }
	channels := 3
	if s.Family == Hybrid {
		out = append(out, hybridShapes(s)...)
		channels = s.Widths[len(s.Widths)-1]
	}
	add("cls_token", 1, 1, s.Dim)
	rows := s.grid() * s.grid()
	if s.ClassPos {
		rows++
	}
	if s.Registers > 0 {
		add("reg_token", 1, s.Registers, s.Dim)
	}
	add("pos_embed", 1, rows, s.Dim)
	add("patch_embed.proj.weight", s.Dim, channels, s.Patch, s.Patch)
	add("patch_embed.proj.bias", s.Dim)
	for i := range s.Depth {
		p := fmt.Sprintf("blocks.%d.", i)
		norm(p + "norm1")
		add(p+"attn.qkv.weight", 3*s.Dim, s.Dim)
		out = append(out, paramShape{p + "attn.qkv.bias", []int{3 * s.Dim}, true})
		add(p+"attn.proj.weight", s.Dim, s.Dim)
		add(p+"attn.proj.bias", s.Dim)
		if s.LayerScale {
			add(p+"ls1.gamma", s.Dim)
		}
		norm(p + "norm2")
		add(p+"mlp.fc1.weight", s.Hidden, s.Dim)
		add(p+"mlp.fc1.bias", s.Hidden)
		add(p+"mlp.fc2.weight", s.Dim, s.Hidden)
		add(p+"mlp.fc2.bias", s.Dim)
		if s.LayerScale {
			add(p+"ls2.gamma", s.Dim)
		}
	}
	norm("norm")
	return out
}

func squareRoot(n int) (int, bool) {
	if n < 1 {
		return 0, false
	}
	r := int(math.Round(math.Sqrt(float64(n))))
	return r, r*r == n
}

// isViT recognises timm's ViT names.
func isViT(w source) bool {
	return w.has("patch_embed.proj.weight") && w.has("pos_embed") && w.has("cls_token")
}

// source is a set of weights under timm names, whatever the file calls them.
type source interface {
	has(name string) bool
	// shape is nil where there is no such weight.
	shape(name string) []int
	// take moves a weight of the given shape into the model.
	take(m *Model, name string, shape ...int) error
}

// timmSource reads weights that have timm names behind a common prefix.
type timmSource struct {
	w      *Weights
	prefix string
}

func (s timmSource) has(name string) bool    { return s.w.Has(s.prefix + name) }
func (s timmSource) shape(name string) []int { return s.w.Shape(s.prefix + name) }

func (s timmSource) take(m *Model, name string, shape ...int) error {
	t, err := s.w.Float32(s.prefix+name, shape...)
	if err != nil {
		return err
	}
	t.Name = name
	m.put(t)
	return nil
}
