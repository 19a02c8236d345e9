package imaging

import (
	"encoding/binary"
	"sync"
)

// huffman is a table of codes (T.81 C and F.2.2.3).
type huffman struct {
	symbols []uint8
	// quick has, for the first 9 bits, length << 8 | symbol; 0: longer.
	quick [1 << 9]uint16
	// most is the largest code of each length, its bits at the left of 16, plus
	// one; from the offset its symbols begin.
	most   [17]uint32
	offset [17]int
	// coefficient has, for the first 9 bits of an AC code that its value's bits
	// fit into as well, value << 8 | run << 4 | bits of both; 0: they do not fit.
	coefficient [1 << 9]int16
}

func newHuffman(counts []uint8, symbols []uint8) (*huffman, error) {
	h := &huffman{symbols: symbols}
	code, at := uint32(0), 0
	for n := 1; n <= 16; n++ {
		h.offset[n] = at - int(code)
		for range counts[n-1] {
			if code >= 1<<n {
				return nil, reject(CodeCorrupt, "the jpeg's Huffman table has too many codes")
			}
			if n <= 9 {
				for rest := range uint32(1) << (9 - n) {
					h.quick[code<<(9-n)|rest] = uint16(n)<<8 | uint16(symbols[at])
				}
			}
			code++
			at++
		}
		h.most[n] = code << (16 - n)
		code <<= 1
	}
	for i := range h.quick {
		q := h.quick[i]
		n, run, size := int(q>>8), int(q>>4&15), int(q&15)
		if n == 0 || size == 0 || n+size > 9 {
			continue
		}
		v := i >> (9 - n - size) & (1<<size - 1)
		if v < 1<<(size-1) {
			v += -1<<size + 1
		}
		if v >= -128 && v <= 127 {
			h.coefficient[i] = int16(v<<8 | run<<4 | (n + size))
		}
	}
	return h, nil
}

func (d *jpegReader) readHuffman(seg []byte) error {
	for len(seg) > 0 {
		if len(seg) < 17 {
			return reject(CodeCorrupt, "the jpeg's Huffman table is cut off")
		}
		class, id, n := seg[0]>>4, seg[0]&15, 0
		for _, c := range seg[1:17] {
			n += int(c)
		}
		if class > 1 || id > 3 || n > 256 || len(seg) < 17+n {
			return reject(CodeCorrupt, "the jpeg's Huffman table is damaged")
		}
		h, err := newHuffman(seg[1:17], seg[17:17+n])
		if err != nil {
			return err
		}
		d.huffman[class][id] = h
		seg = seg[17+n:]
	}
	return nil
}

// usualHuffman are the tables of T.81 K.3, by class and number: motion JPEG of
// cameras has none of its own.
var usualHuffman = sync.OnceValue(func() *[2][2]*huffman {
	// The AC tables' longest codes belong to all symbols that are not named
	// before, in their order.
	rest := func(named []uint8) []uint8 {
		known := [256]bool{}
		for _, s := range named {
			known[s] = true
		}
		for run := range 16 {
			for size := 1; size <= 10; size++ {
				if s := uint8(run<<4 | size); !known[s] {
					named = append(named, s)
				}
			}
		}
		return named
	}
	twelve := []uint8{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	out := &[2][2]*huffman{}
	for _, t := range []struct {
		class, id       int
		counts, symbols []uint8
	}{
		{0, 0, []uint8{0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}, twelve},
		{0, 1, []uint8{0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0}, twelve},
		{1, 0, []uint8{0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d}, rest([]uint8{
			0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14,
			0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82,
		})},
		{1, 1, []uint8{0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77}, rest([]uint8{
			0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32,
			0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16,
			0x24, 0x34, 0xe1, 0x25, 0xf1,
		})},
	} {
		h, err := newHuffman(t.counts, t.symbols)
		if err != nil {
			panic(err)
		}
		out[t.class][t.id] = h
	}
	return out
})

// table returns a Huffman table of a scan.
func (d *jpegReader) table(class, id int) (*huffman, error) {
	if h := d.huffman[class][id]; h != nil {
		return h, nil
	}
	if id < 2 {
		return usualHuffman()[class][id], nil
	}
	return nil, reject(CodeCorrupt, "the jpeg's Huffman table %d is missing", id)
}

// bitReader reads entropy-coded data. At a marker or the file's end it goes on
// with zeros, and counts them.
type bitReader struct {
	b    []byte
	at   int
	have uint64 // the next bits, at the left
	n    int    // of them that count
	void int    // of these that were not in the file
}

// fill sees to it that there are 32 bits or more.
func (r *bitReader) fill() {
	if r.n >= 32 {
		return
	}
	if r.at+8 <= len(r.b) {
		v := binary.BigEndian.Uint64(r.b[r.at:])
		if low := ^v; (low-0x0101010101010101)&^low&0x8080808080808080 == 0 { // no byte is 0xff
			r.have |= v >> r.n
			k := (63 - r.n) >> 3
			r.at += k
			r.n += 8 * k
			return
		}
	}
	for r.n <= 56 {
		var c byte
		switch {
		case r.at >= len(r.b):
			r.void += 8
		case r.b[r.at] != 0xff:
			c = r.b[r.at]
			r.at++
		case r.at+1 < len(r.b) && r.b[r.at+1] == 0:
			c = 0xff
			r.at += 2
		default: // a marker
			r.void += 8
		}
		r.have |= uint64(c) << (56 - r.n)
		r.n += 8
	}
}

func (r *bitReader) skip(n int) { r.have <<= n; r.n -= n }

// take returns the next n bits, at most 16; fill must have been called.
func (r *bitReader) take(n int) int32 {
	v := r.have >> 1 >> (63 - n)
	r.skip(n)
	return int32(v)
}

// overrun says whether bits were taken that are not in the file.
func (r *bitReader) overrun() bool { return r.n < r.void }

// extend reads a value of so many bits (T.81 F.2.2.1).
func (r *bitReader) extend(n int) int32 {
	if n == 0 {
		return 0
	}
	v := r.take(n)
	if v < 1<<(n-1) {
		v += -1<<n + 1
	}
	return v
}

// symbol decodes a code; fill must have been called. What is no code is 0xffff.
func (r *bitReader) symbol(h *huffman) int {
	if q := h.quick[r.have>>55]; q != 0 {
		r.skip(int(q >> 8))
		return int(q & 0xff)
	}
	top := uint32(r.have >> 48)
	for n := 10; n <= 16; n++ {
		if top < h.most[n] {
			r.skip(n)
			if i := h.offset[n] + int(top>>(16-n)); i >= 0 && i < len(h.symbols) {
				return int(h.symbols[i])
			}
			break
		}
	}
	return 0xffff
}
