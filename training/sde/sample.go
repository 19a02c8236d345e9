package sde

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Model estimates the score of noised images, ∇ log p_t(x). dst and x hold n
// images, all at time t of the SDE. Implementations need not be safe for
// concurrent use.
type Model interface {
	Score(ctx context.Context, dst, x []float32, n int, t float64) error
}

// Sampler names a way back from noise to images.
type Sampler string

const (
	// EulerMaruyama walks the reverse-time SDE: the paper's choice for VP, one
	// network call a step, 1000 steps.
	EulerMaruyama Sampler = "euler-maruyama"
	// PredictorCorrector is the reverse-diffusion predictor after one Langevin
	// corrector: the paper's choice for VE, two network calls a step, 1000 steps.
	PredictorCorrector Sampler = "pc"
	// ODE integrates the probability-flow ODE by Dormand and Prince's RK45 with
	// error control; deterministic but for the start.
	ODE Sampler = "ode"
	// Heun is EDM's second-order deterministic sampler over the noise level, for
	// any SDE: 2·steps − 1 network calls, 18 steps.
	Heun Sampler = "heun"
)

// Samplers are the names that [SampleOptions.Sampler] takes.
var Samplers = []Sampler{Heun, EulerMaruyama, PredictorCorrector, ODE}

// SampleOptions say what to sample and how. The zero value of a field that has
// a default means the default.
type SampleOptions struct {
	N                       int     // images to make
	Channels, Height, Width int     // their shape
	Seed                    uint64  // of all noise; image i draws the same at any batch size
	First                   int     // number of the first image within the seed's sequence
	Sampler                 Sampler // default Heun
	Steps                   int     // default 18 for Heun, 1000 for EulerMaruyama and PredictorCorrector; unused by ODE
	Batch                   int     // images a model call; default min(N, 64)

	// SNR is the signal-to-noise ratio of the Langevin corrector; default 0.16,
	// above 32 px 0.17, from 256 px 0.075 (Song et al. appendix G).
	SNR float64
	// Tolerance is ODE's relative and absolute error; default 1e-5.
	Tolerance float64
	// Rho, SigmaMin and SigmaMax are Heun's grid; defaults 7, 0.002 and 80, the
	// latter two clipped to what the SDE reaches.
	Rho, SigmaMin, SigmaMax float64

	// From are N images [N, C, H, W] in the SDE's range to start from instead of
	// noise: they are diffused to Start and walked back (Meng et al., "SDEdit",
	// ICLR 2022). Start is a noise-to-signal ratio σ = std/scale; small values
	// stay near the image, least so with PredictorCorrector, whose corrector
	// forgets where it came from. Both or neither.
	From  []float32
	Start float64

	// Progress is called after each model call with the calls made so far and
	// the estimated total over all batches.
	Progress func(done, total int)
}

// Stats say what a sampling run cost.
type Stats struct {
	Calls  int // model calls, each of one batch
	Images int // images times calls: what a forward pass per image would count
}

// Sample makes images by walking the diffusion backwards: [N, C, H, W] in the
// SDE's range, not clipped. What it returns is the denoised mean at the least
// time, not the last noisy state.
func Sample(ctx context.Context, s SDE, m Model, o SampleOptions) ([]float32, Stats, error) {
	var st Stats
	if err := o.setDefaults(s); err != nil {
		return nil, st, err
	}
	dim := o.Channels * o.Height * o.Width
	out := make([]float32, o.N*dim)
	batches := (o.N + o.Batch - 1) / o.Batch
	for b := range batches {
		lo := b * o.Batch
		n := min(o.Batch, o.N-lo)
		w := newWalk(ctx, s, m, o, lo, n, dim)
		w.report = func(calls int, perBatch int) {
			st.Calls++
			st.Images += n
			if o.Progress != nil {
				o.Progress(st.Calls, st.Calls-calls+max(perBatch, calls)*(batches-b))
			}
		}
		if err := w.walk(); err != nil {
			return nil, st, fmt.Errorf("sample images %d-%d with %s: %w", lo, lo+n-1, o.Sampler, err)
		}
		dst := out[lo*dim : (lo+n)*dim]
		for i, v := range w.x {
			dst[i] = float32(v)
		}
	}
	return out, st, nil
}

func (o *SampleOptions) setDefaults(s SDE) error {
	if o.N < 1 || o.Channels < 1 || o.Height < 1 || o.Width < 1 {
		return fmt.Errorf("sample: want at least one image of at least one pixel, got %d of %d×%d×%d", o.N, o.Channels, o.Height, o.Width)
	}
	o.Sampler = cmp.Or(o.Sampler, Heun)
	if !slices.Contains(Samplers, o.Sampler) {
		return fmt.Errorf("sample: unknown sampler %q, take one of %v", o.Sampler, Samplers)
	}
	if o.Steps == 0 {
		o.Steps = 1000
		if o.Sampler == Heun {
			o.Steps = 18
		}
	}
	if o.Steps < 1 {
		return fmt.Errorf("sample: want at least 1 step, got %d", o.Steps)
	}
	if o.Batch <= 0 {
		o.Batch = min(o.N, 64)
	}
	if o.SNR == 0 {
		switch side := max(o.Height, o.Width); {
		case side <= 32:
			o.SNR = 0.16
		case side < 256:
			o.SNR = 0.17
		default:
			o.SNR = 0.075
		}
	}
	o.Tolerance = cmp.Or(o.Tolerance, 1e-5)
	o.Rho = cmp.Or(o.Rho, 7)
	lo, _, hi := s.Horizon()
	top := ratio(s, hi)
	o.SigmaMin = cmp.Or(o.SigmaMin, 0.002)
	o.SigmaMax = cmp.Or(o.SigmaMax, 80)
	o.SigmaMin, o.SigmaMax = max(o.SigmaMin, ratio(s, lo)), min(o.SigmaMax, top)
	if (o.From == nil) != (o.Start == 0) {
		return errors.New("sample: a partial diffusion needs both the images and the noise level to start from")
	}
	if o.From != nil {
		if want := o.N * o.Channels * o.Height * o.Width; len(o.From) != want {
			return fmt.Errorf("sample: %d start images of %d×%d×%d need %d values, got %d", o.N, o.Channels, o.Height, o.Width, want, len(o.From))
		}
		if !(o.Start > o.SigmaMin && o.Start <= top) {
			return fmt.Errorf("sample: start noise level %g is outside (%.3g, %.3g] of the diffusion %s", o.Start, o.SigmaMin, top, s.Name())
		}
	}
	return nil
}

// ratio is the noise-to-signal ratio σ at time t.
func ratio(s SDE, t float64) float64 {
	a, std := s.Marginal(t)
	return std / a
}

// walk is one batch on its way back. States are float64: Heun and ODE add small
// differences to values of up to σ_max.
type walk struct {
	ctx     context.Context
	sde     SDE
	model   Model
	o       SampleOptions
	n, dim  int
	x       []float64
	score   []float64
	in, out []float32
	rngs    []*rand.Rand
	from    []float32
	calls   int
	planned int // calls that this batch is expected to need
	report  func(calls, perBatch int)
}

func newWalk(ctx context.Context, s SDE, m Model, o SampleOptions, lo, n, dim int) *walk {
	w := &walk{
		ctx: ctx, sde: s, model: m, o: o, n: n, dim: dim,
		x: make([]float64, n*dim), score: make([]float64, n*dim),
		in: make([]float32, n*dim), out: make([]float32, n*dim),
		rngs: make([]*rand.Rand, n),
	}
	for i := range w.rngs {
		w.rngs[i] = newRand(o.Seed, streamSample, uint64(o.First+lo+i))
	}
	if o.From != nil {
		w.from = o.From[lo*dim : (lo+n)*dim]
	}
	return w
}

func (w *walk) walk() error {
	switch w.o.Sampler {
	case EulerMaruyama:
		return w.eulerMaruyama()
	case PredictorCorrector:
		return w.predictorCorrector()
	case ODE:
		return w.ode()
	default:
		return w.heun()
	}
}

// eval writes the score at w.score for state x, where the model's input is
// scale·x.
func (w *walk) eval(x []float64, scale, t float64) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	for i, v := range x {
		w.in[i] = float32(scale * v)
	}
	if err := w.model.Score(w.ctx, w.out, w.in, w.n, t); err != nil {
		return err
	}
	for i, v := range w.out {
		f := float64(v)
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("the model's score at time %.4g is not finite: the network has diverged, take an earlier checkpoint", t)
		}
		w.score[i] = f
	}
	w.calls++
	w.report(w.calls, w.planned)
	return nil
}

// addNoise adds std·z to x, each image from its own generator.
func (w *walk) addNoise(x []float64, std float64) {
	for i, r := range w.rngs {
		row := x[i*w.dim : (i+1)*w.dim]
		for j := range row {
			row[j] += std * r.NormFloat64()
		}
	}
}

// start fills w.x with the prior, or with the start images diffused to time t0,
// and returns t0.
func (w *walk) start() float64 {
	_, _, t0 := w.sde.Horizon()
	if w.from == nil {
		clear(w.x)
		w.addNoise(w.x, w.sde.Prior())
		return t0
	}
	t0 = w.sde.Time(w.o.Start)
	scale, std := w.sde.Marginal(t0)
	for i, v := range w.from {
		w.x[i] = scale * float64(v)
	}
	w.addNoise(w.x, std)
	return t0
}

// denoise replaces x by the mean of x_0 given x at time t (Tweedie's formula).
func (w *walk) denoise(t float64) error {
	if err := w.eval(w.x, 1, t); err != nil {
		return err
	}
	scale, std := w.sde.Marginal(t)
	for i := range w.x {
		w.x[i] = (w.x[i] + std*std*w.score[i]) / scale
	}
	return nil
}

// eulerMaruyama discretises dx = (f·x − g²·score) dt + g dw̄ (Song et al. eq. 6).
// n steps cost n calls: the last one is the denoising.
func (w *walk) eulerMaruyama() error {
	ts := times(w.sde, w.o.Steps, w.start())
	w.planned = len(ts)
	for i, t := range ts[:len(ts)-1] {
		if err := w.eval(w.x, 1, t); err != nil {
			return err
		}
		dt := t - ts[i+1]
		f, g := w.sde.Drift(t), w.sde.Diffusion(t)
		for j := range w.x {
			w.x[j] -= (f*w.x[j] - g*g*w.score[j]) * dt
		}
		w.addNoise(w.x, g*math.Sqrt(dt))
	}
	return w.denoise(ts[len(ts)-1])
}

// predictorCorrector is Song et al.'s algorithm 1: at each time one step of
// Langevin dynamics, then one of the reverse diffusion.
//
// Their step size is 2(snr·‖z‖/‖score‖)², norms averaged over the batch. Here
// both norms are what they are for noise around data, √d and √d/std, so that an
// image does not depend on what else is in its batch.
func (w *walk) predictorCorrector() error {
	ts := times(w.sde, w.o.Steps, w.start())
	w.planned = 2*len(ts) - 1
	for i, t := range ts[:len(ts)-1] {
		if err := w.eval(w.x, 1, t); err != nil {
			return err
		}
		_, std := w.sde.Marginal(t)
		drift, diffusion := w.sde.Step(t, ts[i+1])
		eps := 2 * w.o.SNR * w.o.SNR * std * std * (1 + drift) * (1 + drift)
		for j := range w.x {
			w.x[j] += eps * w.score[j]
		}
		w.addNoise(w.x, math.Sqrt(2*eps))

		if err := w.eval(w.x, 1, t); err != nil {
			return err
		}
		for j := range w.x {
			w.x[j] += -drift*w.x[j] + diffusion*diffusion*w.score[j]
		}
		w.addNoise(w.x, diffusion)
	}
	return w.denoise(ts[len(ts)-1])
}

// heun is EDM's algorithm 1 without churn, on x/scale as a function of the
// noise level σ = std/scale, where every SDE's probability-flow ODE reads
// dx/dσ = (x − D(x; σ))/σ.
func (w *walk) heun() error {
	top := w.o.SigmaMax
	clear(w.x)
	if w.from != nil {
		top = w.o.Start
		for i, v := range w.from {
			w.x[i] = float64(v)
		}
	}
	w.addNoise(w.x, top)
	sigmas := powerTimes(w.o.Steps, top, w.o.SigmaMin, w.o.Rho)
	w.planned = 2*len(sigmas) - 1
	slope, next := make([]float64, len(w.x)), make([]float64, len(w.x))
	for i, sigma := range sigmas {
		if err := w.slope(slope, w.x, sigma); err != nil {
			return err
		}
		if i == len(sigmas)-1 { // a step to σ = 0 is the denoised mean
			for j := range w.x {
				w.x[j] -= sigma * slope[j]
			}
			break
		}
		h := sigmas[i+1] - sigma
		for j := range next {
			next[j] = w.x[j] + h*slope[j]
		}
		if err := w.slope(w.score, next, sigmas[i+1]); err != nil {
			return err
		}
		for j := range w.x {
			w.x[j] += h * 0.5 * (slope[j] + w.score[j])
		}
	}
	return nil
}

// slope writes (x − D(x; σ))/σ = −σ·scale·score(scale·x) to dst.
func (w *walk) slope(dst, x []float64, sigma float64) error {
	t := w.sde.Time(sigma)
	scale, _ := w.sde.Marginal(t)
	if err := w.eval(x, scale, t); err != nil {
		return err
	}
	for i, v := range w.score {
		dst[i] = -sigma * scale * v
	}
	return nil
}

// ode integrates dx/dt = f·x − ½g²·score (Song et al. eq. 13) from the start to
// the least time by the embedded Runge–Kutta pair of Dormand and Prince (1980),
// one step size for the whole batch, controlled by the worst image.
func (w *walk) ode() error {
	t := w.start()
	_, end, _ := w.sde.Horizon()
	var k [7][]float64
	for i := range k {
		k[i] = make([]float64, len(w.x))
	}
	field := func(dst, x []float64, t float64) error {
		if err := w.eval(x, 1, t); err != nil {
			return err
		}
		f, g := w.sde.Drift(t), w.sde.Diffusion(t)
		for i := range dst {
			dst[i] = f*x[i] - 0.5*g*g*w.score[i]
		}
		return nil
	}
	tmp, next := make([]float64, len(w.x)), make([]float64, len(w.x))
	h := 0.01 * (end - t)
	w.planned = 100
	if err := field(k[0], w.x, t); err != nil {
		return err
	}
	for t > end {
		h = max(h, end-t)
		if -h < 1e-9*math.Abs(t) {
			return fmt.Errorf("step size fell to %.1e at time %.4g: the score is not smooth enough for tolerance %.1e, raise it or take another sampler", -h, t, w.o.Tolerance)
		}
		for s := 1; s < 7; s++ {
			for i := range tmp {
				v := 0.0
				for r := range s {
					v += dopriA[s-1][r] * k[r][i]
				}
				tmp[i] = w.x[i] + h*v
			}
			if s == 6 {
				copy(next, tmp) // the seventh stage stands at the fifth-order result
			}
			if err := field(k[s], tmp, t+h*dopriC[s-1]); err != nil {
				return err
			}
		}
		worst := 0.0
		for im := range w.n {
			sum := 0.0
			for i := im * w.dim; i < (im+1)*w.dim; i++ {
				e := 0.0
				for s := range k {
					e += dopriE[s] * k[s][i]
				}
				e *= h / (w.o.Tolerance * (1 + max(math.Abs(w.x[i]), math.Abs(next[i]))))
				sum += e * e
			}
			worst = max(worst, math.Sqrt(sum/float64(w.dim)))
		}
		grow := 5.0
		if worst > 0 {
			grow = min(5, max(0.2, 0.9*math.Pow(worst, -0.2)))
		}
		if worst <= 1 {
			if t += h; t-end < 1e-12 {
				t = end
			}
			copy(w.x, next)
			k[0], k[6] = k[6], k[0]
			done := 1 - (t-end)/(w.firstTime()-end)
			w.planned = int(float64(w.calls) / max(done, 1e-3))
		} else {
			grow = min(grow, 1)
		}
		h *= grow
	}
	return w.denoise(end)
}

func (w *walk) firstTime() float64 {
	if w.from != nil {
		return w.sde.Time(w.o.Start)
	}
	_, _, t := w.sde.Horizon()
	return t
}

// The tableau of Dormand and Prince: nodes, stages, and fifth- minus
// fourth-order weights.
var (
	dopriC = [6]float64{1. / 5, 3. / 10, 4. / 5, 8. / 9, 1, 1}
	dopriA = [6][6]float64{
		{1. / 5},
		{3. / 40, 9. / 40},
		{44. / 45, -56. / 15, 32. / 9},
		{19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
		{9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
		{35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84},
	}
	dopriE = [7]float64{71. / 57600, 0, -71. / 16695, 71. / 1920, -17253. / 339200, 22. / 525, -1. / 40}
)
