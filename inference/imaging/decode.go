package imaging

import (
	"bytes"

	"golang.org/x/image/webp"
)

// Decode inspects and decodes an image file, to show it. Every error is a
// *RejectError; a decoder that panics on hostile bytes counts as "corrupt".
//
// Where neither the file nor anybody says how many of the 16 bits of a sample
// are used, Decode guesses by this one picture; frames that are judged are
// decoded by [View.Decode] and [Preprocess.Apply], which do not.
func Decode(b []byte, l Limits) (*Image, error) { return decodeWhole(b, l, 0, true) }

// DecoderName names what a JPEG decoder computes: "islow", libjpeg's slow integer
// transform, whether our own decoder does it or libjpeg-turbo, which is used
// where it is installed and faster. In older releases "go" stands for the
// standard library's decoder and "turbo" for one that made images smaller while
// it decoded them: their pixels differ by a few levels, and a bank should be
// filled and asked by the same one.
func DecoderName() string { return "islow" }

// decodeWhole decodes in full size. bits are those of samples that are used, 0
// if nobody says; guess allows to guess them.
func decodeWhole(b []byte, l Limits, bits int, guess bool) (*Image, error) {
	h, err := Inspect(b, l)
	if err != nil {
		return nil, err
	}
	img := New(h.Width, h.Height)
	if h.Orientation >= 5 {
		img.Width, img.Height = h.Height, h.Width
	}
	if err := decodeRows(b, h, bits, guess, canvas{img}); err != nil {
		return nil, err
	}
	return img.orient(h.Orientation), nil
}

// decodeRows decodes a file whose header was accepted into the sink, as it is
// stored.
func decodeRows(b []byte, h Header, bits int, guess bool, s sink) error {
	return decodeDeep(h, bits, guess, func(d *depth) error { return decodeAt(b, h, d, s) })
}

// decodeAt decodes once, with the depth that is given.
func decodeAt(b []byte, h Header, d *depth, s sink) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = reject(CodeCorrupt, "the %s decoder failed: %v", h.Format, p)
		}
		if err != nil && Rejection(err) == nil {
			err = rejectDecoder(h.Format, err)
		}
	}()
	b = content(b)
	w, height := h.Width, h.Height
	if h.Orientation >= 5 {
		w, height = height, w
	}
	switch h.Format {
	case JPEG:
		if turboDecode(b, w, height, s) {
			return nil
		}
		return decodeJPEGInto(b, jpegWant{w: w, h: height}, s)
	case PNG:
		return decodePNG(b, d, s)
	case BMP:
		return decodeBMP(b, s)
	case TIFF:
		return decodeTIFF(b, d, s)
	case WebP:
		m, err := webp.Decode(bytes.NewReader(b))
		if err != nil {
			return err
		}
		if r := m.Bounds(); r.Dx() != w || r.Dy() != height {
			return reject(CodeCorrupt, "the webp header says %d×%d pixels, %d×%d came out", w, height, r.Dx(), r.Dy())
		}
		convertWebP(m, s)
		return nil
	}
	return reject(CodeUnsupported, "format %q", h.Format)
}
