package imaging

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// Format is an image file format.
type Format string

const (
	JPEG Format = "jpeg"
	PNG  Format = "png"
	BMP  Format = "bmp"
	TIFF Format = "tiff"
	WebP Format = "webp"
)

// Limits bounds what is decoded. A zero field takes the default, a negative one
// sets no limit.
type Limits struct {
	MaxBytes  int64   // length of the file, default 64 MiB
	MaxPixels int64   // width × height, default 100 million
	MaxMemory int64   // bytes the decoder may take at its peak, result included, default 512 MiB
	MaxAspect float64 // longer side ÷ shorter side, default 50
}

// DefaultLimits admits what industrial cameras and microscopes make.
func DefaultLimits() Limits {
	return Limits{MaxBytes: 64 << 20, MaxPixels: 100e6, MaxMemory: 512 << 20, MaxAspect: 50}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	if l.MaxBytes == 0 {
		l.MaxBytes = d.MaxBytes
	}
	if l.MaxPixels == 0 {
		l.MaxPixels = d.MaxPixels
	}
	if l.MaxMemory == 0 {
		l.MaxMemory = d.MaxMemory
	}
	if l.MaxAspect == 0 {
		l.MaxAspect = d.MaxAspect
	}
	return l
}

// Header is what the first bytes of a file promise.
type Header struct {
	Format        Format
	Width, Height int // of the upright image, orientation applied
	Orientation   int // EXIF orientation, 1 (upright) to 8
	Bits          int // bits of a sample
	Channels      int // samples of a stored pixel: 1 grey or palette, 3 colour, 4 with alpha or CMYK

	// Memory is an upper bound of what decoding takes at its peak, in bytes.
	Memory int64
}

// stored describes the pixels as they lie in the file.
type stored struct {
	Header
	// decoded is what the decoder holds for a pixel at its peak, our 3 bytes
	// of RGB not counted; extra is what it takes beyond.
	decoded, extra int64
	// least is the smallest number of bytes that can hold so many pixels: a
	// shorter file is truncated, whatever follows its header.
	least int64
}

// maxSide keeps every product of sides, samples and bytes within int64.
const maxSide = 1 << 24

// Inspect reads the header of an image file and checks it against the limits.
// It allocates nothing that depends on what the header says. Every error is a
// *RejectError.
func Inspect(b []byte, l Limits) (Header, error) {
	l = l.withDefaults()
	if len(b) == 0 {
		return Header{}, reject(CodeEmpty, "there are no bytes")
	}
	if l.MaxBytes > 0 && int64(len(b)) > l.MaxBytes {
		return Header{}, reject(CodeTooLarge, "the file has %d bytes, at most %d are read", len(b), l.MaxBytes)
	}
	s, err := readHeader(b)
	if err != nil {
		return Header{}, err
	}
	w, h := int64(s.Width), int64(s.Height)
	if w <= 0 || h <= 0 {
		return Header{}, reject(CodeCorrupt, "the %s header says %d×%d pixels", s.Format, w, h)
	}
	if w > maxSide || h > maxSide {
		return Header{}, reject(CodeTooLarge, "the %s header says %d×%d pixels", s.Format, w, h)
	}
	if s.Orientation >= 5 {
		s.Width, s.Height = s.Height, s.Width
	}
	px := w * h
	s.Memory = px*(s.decoded+3) + s.extra
	if s.Orientation > 1 {
		s.Memory += 3 * px
	}
	switch {
	case l.MaxPixels > 0 && px > l.MaxPixels:
		return s.Header, reject(CodeTooLarge, "the %s has %d×%d pixels, at most %d are decoded", s.Format, w, h, l.MaxPixels)
	case l.MaxMemory > 0 && s.Memory > l.MaxMemory:
		return s.Header, reject(CodeTooLarge, "decoding %d×%d pixels of %s could take %d MiB, at most %d are given",
			w, h, s.Format, s.Memory>>20, l.MaxMemory>>20)
	case l.MaxAspect > 0 && float64(max(w, h)) > l.MaxAspect*float64(min(w, h)):
		return s.Header, reject(CodeBadAspect, "the image has %d×%d pixels, one side may be at most %g times the other", w, h, l.MaxAspect)
	case int64(len(b)) < s.least:
		return s.Header, reject(CodeTruncated, "the %s has %d bytes, %d×%d pixels take at least %d", s.Format, len(b), w, h, s.least)
	}
	return s.Header, nil
}

func readHeader(b []byte) (stored, error) {
	switch {
	case bytes.HasPrefix(b, []byte("\xff\xd8\xff")):
		return readJPEG(b)
	case bytes.HasPrefix(b, []byte(pngMagic)):
		return readPNG(b)
	case bytes.HasPrefix(b, []byte("BM")):
		return readBMP(b)
	case bytes.HasPrefix(b, []byte("II*\x00")), bytes.HasPrefix(b, []byte("MM\x00*")):
		return readTIFF(b)
	case len(b) >= 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP":
		return readWebP(b)
	}
	what := "it begins with " + fmt.Sprintf("% x", b[:min(len(b), 8)])
	for _, known := range []struct{ magic, name string }{
		{"GIF8", "a GIF"},
		{"%PDF", "a PDF"},
		{"II+\x00", "a BigTIFF"},
		{"MM\x00+", "a BigTIFF"},
		{"8BPS", "a Photoshop file"},
		{"\x00\x00\x00\x0cjP", "a JPEG 2000"},
		{"v/1\x01", "an OpenEXR"},
		{"P5", "a PGM"},
		{"P6", "a PPM"},
		{"<?xml", "XML text"},
		{"<svg", "an SVG"},
	} {
		if bytes.HasPrefix(b, []byte(known.magic)) {
			what = "it looks like " + known.name
		}
	}
	if len(b) >= 12 && string(b[4:8]) == "ftyp" {
		what = "it looks like a video, HEIF or AVIF"
	}
	for _, magic := range []string{"\xff\xd8\xff", pngMagic, "II*\x00", "MM\x00*", "RIFF????WEBP"} {
		if len(b) < len(magic) && magicBegins(magic, b) {
			return stored{}, reject(CodeTruncated, "the file ends within its first %d bytes", len(magic))
		}
	}
	return stored{}, reject(CodeUnsupported, "not a JPEG, PNG, BMP, TIFF or WebP image: %s", what)
}

// magicBegins reports whether the short file b is a beginning of magic, in
// which '?' stands for any byte.
func magicBegins(magic string, b []byte) bool {
	for i, c := range b {
		if magic[i] != '?' && magic[i] != c {
			return false
		}
	}
	return true
}

// maxScans bounds the passes over an image that a JPEG may ask for. Encoders
// write about ten; a file with thousands keeps a decoder busy for minutes.
const maxScans = 100

// readJPEG walks the marker segments up to the frame header (ITU-T T.81 B.2).
func readJPEG(b []byte) (stored, error) {
	s := stored{Header: Header{Format: JPEG, Orientation: 1}}
	cut := reject(CodeTruncated, "the jpeg ends within its header")
	for at := 2; ; {
		for at < len(b) && b[at] != 0xff { // garbage between segments is skipped, as decoders do
			at++
		}
		for at < len(b) && b[at] == 0xff {
			at++
		}
		if at >= len(b) {
			return s, cut
		}
		marker := b[at]
		at++
		if marker == 0 || marker == 0x01 || marker >= 0xd0 && marker <= 0xd8 {
			continue // stuffed byte or a marker without a segment
		}
		if marker == 0xd9 || marker == 0xda {
			return s, reject(CodeCorrupt, "the jpeg has no frame header before its data")
		}
		if at+2 > len(b) {
			return s, cut
		}
		n := int(binary.BigEndian.Uint16(b[at:]))
		if n < 2 {
			return s, reject(CodeCorrupt, "a jpeg segment says it is %d bytes long", n)
		}
		if at+n > len(b) {
			return s, cut
		}
		seg := b[at+2 : at+n]
		at += n
		switch {
		case marker == 0xe1 && bytes.HasPrefix(seg, []byte("Exif\x00\x00")):
			s.Orientation = exifOrientation(seg[6:])
		case marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc:
			if len(seg) < 6 {
				return s, reject(CodeCorrupt, "the jpeg frame header has %d bytes", len(seg))
			}
			s.Bits = int(seg[0])
			s.Height = int(binary.BigEndian.Uint16(seg[1:]))
			s.Width = int(binary.BigEndian.Uint16(seg[3:]))
			s.Channels = int(seg[5])
			if marker > 0xc2 {
				return s, reject(CodeUnsupported, "the jpeg is lossless, hierarchical or arithmetic-coded (frame type %#x)", marker)
			}
			if s.Bits != 8 {
				return s, reject(CodeUnsupported, "the jpeg has %d bits a sample, 8 are read", s.Bits)
			}
			if s.Channels != 1 && s.Channels != 3 && s.Channels != 4 {
				return s, reject(CodeUnsupported, "the jpeg has %d components", s.Channels)
			}
			if s.Height == 0 {
				return s, reject(CodeUnsupported, "the jpeg gives its height only after its data")
			}
			if len(seg) < 6+3*s.Channels {
				return s, reject(CodeCorrupt, "the jpeg frame header is too short for %d components", s.Channels)
			}
			s.decoded = int64(s.Channels)
			if marker == 0xc2 { // progressive decoders keep every coefficient
				s.decoded += 4 * int64(s.Channels)
			}
			if s.Channels == 4 {
				s.decoded += 4
			}
			s.extra = 64 << 10
			// Every 8×8 block of the first component takes a bit or more.
			s.least = int64((s.Width+63)/64) * int64((s.Height+7)/8) / 8
			if scans := countScans(b[at:]); scans > maxScans {
				return s, reject(CodeTooLarge, "the jpeg has %d scans, at most %d are decoded", scans, maxScans)
			}
			return s, nil
		}
	}
}

// countScans counts the start-of-scan markers. Within entropy-coded data a byte
// 0xff is always followed by 0 or a restart marker, so nothing is miscounted.
func countScans(b []byte) int {
	n := 0
	for {
		i := bytes.IndexByte(b, 0xff)
		if i < 0 || i+1 >= len(b) {
			return n
		}
		if b[i+1] == 0xda {
			n++
		}
		b = b[i+1:]
	}
}

const pngMagic = "\x89PNG\r\n\x1a\n"

// maxDeflate is the largest factor by which DEFLATE shrinks (RFC 1951: 258
// bytes for two bits, in effect 1032).
const maxDeflate = 1032

// readPNG reads IHDR and looks for eXIf before the data (PNG third edition).
func readPNG(b []byte) (stored, error) {
	s := stored{Header: Header{Format: PNG, Orientation: 1}}
	cut := reject(CodeTruncated, "the png ends within its header")
	if len(b) < 8+8+13+4 {
		return s, cut
	}
	if string(b[12:16]) != "IHDR" || binary.BigEndian.Uint32(b[8:]) != 13 {
		return s, reject(CodeCorrupt, "the png does not begin with IHDR")
	}
	w, h := binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint32(b[20:])
	s.Width, s.Height, s.Bits = int(w), int(h), int(b[24])
	kind, interlaced := b[25], b[28] == 1
	switch kind {
	case 0, 3:
		s.Channels = 1
	case 2:
		s.Channels = 3
	case 4:
		s.Channels = 2
	case 6:
		s.Channels = 4
	default:
		return s, reject(CodeCorrupt, "the png has colour type %d", kind)
	}
	sample := int64(1)
	if s.Bits == 16 {
		sample = 2
	}
	// The decoder makes grey and palettes 1 sample, the rest 4; grey with
	// transparency 4; an interlaced image once more for its largest pass.
	s.decoded = 4 * sample
	if interlaced {
		s.decoded += 4 * sample
	}
	s.extra = 256<<10 + 4*int64(s.Width)*int64(s.Channels)*sample
	if s.Width <= maxSide && s.Height <= maxSide {
		bits := int64(s.Width) * int64(s.Channels) * int64(s.Bits)
		s.least = (bits + 7) / 8 * int64(s.Height) / maxDeflate
	}
	for at := 33; at+8 <= len(b); {
		n := int64(binary.BigEndian.Uint32(b[at:]))
		id := string(b[at+4 : at+8])
		if id == "IDAT" || id == "IEND" || int64(at)+8+n > int64(len(b)) {
			break
		}
		if id == "eXIf" {
			s.Orientation = exifOrientation(b[at+8 : at+8+int(n)])
		}
		at += int(n) + 12
	}
	return s, nil
}

// readBMP reads a BITMAPINFOHEADER or one of its longer successors.
func readBMP(b []byte) (stored, error) {
	s := stored{Header: Header{Format: BMP, Orientation: 1}}
	if len(b) < 34 {
		return s, reject(CodeTruncated, "the bmp ends within its header")
	}
	le := binary.LittleEndian
	w, h := int64(int32(le.Uint32(b[18:]))), int64(int32(le.Uint32(b[22:])))
	bits, compression := int(le.Uint16(b[28:])), le.Uint32(b[30:])
	if n := le.Uint32(b[14:]); n < 40 {
		return s, reject(CodeUnsupported, "the bmp has an OS/2 header of %d bytes", n)
	}
	if h < 0 { // rows from the top
		h = -h
	}
	if w < 0 {
		return s, reject(CodeCorrupt, "the bmp header says %d×%d pixels", w, h)
	}
	if compression != 0 && compression != 3 {
		return s, reject(CodeUnsupported, "the bmp is compressed (method %d), only plain ones are read", compression)
	}
	s.Width, s.Height, s.Bits, s.Channels = int(w), int(h), 8, 1
	switch bits {
	case 1, 2, 4, 8:
		s.Bits, s.decoded = bits, 1
	case 24:
		s.Channels, s.decoded = 3, 4
	case 32:
		s.Channels, s.decoded = 4, 4
	default:
		return s, reject(CodeUnsupported, "the bmp has %d bits a pixel", bits)
	}
	s.extra = 64 << 10
	if w <= maxSide && h <= maxSide {
		s.least = int64(le.Uint32(b[10:])) + (w*int64(bits)+31)/32*4*h
	}
	return s, nil
}

// readTIFF reads the first image file directory (TIFF 6.0 section 2).
func readTIFF(b []byte) (stored, error) {
	s := stored{Header: Header{Format: TIFF, Orientation: 1}}
	d, err := readIFD(b)
	if err != nil {
		return s, err
	}
	w, h := d.first(256, 0), d.first(257, 0)
	s.Width, s.Height = int(w), int(h)
	s.Orientation = validOrientation(int(d.first(274, 1)))
	s.Bits = int(d.first(258, 1))
	s.Channels = max(1, int(d.first(277, 1)))

	for _, f := range d.all(339) {
		if f != 1 {
			name := map[uint32]string{2: "signed integers", 3: "floating point", 4: "undefined", 5: "complex integers", 6: "complex floating point"}[f]
			return s, reject(CodeUnsupported, "the tiff's samples are of format %d (%s), unsigned integers are read", f, name)
		}
	}
	compression := d.first(259, 1)
	switch compression {
	case 0, 1, 2, 3, 4, 5, 8, 32773, 32946:
	case 6, 7:
		return s, reject(CodeUnsupported, "the tiff holds JPEG data (compression %d), store it plain, LZW or Deflate", compression)
	default:
		return s, reject(CodeUnsupported, "the tiff's compression %d is not read, store it plain, LZW or Deflate", compression)
	}
	switch photometric := d.first(262, 1); photometric {
	case 0, 1, 2, 3:
	case 5:
		return s, reject(CodeUnsupported, "the tiff is CMYK, convert it to RGB")
	case 6:
		return s, reject(CodeUnsupported, "the tiff is YCbCr, convert it to RGB")
	case 8, 9, 10:
		return s, reject(CodeUnsupported, "the tiff is CIE L*a*b*, convert it to RGB")
	default:
		return s, reject(CodeUnsupported, "the tiff's colour model %d is not read", photometric)
	}
	if s.Bits != 1 && s.Bits != 8 && s.Bits != 16 {
		return s, reject(CodeUnsupported, "the tiff has %d bits a sample, 1, 8 and 16 are read", s.Bits)
	}
	if d.first(284, 1) == 2 && s.Channels > 1 {
		return s, reject(CodeUnsupported, "the tiff keeps its channels in separate planes")
	}

	sample := int64(max(s.Bits/8, 1))
	s.decoded = sample
	if s.Channels > 1 {
		s.decoded = 4 * sample
	}
	if w > maxSide || h > maxSide {
		return s, nil // refused by Inspect
	}
	// A block (strip or tile) is unpacked whole, into at most 8 bytes a pixel
	// and no more than its compression can yield from the file.
	blockW, blockH := int64(w), min(int64(h), int64(d.first(278, math.MaxUint32)))
	if tw := d.first(322, 0); tw > 0 {
		blockW, blockH = int64(tw), int64(d.first(323, 0))
	}
	if blockH <= 0 {
		blockH = int64(h)
	}
	block := min(blockW, maxSide) * min(blockH, maxSide) * 8
	size := int64(len(b))
	raw := (int64(w)*int64(s.Channels)*int64(s.Bits) + 7) / 8 * int64(h)
	switch compression {
	case 0, 1: // blocks alias the file
		s.least = raw
		block = 0
	case 5:
		s.least = raw / 2731 // at best 4096 bytes for a 12-bit code
		block = min(block, size*2731)
	case 8, 32946:
		s.least = raw / maxDeflate
		block = min(block, size*maxDeflate)
	case 32773:
		s.least = raw / 64 // 128 bytes for two
		block = min(block, size*64)
	}
	s.extra = 256<<10 + 3*block // a growing buffer holds its old half too
	return s, nil
}

// readWebP reads the RIFF container's first chunks.
func readWebP(b []byte) (stored, error) {
	s := stored{Header: Header{Format: WebP, Orientation: 1, Bits: 8, Channels: 3}}
	cut := reject(CodeTruncated, "the webp ends within its header")
	le := binary.LittleEndian
	sized := false // VP8X has given the canvas size
	alpha := false
	for at := int64(12); ; {
		if at+8 > int64(len(b)) {
			return s, cut
		}
		id, n := string(b[at:at+4]), int64(le.Uint32(b[at+4:]))
		body := b[at+8:]
		end := at + 8 + n
		switch id {
		case "VP8X":
			if len(body) < 10 {
				return s, cut
			}
			if body[0]&2 != 0 {
				return s, reject(CodeUnsupported, "the webp is an animation")
			}
			alpha = body[0]&0x10 != 0
			s.Width = 1 + int(uint32(body[4])|uint32(body[5])<<8|uint32(body[6])<<16)
			s.Height = 1 + int(uint32(body[7])|uint32(body[8])<<8|uint32(body[9])<<16)
			sized = true
			if body[0]&8 != 0 {
				s.Orientation = webpOrientation(b, end+end&1)
			}
		case "VP8 ", "VP8L":
			if end > int64(len(b)) {
				return s, reject(CodeTruncated, "the webp says its data has %d bytes, %d are there", n, len(body))
			}
			var w, h int
			if id == "VP8 " {
				if len(body) < 10 {
					return s, cut
				}
				if body[0]&1 != 0 || string(body[3:6]) != "\x9d\x01\x2a" {
					return s, reject(CodeCorrupt, "the webp does not begin with a key frame")
				}
				w, h = int(le.Uint16(body[6:])&0x3fff), int(le.Uint16(body[8:])&0x3fff)
				s.decoded, s.extra = 2, 512<<10
				if alpha {
					s.decoded += 9 // the lossless alpha plane is decoded as a picture
				}
			} else {
				if len(body) < 5 {
					return s, cut
				}
				v := le.Uint32(body[1:])
				w, h = int(v&0x3fff)+1, int(v>>14&0x3fff)+1
				s.Channels, s.decoded, s.extra = 4, 12, 4<<20
			}
			if sized && (w != s.Width || h != s.Height) {
				return s, reject(CodeCorrupt, "the webp's canvas has %d×%d pixels, its picture %d×%d", s.Width, s.Height, w, h)
			}
			s.Width, s.Height = w, h
			if alpha {
				s.Channels = 4
			}
			return s, nil
		case "ANIM", "ANMF":
			return s, reject(CodeUnsupported, "the webp is an animation")
		}
		at = end + end&1
	}
}

// webpOrientation looks for the EXIF chunk, which follows the picture.
func webpOrientation(b []byte, at int64) int {
	for at+8 <= int64(len(b)) {
		n := int64(binary.LittleEndian.Uint32(b[at+4:]))
		end := at + 8 + n
		if string(b[at:at+4]) == "EXIF" && end <= int64(len(b)) {
			return exifOrientation(bytes.TrimPrefix(b[at+8:end], []byte("Exif\x00\x00")))
		}
		at = end + end&1
	}
	return 1
}
