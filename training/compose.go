package training

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Part is a piece of the embedding that scores are computed on. Several parts
// are scaled to equal importance and put one after the other by the release's
// own model, so that one bank and one search combine them.
type Part string

const (
	// ClassPart is the backbone's embedding: the paper's score.
	ClassPart Part = "class"
	// PatchesPart is the mean of the backbone's patch tokens after its last norm.
	PatchesPart Part = "patches"
	// FrozenClassPart and FrozenPatchesPart are those of the backbone before it
	// was fine-tuned; serving computes both networks.
	FrozenClassPart   Part = "frozen-class"
	FrozenPatchesPart Part = "frozen-patches"
)

// Parts lists all parts.
var Parts = []Part{ClassPart, PatchesPart, FrozenClassPart, FrozenPatchesPart}

// ParseParts reads a list such as "class" or "class+patches".
func ParseParts(text string) ([]Part, error) {
	var out []Part
	for _, name := range strings.Split(text, "+") {
		out = append(out, Part(strings.TrimSpace(name)))
	}
	return out, checkParts(out)
}

func checkParts(parts []Part) error {
	for i, p := range parts {
		if !slices.Contains(Parts, p) {
			return fmt.Errorf("part %q of the embedding: unknown, take some of %v", p, Parts)
		}
		if slices.Contains(parts[:i], p) {
			return fmt.Errorf("part %q of the embedding is asked for twice", p)
		}
	}
	return nil
}

// frozen is the part of the frozen backbone that corresponds to p.
func (p Part) frozen() Part {
	switch p {
	case ClassPart:
		return FrozenClassPart
	case PatchesPart:
		return FrozenPatchesPart
	}
	return p
}

// withoutTuned replaces the tuned parts by frozen ones and names them as those of
// the only model.
func withoutTuned(parts []Part) []Part {
	var out []Part
	for _, p := range parts {
		q := ClassPart
		if p.frozen() == FrozenPatchesPart {
			q = PatchesPart
		}
		if !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	return out
}

// plain says whether the parts are the model's own embedding.
func plain(parts []Part) bool { return len(parts) == 1 && parts[0] == ClassPart }

// piece is a part and what its numbers are multiplied by.
type piece struct {
	part  Part
	scale float64
}

// compose writes a model whose embedding is the pieces of the tuned and the
// frozen backbone, scaled, one after the other.
func compose(dst, frozen, tuned string, pieces []piece) (err error) {
	c := &composer{g: onnx.New("combined"), networks: map[string]*features{}}
	defer func() {
		for _, f := range c.networks {
			err = errors.Join(err, f.file.Close())
		}
		if err != nil {
			err = fmt.Errorf("combine parts of the embedding of %s: %w", tuned, err)
		}
	}()
	needs := func(path string) bool {
		return slices.ContainsFunc(pieces, func(p piece) bool {
			return p.part == PatchesPart && path == tuned || p.part == FrozenPatchesPart && path == frozen
		})
	}
	var values []*onnx.Value
	var names []string
	for _, p := range pieces {
		path := tuned
		if p.part == FrozenClassPart || p.part == FrozenPatchesPart {
			path = frozen
		}
		f, err := c.network(path, needs(path))
		if err != nil {
			return err
		}
		v := f.Embedding
		if p.part.frozen() == FrozenPatchesPart {
			v = f.patches
		}
		if p.scale != 1 {
			v = c.g.Scale(v, p.scale)
		}
		values, names = append(values, v), append(names, string(p.part))
	}
	out := values[0]
	if len(values) > 1 {
		out = c.g.Concat(1, values...)
	}
	c.g.Output(backbone.OutputEmbedding, out)
	c.image.SetDimName(0, "N")
	for _, v := range c.g.Outputs() {
		v.SetDimName(0, "N")
	}
	info := c.info
	info.Spec, info.Tokens, info.Dim = nil, 0, out.Dim(1) // no longer that architecture
	info.Name += " " + strings.Join(names, "+")
	for key, v := range map[string]any{backbone.MetadataPreprocess: c.own.Preprocess, backbone.MetadataBackbone: info} {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		c.g.SetMetadata(key, string(b))
	}
	if err := c.g.Err(); err != nil {
		return err
	}
	return c.g.WriteFile(dst)
}

// composer builds a graph over several networks of one architecture.
type composer struct {
	g        *onnx.Graph
	image    *onnx.Value
	own      *backbone.Model
	info     backbone.Info
	networks map[string]*features
}

// features is a network's part of the graph.
type features struct {
	backbone.Features
	patches *onnx.Value
	file    *onnx.Graph // whose data the weights alias
}

func (c *composer) network(path string, patches bool) (*features, error) {
	if f := c.networks[path]; f != nil {
		return f, nil
	}
	file, err := onnx.ReadFile(path, onnx.BindBatch(1))
	if err != nil {
		return nil, err
	}
	f := &features{file: file}
	c.networks[path] = f
	own, ok, err := backbone.FromONNX(file)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%s is a foreign model, which gives one embedding only: score on part %q alone", path, ClassPart)
	}
	if patches && own.Spec.Tokens() == 0 {
		return nil, fmt.Errorf("%s has no patch tokens, only transformers have: score on part %q", path, ClassPart)
	}
	prefix := ""
	if c.own == nil {
		c.own, c.info = own, own.Info()
		c.image = c.g.Input(backbone.InputImage, onnx.Uint8, 1, own.Spec.Size, own.Spec.Size, 3)
	} else {
		prefix = fmt.Sprintf("net%d/", len(c.networks))
	}
	f.Features, err = own.Forward(c.g, c.image, backbone.ForwardOptions{
		Tokens: patches,
		Param: func(w onnx.Tensor) *onnx.Value {
			w.Name = prefix + w.Name
			return c.g.Initializer(w)
		},
	})
	if err != nil {
		return nil, err
	}
	if patches {
		lead := 1 + own.Spec.Registers
		f.patches = c.g.ReduceMean(c.g.Slice(f.Tokens, 1, lead, own.Spec.Tokens()), false, 1)
	}
	return f, nil
}

// blend writes a copy of the frozen backbone with the weights
// (1−share)·frozen + share·mean(tuned). A share of 1 over one tuned file gives
// that file's weights.
func blend(dst, frozen string, tuned []string, share float64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("average the weights of %d fine-tunes: %w", len(tuned), err)
		}
	}()
	read := func(path string) (map[string]onnx.Tensor, func() error, error) {
		g, err := onnx.ReadFile(path, onnx.BindBatch(1))
		if err != nil {
			return nil, nil, err
		}
		out := map[string]onnx.Tensor{}
		for _, v := range g.Initializers() {
			if t := v.Const(); t != nil && t.Type == onnx.Float {
				out[v.Name()] = *t
			}
		}
		return out, g.Close, nil
	}
	base, end, err := read(frozen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	sums := map[string][]float64{}
	for _, path := range tuned {
		other, end, err := read(path)
		if err != nil {
			return err
		}
		for name, t := range other {
			old, ok := base[name]
			if !ok || !slices.Equal(old.Shape, t.Shape) || (sums[name] == nil && slices.Equal(old.Data, t.Data)) && len(tuned) == 1 {
				continue
			}
			if sums[name] == nil {
				sums[name] = make([]float64, t.Elements())
			}
			for i, v := range t.Float32s() {
				sums[name][i] += float64(v)
			}
		}
		if err := end(); err != nil {
			return err
		}
	}
	var out []onnx.Tensor
	for name, sum := range sums {
		old := base[name]
		mixed := make([]float32, len(sum))
		same := true
		for i, v := range old.Float32s() {
			mixed[i] = float32((1-share)*float64(v) + share*sum[i]/float64(len(tuned)))
			same = same && mixed[i] == v
		}
		if !same {
			out = append(out, onnx.FromFloat32(name, mixed, old.Shape...))
		}
	}
	slices.SortFunc(out, func(a, b onnx.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return backbone.ReplaceWeights(frozen, dst, out)
}

// equalise gives each part the scale that makes the median of its scores 1:
// sums of squared distances of normals to others of their kind.
func equalise(medians []float64) []float64 {
	out := make([]float64, len(medians))
	for i, m := range medians {
		out[i] = 1
		if m > 0 && !math.IsInf(m, 0) {
			out[i] = 1 / math.Sqrt(m)
		}
	}
	return out
}
