package onnx

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/nearmiss/nearmiss/inference/onnx/internal/onnxpb"
	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// maxMessage is the size that no protobuf message may reach.
const maxMessage = math.MaxInt32

// ErrTooLarge is returned by [Graph.Encode] for a model that does not fit one
// protobuf message: [Graph.WriteFile] puts its weights in a file beside it.
var ErrTooLarge = errors.New("model reaches the 2 GiB of one protobuf message: write it with WriteFile")

// Encode writes the model, all weights included. Nodes and initialisers that
// no output depends on are left out. Weights are streamed, not copied.
func (g *Graph) Encode(w io.Writer) error {
	m, err := g.message(nil)
	if err != nil {
		return err
	}
	if m.size >= maxMessage {
		return fmt.Errorf("encode %q: %w", g.name, ErrTooLarge)
	}
	return m.writeTo(w)
}

// Bytes returns what Encode writes.
func (g *Graph) Bytes() ([]byte, error) {
	m, err := g.message(nil)
	if err != nil {
		return nil, err
	}
	if m.size >= maxMessage {
		return nil, fmt.Errorf("encode %q: %w", g.name, ErrTooLarge)
	}
	var b bytes.Buffer
	b.Grow(m.size)
	err = m.writeTo(&b)
	return b.Bytes(), err
}

// message is an encoded model as pieces, those of weights aliasing them.
type message struct {
	pieces [][]byte
	size   int
}

func (m *message) add(p ...[]byte) {
	for _, b := range p {
		m.pieces = append(m.pieces, b)
		m.size += len(b)
	}
}

func (m *message) writeTo(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<16)
	for _, p := range m.pieces {
		if _, err := b.Write(p); err != nil {
			return err
		}
	}
	return b.Flush()
}

// placement is where an initialiser lies in the external data file.
type placement struct {
	location       string
	offset, length int
}

// message encodes the model; initialisers in external are written as
// references.
func (g *Graph) message(external map[*Value]placement) (*message, error) {
	if g.parent != nil {
		return nil, fmt.Errorf("encode %q: it is a subgraph, encode the model that it is in", g.name)
	}
	if g.err != nil {
		return nil, g.err
	}
	if len(g.outputs) == 0 {
		return nil, fmt.Errorf("encode %q: it has no outputs", g.name)
	}
	e := &encoder{live: g.liveValues(), domains: map[string]bool{}}
	body, err := e.graph(g)
	if err != nil {
		return nil, err
	}
	content := &message{}
	content.add(body)
	for _, v := range g.initializers {
		if e.live[v] {
			at, outside := external[v]
			content.add(e.initializer(v, at, outside)...)
		}
	}
	head := &onnxpb.ModelProto{
		IrVersion:    irVersion(g.opset),
		ProducerName: "nearmiss",
		OpsetImport:  []*onnxpb.OperatorSetIdProto{{Domain: "", Version: proto.Int64(int64(g.opset))}},
	}
	for _, d := range slices.Sorted(maps.Keys(e.domains)) {
		head.OpsetImport = append(head.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: d, Version: proto.Int64(1)})
	}
	for _, k := range slices.Sorted(maps.Keys(g.metadata)) {
		head.MetadataProps = append(head.MetadataProps, &onnxpb.StringStringEntryProto{Key: proto.String(k), Value: proto.String(g.metadata[k])})
	}
	b, err := marshal(head)
	if err != nil {
		return nil, err
	}
	m := &message{}
	m.add(wire.AppendHead(b, wire.ModelGraph, content.size))
	m.add(content.pieces...)
	return m, nil
}

// irVersion returns the file format version that came with an operator set
// (onnx/docs/Versioning.md).
func irVersion(opset int) int64 {
	switch {
	case opset <= 14:
		return 7
	case opset <= 18:
		return 8
	case opset <= 20:
		return 9
	case opset <= 22:
		return 10
	}
	return 11
}

func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// liveValues returns the values that the outputs of the model depend on.
func (g *Graph) liveValues() map[*Value]bool {
	live := map[*Value]bool{}
	for _, v := range g.outputs {
		live[v] = true
	}
	g.markLive(live)
	return live
}

// Live are the nodes that the outputs of g depend on: those that are written.
func (g *Graph) Live() []*Node {
	live := g.liveValues()
	return slices.DeleteFunc(slices.Clone(g.nodes), func(n *Node) bool { return !n.isLive(live) })
}

// markLive marks what the live values of g depend on, in g and around it.
// Nodes are in order, so one pass from the last to the first finds all.
func (g *Graph) markLive(live map[*Value]bool) {
	for _, n := range slices.Backward(g.nodes) {
		if !n.isLive(live) {
			continue
		}
		for _, v := range n.Inputs {
			if v != nil {
				live[v] = true
			}
		}
		for _, a := range n.Attrs {
			if body, ok := a.(*Graph); ok {
				for _, v := range body.outputs {
					live[v] = true
				}
				body.markLive(live)
			}
		}
	}
}

func (n *Node) isLive(live map[*Value]bool) bool {
	return slices.ContainsFunc(n.Outputs, func(v *Value) bool { return live[v] })
}

type encoder struct {
	live    map[*Value]bool
	domains map[string]bool
}

// graph encodes everything but the initialisers of a model's graph, or all of
// a subgraph.
func (e *encoder) graph(g *Graph) ([]byte, error) {
	p, err := e.graphProto(g)
	if err != nil {
		return nil, err
	}
	return marshal(p)
}

func (e *encoder) graphProto(g *Graph) (*onnxpb.GraphProto, error) {
	p := &onnxpb.GraphProto{Name: g.name}
	for _, v := range g.inputs {
		p.Input = append(p.Input, valueInfo(v))
	}
	for _, v := range g.outputs {
		p.Output = append(p.Output, valueInfo(v))
	}
	for _, n := range g.nodes {
		if !n.isLive(e.live) {
			continue
		}
		np, err := e.node(n)
		if err != nil {
			return nil, err
		}
		p.Node = append(p.Node, np)
	}
	if g.parent != nil {
		for _, v := range g.initializers {
			if e.live[v] {
				p.Initializer = append(p.Initializer, tensorProto(v.name, v.constant))
			}
		}
	}
	return p, nil
}

func valueInfo(v *Value) *onnxpb.ValueInfoProto {
	shape := &onnxpb.TensorShapeProto{}
	for i, d := range v.shape {
		dim := &onnxpb.TensorShapeProto_Dimension{Value: &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: int64(d)}}
		if name, free := v.dimNames[i]; free {
			dim.Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: name}
		}
		shape.Dim = append(shape.Dim, dim)
	}
	return &onnxpb.ValueInfoProto{Name: v.name, Type: &onnxpb.TypeProto{
		TensorType: &onnxpb.TypeProto_Tensor{ElemType: proto.Int32(int32(v.typ)), Shape: shape},
	}}
}

func (e *encoder) node(n *Node) (*onnxpb.NodeProto, error) {
	p := &onnxpb.NodeProto{Name: n.Name, OpType: n.OpType, Domain: n.Domain}
	if n.Domain != "" && n.Domain != "ai.onnx" {
		e.domains[n.Domain] = true
	}
	for _, v := range n.Inputs {
		if v == nil {
			p.Input = append(p.Input, "")
			continue
		}
		p.Input = append(p.Input, v.name)
	}
	for _, v := range n.Outputs {
		p.Output = append(p.Output, v.name)
	}
	for _, name := range slices.Sorted(maps.Keys(n.Attrs)) {
		a, err := e.attribute(name, n.Attrs[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		p.Attribute = append(p.Attribute, a)
	}
	return p, nil
}

func (e *encoder) attribute(name string, value any) (*onnxpb.AttributeProto, error) {
	a := &onnxpb.AttributeProto{Name: proto.String(name)}
	kind := func(t onnxpb.AttributeProto_Type) { a.Type = t.Enum() }
	switch v := value.(type) {
	case int64:
		a.I = proto.Int64(v)
		kind(onnxpb.AttributeProto_INT)
	case float32:
		a.F = proto.Float32(v)
		kind(onnxpb.AttributeProto_FLOAT)
	case string:
		a.S = []byte(v)
		kind(onnxpb.AttributeProto_STRING)
	case []int64:
		a.Ints = v
		kind(onnxpb.AttributeProto_INTS)
	case []float32:
		a.Floats = v
		kind(onnxpb.AttributeProto_FLOATS)
	case []string:
		for _, s := range v {
			a.Strings = append(a.Strings, []byte(s))
		}
		kind(onnxpb.AttributeProto_STRINGS)
	case *Tensor:
		a.T = tensorProto(v.Name, v)
		kind(onnxpb.AttributeProto_TENSOR)
	case *Graph:
		p, err := e.graphProto(v)
		if err != nil {
			return nil, err
		}
		a.G = p
		kind(onnxpb.AttributeProto_GRAPH)
	default:
		return nil, fmt.Errorf("attribute %q has type %T", name, value)
	}
	return a, nil
}

func tensorHead(name string, t *Tensor) *onnxpb.TensorProto {
	p := &onnxpb.TensorProto{Name: name, DataType: proto.Int32(int32(t.Type))}
	for _, d := range t.Shape {
		p.Dims = append(p.Dims, int64(d))
	}
	return p
}

// tensorProto is the form of small tensors inside nodes and subgraphs: the raw
// data, which the generated type does not have, travel as an unknown field.
func tensorProto(name string, t *Tensor) *onnxpb.TensorProto {
	p := tensorHead(name, t)
	p.ProtoReflect().SetUnknown(wire.AppendBytes(nil, wire.TensorRaw, t.Data))
	return p
}

// initializer returns the pieces of one field of the graph's message.
func (e *encoder) initializer(v *Value, at placement, outside bool) [][]byte {
	p := tensorHead(v.name, v.constant)
	if outside {
		entry := func(k, val string) *onnxpb.StringStringEntryProto {
			return &onnxpb.StringStringEntryProto{Key: proto.String(k), Value: proto.String(val)}
		}
		p.ExternalData = []*onnxpb.StringStringEntryProto{
			entry("location", at.location),
			entry("offset", fmt.Sprint(at.offset)),
			entry("length", fmt.Sprint(at.length)),
		}
		p.DataLocation = onnxpb.TensorProto_EXTERNAL.Enum()
	}
	head, _ := marshal(p) // strings and numbers only: cannot fail
	data := v.constant.Data
	if outside {
		data = nil
	} else {
		head = wire.AppendHead(head, wire.TensorRaw, len(data))
	}
	frame := wire.AppendHead(nil, wire.GraphInitializer, len(head)+len(data))
	return [][]byte{append(frame, head...), data}
}
