package holdout

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/nearmiss/nearmiss/bank"
	"github.com/nearmiss/nearmiss/bank/drift"
)

// TestAStationaryCameraDoesNotDrift: frames resemble the ones before them by phi,
// and nothing ever changes, until something does.
func TestAStationaryCameraDoesNotDrift(t *testing.T) {
	const n, later, alpha, runs = 500, 5000, 0.05, 6
	for _, phi := range []float64{0, 0.9, 0.98} {
		early, found := 0, 0
		for run := range uint64(runs) {
			r := rand.New(rand.NewPCG(run, 7))
			var x [dim]float64
			for i := range x {
				x[i] = r.NormFloat64()
			}
			next := func(shift float32) []float32 {
				out := make([]float32, dim)
				for i := range x {
					x[i] = phi*x[i] + math.Sqrt(1-phi*phi)*r.NormFloat64()
					out[i] = float32(x[i]) + shift
				}
				return out
			}
			var rows []float32
			for range n {
				rows = append(rows, next(0)...)
			}
			s := Draw(named(n), rows, Options{Share: 0.2, Need: bank.HeldOutFor(alpha), K: 2, Seed: run})
			if (s == nil) != (phi == 0) {
				t.Fatalf("phi %g, run %d: %+v", phi, run, s)
			}
			if s == nil {
				s = &Split{HeldWorth: n, Alike: 1}
				for _, i := range r.Perm(n) {
					if len(s.Held) < n/5 {
						s.Held = append(s.Held, i)
					} else {
						s.Train = append(s.Train, i)
					}
				}
			}
			b, err := bank.New(bank.Options{Dim: dim})
			if err != nil {
				t.Fatal(err)
			}
			at := func(i int) []float32 { return rows[i*dim : (i+1)*dim] }
			for _, i := range s.Train {
				if err := b.Add(uint64(i), at(i)); err != nil {
					t.Fatal(err)
				}
			}
			var held []float32
			for _, i := range s.Held {
				held = append(held, at(i)...)
			}
			if _, err := b.Calibrate(t.Context(), held, alpha); err != nil {
				t.Fatal(err)
			}
			b.Rest(s.HeldWorth, s.Alike)
			c := b.Calibration()
			m, err := drift.New(drift.Options{HeldOut: c.Len(), Worth: c.Worth(), Alpha: alpha, Every: drift.EveryOf(c.Alike()), Seed: run})
			if err != nil {
				t.Fatal(err)
			}
			watch := func(frames int, shift float32) bool {
				for range frames {
					res, err := b.ScoreBatch(t.Context(), next(shift))
					if err != nil {
						t.Fatal(err)
					}
					if _, err := m.Observe(res[0].PValue); err != nil {
						t.Fatal(err)
					}
				}
				return m.Status().Drifted
			}
			if watch(later, 0) {
				early++
			} else if watch(later, 1.5) {
				found++
			}
		}
		t.Logf("phi %g: drift reported in %d of %d runs, found in %d of the others once there is some", phi, early, runs, found)
		if early > 0 {
			t.Errorf("phi %g: drift is reported in %d of %d runs in which nothing changes", phi, early, runs)
		}
		if phi < 0.95 && found < runs-early-1 { // else few frames tell anything new
			t.Errorf("phi %g: drift is found in %d of %d runs", phi, found, runs-early)
		}
	}
}
