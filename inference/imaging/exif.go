package imaging

import (
	"bytes"
	"compress/zlib"
	"encoding/hex"
	"io"
)

// orientation collects what a file says about the way its picture lies. The
// first EXIF data counts, whatever further ones say; where that says nothing,
// the first XMP packet does. Damaged metadata says nothing: it is no reason to
// refuse the pixels.
type orientation struct {
	first, packet int // 0: not said
	closed        bool
}

// value is the EXIF orientation, 1 (upright) to 8.
func (o *orientation) value() int {
	for _, v := range []int{o.first, o.packet} {
		if v >= 1 && v <= 8 {
			return v
		}
	}
	return 1
}

// exif takes EXIF data, which begins with a TIFF header, or with the name that
// JPEG puts before it.
func (o *orientation) exif(b []byte) {
	b = bytes.TrimPrefix(b, []byte("Exif\x00\x00"))
	if o.closed || !bytes.HasPrefix(b, []byte("II*\x00")) && !bytes.HasPrefix(b, []byte("MM\x00*")) {
		return
	}
	d, err := readIFD(b)
	if err != nil {
		return
	}
	o.closed = true
	o.first = int(d.first(tagOrientation, 0))
}

// xmp takes an XMP packet, in which the orientation is an attribute or an
// element (XMP specification part 2, 3.6).
func (o *orientation) xmp(b []byte) {
	if o.packet != 0 {
		return
	}
	_, after, found := bytes.Cut(b, []byte("tiff:Orientation"))
	if !found {
		return
	}
	after = bytes.TrimLeft(after, " \t\r\n=>")
	after = bytes.TrimLeft(after, `"'`)
	if len(after) > 0 && after[0] >= '1' && after[0] <= '8' {
		o.packet = int(after[0] - '0')
	}
}

// maxText is how much of compressed metadata is read, in bytes. The orientation
// stands near the beginning.
const maxText = 64 << 10

// pngText takes a text chunk that may hold EXIF or XMP: so ImageMagick and Adobe
// store them.
func (o *orientation) pngText(c pngChunk) {
	if body, ok := isPNGText(c.body, "XML:com.adobe.xmp"); ok && c.id == "iTXt" && len(body) > 2 {
		packed := body[0] == 1
		if parts := bytes.SplitN(body[2:], []byte{0}, 3); len(parts) == 3 { // language, translated keyword
			text := parts[2]
			if packed {
				text = unpackText(text)
			}
			o.xmp(text)
		}
		return
	}
	for _, kind := range []string{"exif", "APP1", "xmp"} {
		body, ok := isPNGText(c.body, "Raw profile type "+kind)
		if !ok {
			continue
		}
		if c.id == "zTXt" && len(body) > 0 {
			body = unpackText(body[1:])
		}
		// "\nexif\n      38\n4578…": the name, the length, and hexadecimal lines.
		lines := bytes.Fields(body)
		if len(lines) < 3 {
			return
		}
		raw, err := hex.DecodeString(string(bytes.Join(lines[2:], nil)))
		if err != nil {
			return
		}
		if packet, isXMP := bytes.CutPrefix(raw, []byte(xmpName)); isXMP || kind == "xmp" {
			o.xmp(packet)
		} else {
			o.exif(raw)
		}
		return
	}
}

// xmpName begins a JPEG's segment with an XMP packet.
const xmpName = "http://ns.adobe.com/xap/1.0/\x00"

func unpackText(b []byte) []byte {
	z, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	text := make([]byte, maxText)
	n, _ := io.ReadFull(z, text)
	return text[:n]
}
