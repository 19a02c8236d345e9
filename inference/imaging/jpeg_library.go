//go:build cgo && linux

package imaging

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>

// The functions of TurboJPEG's API that are used (turbojpeg.h, since 1.2). The
// library is looked for when the program runs, so that none is needed to build it.
typedef void *(*init_t)(void);
typedef int (*decompress_t)(void *, const unsigned char *, unsigned long, unsigned char *, int, int, int, int, int);
typedef int (*destroy_t)(void *);

static init_t turbo_init;
static decompress_t turbo_decompress;
static destroy_t turbo_destroy;

static int turbo_load(const char *name) {
	void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	if (!library) return 0;
	turbo_init = (init_t)dlsym(library, "tjInitDecompress");
	turbo_decompress = (decompress_t)dlsym(library, "tjDecompress2");
	turbo_destroy = (destroy_t)dlsym(library, "tjDestroy");
	return turbo_init && turbo_decompress && turbo_destroy;
}

static void *turbo_new(void) { return turbo_init(); }
static void turbo_free(void *handle) { turbo_destroy(handle); }

// turbo_rgb decodes to RGB with the slow integer transform and fancy upsampling,
// which are the defaults. What is not 0 is an error or a warning.
static int turbo_rgb(void *handle, const unsigned char *file, unsigned long size, unsigned char *pixels, int width, int height) {
	return turbo_decompress(handle, file, size, pixels, width, 3 * width, height, 0, 0);
}
*/
import "C"

import (
	"bytes"
	"runtime"
	"sync"
	"unsafe"
)

// turboHandles keeps decompressors, which are not to be shared between
// goroutines but are costly to make.
var turboHandles = sync.Pool{New: func() any {
	t := &turbo{C.turbo_new()}
	if t.handle != nil { // the pool forgets its entries at any time
		runtime.AddCleanup(t, func(h unsafe.Pointer) { C.turbo_free(h) }, t.handle)
	}
	return t
}}

type turbo struct{ handle unsafe.Pointer }

// decode fills img, which has the size that the header says.
func (t *turbo) decode(b []byte, img *Image) bool {
	ok := C.turbo_rgb(t.handle, (*C.uchar)(unsafe.Pointer(&b[0])), C.ulong(len(b)), (*C.uchar)(unsafe.Pointer(&img.Pix[0])), C.int(img.Width), C.int(img.Height)) == 0
	runtime.KeepAlive(t)
	return ok
}

// haveTurbo loads libjpeg-turbo, and takes it only if it gives our own decoder's
// pixels for two test pictures.
var haveTurbo = sync.OnceValue(func() bool {
	name := C.CString("libturbojpeg.so.0")
	defer C.free(unsafe.Pointer(name))
	if C.turbo_load(name) == 0 {
		return false
	}
	m := New(53, 38)
	for i := range m.Pix {
		m.Pix[i] = uint8(i*i/97 + i%3*40)
	}
	for _, quality := range []int{60, 97} {
		b, err := m.JPEG(quality)
		if err != nil {
			return false
		}
		own, its := New(m.Width, m.Height), New(m.Width, m.Height)
		if err := decodeJPEGInto(b, jpegWant{w: m.Width, h: m.Height}, canvas{own}); err != nil {
			return false
		}
		t := turboHandles.Get().(*turbo)
		if t.handle == nil || !t.decode(b, its) || !bytes.Equal(own.Pix, its.Pix) {
			return false
		}
		turboHandles.Put(t)
	}
	return true
})

// largestForTurbo bounds the pictures that the library decodes, in pixels: it
// makes them whole.
const largestForTurbo = 16 << 20

// turboMemory is what the library takes for a picture, in bytes, beside our own
// decoder's memory.
func turboMemory(w, h int) int64 {
	if px := int64(w) * int64(h); px <= largestForTurbo && haveTurbo() {
		return 3*px + 1<<20
	}
	return 0
}

// turboDecode decodes with libjpeg-turbo, where it is installed and the file is
// of a plain kind, and says whether it did. What the library complains about is
// left to our own decoder, which knows what may be missing.
func turboDecode(b []byte, w, h int, s sink) bool {
	if int64(w)*int64(h) > largestForTurbo || !plainJPEG(b) || !haveTurbo() {
		return false
	}
	t := turboHandles.Get().(*turbo)
	defer turboHandles.Put(t)
	if t.handle == nil {
		return false
	}
	c, whole := s.(canvas)
	img := c.img
	if !whole {
		buf := turboPixels.Get().(*[]uint8)
		defer turboPixels.Put(buf)
		if cap(*buf) < 3*w*h {
			*buf = make([]uint8, 3*w*h)
		}
		img = &Image{w, h, (*buf)[:3*w*h]}
	}
	if !t.decode(b, img) {
		return false
	}
	if !whole {
		for y := range h {
			copy(s.row(y), img.row(y))
			s.done(y)
		}
	}
	return true
}

// turboPixels is a pool of pictures on their way.
var turboPixels = sync.Pool{New: func() any { return new([]uint8) }}

// plainJPEG says whether a file is sequential, with grey or YCbCr in one scan,
// and its chroma is not halved or halved: what libraries of all ages decode
// alike.
func plainJPEG(b []byte) bool {
	for walk := (jpegSegments{b, 0}); ; {
		marker, seg, err := walk.next()
		switch {
		case err != nil, marker == markEOI, marker == markSOS, marker == markAPP14:
			return false
		case !isFrame(marker):
			continue
		}
		f, err := readFrame(marker, seg)
		if err != nil || marker == markSOF2 {
			return false
		}
		c := f.components
		if len(c) == 3 {
			if c[0].id != 1 || c[1].id != 2 || c[2].id != 3 || c[0].h > 2 || c[0].v > 2 || c[1].h != 1 || c[1].v != 1 || c[2].h != 1 || c[2].v != 1 || c[0].h == 1 && c[0].v == 2 {
				return false
			}
		} else if len(c) != 1 {
			return false
		}
		for {
			marker, seg, err = walk.next()
			if err != nil || marker == markEOI || marker == markAPP14 || isFrame(marker) {
				return false
			}
			if marker == markSOS {
				return len(seg) > 0 && int(seg[0]) == len(c)
			}
		}
	}
}
