package backbone

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// dialect is one way to name the weights of a family.
type dialect struct {
	name   string
	family Family
	anchor string // a weight that every network so named has
	// rules rewrite the file's names to those of timm, one after the other; names
	// that none of them fits stay as they are.
	rules []rewrite
}

type rewrite struct {
	pattern *regexp.Regexp
	to      string
}

func rules(pairs ...string) []rewrite {
	out := make([]rewrite, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, rewrite{regexp.MustCompile("^" + pairs[i] + "$"), pairs[i+1]})
	}
	return out
}

// Names of the dialects whose networks differ in more than names.
const (
	dialectTimm       = "timm"
	dialectHFViT      = "Hugging Face ViT"
	dialectHFDINOv2   = "Hugging Face DINOv2"
	dialectHFDINOv3   = "Hugging Face DINOv3"
	dialectHFNet      = "Hugging Face EfficientNet"
	dialectLite       = "EfficientNet in PyTorch"
	dialectHFResNet   = "Hugging Face ResNet"
	dialectHFConvNeXt = "Hugging Face ConvNeXt"
	dialectFBConvNeXt = "the original ConvNeXt"
)

// hfEncoder are the names that Hugging Face's transformers share.
var hfEncoder = []string{
	`embeddings\.cls_token`, `cls_token`,
	`embeddings\.distillation_token`, `dist_token`,
	`embeddings\.register_tokens`, `reg_token`,
	`embeddings\.mask_token`, `mask_token`,
	`embeddings\.position_embeddings`, `pos_embed`,
	`embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)`, `patch_embed.proj.$1`,
	`(?:encoder\.|model\.)?layers?\.(\d+)\.(.*)`, `blocks.$1.$2`,
	`(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(.*)`, `$1.attn.$2.$3`,
	`(blocks\.\d+)\.attention\.(query|key|value|q_proj|k_proj|v_proj)\.(.*)`, `$1.attn.$2.$3`,
	`(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)`, `$1.attn.proj.$2`,
	`(blocks\.\d+)\.intermediate\.dense\.(.*)`, `$1.mlp.fc1.$2`,
	`(blocks\.\d+)\.output\.dense\.(.*)`, `$1.mlp.fc2.$2`,
	`(blocks\.\d+)\.layernorm_before\.(.*)`, `$1.norm1.$2`,
	`(blocks\.\d+)\.layernorm_after\.(.*)`, `$1.norm2.$2`,
	`(blocks\.\d+)\.layer_scale([12])\.lambda1`, `$1.ls$2.gamma`,
	`(blocks\.\d+)\.mlp\.weights_in\.(.*)`, `$1.mlp.fc1.$2`,
	`(blocks\.\d+)\.mlp\.weights_out\.(.*)`, `$1.mlp.fc2.$2`,
	`(blocks\.\d+)\.mlp\.down_proj\.(.*)`, `$1.mlp.fc2.$2`,
	`(?:layernorm|norm)\.(weight|bias)`, `norm.$1`,
}

// timmDINOv3 are further rules for timm's DINOv3. Other networks with these names
// are built otherwise, so they count only where the architecture is known.
var timmDINOv3 = rules(
	`(blocks\.\d+)\.gamma_([12])`, `$1.ls$2.gamma`,
	`(blocks\.\d+)\.mlp\.fc1_g\.(.*)`, `$1.mlp.gate_proj.$2`,
	`(blocks\.\d+)\.mlp\.fc1_x\.(.*)`, `$1.mlp.up_proj.$2`,
)

// dialects are tried in this order; the first whose anchor is there counts.
var dialects = []dialect{
	{dialectTimm, ViT, "patch_embed.proj.weight", rules(
		`register_tokens`, `reg_token`, // the DINOv2 repository's
		`(blocks\.\d+)\.mlp\.w12\.(.*)`, `$1.mlp.fc1.$2`,
		`(blocks\.\d+)\.mlp\.w3\.(.*)`, `$1.mlp.fc2.$2`,
	)},
	{dialectTimm, ConvNeXt, "stages.0.blocks.0.conv_dw.weight", nil},
	{dialectTimm, ResNet, "layer1.0.conv1.weight", nil},
	{dialectTimm, MobileNet, "conv_stem.weight", rules(`blocks\.(\d+\.\d+)\.conv_pwl\.(.*)`, `blocks.$1.conv_pwl.$2`)},
	{dialectLite, MobileNet, "_conv_stem.weight", nil},
	{dialectHFNet, MobileNet, "embeddings.convolution.weight", nil},
	{dialectHFConvNeXt, ConvNeXt, "encoder.stages.0.layers.0.dwconv.weight", rules(
		`embeddings\.patch_embeddings\.(.*)`, `stem.0.$1`,
		`embeddings\.layernorm\.(.*)`, `stem.1.$1`,
		`encoder\.stages\.(\d+)\.downsampling_layer\.([01])\.(.*)`, `stages.$1.downsample.$2.$3`,
		`encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)`, `stages.$1.blocks.$2.$3`,
		`(stages\.\d+\.blocks\.\d+)\.dwconv\.(.*)`, `$1.conv_dw.$2`,
		`(stages\.\d+\.blocks\.\d+)\.layernorm\.(.*)`, `$1.norm.$2`,
		`(stages\.\d+\.blocks\.\d+)\.pwconv([12])\.(.*)`, `$1.mlp.fc$2.$3`,
		`(stages\.\d+\.blocks\.\d+)\.layer_scale_parameter`, `$1.gamma`,
		`layernorm\.(.*)`, `head.norm.$1`,
	)},
	{dialectFBConvNeXt, ConvNeXt, "downsample_layers.0.0.weight", rules(
		`downsample_layers\.0\.([01])\.(.*)`, `stem.$1.$2`,
		`downsample_layers\.(\d+)\.([01])\.(.*)`, `stages.$1.downsample.$2.$3`,
		`stages\.(\d+)\.(\d+)\.(.*)`, `stages.$1.blocks.$2.$3`,
		`(stages\.\d+\.blocks\.\d+)\.dwconv\.(.*)`, `$1.conv_dw.$2`,
		`(stages\.\d+\.blocks\.\d+)\.pwconv([12])\.(.*)`, `$1.mlp.fc$2.$3`,
		`norm\.(.*)`, `head.norm.$1`,
	)},
	{dialectHFResNet, ResNet, "embedder.embedder.convolution.weight", rules(
		`embedder\.embedder\.convolution\.(.*)`, `conv1.$1`,
		`embedder\.embedder\.normalization\.(.*)`, `bn1.$1`,
		`encoder\.stages\.0\.layers\.(\d+)\.(.*)`, `layer1.$1.$2`,
		`encoder\.stages\.1\.layers\.(\d+)\.(.*)`, `layer2.$1.$2`,
		`encoder\.stages\.2\.layers\.(\d+)\.(.*)`, `layer3.$1.$2`,
		`encoder\.stages\.3\.layers\.(\d+)\.(.*)`, `layer4.$1.$2`,
		`(layer\d\.\d+)\.shortcut\.convolution\.(.*)`, `$1.downsample.0.$2`,
		`(layer\d\.\d+)\.shortcut\.normalization\.(.*)`, `$1.downsample.1.$2`,
		`(layer\d\.\d+)\.layer\.0\.convolution\.(.*)`, `$1.conv1.$2`,
		`(layer\d\.\d+)\.layer\.0\.normalization\.(.*)`, `$1.bn1.$2`,
		`(layer\d\.\d+)\.layer\.1\.convolution\.(.*)`, `$1.conv2.$2`,
		`(layer\d\.\d+)\.layer\.1\.normalization\.(.*)`, `$1.bn2.$2`,
		`(layer\d\.\d+)\.layer\.2\.convolution\.(.*)`, `$1.conv3.$2`,
		`(layer\d\.\d+)\.layer\.2\.normalization\.(.*)`, `$1.bn3.$2`,
	)},
	{dialectHFDINOv3, ViT, "embeddings.patch_embeddings.weight", rules(hfEncoder...)},
	{dialectHFDINOv2, ViT, "encoder.layer.0.layer_scale1.lambda1", rules(hfEncoder...)},
	{dialectHFViT, ViT, "embeddings.patch_embeddings.projection.weight", rules(hfEncoder...)},
}

// rename gives a tensor's timm name, and its place where it is one of several
// parts of a weight.
func (d dialect) rename(name string) (to string, part int) {
	for _, r := range d.rules {
		if r.pattern.MatchString(name) {
			name = r.pattern.ReplaceAllString(name, r.to)
		}
	}
	if d.family != ViT {
		return name, 0
	}
	for _, parts := range [][3]string{{"attn.query.", "attn.key.", "attn.value."}, {"attn.q_proj.", "attn.k_proj.", "attn.v_proj."}} {
		for part, p := range parts {
			if strings.Contains(name, p) && d.name != dialectTimm {
				return strings.Replace(name, p, "attn.qkv.", 1), part
			}
		}
	}
	if d.family == ViT {
		for part, p := range []string{"mlp.gate_proj.", "mlp.up_proj."} {
			if strings.Contains(name, p) {
				return strings.Replace(name, p, "mlp.fc1.", 1), part
			}
		}
	}
	return name, 0
}

func (s fileSource) behind() string { return s.prefix }

// fileSource reads weights of a dialect behind a common prefix under timm's
// names.
type fileSource struct {
	dialect
	w      *Weights
	prefix string
	parts  map[string][]string // by weight: the tensors that it is made of
}

func newFileSource(w *Weights, d dialect, prefix string) fileSource {
	s := fileSource{d, w, prefix, map[string][]string{}}
	renamed := mobileNames(w, d, prefix)
	for _, file := range w.names {
		name, ok := strings.CutPrefix(file, prefix)
		if !ok {
			continue
		}
		to, part := renamed(name)
		list := s.parts[to]
		for len(list) <= part {
			list = append(list, "")
		}
		if list[part] != "" { // two tensors for one place: the second stays unused
			continue
		}
		list[part] = file
		s.parts[to] = list
	}
	for name, list := range s.parts { // up_proj without gate_proj is a plain layer
		if strings.Contains(name, ".mlp.fc1.") && len(list) == 2 && list[0] == "" {
			s.parts[name] = list[1:]
		}
	}
	return s
}

// mobileNames is how tensors are renamed; networks of mobile blocks count those
// through in some dialects.
func mobileNames(w *Weights, d dialect, prefix string) func(string) (string, int) {
	if d.family == MobileNet && d.name != dialectTimm {
		return mobileRenamer(w, d, prefix)
	}
	return d.rename
}

func (s fileSource) has(name string) bool { return len(s.parts[name]) > 0 }

func (s fileSource) origin(name string) []string {
	return slices.DeleteFunc(slices.Clone(s.parts[name]), func(f string) bool { return f == "" })
}

// count is the number of parts that a weight has when it is whole.
func (s fileSource) count(name string) int {
	n := len(s.parts[name])
	if n > 1 && strings.Contains(name, "attn.qkv.") {
		return 3
	}
	return n
}

func (s fileSource) shape(name string) []int {
	files := s.origin(name)
	if len(files) == 0 {
		return nil
	}
	shape := slices.Clone(s.w.Shape(files[0]))
	if n := s.count(name); n > 1 && len(shape) > 0 {
		shape[0] *= n
	}
	return shape
}

func (s fileSource) take(m *Model, name string, shape ...int) error {
	files := s.parts[name]
	if len(files) == 0 {
		return architectureError("the weight %q is missing", s.prefix+name)
	}
	n := s.count(name)
	if n == 1 {
		t, err := s.w.Float32(files[0], shape...)
		if err != nil {
			return err
		}
		t.Name = name
		m.put(t)
		return nil
	}
	if got := s.shape(name); !shapeMatches(got, shape) {
		return architectureError("the parts %s of %q have shape %v together, want %v", strings.Join(s.origin(name), ", "), name, got, shape)
	}
	part := slices.Clone(shape)
	part[0] /= n
	size := onnx.Elements(part)
	out := make([]float32, n*size)
	for i := range n {
		if i >= len(files) || files[i] == "" {
			if strings.HasSuffix(name, "qkv.bias") && i == 1 { // keys need no bias
				continue
			}
			return architectureError("of the weight %q a part is missing (there are %s)", name, strings.Join(s.origin(name), ", "))
		}
		t, err := s.w.Float32(files[i], part...)
		if err != nil {
			return err
		}
		copy(out[i*size:], t.Float32s())
	}
	m.put(onnx.FromFloat32(name, out, shape...))
	return nil
}

// found is a network that a file may hold.
type found struct {
	dialect dialect
	prefix  string
}

// networks lists the networks in a file by their anchors; one that lies inside
// another is a part of that.
func networks(w *Weights) []found {
	var out []found
	for _, d := range dialects {
		for _, name := range w.names {
			prefix, ok := strings.CutSuffix(name, d.anchor)
			if !ok || prefix != "" && !strings.HasSuffix(prefix, ".") {
				continue
			}
			if slices.ContainsFunc(out, func(f found) bool { return f.prefix == prefix }) {
				continue
			}
			out = append(out, found{d, prefix})
		}
	}
	return slices.DeleteFunc(slices.Clone(out), func(f found) bool {
		return slices.ContainsFunc(out, func(o found) bool { return o.prefix != f.prefix && strings.HasPrefix(f.prefix, o.prefix) })
	})
}

// recognise sets the family and finds the naming. prefix chooses among several
// networks in one file.
func recognise(m *Model, w *Weights, prefix string, hint func(dim int) string) (source, error) {
	if g, ok := newGoogleSource(w); ok {
		m.Spec.Family = ViT
		if g.stages > 0 {
			m.Spec.Family = Hybrid
		}
		return g, nil
	}
	if len(w.names) == 0 {
		return nil, architectureError("the file holds no tensors")
	}
	all := networks(w)
	if len(all) == 0 {
		return nil, architectureError("the tensors are named as those of no family that is built here (ViT, DeiT, DINOv2, DINOv3, ResNet, ConvNeXt, EfficientNet, MobileNet or the hybrid, as in timm, Hugging Face or the original): %s; export the network to ONNX and import that", sortedNames(w.names, 6))
	}
	if prefix != "" {
		all = slices.DeleteFunc(all, func(f found) bool { return strings.Trim(f.prefix, ".") != strings.Trim(prefix, ".") })
		if len(all) == 0 {
			return nil, architectureError("no network in the file has the prefix %q", prefix)
		}
	}
	if len(all) > 1 {
		var names []string
		for _, f := range all {
			names = append(names, fmt.Sprintf("%q", strings.TrimSuffix(f.prefix, ".")))
		}
		return nil, architectureError("the file holds %d networks, %s: choose one with --prefix", len(all), strings.Join(names, ", "))
	}
	d := all[0].dialect
	dim := 0
	if shape := w.Shape(all[0].prefix + d.anchor); len(shape) > 0 && d.family == ViT {
		dim = shape[0]
	}
	if h := hint(dim); d.name == dialectTimm && d.family == ViT && strings.Contains(h, "dinov3") {
		d.rules = slices.Concat(d.rules, timmDINOv3)
	}
	s := newFileSource(w, d, all[0].prefix)
	m.Spec.Family = s.family
	m.dialect = s.name
	if s.family == ViT && s.has("patch_embed.backbone.stem.conv.weight") {
		m.Spec.Family = Hybrid
	}
	return s, nil
}

// leftOver are weights of a file, under timm's names, that a backbone does
// without: classifiers and what training alone needs. Everything else in a
// network has to be used.
var leftOver = regexp.MustCompile(`^(head|heads|head_dist|fc|_fc|classifier|cls_classifier|distillation_classifier|pre_logits|pooler|(?:embeddings\.)?mask_token|` +
	`embeddings\.position_ids|decoder_[a-z]+|decoder|projection_head|prototypes|predictor)(\.|$)|(^|\.)num_batches_tracked$`)

// checkUsed refuses a file with tensors of the network that no weight of m was
// made of, and returns those that may be left.
func checkUsed(m *Model, src source, w *Weights) (left []string, err error) {
	used := map[string]bool{}
	for _, name := range m.order {
		for _, f := range src.origin(name) {
			used[f] = true
		}
	}
	prefix := src.behind()
	var bad []string
	for _, file := range w.names {
		if used[file] {
			continue
		}
		name, inside := strings.CutPrefix(file, prefix)
		if inside && !leftOver.MatchString(name) && !googleLeftOver(src, name) {
			bad = append(bad, file)
		}
		if !strings.HasSuffix(name, "num_batches_tracked") { // a counter
			left = append(left, file)
		}
	}
	if len(bad) > 0 {
		return nil, architectureError("%d tensors of the network are not understood (%s): it is not a plain %s, and without them it would be another network; export it to ONNX and import that",
			len(bad), sortedNames(bad, 4), m.Spec.Name())
	}
	return left, nil
}

func googleLeftOver(src source, name string) bool {
	_, ok := src.(googleSource)
	return ok && (strings.HasPrefix(name, "head/") || strings.HasPrefix(name, "pre_logits/") || strings.HasPrefix(name, "opt/state"))
}
