package camera

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Beginnings of the image files that a [Splitter] finds.
var (
	jpegStart = []byte{0xff, 0xd8, 0xff}
	pngStart  = []byte("\x89PNG\r\n\x1a\n")
	riffStart = []byte("RIFF") // and WEBP eight bytes later
)

// maxImage bounds one image of a stream, in bytes.
const maxImage = 64 << 20

// maxNoise is how much that begins no image may lie between two images.
const maxNoise = 1 << 20

// Errors of a Splitter.
var (
	ErrNoImages = errors.New("there are no JPEG, PNG or WebP images in it")
	ErrTooLarge = errors.New("an image in it is too large")
)

// Splitter takes a stream apart into JPEG (ITU-T T.81, annex B), PNG (RFC 2083)
// and WebP (RFC 9649) files that follow one another, whatever lies between them:
// so programs write images into a pipe, and network cameras answer with
// multipart/x-mixed-replace. An image that is damaged or cut off comes out as it
// is, up to the next one of its kind, or with that: whoever decodes it says so.
//
// Cameras and telephones append further images to a JPEG, a stereo pair or a
// preview (CIPA DC-007, "MPO"): those are no frames, and are passed over.
type Splitter struct {
	r     *bufio.Reader
	max   int
	found bool
}

// NewSplitter reads r.
func NewSplitter(r io.Reader) *Splitter {
	return &Splitter{r: bufio.NewReaderSize(r, 64<<10), max: maxImage}
}

// Next returns the next image's bytes, or io.EOF after the last one. It fails
// with ErrNoImages where there is none at all, or nothing but noise for a MiB,
// and with ErrTooLarge.
func (s *Splitter) Next() ([]byte, error) {
	if err := s.seek(); err != nil {
		return nil, err
	}
	s.found = true
	img := &growing{r: s.r, max: s.max}
	var err error
	switch {
	case s.at(jpegStart):
		err = img.jpeg()
	case s.at(pngStart):
		err = img.png()
	default:
		err = img.webp()
	}
	if errors.Is(err, errDamaged) {
		err = img.rest(s)
	}
	if err != nil && !errors.Is(err, io.EOF) { // an end within the image is the image's
		return nil, err
	}
	if err == nil && img.mpf > 0 {
		s.passOver(img)
	}
	return img.b, nil
}

// starts says whether an image begins here.
func (s *Splitter) starts() bool {
	if s.at(jpegStart) || s.at(pngStart) {
		return true
	}
	b, _ := s.r.Peek(12)
	return len(b) == 12 && bytes.HasPrefix(b, riffStart) && string(b[8:]) == "WEBP"
}

// maxGap is how far behind one image of a JPEG with several the next may begin.
const maxGap = 32 << 10

// passOver leaves out the images that belong to the one before, where its index
// says they are. An index whose places do not begin with an image counts for
// nothing: the images were cut off before.
func (s *Splitter) passOver(img *growing) {
	at := int64(len(img.b))
	for _, e := range mpfEntries(img.b, img.mpf) {
		gap := e.at - at
		if gap < 0 || gap > maxGap || e.size < 4 || e.size > int64(s.max) {
			return
		}
		b, _ := s.r.Peek(int(gap) + len(jpegStart))
		if len(b) < int(gap)+len(jpegStart) || !bytes.Equal(b[gap:], jpegStart) {
			return
		}
		n, err := s.r.Discard(int(gap + e.size))
		if at += int64(n); err != nil {
			return
		}
	}
}

// mpfEntry is an image that follows in the same file.
type mpfEntry struct{ at, size int64 }

// mpfEntries reads the index in the segment whose TIFF header begins at a place
// of the image (CIPA DC-007, 5.2.3), the entries in the order of their places.
// A damaged one has none.
func mpfEntries(b []byte, at int) []mpfEntry {
	if at+8 > len(b) {
		return nil
	}
	t := b[at:]
	var o binary.ByteOrder = binary.LittleEndian
	if bytes.HasPrefix(t, []byte("MM")) {
		o = binary.BigEndian
	}
	dir := int64(o.Uint32(t[4:]))
	if dir+2 > int64(len(t)) {
		return nil
	}
	n := int64(o.Uint16(t[dir:]))
	if dir+2+12*n > int64(len(t)) {
		return nil
	}
	var out []mpfEntry
	for e := t[dir+2 : dir+2+12*n]; len(e) > 0; e = e[12:] {
		size, from := int64(o.Uint32(e[4:])), int64(o.Uint32(e[8:]))
		if o.Uint16(e) != 0xb002 || from+size > int64(len(t)) {
			continue
		}
		for list := t[from : from+size]; len(list) >= 16; list = list[16:] {
			if place := int64(o.Uint32(list[8:])); place > 0 { // the first image's is 0
				out = append(out, mpfEntry{int64(at) + place, int64(o.Uint32(list[4:]))})
			}
		}
	}
	slices.SortFunc(out, func(a, b mpfEntry) int { return cmp.Compare(a.at, b.at) })
	return out
}

// seek goes to where an image begins.
func (s *Splitter) seek() error {
	for noise := 0; !s.starts(); noise++ {
		if noise > maxNoise {
			return fmt.Errorf("%d bytes without one: %w", noise, ErrNoImages)
		}
		if _, err := s.r.Discard(1); errors.Is(err, io.EOF) && !s.found {
			return ErrNoImages
		} else if err != nil {
			return err
		}
	}
	return nil
}

// at says whether the stream goes on with the bytes.
func (s *Splitter) at(start []byte) bool {
	b, _ := s.r.Peek(len(start))
	return bytes.Equal(b, start)
}

// growing is an image on its way out of a stream.
type growing struct {
	r   *bufio.Reader
	b   []byte
	max int
	mpf int // where the index of further images has its TIFF header; 0: there is none
}

// errDamaged: what follows belongs to no image of this kind.
var errDamaged = errors.New("damaged")

// take moves n bytes into the image and returns them. The image grows by what
// has come, and not by what a damaged length promises.
func (g *growing) take(n int) ([]byte, error) {
	from := len(g.b)
	for left := n; left > 0; {
		if len(g.b) >= g.max {
			return nil, fmt.Errorf("more than %d bytes: %w", g.max, ErrTooLarge)
		}
		part := min(left, 32<<10)
		at := len(g.b)
		g.b = append(g.b, make([]byte, part)...)
		k, err := io.ReadFull(g.r, g.b[at:])
		g.b = g.b[:at+k]
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = io.EOF
			}
			return nil, err
		}
		left -= part
	}
	return g.b[from:], nil
}

// jpeg reads marker segments up to the end of the image.
func (g *growing) jpeg() error {
	if _, err := g.take(2); err != nil { // start of image
		return err
	}
	for {
		next, err := g.r.Peek(2)
		switch {
		case len(next) < 2:
			_, err = g.take(len(next))
			return errors.Join(err, io.EOF)
		case err != nil:
			return err
		case next[0] != 0xff:
			return errDamaged
		case next[1] == 0xff: // fill
			if _, err := g.take(1); err != nil {
				return err
			}
			continue
		case next[1] == 0xd8: // another image: the end of this one is missing
			return nil
		}
		if _, err := g.take(2); err != nil {
			return err
		}
		switch marker := next[1]; {
		case marker == 0xd9: // end of image
			return nil
		case marker == 0x01, marker >= 0xd0 && marker <= 0xd7: // no length follows
			continue
		case marker == 0x00:
			return errDamaged
		default:
			size, err := g.take(2)
			if err != nil {
				return err
			}
			n := int(binary.BigEndian.Uint16(size))
			if n < 2 {
				return errDamaged
			}
			seg, err := g.take(n - 2)
			if err != nil {
				return err
			}
			if marker == 0xe2 && bytes.HasPrefix(seg, []byte("MPF\x00")) {
				g.mpf = len(g.b) - len(seg) + 4
			}
			if marker == 0xda { // start of scan
				if err := g.scan(); err != nil {
					return err
				}
			}
		}
	}
}

// scan reads entropy-coded data up to the next marker.
func (g *growing) scan() error {
	for {
		if next, _ := g.r.Peek(2); len(next) == 2 && next[0] == 0xff &&
			next[1] != 0 && next[1] != 0xff && (next[1] < 0xd0 || next[1] > 0xd7) {
			return nil
		}
		// All that is here, up to the next 0xff.
		n := 1
		if here, _ := g.r.Peek(g.r.Buffered()); len(here) > 1 {
			if n = bytes.IndexByte(here[1:], 0xff) + 1; n == 0 {
				n = len(here)
			}
		}
		if _, err := g.take(n); err != nil {
			return err
		}
	}
}

// png reads chunks up to the one that ends the image.
func (g *growing) png() error {
	if _, err := g.take(len(pngStart)); err != nil {
		return err
	}
	for {
		head, err := g.take(8)
		if err != nil {
			return err
		}
		n, kind := binary.BigEndian.Uint32(head), string(head[4:])
		for i := range len(kind) {
			if c := kind[i] | 0x20; c < 'a' || c > 'z' {
				return errDamaged
			}
		}
		if n > 1<<31-1 {
			return errDamaged
		}
		if _, err := g.take(int(n) + 4); err != nil { // and its check sum
			return err
		}
		if kind == "IEND" {
			return nil
		}
	}
}

// webp reads as much as the container says.
func (g *growing) webp() error {
	head, err := g.take(8)
	if err != nil {
		return err
	}
	n := int64(binary.LittleEndian.Uint32(head[4:]))
	if n+n&1 > int64(g.max) {
		return errDamaged
	}
	_, err = g.take(int(n))
	if err == nil && n%2 == 1 { // padding, which some leave out
		if b, _ := g.r.Peek(1); len(b) == 1 && b[0] == 0 {
			_, err = g.take(1)
		}
	}
	return err
}

// rest reads up to where another image begins.
func (g *growing) rest(s *Splitter) error {
	for !s.starts() {
		if _, err := g.take(1); err != nil {
			return err
		}
	}
	return nil
}
