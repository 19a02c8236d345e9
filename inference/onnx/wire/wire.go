// Package wire reads and writes ONNX models in protobuf's wire form, field by
// field: nothing is copied, so that the weights of a mapped model stay where they
// are, and what is not understood can be written again as it was. Field numbers
// are those of onnx.proto, of IR version 10. [Node], [Attribute], [Tensor],
// [ValueInfo] and [Graph] are its messages, with the fields that Nearmiss knows; the
// larger parts of a graph stay encoded until somebody asks for them.
package wire

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrFormat is wrapped by every error that says a file is malformed or truncated.
// Retrying cannot help.
var ErrFormat = errors.New("unreadable weight file")

// Fields of a model and of what is in it.
const (
	ModelVersion, ModelProducer                          = 1, 2
	ModelGraph, ModelOpset, ModelMetadata, ModelFunction = 7, 8, 14, 25

	GraphNode, GraphName, GraphInitializer               = 1, 2, 5
	GraphInput, GraphOutput, GraphValueInfo, GraphSparse = 11, 12, 13, 15

	NodeInput, NodeOutput, NodeName, NodeOp, NodeAttribute, NodeDomain = 1, 2, 3, 4, 5, 7

	AttrName, AttrFloat, AttrInt, AttrString, AttrTensor, AttrGraph  = 1, 2, 3, 4, 5, 6
	AttrFloats, AttrInts, AttrStrings, AttrGraphs, AttrType, AttrRef = 7, 8, 9, 11, 20, 21

	TensorDims, TensorType, TensorName, TensorRaw, TensorExternal, TensorLocation = 1, 2, 8, 9, 13, 14
	// Data of types of their own; the others are among the Int32s.
	TensorFloats, TensorInt32s, TensorInt64s, TensorDoubles, TensorUint64s = 4, 5, 7, 10, 11
	tensorOutside                                                          = 1 // TensorProto.DataLocation

	InfoName, InfoType = 1, 2
)

// Some element types (TensorProto.DataType).
const (
	Float, Uint8, Float16 = 1, 2, 10
)

// Number is that of a field in its message.
type Number = protowire.Number

// Bytes is the type of length-delimited fields.
const Bytes = protowire.BytesType

// Field is one field of a message.
type Field struct {
	Num  Number
	Type protowire.Type
	Val  []byte // what a length-delimited one or one of fixed length holds
	Int  uint64 // the value of a varint
	Raw  []byte // all of it, with its tag
}

// Each calls f for every field of a message.
func Each(b []byte, f func(Field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed(n)
		}
		fd := Field{Num: num, Type: typ}
		var m int
		switch typ {
		case protowire.VarintType:
			fd.Int, m = protowire.ConsumeVarint(b[n:])
		case protowire.BytesType:
			fd.Val, m = protowire.ConsumeBytes(b[n:])
		default:
			m = protowire.ConsumeFieldValue(num, typ, b[n:])
		}
		if m < 0 {
			return malformed(m)
		}
		if typ == protowire.Fixed32Type || typ == protowire.Fixed64Type {
			fd.Val = b[n : n+m]
		}
		fd.Raw = b[:n+m]
		b = b[n+m:]
		if err := f(fd); err != nil {
			return err
		}
	}
	return nil
}

// malformed is the error of a length that package protowire gave.
func malformed(n int) error {
	return fmt.Errorf("%w: protobuf: %w", ErrFormat, protowire.ParseError(n))
}

// Rewrite builds a message of another: f appends what takes a field's place.
func Rewrite(b []byte, f func(out []byte, fd Field) ([]byte, error)) (out []byte, err error) {
	err = Each(b, func(fd Field) (err error) {
		out, err = f(out, fd)
		return err
	})
	return out, err
}

// AppendHead appends the head of a length-delimited field of size bytes.
func AppendHead(b []byte, num Number, size int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.BytesType), uint64(size))
}

// AppendBytes appends a length-delimited field.
func AppendBytes[T []byte | string](b []byte, num Number, v T) []byte {
	return append(AppendHead(b, num, len(v)), v...)
}

// AppendInt appends a varint.
func AppendInt(b []byte, num Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
}

// Entry reads a StringStringEntryProto.
func Entry(b []byte) (key, value string, err error) {
	err = Each(b, func(f Field) error {
		switch f.Num {
		case 1:
			key = string(f.Val)
		case 2:
			value = string(f.Val)
		}
		return nil
	})
	return key, value, err
}

// ValueInfo is a declared input, output or inner value.
type ValueInfo struct {
	Name  string
	Elem  int     // element type
	Known bool    // a shape is declared
	Dims  []int64 // -1: open
	// Params are the names of open dimensions, in the places of these; nil: none has one.
	Params []string
}

// ParseValueInfo reads a ValueInfoProto.
func ParseValueInfo(b []byte) (ValueInfo, error) {
	var t ValueInfo
	err := Each(b, func(f Field) error {
		switch f.Num {
		case InfoName:
			t.Name = string(f.Val)
		case InfoType:
			return EachOf(f.Val, 1, func(f Field) error { // TypeProto.tensor_type
				return Each(f.Val, func(f Field) error {
					switch f.Num {
					case 1:
						t.Elem = int(f.Int)
					case 2: // shape
						t.Known = true
						return EachOf(f.Val, 1, func(f Field) error {
							dim, param := int64(-1), ""
							err := Each(f.Val, func(f Field) error {
								switch {
								case f.Num == 1 && f.Type == protowire.VarintType && int64(f.Int) >= 0:
									dim = int64(f.Int)
								case f.Num == 2:
									param = string(f.Val)
								}
								return nil
							})
							if param != "" && t.Params == nil {
								t.Params = make([]string, len(t.Dims), len(t.Dims)+1)
							}
							if t.Params != nil {
								t.Params = append(t.Params, param)
							}
							t.Dims = append(t.Dims, dim)
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

// EachOf calls f for every field of one number.
func EachOf(b []byte, num Number, f func(Field) error) error {
	return Each(b, func(fd Field) error {
		if fd.Num != num {
			return nil
		}
		return f(fd)
	})
}

// Encode writes a ValueInfoProto; an open first dimension is named N where none has a
// name.
func (t ValueInfo) Encode() []byte {
	var shape []byte
	for i, d := range t.Dims {
		var dim []byte
		switch {
		case d >= 0:
			dim = AppendInt(nil, 1, d)
		case t.Params != nil:
			dim = AppendBytes(nil, 2, t.Params[i])
		case i == 0:
			dim = AppendBytes(nil, 2, "N")
		}
		shape = AppendBytes(shape, 1, dim)
	}
	tensor := AppendInt(nil, 1, int64(t.Elem))
	if t.Known {
		tensor = AppendBytes(tensor, 2, shape)
	}
	return AppendBytes(appendText(nil, InfoName, t.Name), InfoType, AppendBytes(nil, 1, tensor))
}

// Initializer reads the head of a TensorProto: its name, how many floats it has (0
// for another type), and the file that holds them where the model does not.
func Initializer(b []byte) (name string, floats int, external string, err error) {
	t, err := ParseTensor(b)
	if t.Elem == Float || t.Elem == Float16 {
		floats = 1
	}
	for _, d := range t.Dims {
		if d < 0 || d > 0 && (d > math.MaxInt32 || floats > math.MaxInt64/4/int(d)) {
			d = 1 // absurd; ONNX Runtime refuses such a tensor itself
		}
		floats *= int(d)
	}
	return t.Name, floats, t.External["location"], err
}
