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
	if !s.PoolNorm {
		x = b.layerNorm(x, "norm")
	}
	b.tapTokens(x, 0, classOnly)
	if classOnly {
		return Features{Embedding: x}
	}
	var f Features
	if b.o.Tokens {
		f.Tokens = b.reshape(x, -1, int64(s.Tokens()), int64(s.Dim))
	}
	f.Embedding = b.embedding(x)
	return f
}

// embedding is made of the tokens [N·T, D] after the last norm.
func (b *builder) embedding(x *onnx.Value) *onnx.Value {
	s, g := b.m.Spec, b.g
	switch {
	case s.MeanPool:
		x = g.ReduceMean(b.patchTokens(x), false, 1)
		if s.PoolNorm {
			x = b.layerNorm(x, "fc_norm")
		}
		return x
	case s.Distilled:
		x = b.reshape(x, -1, int64(s.Tokens()), int64(s.Dim))
		return g.ReduceMean(g.Slice(x, 1, 0, 2), false, 1)
	}
	return b.classToken(x)
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
	if lead := s.Lead(); lead > 0 {
		x = b.padRows(x, lead, 0)
	}
	if rows := b.rows(); rows != nil {
		x = g.Op("Add", nil, x, rows)
	}
	if s.PreNorm {
		x = b.reshape(b.layerNorm(b.reshape(x, -1, int64(s.Dim)), "norm_pre"), -1, int64(s.Tokens()), int64(s.Dim))
	}
	return x
}

// rows are the leading tokens and the position embeddings, [1, T, D]; nil where
// there are neither.
func (b *builder) rows() *onnx.Value {
	s, g := b.m.Spec, b.g
	var lead []*onnx.Value
	for _, t := range []struct {
		there bool
		name  string
	}{{!s.NoClass, "cls_token"}, {s.Distilled, "dist_token"}, {s.Registers > 0, "reg_token"}} {
		if t.there {
			lead = append(lead, b.param(t.name))
		}
	}
	join := func(all []*onnx.Value) *onnx.Value {
		if len(all) == 1 {
			return all[0]
		}
		return g.Concat(1, all...)
	}
	n, patches := s.posLead(), s.grid()*s.grid()
	switch {
	case s.Rope > 0:
		if len(lead) == 0 {
			return nil
		}
		return b.padRows(join(lead), 0, patches)
	case n == 0:
		return join(append(lead, b.param("pos_embed")))
	case n == s.Lead():
		return g.Op("Add", nil, b.param("pos_embed"), b.padRows(join(lead), 0, patches))
	}
	// The class token has a position, and the registers behind it have none.
	pos := b.param("pos_embed")
	first := g.Op("Add", nil, join(lead[:len(lead)-1]), g.Slice(pos, 1, 0, n))
	return g.Concat(1, first, lead[len(lead)-1], g.Slice(pos, 1, n, n+patches))
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

	h = b.linear(b.layerNorm(x, name+".norm2"), name+".mlp.fc1")
	if b.m.Spec.Gated { // Shazeer 2020
		parts := b.g.OpN("Split", 2, onnx.Attrs{"axis": 1, "num_outputs": 2}, h)
		h = b.g.Op("Mul", nil, b.activate(parts[0], actSilu), parts[1])
	} else {
		h = b.activate(h, b.m.Spec.Act)
	}
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
	if s.Rope > 0 {
		if !classOnly { // the class token is nowhere
			q = b.rotate(q)
		}
		k = b.transpose(b.rotate(split(k, t, 0, 2, 1, 3)), 0, 1, 3, 2)
	} else {
		k = split(k, t, 0, 2, 3, 1) // [N, H, d, T]
	}
	v = split(v, t, 0, 2, 1, 3) // [N, H, T, d]
	q = g.Op("Mul", nil, q, b.floats([]float32{float32(1 / math.Sqrt(float64(d/heads)))}))
	p := g.Op("Softmax", onnx.Attrs{"axis": -1}, g.Op("MatMul", nil, q, k))
	o := b.transpose(g.Op("MatMul", nil, p, v), 0, 2, 1, 3)
	return b.linear(b.reshape(o, -1, d), name+".proj")
}

// rotate turns pairs of queries or keys [N, H, T, d] by angles that grow with the
// place of their patch (rotary positions, as DINOv3 has them: Siméoni et al.
// 2025). Tokens in front of the patches are not turned.
func (b *builder) rotate(x *onnx.Value) *onnx.Value {
	s, g := b.m.Spec, b.g
	d, grid, lead := s.Dim/s.Heads, s.grid(), s.Lead()
	cos, sin := make([]float32, s.Tokens()*d), make([]float32, s.Tokens()*d)
	for i := range lead * d {
		cos[i] = 1
	}
	for p := range grid * grid {
		for j := range d {
			axis, step := p/grid, j%(d/2)
			if step >= d/4 {
				axis, step = p%grid, step-d/4
			}
			place := 2*(float64(axis)+0.5)/float64(grid) - 1 // of the patch's middle, −1 to 1
			angle := 2 * math.Pi * place * math.Pow(s.Rope, -float64(4*step)/float64(d))
			cos[(lead+p)*d+j], sin[(lead+p)*d+j] = float32(math.Cos(angle)), float32(math.Sin(angle))
		}
	}
	half := g.OpN("Split", 2, onnx.Attrs{"axis": 3, "num_outputs": 2}, x)
	turned := g.Concat(3, g.Op("Neg", nil, half[1]), half[0])
	return g.Op("Add", nil,
		g.Op("Mul", nil, x, b.floats(cos, s.Tokens(), d)),
		g.Op("Mul", nil, turned, b.floats(sin, s.Tokens(), d)))
}
