package imaging

import (
	"bytes"
	"encoding/binary"
	"math"
)

// Tags of a TIFF directory (TIFF 6.0 and its supplements; EXIF 2.3).
const (
	tagNewSubfileType   = 254
	tagSubfileType      = 255
	tagWidth            = 256
	tagHeight           = 257
	tagBits             = 258
	tagCompression      = 259
	tagPhotometric      = 262
	tagFillOrder        = 266
	tagDescription      = 270
	tagStripOffsets     = 273
	tagOrientation      = 274
	tagSamples          = 277
	tagRowsPerStrip     = 278
	tagStripBytes       = 279
	tagMaxSample        = 281
	tagPlanar           = 284
	tagT4Options        = 292
	tagT6Options        = 293
	tagPredictor        = 317
	tagColorMap         = 320
	tagTileWidth        = 322
	tagTileHeight       = 323
	tagTileOffsets      = 324
	tagTileBytes        = 325
	tagSubIFDs          = 330
	tagInkSet           = 332
	tagExtraSamples     = 338
	tagSampleFormat     = 339
	tagSMaxSample       = 341
	tagJPEGTables       = 347
	tagYCbCrSubsampling = 530
	tagReferenceBlack   = 532
	tagXMP              = 700
)

// ifd is a directory of a TIFF file, or of EXIF data, which has the same form.
type ifd struct {
	b       []byte
	order   binary.ByteOrder
	big     bool   // BigTIFF: counts and offsets have 8 bytes
	entries []byte // 12 bytes each, 20 in a BigTIFF
	next    uint64 // where the next directory is; 0: nowhere
}

// readIFD reads the first directory.
func readIFD(b []byte) (ifd, error) {
	d := ifd{b: b, order: binary.LittleEndian}
	if len(b) < 8 {
		return d, reject(CodeTruncated, "the tiff ends within its header")
	}
	if bytes.HasPrefix(b, []byte("MM")) {
		d.order = binary.BigEndian
	}
	if d.order.Uint16(b[2:]) == 43 {
		d.big = true
		if len(b) < 16 {
			return d, reject(CodeTruncated, "the tiff ends within its header")
		}
		if d.order.Uint16(b[4:]) != 8 {
			return d, reject(CodeCorrupt, "the BigTIFF has offsets of %d bytes", d.order.Uint16(b[4:]))
		}
		return d.at(d.order.Uint64(b[8:]))
	}
	return d.at(uint64(d.order.Uint32(b[4:])))
}

// at reads the directory at a place of the same file.
func (d ifd) at(at uint64) (ifd, error) {
	size := uint64(len(d.b))
	if at < 8 {
		return d, reject(CodeCorrupt, "the tiff's directory is at byte %d", at)
	}
	head, entry, tail := uint64(2), uint64(12), uint64(4)
	if d.big {
		head, entry, tail = 8, 20, 8
	}
	if at > size || size-at < head {
		return d, reject(CodeTruncated, "the tiff's directory is at byte %d of %d", at, size)
	}
	var n uint64
	if d.big {
		n = d.order.Uint64(d.b[at:])
	} else {
		n = uint64(d.order.Uint16(d.b[at:]))
	}
	at += head
	if n > 1<<16 || size-at < entry*n {
		return d, reject(CodeTruncated, "the tiff's directory of %d entries is cut off", n)
	}
	d.entries = d.b[at : at+entry*n]
	d.next = 0
	if at += entry * n; size-at >= tail { // EXIF data often end here
		if d.big {
			d.next = d.order.Uint64(d.b[at:])
		} else {
			d.next = uint64(d.order.Uint32(d.b[at:]))
		}
	}
	return d, nil
}

// sizes of the types of a tag's values, in bytes; 0: there is no such type.
var tagSizes = [...]uint64{0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8}

// raw returns the bytes of a tag's values and their type; nil when the tag is
// missing or lies outside the file.
func (d ifd) raw(tag uint16) (values []byte, kind uint16) {
	step := 12
	if d.big {
		step = 20
	}
	for e := d.entries; len(e) >= step; e = e[step:] {
		if d.order.Uint16(e) != tag {
			continue
		}
		kind = d.order.Uint16(e[2:])
		if int(kind) >= len(tagSizes) || tagSizes[kind] == 0 {
			return nil, 0
		}
		n, here := uint64(d.order.Uint32(e[4:])), e[8:12]
		if d.big {
			n, here = d.order.Uint64(e[4:]), e[12:20]
		}
		if n > uint64(len(d.b)) {
			return nil, 0
		}
		n *= tagSizes[kind]
		if n <= uint64(len(here)) {
			return here[:n], kind
		}
		var at uint64
		if d.big {
			at = d.order.Uint64(here)
		} else {
			at = uint64(d.order.Uint32(here))
		}
		if size := uint64(len(d.b)); at > size || n > size-at {
			return nil, 0
		}
		return d.b[at : at+n], kind
	}
	return nil, 0
}

// has says whether there is a tag.
func (d ifd) has(tag uint16) bool {
	v, _ := d.raw(tag)
	return v != nil
}

// all returns the values of a tag of unsigned integers, at most so many of them;
// none when the tag is missing or of another type.
func (d ifd) all(tag uint16, most int) []uint64 {
	b, kind := d.raw(tag)
	switch kind {
	case 1, 3, 4, 13, 16, 18:
	default:
		return nil
	}
	size := int(tagSizes[kind])
	out := make([]uint64, min(len(b)/size, most))
	for i := range out {
		switch v := b[i*size:]; size {
		case 1:
			out[i] = uint64(v[0])
		case 2:
			out[i] = uint64(d.order.Uint16(v))
		case 4:
			out[i] = uint64(d.order.Uint32(v))
		default:
			out[i] = d.order.Uint64(v)
		}
	}
	return out
}

// first is the first value of a tag, cut to 32 bits' range.
func (d ifd) first(tag uint16, missing uint32) uint32 {
	if v := d.all(tag, 1); len(v) > 0 {
		return uint32(min(v[0], math.MaxUint32))
	}
	return missing
}

// maxPages bounds the directories that are read.
const maxPages = 4096

// pages returns the directories of a file in their order, those of sub-pages
// after the chain. A damaged one ends the list, unless it is the first.
func (d ifd) pages() []ifd {
	out := []ifd{d}
	seen := map[uint64]bool{}
	chain := func(from ifd) {
		for next := from.next; next != 0 && !seen[next] && len(out) < maxPages; {
			seen[next] = true
			page, err := d.at(next)
			if err != nil {
				return
			}
			out = append(out, page)
			next = page.next
		}
	}
	chain(d)
	for _, page := range out[:len(out):len(out)] {
		for _, at := range page.all(tagSubIFDs, 64) {
			if seen[at] || len(out) >= maxPages {
				continue
			}
			seen[at] = true
			if sub, err := d.at(at); err == nil {
				out = append(out, sub)
				chain(sub)
			}
		}
	}
	return out
}

// reduced says that the page is a smaller copy of another one, or a mask.
func (d ifd) reduced() bool {
	return d.first(tagNewSubfileType, 0)&5 != 0 || d.first(tagSubfileType, 1) == 2
}

// picture chooses the page that is the picture: the first that is no thumbnail
// and no mask. Many writers do not mark thumbnails: a first page that is a copy
// at half the size or less of a later one (the same form within 2 %) is one.
func (d ifd) picture() ifd {
	pages := d.pages()
	best := -1
	for i, p := range pages {
		if !p.reduced() {
			best = i
			break
		}
	}
	if best < 0 {
		return d
	}
	chosen := pages[best]
	w, h := float64(chosen.first(tagWidth, 0)), float64(chosen.first(tagHeight, 0))
	for _, p := range pages[best+1:] {
		pw, ph := float64(p.first(tagWidth, 0)), float64(p.first(tagHeight, 0))
		if !p.reduced() && w > 0 && h > 0 && pw >= 2*w && ph >= 2*h && math.Abs(pw*h/(ph*w)-1) < 0.02 {
			chosen, w, h = p, pw, ph
		}
	}
	return chosen
}
