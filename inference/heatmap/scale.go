package heatmap

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
)

// decades is the rarity, in decades, whose intensity is one half.
const decades = 3

// alarmed is the share of normal images that may show a region.
const alarmed = 0.05

// Quantile is a point of a [Scale]: the share P of the held-out normals' smoothed
// patch distances is at least Distance.
type Quantile struct {
	P        float64 `json:"p"`        // 0..1
	Distance float64 `json:"distance"` // squared
}

// Scale knows how large patch distances are among normals that are not in the
// bank. It is small, and travels with a release as JSON.
type Scale struct {
	// Images and Patches are how many were held out.
	Images  int `json:"images"`
	Patches int `json:"patches"`
	// Tail has falling P and strictly rising distances.
	Tail []Quantile `json:"tail"`
	// Threshold is the intensity above which a pixel belongs to a region. A share
	// of 0.05 of the held-out normals has a pixel above it.
	Threshold float64 `json:"threshold"`
}

// NewScale learns the scale from the grids of held-out normals.
func NewScale(heldOut []Grid) (*Scale, error) {
	if len(heldOut) == 0 {
		return nil, errors.New("heatmap: a scale needs the patch distances of held-out normals, and there are none")
	}
	s := &Scale{Images: len(heldOut)}
	var all []float32
	peaks := make([]float64, len(heldOut))
	for i, g := range heldOut {
		if err := g.Validate(); err != nil {
			return nil, fmt.Errorf("scale: held-out normal %d: %w", i, err)
		}
		f := smooth(g)
		for _, v := range f.Values {
			if !(v >= 0 && v <= math.MaxFloat32) {
				return nil, fmt.Errorf("scale: held-out normal %d has the patch distance %v", i, v)
			}
			peaks[i] = max(peaks[i], float64(v))
		}
		s.Patches += len(g.Values)
		all = append(all, f.Values...)
	}
	slices.Sort(all)
	// Three patches are the least that a quantile is read from.
	for _, p := range levels(min(1, 3/float64(s.Patches))) {
		at := min(max(int(math.Ceil((1-p)*float64(len(all))))-1, 0), len(all)-1)
		d := float64(all[at])
		if n := len(s.Tail); n > 0 && d <= s.Tail[n-1].Distance {
			s.Tail[n-1].P = p // as many are at least as large
			continue
		}
		s.Tail = append(s.Tail, Quantile{P: p, Distance: d})
	}
	s.Tail[0].P = 1
	slices.Sort(peaks)
	at := min(int(math.Ceil((1-alarmed)*float64(len(peaks)+1)))-1, len(peaks)-1)
	s.Threshold = float64(s.Intensity(float32(peaks[at])))
	return s, nil
}

// levels are 1, 0.9, …, 0.1, 0.05, 0.02, 0.01, 0.005, … down to least.
func levels(least float64) []float64 {
	var out []float64
	for i := 10; i > 1; i-- {
		out = append(out, float64(i)/10)
	}
	for tenth := 0.1; ; tenth /= 10 {
		for _, f := range []float64{1, 0.5, 0.2} {
			if tenth*f < least {
				return out
			}
			out = append(out, tenth*f)
		}
	}
}

// Validate checks what was read from a file.
func (s *Scale) Validate() error {
	if s == nil {
		return nil
	}
	if len(s.Tail) == 0 {
		return errors.New("heatmap: the scale has no quantiles")
	}
	if !(s.Threshold >= 0 && s.Threshold <= 1) {
		return fmt.Errorf("heatmap: the scale's threshold is %v, intensities are between 0 and 1", s.Threshold)
	}
	for i, q := range s.Tail {
		if !(q.P > 0 && q.P <= 1) || !(q.Distance >= 0 && q.Distance <= math.MaxFloat32) {
			return fmt.Errorf("heatmap: the scale has the quantile %v at p = %v", q.Distance, q.P)
		}
		if i > 0 && !(q.P < s.Tail[i-1].P && q.Distance > s.Tail[i-1].Distance) {
			return fmt.Errorf("heatmap: the scale's quantiles are out of order at p = %v", q.P)
		}
	}
	return nil
}

// rarity is −log10 of the share of normal patches that are at least as far.
func (s *Scale) rarity(d float64) float64 {
	t := s.Tail
	last := t[len(t)-1]
	switch {
	case math.IsNaN(d), math.IsInf(d, 1): // what cannot be measured is not normal
		return math.Inf(1)
	case d <= t[0].Distance:
		return -math.Log10(t[0].P)
	case d >= last.Distance:
		return -math.Log10(last.P) + (d-last.Distance)*s.slope()
	}
	i := sort.Search(len(t), func(i int) bool { return t[i].Distance >= d }) // > 0
	a, b := t[i-1], t[i]
	w := (d - a.Distance) / (b.Distance - a.Distance)
	return -(1-w)*math.Log10(a.P) - w*math.Log10(b.P)
}

// slope is how many decades a unit of distance is worth at the end of the table:
// over its last decade, where single quantiles do not decide.
func (s *Scale) slope() float64 {
	t := s.Tail
	last := t[len(t)-1]
	for i := len(t) - 2; i >= 0; i-- {
		if t[i].P >= 10*last.P || i == 0 {
			return math.Log10(t[i].P/last.P) / (last.Distance - t[i].Distance)
		}
	}
	// All distances are equal: one more of the same is a decade.
	return 1 / max(last.Distance, 1e-6)
}

// P is the share of normal patches at least as far as the squared distance d, 0
// to 1; above the table it is extrapolated.
func (s *Scale) P(d float32) float64 { return math.Pow(10, -s.rarity(float64(d))) }

// Intensity maps a squared distance to 0..1, as the package's documentation says.
// It never falls as d rises.
func (s *Scale) Intensity(d float32) float32 {
	l := s.rarity(float64(d))
	if math.IsInf(l, 1) {
		return 1
	}
	return float32(l / (l + decades))
}

// PValue is the share of normal patches that are at least as hot as an intensity.
func PValue(intensity float64) float64 {
	return math.Pow(10, -decades*intensity/(1-intensity))
}
