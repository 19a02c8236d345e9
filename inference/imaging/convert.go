package imaging

import (
	"image"
	"image/color"
)

// convert makes 8-bit RGB of an image of the standard library. Alpha is dropped
// and not blended, as Pillow's convert("RGB") does: what lies under it are the
// pixels.
func convert(m image.Image) *Image {
	r := m.Bounds()
	w, h := r.Dx(), r.Dy()
	out := New(w, h)
	switch m := m.(type) {
	case *image.Gray:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:w]
			for _, v := range src {
				dst[0], dst[1], dst[2] = v, v, v
				dst = dst[3:]
			}
		}
	case *image.NRGBA:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:4*w]
			for ; len(src) >= 4; src, dst = src[4:], dst[3:] {
				dst[0], dst[1], dst[2] = src[0], src[1], src[2]
			}
		}
	case *image.RGBA:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:4*w]
			for ; len(src) >= 4; src, dst = src[4:], dst[3:] {
				if a := uint32(src[3]); a == 0xff {
					dst[0], dst[1], dst[2] = src[0], src[1], src[2]
				} else if a > 0 { // the colour was multiplied by alpha
					for i := range 3 {
						dst[i] = uint8(min((uint32(src[i])*255+a/2)/a, 255))
					}
				}
			}
		}
	default:
		d := newDepth(0xffff)
		for y := range h {
			dst := out.row(y)
			for x := range w {
				c := color.NRGBA64Model.Convert(m.At(r.Min.X+x, r.Min.Y+y)).(color.NRGBA64)
				dst[3*x], dst[3*x+1], dst[3*x+2] = d.to8(uint32(c.R)), d.to8(uint32(c.G)), d.to8(uint32(c.B))
			}
		}
	}
	return out
}

func (m *Image) row(y int) []uint8 { return m.Pix[3*y*m.Width : 3*(y+1)*m.Width] }

// widen doubles a row: each output is ¾ the nearer and ¼ the further sample.
func widen(dst, src []uint8) {
	n := len(src)
	if n <= 2 { // libjpeg repeats samples of such narrow images
		for i, v := range src {
			dst[2*i], dst[2*i+1] = v, v
		}
		return
	}
	dst[0], dst[1] = src[0], uint8((3*uint32(src[0])+uint32(src[1])+2)>>2)
	for i := 1; i < n-1; i++ {
		v := 3 * uint32(src[i])
		dst[2*i], dst[2*i+1] = uint8((v+uint32(src[i-1])+1)>>2), uint8((v+uint32(src[i+1])+2)>>2)
	}
	dst[2*n-2], dst[2*n-1] = uint8((3*uint32(src[n-1])+uint32(src[n-2])+1)>>2), src[n-1]
}

// heighten makes a row between two: ¾ the nearer and ¼ the further.
func heighten(dst, near, far []uint8, upper bool) {
	bias := uint32(2)
	if upper {
		bias = 1
	}
	far = far[:len(near)]
	for i, v := range near {
		dst[i] = uint8((3*uint32(v) + uint32(far[i]) + bias) >> 2)
	}
}

// widenBoth does both at once, rounding only in the end.
func widenBoth(dst, near, far []uint8) {
	n := len(near)
	far = far[:n]
	if n <= 2 {
		for i, v := range near {
			dst[2*i], dst[2*i+1] = v, v
		}
		return
	}
	dst = dst[:2*n]
	this := 3*uint32(near[0]) + uint32(far[0])
	next := 3*uint32(near[1]) + uint32(far[1])
	dst[0], dst[1] = uint8((4*this+8)>>4), uint8((3*this+next+7)>>4)
	last := this
	this = next
	for i := 1; i < n-1; i++ {
		next = 3*uint32(near[i+1]) + uint32(far[i+1])
		dst[2*i], dst[2*i+1] = uint8((3*this+last+8)>>4), uint8((3*this+next+7)>>4)
		last, this = this, next
	}
	dst[2*n-2], dst[2*n-1] = uint8((3*this+last+8)>>4), uint8((4*this+7)>>4)
}

// yccTables hold the products of jdcolor.c: FIX(x) = x·2¹⁶ rounded.
var crR, cbB, crG, cbG = yccTables()

func yccTables() (crR, cbB, crG, cbG [256]int32) {
	for i := range 256 {
		x := int32(i) - 128
		crR[i] = (91881*x + 1<<15) >> 16
		cbB[i] = (116130*x + 1<<15) >> 16
		crG[i] = -46802 * x
		cbG[i] = -22554*x + 1<<15
	}
	return
}

func yccRow(dst, luma, cb, cr []uint8) {
	cb, cr = cb[:len(luma)], cr[:len(luma)]
	dst = dst[:3*len(luma)]
	for i, v := range luma {
		y, b, r := int32(v), cb[i], cr[i]
		d := dst[3*i : 3*i+3 : 3*i+3]
		d[0] = byteOf(y + crR[r])
		d[1] = byteOf(y + (cbG[b]+crG[r])>>16)
		d[2] = byteOf(y + cbB[b])
	}
}

func byteOf(v int32) uint8 {
	if uint32(v) > 255 {
		if v < 0 {
			return 0
		}
		return 255
	}
	return uint8(v)
}

// convertWebP converts lossy WebP with libwebp's arithmetic: video-range
// BT.601, which image.YCbCr's own conversion does not know, and its 9-3-3-1
// chroma filter (src/dsp/yuv.h, upsampling.c).
func convertWebP(m image.Image, s sink) {
	var y *image.YCbCr
	switch m := m.(type) {
	case *image.YCbCr:
		y = m
	case *image.NYCbCrA:
		y = &m.YCbCr
	default:
		img := convert(m)
		for j := range img.Height {
			copy(s.row(j), img.row(j))
			s.done(j)
		}
		return
	}
	w, h := y.Rect.Dx(), y.Rect.Dy()
	cw, ch := (w+1)/2, (h+1)/2
	upB, upR := make([]uint8, 2*cw), make([]uint8, 2*cw)
	row := func(p []uint8, i int) []uint8 { return p[min(max(i, 0), ch-1)*y.CStride:][:cw] }
	for j := range h {
		near, far := j/2, j/2-1
		if j&1 == 1 {
			far = near + 1
		}
		widenWebP(upB, row(y.Cb, near), row(y.Cb, far))
		widenWebP(upR, row(y.Cr, near), row(y.Cr, far))
		luma, dst := y.Y[j*y.YStride:][:w], s.row(j)
		for i, v := range luma {
			l, u, v := int32(v)*19077>>8, int32(upB[i]), int32(upR[i])
			d := dst[3*i : 3*i+3 : 3*i+3]
			d[0] = byteOf((l + v*26149>>8 - 14234) >> 6)
			d[1] = byteOf((l - u*6419>>8 - v*13320>>8 + 8708) >> 6)
			d[2] = byteOf((l + u*33050>>8 - 17685) >> 6)
		}
		s.done(j)
	}
}

// widenWebP makes one row of full width from the two chroma rows around it.
func widenWebP(dst, near, far []uint8) {
	n := len(near)
	far = far[:n]
	dst = dst[:2*n]
	dst[0] = uint8((3*uint32(near[0]) + uint32(far[0]) + 2) >> 2)
	for i := 1; i < n; i++ {
		a, b := uint32(near[i-1]), uint32(near[i])
		c, d := uint32(far[i-1]), uint32(far[i])
		sum := a + b + c + d + 8
		dst[2*i-1] = uint8(((sum+2*(b+c))>>3 + a) >> 1)
		dst[2*i] = uint8(((sum+2*(a+d))>>3 + b) >> 1)
	}
	dst[2*n-1] = uint8((3*uint32(near[n-1]) + uint32(far[n-1]) + 2) >> 2)
}
