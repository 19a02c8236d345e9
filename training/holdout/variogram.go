package holdout

import (
	"math"
	"slices"

	"github.com/viterin/vek/vek32"
)

const (
	longestLag = 512  // places apart that are compared
	pairsOfLag = 2000 // compared, at most, for one lag
	leastShots = 24   // in the longest sequence, to see anything
	// Neighbours resemble one another where a frame is nearer to the next one than
	// to three in ten of those far from it or fewer, and that is no chance: four
	// standard deviations.
	nearerThan = 0.3
	noChance   = 4
)

// kinship is the mean number of frames that say as much as one independent one:
// 1 + 2 Σ ρ(lag), with ρ the correlation of frames that are lag places apart,
// 1 − D(lag)/D(∞), and D the median squared distance. The medians and the last
// of the lags for D(∞) leave normals alone that come in a few long runs of
// different kinds, in which any two are as far from one another as neighbours
// are. It is 1 where frames do not resemble their neighbours.
func kinship(seqs [][]int, rows []float32, dim int) float64 {
	longest := 0
	for _, s := range seqs {
		longest = max(longest, len(s))
	}
	if longest < leastShots {
		return 1
	}
	lags := min(max(longest/4, min(longest/2, 32)), longestLag)
	differences := make([]float64, lags+1)
	for lag := 1; lag <= lags; lag++ {
		differences[lag] = medianDifference(seqs, lag, rows, dim)
	}
	far := slices.Clone(differences[(lags+1)/2:])
	slices.Sort(far)
	level := far[len(far)/2]
	if !(level > 0) || !ordered(seqs, (lags+1)/2, lags, rows, dim) {
		return 1
	}
	sum := 1.0
	for _, d := range differences[1:] {
		rho := 1 - d/level
		if rho < 0.05 {
			break
		}
		sum += 2 * rho
	}
	return sum
}

// ordered says whether frames are nearer to the next ones than to those from to
// lags places after them. The share of the latter that are nearer is uniform where
// the order is by chance, whatever the distances are.
func ordered(seqs [][]int, from, lags int, rows []float32, dim int) bool {
	const most = 20_000 // frames
	total := 0
	for _, s := range seqs {
		total += len(s)
	}
	step := max(1, total/most)
	sum, n := 0.0, 0.0
	for _, s := range seqs {
		for i := 0; i+lags < len(s); i += step {
			next, nearer, of := squared(rows, dim, s[i], s[i+1]), 0.0, 0.0
			for lag := from; lag <= lags; lag += max(1, (lags-from)/32) {
				switch d := squared(rows, dim, s[i], s[i+lag]); {
				case d < next:
					nearer++
				case d == next:
					nearer += 0.5
				}
				of++
			}
			sum += nearer / of
			n++
		}
	}
	// A uniform share's standard deviation, doubled in variance since a frame is in
	// the comparisons of two.
	return n > 0 && sum/n <= nearerThan && (0.5-sum/n)*math.Sqrt(n) > noChance*math.Sqrt(2.0/12)
}

// medianDifference is the median squared distance of frames that are lag places apart.
func medianDifference(seqs [][]int, lag int, rows []float32, dim int) float64 {
	all := 0
	for _, s := range seqs {
		all += max(0, len(s)-lag)
	}
	step := max(1, all/pairsOfLag)
	var d []float64
	k := 0
	for _, s := range seqs {
		for i := lag; i < len(s); i++ {
			if k++; k%step == 0 {
				d = append(d, squared(rows, dim, s[i], s[i-lag]))
			}
		}
	}
	if len(d) == 0 {
		return math.NaN()
	}
	slices.Sort(d)
	return d[len(d)/2]
}

func squared(rows []float32, dim, i, j int) float64 {
	d := float64(vek32.Distance(rows[i*dim:(i+1)*dim], rows[j*dim:(j+1)*dim]))
	return d * d
}

// clustering is how many frames in a row, in the mean, are as one when the highest
// scores are compared. Scores of neighbours resemble one another less than the
// frames do, since noise and place in the frame count in them, so that a
// threshold may rest on more than the frames' worth. It is the mean, for the
// upper quarter and the upper tenth of scores, of 1 + 2 Σ of the autocorrelation
// of being among them. A frame's score is that against all frames but the guard
// places before and after it. rise is by how much, in the mean, scores are higher
// than with these: what a threshold from frames that are held out at random would
// be too low by.
func clustering(seqs [][]int, rows []float32, dim, k, guard int) (each, rise float64) {
	const work = 2e7 // pairs
	n := len(rows) / dim
	every := max(1, int(math.Ceil(float64(n)*float64(n)/work)))
	var scores [][]float64
	logs, count := 0.0, 0.0
	for _, s := range seqs {
		// One stretch of each sequence: neighbours must stay neighbours.
		var of []float64
		for at := range max(1, len(s)/every) {
			with, without := score(seqs, s, at, rows, dim, k, 0), score(seqs, s, at, rows, dim, k, guard)
			of = append(of, without)
			if with > 0 {
				logs, count = logs+math.Log(without/with), count+1
			}
		}
		scores = append(scores, of)
	}
	all := slices.Concat(scores...)
	slices.Sort(all)
	sum := 0.0
	for _, q := range []float64{0.75, 0.9} {
		sum += runs(scores, all[min(int(q*float64(len(all))), len(all)-1)])
	}
	if rise = math.Inf(1); count > 0 { // else equal frames are side by side
		rise = math.Exp(logs / count)
	}
	return max(1, sum/2), rise
}

// score is the sum of squared distances of the frame at a place of a sequence to
// its k nearest among the others but guard places before and after it.
func score(seqs [][]int, own []int, at int, rows []float32, dim, k, guard int) float64 {
	nearest := make([]float64, 0, k+1)
	offer := func(j int) {
		d := squared(rows, dim, own[at], j)
		if len(nearest) == k && d >= nearest[k-1] {
			return
		}
		i, _ := slices.BinarySearch(nearest, d)
		nearest = slices.Insert(nearest, i, d)
		nearest = nearest[:min(len(nearest), k)]
	}
	for _, s := range seqs {
		if &s[0] != &own[0] {
			for _, j := range s {
				offer(j)
			}
			continue
		}
		for i, j := range s {
			if i < at-guard || i > at+guard {
				offer(j)
			}
		}
	}
	sum := 0.0
	for _, d := range nearest {
		sum += d
	}
	return sum
}

// runs is 1 + 2 Σ of the autocorrelation of being above the level.
func runs(scores [][]float64, level float64) float64 {
	above, n, longest := 0.0, 0.0, 0
	for _, s := range scores {
		for _, v := range s {
			if v > level {
				above++
			}
			n++
		}
		longest = max(longest, len(s))
	}
	mean := above / n
	variance := mean * (1 - mean)
	if variance == 0 {
		return 1
	}
	sum := 1.0
	for lag := 1; lag < longest/2; lag++ {
		products, pairs := 0.0, 0.0
		for _, s := range scores {
			for i := lag; i < len(s); i++ {
				a, b := -mean, -mean
				if s[i] > level {
					a++
				}
				if s[i-lag] > level {
					b++
				}
				products += a * b
				pairs++
			}
		}
		rho := products / pairs / variance
		if rho <= 0 {
			break
		}
		sum += 2 * rho
	}
	return sum
}
