package backbone

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// An .npz file is a zip archive of .npy members: the magic "\x93NUMPY", a
// version, a header length (uint16 in version 1, uint32 from 2 on), a Python
// dictionary literal with descr, fortran_order and shape, and the elements.
// Source: numpy.lib.format.

const (
	// maxNPYHeader bounds the dictionary of one member.
	maxNPYHeader = 1 << 16
	// maxDeflateRatio is what deflate can reach at most (1032:1): a member that
	// claims more is lying about its size.
	maxDeflateRatio = 1032
)

var npyTypes = map[string]elementType{
	"<f4": typeF32, "<f8": typeF64, "<f2": typeF16, "<i8": typeI64, "<i4": typeI32,
	"<i2": typeI16, "|i1": typeI8, "|u1": typeU8, "|b1": typeBool,
}

func readNPZ(b []byte) (*Weights, error) {
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, formatError("npz: %v", err)
	}
	w := newWeights("npz")
	for _, f := range z.File {
		name, ok := strings.CutSuffix(f.Name, ".npy")
		if !ok {
			if f.Name == "data.pkl" || strings.HasSuffix(f.Name, "/data.pkl") {
				return readTorch(b, z)
			}
			continue
		}
		e, err := npzEntry(b, f)
		if err != nil {
			return nil, fmt.Errorf("npz member %q: %w", f.Name, err)
		}
		if err := w.add(name, e); err != nil {
			return nil, err
		}
	}
	if len(w.names) == 0 {
		return nil, formatError("a zip archive with neither .npy members nor a PyTorch pickle (%d members)", len(z.File))
	}
	return w, nil
}

// npzEntry reads the header of one member and checks its size; the elements are
// read on demand, without a copy where the member is stored uncompressed.
func npzEntry(b []byte, f *zip.File) (entry, error) {
	var zero entry
	if f.Method != zip.Store && f.Method != zip.Deflate {
		return zero, formatError("compression method %d is not read", f.Method)
	}
	if f.Method == zip.Deflate && f.UncompressedSize64/maxDeflateRatio > f.CompressedSize64 {
		return zero, formatError("claims %d bytes from %d compressed ones", f.UncompressedSize64, f.CompressedSize64)
	}
	r, err := f.Open()
	if err != nil {
		return zero, formatError("%v", err)
	}
	dict, length, err := npyHeader(r)
	r.Close()
	if err != nil {
		return zero, err
	}
	typ, shape, fortran, err := parseNPYHeader(dict)
	if err != nil {
		return zero, err
	}
	size, err := byteSize(shape, typ)
	if err != nil {
		return zero, err
	}
	if want := uint64(length) + uint64(size); f.UncompressedSize64 != want {
		return zero, formatError("shape %v needs %d bytes, the member has %d", shape, want, f.UncompressedSize64)
	}
	load := func() ([]byte, error) { return npzBytes(b, f, length) }
	if fortran && len(shape) > 1 {
		inner := load
		load = func() ([]byte, error) {
			raw, err := inner()
			if err != nil {
				return nil, err
			}
			return rowMajor(raw, shape, elementSizes[typ]), nil
		}
	}
	return entry{typ, shape, load}, nil
}

// npzBytes returns a member's bytes after its .npy header, its CRC checked.
func npzBytes(b []byte, f *zip.File, skip int) ([]byte, error) {
	if f.Method == zip.Store {
		raw, err := zipBytes(b, f)
		if err != nil {
			return nil, err
		}
		if crc32.ChecksumIEEE(raw) != f.CRC32 {
			return nil, formatError("checksum mismatch: corrupt")
		}
		return raw[skip:], nil
	}
	r, err := f.Open()
	if err != nil {
		return nil, formatError("%v", err)
	}
	defer r.Close()
	raw := make([]byte, f.UncompressedSize64)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, formatError("%v", err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF { // EOF means the checksum is right
		return nil, formatError("checksum mismatch or trailing bytes: corrupt")
	}
	return raw[skip:], nil
}

// npyHeader reads the dictionary; length is that of magic, version, header length and
// dictionary together.
func npyHeader(r io.Reader) (dict string, length int, err error) {
	var fixed [10]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil || string(fixed[:6]) != "\x93NUMPY" {
		return "", 0, formatError("not a .npy array")
	}
	n, length := int(binary.LittleEndian.Uint16(fixed[8:])), 10
	if fixed[6] >= 2 {
		var more [2]byte
		if _, err := io.ReadFull(r, more[:]); err != nil {
			return "", 0, formatError("truncated .npy header")
		}
		n, length = n|int(binary.LittleEndian.Uint16(more[:]))<<16, 12
	}
	if n > maxNPYHeader {
		return "", 0, formatError(".npy header of %d bytes, want at most %d", n, maxNPYHeader)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", 0, formatError("truncated .npy header")
	}
	return string(text), length + n, nil
}

// parseNPYHeader reads {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }.
func parseNPYHeader(s string) (typ elementType, shape []int, fortran bool, err error) {
	descr, ok1 := between(s, "'descr':", "'", "'")
	dims, ok2 := between(s, "'shape':", "(", ")")
	order, ok3 := between(s, "'fortran_order':", "", ",")
	if !ok1 || !ok2 || !ok3 {
		return 0, nil, false, formatError(".npy header %q", s[:min(len(s), 80)])
	}
	typ, ok := npyTypes[descr]
	if !ok {
		return 0, nil, false, formatError("element type %q is not read", descr)
	}
	switch strings.TrimSpace(order) {
	case "True":
		fortran = true
	case "False":
	default:
		return 0, nil, false, formatError(".npy fortran_order %q", order)
	}
	shape = []int{}
	for d := range strings.SplitSeq(dims, ",") {
		d = strings.TrimSpace(d)
		if d == "" {
			continue
		}
		v, err := strconv.Atoi(d)
		if err != nil || v < 0 || len(shape) == maxRank {
			return 0, nil, false, formatError(".npy shape (%s)", dims)
		}
		shape = append(shape, v)
	}
	return typ, shape, fortran, nil
}

// between returns what stands between open and end, after key.
func between(s, key, open, end string) (string, bool) {
	_, s, ok := strings.Cut(s, key)
	if !ok {
		return "", false
	}
	if open != "" {
		var gap string
		if gap, s, ok = strings.Cut(s, open); !ok || strings.TrimSpace(gap) != "" {
			return "", false
		}
	}
	s, _, ok = strings.Cut(s, end)
	return s, ok
}

// rowMajor reorders column-major elements of the given size in bytes.
func rowMajor(raw []byte, shape []int, size int) []byte {
	stride, n := make([]int, len(shape)), 1
	for i, d := range shape {
		stride[i] = n
		n *= d
	}
	if n == 0 {
		return nil
	}
	return gather(raw, 0, shape, stride, size)
}
