package mapped

import "unsafe"

// Number is what files and tensors hold many of.
type Number interface {
	~bool | ~uint8 | ~int8 | ~uint16 | ~int16 | ~uint32 | ~int32 | ~uint64 | ~int64 | ~float32 | ~float64
}

// Bytes are the bytes of numbers, in the numbers' own memory; appending to them
// copies. It and Numbers rely on a little-endian machine, as every platform is
// that ONNX Runtime is published for.
func Bytes[T Number](s []T) []byte {
	n := len(s) * int(unsafe.Sizeof(*new(T)))
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), n)[:n:n]
}

// Numbers are those that little-endian bytes hold: in the bytes' own memory where
// it is aligned, in a copy elsewhere. Bytes behind the last whole one are left out.
func Numbers[T Number](b []byte) []T {
	size := int(unsafe.Sizeof(*new(T)))
	n := len(b) / size
	if p := unsafe.Pointer(unsafe.SliceData(b)); n > 0 && uintptr(p)%uintptr(size) == 0 {
		return unsafe.Slice((*T)(p), n)[:n:n]
	}
	out := make([]T, n)
	copy(Bytes(out), b)
	return out
}
