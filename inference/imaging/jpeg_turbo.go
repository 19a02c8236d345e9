//go:build turbo && cgo

package imaging

/*
#cgo LDFLAGS: -lturbojpeg
#include <turbojpeg.h>
*/
import "C"

import (
	"runtime"
	"strings"
	"sync"
	"unsafe"
)

const jpegDecoder = "turbo"

// reducedPixel is how many bytes a pixel takes at the peak: RGB, and perhaps
// CMYK.
const reducedPixel = 7

// turboHandles keeps decompressors, which are not to be shared between
// goroutines but are costly to make.
var turboHandles = sync.Pool{New: func() any { return newTurbo() }}

type turbo struct{ handle C.tjhandle }

func newTurbo() *turbo {
	t := &turbo{C.tjInitDecompress()}
	if t.handle != nil { // the pool forgets its entries at any time
		runtime.AddCleanup(t, func(h C.tjhandle) { C.tjDestroy(h) }, t.handle)
	}
	return t
}

// reducedJPEG decodes with libjpeg-turbo. With side > 0 the inverse DCT makes
// the image smaller by 2, 4 or 8 while its shorter side stays at least twice
// the side that it will be resized to.
func reducedJPEG(b []byte, h Header, side int) (*Image, error) {
	b = content(b)
	t := turboHandles.Get().(*turbo)
	if t.handle == nil {
		return nil, reject(CodeUnsupported, "libjpeg-turbo gives no decompressor")
	}
	defer turboHandles.Put(t)

	data, size := (*C.uchar)(unsafe.Pointer(&b[0])), C.ulong(len(b))
	var w, ht, subsampling, space C.int
	if C.tjDecompressHeader3(t.handle, data, size, &w, &ht, &subsampling, &space) != 0 {
		return nil, t.reject()
	}
	storedW, storedH := h.Width, h.Height
	if h.Orientation >= 5 {
		storedW, storedH = storedH, storedW
	}
	if int(w) != storedW || int(ht) != storedH {
		return nil, reject(CodeCorrupt, "the jpeg has more than one frame header")
	}

	// Reduced sides are rounded up, at the stored image's right and lower edge:
	// the caller allows for that in upright images of a sensible size.
	shrink := 1
	for side >= 16 && h.Orientation == 1 && shrink < 8 && min(int(w), int(ht))/(2*shrink) >= 2*side {
		shrink *= 2
	}
	up := func(v C.int) int { return (int(v) + shrink - 1) / shrink } // TJSCALED
	img := New(up(w), up(ht))
	dst := img.Pix
	format, bytes := C.int(C.TJPF_RGB), 3
	if space == C.TJCS_CMYK || space == C.TJCS_YCCK {
		format, bytes = C.TJPF_CMYK, 4
		dst = make([]uint8, 4*img.Width*img.Height)
	}
	if C.tjDecompress2(t.handle, data, size, (*C.uchar)(unsafe.Pointer(&dst[0])),
		C.int(img.Width), C.int(img.Width*bytes), C.int(img.Height), format, 0) != 0 {
		if err := t.reject(); err != nil {
			return nil, err
		}
	}
	if bytes == 4 {
		// Adobe's CMYK is inverted: 255 is no ink.
		for i, j := 0, 0; j < len(dst); i, j = i+3, j+4 {
			k := uint32(dst[j+3])
			for c := range 3 {
				img.Pix[i+c] = uint8((uint32(dst[j+c])*k + 127) / 255)
			}
		}
	}
	return img, nil
}

// reject turns the library's message into a rejection. Garbage before a marker,
// which the standard library skips too, is none.
func (t *turbo) reject() error {
	message := C.GoString(C.tjGetErrorStr2(t.handle))
	switch {
	case strings.Contains(message, "extraneous bytes"):
		return nil
	case strings.Contains(message, "Premature end"):
		return reject(CodeTruncated, "jpeg data ends before the image does")
	case strings.Contains(message, "nsupported"), strings.Contains(message, "not implemented"):
		return reject(CodeUnsupported, "jpeg feature is not read: %s", message)
	}
	return reject(CodeCorrupt, "jpeg cannot be decoded: %s", message)
}
