package bank

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Threshold and p-value are one decision, ties included, and both are what
// their definitions say.
func TestThresholdAndPValueAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// few distinct scores, so that ties are common
		score := rapid.OneOf(rapid.Map(rapid.IntRange(0, 6), func(i int) float64 { return float64(i) }), rapid.Float64Range(0, 6))
		heldOut := rapid.SliceOfN(score, 1, 60).Draw(t, "held out")
		n := len(heldOut)
		alpha := rapid.OneOf(
			rapid.Float64Range(1e-4, 0.999),
			// exactly on the steps, where rounding could tear them apart
			rapid.Map(rapid.IntRange(1, n), func(i int) float64 { return float64(i) / float64(n+1) }),
			rapid.Map(rapid.IntRange(1, 99), func(i int) float64 { return float64(i) / 100 }),
		).Draw(t, "alpha")
		c, err := NewCalibration(heldOut, alpha)
		if err != nil {
			t.Fatal(err)
		}
		if c.Reachable() != (alpha >= SmallestAlpha(n)) || (c.Err() == nil) != c.Reachable() {
			t.Fatalf("reachable is %v", c.Reachable())
		}
		for _, s := range append(slices.Clone(heldOut), score.Draw(t, "s"), math.Inf(1), -1) {
			count := 0
			for _, h := range heldOut {
				if h >= s {
					count++
				}
			}
			p := float64(1+count) / float64(n+1)
			if got := c.PValue(s); got != p {
				t.Fatalf("p(%v) is %v, want %v", s, got, p)
			}
			if c.Anomalous(s) != (p <= alpha) || (c.Reachable() && c.Anomalous(s) != (s > c.Threshold())) {
				t.Fatalf("s %v, p %v, threshold %v, alpha %v: anomalous is %v", s, p, c.Threshold(), alpha, c.Anomalous(s))
			}
		}
		if !c.Anomalous(math.NaN()) || c.PValue(math.NaN()) != SmallestAlpha(n) {
			t.Fatal("NaN looks normal")
		}
		// The textbook rank, where no rounding is near.
		if x := (1 - alpha) * float64(n+1); c.Reachable() && math.Abs(x-math.Round(x)) > 1e-9 {
			sorted := slices.Sorted(slices.Values(heldOut))
			if want := sorted[int(math.Ceil(x))-1]; c.Threshold() != want {
				t.Fatalf("threshold %v, want %v", c.Threshold(), want)
			}
		}
	})
}

func TestCalibrationRefusesNonsense(t *testing.T) {
	for _, alpha := range []float64{0, 1, -1, math.NaN()} {
		if _, err := NewCalibration([]float64{1, 2}, alpha); err == nil {
			t.Errorf("alpha %v was accepted", alpha)
		}
	}
	if _, err := NewCalibration(nil, 0.5); err == nil {
		t.Error("no scores were accepted")
	}
	if _, err := NewCalibration([]float64{1, math.NaN()}, 0.5); !errors.Is(err, ErrNotFinite) {
		t.Errorf("NaN: %v", err)
	}
}

func TestUnreachableCalibration(t *testing.T) {
	c, err := NewCalibration([]float64{1, 2, 3}, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if c.Reachable() || c.Anomalous(math.Inf(1)) || !c.Anomalous(math.NaN()) || c.PValue(9) != 0.25 || !math.IsInf(c.Threshold(), 1) {
		t.Error("an unreachable rate makes promises")
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"alpha":0.1,"smallest_alpha":0.25,"reachable":false,"threshold":null,"held_out":3}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	for alpha, want := range map[float64]int{0.5: 1, 0.25: 3, 0.1: 9, 0.05: 19, 0.01: 99, 0.001: 999, 0.3: 3, 0.9: 1} {
		if got := HeldOutFor(alpha); got != want {
			t.Errorf("alpha %v needs %d held-out normals, want %d", alpha, got, want)
		}
		if SmallestAlpha(want) > alpha {
			t.Errorf("%d held-out normals do not promise %v", want, alpha)
		}
	}
}

// Over many draws of held-out normals and a new normal, the false-alarm rate is
// ⌊α(n+1)⌋/(n+1), at most α; with tied scores it may only be smaller. The
// bounds are 5 standard errors.
func TestFalseAlarmRateIsKept(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	const draws = 4_000
	for _, n := range []int{9, 50, 199} {
		for _, alpha := range []float64{0.01, 0.05, 0.1} {
			alarms, tied := 0, 0
			scores := make([]float64, n)
			for range draws {
				for i := range scores {
					scores[i] = math.Exp(r.NormFloat64()) // skewed, as scores are
				}
				c, err := NewCalibration(scores, alpha)
				if err != nil {
					t.Fatal(err)
				}
				s := math.Exp(r.NormFloat64())
				if c.Anomalous(s) {
					alarms++
				}
				for i := range scores {
					scores[i] = math.Floor(scores[i])
				}
				if c, err = NewCalibration(scores, alpha); err != nil {
					t.Fatal(err)
				}
				if c.Anomalous(math.Floor(s)) {
					tied++
				}
			}
			want := math.Floor(alpha*float64(n+1)+1e-9) / float64(n+1)
			bound := 5 * math.Sqrt(want*(1-want)/draws)
			if rate := float64(alarms) / draws; math.Abs(rate-want) > bound {
				t.Errorf("n %d, alpha %v: rate %.4f, want %.4f ± %.4f", n, alpha, rate, want, bound)
			}
			if rate := float64(tied) / draws; rate > want+bound {
				t.Errorf("n %d, alpha %v, ties: rate %.4f, want at most %.4f", n, alpha, rate, want)
			}
		}
	}
}

// One detector keeps one calibration: its own rate scatters around the promise
// as FalseAlarmRange says.
func TestFalseAlarmRange(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 1))
	for _, n := range []int{19, 100, 500} {
		for _, alpha := range []float64{0.05, 0.1} {
			low, high := FalseAlarmRange(n, alpha, 0.9)
			if !(0 <= low && low < alpha && alpha < high && high < 1) {
				t.Fatalf("n %d, alpha %v: range %v..%v", n, alpha, low, high)
			}
			const draws = 1500
			below, above := 0, 0
			scores := make([]float64, n)
			for range draws {
				for i := range scores {
					scores[i] = r.Float64() // uniform: the true rate is 1 − threshold
				}
				c, err := NewCalibration(scores, alpha)
				if err != nil {
					t.Fatal(err)
				}
				rate := 1 - c.Threshold()
				if rate < low {
					below++
				}
				if rate > high {
					above++
				}
			}
			for name, count := range map[string]int{"below": below, "above": above} {
				if got := float64(count) / draws; math.Abs(got-0.05) > 5*math.Sqrt(0.05*0.95/draws) {
					t.Errorf("n %d, alpha %v: share %s is %.4f, want 0.05", n, alpha, name, got)
				}
			}
		}
	}
	if low, high := FalseAlarmRange(5, 0.01, 0.9); low != 0 || high != 0 {
		t.Errorf("unreachable rate: range %v..%v", low, high)
	}
}
