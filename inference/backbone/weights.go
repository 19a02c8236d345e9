package backbone

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference/onnx"
	"github.com/nearmiss/nearmiss/internal/mapped"
)

// elementType is the storage type of a tensor in a weight file.
type elementType int

const (
	typeF32 elementType = iota
	typeF64
	typeF16
	typeBF16
	typeI64
	typeI32
	typeI16
	typeI8
	typeU8
	typeBool
)

var elementSizes = [...]int{
	typeF32: 4, typeF64: 8, typeF16: 2, typeBF16: 2, typeI64: 8,
	typeI32: 4, typeI16: 2, typeI8: 1, typeU8: 1, typeBool: 1,
}

// maxRank bounds the rank of a tensor in a weight file.
const maxRank = 8

// entry is one tensor of a weight file, not yet read.
type entry struct {
	typ   elementType
	shape []int
	// load returns the tensor's bytes, little-endian, row-major; it may alias
	// the file.
	load func() ([]byte, error)
}

// Weights is a set of named tensors read lazily from a file's bytes. Its float32
// tensors alias them where they can. It may be read from several goroutines.
type Weights struct {
	// Format is "safetensors", "npz" or "pth".
	Format string
	// Metadata holds the file's own string properties (safetensors
	// __metadata__), often empty.
	Metadata map[string]string

	path    string   // of the file, "" where there is none
	names   []string // in the file's order
	entries map[string]entry
}

// ReadWeights reads the index of a safetensors or .npz file held in memory.
// Tensors alias data.
func ReadWeights(data []byte) (*Weights, error) {
	switch {
	case isZip(data):
		return readNPZ(data)
	case isSafetensors(data):
		return readSafetensors(data)
	case isTorchPickle(data):
		return readTorch(data, nil)
	}
	return nil, notWeights(data)
}

// notWeights says what a file is that is no weights.
func notWeights(data []byte) error {
	text := bytes.TrimLeft(data[:min(len(data), 512)], " \t\r\n")
	low := bytes.ToLower(text)
	switch {
	case bytes.HasPrefix(text, []byte("version https://git-lfs")):
		return formatError("this is a Git LFS pointer, not the file that it stands for: run \"git lfs pull\" where it lies, or download the file itself")
	case bytes.HasPrefix(low, []byte("<!doctype")), bytes.HasPrefix(low, []byte("<html")):
		return formatError("this is a web page, not weights: the address that it came from shows the file, download the file itself (a \"raw\" or \"resolve\" address)")
	case bytes.HasPrefix(text, []byte("{")) || bytes.HasPrefix(low, []byte("<?xml")):
		return formatError("this is a text file (%.40q), not weights", text)
	case looksONNX(data):
		return formatError("this is an ONNX model that is cut off or corrupt (%d bytes): copy or download it again", len(data))
	case bytes.HasPrefix(data, []byte("\x89HDF\r\n")):
		return formatError("this is an HDF5 file (Keras), which is not read: export the model to ONNX and import that")
	case len(data) > 9 && binary.LittleEndian.Uint64(data) <= maxSafetensorsHeader && data[8] == '{':
		return formatError("this is a safetensors file that is cut off (%d bytes)", len(data))
	case bytes.HasPrefix(data, []byte("\x1f\x8b")), bytes.HasPrefix(data, []byte("7z\xbc\xaf")), bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		return formatError("this is a compressed file: unpack it first")
	}
	return formatError("this is neither safetensors, .npz, a PyTorch file nor an ONNX model (%d bytes, starts with %q)", len(data), data[:min(len(data), 8)])
}

func isZip(b []byte) bool { return bytes.HasPrefix(b, []byte("PK\x03\x04")) }

// Has reports whether a tensor of that name exists.
func (w *Weights) Has(name string) bool { _, ok := w.entries[name]; return ok }

// Shape returns the shape of a tensor, nil if there is none of that name.
func (w *Weights) Shape(name string) []int { return w.entries[name].shape }

// Float32 returns the tensor as float32, converted from float64, float16 or
// bfloat16 where need be. want, if given, is the shape it must have; −1 there
// takes any size.
func (w *Weights) Float32(name string, want ...int) (onnx.Tensor, error) {
	e, ok := w.entries[name]
	if !ok {
		return onnx.Tensor{}, formatError("tensor %q is missing", name)
	}
	if len(want) > 0 && !shapeMatches(e.shape, want) {
		return onnx.Tensor{}, architectureError("tensor %q has shape %v, want %v", name, e.shape, want)
	}
	raw, err := e.load()
	if err != nil {
		return onnx.Tensor{}, fmt.Errorf("read tensor %q: %w", name, err)
	}
	t := onnx.Tensor{Name: name, Type: onnx.Float, Shape: slices.Clone(e.shape)}
	switch e.typ {
	case typeF32:
		t.Data = raw
	case typeF64, typeF16, typeBF16:
		t.Data = mapped.Bytes(widen(e.typ, raw))
	default:
		return onnx.Tensor{}, formatError("tensor %q holds integers, want floating point", name)
	}
	return t, nil
}

func (w *Weights) add(name string, e entry) error {
	if _, dup := w.entries[name]; dup {
		return formatError("tensor %q appears twice", name)
	}
	w.names = append(w.names, name)
	w.entries[name] = e
	return nil
}

func newWeights(format string) *Weights {
	return &Weights{Format: format, Metadata: map[string]string{}, entries: map[string]entry{}}
}

func shapeMatches(got, want []int) bool {
	return slices.EqualFunc(got, want, func(g, w int) bool { return w < 0 || g == w })
}

// byteSize is the number of bytes of a dense tensor, with overflow checked.
func byteSize(shape []int, typ elementType) (int, error) {
	if len(shape) > maxRank {
		return 0, formatError("a tensor has rank %d, want at most %d", len(shape), maxRank)
	}
	n := elementSizes[typ]
	for _, d := range shape {
		if d < 0 {
			return 0, formatError("a tensor has the negative dimension %d", d)
		}
		if d > 0 && n > math.MaxInt64/2/d {
			return 0, formatError("a tensor of shape %v is too large", shape)
		}
		n *= d
	}
	return n, nil
}

// widen converts little-endian floats of another width to float32.
func widen(typ elementType, raw []byte) []float32 {
	out := make([]float32, len(raw)/elementSizes[typ])
	for i := range out {
		switch typ {
		case typeF64:
			out[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(raw[8*i:])))
		case typeBF16:
			out[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(raw[2*i:])) << 16)
		case typeF16:
			out[i] = onnx.Half(binary.LittleEndian.Uint16(raw[2*i:]))
		}
	}
	return out
}

// mapFile maps path, or reads it where mapping is not to be had.
func mapFile(path string) (data []byte, unmap func() error, err error) {
	f, err := mapped.Open(path)
	switch {
	case errors.Is(err, mapped.ErrNotFile):
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	case err != nil:
		return nil, nil, err
	case len(f.Data) == 0:
		return nil, nil, formatError("the file is empty")
	}
	return f.Data, f.Close, nil
}
