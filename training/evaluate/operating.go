package evaluate

import (
	"math"
)

// Confusion is what a threshold makes of scored images: those above it are called
// anomalous.
type Confusion struct {
	Threshold      float64 `json:"threshold"`
	TruePositives  int     `json:"true_positives"`
	FalsePositives int     `json:"false_positives"`
	TrueNegatives  int     `json:"true_negatives"`
	FalseNegatives int     `json:"false_negatives"`
	// Precision is the share of those called anomalous that are, 1 where none is;
	// Recall the share of the anomalies that are called so; F1 their harmonic mean.
	Precision float64 `json:"precision"`
	Recall    float64 `json:"recall"`
	F1        float64 `json:"f1"`
}

func confusion(threshold float64, tp, fp, anomalies, normals int) Confusion {
	c := Confusion{
		Threshold: threshold, TruePositives: tp, FalsePositives: fp, TrueNegatives: normals - fp, FalseNegatives: anomalies - tp, Precision: 1,
	}
	if tp+fp > 0 {
		c.Precision = float64(tp) / float64(tp+fp)
	}
	if anomalies > 0 {
		c.Recall = float64(tp) / float64(anomalies)
	}
	if tp > 0 {
		c.F1 = 2 * c.Precision * c.Recall / (c.Precision + c.Recall)
	}
	return c
}

// PrecisionRecall returns the curve's points, one for each different score, from
// the fewest called anomalous to all. A point's threshold is the next lower score,
// so that what is above it is called anomalous; the last one's is just below all. It is nil
// where AUROC is NaN.
func PrecisionRecall(normal, anomalous []float64) []Confusion {
	var out []Confusion
	all := steps(normal, anomalous)
	for i, s := range all {
		next := math.Nextafter(s.score, math.Inf(-1)) // nothing is left: all are above it
		if i+1 < len(all) {
			next = all[i+1].score
		}
		out = append(out, confusion(next, s.tp, s.fp, len(anomalous), len(normal)))
	}
	return out
}

// BestF1 is the point with the largest F1, of several the one that calls fewest
// anomalous: what a threshold could reach that is chosen with the labels known. Of
// no scores it is zero.
func BestF1(normal, anomalous []float64) Confusion {
	var best Confusion
	for _, c := range PrecisionRecall(normal, anomalous) {
		if c.F1 > best.F1 {
			best = c
		}
	}
	return best
}
