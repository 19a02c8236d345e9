package imaging

import (
	"image"
	"image/color"
)

// convert makes 8-bit RGB of what a decoder returned. Alpha is dropped and not
// blended, as Pillow's convert("RGB") does: what lies under it are the pixels.
func convert(m image.Image) *Image {
	r := m.Bounds()
	w, h := r.Dx(), r.Dy()
	out := New(w, h)
	switch m := m.(type) {
	case *image.YCbCr:
		convertYCbCr(out, m)
	case *image.Gray:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:w]
			for _, v := range src {
				dst[0], dst[1], dst[2] = v, v, v
				dst = dst[3:]
			}
		}
	case *image.Gray16:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:2*w]
			for ; len(src) >= 2; src, dst = src[2:], dst[3:] {
				v := scale16(src)
				dst[0], dst[1], dst[2] = v, v, v
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
	case *image.NRGBA64:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:8*w]
			for ; len(src) >= 8; src, dst = src[8:], dst[3:] {
				dst[0], dst[1], dst[2] = scale16(src), scale16(src[2:]), scale16(src[4:])
			}
		}
	case *image.RGBA64:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:8*w]
			for ; len(src) >= 8; src, dst = src[8:], dst[3:] {
				a := uint64(src[6])<<8 | uint64(src[7])
				if a == 0xffff {
					dst[0], dst[1], dst[2] = scale16(src), scale16(src[2:]), scale16(src[4:])
				} else if a > 0 {
					for i := range 3 {
						v := uint64(src[2*i])<<8 | uint64(src[2*i+1])
						dst[i] = uint8(min((v*255+a/2)/a, 255))
					}
				}
			}
		}
	case *image.Paletted:
		var rgb [256][3]uint8
		for i, c := range m.Palette {
			if i == len(rgb) {
				break
			}
			if n, ok := c.(color.NRGBA); ok { // the colour survives full transparency
				rgb[i] = [3]uint8{n.R, n.G, n.B}
				continue
			}
			// TIFF's palettes have 16 bits, made of 8 by v·257 or v·256.
			n := color.NRGBA64Model.Convert(c).(color.NRGBA64)
			rgb[i] = [3]uint8{uint8(n.R >> 8), uint8(n.G >> 8), uint8(n.B >> 8)}
		}
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:w]
			for _, v := range src {
				copy(dst, rgb[v][:])
				dst = dst[3:]
			}
		}
	case *image.CMYK:
		for y := range h {
			dst, src := out.row(y), m.Pix[m.PixOffset(r.Min.X, r.Min.Y+y):][:4*w]
			for ; len(src) >= 4; src, dst = src[4:], dst[3:] {
				dst[0], dst[1], dst[2] = color.CMYKToRGB(src[0], src[1], src[2], src[3])
			}
		}
	default:
		for y := range h {
			dst := out.row(y)
			for x := range w {
				c := color.NRGBA64Model.Convert(m.At(r.Min.X+x, r.Min.Y+y)).(color.NRGBA64)
				dst[3*x], dst[3*x+1], dst[3*x+2] = to8(c.R), to8(c.G), to8(c.B)
			}
		}
	}
	return out
}

func (m *Image) row(y int) []uint8 { return m.Pix[3*y*m.Width : 3*(y+1)*m.Width] }

// to8 scales 0..65535 to 0..255, rounding to the nearest.
func to8(v uint16) uint8 { return uint8((uint32(v)*255 + 32767) / 65535) }

// scale16 does so for a big-endian sample.
func scale16(b []byte) uint8 { return to8(uint16(b[0])<<8 | uint16(b[1])) }

// convertYCbCr converts a JPEG's planes. Halved chroma is enlarged with
// libjpeg's triangle filter ("fancy upsampling", jdsample.c) and the colours
// use its 16-bit constants (jdcolor.c), so that only the inverse DCT is left to
// differ between decoders.
func convertYCbCr(out *Image, m *image.YCbCr) {
	w, h := out.Width, out.Height
	x0, y0 := m.Rect.Min.X, m.Rect.Min.Y
	cw, ch := w, h
	switch m.SubsampleRatio {
	case image.YCbCrSubsampleRatio422:
		cw = (w + 1) / 2
	case image.YCbCrSubsampleRatio420:
		cw, ch = (w+1)/2, (h+1)/2
	case image.YCbCrSubsampleRatio440:
		ch = (h + 1) / 2
	case image.YCbCrSubsampleRatio444:
	default: // 4:1:1 and 4:1:0 are rare: nearest samples
		cbRow, crRow := make([]uint8, w), make([]uint8, w)
		for y := range h {
			for x := range w {
				i := m.COffset(x0+x, y0+y)
				cbRow[x], crRow[x] = m.Cb[i], m.Cr[i]
			}
			yccRow(out.row(y), m.Y[m.YOffset(x0, y0+y):][:w], cbRow, crRow)
		}
		return
	}
	if x0&1 != 0 || y0&1 != 0 {
		panic("imaging: YCbCr image does not begin on a chroma sample")
	}
	base := m.COffset(x0, y0)
	cb := func(row int) []uint8 { return m.Cb[base+min(max(row, 0), ch-1)*m.CStride:][:cw] }
	cr := func(row int) []uint8 { return m.Cr[base+min(max(row, 0), ch-1)*m.CStride:][:cw] }
	scratch := make([]uint8, 2*(2*cw))
	upB, upR := scratch[:2*cw], scratch[2*cw:]
	for y := range h {
		luma := m.Y[m.YOffset(x0, y0+y):][:w]
		switch m.SubsampleRatio {
		case image.YCbCrSubsampleRatio444:
			yccRow(out.row(y), luma, cb(y), cr(y))
			continue
		case image.YCbCrSubsampleRatio422:
			widen(upB, cb(y))
			widen(upR, cr(y))
		default:
			near, far, up := y/2, y/2-1, true
			if y&1 == 1 {
				far, up = near+1, false
			}
			if m.SubsampleRatio == image.YCbCrSubsampleRatio420 {
				widenBoth(upB, cb(near), cb(far))
				widenBoth(upR, cr(near), cr(far))
			} else {
				heighten(upB, cb(near), cb(far), up)
				heighten(upR, cr(near), cr(far), up)
			}
		}
		yccRow(out.row(y), luma, upB[:w], upR[:w])
	}
}

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
func convertWebP(m image.Image) *Image {
	var y *image.YCbCr
	switch m := m.(type) {
	case *image.YCbCr:
		y = m
	case *image.NYCbCrA:
		y = &m.YCbCr
	default:
		return convert(m)
	}
	w, h := y.Rect.Dx(), y.Rect.Dy()
	out := New(w, h)
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
		luma, dst := y.Y[j*y.YStride:][:w], out.row(j)
		for i, v := range luma {
			l, u, v := int32(v)*19077>>8, int32(upB[i]), int32(upR[i])
			d := dst[3*i : 3*i+3 : 3*i+3]
			d[0] = byteOf((l + v*26149>>8 - 14234) >> 6)
			d[1] = byteOf((l - u*6419>>8 - v*13320>>8 + 8708) >> 6)
			d[2] = byteOf((l + u*33050>>8 - 17685) >> 6)
		}
	}
	return out
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
