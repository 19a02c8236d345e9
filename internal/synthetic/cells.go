package synthetic

import (
	"math"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// cellNames are the families of white blood cells.
var cellNames = []string{"neutrophil", "lymphocyte", "monocyte", "eosinophil"}

var cellDefects = []string{
	"inclusion", "rod", "vacuole", "nucleus", "nucleolus", "sickle", "crenation", "target", "precipitate",
}

// Densities are natural absorbances of red, green and blue light; the picture
// is the lamp's light times exp(−density), as in a real slide (Beer and
// Lambert).
type stain struct {
	lamp    rgb // the empty field, 0 … 1
	plasm   rgb // cytoplasm
	granule rgb // what the granules add
	nucleus rgb
	red     rgb // red cells
}

// cellDesign is what all cells of a class have in common.
type cellDesign struct {
	stain
	radius, wobble float64
	lobes          int     // of the nucleus
	lobe           float64 // radius of a lobe, in cell radii
	ring           float64 // distance of the lobes from the middle
	arc            float64 // angle from one lobe to the next
	melt           float64 // how far lobes flow into one another
	grain          float64 // granules per unit
	grains         float64 // how many of them stain, −1 … 1
	chromatin      float64
}

func newCellDesign(class int) cellDesign {
	family, style := class%len(cellNames), class/len(cellNames)
	d := []cellDesign{
		{
			radius: 0.45, wobble: 0.04, lobes: 4, lobe: 0.27, ring: 0.40, arc: 1.25, melt: 0.16, grain: 62, grains: -0.15, chromatin: 0.16,
			stain: stain{plasm: rgb{0.10, 0.24, 0.13}, granule: rgb{0.10, 0.20, 0.07}},
		},
		{
			radius: 0.335, wobble: 0.03, lobes: 1, lobe: 0.80, ring: 0.10, arc: 1, melt: 0.1, grain: 30, grains: 0.5, chromatin: 0.22,
			stain: stain{plasm: rgb{0.42, 0.34, 0.07}, granule: rgb{0.05, 0.06, 0}},
		},
		{
			radius: 0.54, wobble: 0.07, lobes: 5, lobe: 0.32, ring: 0.34, arc: 0.72, melt: 0.35, grain: 44, grains: 0.2, chromatin: 0.26,
			stain: stain{plasm: rgb{0.31, 0.30, 0.12}, granule: rgb{0.07, 0.10, 0.04}},
		},
		{
			radius: 0.46, wobble: 0.04, lobes: 2, lobe: 0.37, ring: 0.40, arc: 2.1, melt: 0.16, grain: 27, grains: -0.5, chromatin: 0.16,
			stain: stain{plasm: rgb{0.07, 0.26, 0.25}, granule: rgb{0.06, 0.42, 0.52}},
		},
	}[family]
	d.lamp = rgb{0.935, 0.895, 0.85}
	d.nucleus = rgb{0.98, 1.42, 0.42}
	d.red = rgb{0.10, 0.42, 0.40}
	if style == 0 {
		return d
	}
	// Other laboratories: other stains, lamps and magnifications.
	r := newRNG(0xce11, uint64(class))
	zoom := r.between(0.8, 1.25)
	d.radius *= zoom
	d.lobes = max(1, d.lobes+r.intn(3)-1)
	d.arc *= r.between(0.85, 1.15)
	d.grain *= r.between(0.7, 1.4) / zoom
	d.grains += r.between(-0.3, 0.3)
	for i := range 3 {
		d.lamp[i] *= r.between(0.86, 1.05)
		d.plasm[i] *= r.between(0.6, 1.5)
		d.granule[i] *= r.between(0.6, 1.5)
		d.nucleus[i] *= r.between(0.75, 1.15)
		d.red[i] *= r.between(0.6, 1.4)
	}
	return d
}

// oval is a cell as it lies in the image, the image being −1 … 1.
type oval struct {
	x, y, r  float64 // its middle, and half its longer axis
	squeeze  float64 // shorter axis ÷ longer axis
	sin, cos float64 // of the longer axis
}

// redCell is a biconcave disc.
type redCell struct {
	oval
	dense float64
	pale  float64 // depth of the hollow
	seed  uint64
}

type lobe struct{ x, y, r float64 }

// cell is one image of a white cell and its neighbours.
type cell struct {
	c *canvas
	d cellDesign
	oval
	lobes    []lobe
	reds     []redCell
	platelet []lobe
	strength float64 // of the stain
	hue      [3]float64
	light    float64
	slopeX   float64
	slopeY   float64
	seed     uint64
	focus    float64
	noise    float64
}

func newCell(c *canvas, class int, r *rng, variation float64) scene {
	d := newCellDesign(class)
	s := &cell{c: c, d: d, seed: r.next()}
	v := variation
	s.x, s.y = r.around(0.05*v), r.around(0.05*v)
	s.r = d.radius * (1 + r.around(0.045*v))
	s.sin, s.cos = math.Sincos(r.unit() * 2 * math.Pi)
	s.squeeze = 1 - 0.12*r.unit()*v
	s.strength = 1 + r.around(0.06*v)
	for i := range 3 {
		s.hue[i] = 1 + r.around(0.025*v)
	}
	s.light = 1 + r.around(0.018*v)
	s.slopeX, s.slopeY = r.around(0.02*v), r.around(0.02*v)
	s.focus = 0.10 + 0.10*r.unit()
	s.noise = 1.0 + 0.7*r.unit()
	s.lobes = s.arrange(r.fork(), d.lobes, 1, v)
	s.populate(r.fork(), v)
	return s
}

// arrange sets out the lobes of a nucleus along an arc, in cell radii.
func (s *cell) arrange(r *rng, n int, grow, variation float64) []lobe {
	out := make([]lobe, n)
	a := -float64(n-1) / 2 * s.d.arc
	for i := range out {
		sin, cos := math.Sincos(a + r.around(0.12*variation))
		ring := s.d.ring * (1 + r.around(0.10*variation))
		out[i] = lobe{ring * cos, ring * sin, s.d.lobe * grow * (1 + r.around(0.07*variation))}
		a += s.d.arc
	}
	// the nucleus lies about in the middle of the cell
	var mx, my float64
	for _, l := range out {
		mx += l.x / float64(n)
		my += l.y / float64(n)
	}
	for i := range out {
		out[i].x -= 0.75 * mx
		out[i].y -= 0.75 * my
	}
	return out
}

// populate puts red cells and platelets around.
func (s *cell) populate(r *rng, variation float64) {
	const size = 0.265
	for range 400 {
		if len(s.reds) > 18 {
			break
		}
		c := redCell{oval: oval{x: r.between(-1.25, 1.25), y: r.between(-1.25, 1.25), r: size * (1 + r.around(0.05*variation))}}
		c.squeeze = 1 - 0.13*r.unit()*min(variation, 1.5)
		c.sin, c.cos = math.Sincos(r.unit() * math.Pi)
		c.dense = 1 + r.around(0.07*variation)
		c.pale = 0.62 + r.around(0.08*variation)
		c.seed = r.next()
		room := math.Hypot(c.x-s.x, c.y-s.y) > s.r+c.r*0.97
		for _, o := range s.reds {
			room = room && math.Hypot(c.x-o.x, c.y-o.y) > (c.r+o.r)*0.93
		}
		if room {
			s.reds = append(s.reds, c)
		}
	}
	for range r.intn(3) {
		p := lobe{r.between(-1, 1), r.between(-1, 1), r.between(0.035, 0.06)}
		if math.Hypot(p.x-s.x, p.y-s.y) > s.r+0.1 {
			s.platelet = append(s.platelet, p)
		}
	}
}

// red picks a red cell that is well inside the picture.
func (s *cell) red(r *rng) (int, bool) {
	if len(s.reds) == 0 {
		return 0, false
	}
	first := r.intn(len(s.reds))
	for i := range s.reds {
		k := (first + i) % len(s.reds)
		if c := s.reds[k]; math.Abs(c.x) < 0.84 && math.Abs(c.y) < 0.84 {
			return k, true
		}
	}
	return 0, false
}

// blob is something small that adds (or takes away) density.
type blob struct {
	x, y, r float64
	color   rgb
	hollow  bool // only the rim
	clear   float64
	rough   float64
	seed    uint64
	long    float64 // > 0: a needle of this half length
	sin     float64
	cos     float64
}

func (s *cell) draw(dst *imaging.Image, d *defect) bool {
	c := s.c
	clear(c.a)
	clear(c.b)
	clear(c.c)
	lobes := s.lobes
	nucleoli := []lobe(nil)
	var over []blob
	odd, mode, extent := -1, "", 0.0
	if d != nil {
		r, amount := d.r, d.amount
		purple := s.d.nucleus.times(lerp(0.55, 1.0, amount))
		inCell := func(reach float64) (float64, float64) {
			sin, cos := math.Sincos(r.unit() * 2 * math.Pi)
			q := s.r * reach * math.Sqrt(r.unit())
			return s.x + q*cos, s.y + q*sin
		}
		switch d.kind {
		case "inclusion":
			k, ok := s.red(r)
			if !ok {
				return false
			}
			red := s.reds[k]
			for range 1 + int(amount*3.2) {
				sin, cos := math.Sincos(r.unit() * 2 * math.Pi)
				q := red.r * r.between(0.2, 0.62)
				size := lerp(0.035, 0.085, amount) * r.between(0.85, 1.15)
				x, y := red.x+q*cos, red.y+q*sin
				over = append(over, blob{x: x, y: y, r: size, color: purple.times(0.8), hollow: amount > 0.3, seed: r.next(), rough: 0.15})
				if amount > 0.3 { // a ring with its dot
					over = append(over, blob{x: x + size, y: y, r: size * 0.42, color: purple, seed: r.next()})
				}
			}
		case "rod":
			sin, cos := math.Sincos(r.unit() * math.Pi)
			x, y := inCell(0.75)
			over = append(over, blob{x: x, y: y, r: lerp(0.013, 0.024, amount), long: lerp(0.08, 0.26, amount), sin: sin, cos: cos, color: rgb{0.35, 1.1, 0.5}.times(lerp(0.75, 1.1, amount))})
		case "vacuole":
			for range 1 + int(amount*7) {
				x, y := inCell(0.85)
				over = append(over, blob{x: x, y: y, r: lerp(0.035, 0.085, amount) * r.between(0.7, 1.2), clear: lerp(0.65, 0.95, amount), seed: r.next(), rough: 0.1})
			}
		case "nucleus":
			if r.intn(2) == 0 { // swollen, as in a blast
				lobes = s.arrange(newRNG(s.seed, 77), len(s.lobes), 1+lerp(0.08, 0.55, amount), 0.3)
			} else { // too many segments
				n := len(s.lobes) + 1 + int(3*amount)
				lobes = s.arrange(newRNG(s.seed, 78), n, lerp(0.92, 0.75, amount), 1.2)
			}
		case "nucleolus":
			for range 1 + int(amount*2.5) {
				l := s.lobes[r.intn(len(s.lobes))]
				q := l.r * 0.5
				nucleoli = append(nucleoli, lobe{l.x + r.between(-q, q), l.y + r.between(-q, q), l.r * lerp(0.26, 0.48, amount)})
			}
			extent = lerp(0.32, 0.62, amount)
		case "sickle", "crenation", "target":
			k, ok := s.red(r)
			if !ok {
				return false
			}
			odd, mode, extent = k, d.kind, amount
		case "precipitate":
			x0, y0 := r.between(-0.8, 0.8), r.between(-0.8, 0.8)
			spread := lerp(0.06, 0.30, amount)
			for range 3 + int(amount*26) {
				over = append(over, blob{
					x: x0 + r.around(spread*0.6), y: y0 + r.around(spread*0.6), r: lerp(0.014, 0.04, amount) * r.between(0.5, 1.3),
					color: rgb{1.3, 1.5, 0.75}.times(lerp(0.6, 1.1, amount)), seed: r.next(), rough: 0.5,
				})
			}
		}
	}

	for i := range s.reds {
		m := ""
		if i == odd {
			m = mode
		}
		s.stainRed(s.reds[i], m, extent)
	}
	for i, p := range s.platelet {
		s.stainBlob(blob{x: p.x, y: p.y, r: p.r, color: rgb{0.35, 0.55, 0.16}, rough: 0.4, seed: s.seed + uint64(i)})
	}
	s.stainWhite(lobes, nucleoli, extent)
	for _, b := range over {
		s.stainBlob(b)
	}
	s.develop(dst)
	return true
}

// region calls f for the pixels within reach of (x, y).
func (s *cell) region(x, y, reach float64, f func(i int, u, v float64)) {
	n := s.c.size
	px := 2 / float64(n)
	x0, x1 := max(0, int((x-reach+1)/px)), min(n, int((x+reach+1)/px)+1)
	y0, y1 := max(0, int((y-reach+1)/px)), min(n, int((y+reach+1)/px)+1)
	for row := y0; row < y1; row++ {
		v := (float64(row)+0.5)*px - 1 - y
		for col := x0; col < x1; col++ {
			f(row*n+col, (float64(col)+0.5)*px-1-x, v)
		}
	}
}

func (s *cell) stainRed(r redCell, mode string, amount float64) {
	soft := 2.2 / float64(s.c.size)
	squeeze, pale := r.squeeze, r.pale
	spikes, bow := 0.0, 0.0
	switch mode {
	case "sickle":
		squeeze, bow = lerp(0.72, 0.34, amount), lerp(0.12, 0.42, amount)
		pale *= 1 - amount
	case "crenation":
		spikes = lerp(0.05, 0.15, amount)
	case "target":
		pale = 0.75
	}
	s.region(r.x, r.y, r.r*1.35, func(i int, u, v float64) {
		a, b := u*r.cos+v*r.sin, v*r.cos-u*r.sin
		if bow > 0 { // bent to a crescent, its ends thinner
			b += bow * (a*a/r.r - 0.4*r.r)
			a *= 0.86
		}
		b /= squeeze
		rad := math.Sqrt(a*a + b*b)
		edge := r.r
		if rad > 1e-6 {
			ux, uy := a/rad, b/rad
			edge *= 1 + 0.035*noise(r.seed, 1.3*ux+5, 1.3*uy)
			if spikes > 0 {
				edge *= 1 - spikes*0.5 + spikes*math.Sin(11*math.Atan2(uy, ux))
			}
		}
		cover := 1 - step(edge-soft, edge+soft, rad)
		if cover == 0 {
			return
		}
		q := min(rad/edge, 1)
		thick := (1 - pale*(1-step(0.08, 0.82, q))) * (0.80 + 0.20*math.Sqrt(1-q*q))
		if mode == "target" {
			thick += lerp(0.25, 0.75, amount) * (1 - step(0.12, 0.36, q))
		}
		thick += 0.16 * step(0.80, 0.95, q) // the rim bends the light away
		k := thick * cover * r.dense * s.strength * (1 + 0.05*noise(r.seed+1, 14*u, 14*v))
		s.c.a[i] += s.d.red[0] * k
		s.c.b[i] += s.d.red[1] * k
		s.c.c[i] += s.d.red[2] * k
	})
}

// nucleusAt is the signed distance to the outline of the nucleus, in cell
// radii: lobes that melt into one another, and the strands between them.
func (s *cell) nucleusAt(lobes []lobe, x, y float64) float64 {
	d := math.Inf(1)
	for i, l := range lobes {
		one := math.Sqrt((x-l.x)*(x-l.x)+(y-l.y)*(y-l.y)) - l.r
		if i == 0 {
			d = one
			continue
		}
		d = -smoothMax(-d, -one, s.d.melt)
		p := lobes[i-1]
		bx, by := l.x-p.x, l.y-p.y
		t := clamp(((x-p.x)*bx+(y-p.y)*by)/(bx*bx+by*by+1e-12), 0, 1)
		dx, dy := x-p.x-t*bx, y-p.y-t*by
		d = min(d, math.Sqrt(dx*dx+dy*dy)-0.055)
	}
	return d
}

func (s *cell) stainWhite(lobes, nucleoli []lobe, extent float64) {
	soft := 2.4 / float64(s.c.size) / s.r
	d := s.d
	s.region(s.x, s.y, s.r*1.3, func(i int, u, v float64) {
		a, b := (u*s.cos+v*s.sin)/s.r, (v*s.cos-u*s.sin)/(s.r*s.squeeze)
		rad := math.Sqrt(a*a + b*b)
		edge := 1.0
		if rad > 1e-6 {
			edge += d.wobble * (1.3*noise(s.seed^1, 1.6*a/rad+3, 1.6*b/rad) + 0.5*noise(s.seed^2, 4*a/rad, 4*b/rad))
		}
		cover := 1 - step(edge-soft, edge+soft, rad)
		if cover == 0 {
			return
		}
		grain := noise(s.seed^3, d.grain*u, d.grain*v) + 0.4*noise(s.seed^4, 2*d.grain*u, 2*d.grain*v)
		speck := step(d.grains, d.grains+0.55, grain)
		patch := 1 + 0.16*cloud(s.seed^5, 7*u, 7*v, 2)
		rim := 1 + 0.25*step(edge-0.09, edge-0.02, rad)

		n := s.nucleusAt(lobes, a, b) + 0.03*noise(s.seed^6, 9*a, 9*b)
		inside := 1 - step(-1.2*soft, 1.2*soft, n)
		clump := 1 + d.chromatin*(cloud(s.seed^7, 11*a, 11*b, 3)*1.3+0.25) + 0.10*step(-0.10, 0, n)
		for _, l := range nucleoli {
			q := math.Sqrt((a-l.x)*(a-l.x) + (b-l.y)*(b-l.y))
			clump *= 1 - extent*(1-step(0.7*l.r, 1.1*l.r, q))
		}
		for k, plane := range [3][]float64{s.c.a, s.c.b, s.c.c} {
			plasm := (d.plasm[k]*patch*rim + d.granule[k]*speck) * (1 - 0.75*inside)
			plane[i] += cover * s.strength * (plasm + inside*d.nucleus[k]*clump)
		}
	})
}

func (s *cell) stainBlob(b blob) {
	soft := 1.8 / float64(s.c.size)
	s.region(b.x, b.y, b.r*1.8+b.long+soft, func(i int, u, v float64) {
		var dist float64
		if b.long > 0 {
			p, q := u*b.cos+v*b.sin, v*b.cos-u*b.sin
			p = max(0, math.Abs(p)-b.long)
			dist = math.Sqrt(p*p+q*q) - b.r
		} else {
			dist = math.Sqrt(u*u+v*v) - b.r
			if b.rough > 0 {
				dist += b.rough * b.r * noise(b.seed, 1.6*u/b.r, 1.6*v/b.r)
			}
		}
		cover := 1 - step(-soft, soft, dist)
		if b.hollow {
			cover *= step(-0.62*b.r, -0.3*b.r, dist)
		}
		if b.clear > 0 {
			keep := 1 - b.clear*cover
			rim := 0.10 * cover * step(-0.4*b.r, -0.1*b.r, dist)
			s.c.a[i] = s.c.a[i]*keep + rim
			s.c.b[i] = s.c.b[i]*keep + rim
			s.c.c[i] = s.c.c[i]*keep + 0.5*rim
			return
		}
		s.c.a[i] += cover * b.color[0]
		s.c.b[i] += cover * b.color[1]
		s.c.c[i] += cover * b.color[2]
	})
}

// develop turns densities into the camera's picture.
func (s *cell) develop(dst *imaging.Image) {
	n := s.c.size
	px := 2 / float64(n)
	for y := range n {
		v := (float64(y)+0.5)*px - 1
		for x := range n {
			u := (float64(x)+0.5)*px - 1
			i := y*n + x
			light := 255 * s.light * (1 + s.slopeX*u + s.slopeY*v - 0.025*(u*u+v*v))
			light *= 1 + 0.010*noise(s.seed^8, 6*u, 6*v)
			for k, od := range [3]float64{s.c.a[i], s.c.b[i], s.c.c[i]} {
				dst.Pix[3*i+k] = uint8(clamp(light*s.d.lamp[k]*expNeg(od*s.hue[k]), 0, 255))
			}
		}
	}
	finish(dst, s.focus, s.seed, s.noise)
}
