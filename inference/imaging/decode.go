package imaging

import (
	"bytes"
	"image"
	"image/png"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
	"golang.org/x/image/webp"
)

// Decode inspects and decodes an image file. Every error is a *RejectError; a
// decoder that panics on hostile bytes counts as "corrupt".
func Decode(b []byte, l Limits) (*Image, error) {
	h, err := Inspect(b, l)
	if err != nil {
		return nil, err
	}
	return decode(b, h, 0)
}

// DecoderName names the JPEG decoder of this build: "go", or "turbo" with the
// build tag of that name. Their pixels differ by a few levels, so a bank should
// be filled and asked by the same one.
func DecoderName() string { return jpegDecoder }

// decode decodes a file whose header was accepted. side > 0 says that the
// shorter side will be resized to so many pixels: the decoder may then reduce
// the image, but not below twice that.
func decode(b []byte, h Header, side int) (img *Image, err error) {
	defer func() {
		if p := recover(); p != nil {
			img, err = nil, reject(CodeCorrupt, "the %s decoder failed: %v", h.Format, p)
		}
	}()
	if h.Format == JPEG {
		img, err = decodeJPEG(b, h, side)
	} else {
		var m image.Image
		switch h.Format {
		case PNG:
			m, err = png.Decode(bytes.NewReader(b))
		case BMP:
			m, err = bmp.Decode(bytes.NewReader(b))
		case TIFF:
			m, err = tiff.Decode(bytes.NewReader(b))
		case WebP:
			m, err = webp.Decode(bytes.NewReader(b))
		default:
			return nil, reject(CodeUnsupported, "format %q", h.Format)
		}
		if err == nil {
			if h.Format == WebP {
				img = convertWebP(m)
			} else {
				img = convert(m)
			}
		}
	}
	if err != nil {
		if r := Rejection(err); r != nil {
			return nil, r
		}
		return nil, rejectDecoder(h.Format, err)
	}
	img = img.orient(h.Orientation)
	if side == 0 && (img.Width != h.Width || img.Height != h.Height) {
		return nil, reject(CodeCorrupt, "the %s header says %d×%d pixels, %d×%d came out", h.Format, h.Width, h.Height, img.Width, img.Height)
	}
	return img, nil
}
