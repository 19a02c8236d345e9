package sde

import (
	"math"
	"testing"
)

func each(t *testing.T, f func(t *testing.T, s SDE)) {
	for _, name := range Names {
		t.Run(name, func(t *testing.T) { f(t, testSDE(t, name)) })
	}
}

// The marginal must solve the moment equations of dx = f·x dt + g dw:
// scale' = f·scale and (std²)' = 2f·std² + g².
func TestMarginalSolvesTheMomentEquations(t *testing.T) {
	each(t, func(t *testing.T, s SDE) {
		_, lo, hi := s.Horizon()
		for i := range 20 {
			tm := lo + (hi-lo)*(float64(i)+0.5)/20
			h := 1e-5 * tm
			a, b := tm-h, tm+h
			sa, da := s.Marginal(a)
			sb, db := s.Marginal(b)
			sc, sd := s.Marginal(tm)
			f, g := s.Drift(tm), s.Diffusion(tm)
			if got, want := (sb-sa)/(2*h), f*sc; math.Abs(got-want) > 1e-6*(1+math.Abs(want)) {
				t.Errorf("t=%.3g: scale' = %g, want f·scale = %g", tm, got, want)
			}
			got, want := (db*db-da*da)/(2*h), 2*f*sd*sd+g*g
			// VE starts from σ(0) = 0.01 instead of 0; its derivative is the same.
			if math.Abs(got-want) > 1e-5*(1+math.Abs(want)) {
				t.Errorf("t=%.3g: variance' = %g, want 2f·var + g² = %g", tm, got, want)
			}
		}
	})
}

func TestTimeInvertsTheNoiseToSignalRatio(t *testing.T) {
	each(t, func(t *testing.T, s SDE) {
		lo, _, hi := s.Horizon()
		for i := range 50 {
			tm := lo * math.Pow(hi/lo, (float64(i)+0.5)/50)
			if got := s.Time(ratio(s, tm)); math.Abs(got-tm) > 1e-9*hi+1e-6*tm {
				t.Errorf("Time(ratio(%g)) = %g", tm, got)
			}
		}
		if got := s.Time(1e9); got != hi {
			t.Errorf("Time of a huge ratio: got %g, want the horizon %g", got, hi)
		}
		if got := s.Time(0); got != 0 {
			t.Errorf("Time(0): got %g", got)
		}
	})
}

// Many small steps of the discretisation must reproduce the marginal.
func TestStepsComposeToTheMarginal(t *testing.T) {
	each(t, func(t *testing.T, s SDE) {
		_, lo, hi := s.Horizon()
		const n = 20000
		a, sd := s.Marginal(lo)
		variance := sd * sd
		ts := powerTimes(n+1, hi, lo, 7)
		for i := n; i > 0; i-- {
			f, g := s.Step(ts[i-1], ts[i])
			a *= 1 + f
			variance = variance*(1+f)*(1+f) + g*g
		}
		wantA, wantSD := s.Marginal(hi)
		if math.Abs(a-wantA) > 1e-3 {
			t.Errorf("scale at the horizon: %g, want %g", a, wantA)
		}
		if r := math.Sqrt(variance) / wantSD; math.Abs(r-1) > 1e-3 {
			t.Errorf("std at the horizon: %g, want %g", math.Sqrt(variance), wantSD)
		}
	})
}

func TestTimesFallFromStartToTheLeastTime(t *testing.T) {
	each(t, func(t *testing.T, s SDE) {
		_, lo, hi := s.Horizon()
		for _, n := range []int{2, 18, 1000} {
			ts := times(s, n, hi)
			if len(ts) != n || ts[0] != hi || ts[n-1] != lo {
				t.Fatalf("%d times from %g to %g, want %d from %g to %g", len(ts), ts[0], ts[len(ts)-1], n, hi, lo)
			}
			for i := 1; i < n; i++ {
				if ts[i] >= ts[i-1] {
					t.Fatalf("time %d does not fall: %g, %g", i, ts[i-1], ts[i])
				}
			}
		}
	})
}

func TestPublishedConstants(t *testing.T) {
	vp, sub, ve := testSDE(t, "vp"), testSDE(t, "subvp"), testSDE(t, "ve")
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9*(1+math.Abs(want)) {
			t.Errorf("%s: got %g, want %g", what, got, want)
		}
	}
	a, std := vp.Marginal(0.5)
	near("vp scale", a, math.Exp(-0.25*0.25*19.9-0.025))
	near("vp std", std, math.Sqrt(1-a*a))
	near("vp noise-to-signal ratio", ratio(vp, 0.5), math.Sqrt(math.Exp(9.95*0.25+0.05)-1))
	_, std = sub.Marginal(0.5)
	near("subvp std", std, 1-a*a)
	near("ve σ(0)", ratio(ve, 0), 0.01)
	near("ve σ(1)", ratio(ve, 1), 50)
	for size, want := range map[int]float64{32: 50, 64: 90, 256: 348} {
		s, err := New("ve", size)
		if err != nil {
			t.Fatal(err)
		}
		near("ve prior", s.Prior(), want)
	}
	if _, err := New("vpp", 32); err == nil {
		t.Error("an unknown diffusion was accepted")
	}
	// Karras et al.: the preconditioned target has unit variance, so that
	// weight·c_out² = 1.
	edm := testSDE(t, "edm").(EDM)
	for _, sigma := range []float64{0.002, 0.3, 80} {
		_, cOut, cIn, cNoise, weight := edm.Precondition(sigma)
		near("edm weight·c_out²", weight*cOut*cOut, 1)
		near("edm c_in", cIn*cIn*(sigma*sigma+0.25), 1)
		near("edm c_noise", cNoise, math.Log(sigma)/4)
	}
}
