//go:build !turbo || !cgo

package imaging

// jpegDecoder names our own decoder by what it computes: libjpeg's slow integer
// transform ("islow").
const jpegDecoder = "islow"

const reducedPixel = 0

// reducedJPEG would decode a smaller image; ours always decodes in full size.
func reducedJPEG([]byte, Header, int) (*Image, error) { return nil, nil }
