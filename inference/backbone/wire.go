package backbone

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// ONNX models in wire form: field numbers are those of onnx.proto.

const (
	modelGraph, modelOpset, modelMetadata = 7, 8, 14

	graphNode, graphName, graphInitializer, graphInput, graphOutput, graphValueInfo = 1, 2, 5, 11, 12, 13

	nodeInput, nodeOutput, nodeName, nodeOp, nodeAttribute = 1, 2, 3, 4, 5

	attrName, attrInt, attrGraph, attrInts, attrGraphs, attrType = 1, 3, 6, 8, 11, 20

	tensorDims, tensorType, tensorName, tensorRaw, tensorExternal, tensorLocation = 1, 2, 8, 9, 13, 14

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
	tensor := appendInt(nil, 1, int64(t.elem))
	if t.known {
		tensor = appendBytes(tensor, 2, shape)
	}
	return appendBytes(appendText(nil, infoName, t.name), infoType, appendBytes(nil, 1, tensor))
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
	return s.tensor(name, elemFloat, raw.Bytes(), int64(len(v)))
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
