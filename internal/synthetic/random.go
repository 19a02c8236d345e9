package synthetic

import "math"

// rng is SplitMix64 (Steele, Lea, Flood 2014). It is our own because images
// must stay the same whatever a library's generator does in its next version.
type rng struct{ state uint64 }

func newRNG(labels ...uint64) *rng {
	s := uint64(0x6a09e667f3bcc909)
	for _, l := range labels {
		s = mix(s + 0x9e3779b97f4a7c15 + mix(l))
	}
	return &rng{s}
}

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (r *rng) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	return mix(r.state)
}

// unit is uniform in [0, 1).
func (r *rng) unit() float64 { return float64(r.next()>>11) / (1 << 53) }

func (r *rng) between(lo, hi float64) float64 { return lo + r.unit()*(hi-lo) }

func (r *rng) intn(n int) int { return int(r.next() % uint64(n)) }

// around is close to normal with mean 0 and standard deviation s; it never
// leaves ± 3.5 s (the sum of four uniform numbers).
func (r *rng) around(s float64) float64 {
	sum := r.unit() + r.unit() + r.unit() + r.unit() - 2
	return s * sum * 1.7320508075688772
}

// fork gives an independent generator, so that what one thing draws does not
// move what the next one draws.
func (r *rng) fork() *rng { return &rng{mix(r.next())} }

// lattice is the noise value of a grid point, in [−1, 1).
func lattice(seed uint64, x, y int64) float64 {
	h := seed + uint64(x)*0x9e3779b97f4a7c15 + uint64(y)*0xc2b2ae3d27d4eb4f
	h = (h ^ h>>29) * 0xbf58476d1ce4e5b9
	h ^= h >> 32
	return float64(int32(uint32(h))) / (1 << 31)
}

// noise is smooth value noise with one lattice point per unit, in [−1, 1].
func noise(seed uint64, x, y float64) float64 {
	fx, fy := math.Floor(x), math.Floor(y)
	ix, iy := int64(fx), int64(fy)
	u, v := x-fx, y-fy
	u, v = u*u*(3-2*u), v*v*(3-2*v)
	a, b := lattice(seed, ix, iy), lattice(seed, ix+1, iy)
	c, d := lattice(seed, ix, iy+1), lattice(seed, ix+1, iy+1)
	top, bottom := a+u*(b-a), c+u*(d-c)
	return top + v*(bottom-top)
}

// noise1 is the same along a line.
func noise1(seed uint64, x float64) float64 {
	fx := math.Floor(x)
	u := x - fx
	u = u * u * (3 - 2*u)
	a, b := lattice(seed, int64(fx), 0), lattice(seed, int64(fx)+1, 0)
	return a + u*(b-a)
}

// cloud sums octaves of noise, each twice as fine and half as strong; it stays
// within about [−1, 1].
func cloud(seed uint64, x, y float64, octaves int) float64 {
	sum, amp := 0.0, 0.55
	for i := range octaves {
		sum += amp * noise(seed+uint64(i)*0x1234567, x, y)
		x, y, amp = 2*x+17.3, 2*y-9.1, amp/2
	}
	return sum
}

// grain is a pixel's sensor noise: three values that are close to normal with
// standard deviation 1.
func grain(seed uint64, pixel int) (a, b, c float64) {
	h := mix(seed + uint64(pixel)*0x9e3779b97f4a7c15)
	g := mix(h)
	sum := func(v uint64) float64 {
		n := int(v&0xff) + int(v>>8&0xff) + int(v>>16&0xff) + int(v>>24&0xff)
		return float64(n-510) / 147.8
	}
	return sum(h), sum(h >> 32), sum(g)
}

// clamp compares by hand: the built-in min and max take care of NaN, slowly.
func clamp(x, lo, hi float64) float64 {
	if x < lo {
		return lo
	}
	if x > hi {
		return hi
	}
	return x
}

// step rises smoothly from 0 at a to 1 at b.
func step(a, b, x float64) float64 {
	t := clamp((x-a)/(b-a), 0, 1)
	return t * t * (3 - 2*t)
}

func lerp(a, b, t float64) float64 { return a + t*(b-a) }

// expTable holds exp(−x) for x = i/256. The table makes every machine compute
// the same, and is faster.
var expTable = func() (t [256*12 + 2]float64) {
	for i := range t {
		t[i] = math.Exp(-float64(i) / 256)
	}
	return t
}()

// expNeg is exp(−x) for x ≥ 0, within 1e-5.
func expNeg(x float64) float64 {
	x *= 256
	if x >= 256*12 {
		return 0
	}
	i := int(x)
	return lerp(expTable[i], expTable[i+1], x-float64(i))
}

type rgb [3]float64

func (c rgb) times(f float64) rgb { return rgb{c[0] * f, c[1] * f, c[2] * f} }

func mixRGB(a, b rgb, t float64) rgb {
	return rgb{lerp(a[0], b[0], t), lerp(a[1], b[1], t), lerp(a[2], b[2], t)}
}
