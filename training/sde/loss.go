package sde

import (
	"math"
	"math/rand/v2"
)

// Every diffusion's training loss is a mean squared error of the network's raw
// output F(x; label) against a target, so that one graph serves all of them:
//
//	vp, subvp   score = −F/std          ‖std·score + z‖² = ‖F − z‖²
//	ve          score = F/σ             ½‖σ·score + z‖²  = ½‖F + z‖²
//	edm         D = cSkip·x + cOut·F    λ‖D − x₀‖²       = ‖F − (x₀ − cSkip·x)/cOut‖²
//
// The reduction is over pixels the mean, for ve half the sum (Song et al.'s
// code), and over the batch the mean.

// lossScale is what the mean over all pixels is multiplied by.
func lossScale(s SDE, dim int) float64 {
	if _, ok := s.(VE); ok {
		return 0.5 * float64(dim)
	}
	return 1
}

// inputs are the network's inputs and target for a batch of images.
type inputs struct {
	x, label, target []float32 // [n, dim], [n], [n, dim]
}

// draw noises clean images [n, dim], in the SDE's range, at random times. Times
// are stratified over the batch: each image's is uniform, or for edm ln σ is
// normal, and together they cover the range evenly, which lowers the variance
// of the gradient at no cost.
func (in inputs) draw(s SDE, clean []float32, r *rand.Rand) {
	n := len(in.label)
	dim := len(clean) / n
	offset := r.Float64()
	for i, slot := range r.Perm(n) {
		u := (float64(slot) + offset) / float64(n)
		x, target := in.x[i*dim:(i+1)*dim], in.target[i*dim:(i+1)*dim]
		in.label[i] = noised(s, timeAt(s, u), x, target, clean[i*dim:(i+1)*dim], r)
	}
}

// timeAt maps a uniform number in [0, 1) to a training time.
func timeAt(s SDE, u float64) float64 {
	if e, ok := s.(EDM); ok {
		u = min(max(u, 1e-6), 1-1e-6)
		return math.Exp(e.LogMean + e.LogStd*math.Sqrt2*math.Erfinv(2*u-1))
	}
	lo, _, hi := s.Horizon()
	return lo + (hi-lo)*u
}

// noised diffuses one image to time t and writes the network's input and
// target; it returns the label.
func noised(s SDE, t float64, x, target, clean []float32, r *rand.Rand) float32 {
	scale, std := s.Marginal(t)
	c := conditionAt(s, t)
	for j, v := range clean {
		z := r.NormFloat64()
		xt := scale*float64(v) + std*z
		x[j] = float32(c.in*xt + c.shift)
		switch s.(type) {
		case EDM:
			target[j] = float32((float64(v) - c.skip*xt) / c.out)
		case VE:
			target[j] = float32(-z)
		default:
			target[j] = float32(z)
		}
	}
	return float32(c.label)
}

// condition is how a network is wrapped at one time: it sees in·x + shift and
// the label; the score is score·F + linear·x.
type condition struct {
	in, shift, label float64
	score, linear    float64
	skip, out        float64 // of edm's denoiser
}

func conditionAt(s SDE, t float64) condition {
	_, std := s.Marginal(t)
	switch e := s.(type) {
	case EDM:
		skip, out, in, noise, _ := e.Precondition(t)
		return condition{in: in, label: noise, score: out / (t * t), linear: (skip - 1) / (t * t), skip: skip, out: out}
	case VE:
		return condition{in: 2, shift: -1, label: std, score: 1 / std} // networks see [−1, 1]
	}
	return condition{in: 1, label: 999 * t, score: -1 / std}
}
