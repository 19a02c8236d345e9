package imaging

import "bytes"

// jpegBlocks decodes strips or tiles that are JPEG files (TIFF technical note
// 2): they share their tables, and the directory says what their colours are.
func (p *tiffPage) jpegBlocks(s sink) error {
	tables, _ := p.raw(tagJPEGTables)
	colour := jpegByFile
	switch p.photometric {
	case tiffYCbCr:
		colour = jpegYCbCr
	case tiffRGB:
		colour = jpegRGB
	}
	if p.planes > 1 || p.samples == 2 || p.samples == 4 && p.photometric != tiffCMYK {
		return reject(CodeUnsupported, "the tiff holds JPEG data of %d samples in %d planes", p.samples, p.planes)
	}
	if p.photometric == tiffWhiteIsZero {
		return reject(CodeUnsupported, "the tiff holds JPEG data in which white is zero")
	}
	one := func(i int, s sink) error {
		data, err := p.block(i)
		if err != nil {
			return err
		}
		if t := bytes.TrimSuffix(tables, []byte{0xff, markEOI}); len(t) > 2 && len(data) > 2 {
			data = append(bytes.Clone(t), data[2:]...)
		}
		return decodeJPEGInto(data, jpegWant{p.grid.w, min(p.grid.h, p.h-i/p.grid.across*p.grid.h), colour, true}, s)
	}
	if !p.grid.tiled {
		for i := range p.grid.down {
			if err := one(i, shifted{s, i * p.grid.h}); err != nil {
				return err
			}
		}
		return nil
	}
	tile, band := New(p.grid.w, p.grid.h), New(p.w, p.grid.h)
	for i := range p.grid.down {
		for j := range p.grid.across {
			if err := one(i*p.grid.across+j, canvas{tile}); err != nil {
				return err
			}
			for y := range p.grid.h {
				copy(band.row(y)[3*j*p.grid.w:], tile.row(y))
			}
		}
		for y := i * p.grid.h; y < min((i+1)*p.grid.h, p.h); y++ {
			copy(s.row(y), band.row(y-i*p.grid.h))
			s.done(y)
		}
	}
	return nil
}

// shifted puts the rows of a strip where they belong in the picture.
type shifted struct {
	sink
	by int
}

func (s shifted) row(y int) []uint8 { return s.sink.row(y + s.by) }
func (s shifted) done(y int)        { s.sink.done(y + s.by) }
