//go:build !turbo || !cgo

package imaging

import (
	"bytes"
	"image/jpeg"
)

const jpegDecoder = "go"

// decodeJPEG uses the standard library's decoder, which always decodes in full
// size.
func decodeJPEG(b []byte, _ Header, _ int) (*Image, error) {
	m, err := jpeg.Decode(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return convert(m), nil
}
