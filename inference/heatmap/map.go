package heatmap

import (
	"image"
	"math"
	"slices"
)

const (
	// sigma is the standard deviation of the Gaussian that smooths a grid, in
	// patches: half a patch, as 4 pixels were of PatchCore's patches of 8
	// (arXiv 2106.08265, section 3.3).
	sigma = 0.5
	// perPatch is how many samples a patch's side is given before smoothing, and
	// finest the side of a grid that is not refined any more.
	perPatch = 4
	finest   = 512
)

// smooth refines a grid by bilinear interpolation between the patches' middles
// and smooths it. The result covers the same part of the image.
func smooth(g Grid) Grid {
	k := perPatch
	for k > 1 && max(g.Width, g.Height)*k > finest {
		k /= 2
	}
	f := g.Resized(g.Width*k, g.Height*k)
	kernel := gaussian(sigma * float64(k))
	return f.blurred(kernel, 1, f.Width, f.Width, f.Height).blurred(kernel, f.Width, 1, f.Height, f.Width)
}

// Resized is the grid with other numbers of patches across and down, by bilinear
// interpolation between the patches' middles.
func (g Grid) Resized(width, height int) Grid {
	if width == g.Width && height == g.Height {
		return g
	}
	f := NewGrid(width, height)
	cols, rows := between(g.Width, f.Width), between(g.Height, f.Height)
	for y, r := range rows {
		a, b := g.Values[r.at*g.Width:(r.at+1)*g.Width], g.Values[r.next*g.Width:(r.next+1)*g.Width]
		for x, c := range cols {
			f.Values[y*f.Width+x] = mix(mix(a[c.at], a[c.next], c.weight), mix(b[c.at], b[c.next], c.weight), r.weight)
		}
	}
	return f
}

// step is a place between two samples.
type step struct {
	at, next int
	weight   float32 // of next
}

// between places the middles of out samples among the middles of in.
func between(in, out int) []step {
	s := make([]step, out)
	for i := range s {
		s[i] = place((float64(i)+0.5)*float64(in)/float64(out)-0.5, in)
	}
	return s
}

// place is where a position lies among n samples; outside it is the nearest.
func place(v float64, n int) step {
	v = min(max(v, 0), float64(n-1))
	at := int(v)
	return step{at: at, next: min(at+1, n-1), weight: float32(v - float64(at))}
}

// mix never leaves the interval between its values.
func mix(a, b, weight float32) float32 {
	if a == b || weight == 0 {
		return a
	}
	return a + (b-a)*weight
}

// gaussian is a kernel's middle and right half; the sum over all of it is 1.
func gaussian(sigma float64) []float32 {
	k := make([]float64, 1+int(math.Ceil(3*sigma)))
	sum := 0.0
	for i := range k {
		k[i] = math.Exp(-float64(i*i) / (2 * sigma * sigma))
		sum += k[i]
		if i > 0 {
			sum += k[i]
		}
	}
	out := make([]float32, len(k))
	for i, v := range k {
		out[i] = float32(v / sum)
	}
	return out
}

// blurred convolves lines of n samples, stride apart; there are lines of them,
// line apart. At the ends the kernel is what remains of it.
func (g Grid) blurred(kernel []float32, stride, line, n, lines int) Grid {
	out := NewGrid(g.Width, g.Height)
	for l := range lines {
		for i := range n {
			var sum, weight float32
			for j := max(0, i-len(kernel)+1); j < min(n, i+len(kernel)); j++ {
				k := kernel[max(i-j, j-i)]
				sum += k * g.Values[l*line+j*stride]
				weight += k
			}
			out.Values[l*line+i*stride] = sum / weight
		}
	}
	return out
}

// Map is one image's intensities on the frame's geometry. It is kept small, and
// pixels are computed as they are asked for.
type Map struct {
	Geometry
	fine       Grid
	cols, rows []step // of the covered pixels
	rect       image.Rectangle
	threshold  float64
}

// New makes the map of a grid of squared patch distances; one that is no number
// is as far as can be. Without a scale the map's values are the smoothed distances themselves, which order pixels as
// intensities do.
func New(g Grid, s *Scale, geo Geometry) (*Map, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if err := geo.Validate(); err != nil {
		return nil, err
	}
	m := &Map{Geometry: geo, fine: smooth(g.measured()), rect: geo.Covered()}
	if s != nil {
		m.threshold = s.Threshold
		for i, d := range m.fine.Values {
			m.fine.Values[i] = s.Intensity(d)
		}
	}
	axis := func(from, to, n int, lo, hi float64) []step {
		out := make([]step, to-from)
		for i := range out {
			out[i] = place((float64(from+i)+0.5-lo)/(hi-lo)*float64(n)-0.5, n)
		}
		return out
	}
	m.cols = axis(m.rect.Min.X, m.rect.Max.X, m.fine.Width, geo.X0, geo.X1)
	m.rows = axis(m.rect.Min.Y, m.rect.Max.Y, m.fine.Height, geo.Y0, geo.Y1)
	return m, nil
}

// farthest stands for distances that cannot be measured: those are not normal.
const farthest = 1e30

// measured has no distance that arithmetic would trip over.
func (g Grid) measured() Grid {
	out := NewGrid(g.Width, g.Height)
	for i, d := range g.Values {
		if !(d <= farthest) { // NaN too
			d = farthest
		}
		out.Values[i] = max(d, 0)
	}
	return out
}

// Threshold is the scale's; 0 without one.
func (m *Map) Threshold() float64 { return m.threshold }

// At is the value of a pixel of the frame. ok is false where it has none: it was
// cut off before the model saw it, or painted over.
func (m *Map) At(x, y int) (v float32, ok bool) {
	at := image.Point{X: x, Y: y}
	if !at.In(m.rect) || slices.ContainsFunc(m.Ignored, at.In) {
		return 0, false
	}
	return m.value(m.cols[x-m.rect.Min.X], m.rows[y-m.rect.Min.Y]), true
}

func (m *Map) value(c, r step) float32 {
	a, b := m.fine.Values[r.at*m.fine.Width:], m.fine.Values[r.next*m.fine.Width:]
	return mix(mix(a[c.at], a[c.next], c.weight), mix(b[c.at], b[c.next], c.weight), r.weight)
}

// row writes the values of the frame's row y to dst, one a column of the frame;
// none is what pixels without a value get.
func (m *Map) row(dst []float32, y int, none float32) {
	if y < m.rect.Min.Y || y >= m.rect.Max.Y {
		for x := range dst {
			dst[x] = none
		}
		return
	}
	r := m.rows[y-m.rect.Min.Y]
	for x := range dst {
		if x < m.rect.Min.X || x >= m.rect.Max.X {
			dst[x] = none
		} else {
			dst[x] = m.value(m.cols[x-m.rect.Min.X], r)
		}
	}
	for _, q := range m.Ignored {
		if y >= q.Min.Y && y < q.Max.Y {
			for x := max(q.Min.X, 0); x < min(q.Max.X, len(dst)); x++ {
				dst[x] = none
			}
		}
	}
}

// Pixels are the values of all pixels of the frame, row by row; none is what
// those without a value get.
func (m *Map) Pixels(none float32) []float32 {
	out := make([]float32, m.Width*m.Height)
	for y := range m.Height {
		m.row(out[y*m.Width:(y+1)*m.Width], y, none)
	}
	return out
}

// Peak is the hottest pixel, the first of them by rows. ok is false where no
// pixel has a value.
func (m *Map) Peak() (v float32, x, y int, ok bool) {
	line := make([]float32, m.Width)
	for j := m.rect.Min.Y; j < m.rect.Max.Y; j++ {
		m.row(line, j, -1)
		for i, w := range line {
			if w >= 0 && (!ok || w > v) {
				v, x, y, ok = w, i, j, true
			}
		}
	}
	return v, x, y, ok
}
