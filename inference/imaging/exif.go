package imaging

import (
	"bytes"
	"encoding/binary"
)

// ifd is the first directory of a TIFF file, or of EXIF data, which has the
// same form.
type ifd struct {
	b       []byte
	order   binary.ByteOrder
	entries []byte // 12 bytes each
}

func readIFD(b []byte) (ifd, error) {
	d := ifd{b: b, order: binary.LittleEndian}
	if len(b) < 8 {
		return d, reject(CodeTruncated, "the tiff ends within its header")
	}
	if bytes.HasPrefix(b, []byte("MM")) {
		d.order = binary.BigEndian
	}
	at := int64(d.order.Uint32(b[4:]))
	if at < 8 {
		return d, reject(CodeCorrupt, "the tiff's directory is at byte %d", at)
	}
	if at+2 > int64(len(b)) {
		return d, reject(CodeTruncated, "the tiff's directory is at byte %d of %d", at, len(b))
	}
	n := int64(d.order.Uint16(b[at:]))
	if at+2+12*n > int64(len(b)) {
		return d, reject(CodeTruncated, "the tiff's directory of %d entries is cut off", n)
	}
	d.entries = b[at+2 : at+2+12*n]
	return d, nil
}

// all returns the values of a tag of type BYTE, SHORT or LONG, at most 16 of
// them; none when the tag is missing or of another type.
func (d ifd) all(tag uint16) []uint32 {
	for e := d.entries; len(e) >= 12; e = e[12:] {
		if d.order.Uint16(e) != tag {
			continue
		}
		var size int64
		switch d.order.Uint16(e[2:]) {
		case 1:
			size = 1
		case 3:
			size = 2
		case 4:
			size = 4
		default:
			return nil
		}
		n := min(int64(d.order.Uint32(e[4:])), 1<<20)
		values := e[8:12]
		if n*size > 4 {
			n = min(n, 16)
			at := int64(d.order.Uint32(e[8:]))
			if at+n*size > int64(len(d.b)) {
				return nil
			}
			values = d.b[at : at+n*size]
		}
		out := make([]uint32, n)
		for i := range out {
			switch size {
			case 1:
				out[i] = uint32(values[i])
			case 2:
				out[i] = uint32(d.order.Uint16(values[2*i:]))
			case 4:
				out[i] = d.order.Uint32(values[4*i:])
			}
		}
		return out
	}
	return nil
}

func (d ifd) first(tag uint16, missing uint32) uint32 {
	if v := d.all(tag); len(v) > 0 {
		return v[0]
	}
	return missing
}

// exifOrientation reads tag 274 of EXIF data, which begins with a TIFF header.
// Damaged EXIF data means upright: it is no reason to refuse the pixels.
func exifOrientation(b []byte) int {
	if !bytes.HasPrefix(b, []byte("II*\x00")) && !bytes.HasPrefix(b, []byte("MM\x00*")) {
		return 1
	}
	d, err := readIFD(b)
	if err != nil {
		return 1
	}
	return validOrientation(int(d.first(274, 1)))
}

func validOrientation(o int) int {
	if o < 1 || o > 8 {
		return 1
	}
	return o
}
