package evaluate

import (
	"math"
	"slices"
)

// AUROC is the area under the receiver operating characteristic: the
// probability that an anomalous image scores higher than a normal one, ties
// counting one half (Mann–Whitney). It is NaN when either side is empty or any
// score is NaN.
func AUROC(normal, anomalous []float64) float64 {
	if len(normal) == 0 || len(anomalous) == 0 || hasNaN(normal) || hasNaN(anomalous) {
		return math.NaN()
	}
	n := slices.Sorted(slices.Values(normal))
	a := slices.Sorted(slices.Values(anomalous))
	// Counts are whole and halves: exact in float64 up to 2⁵² pairs.
	var wins float64
	below, upTo := 0, 0 // normals < s, normals ≤ s
	for _, s := range a {
		for below < len(n) && n[below] < s {
			below++
		}
		upTo = max(upTo, below)
		for upTo < len(n) && n[upTo] <= s {
			upTo++
		}
		wins += float64(below) + float64(upTo-below)/2
	}
	return wins / float64(len(n)) / float64(len(a))
}

func hasNaN(s []float64) bool { return slices.ContainsFunc(s, math.IsNaN) }

// Point is a point of a receiver operating characteristic.
type Point struct {
	FPR       float64 `json:"fpr"` // share of the normals with a score ≥ Threshold
	TPR       float64 `json:"tpr"` // share of the anomalies with a score ≥ Threshold
	Threshold float64 `json:"threshold"`
}

// ROC returns the curve's corners, one for each different score, from (0, 0) to
// (1, 1). The first threshold is +Inf. It is nil where AUROC is NaN.
func ROC(normal, anomalous []float64) []Point {
	var out []Point
	for i, s := range steps(normal, anomalous) {
		if i == 0 {
			out = append(out, Point{Threshold: math.Inf(1)})
		}
		out = append(out, Point{float64(s.fp) / float64(len(normal)), float64(s.tp) / float64(len(anomalous)), s.score})
	}
	return out
}

// step is how many normals (fp) and anomalies (tp) score as much or more.
type step struct {
	score  float64
	fp, tp int
}

// steps are those of the different scores, highest first; none where AUROC is NaN.
func steps(normal, anomalous []float64) (out []step) {
	if math.IsNaN(AUROC(normal, anomalous)) {
		return nil
	}
	n, a := slices.Sorted(slices.Values(normal)), slices.Sorted(slices.Values(anomalous))
	for i, j := len(n), len(a); i > 0 || j > 0; {
		score := math.Inf(-1)
		if i > 0 {
			score = n[i-1]
		}
		if j > 0 {
			score = max(score, a[j-1])
		}
		for i > 0 && n[i-1] == score {
			i--
		}
		for j > 0 && a[j-1] == score {
			j--
		}
		out = append(out, step{score, len(n) - i, len(a) - j})
	}
	return out
}

// AveragePrecision is Σ (Rₙ − Rₙ₋₁)·Pₙ over the different scores from the
// highest: precision weighted by the gain in recall, anomalies being the
// positives. It is NaN where AUROC is.
func AveragePrecision(normal, anomalous []float64) float64 {
	all := steps(normal, anomalous)
	if all == nil {
		return math.NaN()
	}
	sum, before := 0.0, 0
	for _, s := range all {
		sum += float64(s.tp-before) / float64(len(anomalous)) * float64(s.tp) / float64(s.tp+s.fp)
		before = s.tp
	}
	return sum
}

// fprAtTPR is the smallest share of normals that raise a false alarm at a
// threshold that finds at least the share tpr (0 to 1) of the anomalies. It is
// NaN where AUROC is.
func fprAtTPR(normal, anomalous []float64, tpr float64) float64 {
	for _, p := range ROC(normal, anomalous) {
		if p.TPR >= tpr {
			return p.FPR
		}
	}
	return math.NaN()
}

// partialAUROC is the mean share of the anomalies that is found at false-alarm
// rates from 0 to most (0 to 1): the area under the receiver operating
// characteristic up to there, divided by most. Chance gives most/2, and a perfect
// score 1. It is NaN where AUROC is.
func partialAUROC(normal, anomalous []float64, most float64) float64 {
	roc := ROC(normal, anomalous)
	if roc == nil || !(most > 0 && most <= 1) {
		return math.NaN()
	}
	area := 0.0
	for i := 1; i < len(roc); i++ {
		a, b := roc[i-1], roc[i]
		if a.FPR >= most {
			break
		}
		if b.FPR > most { // the corner is cut
			b.TPR = a.TPR + (b.TPR-a.TPR)*(most-a.FPR)/(b.FPR-a.FPR)
			b.FPR = most
		}
		area += (b.FPR - a.FPR) * (a.TPR + b.TPR) / 2
	}
	return area / most
}

// meanStd returns the mean and the sample's standard deviation (n − 1), which
// is 0 for one value.
func meanStd(v []float64) (mean, std float64) {
	for _, x := range v {
		mean += x
	}
	mean /= float64(len(v))
	if len(v) < 2 {
		return mean, 0
	}
	for _, x := range v {
		std += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(std / float64(len(v)-1))
}
