package bank

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
)

// Calibration turns scores into p-values and decisions by split conformal
// prediction: if a new normal image's score is exchangeable with those of the n
// held-out normals, it is called anomalous with probability at most Alpha.
//
// p(s) = (1 + #{held-out scores ≥ s}) / (n + 1), and the decision is
// p(s) ≤ Alpha, which is the same as s > Threshold, the
// ⌈(1−Alpha)(n+1)⌉-th smallest held-out score. Ties count against the new
// score, so equal scores keep the promise.
type Calibration struct {
	alpha float64
	// held-out scores, ascending; +Inf allowed, NaN refused
	heldOut []float64
	// rank is the 1-based rank of the threshold; n+1 when Alpha is unreachable
	rank int
	// worth is how many independent held-out scores these are worth; 0: all. alike
	// is how many frames in a row are as one; 0: each counts.
	worth, alike float64
}

// NewCalibration takes the scores of held-out normals (any order; kept as they
// are, never clamped) and the false-alarm rate wanted, 0 < alpha < 1. NaN
// scores are refused. An alpha below 1/(n+1) gives a calibration whose
// Reachable is false: it ranks, but calls nothing anomalous except NaN; Err
// says what it would need.
func NewCalibration(heldOut []float64, alpha float64) (*Calibration, error) {
	if !(alpha > 0 && alpha < 1) {
		return nil, fmt.Errorf("calibrate: false-alarm rate %v is not between 0 and 1", alpha)
	}
	if len(heldOut) == 0 {
		return nil, errors.New("calibrate: no held-out scores; hold some normals out of the bank")
	}
	s := slices.Clone(heldOut)
	for i, v := range s {
		if math.IsNaN(v) {
			return nil, fmt.Errorf("calibrate: held-out score %d: %w: NaN", i, ErrNotFinite)
		}
	}
	sort.Float64s(s)
	c := &Calibration{alpha: alpha, heldOut: s}
	c.rank = len(s) + 1 - alarmRank(len(s), alpha)
	return c, nil
}

// alarmRank is ⌊α(n+1)⌋: the largest count with count/(n+1) ≤ alpha, in the
// very arithmetic of PValue, so that threshold and p-value cannot disagree by
// rounding.
func alarmRank(n int, alpha float64) int {
	n1 := float64(n + 1)
	count := int(alpha * n1)
	for float64(count+1)/n1 <= alpha {
		count++
	}
	for count > 0 && float64(count)/n1 > alpha {
		count--
	}
	return count
}

// Resting is the same calibration of held-out scores that are worth only so many
// independent ones, at least 1, because they are those of frames of which alike
// in a row resemble one another, 0: any do. The threshold stays; what it promises
// gets less.
func (c *Calibration) Resting(worth, alike float64) *Calibration {
	out := *c
	if out.alike = alike; !(alike > 1) {
		out.alike = 0
	}
	if out.worth = max(1, worth); !(out.worth < float64(len(c.heldOut))) {
		out.worth = 0
	}
	return &out
}

// Worth is how many independent scores the held-out ones are worth, 1..n.
func (c *Calibration) Worth() float64 {
	if c.worth > 0 {
		return c.worth
	}
	return float64(len(c.heldOut))
}

// Alike is how many frames in a row tell as much as one, 1 where each counts.
func (c *Calibration) Alike() float64 { return max(1, c.alike) }

// Promise is the false-alarm rate that the threshold keeps in the mean over
// calibrations: Alpha, or what scores of that worth can promise at all, which is
// the rate at which the largest of them is exceeded.
func (c *Calibration) Promise() float64 {
	if c.worth > 0 {
		return max(c.alpha, 1/(c.worth+1))
	}
	return c.alpha
}

// Alpha is the false-alarm rate asked for, 0..1.
func (c *Calibration) Alpha() float64 { return c.alpha }

// HeldOut returns the held-out scores in ascending order; do not change them.
func (c *Calibration) HeldOut() []float64 { return c.heldOut }

// Len is the number of held-out scores, n.
func (c *Calibration) Len() int { return len(c.heldOut) }

// SmallestAlpha is 1/(n+1), the smallest false-alarm rate these held-out
// scores can promise.
func (c *Calibration) SmallestAlpha() float64 { return SmallestAlpha(len(c.heldOut)) }

// Reachable says whether Alpha ≥ SmallestAlpha.
func (c *Calibration) Reachable() bool { return c.rank <= len(c.heldOut) }

// Err is nil, or an *UnreachableError where Reachable is false.
func (c *Calibration) Err() error {
	if c.Reachable() {
		return nil
	}
	return &UnreachableError{
		Alpha: c.alpha, Smallest: c.SmallestAlpha(), HeldOut: len(c.heldOut), Needed: HeldOutFor(c.alpha),
	}
}

// Threshold is the score above which an image is anomalous; +Inf where Alpha
// is unreachable.
func (c *Calibration) Threshold() float64 {
	if !c.Reachable() {
		return math.Inf(1)
	}
	return c.heldOut[c.rank-1]
}

// PValue is the share, 1/(n+1)..1, of normals that look at least as strange as
// s, s itself included. A NaN is stranger than everything.
func (c *Calibration) PValue(s float64) float64 {
	n := len(c.heldOut)
	if math.IsNaN(s) {
		return 1 / float64(n+1)
	}
	below := sort.SearchFloat64s(c.heldOut, s) // #{held-out < s}
	return float64(1+n-below) / float64(n+1)
}

// Anomalous says whether PValue(s) ≤ Alpha. NaN is always anomalous.
func (c *Calibration) Anomalous(s float64) bool {
	return math.IsNaN(s) || c.PValue(s) <= c.alpha
}

// WithAlpha is the same held-out scores under another false-alarm rate.
func (c *Calibration) WithAlpha(alpha float64) (*Calibration, error) {
	out, err := NewCalibration(c.heldOut, alpha)
	if err != nil {
		return nil, err
	}
	out.worth, out.alike = c.worth, c.alike
	return out, nil
}

// MarshalJSON gives what a manifest shows: alpha, smallest_alpha, reachable,
// threshold (null where unreachable or infinite) and held_out (their number).
func (c *Calibration) MarshalJSON() ([]byte, error) {
	var threshold *float64
	if t := c.Threshold(); !isBad(t) {
		threshold = &t
	}
	return json.Marshal(struct {
		Alpha         float64  `json:"alpha"`
		SmallestAlpha float64  `json:"smallest_alpha"`
		Reachable     bool     `json:"reachable"`
		Threshold     *float64 `json:"threshold"`
		HeldOut       int      `json:"held_out"`
	}{c.alpha, c.SmallestAlpha(), c.Reachable(), threshold, len(c.heldOut)})
}

// SmallestAlpha is the smallest false-alarm rate that n held-out normals can
// promise: 1/(n+1).
func SmallestAlpha(n int) float64 { return 1 / float64(n+1) }

// HeldOutFor is the smallest number of held-out normals that can promise alpha,
// 0 < alpha < 1: the smallest n with 1/(n+1) ≤ alpha.
func HeldOutFor(alpha float64) int {
	n := max(int(math.Ceil(1/alpha))-2, 0)
	for SmallestAlpha(n) > alpha {
		n++
	}
	return max(n, 1)
}

// FalseAlarmRange says between which rates the false-alarm rate of one detector
// lies with the given confidence, 0..1, when n held-out normals calibrate it
// for alpha. The promise is the mean over calibrations; the rate of one of them
// is Beta(l, n+1−l) distributed, l = ⌊α(n+1)⌋, for scores without ties (Vovk,
// "Conditional validity of inductive conformal predictors", ACML 2012), and no
// higher with ties. Both ends are 0 where alpha is unreachable.
func FalseAlarmRange(n int, alpha, confidence float64) (low, high float64) {
	l := alarmRank(n, alpha)
	if l == 0 {
		return 0, 0
	}
	a, b := float64(l), float64(n+1-l)
	tail := (1 - confidence) / 2
	return betaQuantile(a, b, tail), betaQuantile(a, b, 1-tail)
}

// betaQuantile inverts the distribution function of Beta(a, b) by bisection.
func betaQuantile(a, b, p float64) float64 {
	low, high := 0.0, 1.0
	for range 60 {
		mid := (low + high) / 2
		if betaCDF(a, b, mid) < p {
			low = mid
		} else {
			high = mid
		}
	}
	return (low + high) / 2
}

// betaCDF is the regularised incomplete beta function I_x(a, b), by its
// continued fraction (NIST DLMF 8.17.22) in Lentz's form.
func betaCDF(a, b, x float64) float64 {
	switch {
	case x <= 0:
		return 0
	case x >= 1:
		return 1
	case x > (a+1)/(a+b+2):
		return 1 - betaCDF(b, a, 1-x)
	}
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	front := math.Exp(lab-la-lb+a*math.Log(x)+b*math.Log1p(-x)) / a
	const tiny = 1e-300
	nonZero := func(v float64) float64 {
		if math.Abs(v) < tiny {
			return tiny
		}
		return v
	}
	d := 1 / nonZero(1-(a+b)*x/(a+1))
	c, f := 1.0, d
	for i := 1; i <= 5000; i++ {
		m := float64(i)
		t := m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m))
		d, c = 1/nonZero(1+t*d), nonZero(1+t/c)
		f *= d * c
		t = -(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1))
		d, c = 1/nonZero(1+t*d), nonZero(1+t/c)
		f *= d * c
		if math.Abs(d*c-1) < 1e-14 {
			break
		}
	}
	return front * f
}
