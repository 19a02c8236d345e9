package training

import (
	"math"
	"slices"

	"github.com/nearmiss/nearmiss/inference"
	"github.com/nearmiss/nearmiss/inference/heatmap"
	"github.com/nearmiss/nearmiss/inference/release"
)

const (
	// leastSpreads is how many scores say at least how far normals spread.
	leastSpreads = 4
	// leastSpread keeps a part or group whose few scores happen to agree from ruling
	// alone.
	leastSpread, leastGroupSpread = 0.02, 0.01
	// placeQuantile of the normals' distances at a place stands for the place.
	placeQuantile = 0.9
)

// partScale is what normals that are not in the bank score in a part: the median, and
// a weight inverse to the spread of the logarithm, 1 by fewer than least of them.
type partScale struct{ scale, weight float64 }

func partScaleOf(scores []float64, least int) partScale {
	m := partScale{scale: 1, weight: 1}
	if s := median(scores); s > 0 && !math.IsInf(s, 0) {
		m.scale = s
	}
	var logs []float64
	for _, s := range scores {
		if s > 0 { // 0: a copy of a normal, which says nothing of the spread
			logs = append(logs, math.Log(s))
		}
	}
	if len(logs) < least {
		return m
	}
	mean, sum := 0.0, 0.0
	for _, v := range logs {
		mean += v / float64(len(logs))
	}
	for _, v := range logs {
		sum += (v - mean) * (v - mean)
	}
	m.weight = 1 / max(leastSpread, math.Sqrt(sum/float64(len(logs)-1)))
	return m
}

// centerAndSpread are the median and the standard deviation, 1 of fewer than least.
func centerAndSpread(all []float64, least int) (center, spread float64) {
	var values []float64
	mean := 0.0
	for _, v := range all {
		if !math.IsInf(v, 0) && !math.IsNaN(v) { // −Inf: a copy of a normal
			values = append(values, v)
			mean += v
		}
	}
	if len(values) == 0 {
		return 0, 1
	}
	if len(values) < least {
		return median(values), 1
	}
	mean /= float64(len(values))
	for _, v := range values {
		spread += (v - mean) * (v - mean)
	}
	return median(values), max(leastGroupSpread, math.Sqrt(spread/float64(len(values)-1)))
}

// places are what normals show at each place of a grid: a high quantile of their
// distances, averaged over the neighbours of the place. nil of no grids.
func places(grids []heatmap.Grid) []float32 {
	if len(grids) == 0 {
		return nil
	}
	w, h := grids[0].Width, grids[0].Height
	high := make([]float64, w*h)
	all := make([]float64, len(grids))
	for at := range high {
		for i, g := range grids {
			all[i] = float64(g.Values[at])
		}
		slices.Sort(all)
		high[at] = all[min(int(placeQuantile*float64(len(all))), len(all)-1)]
	}
	least := slices.Max(high) * 1e-3 // a place that never changes
	if !(least > 0) || math.IsInf(least, 0) {
		return nil
	}
	out := make([]float32, w*h)
	for y := range h {
		for x := range w {
			sum, count := 0.0, 0.0
			for v := max(0, y-1); v <= min(h-1, y+1); v++ {
				for u := max(0, x-1); u <= min(w-1, x+1); u++ {
					sum, count = sum+high[v*w+u], count+1
				}
			}
			out[y*w+x] = float32(max(sum/count, least))
		}
	}
	return out
}

// statistics are the measures of grids, each of which is divided by the places.
func statistics(grids []heatmap.Grid, places []float32, measures []release.Measure) [][]float64 {
	out := make([][]float64, len(measures))
	for _, g := range grids {
		values := overPlaces(g.Values, places)
		for k, m := range measures {
			out[k] = append(out[k], inference.PatchStatistic(values, m.Statistic))
		}
	}
	return out
}

// mapWeight makes what several parts add to maps comparable: the inverse of how far
// the strangest 1 % of the normals' patches are above the median one.
func mapWeight(grids []heatmap.Grid, a release.Part, layers int) float64 {
	var all []float64
	for _, g := range grids {
		g.Values = overPlaces(g.Values, a.Places)
		if a.MapExcess {
			g = g.Excess()
		}
		for _, v := range g.Values {
			all = append(all, float64(v))
		}
	}
	if len(all) == 0 {
		return 1 / float64(layers)
	}
	slices.Sort(all)
	middle, high := all[len(all)/2], all[(len(all)-1)*99/100]
	for _, unit := range []float64{high - middle, middle} { // the median where none stands out
		if unit > 0 && !math.IsInf(unit, 0) {
			return 1 / (unit * float64(layers))
		}
	}
	return 1 / float64(layers)
}
