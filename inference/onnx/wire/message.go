package wire

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Node is a NodeProto: one operator.
type Node struct {
	Inputs, Outputs  []string // empty: absent
	Name, Op, Domain string
	Attributes       [][]byte // AttributeProtos
}

// ParseNode reads a NodeProto.
func ParseNode(b []byte) (n Node, err error) {
	err = Each(b, func(f Field) error {
		switch f.Num {
		case NodeInput:
			n.Inputs = append(n.Inputs, string(f.Val))
		case NodeOutput:
			n.Outputs = append(n.Outputs, string(f.Val))
		case NodeName:
			n.Name = string(f.Val)
		case NodeOp:
			n.Op = string(f.Val)
		case NodeAttribute:
			n.Attributes = append(n.Attributes, f.Val)
		case NodeDomain:
			n.Domain = string(f.Val)
		}
		return nil
	})
	return n, err
}

// Encode writes a NodeProto.
func (n Node) Encode() (b []byte) {
	for _, v := range n.Inputs {
		b = AppendBytes(b, NodeInput, v)
	}
	for _, v := range n.Outputs {
		b = AppendBytes(b, NodeOutput, v)
	}
	b = appendText(appendText(b, NodeName, n.Name), NodeOp, n.Op)
	for _, a := range n.Attributes {
		b = AppendBytes(b, NodeAttribute, a)
	}
	return appendText(b, NodeDomain, n.Domain)
}

// appendText appends a string, unless it is empty.
func appendText(b []byte, num Number, s string) []byte {
	if s == "" {
		return b
	}
	return AppendBytes(b, num, s)
}

// What an attribute holds (AttributeProto.AttributeType).
const (
	TypeFloat, TypeInt, TypeString, TypeTensor, TypeGraph = 1, 2, 3, 4, 5
	TypeFloats, TypeInts, TypeStrings                     = 6, 7, 8
)

// Attribute is an AttributeProto; Type says which of its values counts.
type Attribute struct {
	Name string
	Type int
	Of   string // attribute of a function that it refers to

	Float         float32
	Int           int64
	String        []byte
	Tensor, Graph []byte // a TensorProto, a GraphProto; nil: none
	Floats        []float32
	Ints          []int64
	Strings       []string
}

// ParseAttribute reads an AttributeProto.
func ParseAttribute(b []byte) (a Attribute, err error) {
	err = Each(b, func(f Field) error {
		switch f.Num {
		case AttrName:
			a.Name = string(f.Val)
		case AttrType:
			a.Type = int(f.Int)
		case AttrRef:
			a.Of = string(f.Val)
		case AttrFloat:
			for _, v := range f.floats() {
				a.Float = v
			}
		case AttrInt:
			a.Int = int64(f.Int)
		case AttrString:
			a.String = f.Val
		case AttrTensor:
			a.Tensor = f.Val
		case AttrGraph:
			a.Graph = f.Val
		case AttrFloats:
			a.Floats = append(a.Floats, f.floats()...)
		case AttrInts:
			return f.ints(func(v uint64) { a.Ints = append(a.Ints, int64(v)) })
		case AttrStrings:
			a.Strings = append(a.Strings, string(f.Val))
		}
		return nil
	})
	return a, err
}

// ints calls f for the numbers of a repeated varint, packed or one by one.
func (f Field) ints(do func(uint64)) error {
	if f.Type == protowire.VarintType {
		do(f.Int)
	}
	for v := f.Val; f.Type == Bytes && len(v) > 0; {
		d, n := protowire.ConsumeVarint(v)
		if n < 0 {
			return malformed(n)
		}
		do(d)
		v = v[n:]
	}
	return nil
}

// floats are those of a repeated float, packed or one by one.
func (f Field) floats() []float32 {
	out := make([]float32, len(f.Val)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(f.Val[4*i:]))
	}
	return out
}

// AppendInts appends a packed list of integers, unless it is empty.
func AppendInts[T int | int64](b []byte, num Number, all []T) []byte {
	var packed []byte
	for _, v := range all {
		packed = protowire.AppendVarint(packed, uint64(v))
	}
	return appendText(b, num, string(packed))
}

// AppendFloat appends a float.
func AppendFloat(b []byte, num Number, v float32) []byte {
	return protowire.AppendFixed32(protowire.AppendTag(b, num, protowire.Fixed32Type), math.Float32bits(v))
}

// AppendFloats appends a packed list of floats, unless it is empty.
func AppendFloats(b []byte, num Number, all []float32) []byte {
	var packed []byte
	for _, v := range all {
		packed = protowire.AppendFixed32(packed, math.Float32bits(v))
	}
	return appendText(b, num, string(packed))
}

// Tensor is the head of a TensorProto.
type Tensor struct {
	Name string
	Elem int // element type
	Dims []int64
	Raw  []byte // its data; nil: they are elsewhere
	// Outside says that the data lie in a file of their own, of which External says the
	// location, offset and length.
	Outside  bool
	External map[string]string

	message []byte
}

// ParseTensor reads a TensorProto, and does not touch its data.
func ParseTensor(b []byte) (Tensor, error) {
	t := Tensor{message: b}
	err := Each(b, func(f Field) error {
		switch f.Num {
		case TensorDims:
			return f.ints(func(v uint64) { t.Dims = append(t.Dims, int64(v)) })
		case TensorType:
			t.Elem = int(int32(f.Int))
		case TensorName:
			t.Name = string(f.Val)
		case TensorRaw:
			t.Raw = f.Val
		case TensorLocation:
			t.Outside = f.Int == tensorOutside
		case TensorExternal:
			key, value, err := Entry(f.Val)
			if t.External == nil {
				t.External = map[string]string{}
			}
			t.External[key] = value
			return err
		}
		return nil
	})
	return t, err
}

// Typed packs the data of a typed field, number num, of elements of size bytes.
func (t Tensor) Typed(num Number, size int) (out []byte, err error) {
	err = EachOf(t.message, num, func(f Field) error {
		if num == TensorFloats || num == TensorDoubles {
			out = append(out, f.Val...) // as they are wanted
			return nil
		}
		return f.ints(func(v uint64) {
			out = binary.LittleEndian.AppendUint64(out, v)
			out = out[:len(out)-8+size]
		})
	})
	return out, err
}

// Encode writes the head of a TensorProto; raw data may follow where none are outside.
func (t Tensor) Encode() []byte {
	b := appendText(AppendInt(AppendInts(nil, TensorDims, t.Dims), TensorType, int64(t.Elem)), TensorName, t.Name)
	if !t.Outside {
		return b
	}
	for _, key := range []string{"location", "offset", "length"} {
		b = AppendBytes(b, TensorExternal, AppendEntry(nil, key, t.External[key]))
	}
	return AppendInt(b, TensorLocation, tensorOutside)
}

// AppendEntry appends the fields of a StringStringEntryProto.
func AppendEntry(b []byte, key, value string) []byte {
	return AppendBytes(AppendBytes(b, 1, key), 2, value)
}

// Graph is a GraphProto, its nodes and weights as they are encoded.
type Graph struct {
	Name                string
	Nodes, Initializers [][]byte
	Inputs, Outputs     []ValueInfo
	Values              []ValueInfo // of what is between them
	Sparse              bool        // it has sparse initialisers
}

// ParseGraph reads a GraphProto.
func ParseGraph(b []byte) (g Graph, err error) {
	err = Each(b, func(f Field) (err error) {
		switch f.Num {
		case GraphNode:
			g.Nodes = append(g.Nodes, f.Val)
		case GraphName:
			g.Name = string(f.Val)
		case GraphInitializer:
			g.Initializers = append(g.Initializers, f.Val)
		case GraphInput, GraphOutput, GraphValueInfo:
			to := map[Number]*[]ValueInfo{GraphInput: &g.Inputs, GraphOutput: &g.Outputs, GraphValueInfo: &g.Values}[f.Num]
			t, err := ParseValueInfo(f.Val)
			*to = append(*to, t)
			return err
		case GraphSparse:
			g.Sparse = true
		}
		return nil
	})
	return g, err
}

// Encode writes a GraphProto.
func (g Graph) Encode() (b []byte) {
	for _, n := range g.Nodes {
		b = AppendBytes(b, GraphNode, n)
	}
	b = appendText(b, GraphName, g.Name)
	for _, t := range g.Initializers {
		b = AppendBytes(b, GraphInitializer, t)
	}
	for _, v := range g.Inputs {
		b = AppendBytes(b, GraphInput, v.Encode())
	}
	for _, v := range g.Outputs {
		b = AppendBytes(b, GraphOutput, v.Encode())
	}
	return b
}
