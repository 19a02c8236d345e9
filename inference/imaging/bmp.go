package imaging

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// Compressions of a BMP.
const (
	bmpPlain     = 0
	bmpRLE8      = 1
	bmpRLE4      = 2
	bmpFields    = 3
	bmpAlphaToo  = 6
	bmpCore      = 12 // bytes of OS/2's header
	bmpInfo      = 40 // of BITMAPINFOHEADER; its successors go on after it
	bmpFieldsEnd = 52
)

// bmpHeader is what the headers of a BMP say.
type bmpHeader struct {
	w, h, bits  int
	fromTop     bool
	compression uint32
	pixels      int // where they begin
	masks       [3]uint32
	palette     []byte
	entry       int // bytes of a palette's colour
}

// openBMP reads the headers: OS/2's of 12, 16 and 64 bytes, and those of Windows
// from 40 to 124 bytes.
func openBMP(b []byte) (p bmpHeader, err error) {
	le := binary.LittleEndian
	if len(b) < 14+bmpCore {
		return p, reject(CodeTruncated, "the bmp ends within its header")
	}
	size := le.Uint32(b[14:])
	if uint64(size)+14 > uint64(len(b)) && size <= 1<<10 {
		return p, reject(CodeTruncated, "the bmp ends within its header")
	}
	colours := uint32(0)
	switch {
	case size == bmpCore:
		p.w, p.h, p.bits = int(le.Uint16(b[18:])), int(le.Uint16(b[20:])), int(le.Uint16(b[24:]))
		p.entry = 3
	case size == 16 || size >= bmpInfo && size <= 1<<10:
		w, h := int64(int32(le.Uint32(b[18:]))), int64(int32(le.Uint32(b[22:])))
		if h < 0 {
			p.fromTop, h = true, -h
		}
		if w < 0 {
			return p, reject(CodeCorrupt, "the bmp header says %d×%d pixels", w, h)
		}
		p.w, p.h, p.bits, p.entry = int(w), int(h), int(le.Uint16(b[28:])), 4
		if size >= bmpInfo {
			p.compression, colours = le.Uint32(b[30:]), le.Uint32(b[46:])
		}
	default:
		return p, reject(CodeCorrupt, "the bmp has a header of %d bytes", size)
	}
	table := 14 + int(size)
	switch {
	case p.compression == bmpPlain:
		if p.bits == 16 {
			p.masks = [3]uint32{0x7c00, 0x3e0, 0x1f}
		} else if p.bits == 32 {
			p.masks = [3]uint32{0xff0000, 0xff00, 0xff}
		}
	case p.compression == bmpRLE8 && p.bits == 8, p.compression == bmpRLE4 && p.bits == 4:
		if p.fromTop {
			return p, reject(CodeCorrupt, "the bmp is compressed, but has its rows from the top")
		}
	case size == 64:
		return p, reject(CodeUnsupported, "the bmp is compressed as OS/2 does (method %d)", p.compression)
	case (p.compression == bmpFields || p.compression == bmpAlphaToo) && (p.bits == 16 || p.bits == 32):
		if size == bmpInfo {
			table += 12
			if p.compression == bmpAlphaToo {
				table += 4
			}
		}
		if len(b) < 14+bmpFieldsEnd {
			return p, reject(CodeTruncated, "the bmp ends within its header")
		}
		for i := range p.masks {
			m := le.Uint32(b[54+4*i:])
			if p.masks[i] = m; m == 0 || bits.OnesCount32(m) != bits.Len32(m)-bits.TrailingZeros32(m) || p.bits == 16 && m > 0xffff {
				return p, reject(CodeCorrupt, "the bmp has the colour mask %#x", m)
			}
		}
	case p.compression == 4 || p.compression == 5:
		return p, reject(CodeUnsupported, "the bmp holds a JPEG or PNG file, save it plain")
	default:
		return p, reject(CodeUnsupported, "the bmp is compressed (method %d) with %d bits a pixel, save it plain", p.compression, p.bits)
	}
	switch p.bits {
	case 1, 2, 4, 8, 16, 24, 32:
	default:
		return p, reject(CodeUnsupported, "the bmp has %d bits a pixel", p.bits)
	}
	offset := int64(le.Uint32(b[10:]))
	if p.bits <= 8 {
		n := int64(1) << p.bits
		if colours > 0 && int64(colours) < n {
			n = int64(colours)
		}
		end := int64(table) + n*int64(p.entry)
		if offset > int64(table) && offset < end {
			end = offset
		}
		if end > int64(len(b)) {
			return p, reject(CodeTruncated, "the bmp ends within its palette")
		}
		p.palette = b[table:end]
		if len(p.palette) < p.entry || offset == int64(table) {
			return p, reject(CodeCorrupt, "the bmp has %d bits a pixel, and no palette", p.bits)
		}
		table = int(end)
	}
	if offset < int64(14+size) { // some writers leave it out
		offset = int64(table)
	}
	p.pixels = int(offset)
	return p, nil
}

// line is how many bytes a row takes in the file, where it is not compressed.
func (p *bmpHeader) line() int64 { return (int64(p.w)*int64(p.bits) + 31) / 32 * 4 }

func readBMP(b []byte) (stored, error) {
	s := stored{Header: Header{Format: BMP, Orientation: 1}}
	p, err := openBMP(b)
	s.Width, s.Height, s.Bits, s.Channels = p.w, p.h, 8, 3
	if err != nil {
		return s, err
	}
	if p.bits <= 8 {
		s.Bits, s.Channels = p.bits, 1
	} else if p.bits == 32 {
		s.Channels = 4
	}
	s.work = 4<<10 + int64(p.w)
	if p.w <= maxSide && p.h <= maxSide {
		s.least = int64(p.pixels)
		if p.compression != bmpRLE8 && p.compression != bmpRLE4 {
			s.least += p.line() * int64(p.h)
		}
	}
	return s, nil
}

// decodeBMP decodes into the sink. What the fourth byte of a pixel says is
// dropped: most writers leave it 0.
func decodeBMP(b []byte, s sink) error {
	p, err := openBMP(b)
	if err != nil {
		return err
	}
	if p.pixels > len(b) {
		return io.ErrUnexpectedEOF
	}
	data := b[p.pixels:]
	var colours [256][3]uint8 // beyond the palette: black
	for i := range len(p.palette) / p.entry {
		c := p.palette[i*p.entry:]
		colours[i] = [3]uint8{c[2], c[1], c[0]}
	}
	row := func(i int) int {
		if p.fromTop {
			return i
		}
		return p.h - 1 - i
	}
	if p.compression == bmpRLE8 || p.compression == bmpRLE4 {
		r := bmpRuns{b: data, four: p.compression == bmpRLE4, line: make([]uint8, p.w)}
		for i := range p.h {
			if err := r.next(); err != nil {
				return err
			}
			dst := s.row(row(i))
			for x, v := range r.line {
				copy(dst[3*x:3*x+3], colours[v][:])
			}
			s.done(row(i))
		}
		return nil
	}
	line := int(p.line())
	fields := [3]bmpField{newBMPField(p.masks[0]), newBMPField(p.masks[1]), newBMPField(p.masks[2])}
	for i := range p.h {
		if len(data) < line {
			return io.ErrUnexpectedEOF
		}
		src, dst := data[:line], s.row(row(i))
		switch p.bits {
		case 24:
			for x := range p.w {
				dst[3*x], dst[3*x+1], dst[3*x+2] = src[3*x+2], src[3*x+1], src[3*x]
			}
		case 16:
			for x := range p.w {
				v := uint32(binary.LittleEndian.Uint16(src[2*x:]))
				dst[3*x], dst[3*x+1], dst[3*x+2] = fields[0].of(v), fields[1].of(v), fields[2].of(v)
			}
		case 32:
			for x := range p.w {
				v := binary.LittleEndian.Uint32(src[4*x:])
				dst[3*x], dst[3*x+1], dst[3*x+2] = fields[0].of(v), fields[1].of(v), fields[2].of(v)
			}
		default:
			most := uint8(1<<p.bits - 1)
			for x := range p.w {
				v := src[x*p.bits/8] >> (8 - p.bits - x*p.bits%8) & most
				copy(dst[3*x:3*x+3], colours[v][:])
			}
		}
		s.done(row(i))
		data = data[line:]
	}
	return nil
}

// bmpField takes a colour out of a pixel.
type bmpField struct {
	mask  uint32
	shift int
	most  uint32
}

func newBMPField(mask uint32) bmpField {
	shift := bits.TrailingZeros32(mask | 1<<31)
	return bmpField{mask, shift, mask >> shift}
}

// of scales to 0..255, rounding down as Pillow does.
func (f bmpField) of(v uint32) uint8 {
	v = v & f.mask >> f.shift
	if f.most == 255 {
		return uint8(v)
	}
	return uint8(uint64(v) * 255 / uint64(max(f.most, 1)))
}

// bmpRuns unpacks run lengths of palette indices. What they leave out is colour
// 0.
type bmpRuns struct {
	b     []byte
	four  bool // two indices a byte
	line  []uint8
	at    int // in the row
	down  int // rows that were left out
	ended bool
}

// next unpacks a row.
func (r *bmpRuns) next() error {
	clear(r.line)
	if r.ended {
		return nil
	}
	if r.down > 1 {
		r.down--
		return nil
	}
	if r.down == 0 {
		r.at = 0
	}
	r.down = 0
	put := func(v uint8) error {
		if r.at >= len(r.line) {
			return reject(CodeCorrupt, "a row of the bmp is too long")
		}
		r.line[r.at] = v
		r.at++
		return nil
	}
	for {
		if len(r.b) < 2 {
			return io.ErrUnexpectedEOF
		}
		n, v := int(r.b[0]), r.b[1]
		r.b = r.b[2:]
		switch {
		case n > 0:
			for i := range n {
				c := v
				if r.four {
					c = v >> (4 * (1 - i%2)) & 15
				}
				if r.at == len(r.line) && i > 0 { // runs may end in padding
					break
				}
				if err := put(c); err != nil {
					return err
				}
			}
		case v == 0: // end of line
			return nil
		case v == 1: // end of the picture
			r.ended = true
			return nil
		case v == 2: // a step to the right and up
			if len(r.b) < 2 {
				return io.ErrUnexpectedEOF
			}
			r.at += int(r.b[0])
			r.down = int(r.b[1])
			r.b = r.b[2:]
			if r.at > len(r.line) {
				return reject(CodeCorrupt, "a row of the bmp is too long")
			}
			if r.down > 0 {
				return nil
			}
		default: // so many indices as they are, padded to 16 bits
			n := int(v)
			size := n
			if r.four {
				size = (n + 1) / 2
			}
			if len(r.b) < size {
				return io.ErrUnexpectedEOF
			}
			for i := range n {
				c := r.b[i*size/n]
				if r.four {
					c = r.b[i/2] >> (4 * (1 - i%2)) & 15
				}
				if r.at == len(r.line) && i > 0 {
					break
				}
				if err := put(c); err != nil {
					return err
				}
			}
			r.b = r.b[min(size+size%2, len(r.b)):]
		}
	}
}
