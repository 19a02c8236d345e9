package backbone

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nearmiss/nearmiss/inference/onnx"
)

// What a Tap takes of a layer.
const (
	TapClass  = "class"  // the class token
	TapPooled = "pooled" // the mean over the patch tokens, or over the plane of a convolutional network
	TapSpread = "spread" // the standard deviation over them, number by number: texture
	TapPatch  = "patch"  // every patch token, or every cell of the plane
)

// Tap is a place in a network where vectors are taken for the score. All taps of
// a model are computed in its one forward pass, which ends behind the last of
// them.
type Tap struct {
	What string // TapClass, TapPooled, TapSpread or TapPatch
	// Layer is the number of encoder blocks before it, or of stages of a
	// convolutional network, 1 to Spec.Layers. 0 is behind all of them and the last
	// norm: where the embedding comes from.
	Layer int
	// Margin is how much of the picture is left out at each edge, in 14ths of its side:
	// tokens at the edges are noisy, and what matters is often in the middle. It counts
	// for TapPooled and TapSpread only.
	Margin int
	// Around is the side of the square of patches whose mean makes a patch vector:
	// 1 is each patch alone, 3 with its neighbours (PatchCore, arXiv 2106.08265,
	// section 3.1), a transformer's tokens being of length 1 before. It counts for
	// TapPatch only.
	Around int
}

// String is the tap's name, which outputs of models and parts of scores have:
// "class", "pooled@6", "spread@4m1", "patch@4", "patch@4x3", "patch@0".
func (t Tap) String() string {
	name := t.What
	if t.Layer > 0 || t.What == TapPatch || t.Margin > 0 {
		name += fmt.Sprintf("@%d", t.Layer)
	}
	if t.Margin > 0 {
		name += fmt.Sprintf("m%d", t.Margin)
	}
	if t.What == TapPatch && t.Around > 1 {
		name += fmt.Sprintf("x%d", t.Around)
	}
	return name
}

// Layers is the number of places, beside the last, where vectors can be taken:
// after the first, second, … of the encoder's blocks, or of a convolutional
// network's stages.
func (s Spec) Layers() int { return len(s.Stages()) }

// PatchLayer is the usual place for patch vectors, 1 to Layers: after the first
// half of a transformer's blocks, which the fine-tune leaves as they are, or
// after the third of a convolutional network's four stages, where the grid is as
// fine as that of a transformer with patches of 16 pixels.
func (s Spec) PatchLayer() int {
	if s.Family == ResNet || s.Family == ConvNeXt {
		return min(3, s.Layers())
	}
	if s.Family == MobileNet {
		return min(5, s.Layers()) // the last on the grid of 16 pixels
	}
	return max(s.Depth/2, 1)
}

// Tapped is what a tap gives: float [N, E], or for TapPatch float [N, P, E], rows of
// the image first, on a grid of so many patches across and down. Each patch vector
// has length 1, but for means of a transformer's tokens, which have it before.
type Tapped struct {
	Tap
	Value *onnx.Value
	Grid  [2]int
}

func (b *builder) checkTaps() error {
	s := b.m.Spec
	for _, t := range b.o.Taps {
		switch {
		case t.Layer < 0 || t.Layer > s.Layers():
			return architectureError("build %s: %s after %d layers: it has %d", s.Name(), t.What, t.Layer, s.Layers())
		case t.What == TapClass && t.Layer > 0 && (s.Tokens() == 0 || s.NoClass), t.What != TapClass && t.Layer == 0 && s.Tokens() == 0:
			return architectureError("build %s: %s is taken of transformers only", s.Name(), t)
		case !slices.Contains([]string{TapClass, TapPooled, TapSpread, TapPatch}, t.What):
			return architectureError("build %s: unknown vectors %q", s.Name(), t.What)
		case t.Margin < 0 || t.Margin > mostMargin || t.Margin > 0 && t.What != TapPooled && t.What != TapSpread:
			return architectureError("build %s: %s without %d 14ths at each edge: pooled and spread leave out up to %d", s.Name(), t.What, t.Margin, mostMargin)
		case t.What == TapPatch && t.Around != 0 && t.Around%2 == 0:
			return architectureError("build %s: the mean of %d×%d patches has no middle one", s.Name(), t.Around, t.Around)
		}
	}
	return nil
}

// last is the number of blocks or stages that the pass has to go through, and
// whether what is behind them is needed, too.
func (b *builder) last() (layers int, head bool) {
	if !b.o.TapsOnly || b.o.Tokens || slices.ContainsFunc(b.o.Taps, func(t Tap) bool { return t.Layer == 0 }) {
		return b.m.Spec.Layers(), true
	}
	for _, t := range b.o.Taps {
		layers = max(layers, t.Layer)
	}
	return layers, false
}

// allTokens says whether more than the class token is needed at a layer or behind.
func (b *builder) allTokens(layer int) bool {
	return b.o.Tokens || slices.ContainsFunc(b.o.Taps, func(t Tap) bool {
		return t.What != TapClass && (t.Layer == 0 || t.Layer >= layer)
	}) || b.m.Spec.MeanPool || b.m.Spec.Distilled
}

// tapTokens takes what is asked for of a transformer's tokens at a layer: x is
// [N·T, D], or with classOnly [N, D].
func (b *builder) tapTokens(x *onnx.Value, layer int, classOnly bool) {
	s := b.m.Spec
	for i, t := range b.o.Taps {
		if t.Layer != layer {
			continue
		}
		out := Tapped{Tap: t}
		switch t.What {
		case TapClass:
			switch out.Value = x; {
			case classOnly:
			case layer == 0: // what the classifier reads
				out.Value = b.embedding(x)
			default:
				out.Value = b.classToken(x)
			}
		case TapPooled, TapSpread:
			y := b.patchTokens(x)
			if margin(t, s.grid()) > 0 {
				y = b.reshape(y, -1, int64(s.grid()), int64(s.grid()), int64(s.Dim))
				y = b.inner(y, t, 1)
				y = b.reshape(y, -1, int64(y.Dim(1)*y.Dim(2)), int64(s.Dim))
			}
			out.Value = b.moment(y, t, 1)
		case TapPatch:
			y := b.unit(b.patchTokens(x))
			if t.Around > 1 { // of unit length first: single tokens are many times as long as others
				y = b.reshape(b.transpose(y, 0, 2, 1), -1, int64(s.Dim), int64(s.grid()), int64(s.grid()))
				y = b.cells(b.around(y, t.Around))
			}
			out.Value, out.Grid = y, [2]int{s.grid(), s.grid()}
		}
		b.taps[i] = out
	}
}

// tapPlane does the same for a plane [N, C, H, W] of a convolutional network.
func (b *builder) tapPlane(x *onnx.Value, layer int) {
	for i, t := range b.o.Taps {
		if t.Layer != layer {
			continue
		}
		out := Tapped{Tap: t}
		switch t.What {
		case TapPooled, TapSpread:
			out.Value = b.moment(b.inner(x, t, 2), t, 2, 3)
		case TapPatch:
			y := x
			if t.Around > 1 {
				y = b.around(x, t.Around)
			}
			out.Value, out.Grid = b.unit(b.cells(y)), [2]int{x.Dim(3), x.Dim(2)}
		}
		b.taps[i] = out
	}
}

// tapHead takes the embedding where the class at the last place is asked for.
func (b *builder) tapHead(embedding *onnx.Value) {
	for i, t := range b.o.Taps {
		if t.Layer == 0 && t.What == TapClass {
			b.taps[i] = Tapped{Tap: t, Value: embedding}
		}
	}
}

// mostMargin leaves two 14ths in the middle.
const mostMargin = 6

// margin is how many patches a tap leaves out at each edge of a side of n.
func margin(t Tap, n int) int {
	return min(int(math.Round(float64(t.Margin)*float64(n)/14)), (n-1)/2)
}

// inner is what a tap takes of a plane whose rows are along an axis and whose
// columns along the next.
func (b *builder) inner(x *onnx.Value, t Tap, axis int) *onnx.Value {
	for a := axis; a < axis+2; a++ {
		if m, n := margin(t, x.Dim(a)), x.Dim(a); m > 0 {
			x = b.g.Slice(x, a, m, n-m)
		}
	}
	return x
}

// moment is the mean or the standard deviation over some axes.
func (b *builder) moment(x *onnx.Value, t Tap, axes ...int) *onnx.Value {
	if t.What == TapPooled {
		return b.g.ReduceMean(x, false, axes...)
	}
	defer b.g.Scope("spread")()
	off := b.g.Sub(x, b.g.ReduceMean(x, true, axes...))
	return b.g.Sqrt(b.g.ReduceMean(b.g.Mul(off, off), false, axes...))
}

// patchTokens are [N, P, D] of [N·T, D].
func (b *builder) patchTokens(x *onnx.Value) *onnx.Value {
	s := b.m.Spec
	x = b.reshape(x, -1, int64(s.Tokens()), int64(s.Dim))
	return b.g.Slice(x, 1, s.Lead(), s.Tokens())
}

// around is the mean of each cell of a plane and its neighbours in a square, as
// far as they are in the image: of columns and then of rows, since all columns of a
// square have as many cells.
func (b *builder) around(x *onnx.Value, side int) *onnx.Value {
	pad := side / 2
	for _, across := range []int{0, 1} {
		kernel, pads := []int{1, 1}, []int{0, 0, 0, 0}
		kernel[across], pads[across], pads[2+across] = side, pad, pad
		x = b.g.Op("AveragePool", onnx.Attrs{"kernel_shape": kernel, "pads": pads, "count_include_pad": 0}, x)
	}
	return x
}

// cells are the cells of a plane: [N, C, H, W] → [N, H·W, C].
func (b *builder) cells(x *onnx.Value) *onnx.Value {
	c, h, w := x.Dim(1), x.Dim(2), x.Dim(3)
	return b.transpose(b.reshape(x, -1, int64(c), int64(h*w)), 0, 2, 1)
}

// unit scales the vectors along the last axis to length 1.
func (b *builder) unit(x *onnx.Value) *onnx.Value {
	defer b.g.Scope("unit")()
	return b.g.Op("Div", nil, x, b.g.Op("Max", nil, b.g.Reduce("ReduceL2", x, true, 2), b.floats([]float32{1e-12})))
}

// Anatomy is what a model's file can give beside its embedding.
type Anatomy struct {
	// Layers is the number of places where vectors can be taken; 0: the model gives
	// its embedding only.
	Layers int
	// Class says whether there is a class token at all of them.
	Class bool
	// PatchLayer is the usual place for patch vectors.
	PatchLayer int
	// Foreign models give behind all layers their embedding only.
	Foreign bool
	// Oblong says that patches of some layer lie in a grid that is no square, of which
	// tiles are not put together.
	Oblong bool
}

// Vectors lists the taps of one vector that the model has: for each layer the
// class and the pooled token, and those after the last norm.
func (a Anatomy) Vectors() []Tap {
	var out []Tap
	for l := range a.Layers + 1 {
		layer := (l + 1) % (a.Layers + 1) // 1, …, Layers, 0
		if a.Class || layer == 0 {
			out = append(out, Tap{What: TapClass, Layer: layer})
		}
		if a.Class && !a.Foreign || layer > 0 {
			out = append(out, Tap{What: TapPooled, Layer: layer})
		}
	}
	return out
}

// Dissect says what the model at path can give. A foreign model in which no layers
// were found gives its embedding.
func Dissect(path string) (Anatomy, error) {
	props, err := readProperties(path)
	if err != nil {
		return Anatomy{}, err
	}
	info, _, err := readMetadata(props)
	if err != nil {
		return Anatomy{}, fmt.Errorf("read %s: %w", path, err)
	}
	if s := info.Spec; s != nil {
		return Anatomy{Layers: s.Layers(), Class: s.Tokens() > 0 && !s.NoClass, PatchLayer: s.PatchLayer()}, nil
	}
	layers, err := readLayers(props)
	if err != nil {
		return Anatomy{}, fmt.Errorf("read %s: %w", path, err)
	}
	return foreignAnatomy(layers), nil
}

// Selected is a tap of one of several networks of one architecture.
type Selected struct {
	Network int // place among the paths
	Tap
}

// Selection is what a model gives that [Select] wrote.
type Selection struct {
	// Dims are the lengths of the vectors in the embedding, in their order.
	Dims []int
	// Patches are the outputs of patch vectors.
	Patches []PatchOutput
}

// PatchOutput is an output of patch vectors, float [N, Grid[0]·Grid[1], Dim].
type PatchOutput struct {
	Name string
	Grid [2]int // across and down
	Dim  int
}

// Select writes a model to dst that embeds an image by the networks at
// paths and gives the vectors of some taps: those of TapClass and TapPooled one
// after the other as its embedding, those of TapPatch as outputs of their own. It
// computes nothing that no tap needs.
func Select(dst string, paths []string, taps []Selected) (_ Selection, err error) {
	c := selection{g: onnx.New("selection"), paths: paths, taps: taps}
	if path, only, ok := c.foreign(); ok {
		s, err := selectForeign(dst, path, only)
		if err != nil {
			return s, fmt.Errorf("take vectors of %s: %w", path, err)
		}
		return s, nil
	}
	defer func() {
		for _, f := range c.files {
			_ = f.Close()
		}
		if err != nil {
			err = fmt.Errorf("take vectors of %s: %w", strings.Join(paths, " and "), err)
		}
	}()
	return c.write(dst)
}

type selection struct {
	g     *onnx.Graph
	paths []string
	taps  []Selected
	image *onnx.Value
	first *Model
	files []*onnx.Graph // whose data the weights alias
}

// foreign says whether all taps are of one foreign model.
func (c *selection) foreign() (path string, taps []Tap, ok bool) {
	for _, t := range c.taps {
		if t.Network != c.taps[0].Network {
			return "", nil, false
		}
		taps = append(taps, t.Tap)
	}
	if len(taps) == 0 || c.taps[0].Network >= len(c.paths) {
		return "", nil, false
	}
	path = c.paths[c.taps[0].Network]
	info, _, err := ReadMetadata(path)
	return path, taps, err == nil && info.Family == Foreign && info.Spec == nil
}

func (c *selection) write(dst string) (Selection, error) {
	fail := func(err error) (Selection, error) { return Selection{}, err }
	found := make([]Tapped, len(c.taps))
	for n := range c.paths {
		var want []Tap
		for _, t := range c.taps {
			if t.Network == n {
				want = append(want, t.Tap)
			}
		}
		if len(want) == 0 {
			continue
		}
		got, err := c.network(n, want)
		if err != nil {
			return fail(err)
		}
		for i, t := range c.taps {
			if t.Network == n {
				found[i], got = got[0], got[1:]
			}
		}
	}
	var s Selection
	var vectors []*onnx.Value
	for i, f := range found {
		if f.What != TapPatch {
			vectors = append(vectors, f.Value)
			s.Dims = append(s.Dims, f.Value.Dim(1))
			continue
		}
		out := PatchOutput{Name: f.Tap.String(), Grid: f.Grid, Dim: f.Value.Dim(2)}
		if c.taps[i].Network > 0 {
			out.Name = fmt.Sprintf("net%d-%s", c.taps[i].Network+1, out.Name)
		}
		c.g.Output(out.Name, f.Value)
		s.Patches = append(s.Patches, out)
	}
	if len(vectors) == 0 {
		return fail(architectureError("a model needs one vector of an image at least"))
	}
	out := vectors[0]
	if len(vectors) > 1 {
		out = c.g.Concat(1, vectors...)
	}
	c.g.Output(OutputEmbedding, out)
	c.image.SetDimName(0, "N")
	for _, v := range c.g.Outputs() {
		v.SetDimName(0, "N")
	}
	info := c.first.Info()
	if len(c.taps) > 1 || c.taps[0].Tap != (Tap{What: TapClass}) {
		info.Spec, info.Tokens, info.Dim = nil, 0, out.Dim(1) // no longer that architecture
	}
	if err := c.g.Err(); err != nil {
		return fail(err)
	}
	if err := setMetadata(c.g, c.first.Preprocess, info); err != nil {
		return fail(err)
	}
	return s, c.g.WriteFile(dst)
}

func (c *selection) network(n int, want []Tap) ([]Tapped, error) {
	file, err := onnx.ReadFile(c.paths[n], onnx.BindBatch(1))
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, file)
	own, ok, err := FromONNX(file)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, architectureError("%s is a foreign model: vectors of it and of its fine-tuned copy are not had from one model", c.paths[n])
	}
	prefix := ""
	if c.first == nil {
		c.first, c.image = own, c.g.Input(InputImage, onnx.Uint8, 1, own.Spec.Size, own.Spec.Size, 3)
	} else {
		prefix = fmt.Sprintf("net%d/", n+1)
	}
	f, err := own.Forward(c.g, c.image, ForwardOptions{
		Taps: want, TapsOnly: true,
		Param: func(w onnx.Tensor) *onnx.Value {
			w.Name = prefix + w.Name
			return c.g.Initializer(w)
		},
	})
	return f.Taps, err
}

var tapText = regexp.MustCompile(`^([a-z]+)(?:@([0-9]{1,4})(?:m([0-9]{1,2}))?(?:x([0-9]{1,2}))?)?$`)

// ParseTap reads what Tap.String gives; Around is 1 where it says nothing.
func ParseTap(text string) (Tap, error) {
	m := tapText.FindStringSubmatch(text)
	if m == nil {
		return Tap{}, fmt.Errorf("vectors %q: take them after a number of layers, as in class@6, perhaps without the edges, as in pooled@6m1, or with neighbours, as in patch@6x3", text)
	}
	number := func(s string) int {
		n, _ := strconv.Atoi(s) // digits, or nothing
		return n
	}
	t := Tap{What: m[1], Layer: number(m[2]), Margin: number(m[3]), Around: number(m[4])}
	switch {
	case t.What == TapPatch && m[4] == "":
		t.Around = 1
	case t.What == TapPatch && t.Around < 1, t.What != TapPatch && m[4] != "":
		return Tap{}, fmt.Errorf("vectors %q: patches have 1 or more neighbours across, others none", text)
	}
	return t, nil
}
