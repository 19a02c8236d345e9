package imaging

// inverse is the inverse cosine transform of a block: Loeffler, Ligtenberg and
// Moschytz's algorithm with libjpeg's 13-bit constants and roundings
// (jidctint.c, the "slow integer" method). It dequantises, and writes eight rows
// of samples into dst.
func inverse(b *[64]int16, q *[64]int32, dst []uint8, stride int) {
	const (
		c0298 = 2446
		c0390 = 3196
		c0541 = 4433
		c0765 = 6270
		c0899 = 7373
		c1175 = 9633
		c1501 = 12299
		c1847 = 15137
		c1961 = 16069
		c2053 = 16819
		c2562 = 20995
		c3072 = 25172

		first  = 13 - 2 // bits that the first pass drops
		second = 13 + 2 + 3
	)
	var ws [64]int32
	flat := true // nothing but column 0 has anything
	for x := range 8 {
		c, k := b[x:], q[x:]
		_, _ = c[56], k[56]
		if c[8]|c[16]|c[24]|c[32]|c[40]|c[48]|c[56] == 0 {
			v := int32(c[0]) * k[0] << 2
			if v == 0 && x > 0 {
				continue
			}
			flat = flat && x == 0
			for y := x; y < 64; y += 8 {
				ws[y] = v
			}
			continue
		}
		flat = flat && x == 0
		z2, z3 := int32(c[16])*k[16], int32(c[48])*k[48]
		z1 := (z2 + z3) * c0541
		t2, t3 := z1-z3*c1847, z1+z2*c0765
		z2, z3 = int32(c[0])*k[0], int32(c[32])*k[32]
		t0, t1 := (z2+z3)<<13, (z2-z3)<<13
		t10, t13, t11, t12 := t0+t3, t0-t3, t1+t2, t1-t2

		t0, t1, t2, t3 = int32(c[56])*k[56], int32(c[40])*k[40], int32(c[24])*k[24], int32(c[8])*k[8]
		z1, z2, z3 = t0+t3, t1+t2, t0+t2
		z4 := t1 + t3
		z5 := (z3 + z4) * c1175
		t0, t1, t2, t3 = t0*c0298, t1*c2053, t2*c3072, t3*c1501
		z1, z2, z3, z4 = -z1*c0899, -z2*c2562, z5-z3*c1961, z5-z4*c0390
		t0, t1, t2, t3 = t0+z1+z3, t1+z2+z4, t2+z2+z3, t3+z1+z4

		const half = 1 << (first - 1)
		ws[x], ws[56+x] = (t10+t3+half)>>first, (t10-t3+half)>>first
		ws[8+x], ws[48+x] = (t11+t2+half)>>first, (t11-t2+half)>>first
		ws[16+x], ws[40+x] = (t12+t1+half)>>first, (t12-t1+half)>>first
		ws[24+x], ws[32+x] = (t13+t0+half)>>first, (t13-t0+half)>>first
	}
	for y := range 8 {
		w, d := ws[8*y:8*y+8:8*y+8], dst[y*stride:y*stride+8:y*stride+8]
		if flat {
			v := byteOf((w[0]+16)>>5 + 128)
			for i := range d {
				d[i] = v
			}
			continue
		}
		z2, z3 := w[2], w[6]
		z1 := (z2 + z3) * c0541
		t2, t3 := z1-z3*c1847, z1+z2*c0765
		t0, t1 := (w[0]+w[4])<<13, (w[0]-w[4])<<13
		t10, t13, t11, t12 := t0+t3, t0-t3, t1+t2, t1-t2

		t0, t1, t2, t3 = w[7], w[5], w[3], w[1]
		z1, z2, z3 = t0+t3, t1+t2, t0+t2
		z4 := t1 + t3
		z5 := (z3 + z4) * c1175
		t0, t1, t2, t3 = t0*c0298, t1*c2053, t2*c3072, t3*c1501
		z1, z2, z3, z4 = -z1*c0899, -z2*c2562, z5-z3*c1961, z5-z4*c0390
		t0, t1, t2, t3 = t0+z1+z3, t1+z2+z4, t2+z2+z3, t3+z1+z4

		const half = 1<<(second-1) + 128<<second
		d[0], d[7] = byteOf((t10+t3+half)>>second), byteOf((t10-t3+half)>>second)
		d[1], d[6] = byteOf((t11+t2+half)>>second), byteOf((t11-t2+half)>>second)
		d[2], d[5] = byteOf((t12+t1+half)>>second), byteOf((t12-t1+half)>>second)
		d[3], d[4] = byteOf((t13+t0+half)>>second), byteOf((t13-t0+half)>>second)
	}
}

// emit puts out the rows above unit row y, which may need the first rows of it.
func (d *jpegReader) emit(y int) {
	if y == 0 {
		return
	}
	if d.scratch == nil {
		d.scratch = make([][]uint8, len(d.components))
		for i := range d.scratch {
			d.scratch[i] = make([]uint8, d.w+8)
		}
	}
	var rows [4][]uint8
	colour := d.colour()
	for r := (y - 1) * 8 * d.maxV; r < min(y*8*d.maxV, d.want.h); r++ {
		for i := range d.components {
			rows[i] = d.components[i].enlarged(r, d.scratch[i])[:d.w]
		}
		dst := d.out.row(r)
		switch {
		case len(d.components) == 1:
			for x, v := range rows[0] {
				dst[3*x], dst[3*x+1], dst[3*x+2] = v, v, v
			}
		case colour == jpegYCbCr:
			yccRow(dst, rows[0], rows[1], rows[2])
		default:
			g, b := rows[1], rows[2]
			for x, v := range rows[0] {
				dst[3*x], dst[3*x+1], dst[3*x+2] = v, g[x], b[x]
			}
		}
		if len(d.components) == 4 {
			d.print(dst, rows[3], colour)
		}
		d.out.done(r)
	}
}

// print turns a row of inks, of which dst has the first three, into colours.
func (d *jpegReader) print(dst, black []uint8, colour jpegColour) {
	for x, k := range black {
		p := dst[3*x : 3*x+3]
		if colour == jpegYCbCr { // the colours are their complements
			p[0], p[1], p[2] = 255-p[0], 255-p[1], 255-p[2]
		}
		if !d.want.inks {
			p[0], p[1], p[2], k = 255-p[0], 255-p[1], 255-p[2], 255-k
		}
		p[0], p[1], p[2] = rgbOfCMYK(p[0], p[1], p[2], k)
	}
}

// colour says what the components are, by libjpeg's rules.
func (d *jpegReader) colour() jpegColour {
	c := d.components
	switch {
	case d.want.colour != jpegByFile:
		return d.want.colour
	case len(c) == 4:
		if d.adobe == 2 {
			return jpegYCbCr
		}
		return jpegRGB
	case len(c) < 3 || d.jfif:
		return jpegYCbCr
	case d.adobe >= 0:
		if d.adobe == 0 {
			return jpegRGB
		}
		return jpegYCbCr
	case c[0].id == 'R' && c[1].id == 'G' && c[2].id == 'B':
		return jpegRGB
	}
	return jpegYCbCr
}

// row is a row of samples; the first and last stand for those beyond.
func (c *jpegComponent) row(i int) []uint8 {
	i = min(max(i, 0), c.rows-1) % (3 * c.band.rows)
	return c.band.plane[i*c.band.stride:][:c.w]
}

// enlarged is row r of the image: halved samples are enlarged with libjpeg's
// triangle filter ("fancy upsampling", jdsample.c), others are repeated.
func (c *jpegComponent) enlarged(r int, scratch []uint8) []uint8 {
	switch [2]int{c.expandH, c.expV} {
	case [2]int{1, 1}:
		return c.row(r)
	case [2]int{2, 1}:
		widen(scratch, c.row(r))
		return scratch
	case [2]int{1, 2}, [2]int{2, 2}:
		near, far, upper := r/2, r/2-1, true
		if r&1 == 1 {
			far, upper = near+1, false
		}
		if c.expandH == 2 {
			widenBoth(scratch, c.row(near), c.row(far))
		} else {
			heighten(scratch, c.row(near), c.row(far), upper)
		}
		return scratch
	}
	x := 0
	for _, v := range c.row(r / c.expV) {
		for range c.expandH {
			if x < len(scratch) {
				scratch[x] = v
				x++
			}
		}
	}
	return scratch
}
