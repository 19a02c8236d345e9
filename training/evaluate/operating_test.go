package evaluate

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// counted is what counting gives. It needs no order; NaN is above every threshold.
func counted(normal, anomalous []float64, threshold float64) Confusion {
	above := func(scores []float64) (n int) {
		for _, s := range scores {
			if !(s <= threshold) {
				n++
			}
		}
		return n
	}
	fp, tp := above(normal), above(anomalous)
	return confusion(threshold, tp, fp, len(anomalous), len(normal))
}

func TestConfusionAndBestF1(t *testing.T) {
	normal, anomalous := []float64{1, 2, 3, 4}, []float64{3, 5, 6}
	c := counted(normal, anomalous, 3)
	want := Confusion{Threshold: 3, TruePositives: 2, FalsePositives: 1, TrueNegatives: 3, FalseNegatives: 1, Precision: 2.0 / 3, Recall: 2.0 / 3, F1: 2.0 / 3}
	if c != want {
		t.Errorf("%+v", c)
	}
	best := BestF1(normal, anomalous)
	if best.Threshold != 4 || best.TruePositives != 2 || best.FalsePositives != 0 || best.F1 != 0.8 {
		t.Errorf("%+v", best)
	}
	if c := counted(nil, []float64{math.NaN()}, 1e300); c.TruePositives != 1 {
		t.Errorf("NaN passes as normal: %+v", c)
	}
	if c := BestF1(nil, nil); c.F1 != 0 {
		t.Errorf("%+v", c)
	}
}

// Every point of the curve is what counting at its threshold gives, and none is
// better than the best.
func TestPrecisionRecallIsWhatCountingGives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scores := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) float64 { return float64(rapid.IntRange(0, 8).Draw(t, "score")) }), 1, 30)
		normal, anomalous := scores.Draw(t, "normal"), scores.Draw(t, "anomalous")
		best := BestF1(normal, anomalous)
		last := 0
		for _, c := range PrecisionRecall(normal, anomalous) {
			if got := counted(normal, anomalous, c.Threshold); got != c {
				t.Fatalf("%+v, counted %+v", c, got)
			}
			if called := c.TruePositives + c.FalsePositives; called <= last {
				t.Fatalf("%d after %d are called anomalous", called, last)
			} else {
				last = called
			}
			if c.F1 > best.F1 {
				t.Fatalf("F1 %g is above the best, %g", c.F1, best.F1)
			}
		}
		if last != len(normal)+len(anomalous) {
			t.Fatalf("the curve ends at %d of %d", last, len(normal)+len(anomalous))
		}
	})
}
