package backbone

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// MetadataLayers holds the JSON of a foreign model's [Layer] list, in order of
// depth.
const MetadataLayers = "nearmiss.layers"

// Layouts of a foreign model's layers.
const (
	layoutTokens = "tokens" // [N, Lead + Width·Height, Dim]
	layoutNCHW   = "nchw"   // [N, Dim, Height, Width]
)

// Layer is a value in a foreign model whose vectors the score may use.
type Layer struct {
	Value  string `json:"value"`  // its name in the graph
	Layout string `json:"layout"` // "tokens" or "nchw"
	Lead   int    `json:"lead"`   // tokens in front of the patches
	Class  bool   `json:"class"`  // the first of these is a class token
	Width  int    `json:"width"`  // patches across
	Height int    `json:"height"` // and down
	Dim    int    `json:"dim"`    // of each
}

// maxLead bounds the tokens in front of the patches.
const maxLead = 16

// chooseLayers are those that are asked for, or found by the structure.
func (f *foreign) chooseLayers() ([]Layer, error) {
	if len(f.o.Layers) == 0 {
		return f.layers(), nil
	}
	var out []Layer
	grids := f.grids()
	for _, name := range f.o.Layers {
		if !f.Produced[name] {
			return nil, architectureError("no node produces the layer %q", name)
		}
		shape := f.shape(name)
		if shape == nil && f.o.Run != nil {
			got, err := f.run(name, 1)
			if err != nil {
				return nil, architectureError("the shape of the layer %q is found neither in the model nor by running it: %v", name, err)
			}
			shape = got.Shape
		}
		l, ok := layerOf(f.inner(name), shape, grids)
		if !ok {
			return nil, architectureError("the layer %q has the shape %v, want tokens [N, T, D] on a square grid or a plane [N, C, H, W]", name, shape)
		}
		out = append(out, l)
	}
	return out, nil
}

// layerOf makes a layer of a value of a shape, for one image.
func layerOf(name string, shape []int, grids [][2]int) (Layer, bool) {
	switch {
	case len(shape) == 4 && shape[2] > 1 && shape[3] > 1:
		return Layer{Value: name, Layout: layoutNCHW, Width: shape[3], Height: shape[2], Dim: shape[1]}, true
	case len(shape) == 3:
		for _, g := range grids {
			if lead := shape[1] - g[0]*g[1]; lead >= 0 && lead <= maxLead {
				return Layer{Value: name, Layout: layoutTokens, Lead: lead, Class: lead > 0, Width: g[1], Height: g[0], Dim: shape[2]}, true
			}
		}
		for lead := range maxLead + 1 {
			if side, ok := squareRoot(shape[1] - lead); ok && side > 1 {
				return Layer{Value: name, Layout: layoutTokens, Lead: lead, Class: lead > 0, Width: side, Height: side, Dim: shape[2]}, true
			}
		}
	}
	return Layer{}, false
}

// grids are the planes, down and across, that convolutions make of the image
// with the stride of their kernel: where patches become tokens.
func (f *foreign) grids() (out [][2]int) {
	if f.graph == nil {
		return nil
	}
	for _, n := range f.graph.Nodes() {
		if n.OpType != "Conv" || len(n.Outputs) != 1 {
			continue
		}
		if s := n.Outputs[0].Shape(); len(s) == 4 && s[2] > 1 && s[3] > 1 && n.Input(1).Dim(2) > 1 {
			out = append(out, [2]int{s[2], s[3]})
		}
	}
	return out
}

// layers finds the ends of a transformer's blocks, or else of the stages of a
// convolutional network, by the graph's structure.
func (f *foreign) layers() []Layer {
	if f.graph == nil {
		return nil
	}
	if blocks := f.blocks(); len(blocks) > 0 {
		return blocks
	}
	return f.stages()
}

// blocks are the ends of a transformer's encoder blocks: the stream of tokens is
// a chain of additions, of what attention gives and of what a perceptron gives; a
// block ends with the second.
func (f *foreign) blocks() []Layer {
	grids := f.grids()
	stream := map[*onnx.Value]bool{} // results of the chain's additions
	var out []Layer
	var shape []int
	attended := false
	for _, n := range f.graph.Nodes() {
		if n.OpType != "Add" || len(n.Outputs) != 1 {
			continue
		}
		y := n.Outputs[0]
		s := y.Shape()
		if len(s) != 3 || s[1] < 5 || s[2] < minDim || shape != nil && !slices.Equal(shape, s) {
			continue
		}
		a, b := n.Input(0), n.Input(1)
		if !slices.Equal(a.Shape(), s) || !slices.Equal(b.Shape(), s) {
			continue
		}
		attention, ok := branch(a, b)
		if !ok {
			if attention, ok = branch(b, a); !ok {
				continue
			}
		}
		stream[y] = true
		if attention {
			shape, attended = s, true
			continue
		}
		if !attended {
			continue
		}
		attended = false
		l, ok := layerOf(y.Name(), s, grids)
		if !ok {
			return nil
		}
		out = append(out, l)
	}
	return out
}

// maxBranch bounds the nodes of one branch of a residual block.
const maxBranch = 400

// branch says whether y is computed from x, and whether by attention.
func branch(x, y *onnx.Value) (attention, ok bool) {
	seen := map[*onnx.Value]bool{}
	todo := []*onnx.Value{y}
	for len(todo) > 0 && len(seen) < maxBranch {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if v == x {
			ok = true
			continue
		}
		if v == nil || seen[v] || v.Producer() == nil {
			continue
		}
		seen[v] = true
		n := v.Producer()
		switch n.OpType {
		case "Softmax", "Attention", "MultiHeadAttention":
			attention = true
		}
		todo = append(todo, n.Inputs...)
	}
	return attention, ok
}

// stages are the last planes of a convolutional network before each that is
// smaller, of what the embedding is computed from.
func (f *foreign) stages() []Layer {
	live := map[*onnx.Value]bool{}
	var mark func(v *onnx.Value)
	mark = func(v *onnx.Value) {
		for v != nil && !live[v] {
			live[v] = true
			n := v.Producer()
			if n == nil {
				return
			}
			for _, in := range n.Inputs[min(1, len(n.Inputs)):] {
				mark(in)
			}
			v = n.Input(0)
		}
	}
	for _, v := range f.graph.Outputs() {
		mark(v)
	}
	last := map[[2]int]Layer{}
	var order [][2]int
	for _, n := range f.graph.Nodes() {
		if len(n.Outputs) != 1 || !live[n.Outputs[0]] || !slices.Contains([]string{"Add", "Relu", "Conv", "Clip", "Mul", "HardSwish", "Concat", "BatchNormalization"}, n.OpType) {
			continue
		}
		y := n.Outputs[0]
		s := y.Shape()
		if y.Type() != onnx.Float || len(s) != 4 || s[1] < minDim || s[2] < 2 || s[3] < 2 || s[2] > f.size/4 || s[3] > f.size/4 {
			continue
		}
		key := [2]int{s[2], s[3]}
		if n := len(order); n > 0 && order[n-1] != key {
			if key[0] > order[n-1][0] { // a decoder begins
				break
			}
		}
		if _, seen := last[key]; !seen {
			order = append(order, key)
		}
		last[key], _ = layerOf(y.Name(), s, nil)
	}
	var out []Layer
	for _, key := range order {
		out = append(out, last[key])
	}
	return out
}

// readLayers are the layers that a foreign model's file names.
func readLayers(metadata map[string]string) ([]Layer, error) {
	text, ok := metadata[MetadataLayers]
	if !ok {
		return nil, nil
	}
	var out []Layer
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, formatError("metadata %s: %v", MetadataLayers, err)
	}
	for _, l := range out {
		if l.Value == "" || l.Layout != layoutTokens && l.Layout != layoutNCHW || l.Width < 1 || l.Height < 1 || l.Dim < 1 || l.Lead < 0 || l.Lead > maxLead {
			return nil, formatError("metadata %s: the layer %+v makes no sense", MetadataLayers, l)
		}
	}
	return out, nil
}

// foreignAnatomy is what a foreign model's file gives.
func foreignAnatomy(layers []Layer) Anatomy {
	a := Anatomy{Layers: len(layers), Foreign: true}
	if a.Layers == 0 {
		return a
	}
	a.Class = !slices.ContainsFunc(layers, func(l Layer) bool { return !l.Class })
	a.Oblong = slices.ContainsFunc(layers, func(l Layer) bool { return l.Width != l.Height })
	a.PatchLayer = max(a.Layers/2, 1)
	if layers[0].Layout == layoutNCHW {
		a.PatchLayer = min(3, a.Layers)
	}
	return a
}

// selectForeign does for a foreign model what [Select] does for one of this
// package, in wire form.
func selectForeign(dst, path string, taps []Tap) (s Selection, err error) {
	fail := func(err error) (Selection, error) { return Selection{}, err }
	data, unmap, err := mapFile(path)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = unmap() }()
	m, err := wire.Parse(data)
	if err != nil {
		return fail(err)
	}
	if len(m.External) > 0 {
		return fail(architectureError("%s has its weights in other files: import it anew", path))
	}
	info, pre, err := readMetadata(m.Metadata)
	if err != nil {
		return fail(err)
	}
	layers, err := readLayers(m.Metadata)
	if err != nil {
		return fail(err)
	}
	end := &splice{prefix: "tap"}
	var vectors []string
	var outputs []wire.ValueInfo
	batch := int64(-1)
	if len(m.Inputs) == 1 && len(m.Inputs[0].Dims) == 4 {
		batch = m.Inputs[0].Dims[0]
	}
	rename := map[string]string{OutputEmbedding: "nearmiss/whole"}
	for _, t := range taps {
		v, l, err := tapForeign(end, m, layers, t)
		if err != nil {
			return fail(err)
		}
		if t.What != TapPatch {
			vectors = append(vectors, v)
			d := l.Dim
			if t.Layer == 0 {
				d = info.Dim
			}
			s.Dims = append(s.Dims, d)
			continue
		}
		end.node("Identity", []string{v}, t.String())
		outputs = append(outputs, tensorInfo(t.String(), wire.Float, batch, int64(l.Width*l.Height), int64(l.Dim)))
		s.Patches = append(s.Patches, PatchOutput{Name: t.String(), Grid: [2]int{l.Width, l.Height}, Dim: l.Dim})
	}
	if len(vectors) == 0 {
		return fail(architectureError("a model needs one vector of an image at least"))
	}
	total := 0
	for _, d := range s.Dims {
		total += d
	}
	if len(vectors) == 1 {
		end.node("Identity", vectors, OutputEmbedding)
	} else {
		end.node("Concat", vectors, OutputEmbedding, intAttr("axis", 1))
	}
	outputs = slices.Insert(outputs, 0, tensorInfo(OutputEmbedding, wire.Float, batch, int64(total)))
	g, err := prune(m.Graph, rename, end, outputs, nil)
	if err != nil {
		return fail(err)
	}
	if len(taps) > 1 || taps[0] != (Tap{What: TapClass}) {
		info.Tokens, info.Dim = 0, total
	}
	f := &foreign{Model: m, b: data}
	out, err := f.model(g, map[string]any{MetadataBackbone: info, MetadataPreprocess: pre})
	if err != nil {
		return fail(err)
	}
	return s, renameio.WriteFile(dst, out, 0o644)
}

// tapForeign appends the nodes of one tap and names what it gives.
func tapForeign(s *splice, m *wire.Model, layers []Layer, t Tap) (string, Layer, error) {
	if t.Layer == 0 {
		if t.What != TapClass {
			return "", Layer{}, architectureError("%s is not to be had of a foreign model, behind all layers it gives its embedding only", t)
		}
		return "nearmiss/whole", Layer{}, nil
	}
	if t.Layer > len(layers) {
		return "", Layer{}, architectureError("%s after %d layers: the model has %d", t.What, t.Layer, len(layers))
	}
	l := layers[t.Layer-1]
	x := l.Value
	if m.Values[x].Elem == wire.Float16 || m.Inputs[0].Elem == wire.Float16 {
		x = s.node("Cast", []string{x}, "", intAttr("to", wire.Float))
	}
	constant := func(v ...int64) string { return s.ints(v...) }
	patches := func() string { // [N, P, D]
		if l.Layout == layoutNCHW {
			y := s.node("Reshape", []string{x, constant(0, int64(l.Dim), -1)}, "")
			return s.node("Transpose", []string{y}, "", intsAttr("perm", 0, 2, 1))
		}
		if l.Lead == 0 {
			return x
		}
		return s.node("Slice", []string{x, constant(int64(l.Lead)), constant(int64(l.Lead + l.Width*l.Height)), constant(1)}, "")
	}
	unit := func(y string) string {
		length := s.reduce("ReduceL2", m.Opset, y, 2, true)
		length = s.node("Max", []string{length, s.floats(fmt.Sprintf("nearmiss/tap/%d/least", s.count), []float32{1e-12})}, "")
		return s.node("Div", []string{y, length}, "")
	}
	switch t.What {
	case TapClass:
		if !l.Class {
			return "", l, architectureError("%s: the layer has no class token", t)
		}
		y := s.node("Slice", []string{x, constant(0), constant(1), constant(1)}, "")
		return s.node("Reshape", []string{y, constant(0, int64(l.Dim))}, ""), l, nil
	case TapPooled, TapSpread:
		y := patches()
		if t.Margin < 0 || t.Margin > mostMargin {
			return "", l, architectureError("%s leaves out more than %d 14ths at each edge", t, mostMargin)
		}
		if v, h := margin(t, l.Height), margin(t, l.Width); v+h > 0 {
			y = s.node("Reshape", []string{y, constant(0, int64(l.Height), int64(l.Width), int64(l.Dim))}, "")
			y = s.node("Slice", []string{y, constant(int64(v), int64(h)), constant(int64(l.Height-v), int64(l.Width-h)), constant(1, 2)}, "")
			y = s.node("Reshape", []string{y, constant(0, -1, int64(l.Dim))}, "")
		}
		if t.What == TapPooled {
			return s.mean(m.Opset, y, 1, false), l, nil
		}
		off := s.node("Sub", []string{y, s.mean(m.Opset, y, 1, true)}, "")
		return s.node("Sqrt", []string{s.mean(m.Opset, s.node("Mul", []string{off, off}, ""), 1, false)}, ""), l, nil
	case TapPatch:
		if t.Around > 1 && t.Around%2 == 0 {
			return "", l, architectureError("the mean of %d×%d patches has no middle one", t.Around, t.Around)
		}
		y, tokens := patches(), l.Layout == layoutTokens
		if tokens { // of unit length before their mean, as in tapTokens
			y = unit(y)
		}
		if t.Around > 1 {
			p := int64(t.Around / 2)
			y = s.node("Transpose", []string{y}, "", intsAttr("perm", 0, 2, 1))
			y = s.node("Reshape", []string{y, constant(0, int64(l.Dim), int64(l.Height), int64(l.Width))}, "")
			y = s.node("AveragePool", []string{y}, "", intsAttr("kernel_shape", int64(t.Around), int64(t.Around)), intsAttr("strides", 1, 1), intsAttr("pads", p, p, p, p), intAttr("count_include_pad", 0))
			y = s.node("Reshape", []string{y, constant(0, int64(l.Dim), -1)}, "")
			y = s.node("Transpose", []string{y}, "", intsAttr("perm", 0, 2, 1))
		}
		if !tokens {
			y = unit(y)
		}
		return y, l, nil
	}
	return "", l, architectureError("unknown vectors %q", t.What)
}

// prune writes a graph with only the nodes and weights that some outputs, and
// some values inside, need.
func prune(graph []byte, rename map[string]string, end *splice, outputs []wire.ValueInfo, inside []Layer) ([]byte, error) {
	type node struct {
		raw     []byte
		outputs []string
		reads   []string
	}
	var nodes []node
	add := func(raw []byte) error {
		n := node{raw: raw}
		var err error
		n.outputs, n.reads, err = wires(raw, 0)
		nodes = append(nodes, n)
		return err
	}
	err := wire.EachOf(graph, wire.GraphNode, func(f wire.Field) error {
		raw, err := renameNode(f.Val, rename, 0)
		if err != nil {
			return err
		}
		return add(raw)
	})
	if err != nil {
		return nil, err
	}
	for _, raw := range end.nodes {
		if err := add(raw); err != nil {
			return nil, err
		}
	}
	need := map[string]bool{}
	for _, t := range outputs {
		need[t.Name] = true
	}
	for _, l := range inside {
		need[l.Value] = true
	}
	keep := make([]bool, len(nodes))
	for i := len(nodes) - 1; i >= 0; i-- { // nodes are in topological order
		if slices.ContainsFunc(nodes[i].outputs, func(o string) bool { return need[o] }) {
			keep[i] = true
			for _, r := range nodes[i].reads {
				need[r] = true
			}
		}
	}
	var g []byte
	for i, n := range nodes {
		if keep[i] {
			g = wire.AppendBytes(g, wire.GraphNode, n.raw)
		}
	}
	err = wire.Each(graph, func(f wire.Field) error {
		switch f.Num {
		case wire.GraphInitializer:
			name, _, _, err := wire.Initializer(f.Val)
			if err != nil {
				return err
			}
			if need[name] {
				g = append(g, f.Raw...)
			}
		case wire.GraphNode, wire.GraphOutput, wire.GraphValueInfo:
		default:
			g = append(g, f.Raw...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, t := range end.tensors {
		g = wire.AppendBytes(g, wire.GraphInitializer, t)
	}
	for _, t := range outputs {
		g = wire.AppendBytes(g, wire.GraphOutput, t.Encode())
	}
	return g, nil
}

// wires lists what a node gives and what it reads, in its subgraphs, too.
func wires(node []byte, depth int) (outputs, reads []string, err error) {
	if depth > maxGraphDepth {
		return nil, nil, formatError("subgraphs nest deeper than %d", maxGraphDepth)
	}
	n, err := wire.ParseNode(node)
	if err != nil {
		return nil, nil, err
	}
	absent := func(name string) bool { return name == "" }
	outputs, reads = slices.DeleteFunc(n.Outputs, absent), slices.DeleteFunc(n.Inputs, absent)
	for _, a := range n.Attributes {
		err := wire.Each(a, func(f wire.Field) error {
			if f.Num != wire.AttrGraph && f.Num != wire.AttrGraphs {
				return nil
			}
			g, err := wire.ParseGraph(f.Val)
			if err != nil {
				return err
			}
			for _, b := range g.Nodes {
				_, inside, err := wires(b, depth+1)
				if err != nil {
					return err
				}
				reads = append(reads, inside...)
			}
			for _, t := range g.Outputs { // may be values of the outer graph
				reads = append(reads, t.Name)
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return outputs, reads, nil
}
