package onnx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/nearmiss/nearmiss/inference/onnx/internal/onnxpb"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
	"github.com/nearmiss/nearmiss/internal/mapped"
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
	return func(d *decoder) { d.dir = dir }
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
		return nil, errors.Join(fmt.Errorf("decode onnx model: %w", err), d.closeFiles())
	}
	return g, nil
}

type decoder struct {
	batch int
	dir   string
	files map[string]*mapped.File
	depth int

	keepOpen bool
}

// maxDepth bounds how deep subgraphs may nest.
const maxDepth = 16

func (d *decoder) model(b []byte) (*Graph, error) {
	var graph []byte
	graphs := 0
	rest, err := wire.Split(b, wire.ModelGraph, func(c []byte) error {
		graph = c
		graphs++
		return nil
	})
	if err != nil {
		return nil, err
	}
	var m onnxpb.ModelProto
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(rest, &m); err != nil {
		return nil, err
	}
	if graphs != 1 {
		return nil, fmt.Errorf("has %d graphs, wants one", graphs)
	}
	opset := 0
	for _, o := range m.OpsetImport {
		if o.Domain == "" || o.Domain == "ai.onnx" {
			opset = int(o.GetVersion())
		}
	}
	if opset < minOpset || opset > maxOpset {
		return nil, fmt.Errorf("operator set %d is not one of %d to %d: export the model again with one of these", opset, minOpset, maxOpset)
	}
	// Between 13 and 17 operators only gained types, attributes and outputs, so
	// that an older model is a valid newer one.
	opset = max(opset, 17)
	for _, f := range m.Functions {
		return nil, fmt.Errorf("model-local function %q is not supported: inline it when exporting", f.Name)
	}
	var initializers []Tensor
	rest, err = wire.Split(graph, wire.GraphInitializer, func(c []byte) error {
		t, err := d.rawTensor(c)
		initializers = append(initializers, t)
		return err
	})
	if err != nil {
		return nil, err
	}
	var p onnxpb.GraphProto
	if err := proto.Unmarshal(rest, &p); err != nil {
		return nil, err
	}
	g := NewOpset(p.Name, opset)
	for _, e := range m.MetadataProps {
		g.metadata[e.GetKey()] = e.GetValue()
	}
	if err := d.fill(g, &p, initializers, nil); err != nil {
		return nil, err
	}
	for name, f := range d.files {
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

// fill adds the content of a graph or subgraph to g.
func (d *decoder) fill(g *Graph, p *onnxpb.GraphProto, initializers []Tensor, around *names) error {
	if len(p.SparseInitializer) > 0 {
		return errors.New("sparse initialisers are not supported")
	}
	scope := &names{around, map[string]*Value{}}
	define := func(name string, v *Value) error {
		if scope.values[name] != nil {
			return fmt.Errorf("the name %q is defined twice", name)
		}
		scope.values[name] = v
		return nil
	}
	for _, t := range initializers {
		original := t.Name
		if original == "" {
			return errors.New("an initialiser has no name")
		}
		t.Name = g.unique(original)
		if err := t.check(); err != nil {
			return err
		}
		if err := define(original, g.addInitializer(&t)); err != nil {
			return err
		}
	}
	for _, in := range p.Input {
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
		if err := define(in.Name, v); err != nil {
			return err
		}
	}
	for _, np := range p.Node {
		if err := d.node(g, np, scope); err != nil {
			return err
		}
	}
	for _, out := range p.Output {
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
func (d *decoder) nameDims(v *Value, p *onnxpb.ValueInfoProto) {
	dims := p.GetType().GetTensorType().GetShape().GetDim()
	if !d.keepOpen || len(dims) != len(v.shape) {
		return
	}
	for i, dim := range dims {
		if _, fixed := dim.Value.(*onnxpb.TensorShapeProto_Dimension_DimValue); !fixed {
			v.SetDimName(i, dim.GetDimParam())
		}
	}
}

// inputType reads a declared type. Inputs of subgraphs are set by the node
// that owns them, so only the model's own get here.
func (d *decoder) inputType(p *onnxpb.ValueInfoProto) (DataType, []int, error) {
	tensor := p.GetType().GetTensorType()
	if tensor == nil {
		return 0, nil, errors.New("is not a tensor")
	}
	t := DataType(tensor.GetElemType())
	if t.Size() == 0 {
		return 0, nil, fmt.Errorf("element type %s is not supported", t)
	}
	if tensor.Shape == nil {
		return 0, nil, errors.New("has no shape")
	}
	shape := make([]int, len(tensor.Shape.Dim))
	for i, dim := range tensor.Shape.Dim {
		size, fixed := dim.Value.(*onnxpb.TensorShapeProto_Dimension_DimValue)
		switch {
		case fixed && size.DimValue >= 0 && size.DimValue <= maxElements:
			shape[i] = int(size.DimValue)
		case i == 0 && d.batch >= 0:
			shape[i] = d.batch
		default:
			return 0, nil, fmt.Errorf("dimension %d (%q) is open: bind it with BindBatch", i, dim.GetDimParam())
		}
	}
	_, err := elements(shape)
	return t, shape, err
}

func (d *decoder) node(g *Graph, p *onnxpb.NodeProto, scope *names) error {
	domain := p.Domain
	if domain == "ai.onnx" {
		domain = ""
	}
	n := &Node{Name: p.Name, OpType: p.OpType, Domain: domain, Attrs: Attrs{}, graph: g}
	if n.Name == "" && len(p.Output) > 0 {
		n.Name = p.Output[0]
	}
	if !Supported(domain, n.OpType) {
		return fmt.Errorf("%s: shape inference does not know this operator", n)
	}
	for i, name := range p.Input {
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
	for _, a := range p.Attribute {
		v, err := d.attribute(g, n, a, scope)
		if err != nil {
			return fmt.Errorf("%s: attribute %q: %w", n, a.GetName(), err)
		}
		n.Attrs[a.GetName()] = v
	}
	outputs := p.Output
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
			if scope.values[name] != nil {
				return fmt.Errorf("%s: the name %q is defined twice", n, name)
			}
			scope.values[name] = v
		}
		n.Outputs = append(n.Outputs, v)
	}
	return g.append(n)
}

func (d *decoder) attribute(g *Graph, n *Node, p *onnxpb.AttributeProto, scope *names) (any, error) {
	if p.RefAttrName != "" {
		return nil, errors.New("refers to an attribute of a function")
	}
	switch p.GetType() {
	case onnxpb.AttributeProto_INT:
		return p.GetI(), nil
	case onnxpb.AttributeProto_FLOAT:
		return p.GetF(), nil
	case onnxpb.AttributeProto_STRING:
		return string(p.GetS()), nil
	case onnxpb.AttributeProto_INTS:
		return p.Ints, nil
	case onnxpb.AttributeProto_FLOATS:
		return p.Floats, nil
	case onnxpb.AttributeProto_STRINGS:
		out := make([]string, len(p.Strings))
		for i, s := range p.Strings {
			out[i] = string(s)
		}
		return out, nil
	case onnxpb.AttributeProto_TENSOR:
		t, err := d.parsedTensor(p.GetT())
		if err != nil {
			return nil, err
		}
		if err := t.check(); err != nil {
			return nil, err
		}
		return &t, nil
	case onnxpb.AttributeProto_GRAPH:
		return d.body(g, n, p.GetG(), scope)
	}
	return nil, fmt.Errorf("type %s is not supported", p.GetType())
}

// body reads a subgraph. The types of a Loop body's inputs are those of what
// the node gives it.
func (d *decoder) body(g *Graph, n *Node, p *onnxpb.GraphProto, scope *names) (*Graph, error) {
	if p == nil {
		return nil, errors.New("is empty")
	}
	if d.depth++; d.depth > maxDepth {
		return nil, fmt.Errorf("subgraphs nest deeper than %d", maxDepth)
	}
	defer func() { d.depth-- }()
	b := g.subgraph(p.Name)
	var initializers []Tensor
	for _, tp := range p.Initializer {
		t, err := d.parsedTensor(tp)
		if err != nil {
			return nil, err
		}
		initializers = append(initializers, t)
	}
	if n.OpType == "Loop" {
		for i, in := range p.Input {
			typ, shape := Int64, []int{}
			switch {
			case i == 1:
				typ = Bool
			case i >= 2 && n.Input(i) == nil:
				return nil, fmt.Errorf("input %q gets no value", in.Name)
			case i >= 2:
				typ, shape = n.Input(i).typ, n.Input(i).shape
			}
			p.Input[i] = valueInfo(&Value{name: in.Name, typ: typ, shape: shape})
		}
	}
	return b, d.fill(b, p, initializers, scope)
}

// rawTensor reads an encoded tensor whose raw data are not to be copied.
func (d *decoder) rawTensor(b []byte) (Tensor, error) {
	var raw []byte
	has := false
	rest, err := wire.Split(b, wire.TensorRaw, func(c []byte) error {
		raw, has = c, true
		return nil
	})
	if err != nil {
		return Tensor{}, err
	}
	var p onnxpb.TensorProto
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(rest, &p); err != nil {
		return Tensor{}, err
	}
	return d.tensor(&p, raw, has)
}

// parsedTensor reads a tensor that is part of a parsed message: raw data are
// among its unknown fields.
func (d *decoder) parsedTensor(p *onnxpb.TensorProto) (Tensor, error) {
	if p == nil {
		return Tensor{}, errors.New("is empty")
	}
	var raw []byte
	has := false
	_, err := wire.Split(p.ProtoReflect().GetUnknown(), wire.TensorRaw, func(c []byte) error {
		raw, has = c, true
		return nil
	})
	if err != nil {
		return Tensor{}, err
	}
	return d.tensor(p, raw, has)
}

// tensor joins the head of a tensor with its data, wherever these are.
func (d *decoder) tensor(p *onnxpb.TensorProto, raw []byte, hasRaw bool) (Tensor, error) {
	t := Tensor{Name: p.Name, Type: DataType(p.GetDataType()), Shape: make([]int, len(p.Dims))}
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
	if size == 0 {
		return t, fmt.Errorf("tensor %q: element type %s is not supported", t.Name, t.Type)
	}
	switch {
	case p.GetDataLocation() == onnxpb.TensorProto_EXTERNAL:
		t.Data, err = d.external(p, n*size)
		if err != nil {
			return t, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
	case hasRaw:
		t.Data = raw
	default:
		t.Data = typedData(t.Type, p)
	}
	return t, nil
}

// typedData packs the data of the typed fields (TensorProto in onnx.proto says
// which field holds which type).
func typedData(t DataType, p *onnxpb.TensorProto) []byte {
	var out []byte
	le := binary.LittleEndian
	switch t {
	case Float:
		for _, v := range p.FloatData {
			out = le.AppendUint32(out, math.Float32bits(v))
		}
	case Double:
		for _, v := range p.DoubleData {
			out = le.AppendUint64(out, math.Float64bits(v))
		}
	case Int64:
		for _, v := range p.Int64Data {
			out = le.AppendUint64(out, uint64(v))
		}
	case Uint64:
		for _, v := range p.Uint64Data {
			out = le.AppendUint64(out, v)
		}
	case Uint32:
		for _, v := range p.Uint64Data {
			out = le.AppendUint32(out, uint32(v))
		}
	default:
		for _, v := range p.Int32Data {
			switch t.Size() {
			case 1:
				out = append(out, byte(v))
			case 2:
				out = le.AppendUint16(out, uint16(v))
			case 4:
				out = le.AppendUint32(out, uint32(v))
			}
		}
	}
	return out
}

// external returns the part of an external data file that a tensor names.
func (d *decoder) external(p *onnxpb.TensorProto, size int) ([]byte, error) {
	entry := map[string]string{}
	for _, e := range p.ExternalData {
		entry[e.GetKey()] = e.GetValue()
	}
	if d.dir == "" {
		return nil, fmt.Errorf("its data are in the file %q: read the model with ReadFile or give ExternalDir", entry["location"])
	}
	number := func(key string, def int) (int, error) {
		if entry[key] == "" {
			return def, nil
		}
		n, err := strconv.ParseInt(entry[key], 10, 64)
		if err != nil || n < 0 || n > maxElements {
			return 0, fmt.Errorf("external data: %s %q is not valid", key, entry[key])
		}
		return int(n), nil
	}
	offset, err := number("offset", 0)
	if err != nil {
		return nil, err
	}
	length, err := number("length", size)
	if err != nil {
		return nil, err
	}
	b, err := d.file(entry["location"])
	if err != nil {
		return nil, err
	}
	if length != size || offset > len(b) || length > len(b)-offset {
		return nil, fmt.Errorf("external data: %d bytes at %d of %q, which has %d, are not the %d that the shape needs", length, offset, entry["location"], len(b), size)
	}
	return b[offset : offset+length : offset+length], nil
}
