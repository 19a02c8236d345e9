package backbone

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/nearmiss/nearmiss/inference/onnx/wire"
)

// maxGraphDepth bounds subgraphs within subgraphs.
const maxGraphDepth = 16

// sharedInitializers has the initialisers of a graph by name.
func sharedInitializers(graph []byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := wire.EachOf(graph, wire.GraphInitializer, func(f wire.Field) error {
		name, _, _, err := wire.Initializer(f.Val)
		out[name] = f.Val
		return err
	})
	return out, err
}

// unshare turns a node that is the Identity of an initialiser into an
// initialiser of its own, and returns nil for any other node. PyTorch's
// exporter merges weights that happen to be equal, such as the ones of every
// norm, and leaves such nodes behind: training must not tie them.
func unshare(node []byte, shared map[string][]byte) ([]byte, error) {
	n, err := wire.ParseNode(node)
	if err != nil || n.Op != "Identity" || len(n.Inputs) != 1 || len(n.Outputs) != 1 || n.Inputs[0] == n.Outputs[0] {
		return nil, err
	}
	if t, ok := shared[n.Inputs[0]]; ok {
		return renameField(t, wire.TensorName, map[string]string{n.Inputs[0]: n.Outputs[0]}), nil
	}
	return nil, nil
}

// tensorInfo declares a tensor.
func tensorInfo(name string, elem int, dims ...int64) wire.ValueInfo {
	return wire.ValueInfo{Name: name, Elem: elem, Known: true, Dims: dims}
}

// splice collects nodes and initialisers in wire form.
type splice struct {
	prefix         string // of names
	nodes, tensors [][]byte
	count          int
}

// node appends an operator with one output and returns the output's name.
func (s *splice) node(op string, in []string, out string, attrs ...[]byte) string {
	name := fmt.Sprintf("nearmiss/%s/%d/%s", s.prefix, s.count, op)
	s.count++
	out = cmp.Or(out, name+":0")
	b := wire.Node{Inputs: in, Outputs: []string{out}, Name: name, Op: op, Attributes: attrs}.Encode()
	s.nodes = append(s.nodes, b)
	return out
}

// mean is the mean over one axis, which is gone then or is kept with length 1.
func (s *splice) mean(opset int, x string, axis int64, keep bool) string {
	return s.reduce("ReduceMean", opset, x, axis, keep)
}

// reduce is an operator over one axis; the axis became an input with operator set
// 18.
func (s *splice) reduce(op string, opset int, x string, axis int64, keep bool) string {
	k := int64(0)
	if keep {
		k = 1
	}
	if opset >= 18 {
		return s.node(op, []string{x, s.ints(axis)}, "", intAttr("keepdims", k))
	}
	return s.node(op, []string{x}, "", intsAttr("axes", axis), intAttr("keepdims", k))
}

// ints is a list of integers.
func (s *splice) ints(v ...int64) string {
	var raw []byte
	for _, x := range v {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
	}
	return s.tensor(fmt.Sprintf("nearmiss/%s/const/%d", s.prefix, len(s.tensors)), 7, raw, int64(len(v)))
}

func (s *splice) floats(name string, v []float32) string {
	var raw bytes.Buffer
	_ = binary.Write(&raw, binary.LittleEndian, v)
	return s.tensor(name, wire.Float, raw.Bytes(), int64(len(v)))
}

func (s *splice) tensor(name string, elem int64, raw []byte, dims ...int64) string {
	var b []byte
	for _, d := range dims {
		b = wire.AppendInt(b, wire.TensorDims, d)
	}
	b = wire.AppendBytes(wire.AppendBytes(wire.AppendInt(b, wire.TensorType, elem), wire.TensorName, name), wire.TensorRaw, raw)
	s.tensors = append(s.tensors, b)
	return name
}

func intAttr(name string, v int64) []byte {
	return wire.AppendInt(wire.AppendInt(wire.AppendBytes(nil, wire.AttrName, name), wire.AttrInt, v), wire.AttrType, wire.TypeInt)
}

func intsAttr(name string, v ...int64) []byte {
	b := wire.AppendBytes(nil, wire.AttrName, name)
	for _, x := range v {
		b = wire.AppendInt(b, wire.AttrInts, x)
	}
	return wire.AppendInt(b, wire.AttrType, wire.TypeInts)
}

// renameField rewrites one string field of a message. A malformed message is
// left as it is: it has been parsed before.
func renameField(b []byte, tag wire.Number, names map[string]string) []byte {
	if len(names) == 0 {
		return b
	}
	changed := false
	out, _ := wire.Rewrite(b, func(out []byte, f wire.Field) ([]byte, error) {
		if f.Num == tag && f.Type == wire.Bytes {
			if to, ok := names[string(f.Val)]; ok {
				changed = true
				return wire.AppendBytes(out, tag, to), nil
			}
		}
		return append(out, f.Raw...), nil
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
	return wire.Rewrite(b, func(out []byte, f wire.Field) ([]byte, error) {
		switch f.Num {
		case wire.NodeInput, wire.NodeOutput:
			name := string(f.Val)
			if to, ok := names[name]; ok {
				name = to
			}
			return wire.AppendBytes(out, f.Num, name), nil
		case wire.NodeAttribute:
			a, err := renameAttribute(f.Val, names, depth)
			return wire.AppendBytes(out, f.Num, a), err
		}
		return append(out, f.Raw...), nil
	})
}

func renameAttribute(b []byte, names map[string]string, depth int) ([]byte, error) {
	return wire.Rewrite(b, func(out []byte, f wire.Field) ([]byte, error) {
		if f.Num != wire.AttrGraph && f.Num != wire.AttrGraphs {
			return append(out, f.Raw...), nil
		}
		g, err := wire.Rewrite(f.Val, func(out []byte, f wire.Field) ([]byte, error) {
			switch f.Num {
			case wire.GraphNode:
				n, err := renameNode(f.Val, names, depth+1)
				return wire.AppendBytes(out, f.Num, n), err
			case wire.GraphInput, wire.GraphOutput, wire.GraphValueInfo:
				return wire.AppendBytes(out, f.Num, renameField(f.Val, wire.InfoName, names)), nil
			case wire.GraphInitializer:
				return wire.AppendBytes(out, f.Num, renameField(f.Val, wire.TensorName, names)), nil
			}
			return append(out, f.Raw...), nil
		})
		return wire.AppendBytes(out, f.Num, g), err
	})
}
