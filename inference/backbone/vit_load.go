package backbone

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// source is a set of weights under timm names, whatever the file calls them.
type source interface {
	has(name string) bool
	// shape is nil where there is no such weight.
	shape(name string) []int
	// take moves a weight of the given shape into the model.
	take(m *Model, name string, shape ...int) error
	// origin lists the file's tensors that make a weight.
	origin(name string) []string
	// behind is the prefix of the network's tensors in the file.
	behind() string
}

// widths are the attention heads of published ViTs whose heads are not 64 wide,
// by the embedding's length: ViT-H, ViT-g and ViT-G (Zhai et al. 2022), and
// timm's so400m and so150m.
var widths = map[int]int{1152: 16, 1280: 16, 1408: 16, 1664: 16, 880: 16, 896: 14}

// usualWidths are those of published ViTs whose heads are 64 wide, and of small
// ones for trials.
var usualWidths = []int{64, 128, 192, 256, 384, 512, 768, 1024, 1536}

// heads tells the number of attention heads, which no tensor's shape does.
func heads(m *Model, side sidecar, o LoadOptions) (int, error) {
	d := m.Spec.Dim
	n := 0
	switch {
	case o.Heads != 0:
		n, m.HeadsFrom = o.Heads, "as asked for"
	case m.own != nil && m.own.Dim == d:
		n, m.HeadsFrom = m.own.Heads, "as the file says"
	case side.config.Heads > 0 && side.config.Hidden == d:
		n, m.HeadsFrom = side.config.Heads, "as config.json beside the weights says"
	case widths[d] > 0:
		n, m.HeadsFrom = widths[d], "as in the published networks of this width"
	case slices.Contains(usualWidths, d):
		n, m.HeadsFrom = d/64, "of 64 each, as in the published networks of this width; say otherwise with --heads"
	case d == 4096 && m.Spec.Rope > 0: // DINOv3-7B
		n, m.HeadsFrom = 32, "as in DINOv3-7B"
	default:
		return 0, architectureError("%d dimensions may have any number of attention heads, which the tensors do not tell: give it with --heads", d)
	}
	if n < 1 || d%n != 0 {
		return 0, architectureError("%d heads do not divide %d dimensions", n, d)
	}
	return n, nil
}

// loadViT fills m from timm-named weights. m.Spec.Family is set.
func loadViT(m *Model, w source, side sidecar, hint string, o LoadOptions) error {
	s := &m.Spec
	proj := w.shape("patch_embed.proj.weight")
	if len(proj) != 4 || proj[2] != proj[3] || proj[0] < 1 {
		return architectureError("patch_embed.proj.weight has shape %v, want [D C p p]", proj)
	}
	s.Dim, s.Patch, s.NormEps = proj[0], proj[2], 1e-6
	for w.has(fmt.Sprintf("blocks.%d.norm1.weight", s.Depth)) {
		s.Depth++
	}
	if s.Depth == 0 {
		return architectureError("no weights named blocks.0.…")
	}
	fc1, fc2 := w.shape("blocks.0.mlp.fc1.weight"), w.shape("blocks.0.mlp.fc2.weight")
	if len(fc1) == 2 && len(fc2) == 2 {
		s.Hidden = fc2[1]
		s.Gated = fc1[0] == 2*fc2[1]
	}
	s.LayerScale = w.has("blocks.0.ls1.gamma")
	if reg := w.shape("reg_token"); len(reg) == 3 {
		s.Registers = reg[1]
	}
	s.NoClass, s.Distilled, s.PreNorm = !w.has("cls_token"), w.has("dist_token"), w.has("norm_pre.weight")
	s.PoolNorm = w.has("fc_norm.weight") && !w.has("norm.weight")
	if s.MeanPool = s.PoolNorm; s.NoClass && !s.PoolNorm {
		return architectureError("a ViT with neither a class token (cls_token) nor the norm of pooled tokens (fc_norm): what its embedding is, the file does not tell; export it to ONNX and import that")
	}
	if err := positions(m, w, side, hint); err != nil {
		return err
	}
	switch {
	case side.config.Eps > 0 && side.config.Eps < 1:
		s.NormEps = side.config.Eps
	case m.dialect == dialectHFViT:
		s.NormEps = 1e-12 // the default of its configuration
	case s.PreNorm, s.Rope > 0:
		s.NormEps = 1e-5
	}
	var err error
	if s.Act, err = side.act(); err != nil {
		return err
	}
	if s.Gated {
		s.Act = actGelu // not used
	} else if s.PreNorm && side.file == "" && strings.Contains(hint, "quickgelu") {
		s.Act = actQuickGelu
	}
	if s.Heads, err = heads(m, side, o); err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return err
	}
	return takeAll(m, w)
}

// positions finds the input's size from the position embeddings.
func positions(m *Model, w source, side sidecar, hint string) error {
	s := &m.Spec
	proj := w.shape("patch_embed.proj.weight")
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
	if !w.has("pos_embed") {
		if m.dialect != dialectHFDINOv3 && !strings.Contains(hint, "dinov3") {
			return architectureError("a ViT without position embeddings: if it is a DINOv3, say so with --arch dinov3; otherwise export it to ONNX and import that")
		}
		if s.Rope = 100; side.config.Theta > 0 {
			s.Rope = side.config.Theta
		}
		if s.Size = 224 / unit * unit; side.config.Image > 0 && side.config.Image%unit == 0 {
			s.Size = side.config.Image
		}
		return nil
	}
	pos := w.shape("pos_embed")
	if len(pos) != 3 || pos[0] != 1 || pos[2] != s.Dim {
		return architectureError("pos_embed has shape %v, want [1 T %d]", pos, s.Dim)
	}
	named := s.Lead() - s.Registers // class and distillation token
	grid := 0
	for _, lead := range []int{named, 0, s.Lead()} {
		if n, ok := squareRoot(pos[1] - lead); ok {
			grid, s.ClassPos, s.AllPos = n, lead == named && lead > 0, lead > named
			break
		}
	}
	if grid == 0 {
		return architectureError("pos_embed has %d rows, which no square grid of patches with %d tokens in front has", pos[1], s.Lead())
	}
	if grid > 4096/unit {
		return architectureError("an input of %d px is too large", grid*unit)
	}
	s.Size = grid * unit
	return nil
}

// takeAll moves every weight of the architecture into the model. What may be
// missing is missing everywhere or nowhere: half a file is none.
func takeAll(m *Model, w source) error {
	there := map[string]bool{} // by the name without numbers
	for _, p := range m.Spec.shapes() {
		kind := withoutNumbers(p.name)
		if p.optional {
			has := w.has(p.name)
			if before, seen := there[kind]; seen && before != has {
				return architectureError("%q is there in some blocks and missing in others", p.name)
			}
			if there[kind] = has; !has {
				continue
			}
		}
		shape := p.shape
		if got := w.shape(p.name); len(got) == 4 && len(shape) == 2 { // a 1×1 convolution
			shape = []int{shape[0], shape[1], 1, 1}
		}
		if err := w.take(m, p.name, shape...); err != nil {
			return err
		}
	}
	return nil
}

func withoutNumbers(name string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(name, "."), func(part string) bool {
		return part != "" && part[0] >= '0' && part[0] <= '9'
	}), ".")
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
	if !s.NoClass {
		add("cls_token", 1, 1, s.Dim)
	}
	if s.Distilled {
		add("dist_token", 1, 1, s.Dim)
	}
	if s.Registers > 0 {
		add("reg_token", 1, s.Registers, s.Dim)
	}
	if s.Rope == 0 {
		add("pos_embed", 1, s.posLead()+s.grid()*s.grid(), s.Dim)
	}
	add("patch_embed.proj.weight", s.Dim, channels, s.Patch, s.Patch)
	out = append(out, paramShape{"patch_embed.proj.bias", []int{s.Dim}, s.PreNorm})
	if s.PreNorm {
		norm("norm_pre")
	}
	wide := s.Hidden
	if s.Gated {
		wide *= 2
	}
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
		add(p+"mlp.fc1.weight", wide, s.Dim)
		add(p+"mlp.fc1.bias", wide)
		add(p+"mlp.fc2.weight", s.Dim, s.Hidden)
		add(p+"mlp.fc2.bias", s.Dim)
		if s.LayerScale {
			add(p+"ls2.gamma", s.Dim)
		}
	}
	if s.PoolNorm {
		norm("fc_norm")
	} else {
		norm("norm")
	}
	return out
}

func squareRoot(n int) (int, bool) {
	if n < 1 {
		return 0, false
	}
	r := int(math.Round(math.Sqrt(float64(n))))
	return r, r*r == n
}
