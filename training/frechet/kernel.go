package frechet

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"
)

// KID is the kernel distance of Bińkowski et al. (2018): the unbiased squared
// maximum mean discrepancy with the kernel (x·y/d + 1)³, over all pairs rather
// than over random subsets. It may be slightly negative for equal sets.
func KID(a, b [][]float32) (float64, error) {
	x, y, err := pair("kernel distance", a, b)
	if err != nil {
		return 0, err
	}
	_, d := x.Dims()
	k := func(dot, _, _ float64) float64 {
		v := dot/float64(d) + 1
		return v * v * v
	}
	n, m := float64(len(a)), float64(len(b))
	sxx, dxx := kernelSum(x, x, k)
	syy, dyy := kernelSum(y, y, k)
	sxy, _ := kernelSum(x, y, k)
	return (sxx-dxx)/(n*(n-1)) + (syy-dyy)/(m*(m-1)) - 2*sxy/(n*m), nil
}

// CMMD is the kernel distance of Jayasumana et al. (2024): 1000 times the
// squared maximum mean discrepancy with the Gaussian kernel of width 10 between
// features of unit length, with the diagonal terms, as published. Theirs are
// features of CLIP; any extractor will do here, but values then compare only
// with values from the same one.
func CMMD(a, b [][]float32) (float64, error) {
	x, y, err := pair("cmmd", a, b)
	if err != nil {
		return 0, err
	}
	unit(x)
	unit(y)
	k := func(dot, xx, yy float64) float64 { return math.Exp(-(xx + yy - 2*dot) / (2 * 10 * 10)) }
	n, m := float64(len(a)), float64(len(b))
	sxx, _ := kernelSum(x, x, k)
	syy, _ := kernelSum(y, y, k)
	sxy, _ := kernelSum(x, y, k)
	return 1000 * (sxx/(n*n) + syy/(m*m) - 2*sxy/(n*m)), nil
}

func pair(what string, a, b [][]float32) (x, y *mat.Dense, err error) {
	if x, err = dense(a); err != nil {
		return nil, nil, fmt.Errorf("%s: first set: %w", what, err)
	}
	if y, err = dense(b); err != nil {
		return nil, nil, fmt.Errorf("%s: second set: %w", what, err)
	}
	if _, d := x.Dims(); d != len(b[0]) {
		return nil, nil, fmt.Errorf("%s: %w: %d features against %d", what, ErrFeatures, d, len(b[0]))
	}
	if len(a) < 2 || len(b) < 2 {
		return nil, nil, fmt.Errorf("%s: %w: want at least 2 images a set, got %d and %d", what, ErrFeatures, len(a), len(b))
	}
	return x, y, nil
}

// kernelSum sums k over all pairs of rows, and over those with equal numbers.
func kernelSum(x, y *mat.Dense, k func(dot, xx, yy float64) float64) (sum, diagonal float64) {
	n, _ := x.Dims()
	m, _ := y.Dims()
	xx, yy := squares(x), squares(y)
	var dots mat.Dense
	dots.Mul(x, y.T())
	for i := range n {
		row := dots.RawRowView(i)
		for j := range m {
			v := k(row[j], xx[i], yy[j])
			sum += v
			if i == j {
				diagonal += v
			}
		}
	}
	return sum, diagonal
}

func squares(x *mat.Dense) []float64 {
	n, _ := x.Dims()
	s := make([]float64, n)
	for i := range s {
		s[i] = floats.Dot(x.RawRowView(i), x.RawRowView(i))
	}
	return s
}

func unit(x *mat.Dense) {
	n, _ := x.Dims()
	for i := range n {
		row := x.RawRowView(i)
		if l := floats.Norm(row, 2); l > 0 {
			floats.Scale(1/l, row)
		}
	}
}
