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
	b := wire.AppendInt(nil, wire.ModelVersion, irVersion(g.opset))
	b = wire.AppendBytes(b, wire.ModelProducer, "nearmiss")
	b = wire.AppendBytes(b, wire.ModelOpset, wire.AppendInt(nil, 2, int64(g.opset)))
	for _, d := range slices.Sorted(maps.Keys(e.domains)) {
		b = wire.AppendBytes(b, wire.ModelOpset, wire.AppendInt(wire.AppendBytes(nil, 1, d), 2, 1))
	}
	for _, k := range slices.Sorted(maps.Keys(g.metadata)) {
		b = wire.AppendBytes(b, wire.ModelMetadata, wire.AppendEntry(nil, k, g.metadata[k]))
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
	p := wire.Graph{Name: g.name}
	for _, v := range g.inputs {
		p.Inputs = append(p.Inputs, valueInfo(v))
	}
	for _, v := range g.outputs {
		p.Outputs = append(p.Outputs, valueInfo(v))
	}
	for _, n := range g.nodes {
		if !n.isLive(e.live) {
			continue
		}
		b, err := e.node(n)
		if err != nil {
			return nil, err
		}
		p.Nodes = append(p.Nodes, b)
	}
	for _, v := range g.initializers {
		if g.parent != nil && e.live[v] {
			p.Initializers = append(p.Initializers, encodeTensor(v.name, v.constant))
		}
	}
	return p.Encode(), nil
}

func valueInfo(v *Value) wire.ValueInfo {
	t := wire.ValueInfo{Name: v.name, Elem: int(v.typ), Known: true}
	if len(v.dimNames) > 0 {
		t.Params = make([]string, len(v.shape))
	}
	for i, d := range v.shape {
		if name, free := v.dimNames[i]; free {
			d, t.Params[i] = -1, name
		}
		t.Dims = append(t.Dims, int64(d))
	}
	return t
}

func (e *encoder) node(n *Node) ([]byte, error) {
	p := wire.Node{Name: n.Name, Op: n.OpType, Domain: n.Domain}
	if n.Domain != "" && n.Domain != "ai.onnx" {
		e.domains[n.Domain] = true
	}
	for _, v := range n.Inputs {
		if v == nil {
			p.Inputs = append(p.Inputs, "")
			continue
		}
		p.Inputs = append(p.Inputs, v.name)
	}
	for _, v := range n.Outputs {
		p.Outputs = append(p.Outputs, v.name)
	}
	for _, name := range slices.Sorted(maps.Keys(n.Attrs)) {
		a, err := e.attribute(name, n.Attrs[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		p.Attributes = append(p.Attributes, a)
	}
	return p.Encode(), nil
}

func (e *encoder) attribute(name string, value any) ([]byte, error) {
	b := wire.AppendBytes(nil, wire.AttrName, name)
	kind := int64(0)
	switch v := value.(type) {
	case int64:
		b, kind = wire.AppendInt(b, wire.AttrInt, v), wire.TypeInt
	case float32:
		b, kind = wire.AppendFloat(b, wire.AttrFloat, v), wire.TypeFloat
	case string:
		b, kind = wire.AppendBytes(b, wire.AttrString, v), wire.TypeString
	case []int64:
		b, kind = wire.AppendInts(b, wire.AttrInts, v), wire.TypeInts
	case []float32:
		b, kind = wire.AppendFloats(b, wire.AttrFloats, v), wire.TypeFloats
	case []string:
		for _, s := range v {
			b = wire.AppendBytes(b, wire.AttrStrings, s)
		}
		kind = wire.TypeStrings
	case *Tensor:
		b, kind = wire.AppendBytes(b, wire.AttrTensor, encodeTensor(v.Name, v)), wire.TypeTensor
	case *Graph:
		body, err := e.graph(v)
		if err != nil {
			return nil, err
		}
		b, kind = wire.AppendBytes(b, wire.AttrGraph, body), wire.TypeGraph
	default:
		return nil, fmt.Errorf("attribute %q has type %T", name, value)
	}
	return wire.AppendInt(b, wire.AttrType, kind), nil
}

func tensorHead(name string, t *Tensor) wire.Tensor {
	p := wire.Tensor{Name: name, Elem: int(t.Type)}
	for _, d := range t.Shape {
		p.Dims = append(p.Dims, int64(d))
	}
	return p
}

// encodeTensor is the form of small tensors inside nodes and subgraphs.
func encodeTensor(name string, t *Tensor) []byte {
	return wire.AppendBytes(tensorHead(name, t).Encode(), wire.TensorRaw, t.Data)
}

// initializer returns the pieces of one field of the graph's message.
func (e *encoder) initializer(v *Value, at placement, outside bool) [][]byte {
	p, data := tensorHead(v.name, v.constant), v.constant.Data
	if outside {
		p.Outside, data = true, nil
		p.External = map[string]string{"location": at.location, "offset": fmt.Sprint(at.offset), "length": fmt.Sprint(at.length)}
	}
	head := p.Encode()
	if !outside {
		head = wire.AppendHead(head, wire.TensorRaw, len(data))
	}
	frame := wire.AppendHead(nil, wire.GraphInitializer, len(head)+len(data))
	return [][]byte{append(frame, head...), data}
}
