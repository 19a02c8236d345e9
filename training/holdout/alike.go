package holdout

import (
	"slices"

	"github.com/nearmiss/nearmiss/inference/imaging"
)

const (
	lookSide = 32
	// Two looks are the same picture where at most one value in a hundred differs
	// by more than lookLevels of 255: less than a small part moves by, more than
	// compression and a sensor's noise leave after averaging.
	lookLevels  = 4
	lookStrange = lookSide * lookSide * 3 / 100
)

// Look is a picture at a glance, 32 × 32 × 3 values.
type Look []uint8

// LookAt makes the look of a picture, its sides brought to one length.
func LookAt(m *imaging.Image) Look {
	return imaging.Resize(m, lookSide, lookSide, imaging.Bilinear).Pix
}

// same says whether two looks are of one picture.
func (a Look) same(b Look) bool {
	strange := 0
	for i, v := range a {
		if d := int(v) - int(b[i]); d > lookLevels || d < -lookLevels {
			if strange++; strange > lookStrange {
				return false
			}
		}
	}
	return true
}

// mean is of all values. Those of equal pictures differ by less than meanApart.
func (a Look) mean() float64 {
	sum := 0
	for _, v := range a {
		sum += int(v)
	}
	return float64(sum) / float64(len(a))
}

const meanApart = lookLevels + 255*float64(lookStrange)/(lookSide*lookSide*3)

// Copies finds the pictures that show the same as one before them, but for
// compression and noise: for each the place of the first such, or -1. Those of a
// first one count; what is the same as a copy only is none.
func Copies(looks []Look) []int {
	type first struct {
		mean  float64
		place int
	}
	var firsts []first // by mean
	out := make([]int, len(looks))
	for i, l := range looks {
		out[i] = -1
		mean := l.mean()
		from, _ := slices.BinarySearchFunc(firsts, mean-meanApart, func(f first, v float64) int {
			if f.mean < v {
				return -1
			}
			return 1
		})
		at := from
		for ; at < len(firsts) && firsts[at].mean <= mean+meanApart; at++ {
			if looks[firsts[at].place].same(l) {
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
