package sde

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

// Images are the normal images, read when they are needed.
type Images interface {
	Len() int
	// Image returns image i; the caller must not change it.
	Image(i int) (*imaging.Image, error)
}

// Pictures are [Images] in memory.
type Pictures []*imaging.Image

func (p Pictures) Len() int                            { return len(p) }
func (p Pictures) Image(i int) (*imaging.Image, error) { return p[i], nil }

// Set holds images at the network's size, in C, H, W order, a byte a value.
type Set struct {
	Channels, Size int
	pixels         []uint8
	n              int
}

// newSet reads all images, keeps the square in the middle of each and resizes it
// to size×size pixels. Grey (channels 1) is the mean of
// red, green and blue.
func newSet(images Images, size, channels int) (*Set, error) {
	s := &Set{Channels: channels, Size: size, n: images.Len()}
	if s.n == 0 {
		return nil, errors.New("prepare the normal images: there are none")
	}
	if channels != 1 && channels != 3 {
		return nil, fmt.Errorf("prepare the normal images: %d channels, want 1 (grey) or 3 (RGB)", channels)
	}
	s.pixels = make([]uint8, 0, s.n*s.dim())
	for i := range s.n {
		im, err := images.Image(i)
		if err != nil {
			return nil, fmt.Errorf("prepare normal image %d: %w", i, err)
		}
		s.pixels = s.add(s.pixels, square(im, size))
	}
	return s, nil
}

// square is the middle of an image at size×size pixels.
func square(im *imaging.Image, size int) *imaging.Image {
	x0, y0, side := middle(im)
	return imaging.Resize(im.Crop(x0, y0, side, side), size, size, imaging.Bicubic)
}

// middle is the largest square in the middle of an image.
func middle(im *imaging.Image) (x0, y0, side int) {
	side = min(im.Width, im.Height)
	return (im.Width - side) / 2, (im.Height - side) / 2, side
}

func (s *Set) add(to []uint8, im *imaging.Image) []uint8 {
	for c := range s.Channels {
		for i := range s.Size * s.Size {
			p := im.Pix[3*i : 3*i+3]
			v := p[c]
			if s.Channels == 1 {
				v = uint8((int(p[0]) + int(p[1]) + int(p[2]) + 1) / 3)
			}
			to = append(to, v)
		}
	}
	return to
}

func (s *Set) dim() int { return s.Channels * s.Size * s.Size }

// at returns image i as the network sees it.
func (s *Set) at(i int) *imaging.Image {
	return toPicture(s.pixels[i*s.dim():(i+1)*s.dim()], s.Channels, s.Size)
}

// put writes image i into dst in the SDE's range, turned as one of the eight
// symmetries of the square.
func (s *Set) put(dst []float32, i int, lo, hi float64, turn symmetry) {
	src := s.pixels[i*s.dim() : (i+1)*s.dim()]
	gain := float32((hi - lo) / 255)
	n := s.Size
	for c := range s.Channels {
		plane, to := src[c*n*n:(c+1)*n*n], dst[c*n*n:(c+1)*n*n]
		for y := range n {
			for x := range n {
				sx, sy := x, y
				if turn&transpose != 0 {
					sx, sy = sy, sx
				}
				if turn&mirror != 0 {
					sx = n - 1 - sx
				}
				if turn&upend != 0 {
					sy = n - 1 - sy
				}
				to[y*n+x] = float32(lo) + gain*float32(plane[sy*n+sx])
			}
		}
	}
}

// symmetry is a set of reflections; together they make all eight symmetries.
type symmetry uint8

const (
	mirror symmetry = 1 << iota
	upend
	transpose
)

// Augment names the random symmetries of training images.
type Augment string

const (
	// NoAugment takes images as they are.
	NoAugment Augment = "none"
	// Flip mirrors every other image, as the paper does.
	Flip Augment = "flip"
	// Dihedral also turns images by quarters: for what has no up, such as cells
	// under a microscope, and worth having with few images.
	Dihedral Augment = "dihedral"
)

// Augments are the names that [TrainOptions.Augment] takes.
var Augments = []Augment{NoAugment, Flip, Dihedral}

func (a Augment) draw(r *rand.Rand) symmetry {
	switch a {
	case Flip:
		return symmetry(r.IntN(2))
	case Dihedral:
		return symmetry(r.IntN(8))
	}
	return 0
}

// all are the symmetries that training may show.
func (a Augment) all() []symmetry {
	switch a {
	case Flip:
		return []symmetry{0, mirror}
	case Dihedral:
		return []symmetry{0, 1, 2, 3, 4, 5, 6, 7}
	}
	return []symmetry{0}
}

// quantise maps values of an SDE's range to bytes. Published samplers truncate;
// rounding keeps the mean.
func quantise(x []float32, lo, hi float64) []uint8 {
	out := make([]uint8, len(x))
	for i, v := range x {
		out[i] = uint8(math.Round(255 * min(max((float64(v)-lo)/(hi-lo), 0), 1)))
	}
	return out
}

func toPicture(chw []uint8, channels, size int) *imaging.Image {
	im := imaging.New(size, size)
	for i := range size * size {
		for c := range 3 {
			im.Pix[3*i+c] = chw[min(c, channels-1)*size*size+i]
		}
	}
	return im
}

// addDetail gives a fake the high frequencies of the normal that it was made
// from: at the normal's own size, full + enlarged(fake − low), where low is the
// normal as the network saw it. What the fake did not change stays as sharp as
// the normal, so that a classifier cannot tell fakes by their blur.
func addDetail(full, low, fake *imaging.Image) *imaging.Image {
	x0, y0, side := middle(full)
	scale := float64(side) / float64(low.Width)
	out := full.Clone()
	tx := make([]cubic, side)
	for i := range tx {
		tx[i] = cubicAt((float64(i)+0.5)/scale-0.5, low.Width)
	}
	diff := make([]float64, len(low.Pix))
	for i := range diff {
		diff[i] = float64(fake.Pix[i]) - float64(low.Pix[i])
	}
	rows := make([]float64, low.Height*side*3) // enlarged horizontally
	for y := range low.Height {
		for x := range side {
			for c := range 3 {
				v := 0.0
				for k, j := range tx[x].at {
					v += tx[x].weight[k] * diff[(y*low.Width+j)*3+c]
				}
				rows[(y*side+x)*3+c] = v
			}
		}
	}
	for y := range side {
		for x := range side {
			at := ((y0+y)*full.Width + x0 + x) * 3
			for c := range 3 {
				v := float64(full.Pix[at+c])
				for k, j := range tx[y].at {
					v += tx[y].weight[k] * rows[(j*side+x)*3+c]
				}
				out.Pix[at+c] = uint8(math.Round(min(max(v, 0), 255)))
			}
		}
	}
	return out
}

// cubic is one position of Keys' cubic interpolation (a = −0.5): differences are
// signed, which the byte resampler of package imaging does not take.
type cubic struct {
	at     [4]int
	weight [4]float64
}

func cubicAt(x float64, n int) cubic {
	base := math.Floor(x)
	f := x - base
	var c cubic
	for k := range 4 {
		d := math.Abs(f - float64(k-1))
		switch {
		case d < 1:
			c.weight[k] = (1.5*d-2.5)*d*d + 1
		case d < 2:
			c.weight[k] = ((-0.5*d+2.5)*d-4)*d + 2
		}
		c.at[k] = min(max(int(base)+k-1, 0), n-1)
	}
	return c
}
