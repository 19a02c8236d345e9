package sde

import (
	"math"
	"slices"
	"testing"
)

// A network that hits its target exactly gives the score of x_t given x_0,
// −(x_t − scale·x_0)/std²: the wrapping of the network and the loss agree.
func TestTheTargetIsTheConditionalScore(t *testing.T) {
	each(t, func(t *testing.T, s SDE) {
		lo, hi := s.Range()
		clean := make([]float32, 12)
		for i := range clean {
			clean[i] = float32(lo + (hi-lo)*float64(i)/11)
		}
		x, target := make([]float32, 12), make([]float32, 12)
		for _, u := range []float64{0.02, 0.3, 0.6, 0.9} {
			tm := timeAt(s, u)
			label := noised(s, tm, x, target, clean, newRand(1, 2, 3))
			scale, std := s.Marginal(tm)
			c := conditionAt(s, tm)
			if float64(label) != float64(float32(c.label)) {
				t.Errorf("t=%.3g: label %g in training, %g in sampling", tm, label, c.label)
			}
			r := newRand(1, 2, 3)
			for i := range clean {
				xt := scale*float64(clean[i]) + std*r.NormFloat64()
				if in := c.in*xt + c.shift; math.Abs(in-float64(x[i])) > 1e-5*(1+math.Abs(in)) {
					t.Errorf("t=%.3g: network sees %g, want %g", tm, x[i], in)
				}
				got := c.score*float64(target[i]) + c.linear*xt
				want := -(xt - scale*float64(clean[i])) / (std * std)
				if math.Abs(got-want) > 1e-3*(1+math.Abs(want)) {
					t.Errorf("t=%.3g: score %g, want %g", tm, got, want)
				}
			}
		}
	})
}

func TestTrainingTimesCoverTheirDistribution(t *testing.T) {
	each(t, func(t *testing.T, s SDE) {
		in := inputs{make([]float32, 64), make([]float32, 64), make([]float32, 64)}
		var all []float64
		for i := range 20 {
			in.draw(s, make([]float32, 64), newRand(4, 4, uint64(i)))
			for _, l := range in.label {
				all = append(all, float64(l))
			}
		}
		slices.Sort(all)
		for _, q := range []float64{0.1, 0.5, 0.9} {
			got := all[int(q*float64(len(all)))]
			want := conditionAt(s, timeAt(s, q)).label
			spread := all[len(all)-1] - all[0]
			if math.Abs(got-want) > 0.03*spread {
				t.Errorf("quantile %.1f of the labels: %g, want %g", q, got, want)
			}
		}
	})
	edm := testSDE(t, "edm")
	for u, z := range map[float64]float64{0.5: 0, 0.841344746: 1, 0.022750132: -2} {
		if got, want := math.Log(timeAt(edm, u)), -1.2+1.2*z; math.Abs(got-want) > 1e-6 {
			t.Errorf("edm: ln σ at quantile %g is %g, want %g", u, got, want)
		}
	}
}

func TestLossScales(t *testing.T) {
	for name, want := range map[string]float64{"vp": 1, "subvp": 1, "ve": 1536, "edm": 1} {
		if got := lossScale(testSDE(t, name), 3072); got != want {
			t.Errorf("%s: %g, want %g", name, got, want)
		}
	}
}
