package imaging

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/nearmiss/nearmiss/inference/imaging/internal/resample"
)

// Interpolation names a resampling filter.
type Interpolation string

const (
	Bilinear Interpolation = "bilinear" // triangle, support 1
	Bicubic  Interpolation = "bicubic"  // Keys' cubic with a = −0.5, support 2
)

// Valid reports whether the filter is known.
func (ip Interpolation) Valid() bool { return ip == Bilinear || ip == Bicubic }

func (ip Interpolation) support() float64 {
	if ip == Bicubic {
		return 2
	}
	return 1
}

// weight is the filter's value at x. The conversions forbid fused multiply-add,
// which would give other last bits on other processors.
func (ip Interpolation) weight(x float64) float64 {
	x = math.Abs(x)
	if ip == Bicubic {
		const a = -0.5
		switch {
		case x < 1:
			return float64(float64(float64(float64((a+2)*x)-(a+3))*x)*x) + 1
		case x < 2:
			return float64((float64((float64((x-5)*x)+8)*x) - 4) * a)
		}
		return 0
	}
	if x < 1 {
		return 1 - x
	}
	return 0
}

// coefBits is the number of fractional bits of a coefficient: 32 bits less 8
// for the sample and 2 for the overshoot of cubic filters, as in Pillow.
const coefBits = 32 - 8 - 2

// taps holds, for a run of output positions, which input positions contribute
// and how much. Output i reads n[i] inputs from first[i] with the coefficients
// k[i*width:].
type taps struct {
	first, n []int
	k        []int32
	width    int
	paired   paired // the same for resample.Pixels; empty where that is not available
}

// paired is what resample.Pixels takes, for the first outputs of a row.
type paired struct {
	at, k []int32
	pairs int
}

// makeTaps computes the coefficients of outputs lo to hi-1 of a line of in
// samples, the first extent of which are resampled to out.
func makeTaps(in int, extent float64, out, lo, hi int, ip Interpolation) taps {
	scale := extent / float64(out)
	filterScale := max(scale, 1)
	support := ip.support() * filterScale
	width := int(math.Ceil(support))*2 + 1
	inv := 1 / filterScale

	t := taps{
		first: make([]int, hi-lo), n: make([]int, hi-lo),
		k: make([]int32, (hi-lo)*width), width: width,
	}
	w := make([]float64, width)
	for i := range hi - lo {
		center := float64((float64(lo+i) + 0.5) * scale)
		first := max(int(center-support+0.5), 0)
		n := min(int(center+support+0.5), in) - first
		sum := 0.0
		for x := range n {
			w[x] = ip.weight(float64((float64(x+first) - center + 0.5) * inv))
			sum += w[x]
		}
		k := t.k[i*width : (i+1)*width]
		for x := range n {
			if sum != 0 {
				w[x] /= sum
			}
			if w[x] < 0 {
				k[x] = int32(-0.5 + float64(w[x]*(1<<coefBits)))
			} else {
				k[x] = int32(0.5 + float64(w[x]*(1<<coefBits)))
			}
		}
		t.first[i], t.n[i] = first, n
	}
	return t
}

// pair prepares for vector instructions, over rows of in pixels. The last outputs,
// around which they would read or write beyond the row, are left out.
func (t *taps) pair(in int) {
	if !resample.Available {
		return
	}
	pairs := (slices.Max(t.n) + 1) / 2
	n := 0
	for n < len(t.first)-1 && 3*(t.first[n]+2*pairs)+2 <= 3*in {
		n++
	}
	p := paired{make([]int32, n), make([]int32, 8*pairs*n), pairs}
	for i := range n {
		p.at[i] = int32(3 * t.first[i])
		for j, c := range t.k[i*t.width : i*t.width+t.n[i]] {
			k := p.k[8*(i*pairs+j/2)+3*(j%2):][:3]
			k[0], k[1], k[2] = c, c, c
		}
	}
	t.paired = p
}

// clip8 drops the fractional bits and keeps the value within a byte.
func clip8(v int32) uint8 {
	return byteOf(v >> coefBits)
}

// window is the part of a resized image that is wanted.
type window struct{ x, y, w, h int }

// between is a pool of the 8-bit rows between the two passes.
var between = sync.Pool{New: func() any { return new([]uint8) }}

// resampleWindow resizes src to outW × outH and writes the window of the result
// into dst (3 × win.w × win.h bytes). Each output pixel depends only on its own
// coefficients, so leaving out the others changes nothing.
func resampleWindow(dst []uint8, src *Image, outW, outH int, win window, ip Interpolation) {
	resampleExtent(dst, src, float64(src.Width), float64(src.Height), outW, outH, win, ip)
}

// resampleExtent does so with the upper left extW × extH pixels of src, which
// may be fractions: a frame of 1203 pixels that a decoder reduced by 4 has 301,
// of which 300.75 are the frame.
func resampleExtent(dst []uint8, src *Image, extW, extH float64, outW, outH int, win window, ip Interpolation) {
	p := newPasses(src.Width, src.Height, extW, extH, outW, outH, win, ip)
	for y := p.lo; y < p.hi; y++ {
		p.put(y, src.row(y))
	}
	p.finish(dst)
}

// passes resamples an image whose rows come one at a time, in any order: each
// goes through the horizontal pass at once, and only what that leaves is kept.
type passes struct {
	hor, vert    taps
	sameW, sameH bool // the pass would be the identity
	win          window
	lo, hi       int // the rows that count
	stride       int // bytes of a row between the passes
	buf          *[]uint8
}

// newPasses prepares for an image of w × h pixels, as [resampleExtent] does.
func newPasses(w, h int, extW, extH float64, outW, outH int, win window, ip Interpolation) *passes {
	p := &passes{
		sameW: float64(outW) == extW && outW == w, sameH: float64(outH) == extH && outH == h,
		win: win, lo: win.y, hi: win.y + win.h, stride: 3 * win.w,
	}
	if !p.sameW {
		p.hor = makeTaps(w, extW, outW, win.x, win.x+win.w, ip)
		p.hor.pair(w)
	}
	if !p.sameH {
		p.vert = makeTaps(h, extH, outH, win.y, win.y+win.h, ip)
		p.lo, p.hi = p.vert.first[0], 0
		for i, first := range p.vert.first {
			p.lo, p.hi = min(p.lo, first), max(p.hi, first+p.vert.n[i])
		}
	}
	p.buf = between.Get().(*[]uint8)
	if need := (p.hi - p.lo) * p.stride; cap(*p.buf) < need {
		*p.buf = make([]uint8, need)
	}
	return p
}

// put takes row y.
func (p *passes) put(y int, src []uint8) {
	if y < p.lo || y >= p.hi {
		return
	}
	mid := (*p.buf)[(y-p.lo)*p.stride : (y-p.lo+1)*p.stride]
	if p.sameW {
		copy(mid, src[3*p.win.x:])
		return
	}
	horizontalRow(mid, src, p.hor)
}

// finish writes the result, when every row has come.
func (p *passes) finish(dst []uint8) {
	mid := (*p.buf)[:(p.hi-p.lo)*p.stride]
	if p.sameH {
		copy(dst, mid)
	} else {
		verticalPass(dst, mid, p.stride, p.lo, p.vert)
	}
	p.release()
}

// release gives the memory back; it must not be used after that.
func (p *passes) release() {
	if p.buf != nil {
		between.Put(p.buf)
		p.buf = nil
	}
}

// horizontalRow resamples one row of RGB pixels.
func horizontalRow(dst, src []uint8, t taps) {
	p := t.paired
	resample.Pixels(dst, src, p.at, p.k, p.pairs)
	horizontalPlain(dst, src, t, len(p.at))
}

// horizontalPlain does so from an output pixel on.
func horizontalPlain(dst, src []uint8, t taps, from int) {
	for i := from; i < len(t.first); i++ {
		first := t.first[i]
		k := t.k[i*t.width : i*t.width+t.n[i]]
		px := src[3*first : 3*(first+len(k))]
		var r, g, b int32 = 1 << (coefBits - 1), 1 << (coefBits - 1), 1 << (coefBits - 1)
		for _, c := range k {
			if len(px) < 3 { // never: tells the compiler the loads are in range
				break
			}
			r += int32(px[0]) * c
			g += int32(px[1]) * c
			b += int32(px[2]) * c
			px = px[3:]
		}
		d := dst[3*i : 3*i+3 : 3*i+3]
		d[0], d[1], d[2] = clip8(r), clip8(g), clip8(b)
	}
}

// sums is a pool of the vertical pass's row of accumulators.
var sums = sync.Pool{New: func() any { return new([]int32) }}

// verticalPass resamples columns. src holds rows of stride bytes, the first of
// which is row rowLo of the image; each output row is as long.
func verticalPass(dst, src []uint8, stride, rowLo int, t taps) {
	buf := sums.Get().(*[]int32)
	defer sums.Put(buf)
	if cap(*buf) < stride {
		*buf = make([]int32, stride)
	}
	for i, first := range t.first {
		k := t.k[i*t.width : i*t.width+t.n[i]]
		out, in := dst[i*stride:(i+1)*stride], src[(first-rowLo)*stride:]
		verticalPlain(out, in, stride, k, (*buf)[:stride], resample.Bytes(out, in, stride, k))
	}
}

// verticalPlain makes one row from a byte on. Whole rows are accumulated, four
// inputs at a time, which keeps the reads in order.
func verticalPlain(out, src []uint8, stride int, k, acc []int32, from int) {
	out, acc = out[from:], acc[from:]
	if len(out) == 0 {
		return
	}
	for x := range acc {
		acc[x] = 1 << (coefBits - 1)
	}
	row := func(j int) []uint8 { return src[j*stride+from : (j+1)*stride][:len(acc)] }
	j := 0
	for ; j+4 <= len(k); j += 4 {
		r0, r1, r2, r3 := row(j), row(j+1), row(j+2), row(j+3)
		k0, k1, k2, k3 := k[j], k[j+1], k[j+2], k[j+3]
		for x := range acc {
			acc[x] += int32(r0[x])*k0 + int32(r1[x])*k1 + int32(r2[x])*k2 + int32(r3[x])*k3
		}
	}
	for ; j < len(k); j++ {
		r0, k0 := row(j), k[j]
		for x := range acc {
			acc[x] += int32(r0[x]) * k0
		}
	}
	for x, v := range acc {
		out[x] = clip8(v)
	}
}

// Resize returns img resampled to w × h pixels, bit for bit as Pillow's
// Image.resize does. img must be valid and w and h positive; it panics
// otherwise, because such a call is a mistake of the program.
func Resize(img *Image, w, h int, ip Interpolation) *Image {
	if !img.Valid() || w <= 0 || h <= 0 || !ip.Valid() {
		panic(fmt.Sprintf("imaging: resize of an invalid image or to %d×%d with %q", w, h, ip))
	}
	out := New(w, h)
	resampleWindow(out.Pix, img, w, h, window{0, 0, w, h}, ip)
	return out
}

// ResizeShorter resizes so that the shorter side becomes size, keeping the
// aspect: the longer side is rounded to the nearest pixel.
func ResizeShorter(img *Image, size int, ip Interpolation) *Image {
	w, h := shorterTo(img.Width, img.Height, size, false)
	return Resize(img, w, h, ip)
}

// shorterTo gives the size after a resize of the shorter side to size. The
// longer side is rounded, or truncated as torchvision does
// (new_long = int(size * long / short)).
func shorterTo(w, h, size int, torchvision bool) (int, int) {
	if h < w {
		h, w = shorterTo(h, w, size, torchvision)
		return w, h
	}
	long := float64(size*h) / float64(w)
	if !torchvision {
		long = math.RoundToEven(long)
	}
	return size, int(long)
}

// centerOffset is where a crop in the middle begins: half a pixel goes to the
// upper left, or to the even side as in torchvision's
// int(round((size - crop) / 2.0)).
func centerOffset(size, crop int, torchvision bool) int {
	half := float64(size-crop) / 2
	if torchvision {
		return int(math.RoundToEven(half))
	}
	return int(math.Floor(half))
}
