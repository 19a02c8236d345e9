package corrupt

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Kind is a way to spoil an image.
type Kind string

// The kinds. Those with a donor take material from another image.
const (
	CutPaste Kind = "cutpaste" // a turned piece of the donor, with a soft edge (Li et al. 2021)
	Scar     Kind = "scar"     // a long thin piece of the donor
	Mix      Kind = "mix"      // the donor shines through smooth large regions
	Warp     Kind = "warp"     // the whole image is bent smoothly (elastic deformation)
	Swirl    Kind = "swirl"    // a disc is twisted
	Bulge    Kind = "bulge"    // a disc is drawn together or blown up
	Blur     Kind = "blur"     // a region loses its detail
	Shade    Kind = "shade"    // a region has another brightness and tint
	Spots    Kind = "spots"    // small dark or bright spots
	Grain    Kind = "grain"    // a region is noisy
	Erase    Kind = "erase"    // a region is filled with the colour around it
	Tint     Kind = "tint"     // everything has another tint
	Zoom     Kind = "zoom"     // everything is larger or smaller
	Fade     Kind = "fade"     // everything has more or less contrast
)

// Kinds lists all kinds.
var Kinds = []Kind{CutPaste, Scar, Mix, Warp, Swirl, Bulge, Blur, Shade, Spots, Grain, Erase, Tint, Zoom, Fade}

// Family is what several kinds have in common. Whoever has learnt one kind knows
// something of its kin.
type Family string

const (
	Pieces     Family = "pieces"     // material from elsewhere
	Shape      Family = "shape"      // things are bent
	Appearance Family = "appearance" // a region looks different
	Global     Family = "global"     // the whole picture does
)

// Family of a kind.
func (k Kind) Family() Family {
	switch k {
	case CutPaste, Scar, Mix:
		return Pieces
	case Warp, Swirl, Bulge:
		return Shape
	case Tint, Zoom, Fade:
		return Global
	}
	return Appearance
}

// Valid reports whether k is one of Kinds.
func (k Kind) Valid() bool { return slices.Contains(Kinds, k) }

// Apply returns a spoilt copy of img. The strength, above 0 and at most 1, sets
// size and contrast: at 0.2 one must look closely, at 1 it is plain. The donor's
// material is resized to img where the sizes differ; img may be its own donor. A
// defect is put where there is something to be seen, so a picture of one colour
// may come back as it was.
func Apply(k Kind, img, donor *imaging.Image, strength float64, seed uint64) (*imaging.Image, error) {
	if !k.Valid() {
		return nil, fmt.Errorf("corrupt an image: unknown kind %q, take one of %v", k, Kinds)
	}
	if !img.Valid() || !donor.Valid() {
		return nil, fmt.Errorf("corrupt an image: its sizes do not fit its pixels")
	}
	if !(strength > 0 && strength <= 1) {
		return nil, fmt.Errorf("corrupt an image: strength %v is not in (0, 1]", strength)
	}
	if donor.Width != img.Width || donor.Height != img.Height {
		donor = imaging.Resize(donor, img.Width, img.Height, imaging.Bilinear)
	}
	d := &defect{
		img: img, donor: donor, strength: strength,
		side: float64(min(img.Width, img.Height)), r: rand.New(rand.NewPCG(seed, 0x636f7272757074)),
	}
	switch k {
	case CutPaste:
		return d.paste(0.5, 1), nil
	case Scar:
		return d.paste(0.08, 3), nil
	case Mix:
		return d.mix(), nil
	case Warp:
		return d.warp(), nil
	case Swirl:
		return d.disc(func(u float64) (turn, zoom float64) { return 2.2 * strength * (1 - u) * (1 - u), 1 }), nil
	case Bulge:
		grow := 1 + 0.9*strength
		if d.r.IntN(2) == 0 {
			grow = 1 / grow
		}
		return d.disc(func(u float64) (turn, zoom float64) { return 0, 1 + (grow-1)*(1-u)*(1-u)*(1+2*u) }), nil
	case Blur:
		return d.blend(d.region(0.35), d.blurred(d.side*(0.01+0.05*strength))), nil
	case Shade:
		return d.shade(), nil
	case Spots:
		return d.spots(), nil
	case Grain:
		return d.grain(), nil
	case Tint:
		return d.tint(), nil
	case Zoom:
		return d.zoom(), nil
	case Fade:
		return d.fade(), nil
	default:
		return d.erase(), nil
	}
}

// defect is one in the making.
type defect struct {
	img, donor *imaging.Image
	strength   float64
	side       float64 // the shorter one, pixels
	r          *rand.Rand
}

func (d *defect) between(lo, hi float64) float64 { return lo + (hi-lo)*d.r.Float64() }

// scaled is a fraction of the side that grows with the strength from half of
// full to full.
func (d *defect) scaled(full float64) float64 {
	return d.side * full * (0.5 + 0.5*d.strength) * d.between(0.7, 1)
}

// place draws a point where there is contrast: the best of a few.
func (d *defect) place(radius float64) (x, y float64) {
	w, h := float64(d.img.Width), float64(d.img.Height)
	best := -1.0
	for range 5 {
		cx, cy := d.between(0.1, 0.9)*w, d.between(0.1, 0.9)*h
		if c := d.contrast(cx, cy, radius); c > best {
			best, x, y = c, cx, cy
		}
	}
	return x, y
}

// contrast is the variance of the brightness on a coarse grid around a point.
func (d *defect) contrast(cx, cy, radius float64) float64 {
	var sum, squares, n float64
	for i := -3; i <= 3; i++ {
		for j := -3; j <= 3; j++ {
			x, y := int(cx+radius*float64(i)/3), int(cy+radius*float64(j)/3)
			if x < 0 || y < 0 || x >= d.img.Width || y >= d.img.Height {
				continue
			}
			r, g, b := d.img.RGB(x, y)
			v := float64(r) + float64(g) + float64(b)
			sum, squares, n = sum+v, squares+v*v, n+1
		}
	}
	if n == 0 {
		return 0
	}
	return squares/n - (sum/n)*(sum/n)
}

// smoothstep falls from 1 at 0 to 0 at 1.
func smoothstep(u float64) float64 {
	u = min(max(u, 0), 1)
	return 1 - u*u*(3-2*u)
}

// weights is one number in 0..1 for each pixel.
type weights []float64

// region is a soft-edged blob: an ellipse with a wavy rim, about size of the
// side across.
func (d *defect) region(size float64) weights {
	a := d.scaled(size) / 2
	b := a * d.between(0.5, 1)
	cx, cy := d.place(a)
	turn := d.between(0, math.Pi)
	sin, cos := math.Sincos(turn)
	var amp, phase [3]float64
	for i := range amp {
		amp[i], phase[i] = d.between(0, 0.2)/float64(i+1), d.between(0, 2*math.Pi)
	}
	out := make(weights, d.img.Width*d.img.Height)
	for y := range d.img.Height {
		for x := range d.img.Width {
			dx, dy := float64(x)-cx, float64(y)-cy
			u, v := (dx*cos+dy*sin)/a, (dy*cos-dx*sin)/b
			rho := math.Hypot(u, v)
			if rho > 2 {
				continue
			}
			angle := math.Atan2(v, u)
			rim := 1.0
			for i := range amp {
				rim += amp[i] * math.Sin(float64(i+2)*angle+phase[i])
			}
			out[y*d.img.Width+x] = smoothstep((rho/rim - 0.7) / 0.6)
		}
	}
	return out
}

// blend puts other over the image where w says.
func (d *defect) blend(w weights, other *imaging.Image) *imaging.Image {
	out := d.img.Clone()
	for i, a := range w {
		if a == 0 {
			continue
		}
		for c := range 3 {
			v := float64(d.img.Pix[3*i+c])
			out.Pix[3*i+c] = clamp(v + a*(float64(other.Pix[3*i+c])-v))
		}
	}
	return out
}

func clamp(v float64) uint8 { return uint8(min(max(math.Round(v), 0), 255)) }

// sample reads between pixels, mirrored at the rim.
func sample(m *imaging.Image, x, y float64) (out [3]float64) {
	x, y = mirrored(x, m.Width), mirrored(y, m.Height)
	x0, y0 := int(x), int(y)
	x1, y1 := min(x0+1, m.Width-1), min(y0+1, m.Height-1)
	fx, fy := x-float64(x0), y-float64(y0)
	for c := range 3 {
		at := func(x, y int) float64 { return float64(m.Pix[3*(y*m.Width+x)+c]) }
		top := at(x0, y0) + fx*(at(x1, y0)-at(x0, y0))
		low := at(x0, y1) + fx*(at(x1, y1)-at(x0, y1))
		out[c] = top + fy*(low-top)
	}
	return out
}

// mirrored folds a coordinate into 0..n−1.
func mirrored(x float64, n int) float64 {
	if n == 1 {
		return 0
	}
	period := 2 * float64(n-1)
	x = math.Mod(math.Abs(x), period)
	if x > float64(n-1) {
		x = period - x
	}
	return x
}

// remap takes each pixel from where from says; ok false leaves it.
func (d *defect) remap(from func(x, y int) (sx, sy float64, ok bool)) *imaging.Image {
	out := d.img.Clone()
	for y := range d.img.Height {
		for x := range d.img.Width {
			sx, sy, ok := from(x, y)
			if !ok {
				continue
			}
			v := sample(d.img, sx, sy)
			for c := range 3 {
				out.Pix[3*(y*d.img.Width+x)+c] = clamp(v[c])
			}
		}
	}
	return out
}

// paste turns a piece of the donor, size of the side wide and ratio times as
// long, and lays it elsewhere.
func (d *defect) paste(size, ratio float64) *imaging.Image {
	w := d.scaled(size)
	if ratio == 1 {
		ratio = d.between(0.6, 1.6)
	}
	a, b := w*ratio/2, w/2
	feather := max(1, 0.15*b)
	cx, cy := d.place(max(a, b) / 2)
	sx, sy := d.between(0.15, 0.85)*float64(d.img.Width), d.between(0.15, 0.85)*float64(d.img.Height)
	lie, turn := d.between(0, math.Pi), d.between(-0.8, 0.8)
	sin, cos := math.Sincos(lie)
	tsin, tcos := math.Sincos(turn)
	out := d.img.Clone()
	for y := range d.img.Height {
		for x := range d.img.Width {
			dx, dy := float64(x)-cx, float64(y)-cy
			u, v := math.Abs(dx*cos+dy*sin), math.Abs(dy*cos-dx*sin)
			alpha := smoothstep((u-a)/feather+0.5) * smoothstep((v-b)/feather+0.5)
			if alpha == 0 {
				continue
			}
			from := sample(d.donor, sx+dx*tcos-dy*tsin, sy+dx*tsin+dy*tcos)
			i := 3 * (y*d.img.Width + x)
			for c := range 3 {
				old := float64(d.img.Pix[i+c])
				out.Pix[i+c] = clamp(old + alpha*(from[c]-old))
			}
		}
	}
	return out
}

// mix lets the donor through where a smooth field is high.
func (d *defect) mix() *imaging.Image {
	f := d.field(d.between(3, 6))
	cut := 1.4 * (1 - d.strength) // less of the donor where it is weak
	w := make(weights, len(f))
	for i, v := range f {
		w[i] = 1 / (1 + math.Exp(-5*(v-cut)))
	}
	return d.blend(w, d.donor)
}

// warp bends everything by two smooth fields.
func (d *defect) warp() *imaging.Image {
	waves := d.between(3, 7)
	amp := d.side * (0.008 + 0.04*d.strength)
	fx, fy := d.field(waves), d.field(waves)
	return d.remap(func(x, y int) (float64, float64, bool) {
		i := y*d.img.Width + x
		return float64(x) + amp*fx[i], float64(y) + amp*fy[i], true
	})
}

// field is smooth noise of mean 0 and standard deviation 1 with about waves
// waves along the side: a sum of plane waves with random directions.
func (d *defect) field(waves float64) []float64 {
	const n = 12
	var kx, ky, phase [n]float64
	for i := range n {
		angle := d.between(0, 2*math.Pi)
		k := math.Pi * waves * math.Sqrt(d.between(0.05, 1)) / d.side
		kx[i], ky[i], phase[i] = k*math.Cos(angle), k*math.Sin(angle), d.between(0, 2*math.Pi)
	}
	out := make([]float64, d.img.Width*d.img.Height)
	var sum, squares float64
	for y := range d.img.Height {
		for x := range d.img.Width {
			v := 0.0
			for i := range n {
				v += math.Sin(kx[i]*float64(x) + ky[i]*float64(y) + phase[i])
			}
			out[y*d.img.Width+x] = v
			sum, squares = sum+v, squares+v*v
		}
	}
	mean := sum / float64(len(out))
	std := math.Sqrt(max(squares/float64(len(out))-mean*mean, 1e-12))
	for i := range out {
		out[i] = (out[i] - mean) / std
	}
	return out
}

// disc moves what is in a disc; f gives turn and zoom at u, 0 in the middle to
// 1 at the rim.
func (d *defect) disc(f func(u float64) (turn, zoom float64)) *imaging.Image {
	radius := d.scaled(0.35)
	cx, cy := d.place(radius)
	if d.r.IntN(2) == 0 {
		g := f
		f = func(u float64) (float64, float64) { t, z := g(u); return -t, z }
	}
	return d.remap(func(x, y int) (float64, float64, bool) {
		dx, dy := float64(x)-cx, float64(y)-cy
		u := math.Hypot(dx, dy) / radius
		if u >= 1 {
			return 0, 0, false
		}
		turn, zoom := f(u)
		sin, cos := math.Sincos(turn)
		return cx + (dx*cos-dy*sin)/zoom, cy + (dx*sin+dy*cos)/zoom, true
	})
}

// blurred is the whole image after three box filters of about this radius.
func (d *defect) blurred(radius float64) *imaging.Image {
	m := d.img.Clone()
	k := max(1, int(math.Round(radius)))
	for range 3 {
		m = box(m, k, 3, 3*m.Width, m.Width, m.Height)
		m = box(m, k, 3*m.Width, 3, m.Height, m.Width)
	}
	return m
}

// box averages 2k+1 pixels along one direction: n of them step bytes apart, in
// rows that lie row bytes apart. The rim counts for what lies beyond.
func box(m *imaging.Image, k, step, row, n, rows int) *imaging.Image {
	out := imaging.New(m.Width, m.Height)
	for j := range rows {
		for c := range 3 {
			at := func(i int) int { return int(m.Pix[j*row+min(max(i, 0), n-1)*step+c]) }
			sum := 0
			for i := -k; i <= k; i++ {
				sum += at(i)
			}
			for i := range n {
				out.Pix[j*row+i*step+c] = uint8((sum + k) / (2*k + 1))
				sum += at(i+k+1) - at(i-k)
			}
		}
	}
	return out
}

// shade changes brightness and tint.
func (d *defect) shade() *imaging.Image {
	gain := 1 + d.sign()*(0.08+0.4*d.strength)
	var tint [3]float64
	for c := range tint {
		tint[c] = gain + d.between(-0.12, 0.12)*d.strength
	}
	other := d.img.Clone()
	for i := range other.Pix {
		other.Pix[i] = clamp(float64(d.img.Pix[i]) * tint[i%3])
	}
	return d.blend(d.region(0.4), other)
}

func (d *defect) sign() float64 {
	if d.r.IntN(2) == 0 {
		return -1
	}
	return 1
}

// spots are a few discs of one colour.
func (d *defect) spots() *imaging.Image {
	out := d.img
	level := 128 + d.sign()*d.between(70, 127)
	for range 1 + d.r.IntN(3) {
		radius := max(1, d.side*d.between(0.01, 0.02+0.03*d.strength))
		cx, cy := d.place(2 * radius)
		w := make(weights, out.Width*out.Height)
		x0, y0, k := int(cx), int(cy), int(radius)+2
		for y := max(0, y0-k); y <= min(out.Height-1, y0+k); y++ {
			for x := max(0, x0-k); x <= min(out.Width-1, x0+k); x++ {
				rho := math.Hypot(float64(x)-cx, float64(y)-cy)
				w[y*out.Width+x] = (0.3 + 0.7*d.strength) * smoothstep((rho-radius+0.5)/1.5)
			}
		}
		full := imaging.New(out.Width, out.Height)
		for i := range full.Pix {
			full.Pix[i] = uint8(level)
		}
		next := *d
		next.img = out
		out = next.blend(w, full)
	}
	return out
}

// grain adds noise.
func (d *defect) grain() *imaging.Image {
	other := d.img.Clone()
	sigma := 6 + 40*d.strength
	for i := 0; i < len(other.Pix); i += 3 {
		n := sigma * d.r.NormFloat64()
		for c := range 3 {
			other.Pix[i+c] = clamp(float64(d.img.Pix[i+c]) + n + 0.3*sigma*d.r.NormFloat64())
		}
	}
	return d.blend(d.region(0.4), other)
}

// tint scales the channels, keeping the brightness about as it is.
func (d *defect) tint() *imaging.Image {
	var gain [3]float64
	sum := 0.0
	for c := range gain {
		gain[c] = d.sign() * d.between(0.5, 1)
		sum += gain[c] / 3
	}
	out := d.img.Clone()
	for i := range out.Pix {
		c := i % 3
		out.Pix[i] = clamp(float64(d.img.Pix[i]) * (1 + 0.25*d.strength*(gain[c]-sum/2)))
	}
	return out
}

// zoom scales everything about the middle; what is beyond the rim is mirrored.
func (d *defect) zoom() *imaging.Image {
	by := 1 + (0.08+0.35*d.strength)*d.between(0.7, 1)
	if d.r.IntN(2) == 0 {
		by = 1 / by
	}
	cx, cy := float64(d.img.Width-1)/2, float64(d.img.Height-1)/2
	return d.remap(func(x, y int) (float64, float64, bool) {
		return cx + (float64(x)-cx)*by, cy + (float64(y)-cy)*by, true
	})
}

// fade moves everything towards or away from the mean colour.
func (d *defect) fade() *imaging.Image {
	var mean [3]float64
	for i, v := range d.img.Pix {
		mean[i%3] += 3 * float64(v) / float64(len(d.img.Pix))
	}
	by := 1 + d.sign()*(0.08+0.4*d.strength)*d.between(0.7, 1)
	out := d.img.Clone()
	for i, v := range d.img.Pix {
		out.Pix[i] = clamp(mean[i%3] + by*(float64(v)-mean[i%3]))
	}
	return out
}

// erase fills a region with the mean colour of its rim.
func (d *defect) erase() *imaging.Image {
	w := d.region(0.25)
	var sum [3]float64
	total := 0.0
	for i, a := range w {
		edge := a * (1 - a) // highest on the soft rim
		total += edge
		for c := range 3 {
			sum[c] += edge * float64(d.img.Pix[3*i+c])
		}
	}
	full := d.img.Clone()
	if total > 0 {
		for i := range full.Pix {
			full.Pix[i] = clamp(sum[i%3] / total)
		}
	}
	return d.blend(w, full)
}
