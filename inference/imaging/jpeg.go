package imaging

import (
	"bytes"
	"encoding/binary"
	"io"
)

// JPEG markers (ITU-T T.81, table B.1).
const (
	markSOF0  = 0xc0 // baseline
	markSOF1  = 0xc1 // extended sequential
	markSOF2  = 0xc2 // progressive
	markDHT   = 0xc4
	markRST0  = 0xd0
	markRST7  = 0xd7
	markSOI   = 0xd8
	markEOI   = 0xd9
	markSOS   = 0xda
	markDQT   = 0xdb
	markDRI   = 0xdd
	markAPP0  = 0xe0
	markAPP1  = 0xe1
	markAPP14 = 0xee
)

// jpegStart begins a JPEG: start of image, and of another marker.
var jpegStart = []byte{0xff, markSOI, 0xff}

// isFrame says whether a marker is that of a frame header, of any kind.
func isFrame(marker byte) bool {
	return marker >= 0xc0 && marker <= 0xcf && marker != markDHT && marker != 0xc8 && marker != 0xcc
}

// jpegComponent is a colour of a JPEG.
type jpegComponent struct {
	id, h, v, tq  int
	w, rows       int // samples that count
	blocksX       int // blocks of a row, with those that only fill the last unit
	blocksY       int
	quant         [64]int32 // in the order of rows
	latched       bool      // its first scan has come, with that table
	band          jpegBand
	parts         jpegParts
	scan          jpegCoder
	expandH, expV int
}

// jpegBand is what is kept of a component's samples: three rows of units, one after
// the other.
type jpegBand struct {
	plane  []uint8
	stride int
	rows   int // of samples in a row of units
}

// jpegParts are the coefficients of all blocks, where scans bring them in parts.
type jpegParts struct {
	coefficients []int16
	missing      [64]int // bits of each that have not come; -1: none has
}

// jpegCoder is where the decoding of a scan is.
type jpegCoder struct {
	dc, ac int // tables
	pred   int32
}

// jpegFrame is a frame header.
type jpegFrame struct {
	marker     byte
	bits, w, h int
	components []jpegComponent
	maxH, maxV int
	unitsX     int // minimum coded units of a row
	unitsY     int
}

// readFrame reads a frame header's segment (T.81 B.2.2) and refuses what is not
// decoded.
func readFrame(marker byte, seg []byte) (f jpegFrame, err error) {
	f.marker = marker
	if len(seg) < 6 {
		return f, reject(CodeCorrupt, "the jpeg frame header has %d bytes", len(seg))
	}
	f.bits, f.h, f.w = int(seg[0]), int(binary.BigEndian.Uint16(seg[1:])), int(binary.BigEndian.Uint16(seg[3:]))
	n := int(seg[5])
	f.components = make([]jpegComponent, min(n, 4))
	switch {
	case marker > markSOF2:
		return f, reject(CodeUnsupported, "the jpeg is lossless, hierarchical or arithmetic-coded (frame type %#x)", marker)
	case f.bits != 8:
		return f, reject(CodeUnsupported, "the jpeg has %d bits a sample, 8 are read", f.bits)
	case n != 1 && n != 3 && n != 4:
		return f, reject(CodeUnsupported, "the jpeg has %d components", n)
	case f.h == 0:
		return f, reject(CodeUnsupported, "the jpeg gives its height only after its data")
	case f.w == 0:
		return f, reject(CodeCorrupt, "the jpeg header says 0×%d pixels", f.h)
	case len(seg) < 6+3*n:
		return f, reject(CodeCorrupt, "the jpeg frame header is too short for %d components", n)
	}
	blocks := 0
	for i := range f.components {
		c, s := &f.components[i], seg[6+3*i:]
		c.id, c.h, c.v, c.tq = int(s[0]), int(s[1]>>4), int(s[1]&15), int(s[2])
		if c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4 || c.tq > 3 {
			return f, reject(CodeCorrupt, "the jpeg has sampling factors %d×%d and quantisation table %d", c.h, c.v, c.tq)
		}
		for _, other := range f.components[:i] {
			if other.id == c.id {
				return f, reject(CodeCorrupt, "the jpeg has two components %d", c.id)
			}
		}
		if n == 1 { // a scan of one component is not made of units
			c.h, c.v = 1, 1
		}
		f.maxH, f.maxV = max(f.maxH, c.h), max(f.maxV, c.v)
		blocks += c.h * c.v
	}
	if blocks > 10 {
		return f, reject(CodeCorrupt, "the jpeg has %d blocks in a unit, at most 10 are allowed", blocks)
	}
	f.unitsX, f.unitsY = (f.w+8*f.maxH-1)/(8*f.maxH), (f.h+8*f.maxV-1)/(8*f.maxV)
	for i := range f.components {
		c := &f.components[i]
		if f.maxH%c.h != 0 || f.maxV%c.v != 0 {
			return f, reject(CodeUnsupported, "the jpeg's colours are sampled %d×%d in units of %d×%d, which does not divide", c.h, c.v, f.maxH, f.maxV)
		}
		c.expandH, c.expV = f.maxH/c.h, f.maxV/c.v
		c.w, c.rows = (f.w*c.h+f.maxH-1)/f.maxH, (f.h*c.v+f.maxV-1)/f.maxV
		c.blocksX, c.blocksY = f.unitsX*c.h, f.unitsY*c.v
		c.band.stride, c.band.rows = 8*c.blocksX, 8*c.v
	}
	return f, nil
}

// jpegSegments walks over the marker segments of a JPEG, from a place on.
type jpegSegments struct {
	b  []byte
	at int
}

// next returns a marker, and its segment if it has one. io.ErrUnexpectedEOF: the
// file ends.
func (s *jpegSegments) next() (marker byte, seg []byte, err error) {
	for {
		// Garbage between segments is passed over, as decoders do.
		i := bytes.IndexByte(s.b[min(s.at, len(s.b)):], 0xff)
		if i < 0 {
			return 0, nil, io.ErrUnexpectedEOF
		}
		for s.at += i; s.at < len(s.b) && s.b[s.at] == 0xff; {
			s.at++
		}
		if s.at >= len(s.b) {
			return 0, nil, io.ErrUnexpectedEOF
		}
		marker = s.b[s.at]
		s.at++
		if marker == 0 || marker == 0x01 || marker >= markRST0 && marker <= markSOI {
			continue // a stuffed byte or a marker that says nothing here
		}
		if marker == markEOI {
			return marker, nil, nil
		}
		if s.at+2 > len(s.b) {
			return marker, nil, io.ErrUnexpectedEOF
		}
		n := int(binary.BigEndian.Uint16(s.b[s.at:]))
		if n < 2 {
			return marker, nil, reject(CodeCorrupt, "a jpeg segment says it is %d bytes long", n)
		}
		if s.at+n > len(s.b) {
			return marker, nil, io.ErrUnexpectedEOF
		}
		seg = s.b[s.at+2 : s.at+n]
		s.at += n
		return marker, seg, nil
	}
}

// maxScans bounds the passes over an image that a JPEG may ask for. Encoders
// write about ten; a file with thousands keeps a decoder busy for minutes.
const maxScans = 100

// readJPEG walks the marker segments up to the first scan (ITU-T T.81 B.2).
func readJPEG(b []byte) (stored, error) {
	s := stored{Header: Header{Format: JPEG, Orientation: 1}}
	var (
		o     orientation
		f     jpegFrame
		known bool
	)
	for walk := (jpegSegments{b, 2}); ; {
		marker, seg, err := walk.next()
		if err != nil {
			if Rejection(err) == nil {
				err = reject(CodeTruncated, "the jpeg ends within its header")
			}
			return s, err
		}
		switch {
		case marker == markAPP1:
			if packet, ok := bytes.CutPrefix(seg, []byte(xmpName)); ok {
				o.xmp(packet)
			} else if bytes.HasPrefix(seg, []byte("Exif\x00")) {
				o.exif(seg)
			}
		case isFrame(marker):
			if known {
				return s, reject(CodeCorrupt, "the jpeg has more than one frame header")
			}
			f, err = readFrame(marker, seg)
			s.Width, s.Height, s.Bits, s.Channels = f.w, f.h, f.bits, len(f.components)
			if err != nil {
				return s, err
			}
			known = true
		case marker == markEOI, marker == markSOS && !known:
			return s, reject(CodeCorrupt, "the jpeg has no frame header before its data")
		case marker == markSOS:
			s.Orientation = o.value()
			s.work = 64<<10 + 12*int64(f.w)
			parts := f.marker == markSOF2 || len(seg) > 0 && int(seg[0]) < len(f.components)
			for _, c := range f.components {
				s.work += 3 * int64(c.band.rows) * int64(c.band.stride)
				if parts { // every coefficient is kept until the last scan
					s.work += 128 * int64(c.blocksX) * int64(c.blocksY)
				}
			}
			// Every 8×8 block of the first component takes a bit or more.
			s.least = int64((f.w+63)/64) * int64((f.h+7)/8) / 8
			if scans := 1 + countScans(b[walk.at:]); scans > maxScans {
				return s, reject(CodeTooLarge, "the jpeg has %d scans, at most %d are decoded", scans, maxScans)
			}
			return s, nil
		}
	}
}

// countScans counts the start-of-scan markers up to the image's end. Within
// entropy-coded data a byte 0xff is always followed by 0 or a restart marker,
// so nothing is miscounted.
func countScans(b []byte) int {
	n := 0
	for {
		i := bytes.IndexByte(b, 0xff)
		if i < 0 || i+1 >= len(b) || b[i+1] == markEOI {
			return n
		}
		if b[i+1] == markSOS {
			n++
		}
		b = b[i+1:]
	}
}

// jpegColour says what a JPEG's components are.
type jpegColour int

const (
	jpegByFile jpegColour = iota // as the file says
	jpegYCbCr
	jpegRGB
)

// jpegWant is what a decoded JPEG must be.
type jpegWant struct {
	w, h   int // h: at least; further rows are left out
	colour jpegColour
	inks   bool // CMYK is not inverted, as Adobe's and everybody's JPEG files are
}

// jpegReader decodes one image.
type jpegReader struct {
	jpegFrame
	walk    jpegSegments
	want    jpegWant
	out     sink
	tables  [4]*[64]int32
	huffman [2][4]*huffman
	restart int
	adobe   int // its colour transform; -1: no such segment
	jfif    bool
	bits    bitReader
	eobRun  int32
	scratch [][]uint8 // enlarged rows of the components
}

// decodeJPEGInto decodes baseline, extended and progressive JPEG of 8 bits, with
// any sampling factors that divide one another. The pixels are those of
// libjpeg's slow integer transform and its fancy upsampling, to the bit. A
// sequential file is decoded a few rows at a time.
//
// Cameras leave out what others can do without: where Huffman tables are missing
// those of T.81 K.3 are taken, and the end marker may be. An image of which
// anything is missing is refused.
func decodeJPEGInto(b []byte, want jpegWant, out sink) error {
	d := &jpegReader{walk: jpegSegments{b, 0}, want: want, out: out, adobe: -1}
	for {
		marker, seg, err := d.walk.next()
		if err != nil {
			return d.ended(err)
		}
		switch {
		case marker == markEOI:
			return d.ended(io.EOF)
		case isFrame(marker):
			if d.components != nil {
				return reject(CodeCorrupt, "the jpeg has more than one frame header")
			}
			if d.jpegFrame, err = readFrame(marker, seg); err != nil {
				return err
			}
			if d.w != want.w || d.h < want.h {
				return reject(CodeCorrupt, "the jpeg has %d×%d pixels, not %d×%d", d.w, d.h, want.w, want.h)
			}
			for i := range d.components {
				c := &d.components[i]
				c.band.plane = make([]uint8, 3*c.band.rows*c.band.stride)
				for k := range c.parts.missing {
					c.parts.missing[k] = -1
				}
			}
		case marker == markDHT:
			err = d.readHuffman(seg)
		case marker == markDQT:
			err = d.readQuantisation(seg)
		case marker == markDRI && len(seg) >= 2:
			d.restart = int(binary.BigEndian.Uint16(seg))
		case marker == markAPP0 && bytes.HasPrefix(seg, []byte("JFIF\x00")):
			d.jfif = true
		case marker == markAPP14 && bytes.HasPrefix(seg, []byte("Adobe")) && len(seg) >= 12:
			d.adobe = int(seg[11])
		case marker == markSOS:
			done, err := d.scan(seg)
			if err != nil || done {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// ended puts out an image whose scans came in parts, if nothing is missing.
func (d *jpegReader) ended(err error) error {
	if Rejection(err) != nil {
		return err
	}
	if d.components == nil {
		return reject(CodeTruncated, "the jpeg ends before its frame header")
	}
	for _, c := range d.components {
		if !c.latched {
			return reject(CodeTruncated, "the jpeg ends before the scan of component %d", c.id)
		}
		for k, bits := range c.parts.missing {
			if bits != 0 {
				return reject(CodeTruncated, "the jpeg ends before its last scan: coefficient %d of component %d is not complete", k, c.id)
			}
		}
	}
	for y := range d.unitsY {
		for i := range d.components {
			c := &d.components[i]
			for v := range c.v {
				for x := range c.blocksX {
					at := 64 * ((y*c.v+v)*c.blocksX + x)
					inverse((*[64]int16)(c.parts.coefficients[at:]), &c.quant, c.place(y, x, v), c.band.stride)
				}
			}
		}
		d.emit(y)
	}
	d.emit(d.unitsY)
	return nil
}

// place is where the samples of a block go: block x of row v of unit row y.
func (c *jpegComponent) place(y, x, v int) []uint8 {
	return c.band.plane[((y%3)*c.band.rows+8*v)*c.band.stride+8*x:]
}

func (d *jpegReader) readQuantisation(seg []byte) error {
	for len(seg) > 0 {
		wide, id := seg[0]>>4, seg[0]&15
		size := 64 * (1 + int(wide))
		if wide > 1 || id > 3 || len(seg) < 1+size {
			return reject(CodeCorrupt, "the jpeg's quantisation table is damaged")
		}
		t := new([64]int32)
		for i := range 64 {
			if wide == 1 {
				t[zigzag[i]] = int32(binary.BigEndian.Uint16(seg[1+2*i:]))
			} else {
				t[zigzag[i]] = int32(seg[1+i])
			}
		}
		d.tables[id] = t
		seg = seg[1+size:]
	}
	return nil
}

// zigzag gives the place in a block of the coefficient that comes at a place of
// the data (T.81 figure A.6).
var zigzag = [64]int{
	0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5,
	12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
	35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
	58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
}
