package backbone

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// LoadOptions adjust [Load] and [Import]. The zero value keeps everything as
// the weights have it.
type LoadOptions struct {
	// Size is the side of the square input in pixels; 0: what the weights were
	// made for. Position embeddings are resampled where it differs.
	Size int
	// Positions is how they are resampled; "": bicubic for timm weights, linear
	// for .npz files, as their own code does.
	Positions PositionResample
	// Preprocess overrides the family's default ([DefaultPreprocess]); its Crop
	// must be the input's size. Nil: the default.
	Preprocess *imaging.Preprocess
	// Mean and Std override the normalisation alone; all zero: unchanged.
	Mean, Std [3]float64
}

// apply changes the preprocessing of a model whose size is settled.
func (o LoadOptions) apply(p imaging.Preprocess, size int) (imaging.Preprocess, error) {
	if o.Preprocess != nil {
		p = *o.Preprocess
	}
	if o.Mean != [3]float64{} {
		p.Mean = o.Mean
	}
	if o.Std != [3]float64{} {
		p.Std = o.Std
	}
	if p.Crop != size {
		return p, fmt.Errorf("the crop of %d px is not the model's input of %d px", p.Crop, size)
	}
	return p, p.Validate()
}

// Load opens the safetensors or .npz file at path, recognises the architecture
// from its tensors and checks every shape. The model aliases the file until
// Close. Errors wrap [ErrFormat] or [ErrArchitecture].
func Load(path string, o LoadOptions) (*Model, error) {
	w, err := OpenWeights(path)
	if err != nil {
		return nil, err
	}
	m, err := FromWeights(w, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load backbone %s: %w", path, err), w.Close())
	}
	m.Source = filepath.Base(path)
	m.close = w.Close
	return m, nil
}

// FromWeights recognises the architecture of w and reads it. The model aliases
// w, which the caller closes after it.
func FromWeights(w *Weights, o LoadOptions) (*Model, error) {
	m := &Model{Format: w.Format, tensors: map[string]onnx.Tensor{}}
	src, err := recognise(m, w)
	if err != nil {
		return nil, err
	}
	switch m.Spec.Family {
	case ViT, Hybrid:
		err = loadViT(m, src)
	case ResNet:
		err = loadResNet(m, src)
	case ConvNeXt:
		err = loadConvNeXt(m, src)
	}
	if err != nil {
		return nil, err
	}
	m.Preprocess = DefaultPreprocess(m.Spec, m.Format)
	own, pre, err := readMetadata(w.Metadata)
	if err != nil {
		return nil, err
	}
	if own.Format != "" { // a file of EncodeHalf
		m.Format, m.Source, m.Seed = own.Format, own.Source, own.Seed
	}
	if pre.Crop == m.Spec.Size {
		m.Preprocess = pre
	}
	if o.Size != 0 && o.Size != m.Spec.Size {
		if err := m.Resize(o.Size, o.Positions); err != nil {
			return nil, err
		}
	}
	m.Preprocess, err = o.apply(m.Preprocess, m.Spec.Size)
	return m, err
}

// prefixes are what training code puts before the names of a wrapped network.
var prefixes = []string{"", "module.", "model.", "backbone.", "encoder.", "visual.trunk.", "model.backbone."}

// recognise sets the family and finds the naming.
func recognise(m *Model, w *Weights) (source, error) {
	if g, ok := newGoogleSource(w); ok {
		m.Spec.Family = ViT
		if g.stages > 0 {
			m.Spec.Family = Hybrid
		}
		return g, nil
	}
	for _, prefix := range prefixes {
		s := timmSource{w, prefix}
		switch {
		case isViT(s):
			m.Spec.Family = ViT
			if s.has("patch_embed.backbone.stem.conv.weight") {
				m.Spec.Family = Hybrid
			} else if s.has("patch_embed.backbone.conv.weight") || s.has("patch_embed.backbone.conv1.weight") {
				return nil, architectureError("this hybrid's stem is not built; export it to ONNX and import that")
			}
			return s, nil
		case isResNet(s):
			m.Spec.Family = ResNet
			return s, nil
		case isConvNeXt(s):
			m.Spec.Family = ConvNeXt
			return s, nil
		}
	}
	if len(w.names) == 0 {
		return nil, architectureError("the file holds no tensors")
	}
	return nil, architectureError("the tensors are named neither as timm's ViT, ResNet, ConvNeXt or hybrid nor as the original ViT (%s)", sortedNames(w.names, 6))
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
	}
	return nil
}

// graphSource reads weights back from the initialisers of an exported model.
type graphSource map[string]onnx.Tensor

func (s graphSource) has(name string) bool    { _, ok := s[name]; return ok }
func (s graphSource) shape(name string) []int { return s[name].Shape }

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
