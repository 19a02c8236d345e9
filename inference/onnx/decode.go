package onnx

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// DecodeOption changes how a model is read.
type DecodeOption func(*decoder)

// BindBatch gives every open first dimension of an input a size, whatever its
// name.
func BindBatch(size int) DecodeOption {
	return func(d *decoder) { d.batch = size }
}

// KeepOpen writes dimensions that were open in the file as open again. The
// nodes must not have been changed in a way that depends on what they are bound
// to.
func KeepOpen() DecodeOption { return func(d *decoder) { d.keepOpen = true } }

// ExternalDir lets [Decode] read external data from files in a folder.
// [ReadFile] sets it to the folder of the model.
func ExternalDir(dir string) DecodeOption {
	return func(d *decoder) { d.beside.Dir = dir }
}

// Decode reads a model and infers the shape of every value. Operator sets 13
// to 23 are accepted; those below 17 are raised to 17, which changes nothing
// but what may be added to the graph. Raw weights alias b, which must not
// change afterwards.
//
// It fails on an operator that it does not know (the message names the
// operator and the node), on an open dimension that no option binds, and on a
// shape that depends on more than the graph's constants.
func Decode(b []byte, options ...DecodeOption) (*Graph, error) {
	d := &decoder{batch: -1}
	for _, o := range options {
		o(d)
	}
	g, err := d.model(b)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("decode onnx model: %w", err), d.beside.Close())
	}
	return g, nil
}

type decoder struct {
	batch  int
	beside Beside
	depth  int

	keepOpen bool
	nodes    []string // their names
}

// maxDepth bounds how deep subgraphs may nest.
const maxDepth = 16

func (d *decoder) model(b []byte) (*Graph, error) {
	m, err := wire.ParseHead(b)
	if err != nil {
		return nil, err
	}
	if m.Opset < minOpset || m.Opset > maxOpset {
		return nil, fmt.Errorf("operator set %d is not one of %d to %d: export the model again with one of these", m.Opset, minOpset, maxOpset)
	}
	for _, name := range m.Functions {
		return nil, fmt.Errorf("model-local function %q is not supported: inline it when exporting", name)
	}
	p, err := wire.ParseGraph(m.Graph)
	if err != nil {
		return nil, err
	}
	// Between 13 and 17 operators only gained types, attributes and outputs, so
	// that an older model is a valid newer one.
	g := NewOpset(p.Name, max(m.Opset, 17))
	g.metadata = m.Metadata
	if err := d.fill(g, p, nil); err != nil {
		return nil, err
	}
	for _, name := range d.nodes { // now, so that values keep their names
		if g.names[name] == 0 {
			g.names[name] = -1
		}
	}
	for name, f := range d.beside.files {
		g.release = append(g.release, f.Close)
		g.mapped[name] = f.Data
	}
	return g, nil
}

// names finds values by the names of the file: those of a subgraph may be
// renamed to be unique in the model.
type names struct {
	around *names
	values map[string]*Value
}

func (n *names) lookup(name string) *Value {
	for ; n != nil; n = n.around {
		if v := n.values[name]; v != nil {
			return v
		}
	}
	return nil
}

// define gives a value its name in the file.
func (n *names) define(name string, v *Value) error {
	if n.values[name] != nil {
		return fmt.Errorf("the name %q is defined twice", name)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("the name %q is not UTF-8", name)
	}
	n.values[name] = v
	return nil
}

// fill adds the content of a graph or subgraph to g.
func (d *decoder) fill(g *Graph, p wire.Graph, around *names) error {
	if p.Sparse {
		return errors.New("sparse initialisers are not supported")
	}
	scope := &names{around, map[string]*Value{}}
	for _, b := range p.Initializers {
		t, err := d.tensor(b)
		if err != nil {
			return err
		}
		original := t.Name
		if original == "" {
			return errors.New("an initialiser has no name")
		}
		t.Name = g.unique(original)
		if err := t.check(); err != nil {
			return err
		}
		if err := scope.define(original, g.addInitializer(&t)); err != nil {
			return err
		}
	}
	for _, in := range p.Inputs {
		if scope.values[in.Name] != nil {
			continue // a default value: we keep it as the initialiser
		}
		typ, shape, err := d.inputType(in)
		if err != nil {
			return fmt.Errorf("input %q: %w", in.Name, err)
		}
		if in.Name == "" {
			return errors.New("an input has no name")
		}
		name := g.unique(in.Name)
		v := &Value{name: name, typ: typ, shape: shape, graph: g, kind: input}
		d.nameDims(v, in)
		g.inputs = append(g.inputs, v)
		g.values[name] = v
		if err := scope.define(in.Name, v); err != nil {
			return err
		}
	}
	for _, b := range p.Nodes {
		if err := d.node(g, b, scope); err != nil {
			return err
		}
	}
	for _, out := range p.Outputs {
		v := scope.lookup(out.Name)
		if v == nil {
			return fmt.Errorf("output %q is computed by no node", out.Name)
		}
		if v.graph != g || g.parent != nil && v.kind != computed {
			if v = g.Op("Identity", nil, v); v.bad {
				return g.Err()
			}
		}
		d.nameDims(v, out)
		g.outputs = append(g.outputs, v)
		g.outputNames[v] = v.name
	}
	return g.Err()
}

// nameDims keeps the names of declared open dimensions.
func (d *decoder) nameDims(v *Value, declared wire.ValueInfo) {
	if !d.keepOpen || len(declared.Dims) != len(v.shape) {
		return
	}
	for i, dim := range declared.Dims {
		if dim < 0 {
			v.SetDimName(i, dimName(declared, i))
		}
	}
}

// dimName is the name of a declared dimension, empty where it has none.
func dimName(v wire.ValueInfo, i int) string {
	if i < len(v.Params) {
		return v.Params[i]
	}
	return ""
}

// inputType reads a declared type. Inputs of subgraphs are set by the node
// that owns them, so only the model's own get here.
func (d *decoder) inputType(declared wire.ValueInfo) (DataType, []int, error) {
	t := DataType(declared.Elem)
	if t == Undefined {
		return 0, nil, errors.New("is not a tensor")
	}
	if t.Size() == 0 {
		return 0, nil, fmt.Errorf("element type %s is not supported", t)
	}
	if !declared.Known {
		return 0, nil, errors.New("has no shape")
	}
	shape := make([]int, len(declared.Dims))
	for i, dim := range declared.Dims {
		switch {
		case dim >= 0 && dim <= maxElements:
			shape[i] = int(dim)
		case i == 0 && d.batch >= 0:
			shape[i] = d.batch
		default:
			return 0, nil, fmt.Errorf("dimension %d (%q) is open: bind it with BindBatch", i, dimName(declared, i))
		}
	}
	_, err := elements(shape)
	return t, shape, err
}

func (d *decoder) node(g *Graph, b []byte, scope *names) error {
	p, err := wire.ParseNode(b)
	if err != nil {
		return err
	}
	if p.Domain == "ai.onnx" {
		p.Domain = ""
	}
	if p.Name == "" && len(p.Outputs) > 0 {
		p.Name = p.Outputs[0]
	}
	n := &Node{Name: p.Name, OpType: p.Op, Domain: p.Domain, Attrs: Attrs{}, graph: g}
	if !utf8.ValidString(n.Name) {
		return fmt.Errorf("%s: its name is not UTF-8", n)
	}
	d.nodes = append(d.nodes, n.Name)
	if !Supported(n.Domain, n.OpType) {
		return fmt.Errorf("%s: shape inference does not know this operator", n)
	}
	for i, name := range p.Inputs {
		if name == "" {
			n.Inputs = append(n.Inputs, nil)
			continue
		}
		v := scope.lookup(name)
		if v == nil {
			return fmt.Errorf("%s: input %d (%q) is not computed before it", n, i, name)
		}
		n.Inputs = append(n.Inputs, v)
	}
	n.Inputs = trimAbsent(n.Inputs)
	for _, b := range p.Attributes {
		a, err := wire.ParseAttribute(b)
		if err == nil && !utf8.ValidString(a.Name) {
			err = errors.New("its name is not UTF-8")
		}
		if err == nil {
			n.Attrs[a.Name], err = d.attribute(g, n, a, scope)
		}
		if err != nil {
			return fmt.Errorf("%s: attribute %q: %w", n, a.Name, err)
		}
	}
	outputs := p.Outputs
	for len(outputs) > 0 && outputs[len(outputs)-1] == "" {
		outputs = outputs[:len(outputs)-1]
	}
	if len(outputs) == 0 {
		return fmt.Errorf("%s: has no outputs", n)
	}
	for i, name := range outputs {
		v := &Value{producer: n, index: i, graph: g}
		if name != "" {
			v.name = g.unique(name)
			if err := scope.define(name, v); err != nil {
				return fmt.Errorf("%s: %w", n, err)
			}
		}
		n.Outputs = append(n.Outputs, v)
	}
	return g.append(n)
}

func (d *decoder) attribute(g *Graph, n *Node, a wire.Attribute, scope *names) (any, error) {
	if a.Of != "" {
		return nil, errors.New("refers to an attribute of a function")
	}
	switch a.Type {
	case wire.TypeInt:
		return a.Int, nil
	case wire.TypeFloat:
		return a.Float, nil
	case wire.TypeString:
		return string(a.String), nil
	case wire.TypeInts:
		return a.Ints, nil
	case wire.TypeFloats:
		return a.Floats, nil
	case wire.TypeStrings:
		return append([]string{}, a.Strings...), nil
	case wire.TypeTensor:
		if a.Tensor == nil {
			return nil, errors.New("is empty")
		}
		t, err := d.tensor(a.Tensor)
		if err == nil {
			err = t.check()
		}
		return &t, err
	case wire.TypeGraph:
		if a.Graph == nil {
			return nil, errors.New("is empty")
		}
		return d.body(g, n, a.Graph, scope)
	}
	return nil, fmt.Errorf("type %d is not supported", a.Type)
}

// body reads a subgraph. The types of a Loop body's inputs are those of what
// the node gives it.
func (d *decoder) body(g *Graph, n *Node, encoded []byte, scope *names) (*Graph, error) {
	if d.depth++; d.depth > maxDepth {
		return nil, fmt.Errorf("subgraphs nest deeper than %d", maxDepth)
	}
	defer func() { d.depth-- }()
	p, err := wire.ParseGraph(encoded)
	if err != nil {
		return nil, err
	}
	if n.OpType == "Loop" {
		for i, in := range p.Inputs {
			typ, shape := Int64, []int{}
			switch {
			case i == 1:
				typ = Bool
			case i >= 2 && n.Input(i) == nil:
				return nil, fmt.Errorf("input %q gets no value", in.Name)
			case i >= 2:
				typ, shape = n.Input(i).typ, n.Input(i).shape
			}
			p.Inputs[i] = valueInfo(&Value{name: in.Name, typ: typ, shape: shape})
		}
	}
	b := g.subgraph(p.Name)
	return b, d.fill(b, p, scope)
}

// tensor reads a tensor with its data, wherever these are; it copies none that lie in
// one piece.
func (d *decoder) tensor(b []byte) (t Tensor, err error) {
	p, err := wire.ParseTensor(b)
	if err != nil {
		return t, err
	}
	t = Tensor{Name: p.Name, Type: DataType(p.Elem), Shape: make([]int, len(p.Dims))}
	for i, n := range p.Dims {
		if n < 0 || n > maxElements {
			return t, fmt.Errorf("tensor %q: dimension %d is out of range", t.Name, n)
		}
		t.Shape[i] = int(n)
	}
	n, err := elements(t.Shape)
	if err != nil {
		return t, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	size := t.Type.Size()
	switch {
	case size == 0:
		err = fmt.Errorf("element type %s is not supported", t.Type)
	case p.Outside:
		t.Data, err = d.beside.Data(p, n*size)
	case p.Raw != nil:
		t.Data = p.Raw
	default:
		t.Data, err = p.Typed(fieldOf(t.Type), size)
	}
	if err != nil {
		err = fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return t, err
}

// fieldOf says which typed field holds the data of a type (TensorProto in onnx.proto).
func fieldOf(t DataType) wire.Number {
	switch t {
	case Float:
		return wire.TensorFloats
	case Double:
		return wire.TensorDoubles
	case Int64:
		return wire.TensorInt64s
	case Uint64, Uint32:
		return wire.TensorUint64s
	}
	return wire.TensorInt32s
}
