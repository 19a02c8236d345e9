package backbone

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// LoadOptions adjust [FromWeights] and [Import]. The zero value keeps everything as
// the weights have it.
type LoadOptions struct {
	// Size is the side of the square input in pixels; 0: what the weights were
	// made for. Position embeddings are resampled where it differs.
	Size int
	// Preprocess overrides how images are prepared; its Crop must be the input's
	// size. Nil: what files beside the weights say, or the family's default
	// (defaultPreprocess).
	Preprocess *imaging.Preprocess
	// Mean and Std override the normalisation alone; nil: unchanged.
	Mean, Std *[3]float64
	// Heads is the number of attention heads; 0: as in the published networks of
	// the same width. No tensor's shape tells it.
	Heads int
	// Arch says of which publication the weights are where several have the same
	// tensors: timm's name of the architecture or a part of it, such as "deit",
	// "vit_base_patch16_224.mae" or "tf_efficientnet_lite0".
	Arch string
	// Prefix chooses among several networks in one file by the start of their
	// tensors' names, as in "teacher.backbone".
	Prefix string
}

// apply changes the preprocessing of a model whose size is settled.
func (o LoadOptions) apply(p imaging.Preprocess, size int) (imaging.Preprocess, error) {
	if o.Preprocess != nil {
		p = *o.Preprocess
	}
	if o.Mean != nil {
		p.Mean = *o.Mean
	}
	if o.Std != nil {
		p.Std = *o.Std
	}
	if p.Crop != size {
		return p, fmt.Errorf("the crop of %d px is not the model's input of %d px", p.Crop, size)
	}
	return p, errors.Join(checkNormalise(p.Mean, p.Std), p.Validate())
}

// fromFile recognises the architecture of the weights at path (safetensors, .npz or
// PyTorch), whose bytes are data, from its tensors, checks every shape and refuses a
// file with tensors of the network that it does not understand. The model aliases
// data. Errors wrap [ErrFormat] or [ErrArchitecture].
func fromFile(path string, data []byte, o LoadOptions) (*Model, error) {
	w, err := ReadWeights(data)
	if err != nil {
		return nil, err
	}
	w.path = path
	m, err := FromWeights(w, o)
	if err != nil {
		return nil, err
	}
	m.Source = filepath.Base(path)
	return m, nil
}

// FromWeights recognises the architecture of w and reads it. The model aliases
// w, which the caller closes after it.
func FromWeights(w *Weights, o LoadOptions) (*Model, error) {
	if err := checkArch(o.Arch); err != nil {
		return nil, err
	}
	m := &Model{Format: w.Format, tensors: map[string]onnx.Tensor{}}
	own, pre, err := readMetadata(w.Metadata)
	if err != nil {
		return nil, err
	}
	m.own = own.Spec
	hint := strings.ToLower(o.Arch)
	src, err := recognise(m, w, o.Prefix, func(dim int) string {
		if side := readSidecar(w.path, dim); hint == "" {
			hint = side.arch
		}
		hint = cmp.Or(hint, fileHint(w.path))
		return hint
	})
	if err != nil {
		return nil, err
	}
	side := sidecar{}
	if d := outputs(src); d > 0 {
		side = readSidecar(w.path, d)
	}
	switch m.Spec.Family {
	case ViT, Hybrid:
		err = loadViT(m, src, side, hint, o)
	case ResNet:
		err = loadResNet(m, src)
	case ConvNeXt:
		err = loadConvNeXt(m, src)
	case MobileNet:
		err = loadMobile(m, src, hint)
	}
	if err != nil {
		return nil, err
	}
	if m.Left, err = checkUsed(m, src, w); err != nil {
		return nil, err
	}
	if o.Size != 0 && o.Size != m.Spec.Size {
		if err := m.Resize(o.Size); err != nil {
			return nil, err
		}
	}
	m.prepare(w, side, o)
	if own.Format != "" { // a file of EncodeHalf
		m.Format, m.Source, m.Seed = own.Format, own.Source, own.Seed
	}
	if pre.Crop == m.Spec.Size {
		m.Preprocess, m.PreprocessFrom = pre, "what the file says"
	}
	m.Preprocess, err = o.apply(m.Preprocess, m.Spec.Size)
	if o.Preprocess != nil || o.Mean != nil {
		m.PreprocessFrom = "as asked for"
	}
	return m, err
}

// outputs is the embedding's length, as config.json has it, from a tensor of its
// own shape; 0 where none tells.
func outputs(src source) int {
	for _, name := range []string{"patch_embed.proj.weight", "conv_head.weight", "head.norm.weight"} {
		if s := src.shape(name); len(s) > 0 {
			return s[0]
		}
	}
	return 0
}

// fileHint is what a file's name says of the architecture, where it says
// anything.
func fileHint(path string) string {
	name := strings.ToLower(filepath.Base(path))
	if path != "" && checkArch(name) == nil {
		return name
	}
	return ""
}

// shapes lists the weights of an architecture in the order of the forward pass.
func (s Spec) shapes() []paramShape {
	switch s.Family {
	case ViT, Hybrid:
		return vitShapes(s)
	case ResNet:
		return resnetShapes(s)
	case ConvNeXt:
		return convnextShapes(s)
	case MobileNet:
		return mobileShapes(s)
	}
	return nil
}

// graphSource reads weights back from the initialisers of an exported model.
type graphSource map[string]onnx.Tensor

func (s graphSource) has(name string) bool { _, ok := s[name]; return ok }

func (s graphSource) take(m *Model, name string, shape ...int) error {
	t, ok := s[name]
	if !ok {
		return architectureError("the model has no weight %q", name)
	}
	if len(t.Shape) == 4 && len(shape) == 2 {
		shape = []int{shape[0], shape[1], 1, 1}
	}
	if t.Type != onnx.Float || !shapeMatches(t.Shape, shape) {
		return architectureError("weight %q is %s%v, want float%v", name, t.Type, t.Shape, shape)
	}
	t.Name = name
	m.put(t)
	return nil
}

// FromONNX reads the weights back from a model that [Model.Build] made, so that
// a .onnx file can be fine-tuned through [Model.Forward]. ok is false for a
// foreign model, which has no specification. The model aliases g's tensors.
func FromONNX(g *onnx.Graph) (m *Model, ok bool, err error) {
	info, pre, err := readMetadata(g.Metadata())
	if err != nil || info.Spec == nil {
		return nil, false, err
	}
	if err := info.Spec.Validate(); err != nil {
		return nil, false, fmt.Errorf("read backbone %s: %w", info.Name, err)
	}
	m = &Model{
		Spec: *info.Spec, Preprocess: pre, Format: info.Format, Source: info.Source, Seed: info.Seed,
		tensors: map[string]onnx.Tensor{},
	}
	src := graphSource{}
	for _, v := range g.Initializers() {
		if t := v.Const(); t != nil {
			src[v.Name()] = *t
		}
	}
	for _, p := range m.Spec.shapes() {
		if p.optional && !src.has(p.name) {
			continue
		}
		if err := src.take(m, p.name, p.shape...); err != nil {
			return nil, false, fmt.Errorf("read backbone %s: %w", info.Name, err)
		}
	}
	return m, true, nil
}

// stripExtension is the file's name without directory and extension.
func stripExtension(path string) string {
	base := filepath.Base(path)
	return strings.TrimSuffix(base, filepath.Ext(base))
}
