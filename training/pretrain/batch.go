package pretrain

import (
	"context"
	"math"
	"math/rand/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
	"github.com/nearmiss/nearmiss/training/corrupt"
	"github.com/nearmiss/nearmiss/training/optim"
)

// Names of a batch's parts.
const (
	inputImage  = "image"  // uint8 [N, S, S, 3]
	inputTarget = "target" // float [N, N]: a row sums to 1 for a normal image, to 0 for another
)

// feeder makes batches out of the pool.
type feeder struct {
	c    Config
	pool pool
}

// Fill implements optim.Source. A batch has, for each of its designs, the normal
// images and behind them the marred ones.
func (f *feeder) Fill(_ context.Context, step int, b optim.Batch) error {
	r := rand.New(rand.NewPCG(f.c.Seed, uint64(step)^0x62617463680000))
	images := b.Uint8s(inputImage)
	f.c.pair(b.Float32s(inputTarget))
	size := f.c.Spec.Size
	each := 3 * size * size
	at := 0
	appearances := make([]appearance, f.c.Appearances)
	for i := range appearances {
		appearances[i] = newAppearance(r)
	}
	for nth, i := range distinct(r, len(f.pool), f.c.BatchDesigns) {
		d, style := f.pool[i], appearances[nth%len(appearances)]
		for _, j := range distinct(r, len(d.normal), f.c.BatchNormals) {
			style.take(images[at*each:(at+1)*each], size, d.normal[j], r)
			at++
		}
		for range f.c.BatchMarred {
			dst := images[at*each : (at+1)*each]
			at++
			if r.Float64() >= f.c.Corrupt {
				style.take(dst, size, d.marred[r.IntN(len(d.marred))], r)
				continue
			}
			style.take(dst, size, d.normal[r.IntN(len(d.normal))], r)
			if err := f.spoil(dst, size, d, style, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// pair fills the target [N, N]: each normal image belongs to the other normal
// images of its design.
func (c Config) pair(target []float32) {
	clear(target)
	n, each := c.batch(), c.BatchNormals+c.BatchMarred
	for i := range n {
		first := i - i%each
		for j := first; j < first+c.BatchNormals; j++ {
			if i%each < c.BatchNormals && i != j {
				target[i*n+j] = 1 / float32(c.BatchNormals-1)
			}
		}
	}
}

// spoil applies a local corruption, whose material may come from another image
// of the design.
func (f *feeder) spoil(dst []uint8, size int, d design, how appearance, r *rand.Rand) error {
	img := &imaging.Image{Width: size, Height: size, Pix: dst}
	donor := imaging.New(size, size)
	how.take(donor.Pix, size, d.normal[r.IntN(len(d.normal))], r)
	out, err := corrupt.Apply(localKinds[r.IntN(len(localKinds))], img, donor, 0.3+0.7*r.Float64(), r.Uint64())
	if err != nil {
		return err
	}
	copy(dst, out.Pix)
	return nil
}

// localKinds leave most of a picture as it is.
var localKinds = func() (out []corrupt.Kind) {
	for _, k := range corrupt.Kinds {
		if k.Family() != corrupt.Global {
			out = append(out, k)
		}
	}
	return out
}()

// distinct draws k different numbers below n; where n is too small, some come
// again.
func distinct(r *rand.Rand, n, k int) []int {
	out := r.Perm(n)
	for len(out) < k {
		out = append(out, r.IntN(n))
	}
	return out[:k]
}

// appearance is what all images of a design have in common in one batch: section,
// mirroring, turn and colours.
type appearance struct {
	side   float64       // of the section, in pixels of the pool
	cx, cy float64       // its middle
	mirror float64       // ±1
	turn   int           // quarter turns
	mix    [3][3]float64 // of the channels
	curve  [3][256]uint8 // of each mixed channel
	jitter float64       // how much the images of the design differ, 0 … 1
	noise  float64       // greatest standard deviation, levels
}

func newAppearance(r *rand.Rand) appearance {
	between := func(lo, hi float64) float64 { return lo + (hi-lo)*r.Float64() }
	l := appearance{side: between(0.72, 1) * poolSize, mirror: 1, turn: r.IntN(4), jitter: r.Float64(), noise: between(0, 4)}
	room := (poolSize - l.side) / 2
	l.cx, l.cy = poolSize/2+between(-room, room), poolSize/2+between(-room, room)
	if r.IntN(2) == 0 {
		l.mirror = -1
	}
	order := []int{0, 1, 2}
	if r.Float64() < 0.4 {
		order = r.Perm(3)
	}
	grey, leak := 0.0, between(0, 0.25)
	if r.Float64() < 0.2 {
		grey = 1
	}
	for c := range 3 {
		for k := range 3 {
			v := leak / 2
			if k == order[c] {
				v = 1 - leak
			}
			l.mix[c][k] = (1-grey)*v + grey/3
		}
	}
	invert := r.Float64() < 0.15
	common := math.Exp(between(-0.5, 0.5))
	lo, hi := between(0, 50), between(205, 255)
	for c := range l.curve {
		gamma := common
		a, b := lo, hi
		if grey == 0 {
			gamma *= math.Exp(between(-0.3, 0.3))
			a, b = a+between(-15, 15), b+between(-25, 15)
		}
		for i := range l.curve[c] {
			v := float64(i) / 255
			if invert {
				v = 1 - v
			}
			l.curve[c][i] = level(a + (b-a)*math.Pow(v, gamma))
		}
	}
	return l
}

func level(v float64) uint8 { return uint8(min(max(v+0.5, 0), 255)) }

// take draws one image, size × size, from a picture, with what only this image
// has: a little shift, turn, zoom, light and noise.
func (l appearance) take(dst []uint8, size int, p picture, r *rand.Rand) {
	around := func(s float64) float64 { return s * l.jitter * (r.Float64() + r.Float64() - 1) }
	side := l.side * (1 + around(0.04))
	sin, cos := math.Sincos(float64(l.turn)*math.Pi/2 + around(0.08))
	cx, cy := l.cx+around(0.03)*poolSize, l.cy+around(0.03)*poolSize
	if p.box != nil { // a defect has to lie within
		cx = within(cx, float64(p.box.X)+float64(p.box.W)/2, 0.42*side)
		cy = within(cy, float64(p.box.Y)+float64(p.box.H)/2, 0.42*side)
	}
	gain, lift := 1+around(0.12), around(16)
	sigma := l.noise * r.Float64()
	step := side / float64(size)
	ux, uy := step*cos*l.mirror, step*sin*l.mirror // one pixel to the right
	vx, vy := -step*sin, step*cos                  // one pixel down
	half := float64(size-1) / 2
	seed := r.Uint64()
	i := 0
	for y := range size {
		for x := range size {
			dx, dy := float64(x)-half, float64(y)-half
			v := bilinear(p.pix, cx-0.5+dx*ux+dy*vx, cy-0.5+dx*uy+dy*vy)
			seed = seed*6364136223846793005 + 1442695040888963407
			for c := range 3 {
				m := l.mix[c][0]*v[0] + l.mix[c][1]*v[1] + l.mix[c][2]*v[2]
				g := float64(int(seed>>(16*c)&0xff)+int(seed>>(16*c+8)&0xff)-255) / 104.5 // a triangle of standard deviation 1
				dst[i+c] = level(gain*float64(l.curve[c][uint8(m+0.5)]) + lift + sigma*g)
			}
			i += 3
		}
	}
}

// within moves a by as much as is needed to be at most reach from b.
func within(a, b, reach float64) float64 { return min(max(a, b-reach), b+reach) }

// bilinear reads between the pixels of a pool picture, repeated at the rim.
func bilinear(pix []uint8, x, y float64) (out [3]float64) {
	x, y = min(max(x, 0), poolSize-1), min(max(y, 0), poolSize-1)
	x0, y0 := int(x), int(y)
	fx, fy := x-float64(x0), y-float64(y0)
	right, down := 3, 3*poolSize
	if x0 == poolSize-1 {
		right = 0
	}
	if y0 == poolSize-1 {
		down = 0
	}
	at := 3 * (y0*poolSize + x0)
	for c := range 3 {
		a, b := float64(pix[at+c]), float64(pix[at+right+c])
		top := a + fx*(b-a)
		a, b = float64(pix[at+down+c]), float64(pix[at+down+right+c])
		out[c] = top + fy*(a+fx*(b-a)-top)
	}
	return out
}
