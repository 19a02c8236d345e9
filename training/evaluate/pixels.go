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

// Pixels gathers score maps and ground truths. It keeps 4 bytes for each normal
// pixel and 8 for each anomalous one.
type Pixels struct {
	normal    []float32
	anomalous []anomalousPixel
	// regions is the number of connected anomalous regions so far, sizes their
	// pixels.
	sizes  []int
	sorted bool
}

type anomalousPixel struct {
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
		p.anomalous = append(p.anomalous, anomalousPixel{s, int32(k)})
	}
	return nil
}

// Regions is the number of anomalous regions added so far.
func (p *Pixels) Regions() int { return len(p.sizes) }

var errNoPixels = errors.New("pixel measures need both normal and anomalous pixels")

// Uncovered is the score of a pixel that a method does not cover: lower than any
// other.
var Uncovered = float32(math.Inf(-1))

// PixelFigures are the pixel measures of one kind of anomaly, or of all. Rates
// are fractions of 1.
type PixelFigures struct {
	AUROC   float64 `json:"auroc"`
	PRO     float64 `json:"pro"`     // up to a false-positive rate of 0.3
	Regions int     `json:"regions"` // of the ground truth
	// Covered is the share of the anomalous pixels that the method covers; the others
	// count as missed in AUROC and PRO. CoveredAUROC and CoveredPRO are those of the
	// covered pixels alone.
	Covered      float64 `json:"seen"`
	CoveredAUROC float64 `json:"seen_auroc"`
	CoveredPRO   float64 `json:"seen_pro"`
}

// measurePixels sums up the pixels of several groups of images together.
func measurePixels(groups ...*Pixels) (f PixelFigures, err error) {
	all := pixelGroups(groups)
	if f.AUROC, err = all.auroc(false); err != nil {
		return f, err
	}
	if f.PRO, err = all.pro(PROLimit, false); err != nil {
		return f, err
	}
	anomalous, covered := 0, 0
	for _, p := range groups {
		f.Regions += len(p.sizes)
		anomalous += len(p.anomalous)
		covered += p.coveredAnomalous()
	}
	f.Covered = float64(covered) / float64(anomalous)
	if covered == 0 {
		return f, nil // nothing of it can be found
	}
	if f.CoveredAUROC, err = all.auroc(true); err != nil {
		return f, err
	}
	f.CoveredPRO, err = all.pro(PROLimit, true)
	return f, err
}

// sort puts normal scores in rising and anomalous ones in falling order.
func (p *Pixels) sort() {
	if !p.sorted {
		slices.Sort(p.normal)
		slices.SortFunc(p.anomalous, func(a, b anomalousPixel) int { return cmp.Compare(b.score, a.score) })
		p.sorted = true
	}
}

// coveredAnomalous is how many of the anomalous pixels are not Uncovered.
func (p *Pixels) coveredAnomalous() int {
	p.sort()
	n, _ := slices.BinarySearchFunc(p.anomalous, Uncovered, func(m anomalousPixel, s float32) int { return cmp.Compare(s, m.score) })
	return n
}

// uncoveredNormal is how many of the normal pixels are Uncovered.
func (p *Pixels) uncoveredNormal() int {
	p.sort()
	n, _ := slices.BinarySearch(p.normal, math.Nextafter32(Uncovered, 0))
	return n
}

// pixelGroups are measured together without being copied into one.
type pixelGroups []*Pixels

// auroc is the area under the pixels' receiver operating characteristic.
func (g pixelGroups) auroc(covered bool) (float64, error) {
	n := 0
	for _, p := range g {
		if covered {
			n += p.coveredAnomalous()
		} else {
			n += len(p.anomalous)
		}
	}
	return g.area(1, covered, func(*Pixels, int32) float64 { return 1 / float64(n) })
}

// pro is the per-region overlap: the share of a region that is found, averaged
// over the regions, as a function of the share of normal pixels that are marked
// in error, integrated from 0 to limit and divided by limit. 1 is perfect.
func (g pixelGroups) pro(limit float64, covered bool) (float64, error) {
	if !(limit > 0 && limit <= 1) {
		return 0, fmt.Errorf("limit %v of the false-positive rate is not between 0 and 1", limit)
	}
	sizes := map[*Pixels][]int{}
	regions := 0
	for _, p := range g {
		sizes[p] = p.sizes
		if covered {
			sizes[p] = make([]int, len(p.sizes))
			for _, m := range p.anomalous[:p.coveredAnomalous()] {
				sizes[p][m.region]++
			}
		}
		for _, n := range sizes[p] {
			if n > 0 {
				regions++
			}
		}
	}
	weights := map[*Pixels][]float64{}
	for p, all := range sizes {
		w := make([]float64, len(all))
		for i, n := range all {
			w[i] = 1 / float64(n) / float64(regions)
		}
		weights[p] = w
	}
	return g.area(limit, covered, func(p *Pixels, region int32) float64 { return weights[p][region] })
}

// area integrates Σ weight over found anomalous pixels against the false-
// positive rate. PRO is nothing but a pixel ROC in which every region has
// the same weight.
func (g pixelGroups) area(limit float64, covered bool, weight func(p *Pixels, region int32) float64) (float64, error) {
	type cursor struct {
		p    *Pixels
		i, j int // normals from i on and anomalous ones before j are above the threshold
		from int // first normal that counts
		to   int // first anomalous one that does not
	}
	cursors := make([]cursor, len(g))
	normals, anomalous := 0, 0
	for k, p := range g {
		p.sort()
		c := cursor{p: p, i: len(p.normal), to: len(p.anomalous)}
		if covered {
			c.from, c.to = p.uncoveredNormal(), p.coveredAnomalous()
		}
		normals += c.i - c.from
		anomalous += c.to
		cursors[k] = c
	}
	if normals == 0 || anomalous == 0 {
		return 0, errNoPixels
	}
	total := float64(normals)
	var sum, fpr, found float64
	alarms := 0
	for {
		t, more := float32(math.Inf(-1)), false
		for k := range cursors {
			c := &cursors[k]
			if c.i > c.from {
				t, more = max(t, c.p.normal[c.i-1]), true
			}
			if c.j < c.to {
				t, more = max(t, c.p.anomalous[c.j].score), true
			}
		}
		if !more {
			return sum / limit, nil
		}
		was := found
		for k := range cursors {
			c := &cursors[k]
			for c.i > c.from && c.p.normal[c.i-1] >= t {
				c.i--
				alarms++
			}
			for c.j < c.to && c.p.anomalous[c.j].score >= t {
				found += weight(c.p, c.p.anomalous[c.j].region)
				c.j++
			}
		}
		next := float64(alarms) / total
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
}

// regions labels the connected pixels of a mask, 8-connected, from 0 in the
// order of their first pixels; −1 elsewhere.
func regions(mask []uint8, width, height int) []int32 {
	label := slices.Repeat([]int32{-1}, len(mask))
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
