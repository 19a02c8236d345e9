package frechet

import (
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"
)

// ErrFeatures marks features that no distance can be computed from: too few
// rows, rows of different lengths, values that are not finite.
var ErrFeatures = errors.New("unusable features")

// Gaussian is the normal distribution fitted to a set of features: their mean
// and a factor of their covariance.
type Gaussian struct {
	mean   []float64
	factor *mat.Dense // rows × d, factorᵀ·factor is the covariance (unbiased, n − 1)
	trace  float64
	count  int
}

// Fit fits a normal distribution to n ≥ 2 features of d values each.
func Fit(features [][]float32) (*Gaussian, error) {
	x, err := dense(features)
	if err != nil {
		return nil, err
	}
	n, d := x.Dims()
	if n < 2 {
		return nil, fmt.Errorf("fit a normal distribution: %w: want at least 2 images, got %d", ErrFeatures, n)
	}
	g := &Gaussian{mean: make([]float64, d), count: n}
	for i := range n {
		floats.Add(g.mean, x.RawRowView(i))
	}
	floats.Scale(1/float64(n), g.mean)
	scale := 1 / math.Sqrt(float64(n-1))
	for i := range n {
		row := x.RawRowView(i)
		floats.Sub(row, g.mean)
		floats.Scale(scale, row)
		g.trace += floats.Dot(row, row)
	}
	if n > 2*d { // keep the d × d triangle only: RᵀR is the same covariance
		var qr mat.QR
		qr.Factorize(x)
		var r mat.Dense
		qr.RTo(&r)
		x = mat.DenseCopyOf(r.Slice(0, d, 0, d))
	}
	g.factor = x
	return g, nil
}

// Distance is the squared Fréchet (2-Wasserstein) distance of two normal
// distributions, |m₁−m₂|² + tr S₁ + tr S₂ − 2 tr √(S₁S₂), as FID uses it
// (Heusel et al. 2017, eq. 6).
//
// With covariances AᵀA and BᵀB, tr √(S₁S₂) is the nuclear norm of B·Aᵀ: the sum
// of its singular values. No matrix square root is taken, so singular
// covariances (fewer images than features) lose nothing.
func Distance(a, b *Gaussian) (float64, error) {
	if len(a.mean) != len(b.mean) {
		return 0, fmt.Errorf("fréchet distance: %w: %d features against %d", ErrFeatures, len(a.mean), len(b.mean))
	}
	var cross mat.Dense
	cross.Mul(b.factor, a.factor.T())
	var svd mat.SVD
	if !svd.Factorize(&cross, mat.SVDNone) {
		return 0, errors.New("fréchet distance: the singular value decomposition did not converge")
	}
	d := floats.Distance(a.mean, b.mean, 2)
	return d*d + a.trace + b.trace - 2*floats.Sum(svd.Values(nil)), nil
}

// dense copies features to a float64 matrix, one row an image, and refuses what
// is ragged or not finite.
func dense(features [][]float32) (*mat.Dense, error) {
	if len(features) == 0 || len(features[0]) == 0 {
		return nil, fmt.Errorf("%w: none given", ErrFeatures)
	}
	n, d := len(features), len(features[0])
	x := mat.NewDense(n, d, nil)
	for i, f := range features {
		if len(f) != d {
			return nil, fmt.Errorf("%w: image %d has %d values, image 0 has %d", ErrFeatures, i, len(f), d)
		}
		row := x.RawRowView(i)
		for j, v := range f {
			row[j] = float64(v)
			if math.IsNaN(row[j]) || math.IsInf(row[j], 0) {
				return nil, fmt.Errorf("%w: image %d has a value that is not finite", ErrFeatures, i)
			}
		}
	}
	return x, nil
}
