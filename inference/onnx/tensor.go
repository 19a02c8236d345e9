package onnx

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/internal/mapped"
)

// DataType is an element type, numbered as TensorProto.DataType.
type DataType int32

// The element types of the ONNX specification that have a fixed width.
const (
	Undefined DataType = 0
	Float     DataType = 1
	Uint8     DataType = 2
	Int8      DataType = 3
	Uint16    DataType = 4
	Int16     DataType = 5
	Int32     DataType = 6
	Int64     DataType = 7
	String    DataType = 8 // named for messages only: not supported
	Bool      DataType = 9
	Float16   DataType = 10
	Double    DataType = 11
	Uint32    DataType = 12
	Uint64    DataType = 13
	BFloat16  DataType = 16
)

var typeNames = map[DataType]string{
	Undefined: "undefined", Float: "float", Uint8: "uint8", Int8: "int8",
	Uint16: "uint16", Int16: "int16", Int32: "int32", Int64: "int64",
	String: "string", Bool: "bool", Float16: "float16", Double: "double",
	Uint32: "uint32", Uint64: "uint64", BFloat16: "bfloat16",
}

// String returns the name that the ONNX documentation uses.
func (t DataType) String() string {
	if n, ok := typeNames[t]; ok {
		return n
	}
	return fmt.Sprintf("data type %d", int32(t))
}

// Size returns the bytes of one element, 0 for a type that is not supported.
func (t DataType) Size() int {
	switch t {
	case Uint8, Int8, Bool:
		return 1
	case Uint16, Int16, Float16, BFloat16:
		return 2
	case Float, Int32, Uint32:
		return 4
	case Double, Int64, Uint64:
		return 8
	}
	return 0
}

// IsFloat reports whether t is one of the floating-point types.
func (t DataType) IsFloat() bool {
	return t == Float || t == Double || t == Float16 || t == BFloat16
}

// Tensor is a constant: a weight or a folded value.
//
// Data holds the elements in row-major order, little-endian, and may alias the
// caller's memory or a mapped file: it must not change while a graph uses it.
type Tensor struct {
	Name  string
	Type  DataType
	Shape []int // empty for a scalar
	Data  []byte
}

// FromFloat32 returns a float tensor that aliases data.
func FromFloat32(name string, data []float32, shape ...int) Tensor {
	return Tensor{Name: name, Type: Float, Shape: cloneShape(shape), Data: mapped.Bytes(data)}
}

// FromInt64 returns an int64 tensor that aliases data.
func FromInt64(name string, data []int64, shape ...int) Tensor {
	return Tensor{Name: name, Type: Int64, Shape: cloneShape(shape), Data: mapped.Bytes(data)}
}

// FromInt32 returns an int32 tensor that aliases data.
func FromInt32(name string, data []int32, shape ...int) Tensor {
	return Tensor{Name: name, Type: Int32, Shape: cloneShape(shape), Data: mapped.Bytes(data)}
}

// Elements returns the number of elements that the shape asks for.
func (t Tensor) Elements() int { return Elements(t.Shape) }

// Float32s returns the elements of a float tensor, or nil for another type.
// The result aliases Data where that is aligned to 4 bytes and is a copy
// otherwise.
func (t Tensor) Float32s() []float32 {
	if t.Type != Float {
		return nil
	}
	return mapped.Numbers[float32](t.Data)
}

// Float64s returns the elements of any numeric tensor as float64 copies, or
// nil for a type that has no such reading (string).
func (t Tensor) Float64s() []float64 {
	n := t.Elements()
	size := t.Type.Size()
	if size == 0 || len(t.Data) < n*size {
		return nil
	}
	out := make([]float64, n)
	for i := range out {
		b := t.Data[i*size:]
		switch t.Type {
		case Float:
			out[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
		case Double:
			out[i] = math.Float64frombits(binary.LittleEndian.Uint64(b))
		case Float16:
			out[i] = float64(Half(binary.LittleEndian.Uint16(b)))
		case BFloat16:
			out[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
		default:
			out[i] = float64(integerAt(t.Type, b))
		}
	}
	return out
}

// Ints returns the elements of an integer or bool tensor as int64 copies, or
// nil for a floating-point one.
func (t Tensor) Ints() []int64 {
	n := t.Elements()
	size := t.Type.Size()
	if size == 0 || t.Type.IsFloat() || len(t.Data) < n*size {
		return nil
	}
	out := make([]int64, n)
	for i := range out {
		out[i] = integerAt(t.Type, t.Data[i*size:])
	}
	return out
}

// check reports a tensor whose data does not fit its type and shape.
func (t Tensor) check() error {
	size := t.Type.Size()
	if size == 0 {
		return fmt.Errorf("tensor %q: element type %s is not supported", t.Name, t.Type)
	}
	n, err := elements(t.Shape)
	if err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	if len(t.Data)/size != n || len(t.Data)%size != 0 {
		return fmt.Errorf("tensor %q: %s%v needs %d elements of %d bytes, has %d bytes", t.Name, t.Type, t.Shape, n, size, len(t.Data))
	}
	return nil
}

func integerAt(t DataType, b []byte) int64 {
	switch t {
	case Uint8, Bool:
		return int64(b[0])
	case Int8:
		return int64(int8(b[0]))
	case Uint16:
		return int64(binary.LittleEndian.Uint16(b))
	case Int16:
		return int64(int16(binary.LittleEndian.Uint16(b)))
	case Int32:
		return int64(int32(binary.LittleEndian.Uint32(b)))
	case Uint32:
		return int64(binary.LittleEndian.Uint32(b))
	default:
		return int64(binary.LittleEndian.Uint64(b))
	}
}

// tensorOf encodes values, which are float64 for floating-point types and
// int64 otherwise, as type t.
func tensorOf(t DataType, shape []int, floats []float64, ints []int64) *Tensor {
	n := Elements(shape)
	size := t.Size()
	data := make([]byte, n*size)
	for i := range n {
		b := data[i*size:]
		switch t {
		case Float:
			binary.LittleEndian.PutUint32(b, math.Float32bits(float32(floats[i])))
		case Double:
			binary.LittleEndian.PutUint64(b, math.Float64bits(floats[i]))
		default:
			v := uint64(ints[i])
			switch size {
			case 1:
				b[0] = byte(v)
			case 2:
				binary.LittleEndian.PutUint16(b, uint16(v))
			case 4:
				binary.LittleEndian.PutUint32(b, uint32(v))
			case 8:
				binary.LittleEndian.PutUint64(b, v)
			}
		}
	}
	return &Tensor{Type: t, Shape: cloneShape(shape), Data: data}
}

// Half is the number that an IEEE 754 binary16 stands for.
func Half(h uint16) float32 {
	sign := uint32(h>>15) << 31
	exp, frac := uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch {
	case exp == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	case exp != 0:
		return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
	default: // zero or subnormal: frac · 2⁻²⁴
		v := float32(frac) / (1 << 24)
		return math.Float32frombits(sign | math.Float32bits(v))
	}
}

// ToHalf rounds to the nearest IEEE 754 binary16, ties to even; ok is false where
// that is no finite number.
func ToHalf(v float32) (h uint16, ok bool) {
	b := math.Float32bits(v)
	sign := uint16(b>>16) & 0x8000
	b &^= 1 << 31
	switch {
	case b >= 0x477ff000: // 65520, infinity and NaN
		return 0, false
	case b < 0x38800000: // below 2⁻¹⁴ in steps of 2⁻²⁴, as floats from a half to one are
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5)), true
	}
	b += 1<<12 - 1 + b>>13&1 // a carry runs into the exponent, as it should
	return sign | uint16(b>>13-112<<10), true
}

// maxElements bounds the elements of any tensor, so that products of
// dimensions and byte counts stay far from overflow.
const maxElements = 1 << 48

// elements returns the product of shape, or an error when a dimension is
// negative or the product too large.
func elements(shape []int) (int, error) {
	n := 1
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", shape)
		}
		if d > maxElements || d != 0 && n > maxElements/d {
			return 0, fmt.Errorf("shape %v has too many elements", shape)
		}
		n *= d
	}
	return n, nil
}

// Axes are the numbers from, from+1, … to−1.
func Axes(from, to int) []int {
	out := make([]int, max(to-from, 0))
	for i := range out {
		out[i] = from + i
	}
	return out
}

// PerChannel is the shape [C, 1, …], which broadcasts over [N, C, …] of a rank of 2 or more.
func PerChannel(channels, rank int) []int {
	return append([]int{channels}, slices.Repeat([]int{1}, rank-2)...)
}

// Elements is the product of dimensions.
func Elements(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func cloneShape(s []int) []int { return append(make([]int, 0, len(s)), s...) }
