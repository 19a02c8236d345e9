package imaging

// sink takes the rows of a picture as a decoder makes them: RGB, as they are
// stored, in any order. So a decoder needs memory for a few rows only, and what
// is made of them may be smaller than the picture.
type sink interface {
	// row is where the 3 × width bytes of row y go. It is valid until done.
	row(y int) []uint8
	// done says that row y is complete.
	done(y int)
}

// canvas keeps the whole picture.
type canvas struct{ img *Image }

func (c canvas) row(y int) []uint8 { return c.img.row(y) }
func (c canvas) done(int)          {}

// onCanvas lets draw paint a picture of w × h pixels in any order, on the sink's
// own canvas where it has one.
func onCanvas(s sink, w, h int, draw func(img *Image) error) error {
	if c, ok := s.(canvas); ok {
		return draw(c.img)
	}
	img := New(w, h)
	if err := draw(img); err != nil {
		return err
	}
	for y := range h {
		copy(s.row(y), img.row(y))
		s.done(y)
	}
	return nil
}

// reducer makes a model's inputs of the rows: mirrored, cut and painted over as
// the view says, and resized. It takes orientations 1 to 4, which keep rows rows.
type reducer struct {
	w, h         int
	mirror, flip bool
	view         *View
	x0, y0       int // of the view's region, upright
	x1, y1       int
	passes       []*passes // of the inputs
	lo, hi       int       // the rows of the region that count
	buf          []uint8
}

func newReducer(p Preprocess, h Header) *reducer {
	r := &reducer{
		w: h.Width, h: h.Height, view: p.View,
		mirror: h.Orientation == 2 || h.Orientation == 3, flip: h.Orientation == 3 || h.Orientation == 4,
		buf: make([]uint8, 3*h.Width),
	}
	r.x0, r.y0, r.x1, r.y1 = p.View.region(h.Width, h.Height)
	r.lo = r.y1
	for _, c := range p.cuts(r.x1-r.x0, r.y1-r.y0) {
		one := newPasses(r.x1-r.x0, r.y1-r.y0, float64(r.x1-r.x0), float64(r.y1-r.y0), c.outW, c.outH, c.win, p.Interpolation)
		r.passes = append(r.passes, one)
		r.lo, r.hi = min(r.lo, one.lo), max(r.hi, one.hi)
	}
	return r
}

// release gives memory back that finish has not.
func (r *reducer) release() {
	for _, one := range r.passes {
		one.release()
	}
}

func (r *reducer) row(int) []uint8 { return r.buf }

func (r *reducer) done(y int) {
	if r.flip {
		y = r.h - 1 - y
	}
	if y < r.y0+r.lo || y >= r.y0+r.hi {
		return
	}
	row := r.buf
	if r.mirror {
		for a, b := 0, 3*(r.w-1); a < b; a, b = a+3, b-3 {
			row[a], row[a+1], row[a+2], row[b], row[b+1], row[b+2] = row[b], row[b+1], row[b+2], row[a], row[a+1], row[a+2]
		}
	}
	r.view.paint(row, y, 0, r.w, r.h)
	for _, one := range r.passes {
		one.put(y-r.y0, row[3*r.x0:3*r.x1])
	}
}
