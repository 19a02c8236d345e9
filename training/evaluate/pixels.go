package evaluate

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// PROLimit is the false-positive rate up to which PRO integrates, as MVTec AD's
// evaluation does.
const PROLimit = 0.3

// Pixels gathers score maps and ground truths, for [Pixels.AUROC] and
// [Pixels.PRO]. It keeps 4 bytes for each normal pixel and 8 for each anomalous
// one.
type Pixels struct {
	normal []float32
	marked []markedPixel
	// regions is the number of connected anomalous regions so far, sizes their
	// pixels.
	sizes  []int
	sorted bool
}

type markedPixel struct {
	score  float32
	region int32
}

// Add takes one image: scores and mask hold width × height values row by row, a
// mask value other than 0 marks an anomalous pixel. A nil mask is a normal
// image. Regions are connected over edges and corners.
func (p *Pixels) Add(scores []float32, mask []uint8, width, height int) error {
	n := width * height
	if len(scores) != n || mask != nil && len(mask) != n {
		return fmt.Errorf("score map of %d values and mask of %d do not fit %d×%d pixels", len(scores), len(mask), width, height)
	}
	for i, s := range scores {
		if s != s {
			return fmt.Errorf("score map has NaN at pixel %d,%d", i%width, i/width)
		}
	}
	p.sorted = false
	if mask == nil {
		p.normal = append(p.normal, scores...)
		return nil
	}
	region := regions(mask, width, height)
	first := len(p.sizes)
	for i, s := range scores {
		if mask[i] == 0 {
			p.normal = append(p.normal, s)
			continue
		}
		k := first + int(region[i])
		for len(p.sizes) <= k {
			p.sizes = append(p.sizes, 0)
		}
		p.sizes[k]++
		p.marked = append(p.marked, markedPixel{s, int32(k)})
	}
	return nil
}

// Regions is the number of anomalous regions added so far.
func (p *Pixels) Regions() int { return len(p.sizes) }

var errNoPixels = errors.New("pixel measures need both normal and anomalous pixels")

// AUROC is the area under the pixels' receiver operating characteristic.
func (p *Pixels) AUROC() (float64, error) {
	return p.area(1, func(int) float64 { return 1 / float64(len(p.marked)) })
}

// PRO is the per-region overlap: the share of a region that is found, averaged
// over the regions, as a function of the share of normal pixels that are marked
// in error, integrated from 0 to limit and divided by limit. 1 is perfect.
func (p *Pixels) PRO(limit float64) (float64, error) {
	if !(limit > 0 && limit <= 1) {
		return 0, fmt.Errorf("limit %v of the false-positive rate is not between 0 and 1", limit)
	}
	return p.area(limit, func(region int) float64 { return 1 / float64(p.sizes[region]) / float64(len(p.sizes)) })
}

// area integrates Σ weight over found anomalous pixels against the false-
// positive rate. PRO is nothing but a pixel ROC in which every region weighs
// the same.
func (p *Pixels) area(limit float64, weight func(region int) float64) (float64, error) {
	if len(p.normal) == 0 || len(p.marked) == 0 {
		return 0, errNoPixels
	}
	if !p.sorted {
		slices.Sort(p.normal)
		slices.SortFunc(p.marked, func(a, b markedPixel) int { return cmp.Compare(b.score, a.score) })
		p.sorted = true
	}
	total := float64(len(p.normal))
	var sum, fpr, found float64
	i, j := len(p.normal), 0 // normals from i on and marked before j are above the threshold
	for i > 0 || j < len(p.marked) {
		t := float32(math.Inf(-1))
		if i > 0 {
			t = p.normal[i-1]
		}
		if j < len(p.marked) {
			t = max(t, p.marked[j].score)
		}
		was := found
		for i > 0 && p.normal[i-1] >= t {
			i--
		}
		for j < len(p.marked) && p.marked[j].score >= t {
			found += weight(int(p.marked[j].region))
			j++
		}
		next := (total - float64(i)) / total
		if next >= limit {
			at := found
			if next > fpr {
				at = was + (found-was)*(limit-fpr)/(next-fpr)
			}
			sum += (limit - fpr) * (was + at) / 2
			return sum / limit, nil
		}
		sum += (next - fpr) * (was + found) / 2
		fpr = next
	}
	return sum / limit, nil
}

// regions labels the connected pixels of a mask, 8-connected, from 0 in the
// order of their first pixels; −1 elsewhere.
func regions(mask []uint8, width, height int) []int32 {
	label := make([]int32, len(mask))
	for i := range label {
		label[i] = -1
	}
	next := int32(0)
	var stack []int
	for i, v := range mask {
		if v == 0 || label[i] >= 0 {
			continue
		}
		label[i] = next
		stack = append(stack[:0], i)
		for len(stack) > 0 {
			k := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			x, y := k%width, k/width
			for ny := max(0, y-1); ny <= min(height-1, y+1); ny++ {
				for nx := max(0, x-1); nx <= min(width-1, x+1); nx++ {
					if q := ny*width + nx; mask[q] != 0 && label[q] < 0 {
						label[q] = next
						stack = append(stack, q)
					}
				}
			}
		}
		next++
	}
	return label
}
