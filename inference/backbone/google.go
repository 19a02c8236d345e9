package backbone

import (
	"fmt"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// googleSource reads the original Vision Transformer .npz files under timm
// names. Flax keeps kernels as [in…, out]: dense kernels are transposed,
// convolutions go from HWIO to OIHW, and the heads of query, key, value and out
// are flattened. Source of the names: github.com/google-research/vision_transformer
// and, for MultiHeadDotProductAttention_0 and LayerNorm_1, big_vision.
type googleSource struct {
	w      *Weights
	prefix string // "", "opt/target/" or "params/"
	attn   string // "MultiHeadDotProductAttention_1" or _0
	norm2  string // "LayerNorm_2" or _1
	mlp    string // "MlpBlock_3" or _0
	stages int    // of the hybrid's ResNet
}

func newGoogleSource(w *Weights) (googleSource, bool) {
	for _, prefix := range []string{"", "opt/target/", "params/"} {
		if !w.Has(prefix+"embedding/kernel") || !w.Has(prefix+"cls") {
			continue
		}
		s := googleSource{w: w, prefix: prefix, attn: "MultiHeadDotProductAttention_1", norm2: "LayerNorm_2", mlp: "MlpBlock_3"}
		if w.Has(prefix + "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel") {
			s.attn, s.norm2, s.mlp = "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"
		}
		for w.Has(fmt.Sprintf("%sblock%d/unit1/conv1/kernel", prefix, s.stages+1)) {
			s.stages++
		}
		return s, true
	}
	return googleSource{}, false
}

// layout is how a tensor of the file becomes torch's.
type layout int

const (
	asIs   layout = iota // same order; the shape may differ by ones or flattening
	dense                // [in, out] → [out, in], heads flattened on either side
	kernel               // HWIO → OIHW
)

func (s googleSource) behind() string { return s.prefix }

func (s googleSource) origin(name string) []string {
	files, _ := s.place(name)
	return files
}

// place finds where a timm name comes from: one tensor, or three for qkv.
func (s googleSource) place(name string) (files []string, l layout) {
	one := func(n string) []string { return []string{s.prefix + n} }
	pair := func(base, rest, weight string, l layout) ([]string, layout) {
		if rest == "weight" {
			return one(base + weight), l
		}
		return one(base + "/bias"), asIs
	}
	suffix := func(base, rest string) ([]string, layout) { return pair(base, rest, "/scale", asIs) } // of a norm
	weight := func(base, rest string, l layout) ([]string, layout) { return pair(base, rest, "/kernel", l) }
	dot := strings.LastIndexByte(name, '.')
	stem, rest := name[:max(dot, 0)], name[dot+1:]
	switch {
	case name == "cls_token":
		return one("cls"), asIs
	case name == "pos_embed":
		return one("Transformer/posembed_input/pos_embedding"), asIs
	case stem == "patch_embed.proj":
		return weight("embedding", rest, kernel)
	case stem == "norm":
		return suffix("Transformer/encoder_norm", rest)
	case stem == "patch_embed.backbone.stem.conv":
		return weight("conv_root", rest, kernel)
	case stem == "patch_embed.backbone.stem.norm":
		return suffix("gn_root", rest)
	}
	var stage, unit int
	var tail string
	if n, _ := fmt.Sscanf(stem, "patch_embed.backbone.stages.%d.blocks.%d.%s", &stage, &unit, &tail); n == 3 {
		base := fmt.Sprintf("block%d/unit%d/", stage+1, unit+1)
		switch {
		case tail == "downsample.conv":
			return weight(base+"conv_proj", rest, kernel)
		case tail == "downsample.norm":
			return suffix(base+"gn_proj", rest)
		case strings.HasPrefix(tail, "conv"):
			return weight(base+tail, rest, kernel)
		case strings.HasPrefix(tail, "norm"):
			return suffix(base+"gn"+tail[4:], rest)
		}
	}
	var block int
	if n, _ := fmt.Sscanf(stem, "blocks.%d.%s", &block, &tail); n == 2 {
		base := fmt.Sprintf("Transformer/encoderblock_%d/", block)
		switch tail {
		case "norm1":
			return suffix(base+"LayerNorm_0", rest)
		case "norm2":
			return suffix(base+s.norm2, rest)
		case "attn.proj":
			return weight(base+s.attn+"/out", rest, dense)
		case "mlp.fc1":
			return weight(base+s.mlp+"/Dense_0", rest, dense)
		case "mlp.fc2":
			return weight(base+s.mlp+"/Dense_1", rest, dense)
		case "attn.qkv":
			var all []string
			var l layout
			for _, part := range []string{"/query", "/key", "/value"} {
				var f []string
				f, l = weight(base+s.attn+part, rest, dense)
				all = append(all, f...)
			}
			return all, l
		}
	}
	return nil, asIs
}

func (s googleSource) has(name string) bool {
	files, _ := s.place(name)
	for _, f := range files {
		if !s.w.Has(f) {
			return false
		}
	}
	return len(files) > 0
}

// shape is the shape that the timm tensor will have.
func (s googleSource) shape(name string) []int {
	if !s.has(name) {
		return nil
	}
	files, l := s.place(name)
	from := s.w.Shape(files[0])
	var out []int
	switch {
	case l == kernel && len(from) == 4:
		out = []int{from[3], from[2], from[0], from[1]}
	case l == dense:
		// query: [D, heads, d]; out: [heads, d, D]; MLP: [in, out].
		in, units := 1, 1
		for i, d := range from {
			if (strings.Contains(name, "attn.proj") && i < len(from)-1) || i == 0 {
				in *= d
			} else {
				units *= d
			}
		}
		out = []int{units, in}
	case name == "cls_token" || name == "pos_embed":
		out = append(out, from...)
	default: // biases and scales, which some files keep as [1, 1, 1, C] or [heads, d]
		out = []int{onnx.Elements(from)}
	}
	if len(files) > 1 && len(out) > 0 {
		out[0] *= len(files)
	}
	return out
}

func (s googleSource) take(m *Model, name string, shape ...int) error {
	files, l := s.place(name)
	if len(files) == 0 {
		return architectureError("the .npz naming has no %s", name)
	}
	if got := s.shape(name); got == nil || !shapeMatches(got, shape) {
		return architectureError("tensor %q (%s) has shape %v, want %v", files[0], name, got, shape)
	}
	elements := onnx.Elements(shape)
	out := make([]float32, 0, elements)
	for _, f := range files {
		t, err := s.w.Float32(f)
		if err != nil {
			return err
		}
		src := t.Float32s()
		if len(src)*len(files) != elements {
			return architectureError("tensor %q has shape %v, which does not fit %s %v", f, t.Shape, name, shape)
		}
		switch l {
		case asIs:
			out = append(out, src...)
		case dense:
			units, in := shape[0]/len(files), shape[1]
			for o := range units {
				for i := range in {
					out = append(out, src[i*units+o])
				}
			}
		case kernel:
			o, i, h, w := shape[0], shape[1], shape[2], shape[3]
			for oo := range o {
				for ii := range i {
					for p := range h * w {
						out = append(out, src[(p*i+ii)*o+oo])
					}
				}
			}
		}
	}
	m.put(onnx.FromFloat32(name, out, shape...))
	return nil
}
