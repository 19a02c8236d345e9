package training

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/backbone"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// Part is a part of the score: the model's vectors and the bank that they are
// compared with. The ratios of several parts are combined, see
// inference.CombineScores.
type Part string

const (
	// ClassPart is the backbone's embedding: the paper's score.
	ClassPart Part = "class"
	// PooledPart is the mean of the backbone's patch tokens after its last norm.
	PooledPart Part = "pooled"
	// PatchPart is each patch against the patches of normals: means of
	// neighbouring patch tokens from the middle of the backbone.
	PatchPart Part = "patch"
	// FrozenClassPart and FrozenPooledPart are those of the backbone before it
	// was fine-tuned; serving computes both networks.
	FrozenClassPart  Part = "frozen-class"
	FrozenPooledPart Part = "frozen-pooled"
)

// Parts lists all parts.
var Parts = []Part{ClassPart, PooledPart, PatchPart, FrozenClassPart, FrozenPooledPart}

// Names for class+patch, and for what is advised: see Advice and Orientation.
const (
	bothParts  = "both"
	autoChoice = "auto"
)

// ParseScore reads what ParseParts does, or "auto", which stands for class and
// leaves the choice to Advice. Nothing means class.
func ParseScore(text string) (parts []Part, auto bool, err error) {
	if text == autoChoice || text == "" {
		return []Part{ClassPart}, text == autoChoice, nil
	}
	parts, err = ParseParts(text)
	return parts, false, err
}

// ParseParts reads a list such as "class" or "class+pooled"; "both" is
// class+patch.
func ParseParts(text string) ([]Part, error) {
	if text == bothParts {
		return []Part{ClassPart, PatchPart}, nil
	}
	var out []Part
	for _, name := range strings.Split(text, "+") {
		out = append(out, Part(strings.TrimSpace(name)))
	}
	return out, checkParts(out)
}

func checkParts(parts []Part) error {
	for i, p := range parts {
		if !slices.Contains(Parts, p) {
			return fmt.Errorf("part %q of the score: unknown, take some of %v joined by +, or %s", p, Parts, bothParts)
		}
		if slices.Contains(parts[:i], p) {
			return fmt.Errorf("part %q of the score is asked for twice", p)
		}
	}
	return nil
}

// frozen is the part of the frozen backbone that corresponds to p.
func (p Part) frozen() Part {
	switch p {
	case ClassPart:
		return FrozenClassPart
	case PooledPart:
		return FrozenPooledPart
	}
	return p
}

// ofFrozen says whether the part is of the backbone before it was tuned.
func (p Part) ofFrozen() bool { return p == FrozenClassPart || p == FrozenPooledPart }

// withoutTuned replaces the tuned parts by frozen ones and names them as those of
// the only model.
func withoutTuned(parts []Part) []Part {
	var out []Part
	for _, p := range parts {
		q := p
		switch p {
		case FrozenClassPart:
			q = ClassPart
		case FrozenPooledPart:
			q = PooledPart
		}
		if !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	return out
}

// vectorParts are the parts that are one vector each, with the class in front
// where there would be none: a detector has a bank of images.
func vectorParts(parts []Part) []Part {
	out := slices.DeleteFunc(slices.Clone(parts), func(p Part) bool { return p == PatchPart })
	if len(out) == 0 {
		out = []Part{ClassPart}
	}
	return out
}

// plain says whether the parts are the model's own embedding.
func plain(parts []Part) bool { return len(parts) == 1 && parts[0] == ClassPart }

// partsName joins the parts' names.
func partsName(parts []Part) string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = string(p)
	}
	return strings.Join(names, "+")
}

// sight is what a composed model gives: parts of the embedding, one after the
// other, and patch vectors of the tuned network.
type sight struct {
	parts []Part // without PatchPart
	layer int    // blocks before the patch vectors are taken; 0: none are
}

// patchSpec says what patch vectors a backbone's file gives, after so many of
// its blocks (0: the usual number). ok is false for a foreign model.
func patchSpec(path string, layer int) (a backbone.Anatomy, at int, ok bool, err error) {
	a, err = backbone.Dissect(path)
	if err != nil || a.Layers == 0 {
		return a, 0, false, err
	}
	if layer == 0 {
		layer = a.PatchLayer
	}
	if layer > a.Layers {
		return a, 0, false, fmt.Errorf("%w: patches after %d blocks of %s, which has %d", ErrPlan, layer, path, a.Layers)
	}
	return a, layer, true, nil
}

// compose writes a model that gives a sight through the tuned and the frozen
// backbone, and returns the grid of its patch vectors, across and down.
func compose(dst, frozen, tuned string, s sight) (grid [2]int, err error) {
	var taps []backbone.Selected
	for _, p := range s.parts {
		t := backbone.Selected{Tap: backbone.Tap{What: backbone.TapClass}}
		if p.frozen() == FrozenPooledPart {
			t.What = backbone.TapPooled
		}
		if p.ofFrozen() {
			t.Network = 1
		}
		taps = append(taps, t)
	}
	if s.layer > 0 {
		taps = append(taps, backbone.Selected{Tap: s.patches()})
	}
	got, err := backbone.Select(dst, []string{tuned, frozen}, taps)
	if err != nil {
		return grid, err
	}
	if s.layer > 0 {
		grid = got.Patches[0].Grid
	}
	return grid, nil
}

// patches is where patch vectors are taken.
func (s sight) patches() backbone.Tap {
	return backbone.Tap{What: backbone.TapPatch, Layer: s.layer, Around: 3}
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
