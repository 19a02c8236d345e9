package imaging

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
)

const pngMagic = "\x89PNG\r\n\x1a\n"

// maxDeflate is the largest factor by which DEFLATE shrinks (RFC 1951: 258
// bytes for two bits, in effect 1032).
const maxDeflate = 1032

// zlibMemory is what a zlib reader takes at most: its window and its tables.
const zlibMemory = 96 << 10

// Colour types of a PNG (third edition, 11.2.1).
const (
	pngGrey      = 0
	pngRGB       = 2
	pngPalette   = 3
	pngGreyAlpha = 4
	pngRGBA      = 6
)

// pngChunk is a chunk of a PNG.
type pngChunk struct {
	id   string
	at   int // of its first byte
	body []byte
}

// critical chunks are those without which the pixels are unknown.
func (c pngChunk) critical() bool { return c.id[0]&0x20 == 0 }

// sound says whether the check sum fits.
func (c pngChunk) sound(b []byte) bool {
	end := c.at + 8 + len(c.body)
	return end+4 <= len(b) && crc32.ChecksumIEEE(b[c.at+4:end]) == binary.BigEndian.Uint32(b[end:])
}

// pngChunkAt returns the chunk at a place of the file and where the next begins.
// A chunk that the file cuts off has the bytes that are there, and no next.
func pngChunkAt(b []byte, at int) (c pngChunk, next int, ok bool) {
	if at < 0 || at+8 > len(b) {
		return c, 0, false
	}
	n := int64(binary.BigEndian.Uint32(b[at:]))
	c = pngChunk{id: string(b[at+4 : at+8]), at: at}
	end := int64(at) + 8 + n
	if end+4 > int64(len(b)) {
		c.body = b[at+8 : min(end, int64(len(b)))]
		return c, -1, true
	}
	c.body = b[at+8 : end]
	return c, int(end) + 4, true
}

// readPNG reads IHDR, how many bits are significant, and the orientation, which
// may be noted before the pixels or after them. Chunks that do not matter for
// the pixels may be damaged.
func readPNG(b []byte) (stored, error) {
	s := stored{Header: Header{Format: PNG, Orientation: 1}}
	if len(b) < 8+8+13+4 {
		return s, reject(CodeTruncated, "the png ends within its header")
	}
	head, next, _ := pngChunkAt(b, 8)
	if head.id == "CgBI" {
		return s, reject(CodeUnsupported, "the png was made for iPhones only (CgBI), save it as a plain png")
	}
	if head.id != "IHDR" || len(head.body) != 13 {
		return s, reject(CodeCorrupt, "the png does not begin with IHDR")
	}
	if !head.sound(b) {
		return s, reject(CodeCorrupt, "the check sum of the png's header is wrong")
	}
	w, h := binary.BigEndian.Uint32(head.body), binary.BigEndian.Uint32(head.body[4:])
	kind, interlace := head.body[9], head.body[12]
	s.Width, s.Height, s.Bits = int(w), int(h), int(head.body[8])
	depths := map[byte][]int{pngGrey: {1, 2, 4, 8, 16}, pngRGB: {8, 16}, pngPalette: {1, 2, 4, 8}, pngGreyAlpha: {8, 16}, pngRGBA: {8, 16}}[kind]
	if !slices.Contains(depths, s.Bits) || head.body[10] != 0 || head.body[11] != 0 || interlace > 1 {
		return s, reject(CodeCorrupt, "the png header says colour type %d of %d bits, compression %d, filter %d, interlace %d",
			kind, s.Bits, head.body[10], head.body[11], interlace)
	}
	s.Channels = pngChannels(kind)
	line := int64(s.Width)*int64(s.Channels)*int64(max(s.Bits, 8)/8) + 1
	s.work = 4*zlibMemory + 4*line // metadata may be packed, and a second run may follow the first
	if s.Width <= maxSide && s.Height <= maxSide {
		bits := int64(s.Width) * int64(s.Channels) * int64(s.Bits)
		s.least = (bits + 7) / 8 * int64(s.Height) / maxDeflate
		s.whole = interlace == 1
	}
	var o orientation
	for at := next; at > 0; {
		c, after, ok := pngChunkAt(b, at)
		if !ok || c.id == "IEND" {
			break
		}
		if !c.critical() && c.sound(b) {
			switch c.id {
			case "sBIT":
				if s.Bits == 16 && len(c.body) > 0 {
					s.Significant = int(c.body[0])
				}
			case "eXIf":
				o.exif(c.body)
			case "iTXt", "zTXt", "tEXt":
				o.pngText(c)
			}
		}
		at = after
	}
	s.Orientation = o.value()
	return s, nil
}

func pngChannels(kind byte) int {
	return map[byte]int{pngGrey: 1, pngRGB: 3, pngPalette: 1, pngGreyAlpha: 2, pngRGBA: 4}[kind]
}

// idat reads the bodies of the IDAT chunks, which follow one another.
type idat struct {
	b    []byte
	next int // chunk; -1: none
	body []byte
}

func (r *idat) fill() error {
	for len(r.body) == 0 {
		if r.next < 0 {
			return io.ErrUnexpectedEOF
		}
		c, next, ok := pngChunkAt(r.b, r.next)
		if !ok {
			return io.ErrUnexpectedEOF
		}
		if c.id != "IDAT" {
			return io.EOF
		}
		if next > 0 && !c.sound(r.b) {
			return reject(CodeCorrupt, "the check sum of the png's data is wrong")
		}
		r.body, r.next = c.body, next
	}
	return nil
}

func (r *idat) Read(p []byte) (int, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.body)
	r.body = r.body[n:]
	return n, nil
}

// ReadByte spares the decompressor a buffer of its own.
func (r *idat) ReadByte() (byte, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	c := r.body[0]
	r.body = r.body[1:]
	return c, nil
}

// pngReader decodes the rows of a PNG.
type pngReader struct {
	w, h, bits, channels int
	kind                 byte
	palette              [256][3]uint8
	d                    *depth
	z                    io.Reader
	line, last           []byte // filter byte and samples of a row, and of the one above
}

// decodePNG decodes into the sink. As libpng does, it passes over damaged or
// misplaced chunks that do not matter for the pixels, and over data that is left
// when all pixels have come.
func decodePNG(b []byte, d *depth, s sink) error {
	head, at, _ := pngChunkAt(b, 8)
	r := &pngReader{
		w: int(binary.BigEndian.Uint32(head.body)), h: int(binary.BigEndian.Uint32(head.body[4:])),
		bits: int(head.body[8]), kind: head.body[9], channels: pngChannels(head.body[9]), d: d,
	}
	colours := 0
	for {
		c, next, ok := pngChunkAt(b, at)
		if !ok || next < 0 && c.id != "IDAT" {
			return io.ErrUnexpectedEOF
		}
		if c.id == "IDAT" {
			break
		}
		switch {
		case c.id == "PLTE":
			if r.kind != pngPalette {
				break // a suggestion
			}
			if !c.sound(b) || len(c.body)%3 != 0 || len(c.body) == 0 || len(c.body) > 3*256 {
				return reject(CodeCorrupt, "the png's palette is damaged")
			}
			for i := range len(c.body) / 3 {
				r.palette[i] = [3]uint8(c.body[3*i:])
			}
			colours = len(c.body) / 3
		case c.id == "IEND":
			return reject(CodeCorrupt, "the png has no pixels")
		case c.critical():
			return reject(CodeUnsupported, "the png has a chunk %q, without which it cannot be read", c.id)
		}
		at = next
	}
	if r.kind == pngPalette && colours == 0 {
		return reject(CodeCorrupt, "the png's palette is missing")
	}
	z, err := zlib.NewReader(&idat{b: b, next: at})
	if err != nil {
		return err
	}
	r.z = z
	size := (r.w*r.channels*r.bits+7)/8 + 1
	r.line, r.last = make([]byte, size), make([]byte, size)
	if head.body[12] == 1 {
		return onCanvas(s, r.w, r.h, r.interlaced)
	}
	for y := range r.h {
		if err := r.next(r.w); err != nil {
			return err
		}
		r.pixels(s.row(y), r.w)
		s.done(y)
	}
	return nil
}

// interlaced reads the seven passes of Adam7.
func (r *pngReader) interlaced(img *Image) error {
	var row []uint8
	for _, p := range [...]struct{ x, y, dx, dy int }{{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}} {
		w, h := (r.w-p.x+p.dx-1)/p.dx, (r.h-p.y+p.dy-1)/p.dy
		if w <= 0 || h <= 0 {
			continue
		}
		size := (w*r.channels*r.bits+7)/8 + 1
		clear(r.last[:size])
		if row == nil {
			row = make([]uint8, 3*r.w)
		}
		for y := range h {
			if err := r.next(w); err != nil {
				return err
			}
			r.pixels(row, w)
			dst := img.row(p.y + y*p.dy)
			for x := range w {
				copy(dst[3*(p.x+x*p.dx):][:3], row[3*x:])
			}
		}
	}
	return nil
}

// next reads a row of w pixels and undoes its filter (PNG third edition, 9.2).
// The row is in r.last then.
func (r *pngReader) next(w int) error {
	size := (w*r.channels*r.bits+7)/8 + 1
	line, up := r.line[:size], r.last[:size]
	if _, err := io.ReadFull(r.z, line); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	filter, line, up := line[0], line[1:], up[1:]
	bpp := max(r.channels*r.bits/8, 1)
	switch filter {
	case 0:
	case 1:
		for i := bpp; i < len(line); i++ {
			line[i] += line[i-bpp]
		}
	case 2:
		for i, v := range up {
			line[i] += v
		}
	case 3:
		for i := range min(bpp, len(line)) {
			line[i] += up[i] / 2
		}
		for i := bpp; i < len(line); i++ {
			line[i] += uint8((int(line[i-bpp]) + int(up[i])) / 2)
		}
	case 4:
		for i := range min(bpp, len(line)) {
			line[i] += up[i]
		}
		for i := bpp; i < len(line); i++ {
			line[i] += paeth(line[i-bpp], up[i], up[i-bpp])
		}
	default:
		return reject(CodeCorrupt, "a row of the png has the filter %d", filter)
	}
	r.line, r.last = r.last, r.line
	return nil
}

func paeth(a, b, c uint8) uint8 {
	pa, pb := int(b)-int(c), int(a)-int(c)
	pc := pa + pb
	pa, pb, pc = max(pa, -pa), max(pb, -pb), max(pc, -pc)
	switch {
	case pa <= pb && pa <= pc:
		return a
	case pb <= pc:
		return b
	}
	return c
}

// pixels turns the row that was read last into RGB.
func (r *pngReader) pixels(dst []uint8, w int) {
	src := r.last[1:]
	switch {
	case r.bits == 16:
		step := 2 * r.channels
		colour := r.channels >= 3
		for ; w > 0; w, src, dst = w-1, src[step:], dst[3:] {
			v := r.d.to8(uint32(src[0])<<8 | uint32(src[1]))
			dst[0], dst[1], dst[2] = v, v, v
			if colour {
				dst[1] = r.d.to8(uint32(src[2])<<8 | uint32(src[3]))
				dst[2] = r.d.to8(uint32(src[4])<<8 | uint32(src[5]))
			}
		}
	case r.kind == pngRGB:
		copy(dst, src[:3*w])
	case r.kind == pngRGBA:
		for ; w > 0; w, src, dst = w-1, src[4:], dst[3:] {
			dst[0], dst[1], dst[2] = src[0], src[1], src[2]
		}
	case r.kind == pngGreyAlpha:
		for ; w > 0; w, src, dst = w-1, src[2:], dst[3:] {
			dst[0], dst[1], dst[2] = src[0], src[0], src[0]
		}
	case r.kind == pngGrey && r.bits == 8:
		for _, v := range src[:w] {
			dst[0], dst[1], dst[2] = v, v, v
			dst = dst[3:]
		}
	case r.kind == pngPalette && r.bits == 8:
		for _, v := range src[:w] {
			copy(dst[:3], r.palette[v][:])
			dst = dst[3:]
		}
	default:
		most := uint8(1<<r.bits - 1)
		for x := range w {
			v := src[x*r.bits/8] >> (8 - r.bits - x*r.bits%8) & most
			if r.kind == pngPalette {
				copy(dst[:3], r.palette[v][:])
			} else {
				g := v * (255 / most)
				dst[0], dst[1], dst[2] = g, g, g
			}
			dst = dst[3:]
		}
	}
}

// isPNGText says whether a text chunk has a keyword, and returns what follows it.
func isPNGText(body []byte, keyword string) ([]byte, bool) {
	return bytes.CutPrefix(body, append([]byte(keyword), 0))
}
