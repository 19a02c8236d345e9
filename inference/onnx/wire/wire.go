// Package wire reads and writes ONNX models in protobuf's wire form, field by
// field: nothing is copied, so that the weights of a mapped model stay where they
// are, and what is not understood can be written again as it was. Field numbers
// are those of onnx.proto.
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
	ModelGraph, ModelOpset, ModelMetadata = 7, 8, 14

	GraphNode, GraphInitializer, GraphInput, GraphOutput, GraphValueInfo = 1, 5, 11, 12, 13

	NodeInput, NodeOutput, NodeName, NodeOp, NodeAttribute = 1, 2, 3, 4, 5

	AttrName, AttrInt, AttrGraph, AttrInts, AttrGraphs, AttrType = 1, 3, 6, 8, 11, 20

	TensorDims, TensorType, TensorName, TensorRaw, TensorExternal, TensorLocation = 1, 2, 8, 9, 13, 14

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
	Val  []byte // what a length-delimited one holds
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

// Split takes the length-delimited fields of a number out of a message, and
// returns copies of the others.
func Split(b []byte, num Number, take func([]byte) error) (rest []byte, err error) {
	return Rewrite(b, func(out []byte, f Field) ([]byte, error) {
		if f.Num == num && f.Type == Bytes {
			return out, take(f.Val)
		}
		return append(out, f.Raw...), nil
	})
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
							dim := int64(-1)
							err := EachOf(f.Val, 1, func(f Field) error {
								if f.Type == protowire.VarintType && int64(f.Int) >= 0 {
									dim = int64(f.Int)
								}
								return nil
							})
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

// Encode writes a ValueInfoProto; an open first dimension is named N.
func (t ValueInfo) Encode() []byte {
	var shape []byte
	for i, d := range t.Dims {
		var dim []byte
		switch {
		case d >= 0:
			dim = AppendInt(nil, 1, d)
		case i == 0:
			dim = AppendBytes(nil, 2, "N")
		}
		shape = AppendBytes(shape, 1, dim)
	}
	tensor := AppendInt(nil, 1, int64(t.Elem))
	if t.Known {
		tensor = AppendBytes(tensor, 2, shape)
	}
	return AppendBytes(AppendBytes(nil, InfoName, t.Name), InfoType, AppendBytes(nil, 1, tensor))
}

// Initializer reads the head of a TensorProto: its name, how many floats it has (0
// for another type), and the file that holds them where the model does not.
func Initializer(b []byte) (name string, floats int, external string, err error) {
	floats = 1
	float := false
	mul := func(d uint64) {
		if d > 0 && (d > math.MaxInt32 || floats > math.MaxInt64/4/int(d)) {
			d = 1 // absurd; ONNX Runtime refuses such a tensor itself
		}
		floats *= int(d)
	}
	err = Each(b, func(f Field) error {
		switch {
		case f.Num == TensorDims && f.Type == protowire.VarintType:
			mul(f.Int)
		case f.Num == TensorDims && f.Type == Bytes: // packed
			for v := f.Val; len(v) > 0; {
				d, n := protowire.ConsumeVarint(v)
				if n < 0 {
					return malformed(n)
				}
				mul(d)
				v = v[n:]
			}
		case f.Num == TensorType:
			float = f.Int == Float || f.Int == Float16
		case f.Num == TensorName:
			name = string(f.Val)
		case f.Num == TensorExternal:
			key, value, err := Entry(f.Val)
			if key == "location" {
				external = value
			}
			return err
		}
		return nil
	})
	if !float {
		floats = 0
	}
	return name, floats, external, err
}
