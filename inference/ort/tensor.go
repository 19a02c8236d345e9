package ort

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	onnxruntime "github.com/yalue/onnxruntime_go"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// Type is the element type of a tensor.
type Type = onnx.DataType

// The element types that tensors can have here.
const (
	Float    = onnx.Float
	Uint8    = onnx.Uint8
	Int8     = onnx.Int8
	Uint16   = onnx.Uint16
	Int16    = onnx.Int16
	Int32    = onnx.Int32
	Int64    = onnx.Int64
	Bool     = onnx.Bool
	Float16  = onnx.Float16
	Double   = onnx.Double
	Uint32   = onnx.Uint32
	Uint64   = onnx.Uint64
	BFloat16 = onnx.BFloat16
)

// Element is a Go type with an ONNX element type.
type Element interface {
	float32 | float64 | uint8 | int8 | uint16 | int16 | int32 | int64 | uint32 | uint64 | bool
}

// typeOf returns the element type of a Go type.
func typeOf[T Element]() Type {
	var z T
	switch any(z).(type) {
	case float32:
		return Float
	case float64:
		return Double
	case uint8:
		return Uint8
	case int8:
		return Int8
	case uint16:
		return Uint16
	case int16:
		return Int16
	case int32:
		return Int32
	case int64:
		return Int64
	case uint32:
		return Uint32
	case uint64:
		return Uint64
	}
	return Bool
}

// Tensor is an ONNX Runtime value over Go memory. The memory is pinned until
// Close; reading and writing it through the slices is allowed whenever no Run
// uses the tensor. A tensor that is dropped without Close is released by the
// garbage collector, but its slices keep their memory. One that [Memory.Tensor] made is
// in the memory of a device, out of reach of slices.
type Tensor struct {
	typ   Type
	shape []int
	data  []byte // nil on a device
	h     *handle
	gc    runtime.Cleanup
}

// handle is what must be given back exactly once.
type handle struct {
	once  sync.Once
	value onnxruntime.Value // nil for scalars: see runValue
	pin   runtime.Pinner
}

func (h *handle) release() {
	h.once.Do(func() {
		if h.value != nil {
			_ = h.value.Destroy()
		}
		h.pin.Unpin()
	})
}

// NewTensor returns a tensor that aliases data, whose length must be the
// product of shape (1 for a scalar, whose shape is empty).
func NewTensor[T Element](shape []int, data []T) (*Tensor, error) {
	return NewRaw(typeOf[T](), shape, mapped.Bytes(data))
}

// Zeros returns a tensor of zeros in memory of its own.
func Zeros(t Type, shape ...int) (*Tensor, error) {
	n, err := byteSize(t, shape)
	if err != nil {
		return nil, err
	}
	// Allocated as 8-byte words: every element type is then aligned.
	return NewRaw(t, shape, mapped.Bytes(make([]uint64, (n+7)/8))[:n])
}

func byteSize(t Type, shape []int) (int, error) {
	size := t.Size()
	if size == 0 {
		return 0, fmt.Errorf("create tensor %v: element %s is not supported", shape, t)
	}
	n := size
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("create %s tensor: shape %v has a negative dimension", t, shape)
		}
		if d > 0 && n > (1<<62)/d {
			return 0, fmt.Errorf("create %s tensor: shape %v is too large", t, shape)
		}
		n *= d
	}
	return n, nil
}

// NewRaw returns a tensor over little-endian bytes, which it aliases. The
// bytes must be aligned to the element's size.
func NewRaw(t Type, shape []int, data []byte) (*Tensor, error) {
	want, err := byteSize(t, shape)
	if err != nil {
		return nil, err
	}
	if len(data) != want {
		return nil, fmt.Errorf("create %s tensor of shape %v: got %d bytes, want %d", t, shape, len(data), want)
	}
	if want > 0 && uintptr(unsafe.Pointer(&data[0]))%uintptr(t.Size()) != 0 {
		return nil, fmt.Errorf("create %s tensor of shape %v: the memory is not aligned to %d bytes", t, shape, t.Size())
	}
	if err := Load(); err != nil {
		return nil, err
	}
	h := &handle{}
	if want > 0 {
		h.pin.Pin(&data[0])
	}
	if len(shape) > 0 {
		h.value, err = newValue(t, shape, data)
		if err != nil {
			h.pin.Unpin()
			return nil, fmt.Errorf("create %s tensor of shape %v: %s", t, shape, oneLine(err))
		}
	}
	return newTensor(t, shape, data, h), nil
}

func newTensor(t Type, shape []int, data []byte, h *handle) *Tensor {
	x := &Tensor{typ: t, shape: slices.Clone(shape), data: data, h: h}
	x.gc = runtime.AddCleanup(x, func(h *handle) { h.release() }, h)
	return x
}

func newValue(t Type, shape []int, data []byte) (onnxruntime.Value, error) {
	dims := make(onnxruntime.Shape, len(shape))
	for i, d := range shape {
		dims[i] = int64(d)
	}
	if len(data) > 0 {
		return onnxruntime.NewCustomDataTensor(dims, data, onnxruntime.TensorElementDataType(t))
	}
	// A tensor without elements: the binding takes it only as a typed one.
	switch t {
	case Float:
		return onnxruntime.NewTensor(dims, []float32{})
	case Double:
		return onnxruntime.NewTensor(dims, []float64{})
	case Int64:
		return onnxruntime.NewTensor(dims, []int64{})
	case Int32:
		return onnxruntime.NewTensor(dims, []int32{})
	case Uint8:
		return onnxruntime.NewTensor(dims, []uint8{})
	case Bool:
		return onnxruntime.NewTensor(dims, []bool{})
	}
	return nil, fmt.Errorf("an empty tensor of %s is not supported", t)
}

// Type returns the element type.
func (t *Tensor) Type() Type { return t.typ }

// Shape returns a copy of the dimensions; empty for a scalar.
func (t *Tensor) Shape() []int { return slices.Clone(t.shape) }

// OnDevice says whether the elements are in a [Memory].
func (t *Tensor) OnDevice() bool {
	_, ok := t.h.value.(*foreignValue)
	return ok
}

// Len returns the number of elements.
func (t *Tensor) Len() int { return len(t.Bytes()) / t.typ.Size() }

// Bytes returns the elements as little-endian bytes, without a copy. It panics when
// they are on a device.
func (t *Tensor) Bytes() []byte {
	if t.OnDevice() {
		panic("ort: a tensor on a device is read as if it were in Go's memory")
	}
	return t.data
}

// Data returns the elements without a copy. It panics when T is not the
// tensor's element type, like a failed type assertion, or they are on a device.
func Data[T Element](t *Tensor) []T {
	if typeOf[T]() != t.typ {
		panic(fmt.Sprintf("ort: a %s tensor read as %s", t.typ, typeOf[T]()))
	}
	b := t.Bytes()
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/t.typ.Size())
}

// Float32s is Data[float32].
func (t *Tensor) Float32s() []float32 { return Data[float32](t) }

// Int64s is Data[int64].
func (t *Tensor) Int64s() []int64 { return Data[int64](t) }

// Close gives back the ONNX Runtime value and unpins the memory. It must not
// run while a Run uses the tensor. Closing twice is allowed.
func (t *Tensor) Close() {
	if t == nil {
		return
	}
	t.gc.Stop()
	t.h.release()
}

// CloseAll closes tensors; nil ones are passed over.
func CloseAll(ts ...*Tensor) {
	for _, t := range ts {
		t.Close()
	}
}

// scalarValue makes a temporary value for a tensor without dimensions: the
// binding's scalars own their memory, so it is copied in here and, for an
// output, back by the returned function.
func scalarValue(t *Tensor) (onnxruntime.Value, func(), error) {
	switch t.typ {
	case Float:
		return scalarOf(Data[float32](t))
	case Double:
		return scalarOf(Data[float64](t))
	case Int64:
		return scalarOf(Data[int64](t))
	case Int32:
		return scalarOf(Data[int32](t))
	case Uint8:
		return scalarOf(Data[uint8](t))
	case Bool:
		return scalarOf(Data[bool](t))
	}
	return nil, nil, fmt.Errorf("a scalar of %s is not supported", t.typ)
}

func scalarOf[T onnxruntime.TensorData](data []T) (onnxruntime.Value, func(), error) {
	s, err := onnxruntime.NewScalar(data[0])
	if err != nil {
		return nil, nil, err
	}
	return s, func() { data[0] = s.GetData() }, nil
}
