package synthetic

import (
	"math"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// patternNames are the families of surfaces.
var patternNames = []string{"grain", "cloth", "stripes", "cobbles", "dots", "tokens", "blobs", "marble"}

var patternDefects = []string{
	"blot", "scratch", "missing", "odd", "shift", "patch", "smear", "tear",
}

// ground is the kind of texture that covers the whole picture.
type ground int

const (
	plain   ground = iota
	clouds         // isotropic noise
	fibres         // noise drawn out along one direction
	bands          // parallel, more or less wavy
	weave          // two crossing sets of bands
	cobbles        // cells around scattered points
	veins          // ridges of noise
)

// outline is the shape of a pattern's elements.
type outline int

const (
	disc outline = iota
	ring
	polygon
	lobes
	bar
	outlines
)

// patternDesign is what all pictures of a class have in common.
type patternDesign struct {
	ground   ground
	freq     float64 // features per unit
	stretch  float64 // along the fibres
	octaves  int
	wave     float64 // how wavy bands are
	warp     float64
	angle    float64
	ramp     [3]rgb // colours, from the lowest value of the ground to the highest
	contrast float64
	free     bool // may lie at any angle
	elements elementDesign
}

// elementDesign is what lies on the ground.
type elementDesign struct {
	n         int  // 0: nothing
	grid      bool // in rows
	single    bool // one in the middle
	outline   outline
	corners   float64
	aspect    float64
	size      float64
	core, rim rgb
	speckle   float64 // of the elements' own texture
	bump      float64 // how far they seem to stand out
	soft      float64
}

func newPatternDesign(class int) patternDesign {
	r := newRNG(0x9a77e5, uint64(class))
	base := r.unit()
	color := func() rgb {
		return rgb{
			clamp(base+r.between(-0.4, 0.4), 0.06, 0.95), clamp(base+r.between(-0.4, 0.4), 0.06, 0.95), clamp(base+r.between(-0.4, 0.4), 0.06, 0.95),
		}
	}
	d := patternDesign{
		freq: math.Exp(r.between(1.2, 3.2)), stretch: r.between(3, 12), octaves: 1 + r.intn(4), wave: r.between(0, 0.3), warp: r.unit(),
		angle: r.between(0, math.Pi), contrast: r.between(0.3, 1), free: r.intn(3) == 0,
		elements: elementDesign{
			corners: float64(3 + r.intn(6)), aspect: r.between(0.2, 0.6), speckle: r.between(0, 0.4), bump: r.between(-0.4, 0.4),
			soft: r.between(0.02, 0.15), outline: outline(r.intn(int(outlines))),
		},
	}
	e := &d.elements
	for i := range d.ramp {
		d.ramp[i] = color()
	}
	e.core, e.rim = color(), color()
	second := ground(r.intn(int(veins) + 1))
	switch class % len(patternNames) {
	case 0:
		d.ground = clouds
		if r.intn(2) == 0 {
			d.ground = fibres
		}
	case 1:
		d.ground, d.freq, d.free = weave, math.Exp(r.between(2.2, 3.4)), false
	case 2:
		d.ground, d.free = bands, false
	case 3:
		d.ground, d.freq = cobbles, math.Exp(r.between(1, 2.3))
	case 4:
		d.ground, e.grid, d.free = second, true, false
		e.n = 3 + r.intn(6)
		e.size = r.between(0.25, 0.42) * 2 / float64(e.n)
	case 5:
		d.ground, e.single, e.n, e.size = second, true, 1, r.between(0.35, 0.75)
	case 6:
		d.ground = second
		e.n = 4 + r.intn(20)
		e.size = r.between(0.5, 0.8) / math.Sqrt(float64(e.n))
	default:
		d.ground = veins
	}
	if e.n > 0 {
		d.contrast *= 0.5 // what matters lies on top
	}
	return d
}

// element is one thing on the ground.
type element struct {
	x, y, r, sin, cos float64
	outline           outline
	core, rim         rgb
	seed              uint64
}

// pattern is one picture of a surface.
type pattern struct {
	c         *canvas
	d         patternDesign
	seed      uint64
	sin, cos  float64
	dx, dy    float64
	zoom      float64
	elements  []element
	light     float64
	warmth    float64
	slopeX    float64
	slopeY    float64
	noise     float64
	defocused float64
}

func newPattern(c *canvas, class int, r *rng, variation float64) scene {
	d := newPatternDesign(class)
	p := &pattern{c: c, d: d, seed: r.next()}
	angle := d.angle + r.around(0.03*variation)
	if turn := r.unit() * 2 * math.Pi; d.free {
		angle += turn * min(variation, 1)
	}
	p.sin, p.cos = math.Sincos(angle)
	p.dx, p.dy = r.between(-1, 1), r.between(-1, 1)
	p.zoom = 1 + r.around(0.02*variation)
	p.light = 1 + r.around(0.045*variation)
	p.warmth = r.around(0.015 * variation)
	p.slopeX, p.slopeY = r.around(0.05*variation), r.around(0.05*variation)
	p.noise = 0.8 + 1.2*r.unit()
	p.defocused = 0.08 + 0.06*r.unit()
	p.place(r.fork(), variation)
	return p
}

// place lays the elements out.
func (p *pattern) place(r *rng, variation float64) {
	of := p.d.elements
	add := func(x, y, turn float64) {
		e := element{x: x, y: y, r: of.size * (1 + r.around(0.05*variation)), outline: of.outline, core: of.core, rim: of.rim, seed: r.next()}
		e.sin, e.cos = math.Sincos(turn)
		p.elements = append(p.elements, e)
	}
	turn := func() float64 {
		t := r.unit() * 2 * math.Pi
		if p.d.free {
			return t
		}
		return p.d.angle + r.around(0.06*variation)
	}
	switch {
	case of.n == 0:
	case of.single:
		add(r.around(0.04*variation), r.around(0.04*variation), turn())
	case of.grid:
		pitch := 2 / float64(of.n)
		ox, oy := r.around(0.1*pitch*variation), r.around(0.1*pitch*variation)
		for i := range of.n {
			for j := range of.n {
				add((float64(i)+0.5)*pitch-1+ox+r.around(0.03*pitch*variation), (float64(j)+0.5)*pitch-1+oy+r.around(0.03*pitch*variation), turn())
			}
		}
	default:
		n := max(1, of.n+r.intn(3)-1)
		for range 40 * n {
			if len(p.elements) == n {
				break
			}
			x, y := r.between(-0.95, 0.95), r.between(-0.95, 0.95)
			free := true
			for _, e := range p.elements {
				free = free && (e.x-x)*(e.x-x)+(e.y-y)*(e.y-y) > 3*of.size*of.size
			}
			if free {
				add(x, y, turn())
			}
		}
	}
}

// at is the value of the ground, about 0 to 1, at a place in its own
// coordinates.
func (d patternDesign) at(seed uint64, x, y float64) float64 {
	if d.warp > 0.5 && d.ground != weave {
		k := 0.15 * (d.warp - 0.5)
		x, y = x+k*noise(seed^0x11, 2.3*x, 2.3*y), y+k*noise(seed^0x12, 2.3*x, 2.3*y)
	}
	switch d.ground {
	case clouds:
		return 0.5 + 0.6*cloud(seed, d.freq*x, d.freq*y, d.octaves)
	case fibres:
		return 0.5 + 0.6*cloud(seed, d.freq*x, d.freq*y/d.stretch, d.octaves)
	case bands:
		phase := d.freq*x + 2*d.wave*noise(seed, 2*x, 2*y)
		return 0.5 + 0.42*math.Sin(2*phase) + 0.1*noise(seed^0x21, 30*x, 30*y/d.stretch)
	case weave:
		a, b := math.Sin(2*d.freq*x+d.wave*noise(seed, 3*x, 3*y)), math.Sin(2*d.freq*y+d.wave*noise(seed^0x31, 3*x, 3*y))
		return 0.5 + 0.22*(a+b) + 0.2*a*b + 0.12*noise(seed^0x32, 40*x, 40*y)
	case cobbles:
		f1, f2, id := worley(seed, d.freq*x, d.freq*y)
		return (0.35 + 0.5*id) * step(0.02, 0.02+0.3*(d.warp+0.1), f2-f1)
	case veins:
		v := 1 - math.Abs(cloud(seed, d.freq*0.4*x, d.freq*0.4*y, d.octaves+1))*2.2
		return clamp(v*v*v, 0, 1)*0.8 + 0.2*(0.5+0.5*noise(seed^0x41, 25*x, 25*y))
	}
	return 0.5 + 0.15*noise(seed, 30*x, 30*y)
}

// worley gives the distances to the nearest and the second nearest of scattered
// points, about one in each unit square, and a value 0 to 1 of the nearest.
func worley(seed uint64, x, y float64) (f1, f2, id float64) {
	ix, iy := int64(math.Floor(x)), int64(math.Floor(y))
	f1, f2 = 9, 9
	for j := iy - 1; j <= iy+1; j++ {
		for i := ix - 1; i <= ix+1; i++ {
			dx := float64(i) + 0.5 + 0.45*lattice(seed, i, j) - x
			dy := float64(j) + 0.5 + 0.45*lattice(seed^0x51, i, j) - y
			if q := dx*dx + dy*dy; q < f1 {
				f1, f2, id = q, f1, 0.5+0.5*lattice(seed^0x52, i, j)
			} else if q < f2 {
				f2 = q
			}
		}
	}
	return math.Sqrt(f1), math.Sqrt(f2), id
}

func (d patternDesign) color(t float64) rgb {
	t = clamp(0.5+(t-0.5)*d.contrast, 0, 1)
	if t < 0.5 {
		return mixRGB(d.ramp[0], d.ramp[1], 2*t)
	}
	return mixRGB(d.ramp[1], d.ramp[2], 2*t-1)
}

// shape is the signed distance to the outline at a place relative to the
// element, in units of its radius.
func (e element) shape(d elementDesign, x, y float64) float64 {
	rad := math.Sqrt(x*x + y*y)
	switch e.outline {
	case ring:
		return math.Abs(rad-0.75) - 0.25
	case polygon:
		a := math.Atan2(y, x)
		sector := 2 * math.Pi / d.corners
		return rad*math.Cos(a-sector*math.Round(a/sector)) - 0.85
	case lobes:
		return rad - 0.8*(1+0.22*math.Cos(d.corners*math.Atan2(y, x)))
	case bar:
		return roundRect(x, y, 1, d.aspect, 0.7*d.aspect)
	}
	return rad - 1
}

func (p *pattern) draw(dst *imaging.Image, d *defect) bool {
	n := p.c.size
	px := 2 / float64(n)
	elements := p.elements
	var where func(u, v float64) float64 // of a regional defect, 0 to 1
	other, seed, amount := p.d, p.seed, 0.0
	var sx, sy float64
	var stain rgb
	var line [][2]float64
	var lx, ly, width float64
	if d != nil {
		r := d.r
		amount = d.amount
		region := func(lo, hi float64) {
			size, s := lerp(lo, hi, amount), r.next()
			cx, cy := r.between(-0.75, 0.75), r.between(-0.75, 0.75)
			if p.d.elements.single {
				cx, cy = 0.7*p.d.elements.size*cx, 0.7*p.d.elements.size*cy
			}
			where = func(u, v float64) float64 {
				u, v = (u-cx)/size, (v-cy)/size
				q := math.Sqrt(u*u + v*v)
				if q > 2 {
					return 0
				}
				return 1 - step(0.75, 1.1, q-0.35*cloud(s, 1.4*u, 1.4*v, 3))
			}
		}
		switch d.kind {
		case "blot":
			region(0.06, 0.3)
			stain = rgb{r.between(0.2, 1.7), r.between(0.2, 1.7), r.between(0.2, 1.7)}
		case "scratch", "tear":
			line = curve(r, lerp(0.2, 1.1, amount), 0.3, 0.008)
			a, b := math.Sincos(r.unit() * 2 * math.Pi)
			for i, q := range line {
				line[i] = [2]float64{q[0]*b - q[1]*a, q[0]*a + q[1]*b}
			}
			lx, ly = r.between(-0.6, 0.6), r.between(-0.6, 0.6)
			width = max(lerp(0.008, 0.02, amount), 0.6*px)
			stain = rgb{1.7, 1.7, 1.7}
			if d.kind == "tear" {
				width *= 2
				stain = rgb{0.25, 0.25, 0.25}
			}
		case "missing", "odd":
			if len(elements) == 0 || d.kind == "missing" && !p.d.elements.grid { // nobody can tell
				return false
			}
			i := r.intn(len(elements))
			elements = append([]element(nil), p.elements...)
			if d.kind == "missing" {
				elements = append(elements[:i], elements[i+1:]...)
				break
			}
			e := &elements[i]
			switch r.intn(3) {
			case 0:
				e.r *= 1 + lerp(0.2, 0.7, amount)*float64(2*r.intn(2)-1)
			case 1:
				e.outline = (e.outline + 1 + outline(r.intn(int(outlines)-1))) % outlines
			default:
				for k := range 3 {
					e.core[k] = clamp(e.core[k]+lerp(0.15, 0.6, amount)*float64(2*r.intn(2)-1), 0, 1)
				}
			}
		case "shift":
			if p.d.ground == plain {
				return false
			}
			region(0.12, 0.45)
			sx, sy = r.around(0.35), r.around(0.35)
		case "patch":
			if p.d.ground == plain {
				return false
			}
			region(0.12, 0.45)
			other.freq *= math.Exp(lerp(0.3, 0.9, amount) * float64(2*r.intn(2)-1))
			other.contrast = clamp(other.contrast*r.between(0.5, 1.6), 0.1, 1)
			seed = r.next()
		case "smear":
			region(0.15, 0.5)
		}
	}

	buf := p.c.tint
	for y := range n {
		v := (float64(y)+0.5)*px - 1
		for x := range n {
			u := (float64(x)+0.5)*px - 1
			gx, gy := (u*p.cos+v*p.sin)*p.zoom+p.dx, (v*p.cos-u*p.sin)*p.zoom+p.dy
			w := 0.0
			if where != nil {
				w = where(u, v)
			}
			t := p.d.at(p.seed, gx, gy)
			if w > 0 {
				switch d.kind {
				case "shift":
					t = lerp(t, p.d.at(p.seed, gx+sx, gy+sy), w)
				case "patch":
					t = lerp(t, other.at(seed, gx, gy), w)
				case "smear":
					t = lerp(t, 0.45, w*lerp(0.6, 0.95, amount))
				}
			}
			c := p.d.color(t)
			buf[y*n+x] = c
			if where != nil {
				p.c.a[y*n+x] = w
			}
		}
	}
	for _, e := range elements {
		p.render(e)
	}
	strength := lerp(0.45, 1, amount)
	var at rgb
	for y := range n {
		v := (float64(y)+0.5)*px - 1
		for x := range n {
			u := (float64(x)+0.5)*px - 1
			at = buf[y*n+x]
			switch {
			case d == nil:
			case d.kind == "blot":
				w := p.c.a[y*n+x] * strength
				for k := range 3 {
					at[k] *= 1 + w*(stain[k]-1)
				}
			case line != nil:
				dist, s := along(line, u-lx, v-ly)
				if dist < 2*width {
					taper := math.Sqrt(max(0, 4*s*(1-s)))
					w := (1 - step(0.4*width*taper, 1.3*width*taper+0.3*px, dist)) * strength
					for k := range 3 {
						at[k] *= 1 + w*(stain[k]-1)
					}
				}
			case d.kind == "smear" && len(p.elements) > 0:
				at = mixRGB(at, p.d.color(0.45), 0.5*p.c.a[y*n+x]*strength)
			}
			light := p.light * (1 + p.slopeX*u + p.slopeY*v)
			j := 3 * (y*n + x)
			for k := range 3 {
				dst.Pix[j+k] = uint8(clamp(255*at[k]*light*(1+p.warmth*float64(1-k)), 0, 255))
			}
		}
	}
	finish(dst, p.defocused, p.seed, p.noise)
	return true
}

// render draws an element over the ground.
func (p *pattern) render(e element) {
	n := p.c.size
	px := 2 / float64(n)
	reach := 1.15*e.r + 2*px
	d := p.d.elements
	soft := max(d.soft, 0.8*px/e.r)
	x0, x1 := int((e.x-reach+1)/px), int((e.x+reach+1)/px)
	y0, y1 := int((e.y-reach+1)/px), int((e.y+reach+1)/px)
	for y := max(0, y0); y < min(n, y1+1); y++ {
		for x := max(0, x0); x < min(n, x1+1); x++ {
			u, v := ((float64(x)+0.5)*px-1-e.x)/e.r, ((float64(y)+0.5)*px-1-e.y)/e.r
			dist := e.shape(d, u*e.cos+v*e.sin, v*e.cos-u*e.sin)
			cover := 1 - step(-soft, soft, dist)
			if cover == 0 {
				continue
			}
			c := mixRGB(e.rim, e.core, step(0.05, 0.35, -dist))
			k := 1 + d.speckle*noise(e.seed, 6*u, 6*v) - d.bump*(u+v)*0.5*step(-0.5, 0, dist)
			for i := range c {
				c[i] = clamp(c[i]*k, 0, 1)
			}
			p.c.tint[y*n+x] = mixRGB(p.c.tint[y*n+x], c, cover)
		}
	}
}
