package imaging

import (
	"io"
	"slices"
)

// errCode: the entropy-coded data have bits that are no code.
var errCode = reject(CodeCorrupt, "the jpeg's data have bits that are no code")

// scan decodes the scan that a segment begins (T.81 B.2.3). It reports whether
// the image is complete with it, and put out.
func (d *jpegReader) scan(seg []byte) (done bool, err error) {
	if d.components == nil {
		return false, reject(CodeCorrupt, "the jpeg has no frame header before its data")
	}
	if len(seg) < 1 || len(seg) < 4+2*int(seg[0]) || seg[0] < 1 || int(seg[0]) > len(d.components) {
		return false, reject(CodeCorrupt, "the jpeg's scan header is damaged")
	}
	n := int(seg[0])
	s := jpegScan{jpegReader: d, from: int(seg[1+2*n]), to: int(seg[2+2*n]), high: int(seg[3+2*n] >> 4), low: int(seg[3+2*n] & 15)}
	for i := range n {
		id, tables := int(seg[1+2*i]), seg[2+2*i]
		var c *jpegComponent
		for j := range d.components {
			if d.components[j].id == id {
				c = &d.components[j]
			}
		}
		if c == nil || tables>>4 > 3 || tables&15 > 3 {
			return false, reject(CodeCorrupt, "the jpeg's scan has the component %d, with tables %#x", id, tables)
		}
		if slices.Contains(s.parts, c) {
			return false, reject(CodeCorrupt, "the jpeg's scan has the component %d twice", id)
		}
		c.scan.dc, c.scan.ac, c.scan.pred = int(tables>>4), int(tables&15), 0
		if !c.latched {
			t := d.tables[c.tq]
			if t == nil {
				return false, reject(CodeCorrupt, "the jpeg's quantisation table %d is missing", c.tq)
			}
			c.quant, c.latched = *t, true
		}
		s.parts = append(s.parts, c)
	}
	progressive := d.marker == markSOF2
	if !progressive {
		s.from, s.to, s.high, s.low = 0, 63, 0, 0
	}
	if s.from > s.to || s.to > 63 || s.low > 13 || s.high != 0 && s.high != s.low+1 ||
		progressive && (s.from == 0 && s.to != 0 || s.from > 0 && n != 1) {
		return false, reject(CodeCorrupt, "the jpeg's scan says coefficients %d to %d, bits %d to %d", s.from, s.to, s.high, s.low)
	}
	for _, c := range s.parts {
		for k := s.from; k <= s.to; k++ {
			if before := c.parts.missing[k]; progressive && s.high != 0 && before != s.high || progressive && s.high == 0 && before != -1 ||
				!progressive && before != -1 {
				return false, reject(CodeCorrupt, "the jpeg's scans do not follow one another: coefficient %d of component %d", k, c.id)
			}
			c.parts.missing[k] = s.low
		}
	}
	s.whole = !progressive && n == len(d.components)
	if !s.whole {
		for i := range d.components {
			if c := &d.components[i]; c.parts.coefficients == nil {
				c.parts.coefficients = make([]int16, 64*c.blocksX*c.blocksY)
			}
		}
	}
	d.bits = bitReader{b: d.walk.b, at: d.walk.at}
	d.eobRun = 0
	if err := s.decode(); err != nil {
		if s.bits.overrun() { // what was missing was taken for zeros
			err = io.ErrUnexpectedEOF
		}
		return false, err
	}
	d.walk.at = d.bits.at
	if s.whole {
		d.emit(d.unitsY)
	}
	return s.whole, nil
}

// jpegScan is a scan under way.
type jpegScan struct {
	*jpegReader
	parts     []*jpegComponent
	from, to  int // spectral selection
	high, low int // successive approximation
	whole     bool
	left      int // units up to the next restart marker
	restarts  int
}

// decode decodes unit after unit. With several components a unit has h × v
// blocks of each, with one it is a block, and those beyond the image are left
// out (T.81 A.2).
func (s *jpegScan) decode() error {
	s.left = s.restart
	var block [64]int16
	if len(s.parts) == 1 {
		c := s.parts[0]
		acrossX, acrossY := (c.w+7)/8, (c.rows+7)/8
		for y := range acrossY {
			for x := range acrossX {
				if err := s.next(); err != nil {
					return err
				}
				at := &block
				if !s.whole {
					at = (*[64]int16)(c.parts.coefficients[64*(y*c.blocksX+x):])
				}
				if err := s.block(c, at); err != nil {
					return err
				}
				if s.whole {
					inverse(at, &c.quant, c.place(y/c.v, x, y%c.v), c.band.stride)
				}
			}
			if s.bits.overrun() {
				return io.ErrUnexpectedEOF
			}
			if s.whole { // c.v is 1
				s.emit(y)
			}
		}
		return nil
	}
	for y := range s.unitsY {
		for x := range s.unitsX {
			if err := s.next(); err != nil {
				return err
			}
			for _, c := range s.parts {
				for v := range c.v {
					for h := range c.h {
						at := &block
						if !s.whole {
							at = (*[64]int16)(c.parts.coefficients[64*((y*c.v+v)*c.blocksX+x*c.h+h):])
						}
						if err := s.block(c, at); err != nil {
							return err
						}
						if s.whole {
							inverse(at, &c.quant, c.place(y, x*c.h+h, v), c.band.stride)
						}
					}
				}
			}
		}
		if s.bits.overrun() {
			return io.ErrUnexpectedEOF
		}
		if s.whole {
			s.emit(y)
		}
	}
	return nil
}

// next passes the restart marker before a unit, where one is due.
func (s *jpegScan) next() error {
	if s.restart == 0 {
		return nil
	}
	if s.left > 0 {
		s.left--
		return nil
	}
	if s.bits.overrun() {
		return io.ErrUnexpectedEOF
	}
	s.left = s.restart - 1
	// The marker follows, perhaps after fill bytes or garbage.
	r := &s.bits
	at := r.at
	for ; ; at++ {
		for at < len(r.b) && r.b[at] != 0xff {
			at++
		}
		if at+1 >= len(r.b) {
			return io.ErrUnexpectedEOF
		}
		if m := r.b[at+1]; m != 0 && m != 0xff {
			if int(m) != markRST0+s.restarts%8 {
				if m == markEOI {
					return io.ErrUnexpectedEOF
				}
				return reject(CodeCorrupt, "the jpeg has the marker %#x where restart %d is due", m, s.restarts%8)
			}
			break
		}
	}
	s.restarts++
	s.bits = bitReader{b: r.b, at: at + 2}
	s.eobRun = 0
	for _, c := range s.parts {
		c.scan.pred = 0
	}
	return nil
}

// block decodes one block of coefficients.
func (s *jpegScan) block(c *jpegComponent, b *[64]int16) error {
	switch {
	case s.marker != markSOF2:
		return s.sequential(c, b)
	case s.from == 0 && s.high == 0:
		return s.firstDC(c, b)
	case s.from == 0:
		s.bits.fill()
		if s.bits.take(1) == 1 {
			b[0] |= 1 << s.low
		}
		return nil
	case s.high == 0:
		return s.firstAC(c, b)
	}
	return s.refineAC(c, b)
}

// difference decodes a DC coefficient (T.81 F.2.2.1).
func (s *jpegScan) difference(c *jpegComponent) error {
	h, err := s.table(0, c.scan.dc)
	if err != nil {
		return err
	}
	s.bits.fill()
	size := s.bits.symbol(h)
	if size > 15 {
		return errCode
	}
	c.scan.pred += s.bits.extend(size)
	return nil
}

func (s *jpegScan) sequential(c *jpegComponent, b *[64]int16) error {
	if err := s.difference(c); err != nil {
		return err
	}
	h, err := s.table(1, c.scan.ac)
	if err != nil {
		return err
	}
	*b = [64]int16{}
	b[0] = int16(c.scan.pred)
	r := &s.bits
	for k := 1; k < 64; k++ {
		r.fill()
		if q := h.coefficient[r.have>>55]; q != 0 {
			r.skip(int(q & 15))
			k += int(q >> 4 & 15)
			if k > 63 {
				return errCode
			}
			b[zigzag[k]] = q >> 8
			continue
		}
		v := r.symbol(h)
		run, size := v>>4, v&15
		switch {
		case v > 0xff:
			return errCode
		case size != 0:
			k += run
			if k > 63 {
				return errCode
			}
			b[zigzag[k]] = int16(r.extend(size))
		case run == 15:
			k += 15
		default: // end of block
			return nil
		}
	}
	return nil
}

func (s *jpegScan) firstDC(c *jpegComponent, b *[64]int16) error {
	if err := s.difference(c); err != nil {
		return err
	}
	b[0] = int16(c.scan.pred << s.low)
	return nil
}

// firstAC decodes the first bits of a band (T.81 G.1.2.2).
func (s *jpegScan) firstAC(c *jpegComponent, b *[64]int16) error {
	if s.eobRun > 0 {
		s.eobRun--
		return nil
	}
	h, err := s.table(1, c.scan.ac)
	if err != nil {
		return err
	}
	r := &s.bits
	for k := s.from; k <= s.to; k++ {
		r.fill()
		v := r.symbol(h)
		run, size := v>>4, v&15
		switch {
		case v > 0xff:
			return errCode
		case size != 0:
			k += run
			if k > s.to {
				return errCode
			}
			b[zigzag[k]] = int16(r.extend(size) << s.low)
		case run == 15:
			k += 15
		default:
			s.eobRun = 1<<run - 1
			if run > 0 {
				s.eobRun += r.take(run)
			}
			return nil
		}
	}
	return nil
}

// refineAC decodes one more bit of a band (T.81 G.1.2.3).
func (s *jpegScan) refineAC(c *jpegComponent, b *[64]int16) error {
	h, err := s.table(1, c.scan.ac)
	if err != nil {
		return err
	}
	r := &s.bits
	one := int16(1) << s.low
	k := s.from
	if s.eobRun == 0 {
		for k <= s.to {
			r.fill()
			v := r.symbol(h)
			run, size := v>>4, v&15
			var fresh int16
			switch {
			case v > 0xff || size > 1:
				return errCode
			case size == 1:
				if fresh = -one; r.take(1) == 1 {
					fresh = one
				}
			case run < 15:
				s.eobRun = 1 << run
				if run > 0 {
					s.eobRun += r.take(run)
				}
			}
			if s.eobRun > 0 {
				break
			}
			for ; k <= s.to; k++ {
				p := &b[zigzag[k]]
				if *p != 0 {
					s.refine(p, one)
					continue
				}
				if run == 0 {
					break
				}
				run--
			}
			if k > s.to && fresh != 0 {
				return errCode
			}
			if fresh != 0 {
				b[zigzag[k]] = fresh
			}
			k++
		}
	}
	if s.eobRun > 0 {
		for ; k <= s.to; k++ {
			if p := &b[zigzag[k]]; *p != 0 {
				s.refine(p, one)
			}
		}
		s.eobRun--
	}
	return nil
}

// refine corrects a coefficient that is not zero.
func (s *jpegScan) refine(p *int16, one int16) {
	s.bits.fill()
	if s.bits.take(1) == 1 && *p&one == 0 {
		if *p > 0 {
			*p += one
		} else {
			*p -= one
		}
	}
}
