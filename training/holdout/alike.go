package holdout

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

const (
	thumbSide = 32
	// Two thumbnails are of the same picture where at most one value in a hundred differs
	// by more than sameLevels of 255: less than a small part moves by, more than
	// compression and a sensor's noise leave after averaging.
	sameLevels    = 4
	mostDiffering = thumbSide * thumbSide * 3 / 100
)

// Thumb is a small copy of a picture, 32 × 32 × 3 values.
type Thumb []uint8

// ThumbOf makes the thumbnail of a picture, its sides brought to one length.
func ThumbOf(m *imaging.Image) Thumb {
	return imaging.Resize(m, thumbSide, thumbSide, imaging.Bilinear).Pix
}

// same says whether two thumbnails are of one picture.
func (a Thumb) same(b Thumb) bool {
	strange := 0
	for i, v := range a {
		if d := int(v) - int(b[i]); d > sameLevels || d < -sameLevels {
			if strange++; strange > mostDiffering {
				return false
			}
		}
	}
	return true
}

// mean is of all values. Those of equal pictures differ by less than meanTolerance.
func (a Thumb) mean() float64 {
	sum := 0
	for _, v := range a {
		sum += int(v)
	}
	return float64(sum) / float64(len(a))
}

const meanTolerance = sameLevels + 255*float64(mostDiffering)/(thumbSide*thumbSide*3)

// Copies finds the pictures that show the same as one before them, but for
// compression and noise: for each the place of the first such, or -1. Those of a
// first one count; what is the same as a copy only is none.
func Copies(thumbs []Thumb) []int {
	type first struct {
		mean  float64
		place int
	}
	var firsts []first // by mean
	out := make([]int, len(thumbs))
	for i, l := range thumbs {
		out[i] = -1
		mean := l.mean()
		from, _ := slices.BinarySearchFunc(firsts, mean-meanTolerance, func(f first, v float64) int {
			if f.mean < v {
				return -1
			}
			return 1
		})
		at := from
		for ; at < len(firsts) && firsts[at].mean <= mean+meanTolerance; at++ {
			if thumbs[firsts[at].place].same(l) {
				out[i] = firsts[at].place
				break
			}
		}
		if out[i] < 0 {
			at, _ = slices.BinarySearchFunc(firsts, mean, func(f first, v float64) int {
				if f.mean < v {
					return -1
				}
				return 1
			})
			firsts = slices.Insert(firsts, at, first{mean, i})
		}
	}
	return out
}
