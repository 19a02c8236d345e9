package backbone

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Keys of the metadata that every exported model carries.
const (
	// MetadataPreprocess holds the JSON of imaging.Preprocess.
	MetadataPreprocess = "nearmiss.preprocess"
	// MetadataBackbone holds the JSON of [Info].
	MetadataBackbone = "nearmiss.backbone"
)

// Names of an exported model's input and outputs.
const (
	InputImage      = "image"
	OutputEmbedding = "embedding"
	OutputTokens    = "tokens"
)

// Formats of weights that come out of no other ecosystem's file.
const (
	FormatRandom  = "random"  // drawn: see [Random]
	FormatStarter = "starter" // trained on drawn pictures: see package starter
)

// Info says what an exported model is. It travels in the model's metadata.
type Info struct {
	Name   string `json:"name"`             // as in timm where shapes tell
	Family Family `json:"family"`           //
	Format string `json:"format"`           // of the weights' source: safetensors, npz, onnx, [FormatRandom], [FormatStarter]
	Source string `json:"source,omitempty"` // the file's base name
	Size   int    `json:"size"`             // pixels of the square input
	Dim    int    `json:"dim"`              // of the embedding; 0: the file does not tell
	Tokens int    `json:"tokens,omitempty"` // of the tokens output, 0: there is none
	Params int    `json:"params"`           // number of trainable scalars
	Seed   uint64 `json:"seed,omitempty"`   // of random weights
	Spec   *Spec  `json:"spec,omitempty"`   // nil for foreign models
}

// Model is a backbone in memory: an architecture and its weights under their
// timm names. Its weights may alias the bytes that they were read from.
type Model struct {
	Spec       Spec
	Preprocess imaging.Preprocess
	Format     string // of the weights' source
	Source     string // its base name
	Seed       uint64 // of random weights

	// PreprocessFrom and HeadsFrom say where what no tensor tells was taken from,
	// and Left lists tensors of the file that the backbone does without, of a model
	// that was read from weights.
	PreprocessFrom, HeadsFrom string
	Left                      []string

	dialect string // of the file's names
	own     *Spec  // the file's own specification

	order   []string
	tensors map[string]onnx.Tensor
}

// Tensors lists the weights in the order of the forward pass, under their timm
// names, including the statistics of BatchNorm. The data must not be changed.
func (m *Model) Tensors() []onnx.Tensor {
	out := make([]onnx.Tensor, len(m.order))
	for i, name := range m.order {
		out[i] = m.tensors[name]
	}
	return out
}

// Trainable reports whether the named weight is a parameter rather than a
// statistic of BatchNorm.
func (m *Model) Trainable(name string) bool { return m.has(name) && trainable(name) }

// Set replaces the data of a weight, for instance by a trained one. The shape
// must not change; data is not copied.
func (m *Model) Set(name string, data []float32) error {
	t, ok := m.tensors[name]
	if !ok {
		return architectureError("the backbone has no weight %q", name)
	}
	if len(data) != t.Elements() {
		return architectureError("weight %q takes %d elements, got %d", name, t.Elements(), len(data))
	}
	m.tensors[name] = onnx.FromFloat32(name, data, t.Shape...)
	return nil
}

func (m *Model) has(name string) bool { _, ok := m.tensors[name]; return ok }

func (m *Model) put(t onnx.Tensor) {
	if !m.has(t.Name) {
		m.order = append(m.order, t.Name)
	}
	m.tensors[t.Name] = t
}

// Info describes the model.
func (m *Model) Info() Info {
	s := m.Spec
	n := 0
	for _, name := range m.order {
		if trainable(name) {
			n += m.tensors[name].Elements()
		}
	}
	return Info{
		Name: s.Name(), Family: s.Family, Format: m.Format, Source: m.Source,
		Size: s.Size, Dim: s.Dim, Params: n, Seed: m.Seed, Spec: &s,
	}
}

// Options adjust the graph that [Model.Build] makes.
type Options struct {
	// Batch fixes the number of images; 0 leaves it open, as the dimension "N".
	Batch int
	// Tokens adds the output "tokens" [N, T, D] (ViT and Hybrid only). Without it
	// the last block computes only what the class token needs, about 7 % less work.
	Tokens bool
}

// Build makes the serving graph: uint8 image [N, S, S, 3] in, float embedding
// [N, D] out, the weights as initialisers that alias the model's.
func (m *Model) Build(o Options) (*onnx.Graph, error) {
	g := onnx.New(m.Spec.Name())
	x := g.Input(InputImage, onnx.Uint8, max(o.Batch, 1), m.Spec.Size, m.Spec.Size, 3)
	f, err := m.Forward(g, x, ForwardOptions{Tokens: o.Tokens})
	if err != nil {
		return nil, err
	}
	g.Output(OutputEmbedding, f.Embedding)
	if o.Tokens {
		g.Output(OutputTokens, f.Tokens)
	}
	if o.Batch == 0 {
		x.SetDimName(0, "N")
		for _, v := range g.Outputs() {
			v.SetDimName(0, "N")
		}
	}
	info := m.Info()
	if o.Tokens {
		info.Tokens = m.Spec.Tokens()
	}
	if err := setMetadata(g, m.Preprocess, info); err != nil {
		return nil, fmt.Errorf("build %s: %w", m.Spec.Name(), err)
	}
	if err := g.Err(); err != nil {
		return nil, fmt.Errorf("build %s: %w", m.Spec.Name(), err)
	}
	return g, nil
}

// ForwardOptions let training code build the same forward pass over other
// values than initialisers.
type ForwardOptions struct {
	// Param returns the value that stands for a weight in g: an initialiser, a
	// value carried by a Loop, a value of an outer graph. It is called once for
	// each weight that the pass uses. Nil: Graph.Initializer.
	Param func(w onnx.Tensor) *onnx.Value
	// Dropout wraps an activation at each place where the paper's training drops
	// (after the position embedding and after both layers of every MLP); site
	// names it, as "blocks.3.mlp.drop1". Nil: none.
	Dropout func(x *onnx.Value, site string) *onnx.Value
	// Tokens computes Features.Tokens too.
	Tokens bool
	// Taps asks for vectors of some layers, which Features.Taps gives in their
	// order. With TapsOnly the pass ends behind the last of them, and there is an
	// Embedding only where that is behind all layers.
	Taps     []Tap
	TapsOnly bool
}

// Features are the results of a forward pass.
type Features struct {
	Embedding *onnx.Value // float [N, D]
	Tokens    *onnx.Value // float [N, T, D], nil unless asked for
	Taps      []Tapped
}

// Forward appends the network to g. image is uint8 or float [N, S, S, 3] with
// samples in 0..255; normalisation is part of the network. No node depends on N
// but through the shape of image.
func (m *Model) Forward(g *onnx.Graph, image *onnx.Value, o ForwardOptions) (Features, error) {
	if want := []int{-1, m.Spec.Size, m.Spec.Size, 3}; g.Err() == nil && !shapeMatches(image.Shape(), want) {
		return Features{}, fmt.Errorf("build %s: the image has shape %v, want [N %d %d 3]", m.Spec.Name(), image.Shape(), m.Spec.Size, m.Spec.Size)
	}
	if o.Tokens && m.Spec.Tokens() == 0 {
		return Features{}, fmt.Errorf("build %s: this family has no tokens", m.Spec.Name())
	}
	b := &builder{m: m, g: g, o: o, used: map[string]*onnx.Value{}, taps: make([]Tapped, len(o.Taps))}
	if err := b.checkTaps(); err != nil {
		return Features{}, err
	}
	var f Features
	switch m.Spec.Family {
	case ViT, Hybrid:
		f = b.vit(image)
	case ResNet:
		f = b.resnet(image)
	case ConvNeXt:
		f = b.convnext(image)
	case MobileNet:
		f = b.mobile(image)
	default:
		return Features{}, architectureError("family %q", m.Spec.Family)
	}
	f.Taps = b.taps
	if b.err != nil {
		return Features{}, b.err
	}
	if err := g.Err(); err != nil {
		return Features{}, fmt.Errorf("build %s: %w", m.Spec.Name(), err)
	}
	return f, nil
}

// builder holds one forward pass under construction.
type builder struct {
	m    *Model
	g    *onnx.Graph
	o    ForwardOptions
	used map[string]*onnx.Value
	taps []Tapped
	err  error
}

// param is the value of the named weight.
func (b *builder) param(name string) *onnx.Value {
	if v, ok := b.used[name]; ok {
		return v
	}
	t, ok := b.m.tensors[name]
	if !ok {
		if b.err == nil {
			b.err = architectureError("build %s: weight %q is missing", b.m.Spec.Name(), name)
		}
		t = onnx.FromFloat32(name, []float32{0}, 1)
	}
	var v *onnx.Value
	if b.o.Param != nil {
		v = b.o.Param(t)
	} else {
		v = b.g.Initializer(t)
	}
	b.used[name] = v
	return v
}

// optional is param, or nil where the model has no such weight.
func (b *builder) optional(name string) *onnx.Value {
	if !b.m.has(name) {
		return nil
	}
	return b.param(name)
}

func (b *builder) drop(x *onnx.Value, site string) *onnx.Value {
	if b.o.Dropout == nil {
		return x
	}
	return b.o.Dropout(x, site)
}

func (b *builder) floats(data []float32, shape ...int) *onnx.Value {
	return b.g.Initializer(onnx.FromFloat32("", data, shape...))
}

func (b *builder) ints(v ...int64) *onnx.Value {
	return b.g.Initializer(onnx.FromInt64("", v, len(v)))
}

func (b *builder) reshape(x *onnx.Value, dims ...int64) *onnx.Value {
	return b.g.Op("Reshape", nil, x, b.ints(dims...))
}

func (b *builder) transpose(x *onnx.Value, perm ...int) *onnx.Value {
	return b.g.Op("Transpose", onnx.Attrs{"perm": perm}, x)
}

// linear is x·Wᵀ + b for x [rows, in] and a torch-style weight [out, in].
func (b *builder) linear(x *onnx.Value, name string) *onnx.Value {
	w := b.param(name + ".weight")
	if len(w.Shape()) == 4 { // a 1×1 convolution is the same matrix
		w = b.reshape(w, int64(w.Dim(0)), int64(w.Dim(1)))
	}
	return b.g.Op("Gemm", onnx.Attrs{"transB": 1}, x, w, b.optional(name+".bias"))
}

func (b *builder) layerNorm(x *onnx.Value, name string) *onnx.Value {
	return b.g.Op("LayerNormalization", onnx.Attrs{"axis": -1, "epsilon": float32(b.m.Spec.NormEps)},
		x, b.param(name+".weight"), b.param(name+".bias"))
}

// scaleShift returns the normalisation (v/255 − mean)/std as v·scale + shift,
// each constant repeated for per samples of one channel.
func (b *builder) scaleShift(x *onnx.Value, per int, shape ...int) *onnx.Value {
	p := b.m.Preprocess
	scale, shift := make([]float32, 3*per), make([]float32, 3*per)
	for c := range 3 {
		for i := range per {
			scale[c*per+i] = float32(1 / (255 * p.Std[c]))
			shift[c*per+i] = float32(-p.Mean[c] / p.Std[c])
		}
	}
	x = b.g.Op("Mul", nil, x, b.floats(scale, shape...))
	return b.g.Op("Add", nil, x, b.floats(shift, shape...))
}

func (b *builder) float(x *onnx.Value) *onnx.Value {
	if x.Type() == onnx.Float {
		return x
	}
	return b.g.Op("Cast", onnx.Attrs{"to": int(onnx.Float)}, x)
}

// pixels turns the image into normalised float [N, 3, S, S].
func (b *builder) pixels(image *onnx.Value) *onnx.Value {
	defer b.g.Scope("normalise")()
	return b.transpose(b.scaleShift(b.float(image), 1, 3), 0, 3, 1, 2)
}

func setMetadata(g *onnx.Graph, p imaging.Preprocess, info Info) error {
	all, err := newMetadata(p, info)
	for key, v := range all {
		g.SetMetadata(key, v)
	}
	return err
}

// newMetadata is what a file of the model says of it.
func newMetadata(p imaging.Preprocess, info Info) (map[string]string, error) {
	pre, err := json.Marshal(p)
	about, err2 := json.Marshal(info)
	return map[string]string{MetadataPreprocess: string(pre), MetadataBackbone: string(about)}, errors.Join(err, err2)
}

// readMetadata parses what Build wrote. A model without the keys gives zero
// values.
func readMetadata(props map[string]string) (info Info, pre imaging.Preprocess, err error) {
	if s, ok := props[MetadataBackbone]; ok {
		if err := json.Unmarshal([]byte(s), &info); err != nil {
			return info, pre, formatError("metadata %s: %v", MetadataBackbone, err)
		}
	}
	if s, ok := props[MetadataPreprocess]; ok {
		if err := json.Unmarshal([]byte(s), &pre); err != nil {
			return info, pre, formatError("metadata %s: %v", MetadataPreprocess, err)
		}
		if err := pre.Validate(); err != nil {
			return info, pre, formatError("metadata %s: %v", MetadataPreprocess, err)
		}
	}
	return info, pre, nil
}

// sortedNames is for messages.
func sortedNames(names []string, limit int) string {
	names = slices.Sorted(slices.Values(names))
	if len(names) > limit {
		return strings.Join(names[:limit], ", ") + fmt.Sprintf(" and %d more", len(names)-limit)
	}
	return strings.Join(names, ", ")
}
