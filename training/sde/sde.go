package sde

import (
	"fmt"
	"math"
	"slices"
)

// SDE is a forward diffusion dx = f(t)·x dt + g(t) dw of images, with a drift
// that is linear in x, so that x_t given x_0 is normal with mean scale·x_0 and
// standard deviation std.
type SDE interface {
	// Name is the name that [New] takes: "vp", "subvp", "ve" or "edm".
	Name() string
	// Drift is the factor f(t) of the drift f(t)·x.
	Drift(t float64) float64
	// Diffusion is g(t).
	Diffusion(t float64) float64
	// Marginal gives x_t | x_0 ~ N(scale·x_0, std²·I).
	Marginal(t float64) (scale, std float64)
	// Prior is the standard deviation of the noise that sampling starts from.
	Prior() float64
	// Step is the discretisation of the forward diffusion from time s up to
	// t > s: x_t = x_s + drift·x_s + diffusion·z.
	Step(t, s float64) (drift, diffusion float64)
	// Horizon is the interval of times that training draws from and the least
	// time at which samplers ask for a score.
	Horizon() (trainMin, sampleMin, max float64)
	// Time inverts the noise-to-signal ratio: Marginal(Time(σ)) has std/scale = σ.
	// The result is clipped to [0, max].
	Time(sigma float64) float64
	// Range is the interval that pixel values 0…255 are mapped to.
	Range() (lo, hi float64)
}

// Names are the diffusions that [New] knows.
var Names = []string{"vp", "subvp", "ve", "edm"}

// New returns the named diffusion with the paper's constants; size is the side
// of the images in pixels, on which the largest noise of "ve" depends.
func New(name string, size int) (SDE, error) {
	switch name {
	case "vp":
		return VP{BetaMin: 0.1, BetaMax: 20}, nil
	case "subvp":
		return SubVP{VP{BetaMin: 0.1, BetaMax: 20}}, nil
	case "ve":
		return VE{SigmaMin: 0.01, SigmaMax: sigmaMaxFor(size)}, nil
	case "edm":
		return EDM{SigmaMin: 0.002, SigmaMax: 80, SigmaData: 0.5, LogMean: -1.2, LogStd: 1.2, Rho: 7}, nil
	}
	return nil, fmt.Errorf("choose diffusion %q: unknown, take one of %v", name, Names)
}

// sigmaMaxFor is σ_max of the published VE configurations: CIFAR-10 at 32 px,
// CelebA at 64, CelebA-HQ at 256; 128 px, which has none, lies between by the
// same rule, the largest distance between two training images.
func sigmaMaxFor(size int) float64 {
	switch {
	case size <= 32:
		return 50
	case size <= 64:
		return 90
	case size <= 128:
		return 180
	}
	return 348
}

// VP is the variance-preserving SDE, the limit of DDPM (Song et al. eq. 11):
// β(t) = BetaMin + t(BetaMax − BetaMin), f = −β/2, g = √β, t ∈ (0, 1].
type VP struct{ BetaMin, BetaMax float64 }

func (VP) Name() string { return "vp" }

func (v VP) beta(t float64) float64 { return v.BetaMin + t*(v.BetaMax-v.BetaMin) }

// logScale is ln of the factor of x_0 at time t.
func (v VP) logScale(t float64) float64 {
	return -0.25*t*t*(v.BetaMax-v.BetaMin) - 0.5*t*v.BetaMin
}

// timeOfLogScale inverts logScale.
func (v VP) timeOfLogScale(l float64) float64 {
	if l >= 0 {
		return 0
	}
	d := v.BetaMax - v.BetaMin
	// ¼d·t² + ½b·t + l = 0, in the form that loses no digits for small t.
	t := -2 * l / (0.5*v.BetaMin + math.Sqrt(0.25*v.BetaMin*v.BetaMin-d*l))
	return min(t, 1)
}

func (v VP) Drift(t float64) float64     { return -0.5 * v.beta(t) }
func (v VP) Diffusion(t float64) float64 { return math.Sqrt(v.beta(t)) }

func (v VP) Marginal(t float64) (scale, std float64) {
	l := v.logScale(t)
	return math.Exp(l), math.Sqrt(-math.Expm1(2 * l))
}

func (VP) Prior() float64 { return 1 }

// Step is DDPM's chain: x_t = √(1−β)·x_s + √β·z with β = β(t)(t−s).
func (v VP) Step(t, s float64) (drift, diffusion float64) {
	b := min(v.beta(t)*(t-s), 1)
	return math.Sqrt(1-b) - 1, math.Sqrt(b)
}

func (VP) Horizon() (trainMin, sampleMin, max float64) { return 1e-5, 1e-3, 1 }

func (v VP) Time(sigma float64) float64 {
	return v.timeOfLogScale(-0.5 * math.Log1p(sigma*sigma))
}
func (VP) Range() (lo, hi float64) { return -1, 1 }

// SubVP is the sub-variance-preserving SDE (Song et al. eq. 13): VP's drift
// with g² = β(1 − scale⁴), so that std = 1 − scale².
type SubVP struct{ VP }

func (SubVP) Name() string { return "subvp" }

func (v SubVP) Diffusion(t float64) float64 {
	return math.Sqrt(v.beta(t) * -math.Expm1(4*v.logScale(t)))
}

func (v SubVP) Marginal(t float64) (scale, std float64) {
	l := v.logScale(t)
	return math.Exp(l), -math.Expm1(2 * l)
}

// Step is Euler–Maruyama's: sub-VP has no closed chain of its own.
func (v SubVP) Step(t, s float64) (drift, diffusion float64) {
	return v.Drift(t) * (t - s), v.Diffusion(t) * math.Sqrt(t-s)
}

func (v SubVP) Time(sigma float64) float64 {
	// (1 − a²)/a = σ; 1/a = (σ + √(σ²+4))/2 = e^{asinh(σ/2)}.
	return v.timeOfLogScale(-math.Asinh(sigma / 2))
}

// VE is the variance-exploding SDE (Song et al. eq. 9):
// σ(t) = SigmaMin·(SigmaMax/SigmaMin)^t, f = 0, t ∈ (0, 1].
type VE struct{ SigmaMin, SigmaMax float64 }

func (VE) Name() string            { return "ve" }
func (VE) Drift(float64) float64   { return 0 }
func (v VE) Prior() float64        { return v.SigmaMax }
func (VE) Range() (lo, hi float64) { return 0, 1 }

func (v VE) sigma(t float64) float64 { return v.SigmaMin * math.Pow(v.SigmaMax/v.SigmaMin, t) }

func (v VE) Diffusion(t float64) float64 {
	return v.sigma(t) * math.Sqrt(2*math.Log(v.SigmaMax/v.SigmaMin))
}
func (v VE) Marginal(t float64) (scale, std float64) { return 1, v.sigma(t) }

func (v VE) Step(t, s float64) (drift, diffusion float64) {
	a, b := v.sigma(t), v.sigma(s)
	return 0, math.Sqrt(a*a - b*b)
}

func (VE) Horizon() (trainMin, sampleMin, max float64) { return 1e-5, 1e-5, 1 }

func (v VE) Time(sigma float64) float64 {
	t := math.Log(sigma/v.SigmaMin) / math.Log(v.SigmaMax/v.SigmaMin)
	return min(max(t, 0), 1)
}

// EDM is the diffusion of Karras et al.: time is the noise level itself,
// σ(t) = t, f = 0, g = √(2t), t ∈ [SigmaMin, SigmaMax]. A network trained for
// it is wrapped in their preconditioning (table 1), see [EDM.Precondition], and
// ln σ is drawn from N(LogMean, LogStd²) in training.
type EDM struct {
	SigmaMin, SigmaMax float64
	SigmaData          float64 // standard deviation of the data in Range
	LogMean, LogStd    float64 // of ln σ in training
	Rho                float64 // exponent of the time grid; larger: more steps at low noise
}

func (EDM) Name() string                                { return "edm" }
func (EDM) Drift(float64) float64                       { return 0 }
func (EDM) Diffusion(t float64) float64                 { return math.Sqrt(2 * t) }
func (EDM) Marginal(t float64) (scale, std float64)     { return 1, t }
func (e EDM) Prior() float64                            { return e.SigmaMax }
func (EDM) Range() (lo, hi float64)                     { return -1, 1 }
func (e EDM) Time(sigma float64) float64                { return min(max(sigma, 0), e.SigmaMax) }
func (e EDM) Horizon() (trainMin, sampleMin, m float64) { return e.SigmaMin, e.SigmaMin, e.SigmaMax }

func (e EDM) Step(t, s float64) (drift, diffusion float64) { return 0, math.Sqrt(t*t - s*s) }

// Precondition gives the factors of D(x; σ) = cSkip·x + cOut·F(cIn·x; cNoise)
// and the weight λ(σ) of the squared error of D in the training loss.
func (e EDM) Precondition(sigma float64) (cSkip, cOut, cIn, cNoise, weight float64) {
	v := sigma*sigma + e.SigmaData*e.SigmaData
	cSkip = e.SigmaData * e.SigmaData / v
	cOut = sigma * e.SigmaData / math.Sqrt(v)
	return cSkip, cOut, 1 / math.Sqrt(v), math.Log(sigma) / 4, v / (sigma * sigma * e.SigmaData * e.SigmaData)
}

// times are n ≥ 1 times at which a sampler of n steps stands, falling from the
// start of sampling (at most the horizon) to the horizon's lower end.
func times(s SDE, n int, start float64) []float64 {
	_, lo, _ := s.Horizon()
	if e, ok := s.(EDM); ok {
		return powerTimes(n, start, lo, e.Rho)
	}
	return powerTimes(n, start, lo, 1) // at equal distances
}

// powerTimes are n times from hi down to lo, equally spaced in t^(1/rho)
// (Karras et al. eq. 5).
func powerTimes(n int, hi, lo, rho float64) []float64 {
	if hi <= lo {
		return []float64{hi}
	}
	ts := make([]float64, n)
	a, b := math.Pow(hi, 1/rho), math.Pow(lo, 1/rho)
	for i := range ts {
		if n > 1 {
			ts[i] = math.Pow(a+float64(i)/float64(n-1)*(b-a), rho)
		}
	}
	ts[0] = hi
	if n > 1 {
		ts[n-1] = lo
	}
	return slices.Clip(ts)
}
