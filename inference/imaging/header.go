package imaging

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
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
	l.MaxBytes = cmp.Or(l.MaxBytes, d.MaxBytes)
	l.MaxPixels = cmp.Or(l.MaxPixels, d.MaxPixels)
	l.MaxMemory = cmp.Or(l.MaxMemory, d.MaxMemory)
	l.MaxAspect = cmp.Or(l.MaxAspect, d.MaxAspect)
	return l
}

// Header is what a file promises.
type Header struct {
	Format        Format
	Width, Height int // of the upright image, orientation applied
	Orientation   int // EXIF orientation, 1 (upright) to 8
	Bits          int // bits of a sample
	Significant   int // of 16 bits and more: how many the file says are used; 0: it does not say
	Channels      int // samples of a stored pixel: 1 grey or palette, 3 colour, 4 with alpha or CMYK

	// Memory is an upper bound of what Decode takes at its peak, in bytes, the
	// image that it returns included. What [Preprocess.Apply] takes is less:
	// [Preprocess.Memory].
	Memory int64

	work  int64 // what the decoder takes beside the rows it puts out
	whole bool  // the rows come only when the whole image is there, in RGB
	float bool  // the samples are floating point
}

// stored is a header of pixels as they lie in the file.
type stored struct {
	Header
	// least is the smallest number of bytes that can hold so many pixels: a
	// shorter file is truncated, whatever follows its header.
	least int64
}

// maxSide keeps every product of sides, samples and bytes within int64.
const maxSide = 1 << 24

// Inspect reads the header of an image file, and its metadata, and checks it
// against the limits. It allocates nothing that depends on what the header says.
// Every error is a *RejectError.
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
	s.Memory = 3*px + s.work
	if s.Orientation > 1 {
		s.Memory += 3 * px
	}
	if s.Format == JPEG {
		s.Memory += 1 << 20 // of a library
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

// content is what of a file is the image: cameras on the web send line ends,
// zeros, fill bytes or the head of a multipart before a JPEG.
func content(b []byte) []byte {
	head := b[:min(len(b), 1<<10)]
	i := bytes.Index(head, jpegStart)
	if i <= 0 {
		return b
	}
	if lead := bytes.Trim(head[:i], "\r\n\t \x00\xff"); len(lead) == 0 || bytes.HasPrefix(lead, []byte("--")) || bytes.HasPrefix(lead, []byte("Content-")) {
		return b[i:]
	}
	return b
}

func readHeader(b []byte) (stored, error) {
	b = content(b)
	switch {
	case bytes.HasPrefix(b, jpegStart):
		return readJPEG(b)
	case bytes.HasPrefix(b, []byte(pngMagic)):
		return readPNG(b)
	case bytes.HasPrefix(b, []byte("BM")):
		return readBMP(b)
	case isTIFF(b):
		return readTIFF(b)
	case len(b) >= 12 && string(b[:4]) == "RIFF" && string(b[8:12]) == "WEBP":
		return readWebP(b)
	}
	for _, magic := range []string{string(jpegStart), pngMagic, "II*\x00", "MM\x00*", "RIFF????WEBP"} {
		if len(b) < len(magic) && magicBegins(magic, b) {
			return stored{}, reject(CodeTruncated, "the file ends within its first %d bytes", len(magic))
		}
	}
	return stored{}, reject(CodeUnsupported, "not a JPEG, PNG, BMP, TIFF or WebP image: %s", whatElse(b))
}

// whatElse says what a file is that is no image that is read, and what to do.
func whatElse(b []byte) string {
	const convert = ", convert it to PNG"
	for _, known := range []struct{ magic, name string }{
		{"GIF8", "a GIF" + convert},
		{"%PDF", "a PDF"},
		{"8BPS", "a Photoshop file" + convert},
		{"\x00\x00\x00\x0cjP", "a JPEG 2000" + convert},
		{"\xff\x4f\xff\x51", "a JPEG 2000" + convert},
		{"\xff\x0a", "a JPEG XL" + convert},
		{"\x00\x00\x00\x0cJXL ", "a JPEG XL" + convert},
		{"v/1\x01", "an OpenEXR" + convert},
		{"SIMPLE  =", "a FITS file" + convert},
		{"\x93NUMPY", "a NumPy array" + convert},
		{"DDS ", "a DirectX texture" + convert},
		{"DICM", "a DICOM file" + convert},
		{"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"},
		{"PK\x03\x04", "a ZIP archive: unpack it"},
		{"\x1f\x8b", "a gzip file: unpack it"},
		{"RIFF", "a video or sound (RIFF)"},
	} {
		if bytes.HasPrefix(b, []byte(known.magic)) {
			return "it looks like " + known.name
		}
	}
	if len(b) >= 2 && b[0] == 'P' && b[1] >= '1' && b[1] <= '7' {
		return "it looks like a PBM, PGM, PPM or PAM" + convert
	}
	if len(b) >= 12 && string(b[4:8]) == "ftyp" {
		return "it looks like a video, HEIF or AVIF" + convert
	}
	if len(b) >= 132 && string(b[128:132]) == "DICM" {
		return "it looks like a DICOM file" + convert
	}
	text := bytes.ToLower(bytes.TrimLeft(bytes.TrimPrefix(b[:min(len(b), 512)], []byte("\xef\xbb\xbf")), " \t\r\n"))
	for _, known := range []struct{ begin, name string }{
		{"<!doctype html", "an HTML page: a login or an error instead of the image?"},
		{"<html", "an HTML page: a login or an error instead of the image?"},
		{"<svg", "an SVG" + convert},
		{"<?xml", "XML text"},
		{"{", "JSON text"},
	} {
		if bytes.HasPrefix(text, []byte(known.begin)) {
			return "it looks like " + known.name
		}
	}
	return "it begins with " + fmt.Sprintf("% x", b[:min(len(b), 8)])
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
			s.Orientation = webpOrientation(b, end+end&1)
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
				s.work = 2*int64(w)*int64(h) + 512<<10
				if alpha { // the lossless alpha plane is decoded as a picture
					s.work += 9 * int64(w) * int64(h)
				}
			} else {
				if len(body) < 5 {
					return s, cut
				}
				v := le.Uint32(body[1:])
				w, h = int(v&0x3fff)+1, int(v>>14&0x3fff)+1
				s.Channels, s.work = 4, 12*int64(w)*int64(h)+4<<20
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

// webpOrientation looks for the EXIF and XMP chunks, which follow the picture.
func webpOrientation(b []byte, at int64) int {
	var o orientation
	for at+8 <= int64(len(b)) {
		n := int64(binary.LittleEndian.Uint32(b[at+4:]))
		end := at + 8 + n
		if end > int64(len(b)) {
			break
		}
		switch string(b[at : at+4]) {
		case "EXIF":
			o.exif(b[at+8 : end])
		case "XMP ":
			o.xmp(b[at+8 : end])
		}
		at = end + end&1
	}
	return o.value()
}
