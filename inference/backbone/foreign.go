package backbone

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/google/renameio/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/inference/onnx"
)

// A foreign ONNX model is not decoded into a graph, so that operators which
// inference/onnx does not know can be served too: the normalisation is spliced
// in front, and pooling behind, in the protobuf bytes, and nothing else is
// touched. Field numbers are those of onnx.proto.

const (
	modelGraph, modelOpset, modelMetadata = 7, 8, 14

	graphNode, graphName, graphInitializer, graphInput, graphOutput, graphValueInfo = 1, 2, 5, 11, 12, 13

	nodeInput, nodeOutput, nodeName, nodeOp, nodeAttribute = 1, 2, 3, 4, 5

	attrName, attrInt, attrGraph, attrInts, attrGraphs, attrType = 1, 3, 6, 8, 11, 20

	tensorDims, tensorType, tensorName, tensorRaw, tensorExternal = 1, 2, 8, 9, 13

	infoName, infoType = 1, 2

	elemFloat, elemUint8, elemFloat16 = 1, 2, 10
)

// maxGraphDepth bounds subgraphs within subgraphs.
const maxGraphDepth = 16

// field is one protobuf field: val is the payload of a length-delimited one,
// num the value of a varint, raw the whole field with its tag.
type field struct {
	tag protowire.Number
	typ protowire.Type
	val []byte
	num uint64
	raw []byte
}

// eachField calls f for every field of a protobuf message.
func eachField(b []byte, f func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return formatError("protobuf: %v", protowire.ParseError(n))
		}
		fd := field{tag: num, typ: typ}
		var m int
		switch typ {
		case protowire.VarintType:
			fd.num, m = protowire.ConsumeVarint(b[n:])
		case protowire.BytesType:
			fd.val, m = protowire.ConsumeBytes(b[n:])
		default:
			m = protowire.ConsumeFieldValue(num, typ, b[n:])
		}
		if m < 0 {
			return formatError("protobuf: %v", protowire.ParseError(m))
		}
		fd.raw = b[:n+m]
		b = b[n+m:]
		if err := f(fd); err != nil {
			return err
		}
	}
	return nil
}

func appendBytes(b []byte, tag protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, tag, protowire.BytesType), v)
}

func appendText(b []byte, tag protowire.Number, v string) []byte {
	return appendBytes(b, tag, []byte(v))
}

func appendInt(b []byte, tag protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, tag, protowire.VarintType), uint64(v))
}

// tensorInfo is a declared input, output or inner value.
type tensorInfo struct {
	name  string
	elem  int
	known bool    // a shape is declared
	dims  []int64 // −1: open
}

func parseTensorInfo(b []byte) (tensorInfo, error) {
	var t tensorInfo
	err := eachField(b, func(f field) error {
		switch f.tag {
		case infoName:
			t.name = string(f.val)
		case infoType:
			return eachField(f.val, func(f field) error { // TypeProto
				if f.tag != 1 { // tensor_type
					return nil
				}
				return eachField(f.val, func(f field) error {
					switch f.tag {
					case 1:
						t.elem = int(f.num)
					case 2: // shape
						t.known = true
						return eachField(f.val, func(f field) error {
							if f.tag != 1 {
								return nil
							}
							dim := int64(-1)
							err := eachField(f.val, func(f field) error {
								if f.tag == 1 && f.typ == protowire.VarintType && int64(f.num) > 0 {
									dim = int64(f.num)
								}
								return nil
							})
							t.dims = append(t.dims, dim)
							return err
						})
					}
					return nil
				})
			})
		}
		return nil
	})
	return t, err
}

func (t tensorInfo) encode() []byte {
	var shape []byte
	for i, d := range t.dims {
		var dim []byte
		switch {
		case d >= 0:
			dim = appendInt(nil, 1, d)
		case i == 0:
			dim = appendText(nil, 2, "N")
		}
		shape = appendBytes(shape, 1, dim)
	}
	tensor := appendBytes(appendInt(nil, 1, int64(t.elem)), 2, shape)
	return appendBytes(appendText(nil, infoName, t.name), infoType, appendBytes(nil, 1, tensor))
}

// foreignModel is what the splice needs to know of a model.
type foreignModel struct {
	graph    []byte
	opset    int
	metadata map[string]string

	inputs, outputs []tensorInfo // graph inputs without initialisers
	values          map[string]tensorInfo
	produced        map[string]bool // by a node or an initialiser
	external        []string        // locations of external data
	params          int
}

// isONNX says whether b looks like a ModelProto with a graph.
func isONNX(b []byte) bool {
	found := false
	err := eachField(b, func(f field) error {
		if f.tag > 30 {
			return formatError("not a model")
		}
		found = found || f.tag == modelGraph && f.typ == protowire.BytesType
		return nil
	})
	return err == nil && found
}

func parseForeign(b []byte) (*foreignModel, error) {
	m := &foreignModel{metadata: map[string]string{}, values: map[string]tensorInfo{}, produced: map[string]bool{}}
	err := eachField(b, func(f field) error {
		switch f.tag {
		case modelGraph:
			if m.graph != nil {
				return formatError("the model has two graphs")
			}
			m.graph = f.val
		case modelOpset:
			domain, version := "", 0
			if err := eachField(f.val, func(f field) error {
				switch f.tag {
				case 1:
					domain = string(f.val)
				case 2:
					version = int(f.num)
				}
				return nil
			}); err != nil {
				return err
			}
			if domain == "" || domain == "ai.onnx" {
				m.opset = version
			}
		case modelMetadata:
			key, value, err := stringEntry(f.val)
			m.metadata[key] = value
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if m.graph == nil {
		return nil, formatError("no graph in the ONNX file")
	}
	inputs := []tensorInfo{}
	initial := map[string]bool{}
	err = eachField(m.graph, func(f field) error {
		switch f.tag {
		case graphNode:
			return eachField(f.val, func(f field) error {
				if f.tag == nodeOutput && len(f.val) > 0 {
					m.produced[string(f.val)] = true
				}
				return nil
			})
		case graphInitializer:
			name, elements, external, err := initializer(f.val)
			if err != nil {
				return err
			}
			initial[name], m.produced[name] = true, true
			m.params += elements
			if external != "" && !slices.Contains(m.external, external) {
				m.external = append(m.external, external)
			}
		case graphInput, graphOutput, graphValueInfo:
			t, err := parseTensorInfo(f.val)
			if err != nil {
				return err
			}
			switch f.tag {
			case graphInput:
				inputs = append(inputs, t)
			case graphOutput:
				m.outputs = append(m.outputs, t)
			}
			if _, seen := m.values[t.name]; !seen {
				m.values[t.name] = t
			}
		}
		return nil
	})
	for _, t := range inputs { // IR version 3 lists initialisers as inputs too
		if !initial[t.name] {
			m.inputs = append(m.inputs, t)
		}
	}
	return m, err
}

func stringEntry(b []byte) (key, value string, err error) {
	err = eachField(b, func(f field) error {
		switch f.tag {
		case 1:
			key = string(f.val)
		case 2:
			value = string(f.val)
		}
		return nil
	})
	return key, value, err
}

func initializer(b []byte) (name string, elements int, external string, err error) {
	elements = 1
	float := false
	mul := func(d uint64) {
		if d > 0 && (d > math.MaxInt32 || elements > math.MaxInt64/4/int(d)) {
			d = 1 // absurd; ONNX Runtime refuses such a tensor itself
		}
		elements *= int(d)
	}
	err = eachField(b, func(f field) error {
		switch {
		case f.tag == tensorDims && f.typ == protowire.VarintType:
			mul(f.num)
		case f.tag == tensorDims && f.typ == protowire.BytesType: // packed
			for v := f.val; len(v) > 0; {
				d, n := protowire.ConsumeVarint(v)
				if n < 0 {
					return formatError("protobuf: %v", protowire.ParseError(n))
				}
				mul(d)
				v = v[n:]
			}
		case f.tag == tensorType:
			float = f.num == elemFloat || f.num == elemFloat16
		case f.tag == tensorName:
			name = string(f.val)
		case f.tag == tensorExternal:
			key, value, err := stringEntry(f.val)
			if key == "location" {
				external = value
			}
			return err
		}
		return nil
	})
	if !float {
		elements = 0
	}
	return name, elements, external, err
}

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

// spliceForeign rewrites a foreign model so that it has the surface of this
// package's models. All its own nodes, initialisers and operator sets are kept.
func spliceForeign(b []byte, o ImportOptions) (out []byte, info Info, pre imaging.Preprocess, external []string, err error) {
	fail := func(err error) ([]byte, Info, imaging.Preprocess, []string, error) {
		return nil, info, pre, nil, err
	}
	m, err := parseForeign(b)
	if err != nil {
		return fail(err)
	}
	in, size, nchw, err := m.imageInput(o)
	if err != nil {
		return fail(err)
	}
	target, pool, dim, err := m.embeddingOutput(o)
	if err != nil {
		return fail(err)
	}
	info = Info{Name: o.Name, Family: Foreign, Format: "onnx", Size: size, Dim: dim, Params: m.params}
	pre, err = o.apply(DefaultPreprocess(Spec{Family: Foreign, Size: size}, "onnx"), size)
	if err != nil {
		return fail(err)
	}

	// Free the two public names, and give the embedding its own where it is a
	// node's output already.
	rename := map[string]string{}
	isRaw := in.elem == elemUint8
	for _, public := range []string{InputImage, OutputEmbedding} {
		if _, declared := m.values[public]; declared || m.produced[public] {
			rename[public] = "nearmiss/was/" + public
		}
	}
	if isRaw {
		rename[in.name] = InputImage
	}
	inner := func(name string) string {
		if n, ok := rename[name]; ok {
			return n
		}
		return name
	}

	// The prologue: uint8 NHWC → the model's input.
	s := &splice{}
	if !isRaw {
		x := s.node("Cast", []string{InputImage}, "", intAttr("to", elemFloat))
		scale, shift := make([]float32, 3), make([]float32, 3)
		for c := range 3 {
			scale[c] = float32(1 / (255 * pre.Std[c]))
			shift[c] = float32(-pre.Mean[c] / pre.Std[c])
		}
		x = s.node("Mul", []string{x, s.floats("nearmiss/scale", scale)}, "")
		steps := 0 // what follows the Add
		if nchw {
			steps++
		}
		if in.elem == elemFloat16 {
			steps++
		}
		end := func() string { // the last step produces the model's own input
			if steps--; steps < 0 {
				return inner(in.name)
			}
			return ""
		}
		x = s.node("Add", []string{x, s.floats("nearmiss/shift", shift)}, end())
		if nchw {
			x = s.node("Transpose", []string{x}, end(), intsAttr("perm", 0, 3, 1, 2))
		}
		if in.elem == elemFloat16 {
			s.node("Cast", []string{x}, end(), intAttr("to", elemFloat16))
		}
	}
	prologue := s.nodes
	s.nodes = nil

	// The epilogue: the chosen output → [N, D] float.
	y := inner(target.name)
	half := target.elem == elemFloat16
	end := OutputEmbedding
	if half {
		end = ""
	}
	switch {
	case pool == PoolNone:
		y = s.node("Identity", []string{y}, end)
	case pool == PoolClass:
		y = s.node("Gather", []string{y, s.scalar("nearmiss/class", 0)}, end, intAttr("axis", 1))
	case len(target.dims) == 4:
		y = s.node("Flatten", []string{s.node("GlobalAveragePool", []string{y}, "")}, end, intAttr("axis", 1))
	case m.opset >= 18:
		y = s.node("ReduceMean", []string{y, s.vector("nearmiss/axis", 1)}, end, intAttr("keepdims", 0))
	default:
		y = s.node("ReduceMean", []string{y}, end, intsAttr("axes", 1), intAttr("keepdims", 0))
	}
	if half {
		s.node("Cast", []string{y}, OutputEmbedding, intAttr("to", elemFloat))
	}

	var g []byte
	for _, n := range prologue {
		g = appendBytes(g, graphNode, n)
	}
	shared, err := sharedInitializers(m.graph)
	if err != nil {
		return fail(err)
	}
	err = eachField(m.graph, func(f field) error {
		switch f.tag {
		case graphNode:
			own, err := unshare(f.val, shared)
			if err != nil {
				return err
			}
			if own != nil {
				_, elements, _, err := initializer(own)
				if err != nil {
					return err
				}
				info.Params += elements
				g = appendBytes(g, graphInitializer, renameField(own, tensorName, rename))
				return nil
			}
			n, err := renameNode(f.val, rename, 0)
			if err != nil {
				return err
			}
			g = appendBytes(g, graphNode, n)
		case graphInput:
			t, err := parseTensorInfo(f.val)
			if err != nil {
				return err
			}
			if t.name != in.name { // an initialiser's
				g = appendBytes(g, graphInput, renameField(f.val, infoName, rename))
			}
		case graphOutput:
		case graphInitializer:
			g = appendBytes(g, graphInitializer, renameField(f.val, tensorName, rename))
		case graphValueInfo:
			g = appendBytes(g, graphValueInfo, renameField(f.val, infoName, rename))
		default:
			g = append(g, f.raw...)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	for _, n := range s.nodes {
		g = appendBytes(g, graphNode, n)
	}
	for _, t := range s.tensors {
		g = appendBytes(g, graphInitializer, t)
	}
	batch := int64(-1)
	if in.known && len(in.dims) == 4 {
		batch = in.dims[0]
	}
	g = appendBytes(g, graphInput, tensorInfo{InputImage, elemUint8, true, []int64{batch, int64(size), int64(size), 3}}.encode())
	width := int64(-1)
	if dim > 0 {
		width = int64(dim)
	}
	g = appendBytes(g, graphOutput, tensorInfo{OutputEmbedding, elemFloat, true, []int64{batch, width}}.encode())

	err = eachField(b, func(f field) error {
		switch f.tag {
		case modelGraph:
			out = appendBytes(out, modelGraph, g)
		case modelMetadata:
			key, _, err := stringEntry(f.val)
			if err != nil {
				return err
			}
			if key != MetadataPreprocess && key != MetadataBackbone {
				out = append(out, f.raw...)
			}
		default:
			out = append(out, f.raw...)
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	for _, kv := range []struct {
		key string
		v   any
	}{{MetadataBackbone, info}, {MetadataPreprocess, pre}} {
		j, err := json.Marshal(kv.v)
		if err != nil {
			return fail(err)
		}
		out = appendBytes(out, modelMetadata, appendBytes(appendText(nil, 1, kv.key), 2, j))
	}
	return out, info, pre, m.external, nil
}

// sharedInitializers has the initialisers of a graph by name.
func sharedInitializers(graph []byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := eachField(graph, func(f field) error {
		if f.tag != graphInitializer {
			return nil
		}
		name, _, _, err := initializer(f.val)
		out[name] = f.val
		return err
	})
	return out, err
}

// unshare turns a node that is the Identity of an initialiser into an
// initialiser of its own, and returns nil for any other node. PyTorch's
// exporter merges weights that happen to be equal, such as the ones of every
// norm, and leaves such nodes behind: training must not tie them.
func unshare(node []byte, shared map[string][]byte) ([]byte, error) {
	var op, in, out string
	inputs := 0
	err := eachField(node, func(f field) error {
		switch f.tag {
		case nodeOp:
			op = string(f.val)
		case nodeInput:
			in = string(f.val)
			inputs++
		case nodeOutput:
			out = string(f.val)
		}
		return nil
	})
	t, ok := shared[in]
	if err != nil || op != "Identity" || inputs != 1 || !ok {
		return nil, err
	}
	if named := renameField(t, tensorName, map[string]string{in: out}); len(named) > 0 && in != out {
		return named, nil
	}
	return nil, nil
}

// imageInput finds the input that takes the image, and its size and layout.
func (m *foreignModel) imageInput(o ImportOptions) (in tensorInfo, size int, nchw bool, err error) {
	var names []string
	for _, t := range m.inputs {
		names = append(names, t.name)
		if o.Input == t.name || o.Input == "" && len(m.inputs) == 1 {
			in = t
		}
	}
	if in.name == "" {
		return in, 0, false, architectureError("cannot choose the image input among %q: name one", names)
	}
	if len(m.inputs) > 1 {
		return in, 0, false, architectureError("the model needs %d inputs %q, an image backbone has one", len(m.inputs), names)
	}
	if in.elem != elemFloat && in.elem != elemFloat16 && in.elem != elemUint8 {
		return in, 0, false, architectureError("input %q has element type %d, want float, float16 or uint8", in.name, in.elem)
	}
	if !in.known || len(in.dims) != 4 {
		return in, 0, false, architectureError("input %q has dimensions %v, want a batch of images of rank 4", in.name, in.dims)
	}
	h, w := in.dims[2], in.dims[3]
	switch {
	case in.dims[1] == 3 && in.dims[3] != 3 && in.elem != elemUint8:
		nchw = true
	case in.dims[3] == 3:
		h, w = in.dims[1], in.dims[2]
	case in.dims[1] < 0 && in.elem != elemUint8: // all open: torch's habit
		nchw = true
	default:
		return in, 0, false, architectureError("input %q has dimensions %v, want [N 3 S S] or [N S S 3] (uint8: the latter)", in.name, in.dims)
	}
	if h > 0 && w > 0 && h != w {
		return in, 0, false, architectureError("input %q is %d×%d pixels, want a square", in.name, h, w)
	}
	side := max(h, w)
	switch {
	case side < 0 && o.Size == 0:
		return in, 0, false, architectureError("input %q leaves the image's size open: give one", in.name)
	case side < 0:
		side = int64(o.Size)
	case o.Size != 0 && int64(o.Size) != side:
		return in, 0, false, architectureError("the model takes %d px, not the %d px asked for", side, o.Size)
	}
	if side < 8 || side > 4096 {
		return in, 0, false, architectureError("an input of %d px is not between 8 and 4096", side)
	}
	return in, int(side), nchw, nil
}

// embeddingOutput finds the value that becomes the embedding.
func (m *foreignModel) embeddingOutput(o ImportOptions) (t tensorInfo, pool Pooling, dim int, err error) {
	var names []string
	for _, v := range m.outputs {
		names = append(names, v.name)
	}
	name := o.Output
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
		return t, "", 0, architectureError("cannot choose the embedding among the outputs %q: name one", names)
	}
	t, declared := m.values[name]
	if !m.produced[name] {
		return t, "", 0, architectureError("no node produces %q; the outputs are %q", name, names)
	}
	if !declared {
		t = tensorInfo{name: name, elem: elemFloat}
	}
	pool = o.Pool
	rank := len(t.dims)
	if pool == "" {
		switch {
		case !t.known:
			return t, "", 0, architectureError("the shape of %q is not declared: say how to pool it (class, mean, none)", name)
		case rank == 2:
			pool = PoolNone
		case rank == 3:
			pool = PoolClass
		case rank == 4:
			pool = PoolMean
		}
	}
	ok := map[Pooling]bool{PoolNone: rank == 2, PoolClass: rank == 3, PoolMean: rank == 3 || rank == 4}
	if want, named := ok[pool]; !named || t.known && !want {
		return t, "", 0, architectureError("pooling %q does not fit %q of dimensions %v", pool, name, t.dims)
	}
	if t.known {
		at := rank - 1
		if rank == 4 {
			at = 1
		}
		dim = int(max(t.dims[at], 0))
	}
	return t, pool, dim, nil
}

// splice collects nodes and initialisers in wire form.
type splice struct {
	nodes, tensors [][]byte
	count          int
}

// node appends an operator with one output and returns the output's name.
func (s *splice) node(op string, in []string, out string, attrs ...[]byte) string {
	name := fmt.Sprintf("nearmiss/%d/%s", s.count, op)
	s.count++
	if out == "" {
		out = name + ":0"
	}
	var b []byte
	for _, v := range in {
		b = appendText(b, nodeInput, v)
	}
	b = appendText(appendText(appendText(b, nodeOutput, out), nodeName, name), nodeOp, op)
	for _, a := range attrs {
		b = appendBytes(b, nodeAttribute, a)
	}
	s.nodes = append(s.nodes, b)
	return out
}

func (s *splice) floats(name string, v []float32) string {
	var raw bytes.Buffer
	_ = binary.Write(&raw, binary.LittleEndian, v)
	return s.tensor(name, elemFloat, raw.Bytes(), int64(len(v)))
}

func (s *splice) vector(name string, v int64) string {
	return s.tensor(name, 7, binary.LittleEndian.AppendUint64(nil, uint64(v)), 1)
}

func (s *splice) scalar(name string, v int64) string {
	return s.tensor(name, 7, binary.LittleEndian.AppendUint64(nil, uint64(v)))
}

func (s *splice) tensor(name string, elem int64, raw []byte, dims ...int64) string {
	var b []byte
	for _, d := range dims {
		b = appendInt(b, tensorDims, d)
	}
	b = appendBytes(appendText(appendInt(b, tensorType, elem), tensorName, name), tensorRaw, raw)
	s.tensors = append(s.tensors, b)
	return name
}

func intAttr(name string, v int64) []byte {
	return appendInt(appendInt(appendText(nil, attrName, name), attrInt, v), attrType, 2)
}

func intsAttr(name string, v ...int64) []byte {
	b := appendText(nil, attrName, name)
	for _, x := range v {
		b = appendInt(b, attrInts, x)
	}
	return appendInt(b, attrType, 7)
}

// renameField rewrites one string field of a message. A malformed message is
// left as it is: it has been parsed before.
func renameField(b []byte, tag protowire.Number, names map[string]string) []byte {
	if len(names) == 0 {
		return b
	}
	var out []byte
	changed := false
	_ = eachField(b, func(f field) error {
		if to, ok := names[string(f.val)]; ok && f.tag == tag && f.typ == protowire.BytesType {
			out, changed = appendText(out, tag, to), true
		} else {
			out = append(out, f.raw...)
		}
		return nil
	})
	if !changed {
		return b
	}
	return out
}

// renameNode rewrites the inputs and outputs of a node and of its subgraphs;
// names are unique in a model, so an outer value keeps its name inside.
func renameNode(b []byte, names map[string]string, depth int) ([]byte, error) {
	if len(names) == 0 {
		return b, nil
	}
	if depth > maxGraphDepth {
		return nil, formatError("subgraphs nest deeper than %d", maxGraphDepth)
	}
	var out []byte
	err := eachField(b, func(f field) error {
		switch f.tag {
		case nodeInput, nodeOutput:
			name := string(f.val)
			if to, ok := names[name]; ok {
				name = to
			}
			out = appendText(out, f.tag, name)
		case nodeAttribute:
			a, err := renameAttribute(f.val, names, depth)
			if err != nil {
				return err
			}
			out = appendBytes(out, nodeAttribute, a)
		default:
			out = append(out, f.raw...)
		}
		return nil
	})
	return out, err
}

func renameAttribute(b []byte, names map[string]string, depth int) ([]byte, error) {
	var out []byte
	err := eachField(b, func(f field) error {
		if f.tag != attrGraph && f.tag != attrGraphs {
			out = append(out, f.raw...)
			return nil
		}
		var g []byte
		err := eachField(f.val, func(f field) error {
			switch f.tag {
			case graphNode:
				n, err := renameNode(f.val, names, depth+1)
				if err != nil {
					return err
				}
				g = appendBytes(g, graphNode, n)
			case graphInput, graphOutput, graphValueInfo:
				g = appendBytes(g, f.tag, renameField(f.val, infoName, names))
			case graphInitializer:
				g = appendBytes(g, f.tag, renameField(f.val, tensorName, names))
			default:
				g = append(g, f.raw...)
			}
			return nil
		})
		out = appendBytes(out, f.tag, g)
		return err
	})
	return out, err
}

// ReplaceWeights copies the ONNX model src to dst, atomically, with the data of
// the named float initialisers replaced; their shapes must not change. Nothing
// else of the file changes, so a model of any origin keeps its operator set,
// open dimensions and metadata. External data files of other initialisers are
// copied beside dst.
func ReplaceWeights(src, dst string, weights []onnx.Tensor) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("replace weights of %s: %w", src, err)
		}
	}()
	data, unmap, err := mapFile(src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmap()) }()
	m, err := parseForeign(data)
	if err != nil {
		return err
	}
	byName := map[string]onnx.Tensor{}
	for _, w := range weights {
		byName[w.Name] = w
	}
	var g []byte
	err = eachField(m.graph, func(f field) error {
		if f.tag != graphInitializer {
			g = append(g, f.raw...)
			return nil
		}
		name, elements, _, err := initializer(f.val)
		if err != nil {
			return err
		}
		w, ok := byName[name]
		if !ok {
			g = append(g, f.raw...)
			return nil
		}
		delete(byName, name)
		if w.Type != onnx.Float || elements != w.Elements() || len(w.Data) != 4*elements {
			return architectureError("weight %q has %d elements, the new one is %s%v", name, elements, w.Type, w.Shape)
		}
		var t []byte
		for _, d := range w.Shape {
			t = appendInt(t, tensorDims, int64(d))
		}
		t = appendBytes(appendText(appendInt(t, tensorType, elemFloat), tensorName, name), tensorRaw, w.Data)
		g = appendBytes(g, graphInitializer, t)
		return nil
	})
	if err != nil {
		return err
	}
	if len(byName) > 0 {
		return architectureError("the model has no initialisers %s", sortedNames(slices.Collect(maps.Keys(byName)), 6))
	}
	var out []byte
	err = eachField(data, func(f field) error {
		if f.tag == modelGraph {
			out = appendBytes(out, modelGraph, g)
		} else {
			out = append(out, f.raw...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(out) > math.MaxInt32 {
		return architectureError("the model reaches the 2 GiB of one protobuf message")
	}
	if err := copyExternal(src, dst, m.external); err != nil {
		return err
	}
	return renameio.WriteFile(dst, out, 0o644)
}
