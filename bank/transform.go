package bank

import (
	"context"
	"fmt"
	"math"

	"github.com/viterin/vek"
	"github.com/viterin/vek/vek32"
)

// Transform is an affine map y = Matrix·(x − Mean), applied to embeddings
// before they are stored or searched; whitening is the use it is made for.
type Transform struct {
	// Mean has In numbers.
	Mean []float32
	// Matrix is row-major Out×In.
	Matrix []float32
}

// In is the length of the vectors it takes.
func (t *Transform) In() int { return len(t.Mean) }

// Out is the length of the vectors it gives.
func (t *Transform) Out() int {
	if len(t.Mean) == 0 {
		return 0
	}
	return len(t.Matrix) / len(t.Mean)
}

func (t *Transform) check(in int) error {
	if t.In() != in || t.Out() < 1 || t.Out() > maxDim || t.Out()*in != len(t.Matrix) {
		return fmt.Errorf("transform: %w: mean of %d and matrix of %d numbers do not fit dimension %d",
			ErrDim, len(t.Mean), len(t.Matrix), in)
	}
	for _, part := range [][]float32{t.Mean, t.Matrix} {
		if isBad(norm2(part)) {
			return fmt.Errorf("transform: %w", ErrNotFinite)
		}
	}
	return nil
}

func (t *Transform) apply(x []float32) ([]float32, error) {
	if err := checkVector(x, t.In()); err != nil {
		return nil, err
	}
	centred := vek32.Sub(x, t.Mean)
	y := make([]float32, t.Out())
	for i := range y {
		y[i] = vek32.Dot(t.Matrix[i*len(x):(i+1)*len(x)], centred)
	}
	return y, nil
}

// ApplyAll applies it to n vectors, row-major n×In, and gives n×Out numbers.
func (t *Transform) ApplyAll(rows []float32) ([]float32, error) {
	n := len(rows) / t.In()
	if n*t.In() != len(rows) {
		return nil, fmt.Errorf("transform: %w: %d numbers are not whole vectors of dimension %d", ErrDim, len(rows), t.In())
	}
	out := make([]float32, 0, n*t.Out())
	for i := range n {
		y, err := t.apply(rows[i*t.In() : (i+1)*t.In()])
		if err != nil {
			return nil, fmt.Errorf("vector %d of %d: %w", i, n, err)
		}
		out = append(out, y...)
	}
	return out, nil
}

// LearnWhitening learns a transform from n normal embeddings, row-major n×dim:
// y = L⁻¹(x − mean), where L·Lᵀ is the Cholesky factor of the shrunk covariance
// (1−shrinkage)·Σ + shrinkage·(tr Σ/dim)·I, shrinkage in (0, 1]. Squared
// distances between transformed vectors are Mahalanobis distances; any other
// whitening (PCA, ZCA) differs only by a rotation, which distances do not see.
func LearnWhitening(embeddings []float32, dim int, shrinkage float64) (*Transform, error) {
	if dim < 1 || dim > maxDim || len(embeddings) == 0 || len(embeddings)%dim != 0 {
		return nil, fmt.Errorf("learn whitening: %w: %d numbers are not whole embeddings of dimension %d",
			ErrDim, len(embeddings), dim)
	}
	if !(shrinkage > 0 && shrinkage <= 1) {
		return nil, fmt.Errorf("learn whitening: shrinkage %v is not in (0, 1]", shrinkage)
	}
	n := len(embeddings) / dim
	if n < 2 {
		return nil, fmt.Errorf("learn whitening: %w: %d embeddings, need at least 2", ErrTooFew, n)
	}
	for i := range n {
		if err := checkVector(embeddings[i*dim:(i+1)*dim], dim); err != nil {
			return nil, fmt.Errorf("learn whitening: embedding %d of %d: %w", i, n, err)
		}
	}
	mean, cov := covariance(embeddings, dim)
	trace := 0.0
	for i := range dim {
		trace += cov[i*dim+i]
	}
	if !(trace > 0) || math.IsInf(trace, 0) {
		return nil, fmt.Errorf("learn whitening: the %d embeddings have variance %g; they must differ", n, trace)
	}
	for i := range cov {
		cov[i] *= 1 - shrinkage
	}
	for i := range dim {
		cov[i*dim+i] += shrinkage * trace / float64(dim)
	}
	inverse, err := inverseCholesky(cov, dim)
	if err != nil {
		return nil, fmt.Errorf("learn whitening: %w", err)
	}
	t := &Transform{Mean: make([]float32, dim), Matrix: make([]float32, dim*dim)}
	for i, v := range mean {
		t.Mean[i] = float32(v)
	}
	for i, v := range inverse {
		t.Matrix[i] = float32(v)
	}
	return t, t.check(dim)
}

// covariance gives the mean and the lower triangle of the covariance (divided
// by n−1) of n×dim embeddings, in float64.
func covariance(embeddings []float32, dim int) (mean, cov []float64) {
	n := len(embeddings) / dim
	mean, cov = make([]float64, dim), make([]float64, dim*dim)
	for i := range n {
		for j, v := range embeddings[i*dim : (i+1)*dim] {
			mean[j] += float64(v)
		}
	}
	for j := range mean {
		mean[j] /= float64(n)
	}
	// Column by column of a block of rows that fits into a core's cache. Each
	// sum is one goroutine's, in the order of the rows.
	block := max(1, min(n, 128<<10/dim))
	columns := make([]float64, dim*block)
	for from := 0; from < n; from += block {
		m := min(block, n-from)
		for i := range m {
			for j, v := range embeddings[(from+i)*dim : (from+i+1)*dim] {
				columns[j*m+i] = float64(v) - mean[j]
			}
		}
		parallel(context.Background(), dim, func() func(int) {
			return func(j int) {
				for l := range j + 1 {
					cov[j*dim+l] += vek.Dot(columns[j*m:(j+1)*m], columns[l*m:(l+1)*m])
				}
			}
		})
	}
	for i := range cov {
		cov[i] /= float64(n - 1)
	}
	return mean, cov
}

// choleskyBlock is how many rows, and columns, are in a core's cache with others.
const choleskyBlock = 128

// inverseCholesky gives L⁻¹ (lower triangular, row-major) of the matrix whose
// lower triangle is a; a is overwritten by L.
func inverseCholesky(a []float64, n int) ([]float64, error) {
	for from := 0; from < n; from += choleskyBlock {
		for i := from; i < n; i++ {
			for j := from; j <= min(i, from+choleskyBlock-1); j++ {
				s := a[i*n+j]
				if j > 0 { // vek refuses empty slices
					s -= vek.Dot(a[i*n:i*n+j], a[j*n:j*n+j])
				}
				if i > j {
					a[i*n+j] = s / a[j*n+j]
					continue
				}
				if !(s > 0) {
					return nil, fmt.Errorf("covariance is not positive definite at dimension %d; use more shrinkage", j)
				}
				a[j*n+j] = math.Sqrt(s)
			}
		}
	}
	inv := make([]float64, n*n)
	parallel(context.Background(), (n+choleskyBlock-1)/choleskyBlock, func() func(int) {
		scaled := make([]float64, choleskyBlock)
		return func(block int) {
			from := block * choleskyBlock // of the columns; above the diagonal there is nothing
			for i := from; i < n; i++ {
				to := min(i+1, from+choleskyBlock)
				row := inv[i*n+from : i*n+to]
				for l := from; l < i; l++ {
					to := min(l+1, from+choleskyBlock)
					vek.Sub_Inplace(row[:to-from], vek.MulNumber_Into(scaled, inv[l*n+from:l*n+to], a[i*n+l]))
				}
				if i < from+choleskyBlock {
					row[i-from] = 1
				}
				for j := range row {
					row[j] /= a[i*n+i]
				}
			}
		}
	})
	return inv, nil
}
