package synthetic

import (
	"math"
)

// partNames are the families of machined parts.
var partNames = []string{"flange", "hex nut", "milled plate", "gear", "bearing", "cap screw"}

var partDefects = []string{
	"scratch", "dent", "crack", "chip", "burr", "stain", "fibre", "hole", "tint",
}

// shape is a part's geometry in its own coordinates, in which it reaches about
// from −1 to 1.
type shape interface {
	// at returns the signed distance to the outline (negative inside) and the
	// height of the surface against the part's top. holes holds how far each
	// hole is open, 1 being normal.
	at(x, y float64, holes []float64) (dist, height float64)
}

// brush is the direction of the tool marks.
type brush int

const (
	turned  brush = iota // concentric
	milled               // parallel
	blasted              // none
)

// design is what all parts of a class have in common.
type design struct {
	shape  shape
	holes  int
	metal  rgb
	gloss  float64 // strength of the highlight
	grit   float64 // depth of the tool marks
	pitch  float64 // tool marks per unit
	brush  brush
	bevel  float64
	free   bool // may lie at any angle
	radius float64
}

var metals = []struct {
	color rgb
	gloss float64
}{
	{rgb{0.60, 0.61, 0.63}, 0.9}, // steel
	{rgb{0.72, 0.73, 0.75}, 0.7}, // aluminium
	{rgb{0.80, 0.64, 0.34}, 0.8}, // brass
	{rgb{0.30, 0.30, 0.32}, 0.5}, // black oxide
	{rgb{0.74, 0.48, 0.36}, 0.7}, // copper
	{rgb{0.66, 0.65, 0.58}, 0.5}, // yellow chromate
}

// newDesign makes the design of a class: the basic ones are fixed, further ones
// are drawn from their number.
func newDesign(class int) design {
	family, style := class%len(partNames), class/len(partNames)
	r := newRNG(0xde5196, uint64(class))
	vary := func(normal, lo, hi float64) float64 {
		v := r.between(lo, hi)
		if style == 0 {
			return normal
		}
		return v
	}
	count := func(normal, lo, hi int) int {
		v := lo + r.intn(hi-lo+1)
		if style == 0 {
			return normal
		}
		return v
	}
	d := design{grit: vary(1, 0.6, 1.5), pitch: vary(60, 35, 90), bevel: vary(0.045, 0.025, 0.08), free: true, radius: vary(1, 0.85, 1.05)}
	metal := count([]int{0, 5, 1, 0, 0, 3}[family], 0, len(metals)-1)
	d.metal, d.gloss = metals[metal].color, metals[metal].gloss
	switch family {
	case 0:
		n := count(6, 3, 8)
		d.shape = flange{bore: vary(0.30, 0.18, 0.4), holes: n, circle: vary(0.72, 0.66, 0.76), hole: vary(0.095, 0.06, 0.12), hub: vary(0.47, 0.44, 0.52), raised: vary(0.05, -0.05, 0.07)}
		d.holes, d.brush = n+1, turned
	case 1:
		d.shape = hexNut{bore: vary(0.48, 0.36, 0.56), chamfer: vary(0.88, 0.82, 0.94), threads: float64(count(3, 2, 5))}
		d.holes, d.brush = 1, blasted
		d.grit *= 0.7
	case 2:
		d.shape = plate{w: vary(0.98, 0.85, 1.02), h: vary(0.66, 0.5, 0.85), corner: vary(0.14, 0.03, 0.25), hole: vary(0.10, 0.06, 0.13), slot: vary(0.30, 0.12, 0.42), pocket: count(1, 0, 1) == 1}
		d.holes, d.brush, d.free = 5, milled, false
	case 3:
		n := count(22, 12, 32)
		d.shape = gear{teeth: float64(n), root: vary(0.82, 0.76, 0.86), bore: vary(0.22, 0.15, 0.28), spokes: count(5, 3, 7), window: vary(0.135, 0.09, 0.15), web: vary(0.52, 0.48, 0.55)}
		d.holes, d.brush = 1+d.shape.(gear).spokes, turned
		d.bevel *= 0.6
	case 4:
		n := count(11, 8, 15)
		d.shape = bearing{balls: n, bore: vary(0.40, 0.32, 0.46), inner: vary(0.54, 0.52, 0.56), outer: vary(0.82, 0.80, 0.84)}
		d.holes, d.brush = 1+n, turned
		d.grit *= 0.6
	default:
		d.shape = capScrew{socket: vary(0.40, 0.3, 0.5), sides: float64(count(6, 4, 6)), dome: vary(0.10, 0.04, 0.16), knurl: float64(count(48, 30, 64)), washer: vary(0.78, 0.72, 0.84)}
		d.holes, d.brush = 1, turned
		d.grit *= 0.8
	}
	return d
}

func smoothMax(a, b, k float64) float64 {
	h := clamp(0.5+0.5*(a-b)/k, 0, 1)
	return lerp(b, a, h) + k*h*(1-h)
}

type flange struct {
	bore, circle, hole, hub, raised float64
	holes                           int
}

func (f flange) at(x, y float64, holes []float64) (float64, float64) {
	rad := math.Sqrt(x*x + y*y)
	d := max(rad-1, f.bore*holes[0]-rad)
	h := f.raised * (1 - step(f.hub, f.hub+0.03, rad))
	h -= 0.02 * step(0.93, 0.95, rad) // a rim turned a little lower
	if math.Abs(rad-f.circle) < 3*f.hole {
		sector := 2 * math.Pi / float64(f.holes)
		a := math.Atan2(y, x)
		k := math.Round(a / sector)
		s, c := math.Sincos(k * sector)
		hx, hy := x-f.circle*c, y-f.circle*s
		dist := math.Sqrt(hx*hx + hy*hy)
		open := holes[1+(int(k)+f.holes)%f.holes]
		d = max(d, f.hole*open-dist)
		h -= 0.04 * (1 - step(1.55*f.hole, 1.65*f.hole, dist)) * step(0, 0.6, open)
	}
	return d, h
}

type hexNut struct{ bore, chamfer, threads float64 }

func hexagon(x, y, apothem float64) float64 {
	x, y = math.Abs(x), math.Abs(y)
	return max(x*0.8660254037844386+y*0.5, y) - apothem
}

func (n hexNut) at(x, y float64, holes []float64) (float64, float64) {
	rad := math.Sqrt(x*x + y*y)
	bore := n.bore * holes[0]
	d := max(smoothMax(hexagon(x, y, 0.86), rad-0.98, 0.02), bore-rad)
	h := -0.5 * max(0, rad-n.chamfer)
	// the mouth of the thread: a countersink with a few turns seen from above
	if depth := bore + 0.12 - rad; depth > 0 {
		h -= 0.9*depth + 0.012*math.Sin(depth/0.12*n.threads*2*math.Pi)
	}
	return d, h
}

type plate struct {
	w, h, corner, hole, slot float64
	pocket                   bool
}

func roundRect(x, y, w, h, r float64) float64 {
	qx, qy := math.Abs(x)-w+r, math.Abs(y)-h+r
	ox, oy := max(qx, 0), max(qy, 0)
	return math.Sqrt(ox*ox+oy*oy) + min(max(qx, qy), 0) - r
}

func (p plate) at(x, y float64, holes []float64) (float64, float64) {
	d := roundRect(x, y, p.w, p.h, p.corner)
	h := 0.0
	inset := 2.1 * p.hole
	i := 0
	if x > 0 {
		i++
	}
	if y > 0 {
		i += 2
	}
	hx, hy := math.Abs(x)-p.w+inset, math.Abs(y)-p.h+inset
	dist := math.Sqrt(hx*hx + hy*hy)
	d = max(d, p.hole*holes[i]-dist)
	h -= 0.05 * (1 - step(1.5*p.hole, 1.6*p.hole, dist)) * step(0, 0.6, holes[i])
	if slot := roundRect(x, y, p.slot*holes[4], 0.11*math.Sqrt(holes[4]), 0.11*math.Sqrt(holes[4])); holes[4] > 0 {
		d = max(d, -slot)
	}
	if p.pocket {
		h -= 0.06 * (1 - step(0, 0.025, roundRect(x, y, p.w-0.42, p.h-0.2, 0.08)))
	}
	return d, h
}

type gear struct {
	teeth, root, bore, window, web float64
	spokes                         int
}

func (g gear) at(x, y float64, holes []float64) (float64, float64) {
	rad := math.Sqrt(x*x + y*y)
	d := rad - 1
	a := math.Atan2(y, x)
	if rad > g.root-0.1 {
		u := a * g.teeth / (2 * math.Pi)
		u = math.Abs(u-math.Floor(u)-0.5) * 2 // 0 at a tooth's middle, 1 between two
		half := 0.62 - 0.34*clamp((rad-g.root)/(1-g.root), 0, 1)
		side := (u - half) * math.Pi / g.teeth * rad
		d = max(d, min(side, rad-g.root))
		if side < 0 && rad < g.root {
			d = max(rad-1, -0.2)
		}
	}
	d = max(d, g.bore*holes[0]-rad)
	// the keyway
	d = max(d, -max(math.Abs(x)-0.05, max(-y, y-g.bore-0.07))*step(0, 0.5, holes[0])-1*(1-step(0, 0.5, holes[0])))
	h := -0.06 * step(0.36, 0.38, rad) * (1 - step(0.68, 0.70, rad))
	sector := 2 * math.Pi / float64(g.spokes)
	k := math.Round(a / sector)
	s, c := math.Sincos(k * sector)
	hx, hy := x-g.web*c, y-g.web*s
	dist := math.Sqrt(hx*hx + hy*hy)
	d = max(d, g.window*holes[1+(int(k)+g.spokes)%g.spokes]-dist)
	return d, h
}

type bearing struct {
	balls              int
	bore, inner, outer float64
}

func (b bearing) at(x, y float64, holes []float64) (float64, float64) {
	rad := math.Sqrt(x*x + y*y)
	d := max(rad-1, b.bore*holes[0]-rad)
	h := 0.0
	if rad > b.inner && rad < b.outer {
		h = -0.16 * step(b.inner, b.inner+0.03, rad) * (1 - step(b.outer-0.03, b.outer, rad))
		sector := 2 * math.Pi / float64(b.balls)
		k := math.Round(math.Atan2(y, x) / sector)
		s, c := math.Sincos(k * sector)
		mid := (b.inner + b.outer) / 2
		hx, hy := x-mid*c, y-mid*s
		size := 0.92 * min((b.outer-b.inner)/2, mid*sector/2*0.9)
		open := holes[1+(int(k)+b.balls)%b.balls]
		size *= open
		if dist2 := hx*hx + hy*hy; dist2 < size*size {
			h = max(h, -0.16+0.95*math.Sqrt(size*size-dist2))
		}
	}
	return d, h
}

type capScrew struct{ socket, sides, dome, knurl, washer float64 }

func (s capScrew) at(x, y float64, holes []float64) (float64, float64) {
	rad := math.Sqrt(x*x + y*y)
	d := rad - 1
	h := -0.16 * step(s.washer, s.washer+0.02, rad)
	if rad > s.washer-0.07 && rad < s.washer {
		h += 0.012 * math.Sin(math.Atan2(y, x)*s.knurl)
	}
	if rad < s.washer {
		h -= s.dome * rad * rad
	}
	if rad < 1.2*s.socket {
		a := math.Atan2(y, x)
		sector := 2 * math.Pi / s.sides
		a -= math.Round(a/sector) * sector
		edge := rad*math.Cos(a) - s.socket*0.8*holes[0]
		depth := 0.35 * (1 - step(-0.035, 0, edge)) * step(0, 0.5, holes[0])
		h -= depth
		h -= 0.03 * (1 - step(0.02, 0.05, edge)) * step(0, 0.5, holes[0])
	}
	return d, h
}
