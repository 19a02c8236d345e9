package imaging

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/image/tiff/lzw"
)

// unpackMemory bounds what unpacking one block takes, in bytes.
func (p *tiffPage) unpackMemory() int64 {
	n := int64(0)
	switch p.coding.compression {
	case tiffDeflate, tiffOldDeflate:
		n = zlibMemory
	case tiffLZW:
		n = 64 << 10
	case tiffZSTD:
		n = 2 * zstdMemory
	case tiffJPEG:
		n = 64 << 10
	case tiffRLE, tiffGroup3, tiffGroup4, tiffRLEWords:
		n = 64<<10 + 16*int64(p.w)
	}
	if p.coding.reversed {
		n += int64(len(p.b))
	}
	return n
}

// tiffRows hands out the rows of a strip or tile.
type tiffRows interface {
	next(line []byte) error
	close()
}

// rows opens block i, which is w pixels wide.
func (p *tiffPage) rows(i, w int) (tiffRows, error) {
	data, err := p.block(i)
	if err != nil {
		return nil, err
	}
	if p.coding.reversed { // the bits of every byte, whatever they are packed with
		data = bytes.Clone(data)
		for j, v := range data {
			data[j] = bits.Reverse8(v)
		}
	}
	u := &unpacker{p: p}
	switch p.coding.compression {
	case tiffRLE, tiffGroup3, tiffGroup4, tiffRLEWords:
		two := p.first(tagT4Options, 0)&1 != 0 // rows of T.4 may refer to the row above
		return &faxRows{b: data, w: w, kind: p.coding.compression, two: two, ref: []int{w, w, w, w}}, nil
	case tiffLZW:
		if len(data) >= 2 && data[0] == 0 && data[1]&1 == 1 {
			return nil, reject(CodeUnsupported, "the tiff has LZW data of the kind before TIFF 6.0")
		}
		r := lzw.NewReader(bytes.NewReader(data), lzw.MSB, 8)
		u.r, u.done = r, func() { r.Close() }
	case tiffDeflate, tiffOldDeflate:
		z, err := p.inflate(data)
		if err != nil {
			return nil, err
		}
		u.r, u.done = z, func() { p.idle = append(p.idle, z) }
	case tiffZSTD:
		z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdMemory), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		u.r, u.done = z, z.Close
	case tiffPackBits:
		u.r = &packBits{b: data}
	default:
		u.r = bytes.NewReader(data)
	}
	return u, nil
}

// inflate reads DEFLATE data, with a reader that an earlier block has left.
func (p *tiffPage) inflate(data []byte) (io.ReadCloser, error) {
	if n := len(p.idle); n > 0 {
		z := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return z, z.(zlib.Resetter).Reset(bytes.NewReader(data), nil)
	}
	return zlib.NewReader(bytes.NewReader(data))
}

// unpacker reads rows of samples and undoes their prediction.
type unpacker struct {
	p    *tiffPage
	r    io.Reader
	done func()
	tmp  []byte
}

func (u *unpacker) close() {
	if u.done != nil {
		u.done()
	}
}

func (u *unpacker) next(line []byte) error {
	if _, err := io.ReadFull(u.r, line); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	n := u.p.samples
	if u.p.planes > 1 {
		n = 1
	}
	switch u.p.coding.predictor {
	case 2:
		u.add(line, n)
	case 3: // TIFF technical note 3: the bytes of each row by significance, differenced
		for i := n; i < len(line); i++ {
			line[i] += line[i-n]
		}
		u.tmp = append(u.tmp[:0], line...)
		size := u.p.bits / 8
		count := len(line) / size
		for i := range count {
			for j := range size {
				to := j // big endian
				if u.p.order == binary.ByteOrder(binary.LittleEndian) {
					to = size - 1 - j
				}
				line[i*size+to] = u.tmp[j*count+i]
			}
		}
	}
	return nil
}

// add sums horizontal differences up.
func (u *unpacker) add(line []byte, n int) {
	o := u.p.order
	switch u.p.bits {
	case 8:
		for i := n; i < len(line); i++ {
			line[i] += line[i-n]
		}
	case 16:
		for i := 2 * n; i+2 <= len(line); i += 2 {
			o.PutUint16(line[i:], o.Uint16(line[i:])+o.Uint16(line[i-2*n:]))
		}
	case 32:
		for i := 4 * n; i+4 <= len(line); i += 4 {
			o.PutUint32(line[i:], o.Uint32(line[i:])+o.Uint32(line[i-4*n:]))
		}
	}
}

// packBits unpacks Apple's run lengths (TIFF 6.0 section 9).
type packBits struct {
	b    []byte
	run  int  // bytes still to come
	same bool // of the same value, the first of b
}

func (r *packBits) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if r.run == 0 {
			if len(r.b) < 2 {
				break
			}
			head := int8(r.b[0])
			r.b = r.b[1:]
			switch {
			case head >= 0:
				r.run, r.same = int(head)+1, false
			case head == -128:
				continue
			default:
				r.run, r.same = 1-int(head), true
			}
		}
		if len(r.b) == 0 {
			break
		}
		k := min(r.run, len(p)-n)
		if r.same {
			for i := range k {
				p[n+i] = r.b[0]
			}
		} else {
			k = copy(p[n:n+k], r.b)
			r.b = r.b[k:]
		}
		n, r.run = n+k, r.run-k
		if r.same && r.run == 0 {
			r.b = r.b[1:]
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// decodeTIFF decodes the picture of a TIFF into the sink.
func decodeTIFF(b []byte, d *depth, s sink) error {
	p, err := openTIFF(b)
	if err != nil {
		return err
	}
	c := &tiffColours{p: p, d: d}
	if p.photometric == tiffIndexed {
		c.readPalette()
	}
	switch {
	case p.coding.compression == tiffJPEG:
		return p.jpegBlocks(s)
	case p.photometric == tiffYCbCr:
		return p.ycbcr(s)
	case p.grid.tiled:
		return p.tiles(c, s)
	}
	return p.strips(c, s)
}

// strips decodes strip after strip, those of all planes side by side.
func (p *tiffPage) strips(c *tiffColours, s sink) error {
	lines := p.lines(1)
	open := make([]tiffRows, p.planes)
	defer func() { closeAll(open) }()
	for i := range p.grid.down {
		closeAll(open)
		for k := range open {
			var err error
			if open[k], err = p.rows(k*p.grid.down+i, p.w); err != nil {
				return err
			}
		}
		for y := i * p.grid.h; y < min((i+1)*p.grid.h, p.h); y++ {
			for k, r := range open {
				if err := r.next(lines[k]); err != nil {
					return err
				}
			}
			if err := c.pixels(s.row(y), lines); err != nil {
				return err
			}
			s.done(y)
		}
	}
	return nil
}

func closeAll(open []tiffRows) {
	for i, r := range open {
		if r != nil {
			r.close()
			open[i] = nil
		}
	}
}

// lines are buffers for so many rows of each plane.
func (p *tiffPage) lines(rows int) [][]byte {
	out := make([][]byte, p.planes)
	for k := range out {
		out[k] = make([]byte, int64(rows)*p.line(p.grid.across*p.grid.w))
	}
	return out
}

// tiles decodes one row of tiles after the other.
func (p *tiffPage) tiles(c *tiffColours, s sink) error {
	one := p.line(p.grid.w)
	if p.grid.across > 1 && one*8 != int64(p.grid.w)*int64(p.samples/p.planes)*int64(p.bits) {
		return reject(CodeUnsupported, "the tiff has tiles of %d pixels of %d bits, which end within a byte", p.grid.w, p.bits)
	}
	wide := one * int64(p.grid.across)
	band := p.lines(p.grid.h)
	lines := make([][]byte, p.planes)
	perPlane := p.grid.across * p.grid.down
	for i := range p.grid.down {
		high := min(p.grid.h, p.h-i*p.grid.h)
		for k := range band {
			for j := range p.grid.across {
				r, err := p.rows(k*perPlane+i*p.grid.across+j, p.grid.w)
				if err != nil {
					return err
				}
				for y := range high {
					if err = r.next(band[k][int64(y)*wide+int64(j)*one:][:one]); err != nil {
						break
					}
				}
				r.close()
				if err != nil {
					return err
				}
			}
		}
		for y := range high {
			for k := range lines {
				lines[k] = band[k][int64(y)*wide:][:wide]
			}
			row := i*p.grid.h + y
			if err := c.pixels(s.row(row), lines); err != nil {
				return err
			}
			s.done(row)
		}
	}
	return nil
}

// tiffColours makes RGB of samples.
type tiffColours struct {
	p       *tiffPage
	d       *depth
	palette [][3]uint8
	wide    [][]uint32 // samples of a row, of each plane
}

// readPalette reads the colour map. Some writers store its values in 8 bits
// instead of 16: then none is above 255.
func (c *tiffColours) readPalette() {
	n := 1 << c.p.bits
	values := c.p.all(tagColorMap, 3*n)
	shift := 0
	for _, v := range values {
		if v > 255 {
			shift = 8
		}
	}
	c.palette = make([][3]uint8, n)
	for i := range c.palette {
		for k := range 3 {
			c.palette[i][k] = uint8(values[k*n+i] >> shift)
		}
	}
}

// pixels converts a row, of which each plane has a line.
func (c *tiffColours) pixels(dst []uint8, lines [][]byte) error {
	p, w := c.p, c.p.w
	if p.planes == 1 && p.bits == 8 && c.palette == nil && !p.premultiply && p.photometric != tiffCMYK && p.photometric != tiffWhiteIsZero {
		src, n := lines[0], p.samples
		switch {
		case n == 3:
			copy(dst, src[:3*w])
		case p.colours == 3:
			for ; w > 0; w, src, dst = w-1, src[n:], dst[3:] {
				dst[0], dst[1], dst[2] = src[0], src[1], src[2]
			}
		default:
			for x := range w {
				v := src[x*n]
				dst[3*x], dst[3*x+1], dst[3*x+2] = v, v, v
			}
		}
		return nil
	}
	n := p.samples
	if p.planes > 1 {
		n = 1
	}
	if c.wide == nil {
		c.wide = make([][]uint32, p.planes)
		for k := range c.wide {
			c.wide[k] = make([]uint32, w*n)
		}
	}
	if p.float {
		return c.floats(dst, lines, n)
	}
	for k := range c.wide {
		uints(c.wide[k], lines[k], p.bits, p.order)
	}
	at := func(x, k int) uint32 {
		if p.planes > 1 {
			return c.wide[k][x]
		}
		return c.wide[0][x*n+k]
	}
	for x := range w {
		px := dst[3*x : 3*x+3]
		switch {
		case c.palette != nil:
			copy(px, c.palette[at(x, 0)][:])
			continue
		case p.photometric == tiffCMYK:
			px[0], px[1], px[2] = rgbOfCMYK(c.d.to8(at(x, 0)), c.d.to8(at(x, 1)), c.d.to8(at(x, 2)), c.d.to8(at(x, 3)))
			continue
		case p.colours == 3:
			px[0], px[1], px[2] = c.d.to8(at(x, 0)), c.d.to8(at(x, 1)), c.d.to8(at(x, 2))
		default:
			v := c.d.to8(at(x, 0))
			px[0], px[1], px[2] = v, v, v
		}
		if p.photometric == tiffWhiteIsZero {
			px[0], px[1], px[2] = 255-px[0], 255-px[1], 255-px[2]
		}
		if p.premultiply {
			a := uint64(at(x, p.colours))
			for k := range 3 {
				v := uint64(at(x, min(k, p.colours-1)))
				if a == 0 {
					px[k] = 0
				} else if a < uint64(whiteOf(p.bits)) {
					px[k] = uint8(min(v*255/a, 255))
				}
			}
		}
	}
	return nil
}

// floats converts floating-point samples, of which 0 is black and 1 is white.
func (c *tiffColours) floats(dst []uint8, lines [][]byte, n int) error {
	p := c.p
	value := func(k, i int) float64 {
		b := lines[k]
		switch p.bits {
		case 16:
			return half(p.order.Uint16(b[2*i:]))
		case 32:
			return float64(math.Float32frombits(p.order.Uint32(b[4*i:])))
		}
		return math.Float64frombits(p.order.Uint64(b[8*i:]))
	}
	for x := range p.w {
		for k := range 3 {
			s := min(k, p.colours-1)
			var v float64
			if p.planes > 1 {
				v = value(s, x)
			} else {
				v = value(0, x*n+s)
			}
			if !(v >= -1e-6 && v <= 1+1e-6) {
				return reject(CodeUnsupported, "the tiff has the floating-point sample %g, 0 (black) to 1 (white) are read: scale it", v)
			}
			dst[3*x+k] = uint8(min(max(v, 0), 1)*255 + 0.5)
		}
	}
	return nil
}

// half converts a number of IEEE 754 binary16.
func half(b uint16) float64 {
	sign, exponent, fraction := 1.0, int(b>>10&31), float64(b&1023)
	if b>>15 == 1 {
		sign = -1
	}
	switch exponent {
	case 0:
		return sign * math.Ldexp(fraction, -24)
	case 31:
		if fraction != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

// rgbOfCMYK prints inks on white, with Pillow's roundings.
func rgbOfCMYK(c, m, y, k uint8) (uint8, uint8, uint8) {
	left := 255 - int(k)
	ink := func(v uint8) uint8 {
		t := int(v)*left + 128
		return uint8(left - (t>>8+t)>>8)
	}
	return ink(c), ink(m), ink(y)
}

// ycbcr decodes luma and chroma samples that are not JPEG's (TIFF 6.0 section
// 21): units of subH × subV luma samples and one of each chroma.
func (p *tiffPage) ycbcr(s sink) error {
	unit := p.subH*p.subV + 2
	units := (p.w + p.subH - 1) / p.subH
	line := make([]byte, units*unit)
	luma, cb, cr := make([]uint8, units*p.subH), make([]uint8, units*p.subH), make([]uint8, units*p.subH)
	for i := range p.grid.down {
		r, err := p.rows(i, p.w)
		if err != nil {
			return err
		}
		defer r.close()
		for top := i * p.grid.h; top < min((i+1)*p.grid.h, p.h); top += p.subV {
			if err := r.next(line); err != nil {
				return err
			}
			for dy := 0; dy < p.subV && top+dy < p.h; dy++ {
				for u := range units {
					from := line[u*unit:]
					for dx := range p.subH {
						x := u*p.subH + dx
						luma[x], cb[x], cr[x] = from[dy*p.subH+dx], from[p.subH*p.subV], from[p.subH*p.subV+1]
					}
				}
				yccRow(s.row(top+dy), luma[:p.w], cb[:p.w], cr[:p.w])
				s.done(top + dy)
			}
		}
	}
	return nil
}
