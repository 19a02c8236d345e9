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
	// The largest count with count/(n+1) ≤ alpha, in the very arithmetic of
	// PValue, so that threshold and p-value cannot disagree by rounding.
	n1 := float64(len(s) + 1)
	count := int(alpha * n1)
	for float64(count+1)/n1 <= alpha {
		count++
	}
	for count > 0 && float64(count)/n1 > alpha {
		count--
	}
	c.rank = len(s) + 1 - count
	return c, nil
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
	return NewCalibration(c.heldOut, alpha)
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
