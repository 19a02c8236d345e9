package imaging

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"regexp"
	"strconv"
)

// Compressions of a TIFF.
const (
	tiffPlain       = 1
	tiffRLE         = 2
	tiffGroup3      = 3
	tiffGroup4      = 4
	tiffLZW         = 5
	tiffOldJPEG     = 6
	tiffJPEG        = 7
	tiffDeflate     = 8
	tiffRLEWords    = 32771
	tiffPackBits    = 32773
	tiffOldDeflate  = 32946
	tiffZSTD        = 50000
	zstdMemory      = 8 << 20 // of a decoder whose window is bounded to that
	zstdMostShrinks = 1 << 16
)

// Colour models of a TIFF (PhotometricInterpretation).
const (
	tiffWhiteIsZero = 0
	tiffBlackIsZero = 1
	tiffRGB         = 2
	tiffIndexed     = 3
	tiffCMYK        = 5
	tiffYCbCr       = 6
)

// tiffPage is what a directory says of its pixels.
type tiffPage struct {
	ifd
	w, h, bits  int
	samples     int // that a pixel has
	colours     int // of them that count: 1, 3 or 4
	float       bool
	photometric int
	planes      int  // 1, or samples where each is stored for itself
	premultiply bool // the sample after the colours is alpha, by which they were multiplied
	subH, subV  int  // chroma subsampling of YCbCr
	coding      tiffCoding
	grid        tiffGrid
	idle        []io.ReadCloser // of DEFLATE data
}

// tiffCoding is how the data of pixels are written.
type tiffCoding struct {
	compression int
	predictor   int
	reversed    bool // FillOrder 2
}

// tiffGrid is how a picture is cut into strips or tiles, and where these lie.
type tiffGrid struct {
	tiled          bool
	w, h           int // pixels of a block
	across, down   int // blocks of a plane
	offsets, sizes []uint64
}

// isTIFF says whether a file begins like a TIFF or a BigTIFF.
func isTIFF(b []byte) bool {
	for _, magic := range []string{"II*\x00", "MM\x00*", "II+\x00", "MM\x00+"} {
		if bytes.HasPrefix(b, []byte(magic)) {
			return true
		}
	}
	return false
}

// readTIFF reads the directory of the picture (TIFF 6.0; supplements 1 and 2;
// BigTIFF).
func readTIFF(b []byte) (stored, error) {
	s := stored{Header: Header{Format: TIFF, Orientation: 1}}
	p, err := openTIFF(b)
	s.Width, s.Height, s.Bits, s.Channels = p.w, p.h, p.bits, p.samples
	if err != nil {
		return s, err
	}
	s.float = p.float
	var o orientation
	o.first = int(p.first(tagOrientation, 0))
	if packet, _ := p.raw(tagXMP); packet != nil {
		o.xmp(packet)
	}
	s.Orientation = o.value()
	if p.bits >= 16 && !p.float {
		s.Significant = p.significant()
	}
	if p.w > maxSide || p.h > maxSide || p.w <= 0 || p.h <= 0 {
		return s, nil // refused by Inspect
	}
	line := p.line(p.w)
	// What the last blocks took is perhaps not yet collected.
	blocks := int64(min(len(p.grid.offsets), 16*p.planes))
	s.work = 64<<10 + int64(p.w)*int64(p.samples)*4 + line + blocks*p.unpackMemory()
	if p.grid.tiled {
		s.work += int64(p.grid.h)*p.line(p.grid.across*p.grid.w)*int64(p.planes) + p.line(p.grid.w)
	}
	if p.coding.compression == tiffJPEG {
		s.work += 9 * int64(p.grid.w) * int64(p.grid.h)
	}
	if p.subV > 1 {
		s.work += int64(p.subV) * line
	}
	all := line * int64(p.planes) * int64(p.h)
	switch p.coding.compression {
	case tiffPlain:
		s.least = all
	case tiffLZW:
		s.least = all / 2731 // at best 4096 bytes for a 12-bit code
	case tiffDeflate, tiffOldDeflate:
		s.least = all / maxDeflate
	case tiffPackBits:
		s.least = all / 64 // 128 bytes for two
	}
	return s, nil
}

// line is how many bytes w pixels of one plane take.
func (p *tiffPage) line(w int) int64 {
	n := int64(p.samples)
	if p.planes > 1 {
		n = 1
	}
	if p.photometric == tiffYCbCr && p.coding.compression != tiffJPEG { // per row, on average
		return (int64(w+p.subH-1)/int64(p.subH)*int64(p.subH*p.subV+2) + int64(p.subV) - 1) / int64(p.subV)
	}
	return (int64(w)*n*int64(p.bits) + 7) / 8
}

// openTIFF reads what decoding needs, and refuses what it could not get right.
func openTIFF(b []byte) (*tiffPage, error) {
	first, err := readIFD(b)
	p := &tiffPage{ifd: first}
	if err != nil {
		return p, err
	}
	p.ifd = first.picture()
	p.w, p.h = int(p.first(tagWidth, 0)), int(p.first(tagHeight, 0))
	bits := p.all(tagBits, 16)
	p.bits = 1
	if len(bits) > 0 {
		p.bits = int(min(bits[0], 1<<16))
	}
	p.samples = int(min(p.first(tagSamples, uint32(max(len(bits), 1))), 1<<16))
	for _, v := range bits[:min(len(bits), max(p.samples, 0))] {
		if v != bits[0] {
			return p, reject(CodeUnsupported, "the tiff's samples have different sizes (%d and %d bits)", bits[0], v)
		}
	}
	if p.samples < 1 || p.samples > 64 {
		return p, reject(CodeUnsupported, "the tiff has %d samples a pixel, 1 to 64 are read", p.samples)
	}
	if err := p.compressed(); err != nil {
		return p, err
	}
	if err := p.coloured(); err != nil {
		return p, err
	}
	p.coding.reversed = p.first(tagFillOrder, 1) == 2
	if v := p.first(tagPlanar, 1); v == 2 && p.samples > 1 {
		p.planes = p.samples
	} else if v > 2 {
		return p, reject(CodeCorrupt, "the tiff's planar configuration is %d", v)
	} else {
		p.planes = 1
	}
	switch p.coding.predictor = int(p.first(tagPredictor, 1)); {
	case p.coding.compression != tiffLZW && p.coding.compression != tiffDeflate && p.coding.compression != tiffOldDeflate && p.coding.compression != tiffZSTD:
		p.coding.predictor = 1 // has no meaning there
	case p.coding.predictor <= 1:
		p.coding.predictor = 1
	case p.coding.predictor == 2 && (p.bits == 8 || p.bits == 16 || p.bits == 32):
	case p.coding.predictor == 3 && p.float:
	default:
		return p, reject(CodeUnsupported, "the tiff's predictor %d for samples of %d bits is not read", p.coding.predictor, p.bits)
	}
	return p, p.blocks()
}

// compressed reads the compression.
func (p *tiffPage) compressed() error {
	c := &p.coding
	c.compression = int(p.first(tagCompression, tiffPlain))
	switch c.compression {
	case 0:
		c.compression = tiffPlain
	case tiffPlain, tiffLZW, tiffJPEG, tiffDeflate, tiffPackBits, tiffOldDeflate, tiffZSTD:
	case tiffRLE, tiffGroup3, tiffGroup4, tiffRLEWords:
		if p.bits != 1 || p.samples != 1 {
			return reject(CodeCorrupt, "the tiff is fax-coded, but has %d samples of %d bits", p.samples, p.bits)
		}
		if c.compression == tiffGroup3 && p.first(tagT4Options, 0)&2 != 0 || c.compression == tiffGroup4 && p.first(tagT6Options, 0)&2 != 0 {
			return reject(CodeUnsupported, "the tiff uses the fax codes' uncompressed mode")
		}
	case tiffOldJPEG:
		return reject(CodeUnsupported, "the tiff holds JPEG data of the old kind (compression 6), store it plain, LZW or Deflate")
	default:
		name := map[int]string{34925: " (LZMA)", 34712: " (JPEG 2000)", 33003: " (JPEG 2000)", 33005: " (JPEG 2000)", 50001: " (WebP)", 50002: " (JPEG XL)", 32809: " (ThunderScan)", 34887: " (LERC)"}[c.compression]
		return reject(CodeUnsupported, "the tiff's compression %d%s is not read, store it plain, LZW or Deflate", c.compression, name)
	}
	return nil
}

// coloured reads what the samples mean.
func (p *tiffPage) coloured() error {
	for _, f := range p.all(tagSampleFormat, 16) {
		switch f {
		case 1, 4: // unsigned integers; undefined, which is read so
		case 3:
			p.float = true
		default:
			name := map[uint64]string{2: "signed integers", 5: "complex integers", 6: "complex floating point"}[f]
			return reject(CodeUnsupported, "the tiff's samples are of format %d (%s), unsigned integers and floating point are read", f, name)
		}
	}
	if p.bits < 1 || p.bits > 32 || p.float && p.bits != 16 && p.bits != 32 {
		if !p.float || p.bits != 64 {
			return reject(CodeUnsupported, "the tiff has %d bits a sample, 1 to 32 are read, and floating point of 16, 32 and 64", p.bits)
		}
	}
	missing := uint32(tiffBlackIsZero)
	switch {
	case p.samples >= 3:
		missing = tiffRGB
	case p.coding.compression == tiffRLE || p.coding.compression == tiffGroup3 || p.coding.compression == tiffGroup4 || p.coding.compression == tiffRLEWords:
		missing = tiffWhiteIsZero
	}
	p.photometric = int(p.first(tagPhotometric, missing))
	p.subH, p.subV = 1, 1
	switch p.photometric {
	case tiffWhiteIsZero, tiffBlackIsZero:
		p.colours = 1
		// Microscopes store three channels so, which others call RGB.
		if p.samples >= 3 {
			p.colours = 3
		}
	case tiffRGB:
		p.colours = 3
	case tiffIndexed:
		p.colours = 1
		if p.bits > 16 || p.float {
			return reject(CodeCorrupt, "the tiff has a palette for samples of %d bits", p.bits)
		}
		if n := len(p.all(tagColorMap, 3<<16)); n < 3<<p.bits {
			return reject(CodeCorrupt, "the tiff's palette has %d values, %d are needed", n, 3<<p.bits)
		}
	case tiffCMYK:
		p.colours = 4
		if ink := p.first(tagInkSet, 1); ink != 1 {
			return reject(CodeUnsupported, "the tiff has inks other than CMYK (ink set %d), convert it to RGB", ink)
		}
	case tiffYCbCr:
		p.colours = 3
		if p.coding.compression == tiffJPEG {
			break
		}
		if v := p.all(tagYCbCrSubsampling, 2); len(v) == 2 {
			p.subH, p.subV = int(min(v[0], 8)), int(min(v[1], 8))
		} else {
			p.subH, p.subV = 2, 2
		}
		usual := func(n int) bool { return n == 1 || n == 2 || n == 4 }
		if p.bits != 8 || p.samples != 3 || p.first(tagPlanar, 1) != 1 || !usual(p.subH) || !usual(p.subV) || p.has(tagReferenceBlack) && !p.fullRange() {
			return reject(CodeUnsupported, "the tiff is YCbCr of an unusual kind, convert it to RGB")
		}
		p.coding.predictor = 1
	case 8, 9, 10:
		return reject(CodeUnsupported, "the tiff is CIE L*a*b*, convert it to RGB")
	default:
		name := map[int]string{4: " (a mask)", 32803: " (raw sensor data)", 34892: " (raw sensor data)", 32844: " (LogL)", 32845: " (LogLuv)"}[p.photometric]
		return reject(CodeUnsupported, "the tiff's colour model %d%s is not read, convert it to RGB", p.photometric, name)
	}
	if p.samples < p.colours {
		return reject(CodeCorrupt, "the tiff has %d samples a pixel, its colour model %d needs %d", p.samples, p.photometric, p.colours)
	}
	if p.float && p.photometric != tiffBlackIsZero && p.photometric != tiffRGB {
		return reject(CodeUnsupported, "the tiff has floating-point samples of colour model %d, grey and RGB are read", p.photometric)
	}
	if p.coding.compression == tiffJPEG && (p.bits != 8 || p.float || p.samples > 4 || p.photometric == tiffIndexed) {
		return reject(CodeUnsupported, "the tiff holds JPEG data of %d samples of %d bits", p.samples, p.bits)
	}
	extra := p.all(tagExtraSamples, 1)
	p.premultiply = len(extra) > 0 && extra[0] == 1 && p.samples == p.colours+1 && p.photometric != tiffCMYK && !p.float
	return nil
}

// fullRange says whether the reference values are those of whole bytes: 0 to 255
// and 128 to 255.
func (p *tiffPage) fullRange() bool {
	b, kind := p.raw(tagReferenceBlack)
	if kind != 5 || len(b) < 48 {
		return false
	}
	for i, want := range []float64{0, 255, 128, 255, 128, 255} {
		if got := float64(p.order.Uint32(b[8*i:])) / float64(p.order.Uint32(b[8*i+4:])); !(math.Abs(got-want) < 0.5) {
			return false
		}
	}
	return true
}

// blocks finds where the strips or tiles are.
func (p *tiffPage) blocks() error {
	g := &p.grid
	if p.w <= 0 || p.h <= 0 || p.w > maxSide || p.h > maxSide {
		return nil // refused by Inspect
	}
	g.offsets, g.sizes = p.all(tagStripOffsets, len(p.b)), p.all(tagStripBytes, len(p.b))
	g.w, g.h = p.w, int(min(p.first(tagRowsPerStrip, math.MaxUint32), uint32(p.h)))
	if tw, th := p.first(tagTileWidth, 0), p.first(tagTileHeight, 0); tw > 0 && th > 0 {
		if tw > maxSide || th > maxSide || int64(tw)*int64(p.samples)*int64(p.bits) > 8*64<<20 {
			return reject(CodeTooLarge, "the tiff has tiles of %d×%d pixels", tw, th)
		}
		g.tiled, g.w, g.h = true, int(tw), int(min(th, uint32(p.h)))
		if v := p.all(tagTileOffsets, len(p.b)); v != nil {
			g.offsets, g.sizes = v, p.all(tagTileBytes, len(p.b))
		}
	}
	if g.tiled && p.photometric == tiffYCbCr && p.coding.compression != tiffJPEG {
		return reject(CodeUnsupported, "the tiff is YCbCr in tiles, convert it to RGB")
	}
	if g.h <= 0 || !g.tiled && len(g.offsets) == p.planes {
		g.h = p.h // one strip, whatever the rows are said to be
	}
	g.across, g.down = (p.w+g.w-1)/g.w, (p.h+g.h-1)/g.h
	need := int64(g.across) * int64(g.down) * int64(p.planes)
	if int64(len(g.offsets)) < need {
		return reject(CodeCorrupt, "the tiff has %d strips or tiles, its size needs %d", len(g.offsets), need)
	}
	if p.subV > 1 && g.h != p.h && g.h%p.subV != 0 {
		return reject(CodeCorrupt, "the tiff's strips cut its chroma samples apart")
	}
	return nil
}

// block returns the bytes of a strip or tile.
func (p *tiffPage) block(i int) ([]byte, error) {
	g := &p.grid
	size := uint64(len(p.b))
	at := g.offsets[i]
	if at >= size {
		return nil, reject(CodeTruncated, "a strip or tile of the tiff begins at byte %d of %d", at, size)
	}
	n := size - at
	switch {
	case i < len(g.sizes) && g.sizes[i] > 0:
		n = min(n, g.sizes[i])
	case i+1 < len(g.offsets) && g.offsets[i+1] > at && p.coding.compression != tiffPlain:
		n = min(n, g.offsets[i+1]-at)
	}
	return p.b[at : at+n], nil
}

var (
	imagejMax = regexp.MustCompile(`(?m)^max=([0-9.]+)\r?$`)
	omeBits   = regexp.MustCompile(`SignificantBits="([0-9]{1,2})"`)
)

// significant is how many bits the file says that samples have; 0: it says
// nothing. Ranges for display and largest samples change from frame to frame,
// so they count as the least usual depth that holds them.
func (p *tiffPage) significant() int {
	text, _ := p.raw(tagDescription)
	text = text[:min(len(text), 1<<20)]
	if m := omeBits.FindSubmatch(text); m != nil {
		if n, err := strconv.Atoi(string(m[1])); err == nil && n >= 1 && n <= 32 {
			return n
		}
	}
	for _, tag := range []uint16{tagSMaxSample, tagMaxSample} {
		if v := p.all(tag, 1); len(v) > 0 && v[0] > 0 && v[0] < 1<<32 {
			return holding(uint32(v[0]))
		}
	}
	if bytes.HasPrefix(text, []byte("ImageJ")) {
		if m := imagejMax.FindSubmatch(text); m != nil {
			if v, err := strconv.ParseFloat(string(m[1]), 64); err == nil && v >= 1 && v < 1<<32 {
				return holding(uint32(v))
			}
		}
	}
	return 0
}

// uints reads whole samples in the file's byte order.
func uints(dst []uint32, src []byte, bits int, order binary.ByteOrder) {
	switch bits {
	case 8:
		for i, v := range src[:len(dst)] {
			dst[i] = uint32(v)
		}
	case 16:
		for i := range dst {
			dst[i] = uint32(order.Uint16(src[2*i:]))
		}
	case 32:
		for i := range dst {
			dst[i] = order.Uint32(src[4*i:])
		}
	case 24:
		for i := range dst {
			a, b, c := uint32(src[3*i]), uint32(src[3*i+1]), uint32(src[3*i+2])
			if order == binary.ByteOrder(binary.LittleEndian) {
				a, c = c, a
			}
			dst[i] = a<<16 | b<<8 | c
		}
	default: // packed, the highest bit first
		var have uint64
		n := 0
		for i := range dst {
			for n < bits {
				have, n = have<<8|uint64(src[0]), n+8
				src = src[1:]
			}
			n -= bits
			dst[i] = uint32(have >> n & (1<<bits - 1))
		}
	}
}
