package imaging

// depth scales samples of more than 8 bits to 8.
//
// Cameras of 10, 12 or 14 bits store their samples in 16, and many files do not
// say so. What white is must not be concluded from one frame alone, or a dim frame
// would come out as bright as a good one. So, in this order:
//
//   - the bits that the view names: an operator's setting, or what all normals
//     of the detector needed;
//   - the bits that the file names (PNG's sBIT, TIFF's MaxSampleValue, ImageJ's
//     range, OME's SignificantBits), if no sample of it is larger;
//   - all bits of the sample. A picture that then reaches less than a sixteenth
//     of the range, so that some sixteen greys would be left, is refused where
//     frames are judged; where one picture is only shown ([Decode]), the
//     least of 8, 10 and 12 bits that hold it is taken.
type depth struct {
	white   uint32 // the sample that becomes 255; larger ones do, too
	largest uint32 // the largest sample so far
	// inverse is 2⁴⁰ / white, rounded up. Where white has up to 16 bits, a
	// product with it and a shift are exact: 255 × 65535 + 32767 < 2²⁴.
	inverse uint64
}

func newDepth(white uint32) *depth {
	return &depth{white: white, inverse: (1<<40 + uint64(white) - 1) / uint64(white)}
}

// usualBits are the depths of cameras.
var usualBits = [...]int{8, 10, 12, 14, 16, 32}

// holding is the least of the usual depths that holds a sample.
func holding(v uint32) int {
	for _, n := range usualBits {
		if uint64(v) < 1<<n {
			return n
		}
	}
	return 32
}

// whiteOf is the largest sample of so many bits.
func whiteOf(bits int) uint32 { return uint32(1<<uint(bits) - 1) }

// to8 scales a sample to 0..255, rounding to the nearest.
func (d *depth) to8(v uint32) uint8 {
	d.largest = max(d.largest, v)
	if v >= d.white {
		return 255
	}
	n := uint64(v)*255 + uint64(d.white)/2
	if d.white <= 0xffff {
		return uint8(n * d.inverse >> 40)
	}
	return uint8(n / uint64(d.white))
}

// decodeDeep runs decode, which may need a second run, until the depth fits.
// bits are the view's, 0 if it names none; guess says that the picture is only
// shown.
func decodeDeep(h Header, bits int, guess bool, decode func(d *depth) error) error {
	all := whiteOf(h.Bits)
	switch {
	case h.Bits < 16 || h.float:
		return decode(newDepth(all))
	case bits > 0:
		return decode(newDepth(whiteOf(min(bits, h.Bits))))
	case h.Significant > 0 && h.Significant < h.Bits:
		d := newDepth(whiteOf(h.Significant))
		if err := decode(d); err != nil || d.largest <= d.white {
			return err
		}
	}
	d := newDepth(all)
	if err := decode(d); err != nil {
		return err
	}
	if d.largest > all>>4 || d.largest == 0 {
		return nil
	}
	if !guess {
		return reject(CodeUnsupported, "the largest of the %d-bit samples is %d, and nothing says what white is: set the detector's bits (its camera seems to have %d)",
			h.Bits, d.largest, holding(d.largest))
	}
	return decode(newDepth(whiteOf(holding(d.largest))))
}

// NeededBits is the least of the usual depths (8, 10, 12, 14, 16, 32 bits) that
// holds every sample of an image of 16 bits and more; 0 for others. What a set of
// images of one camera needs is what that camera has: see [View].
func NeededBits(b []byte, l Limits) (int, error) {
	h, err := Inspect(b, l)
	if err != nil || h.Bits < 16 || h.float {
		return 0, err
	}
	d := newDepth(whiteOf(h.Bits))
	if err := decodeAt(b, h, d, &discarded{make([]uint8, 3*max(h.Width, h.Height))}); err != nil {
		return 0, err
	}
	return holding(d.largest), nil
}

// discarded keeps nothing.
type discarded struct{ buf []uint8 }

func (d *discarded) row(int) []uint8 { return d.buf }
func (d *discarded) done(int)        {}
