package sde

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"
)

func testSDE(t testing.TB, name string) SDE {
	t.Helper()
	s, err := New(name, 32)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testSteps are enough steps that what is left of the discretisation error is
// below the sampling error of the tests. Heun's default of 18 is not: see
// TestHeunsDefaultIsNearEnough.
func testSteps(sampler Sampler) int {
	switch sampler {
	case Heun:
		return 80
	case ODE:
		return 0
	}
	return 300
}

func TestSamplersRecoverAGaussian(t *testing.T) {
	mean := []float64{0.3, -0.2, 0.5, 0}
	cov := mat.NewSymDense(4, []float64{
		0.25, 0.10, 0, 0,
		0.10, 0.16, 0.03, 0,
		0, 0.03, 0.09, -0.02,
		0, 0, -0.02, 0.04,
	})
	const n = 4000
	for _, name := range Names {
		for _, sampler := range Samplers {
			t.Run(name+"/"+string(sampler), func(t *testing.T) {
				t.Parallel()
				s := testSDE(t, name)
				x, _, err := Sample(t.Context(), s, gaussian{s, mean, cov}, SampleOptions{
					N: n, Channels: 1, Height: 2, Width: 2, Seed: 5, Batch: n,
					Sampler: sampler, Steps: testSteps(sampler), Tolerance: 1e-4,
				})
				if err != nil {
					t.Fatal(err)
				}
				// Sampling error: 0.5/√4000 = 0.008 for a mean, 0.25·√(2/4000) =
				// 0.0056 for a covariance. Allowed: four of them each.
				gotMean, gotCov := moments(x, 4)
				for i := range mean {
					if e := math.Abs(gotMean[i] - mean[i]); e > 0.032 {
						t.Errorf("mean %d: got %.4f, want %.4f", i, gotMean[i], mean[i])
					}
					for j := range mean {
						if e := math.Abs(gotCov.At(i, j) - cov.At(i, j)); e > 0.022 {
							t.Errorf("covariance %d,%d: got %.4f, want %.4f", i, j, gotCov.At(i, j), cov.At(i, j))
						}
					}
				}
			})
		}
	}
}

// Eighteen steps are the default because they cost 35 calls: on a Gaussian they
// widen each standard deviation by about a twentieth.
func TestHeunsDefaultIsNearEnough(t *testing.T) {
	cov := mat.NewSymDense(2, []float64{0.25, 0.06, 0.06, 0.09})
	for _, name := range Names {
		s := testSDE(t, name)
		x, st, err := Sample(t.Context(), s, gaussian{s, []float64{0.3, -0.2}, cov}, SampleOptions{
			N: 8000, Channels: 1, Height: 1, Width: 2, Seed: 5, Batch: 8000,
		})
		if err != nil {
			t.Fatal(err)
		}
		if st.Calls != 35 {
			t.Errorf("%s: %d model calls, want 35", name, st.Calls)
		}
		mean, got := moments(x, 2)
		if math.Abs(mean[0]-0.3) > 0.03 || math.Abs(mean[1]+0.2) > 0.03 {
			t.Errorf("%s: mean %.3f, want 0.3, -0.2", name, mean)
		}
		for i := range 2 {
			if r := math.Sqrt(got.At(i, i) / cov.At(i, i)); math.Abs(r-1) > 0.07 {
				t.Errorf("%s: standard deviation %d is %.3f of what it should be", name, i, r)
			}
		}
		if r := got.At(0, 1) / math.Sqrt(got.At(0, 0)*got.At(1, 1)); math.Abs(r-0.4) > 0.05 {
			t.Errorf("%s: correlation %.3f, want 0.4", name, r)
		}
	}
}

func TestSamplersRecoverTheWeightsOfTwoModes(t *testing.T) {
	const n, d = 4000, 2
	for _, name := range Names {
		for _, sampler := range Samplers {
			t.Run(name+"/"+string(sampler), func(t *testing.T) {
				t.Parallel()
				s := testSDE(t, name)
				m := mixture{s, []float64{0.3, 0.7}, [][]float64{{-0.6, 0.4}, {0.5, -0.3}}, 0.1}
				x, _, err := Sample(t.Context(), s, m, SampleOptions{
					N: n, Channels: 1, Height: 1, Width: d, Seed: 11, Batch: n,
					Sampler: sampler, Steps: testSteps(sampler), Tolerance: 1e-4,
				})
				if err != nil {
					t.Fatal(err)
				}
				var modes [2][]float32
				for i := range n {
					p := x[i*d : (i+1)*d]
					k := 0
					if p[0]-p[1] > 0 {
						k = 1
					}
					modes[k] = append(modes[k], p...)
				}
				// Sampling error of a weight: √(0.21/4000) = 0.007; allowed 0.03,
				// since the deterministic samplers carry over the prior's mismatch.
				if w := float64(len(modes[0])) / d / n; math.Abs(w-0.3) > 0.03 {
					t.Errorf("weight of the lesser mode: got %.4f, want 0.3", w)
				}
				for k, pts := range modes {
					mean, cov := moments(pts, d)
					for i := range mean {
						if e := math.Abs(mean[i] - m.means[k][i]); e > 0.02 {
							t.Errorf("mode %d, mean %d: got %.4f, want %.4f", k, i, mean[i], m.means[k][i])
						}
						if r := math.Sqrt(cov.At(i, i)) / m.width; math.Abs(r-1) > 0.1 {
							t.Errorf("mode %d, width %d: got %.3f of what it should be", k, i, r)
						}
					}
				}
			})
		}
	}
}

// Heun and RK45 are deterministic after the start, so their error can be
// measured against the closed solution of the probability-flow ODE of a
// Gaussian: (x − scale·μ)/√(scale²s² + std²) is constant in time.
func TestDeterministicSamplersConvergeAtTheirOrder(t *testing.T) {
	const n, mu, width = 64, 0.25, 0.4
	for _, name := range Names {
		t.Run(name, func(t *testing.T) {
			s := testSDE(t, name)
			cov := mat.NewSymDense(1, []float64{width * width})
			m := gaussian{s, []float64{mu}, cov}
			fails := func(o SampleOptions) float64 {
				o.N, o.Channels, o.Height, o.Width, o.Seed = n, 1, 1, 1, 3
				o.SigmaMin = 0.02 // one fixed end, away from float32 rounding
				got, _, err := Sample(t.Context(), s, m, o)
				if err != nil {
					t.Fatal(err)
				}
				if err := o.setDefaults(s); err != nil {
					t.Fatal(err)
				}
				worst := 0.0
				for i := range n {
					z := newRand(3, streamSample, uint64(i)).NormFloat64()
					var want float64
					if o.Sampler == Heun {
						shrink := math.Sqrt((width*width + 0.02*0.02) / (width*width + o.SigmaMax*o.SigmaMax))
						end := mu + (z*o.SigmaMax-mu)*shrink
						want = mu + (end-mu)*width*width/(width*width+0.02*0.02) // its last step denoises
					} else {
						_, lo, hi := s.Horizon()
						a1, s1 := s.Marginal(hi)
						a0, s0 := s.Marginal(lo)
						v0 := a0*a0*width*width + s0*s0
						end := a0*mu + (z*s.Prior()-a1*mu)*math.Sqrt(v0/(a1*a1*width*width+s1*s1))
						want = mu + (end-a0*mu)*a0*width*width/v0
					}
					worst = max(worst, math.Abs(float64(got[i])-want))
				}
				return worst
			}
			e18, e36, e72 := fails(SampleOptions{Steps: 18}), fails(SampleOptions{Steps: 36}), fails(SampleOptions{Steps: 72})
			t.Logf("heun: worst error %.2e at 18 steps, %.2e at 36, %.2e at 72", e18, e36, e72)
			if order := math.Log2(e36 / e72); order < 1.7 || order > 2.7 {
				t.Errorf("heun: observed order %.2f (errors %.2e, %.2e, %.2e), want 2", order, e18, e36, e72)
			}
			loose, tight := fails(SampleOptions{Sampler: ODE, Tolerance: 1e-3}), fails(SampleOptions{Sampler: ODE, Tolerance: 1e-5})
			t.Logf("ode: worst error %.2e at tolerance 1e-3, %.2e at 1e-5", loose, tight)
			if tight > 1e-4 || tight > loose {
				t.Errorf("ode: worst error %.2e at tolerance 1e-5, %.2e at 1e-3, want below 1e-4 and falling", tight, loose)
			}
		})
	}
}

// Euler–Maruyama converges weakly, at order 1: its variance on Gaussian data,
// against the exact one. (The predictor-corrector keeps a bias of its Langevin
// step size at any number of steps.)
func TestEulerMaruyamaConvergesInTheMeanAtOrderOne(t *testing.T) {
	const n, width = 40000, 0.5
	for _, name := range Names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testSDE(t, name)
			m := gaussian{s, []float64{0}, mat.NewSymDense(1, []float64{width * width})}
			bias := func(steps int) float64 {
				x, _, err := Sample(t.Context(), s, m, SampleOptions{
					N: n, Channels: 1, Height: 1, Width: 1, Seed: 2, Batch: n, Sampler: EulerMaruyama, Steps: steps,
				})
				if err != nil {
					t.Fatal(err)
				}
				_, cov := moments(x, 1)
				return math.Abs(cov.At(0, 0)/(width*width) - 1)
			}
			few, more, many := bias(20), bias(40), bias(320)
			t.Logf("relative error of the variance: %.4f at 20 steps, %.4f at 40, %.4f at 320", few, more, many)
			if order := math.Log2(few / more); order < 0.6 {
				t.Errorf("observed order %.2f, want about 1", order)
			}
			if many > 0.03 {
				t.Errorf("320 steps leave %.3f of the variance, want below 0.03", many)
			}
		})
	}
}

func TestAnImageIsTheSameInAnyBatch(t *testing.T) {
	for _, sampler := range []Sampler{Heun, EulerMaruyama, PredictorCorrector} {
		s := testSDE(t, "vp")
		m := mixture{s, []float64{0.5, 0.5}, [][]float64{{-0.5, 0, 0, 0}, {0.5, 0, 0, 0.1}}, 0.2}
		o := SampleOptions{N: 7, Channels: 1, Height: 2, Width: 2, Seed: 9, Steps: 30, Sampler: sampler, Batch: 7}
		whole, _, err := Sample(t.Context(), s, m, o)
		if err != nil {
			t.Fatal(err)
		}
		o.Batch = 3
		parts, st, err := Sample(t.Context(), s, m, o)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(whole, parts) {
			t.Errorf("%s: batches of 7 and of 3 give different images", sampler)
		}
		if st.Images != st.Calls/3*7 {
			t.Errorf("%s: %d calls of 3 batches counted %d images, want %d", sampler, st.Calls, st.Images, st.Calls/3*7)
		}
		o.First, o.N = 5, 2
		tail, _, err := Sample(t.Context(), s, m, o)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(whole[5*4:], tail) {
			t.Errorf("%s: images 5 and 6 differ when made alone", sampler)
		}
		o.Seed = 10
		if other, _, _ := Sample(t.Context(), s, m, o); slices.Equal(other, tail) {
			t.Errorf("%s: another seed gives the same images", sampler)
		}
	}
}

func TestPartialDiffusionStaysNearItsStart(t *testing.T) {
	for _, name := range Names {
		s := testSDE(t, name)
		// Broad data: what comes back lies near where it started, the nearer the
		// smaller the noise.
		const n, width, mu, start = 4000, 0.5, 0.2, 0.6
		m := gaussian{s, []float64{mu}, mat.NewSymDense(1, []float64{width * width})}
		from := make([]float32, n)
		for i := range from {
			from[i] = start
		}
		for _, sampler := range []Sampler{EulerMaruyama, Heun} {
			for _, sigma := range []float64{0.1, 0.5} {
				got, _, err := Sample(t.Context(), s, m, SampleOptions{
					N: n, Channels: 1, Height: 1, Width: 1, Seed: 1, Batch: n,
					Sampler: sampler, Steps: 300, From: from, Start: sigma,
				})
				if err != nil {
					t.Fatal(err)
				}
				keep := width * width / (width*width + sigma*sigma)
				// The reverse SDE draws from the posterior of x_0 given x_σ: mean
				// shrunk by keep, and noise once on the way up and once down.
				wantMean, wantVar := mu+keep*(start-mu), keep*keep*sigma*sigma+keep*sigma*sigma
				if sampler == Heun { // the ODE only scales, to the data's width
					wantMean, wantVar = mu+math.Sqrt(keep)*(start-mu), keep*sigma*sigma
				}
				mean, cov := moments(got, 1)
				if math.Abs(mean[0]-wantMean) > 0.03 {
					t.Errorf("%s/%s from σ=%.1f: mean %.3f, want %.3f", name, sampler, sigma, mean[0], wantMean)
				}
				if r := cov.At(0, 0) / wantVar; math.Abs(r-1) > 0.15 {
					t.Errorf("%s/%s from σ=%.1f: variance %.4f, want %.4f", name, sampler, sigma, cov.At(0, 0), wantVar)
				}
			}
		}
	}
}

func TestSamplingStopsWithItsContext(t *testing.T) {
	s := testSDE(t, "vp")
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	m := scoreFunc(func(ctx context.Context, dst, x []float32, n int, tm float64) error {
		if calls++; calls == 5 {
			cancel()
		}
		return nil
	})
	_, st, err := Sample(ctx, s, m, SampleOptions{N: 4, Channels: 1, Height: 1, Width: 1, Sampler: EulerMaruyama})
	if !errors.Is(err, context.Canceled) || st.Calls != 5 {
		t.Errorf("got %v after %d calls, want a cancelled run after 5", err, st.Calls)
	}
}

func TestSamplingRefuses(t *testing.T) {
	s := testSDE(t, "vp")
	ok := scoreFunc(func(context.Context, []float32, []float32, int, float64) error { return nil })
	nan := scoreFunc(func(_ context.Context, dst, _ []float32, _ int, _ float64) error {
		dst[0] = float32(math.NaN())
		return nil
	})
	base := SampleOptions{N: 1, Channels: 1, Height: 1, Width: 1}
	for _, c := range []struct {
		name, want string
		model      Model
		change     func(*SampleOptions)
	}{
		{"no images", "at least one image", ok, func(o *SampleOptions) { o.N = 0 }},
		{"an unknown sampler", "unknown sampler", ok, func(o *SampleOptions) { o.Sampler = "dpm" }},
		{"a start without images", "partial diffusion", ok, func(o *SampleOptions) { o.Start = 1 }},
		{"start images of another size", "need 1 values", ok, func(o *SampleOptions) { o.Start, o.From = 1, make([]float32, 3) }},
		{"a start beyond the horizon", "outside", ok, func(o *SampleOptions) { o.Start, o.From = 1e4, make([]float32, 1) }},
		{"a score that is not a number", "not finite", nan, func(*SampleOptions) {}},
	} {
		o := base
		c.change(&o)
		if _, _, err := Sample(t.Context(), s, c.model, o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestProgressReachesItsTotal(t *testing.T) {
	s := testSDE(t, "edm")
	m := gaussian{s, []float64{0}, mat.NewSymDense(1, []float64{1})}
	for _, sampler := range Samplers {
		var done, total int
		_, st, err := Sample(t.Context(), s, m, SampleOptions{
			N: 10, Channels: 1, Height: 1, Width: 1, Batch: 4, Sampler: sampler, Steps: 7, Tolerance: 1e-3,
			Progress: func(d, n int) {
				if d < done {
					t.Fatalf("%s: progress went back from %d to %d", sampler, done, d)
				}
				done, total = d, n
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if done != st.Calls || total != done {
			t.Errorf("%s: ended at %d of %d with %d calls", sampler, done, total, st.Calls)
		}
	}
}

func ExampleSample() {
	s, _ := New("vp", 32)
	// A model of data that is the single point 0.5: the score leads there.
	point := scoreFunc(func(_ context.Context, dst, x []float32, _ int, t float64) error {
		scale, std := s.Marginal(t)
		for i := range dst {
			dst[i] = (float32(scale)*0.5 - x[i]) / float32(std*std)
		}
		return nil
	})
	x, st, err := Sample(context.Background(), s, point, SampleOptions{N: 2, Channels: 1, Height: 1, Width: 1, Seed: 1})
	fmt.Printf("%.3f %d calls %v\n", x, st.Calls, err)
	// Output: [0.500 0.500] 35 calls <nil>
}

// scoreFunc is a [Model] made of a function.
type scoreFunc func(ctx context.Context, dst, x []float32, n int, t float64) error

func (f scoreFunc) Score(ctx context.Context, dst, x []float32, n int, t float64) error {
	return f(ctx, dst, x, n, t)
}
