package backbone

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// Pooling says how a foreign output of rank 3 or 4 becomes one vector.
type Pooling string

const (
	// PoolClass takes token 0 of [N, T, D].
	PoolClass Pooling = "class"
	// PoolMean averages the tokens of [N, T, D] or the plane of [N, C, H, W].
	PoolMean Pooling = "mean"
	// PoolNone takes [N, D] as it is.
	PoolNone Pooling = "none"
)

// Output is what a model gave when it was run.
type Output struct {
	Shape []int
	Data  []float32 // nil for other than float32
}

// minDim is the least length of vectors that the score may use.
const minDim = 8

// foreign is a foreign model under import.
type foreign struct {
	*wire.Model
	b          []byte
	o          ImportOptions
	dir        string // of the model's external data
	in         wire.ValueInfo
	size       int
	nchw       bool
	pre        imaging.Preprocess
	from       string // where that was taken from
	unprepared error  // it is not known
	rename     map[string]string
	graph      *onnx.Graph // nil where onnx cannot read the model
}

// openForeign parses a foreign model and settles its input.
func openForeign(b []byte, o ImportOptions) (*foreign, error) {
	m, err := wire.Parse(b)
	if err != nil {
		return nil, err
	}
	f := &foreign{Model: m, b: b, o: o, dir: filepath.Dir(o.path)}
	if f.in, f.size, f.nchw, err = imageInput(m, o); err != nil {
		return nil, err
	}
	f.pre, f.from, f.unprepared = foreignPreprocess(f.in, f.size, o)
	// Free the two public names, and give the input its own where it takes bytes.
	f.rename = map[string]string{}
	for _, public := range []string{InputImage, OutputEmbedding} {
		if _, declared := m.Values[public]; declared || m.Produced[public] {
			f.rename[public] = "nearmiss/was/" + public
		}
	}
	if f.in.Elem == wire.Uint8 {
		f.rename[f.in.Name] = InputImage
	}
	return f, nil
}

func (f *foreign) inner(name string) string {
	if n, ok := f.rename[name]; ok {
		return n
	}
	return name
}

// read decodes the model with its input bound to one image, for the shapes of
// what is inside: shapes that the graph computes are folded there. A model that
// onnx cannot read is not at fault.
func (f *foreign) read() error {
	var outputs []wire.ValueInfo
	for _, t := range f.Outputs {
		t.Name = f.inner(t.Name)
		outputs = append(outputs, t)
	}
	b, err := f.assemble(nil, outputs, 1, nil, true)
	if err != nil {
		return err
	}
	if f.graph, err = onnx.Decode(b, onnx.BindBatch(1), onnx.ExternalDir(f.dir)); err != nil {
		f.graph = nil // ONNX Runtime may still know its operators
	}
	return nil
}

func (f *foreign) close() {
	if f.graph != nil {
		_ = f.graph.Close()
	}
}

// shape is that of a value for one image; nil where it is not known.
func (f *foreign) shape(name string) []int {
	if f.graph != nil {
		if v := f.graph.Lookup(f.inner(name)); v != nil {
			return v.Shape()
		}
	}
	t := f.Values[name]
	if !t.Known {
		return nil
	}
	out := make([]int, len(t.Dims))
	for i, d := range t.Dims {
		if out[i] = int(d); i == 0 {
			out[i] = 1
		}
		if out[i] < 1 {
			return nil
		}
	}
	return out
}

// run gives the value of a model for so many images by running it.
func (f *foreign) run(name string, images int) (Output, error) {
	b, err := f.assemble(nil, []wire.ValueInfo{{Name: f.inner(name), Elem: max(f.Values[name].Elem, wire.Float)}}, -1, nil, false)
	if err != nil {
		return Output{}, err
	}
	return f.runBytes(b, images, f.inner(name))
}

func (f *foreign) runBytes(b []byte, images int, name string) (Output, error) {
	dir, err := os.MkdirTemp(f.o.work, ".import-")
	if err != nil {
		return Output{}, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "model.onnx")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return Output{}, err
	}
	outs, err := f.o.Run(path, images)
	if err != nil {
		return Output{}, err
	}
	out, ok := outs[name]
	if !ok {
		return Output{}, fmt.Errorf("the model gave no %q", name)
	}
	return out, nil
}

// chosen is the value that becomes the embedding.
type chosen struct {
	wire.ValueInfo
	pool Pooling
	dim  int
	rank int
}

// embedding finds the value that becomes the embedding, and its length.
func (f *foreign) embedding() (c chosen, err error) {
	fail := func(format string, a ...any) (chosen, error) { return c, architectureError(format, a...) }
	var names []string
	for _, v := range f.Outputs {
		names = append(names, v.Name)
	}
	name := f.o.Output
	if name == "" {
		if len(names) == 1 {
			name = names[0]
		}
		for _, usual := range []string{"last_hidden_state", "pooler_output", "image_embeds", OutputEmbedding} {
			if slices.Contains(names, usual) {
				name = usual
			}
		}
	}
	if name == "" {
		return fail("cannot choose the embedding among the outputs %q: name one with --output", names)
	}
	if !f.Produced[name] {
		return fail("no node produces %q; the outputs are %q: name one of them, or a value inside, with --output", name, names)
	}
	isOutput := slices.ContainsFunc(f.Outputs, func(t wire.ValueInfo) bool { return t.Name == name })
	var declared bool
	if c.ValueInfo, declared = f.Values[name]; !declared || !isOutput {
		c.ValueInfo = wire.ValueInfo{Name: name, Elem: wire.Float}
		if f.graph != nil {
			if v := f.graph.Lookup(f.inner(name)); v != nil {
				c.Elem = int(v.Type())
			}
		}
	}
	shape := f.shape(name)
	if shape == nil && f.o.Run != nil {
		out, err := f.run(name, 1)
		if err != nil {
			return fail("the shape of %q is found neither in the model nor by running it: %v", name, err)
		}
		shape = out.Shape
	}
	if shape == nil {
		return fail("the shape of %q is not to be had from the model; install ONNX Runtime (nearmiss runtime install), so that import can run the model once", name)
	}
	c.rank, c.pool = len(shape), f.o.Pool
	c.pool = cmp.Or(c.pool, map[int]Pooling{2: PoolNone, 3: PoolClass, 4: PoolMean}[c.rank])
	if ok := map[Pooling]bool{PoolNone: c.rank == 2, PoolClass: c.rank == 3, PoolMean: c.rank == 3 || c.rank == 4}; !ok[c.pool] {
		return fail("pooling %q does not fit %q of shape %v: choose with --pool, or another value with --output", c.pool, name, shape)
	}
	c.dim = shape[c.rank-1]
	if c.rank == 4 {
		c.dim = shape[1]
	}
	if c.dim < 2 && f.o.Output == "" {
		return fail("%q of shape %v gives embeddings of %d numbers, too few to tell images apart: it looks like a map or a score, not like features; name the value that holds these with --output%s",
			name, shape, c.dim, f.suggest())
	}
	if c.dim < 1 {
		return fail("%q of shape %v gives embeddings of %d numbers", name, shape, c.dim)
	}
	if slices.Contains([]int{1000, 21841, 21843}, c.dim) {
		f.o.note("%q has %d numbers, which looks like classes: a value in front of the classifier is better (--output)", name, c.dim)
	}
	return c, nil
}

// suggest names values that could be meant.
func (f *foreign) suggest() string {
	layers := f.layers()
	if len(layers) == 0 {
		return ""
	}
	return fmt.Sprintf(" (the last of %d blocks gives %q)", len(layers), f.outer(layers[len(layers)-1].Value))
}

// outer is the name that the original file has for a value.
func (f *foreign) outer(name string) string {
	for from, to := range f.rename {
		if to == name {
			return from
		}
	}
	return name
}

// prologue are nodes from the uint8 image to the model's own input.
func (f *foreign) prologue(s *splice) {
	if f.in.Elem == wire.Uint8 {
		return
	}
	x := s.node("Cast", []string{InputImage}, "", intAttr("to", wire.Float))
	scale, shift := make([]float32, 3), make([]float32, 3)
	for c := range 3 {
		scale[c] = float32(1 / (255 * f.pre.Std[c]))
		shift[c] = float32(-f.pre.Mean[c] / f.pre.Std[c])
	}
	x = s.node("Mul", []string{x, s.floats("nearmiss/scale", scale)}, "")
	steps := 0 // what follows the Add
	if f.nchw {
		steps++
	}
	if f.in.Elem == wire.Float16 {
		steps++
	}
	end := func() string { // the last step produces the model's own input
		if steps--; steps < 0 {
			return f.inner(f.in.Name)
		}
		return ""
	}
	x = s.node("Add", []string{x, s.floats("nearmiss/shift", shift)}, end())
	if f.nchw {
		x = s.node("Transpose", []string{x}, end(), intsAttr("perm", 0, 3, 1, 2))
	}
	if f.in.Elem == wire.Float16 {
		s.node("Cast", []string{x}, end(), intAttr("to", wire.Float16))
	}
}

// epilogue are nodes from the chosen value to the embedding.
func (f *foreign) epilogue(c chosen) *splice {
	s := &splice{prefix: "pool"}
	y := f.inner(c.Name)
	half := c.Elem == wire.Float16
	end := OutputEmbedding
	if half {
		end = ""
	}
	switch {
	case c.pool == PoolNone:
		y = s.node("Identity", []string{y}, end)
	case c.pool == PoolClass:
		y = s.node("Gather", []string{y, s.tensor("nearmiss/class", 7, make([]byte, 8))}, end, intAttr("axis", 1))
	case c.rank == 4:
		y = s.node("Flatten", []string{s.node("GlobalAveragePool", []string{y}, "")}, end, intAttr("axis", 1))
	default:
		y = s.node("Identity", []string{s.mean(f.Opset, y, 1, false)}, end)
	}
	if half {
		s.node("Cast", []string{y}, OutputEmbedding, intAttr("to", wire.Float))
	}
	return s
}

// assemble writes the model with its input replaced, end behind its nodes and
// other outputs. batch −1 leaves the number of images open. Weights in external
// files are brought in, but for outside, a model that is only inspected.
func (f *foreign) assemble(end *splice, outputs []wire.ValueInfo, batch int64, metadata map[string]any, outside bool) ([]byte, error) {
	start := &splice{prefix: "image"}
	f.prologue(start)
	if end == nil {
		end = &splice{}
	}
	var g []byte
	for _, n := range start.nodes {
		g = wire.AppendBytes(g, wire.GraphNode, n)
	}
	shared, err := sharedInitializers(f.Model.Graph)
	if err != nil {
		return nil, err
	}
	weights := &inliner{files: onnx.Beside{Dir: f.dir}, keep: outside}
	defer weights.files.Close()
	put := func(t []byte) error {
		t, err := weights.inline(renameField(t, wire.TensorName, f.rename))
		g = wire.AppendBytes(g, wire.GraphInitializer, t)
		return err
	}
	err = wire.Each(f.Model.Graph, func(fd wire.Field) error {
		switch fd.Num {
		case wire.GraphNode:
			own, err := unshare(fd.Val, shared)
			if err != nil {
				return err
			}
			if own != nil {
				return put(own)
			}
			n, err := renameNode(fd.Val, f.rename, 0)
			if err != nil {
				return err
			}
			g = wire.AppendBytes(g, wire.GraphNode, n)
		case wire.GraphInput:
			t, err := wire.ParseValueInfo(fd.Val)
			if err != nil {
				return err
			}
			if t.Name != f.in.Name { // an initialiser's
				g = wire.AppendBytes(g, wire.GraphInput, renameField(fd.Val, wire.InfoName, f.rename))
			}
		case wire.GraphOutput:
		case wire.GraphInitializer:
			return put(fd.Val)
		case wire.GraphValueInfo:
			// Shapes that the file declares are not to be trusted for another input, and
			// nobody needs them.
		default:
			g = append(g, fd.Raw...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, n := range end.nodes {
		g = wire.AppendBytes(g, wire.GraphNode, n)
	}
	for _, t := range slices.Concat(start.tensors, end.tensors) {
		g = wire.AppendBytes(g, wire.GraphInitializer, t)
	}
	side := int64(f.size)
	g = wire.AppendBytes(g, wire.GraphInput, tensorInfo(InputImage, wire.Uint8, batch, side, side, 3).Encode())
	for _, t := range outputs {
		g = wire.AppendBytes(g, wire.GraphOutput, t.Encode())
	}
	if metadata == nil {
		return f.model(g, nil)
	}
	layers, _ := metadata[MetadataLayers].([]Layer)
	if g, err = prune(g, nil, &splice{}, outputs, layers); err != nil {
		return nil, err
	}
	info := metadata[MetadataBackbone].(Info)
	info.Params = 0
	err = wire.EachOf(g, wire.GraphInitializer, func(fd wire.Field) error {
		name, elements, _, err := wire.Initializer(fd.Val)
		if !strings.HasPrefix(name, "nearmiss/") {
			info.Params += elements
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	f.Params = info.Params
	metadata[MetadataBackbone] = info
	return f.model(g, metadata)
}

// model puts a graph into the model's frame.
func (f *foreign) model(graph []byte, metadata map[string]any) (out []byte, err error) {
	out, err = wire.Rewrite(f.b, func(out []byte, fd wire.Field) ([]byte, error) {
		switch fd.Num {
		case wire.ModelGraph:
			return wire.AppendBytes(out, wire.ModelGraph, graph), nil
		case wire.ModelMetadata:
			if key, _, err := wire.Entry(fd.Val); err != nil || strings.HasPrefix(key, "nearmiss.") {
				return out, err
			}
		}
		return append(out, fd.Raw...), nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range []string{MetadataBackbone, MetadataPreprocess, MetadataLayers} {
		v, ok := metadata[key]
		if !ok {
			continue
		}
		j, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		out = wire.AppendBytes(out, wire.ModelMetadata, wire.AppendEntry(nil, key, string(j)))
	}
	if len(out) > math.MaxInt32 {
		return nil, architectureError("the model reaches the 2 GiB of one ONNX file: export it in half precision")
	}
	return out, nil
}

// result is a foreign model that is ready to be written.
type result struct {
	model  []byte
	info   Info
	pre    imaging.Preprocess
	from   string
	layers []Layer
}

// importForeign rewrites a foreign model so that it has the surface of this
// package's models. All its own nodes, initialisers and operator sets are kept.
func importForeign(b []byte, o ImportOptions) (r result, err error) {
	f, err := openForeign(b, o)
	if err != nil {
		return r, err
	}
	defer f.close()
	if err := f.read(); err != nil {
		return r, err
	}
	c, err := f.embedding()
	if err != nil {
		return r, err
	}
	layers, err := f.chooseLayers()
	if err != nil {
		return r, err
	}
	if f.unprepared != nil {
		return r, f.unprepared
	}
	batch := int64(-1)
	if f.in.Known && len(f.in.Dims) == 4 {
		batch = f.in.Dims[0]
	}
	r.pre, r.from, r.layers = f.pre, f.from, layers
	for {
		r.info = Info{Name: o.Name, Family: Foreign, Format: "onnx", Size: f.size, Dim: c.dim, Params: f.Params}
		metadata := map[string]any{MetadataBackbone: r.info, MetadataPreprocess: r.pre}
		if len(layers) > 0 {
			metadata[MetadataLayers] = layers
		}
		out := tensorInfo(OutputEmbedding, wire.Float, batch, int64(c.dim))
		if r.model, err = f.assemble(f.epilogue(c), []wire.ValueInfo{out}, batch, metadata, false); err != nil {
			return r, err
		}
		r.info.Params = f.Params
		if o.Run == nil {
			return r, nil
		}
		again, err := f.try(r.model, &batch, &c.dim)
		if err != nil || !again {
			return r, err
		}
	}
}

// try runs the finished model on one image and on two. A model that takes one
// only is declared as such, which again says.
func (f *foreign) try(model []byte, batch *int64, dim *int) (again bool, err error) {
	n := max(int(*batch), 1)
	one, err := f.runBytes(model, n, OutputEmbedding)
	if err != nil {
		return false, architectureError("the model does not run: %v", err)
	}
	if len(one.Shape) != 2 || one.Shape[0] != n || one.Shape[1] < 1 {
		return false, architectureError("the embedding of %d images has the shape %v", n, one.Shape)
	}
	if one.Shape[1] != *dim {
		*dim = one.Shape[1]
		return true, nil
	}
	if *batch > 0 {
		return false, nil
	}
	two, err := f.runBytes(model, 2, OutputEmbedding)
	if err == nil && slices.Equal(two.Shape, []int{2, *dim}) && agree(one.Data, two.Data[:*dim]) {
		return false, nil
	}
	f.o.note("the model takes one image at a time, though it says otherwise: it is run so, which is slower; export it with a free first dimension")
	*batch = 1
	return true, nil
}

// agree says whether two vectors are the same but for rounding.
func agree(a, b []float32) bool {
	scale, worst := 0.0, 0.0
	for i := range a {
		scale = max(scale, math.Abs(float64(a[i])))
		worst = max(worst, math.Abs(float64(a[i]-b[i])))
	}
	return worst <= 1e-2*scale
}
